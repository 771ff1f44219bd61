import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asrcl.curvature.estimation.losses import FISHERS, LOSSES, UNSUPPORTED, LossWatch
from asrcl.exceptions import InputError

pytestmark = pytest.mark.filterwarnings("ignore")
TRUE_FISHERS = [kind for kind in FISHERS if kind != "empirical"]
IGNORED = torch.tensor([2, -100, 0, 1])
LABELS = torch.tensor([2, 1, 0, 1])
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0]).double()


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


SOFT = normal(4, 3, seed=8).softmax(-1)
Y = normal(4, 3, seed=9)
YES = torch.tensor([[1.0, 0, 1], [0, 1, 0.3], [1, 1, 1], [0, 0, 1]]).double()
POSITIVE = normal(4, 3, seed=10).exp()


def gradients(watch, z, loss_of, number=0):
    """The weight and the gradient of every pass."""
    leaf = z.clone().requires_grad_()
    watch.start_batch(number)
    with watch:
        loss = loss_of(leaf)
    watch.check(loss)
    found = [(w, torch.autograd.grad(loss, leaf, retain_graph=True)[0]) for w in watch.draws()]
    assert len(found) == watch.count()
    return found


def gram(watch, z, loss_of, number=0):
    """The weighted sum of g gᵀ over the passes, of all outputs together."""
    passes = gradients(watch, z, loss_of, number)
    return sum(w * torch.outer(g.flatten(), g.flatten()) for w, g in passes)


def assert_second_moment(passes, truth):
    """The mean of g gᵀ is the truth up to 4.5 standard errors."""
    products = torch.stack([torch.outer(g.flatten(), g.flatten()) for _, g in passes])
    assert ((products.mean(0) - truth).abs() <= 4.5 * products.std(0) / len(passes) ** 0.5 + 1e-12).all()


def refusal(call):
    """The message of the refusal, which is one line."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def smoothed(log_probs, target, log_target=False):
    """Label smoothing as toolkits write it: padded positions are masked after the fact."""
    kept = target != -100
    q = torch.full_like(log_probs, 0.05).scatter_(1, target.where(kept, 0)[:, None], 0.9).detach()
    kl = F.kl_div(log_probs, q.log() if log_target else q, reduction="none", log_target=log_target)
    return kl.masked_fill(~kept[:, None], 0).sum() / kept.sum()


EXACT = {
    "ce mean": lambda z: F.cross_entropy(z, LABELS),
    "ce sum": lambda z: F.cross_entropy(z, LABELS, reduction="sum"),
    "ce module": lambda z: nn.CrossEntropyLoss()(z, LABELS),
    "ce of one position": lambda z: F.cross_entropy(z[0], LABELS[0]) + 2 * F.cross_entropy(z[1], LABELS[1]),
    "ce masked": lambda z: (F.cross_entropy(z, LABELS, reduction="none") * torch.tensor([1.0, 0, 3, 0.5])).mean(),
    "ce ignored": lambda z: F.cross_entropy(z, IGNORED),
    "ce ignores a class": lambda z: F.cross_entropy(z, LABELS, ignore_index=1),
    "ce class weights": lambda z: F.cross_entropy(z, IGNORED, CLASS_WEIGHTS),
    "ce class weights sum": lambda z: F.cross_entropy(z, IGNORED, weight=CLASS_WEIGHTS, reduction="sum"),
    "ce smoothed": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.3),
    "ce soft": lambda z: F.cross_entropy(z, SOFT),
    "ce soft unnormalised": lambda z: F.cross_entropy(z, 3 * SOFT, reduction="sum"),
    "ce soft unnormalised mean": lambda z: F.cross_entropy(z, 3 * SOFT, CLASS_WEIGHTS),
    "ce classes in the middle": lambda z: F.cross_entropy(z.mT[None], IGNORED[None]),
    "ce soft in the middle": lambda z: F.cross_entropy(z.mT[None], SOFT.mT[None]),
    "nll": lambda z: F.nll_loss(z.log_softmax(-1), IGNORED, CLASS_WEIGHTS),
    "nll in the middle": lambda z: F.nll_loss(z.log_softmax(-1).mT[None], IGNORED[None], reduction="sum"),
    "nll module": lambda z: nn.NLLLoss(reduction="none")(z.log_softmax(-1), LABELS).sum(),
    "kl smoothing": lambda z: smoothed(z.log_softmax(-1), IGNORED),
    "kl smoothing, log target": lambda z: smoothed(z.log_softmax(-1), IGNORED, log_target=True),
    "kl batchmean": lambda z: F.kl_div(z.log_softmax(-1), SOFT, reduction="batchmean"),
    "kl mean": lambda z: F.kl_div(z.log_softmax(-1), SOFT),
    "kl sum": lambda z: F.kl_div(z.log_softmax(-1), SOFT * torch.tensor([[1.0], [0], [2], [1]]), reduction="sum"),
    "kl uneven": lambda z: (F.kl_div(z.log_softmax(-1), SOFT, reduction="none") * POSITIVE).sum(),
    "torch kl": lambda z: torch.kl_div(z.log_softmax(-1), SOFT.log(), 2, log_target=True),
    "mse": lambda z: F.mse_loss(z, Y),
    "mse module": lambda z: nn.MSELoss(reduction="sum")(z, Y),
    "mse reversed": lambda z: F.mse_loss(Y, z, reduction="sum"),
    "mse none": lambda z: (F.mse_loss(z, Y, reduction="none") * POSITIVE).mean(),
    "mse weight": lambda z: F.mse_loss(z, Y, weight=POSITIVE),
    "mse target broadcast": lambda z: F.mse_loss(z, Y[:1]),
    "mse vector": lambda z: F.mse_loss(z.flatten(), Y.flatten()),
    "bce": lambda z: F.binary_cross_entropy_with_logits(z, YES),
    "bce weight": lambda z: F.binary_cross_entropy_with_logits(z, YES, POSITIVE[:, :1], reduction="sum"),
    "bce weight mean": lambda z: F.binary_cross_entropy_with_logits(z, YES, POSITIVE),
    "bce module": lambda z: nn.BCEWithLogitsLoss(reduction="none")(z, YES).mul(POSITIVE).sum(),
    "torch bce": lambda z: torch.binary_cross_entropy_with_logits(z, YES, POSITIVE, None, 2),
    "two losses": lambda z: 0.3 * F.cross_entropy(z, LABELS) + 0.7 * F.nll_loss(z.log_softmax(-1), LABELS, reduction="sum"),
    "square of a loss elsewhere": lambda z: 2 * F.mse_loss(z, Y).clone().mul_(0.5),
}


@pytest.mark.parametrize("loss_of", EXACT.values(), ids=EXACT)
def test_exact_is_the_hessian_of_the_loss_in_the_outputs(loss_of):
    z = normal(4, 3)
    hessian = torch.autograd.functional.hessian(loss_of, z).reshape(12, 12)
    found = gram(LossWatch("exact"), z, loss_of)
    coupled = (hessian.abs() > 1e-14) | torch.eye(12, dtype=torch.bool)
    torch.testing.assert_close(found[coupled], hessian[coupled])


@pytest.mark.parametrize("fisher", TRUE_FISHERS)
@pytest.mark.parametrize("name", ["ce class weights", "kl smoothing", "mse weight", "bce weight", "two losses"])
def test_where_positions_mix_the_hessian_comes_out_on_average(name, fisher):
    z, mix = normal(4, 3), normal(4, 4, seed=3)
    hessian = torch.autograd.functional.hessian(lambda x: EXACT[name](mix @ x), z).reshape(12, 12)
    watch = LossWatch(fisher)
    grams = torch.stack([gram(watch, z, lambda x: EXACT[name](mix @ x), number) for number in range(400)])
    error = (grams.mean(0) - hessian).abs()
    assert (error <= 4.5 * grams.std(0) / 20 + 1e-12).all()


@pytest.mark.parametrize("name", ["ce ignored", "nll", "kl uneven", "mse none", "bce weight"])
def test_many_draws_approach_the_exact_information(name):
    z = normal(4, 3)
    passes = gradients(LossWatch("mc", samples=3000), z, EXACT[name])
    assert all(w == pytest.approx(1 / 3000) for w, _ in passes)
    hessian = torch.autograd.functional.hessian(EXACT[name], z).reshape(12, 12)
    assert_second_moment(passes, hessian)


def case(name):
    """Outputs and a loss of them by name."""
    return (normal(5, 3, 3), ctc) if name == "ctc" else (normal(4, 3), EXACT[name])


CTC = {
    "targets": torch.tensor([[1, 2], [2, 0], [1, 1]]),
    "input_lengths": torch.tensor([5, 3, 4]),
    "target_lengths": torch.tensor([2, 1, 2]),
}


def ctc(logits, **changes):
    return F.ctc_loss(logits.log_softmax(-1), **{**CTC, **changes})


@pytest.mark.parametrize("factor", [0.3, 4.0])
@pytest.mark.parametrize("name", ["ce ignored", "nll", "kl smoothing", "mse", "bce", "ctc"])
def test_a_factor_before_a_loss_is_a_factor_before_its_information(name, factor):
    z, loss_of = case(name)
    once = gram(LossWatch("mc"), z, loss_of)
    assert once.abs().sum() > 0
    torch.testing.assert_close(gram(LossWatch("mc"), z, lambda x: factor * loss_of(x)), factor * once)


LENGTHS = CTC["input_lengths"], CTC["target_lengths"]
TUPLES = (5, 3, 4), (2, 1, 2)
FLAT = torch.tensor([1, 2, 2, 1, 1])
CTC_FORMS = {
    "none": lambda p: (F.ctc_loss(p, **CTC, reduction="none") / LENGTHS[1]).mean(),
    "flat": lambda p: F.ctc_loss(p, FLAT, *LENGTHS, blank=0, reduction="mean", zero_infinity=True),
    "tuples": lambda p: F.ctc_loss(p, CTC["targets"], *TUPLES),
    "module": lambda p: nn.CTCLoss()(p, FLAT, *LENGTHS),
    "torch": lambda p: torch.ctc_loss(p, CTC["targets"], *TUPLES, 0, 1),
    "torch none": lambda p: (torch.ctc_loss(p, FLAT, *LENGTHS, reduction=0) / LENGTHS[1]).mean(),
    "positional": lambda p: F.ctc_loss(p, CTC["targets"], *LENGTHS, 0, "mean", False),
}


@pytest.mark.parametrize("form", CTC_FORMS.values(), ids=CTC_FORMS)
def test_every_way_to_call_ctc_gives_the_same(form):
    z = normal(5, 3, 3)
    found = gram(LossWatch("mc"), z, lambda x: form(x.log_softmax(-1)))
    torch.testing.assert_close(found, gram(LossWatch("mc"), z, ctc))


def test_each_ctc_reduction_weighs_the_utterances():
    z = normal(5, 3, 3)
    (_, total), (_, mean) = (gradients(LossWatch("mc"), z, lambda x, r=r: ctc(x, reduction=r))[0] for r in ("sum", "mean"))
    share = (1 / (3 * CTC["target_lengths"])).sqrt()[:, None]
    torch.testing.assert_close(mean, total * share)
    assert (total[3:, 1] == 0).all() and (total[:3, 1] != 0).any()


def test_an_utterance_without_labels_counts_like_one_with_a_single_label():
    z = normal(5, 3, 3)
    (_, empty), (_, single) = (
        gradients(LossWatch("mc"), z, lambda x, n=n: ctc(x, target_lengths=torch.tensor([2, n, 2])))[0] for n in (0, 1)
    )
    assert torch.equal(empty, single) and torch.isfinite(empty).all()


def test_an_unbatched_ctc_loss_is_a_batch_of_one():
    z, labels = normal(5, 3), LABELS[:2]
    single = gram(LossWatch("mc"), z, lambda x: F.ctc_loss(x.log_softmax(-1), labels, torch.tensor(5), torch.tensor(2)))
    batch = gram(LossWatch("mc"), z, lambda x: F.ctc_loss(x.log_softmax(-1)[:, None], labels[None], (5,), (2,)))
    torch.testing.assert_close(single, batch)
    assert single.abs().sum() > 0


def test_ctc_of_one_frame_has_the_information_of_a_cross_entropy():
    """The blank is the empty sequence then, and every other class a sequence of its own."""
    z = normal(1, 1, 3)
    truth = 0.5 * torch.autograd.functional.hessian(lambda x: F.cross_entropy(x[0], LABELS[:1]), z).reshape(3, 3)
    passes = gradients(
        LossWatch("mc", samples=2000), z, lambda x: 0.5 * F.ctc_loss(x.log_softmax(-1), LABELS[None, :1], (1,), (1,))
    )
    assert_second_moment(passes, truth)


def test_an_impossible_utterance_that_is_zeroed_does_not_count():
    z, short = normal(5, 3, 3), {"input_lengths": torch.tensor([5, 3, 1]), "zero_infinity": True}
    gradient = gradients(LossWatch("mc"), z, lambda x: ctc(x, **short))[0][1]
    assert (gradient[:, 2] == 0).all() and (gradient[:, :2] != 0).any()


def values(z):
    """Calls in every variant of the arguments."""
    ce, nll, kl, mse, bce = F.cross_entropy, F.nll_loss, F.kl_div, F.mse_loss, F.binary_cross_entropy_with_logits
    log_probs, frames = z.log_softmax(1), z.reshape(4, 1, 3).log_softmax(-1)
    for how in ("none", "mean", "sum"):
        yield from (ce(z, t, w, reduction=how) for t in (LABELS, IGNORED, SOFT) for w in (None, CLASS_WEIGHTS))
        yield ce(z, LABELS, CLASS_WEIGHTS, None, 1, None, how, 0.0)
        yield from (nll(log_probs, IGNORED, w, reduction=how) for w in (None, CLASS_WEIGHTS))
        yield from (mse(z, Y, reduction=how, weight=w) for w in (None, POSITIVE))
        yield from (bce(z, YES, w, reduction=how) for w in (None, POSITIVE))
        yield from (kl(log_probs, SOFT, reduction=how), kl(log_probs, SOFT.log(), reduction=how, log_target=True))
        for zero in (False, True):
            yield F.ctc_loss(frames, LABELS[None, :2], (4,), (2,), 0, how, zero)
        yield F.ctc_loss(frames, LABELS[None], (4,), (4,), reduction=how, zero_infinity=True)
        yield F.ctc_loss(frames, LABELS[None], (4,), (0,), blank=2, reduction=how)
    for flags in ((True, None), (False, None), (None, True), (None, False), (False, False), (True, True)):
        yield ce(z, LABELS, CLASS_WEIGHTS, flags[0], -100, flags[1])
        yield kl(log_probs, SOFT, *flags)
        yield mse(z, Y, *flags)
        yield bce(z, YES, None, *flags)
    yield kl(log_probs, SOFT, reduction="batchmean")
    yield from (torch.kl_div(log_probs, SOFT, r) for r in (0, 1, 2))
    yield from (torch.binary_cross_entropy_with_logits(z, YES, POSITIVE, None, r) for r in (0, 1, 2))


@pytest.mark.parametrize("fisher", ["empirical", "mc"])
def test_values_are_the_users_own_to_the_bit_and_keep_their_graph(fisher):
    z = normal(4, 3).requires_grad_()
    with LossWatch(fisher):
        watched = list(values(z))
    plain = list(values(z))
    assert len(watched) == len(plain) > 70
    for ours, theirs in zip(watched, plain, strict=True):
        assert torch.equal(ours, theirs) and ours.requires_grad


FLAGS = {(True, None): "mean", (False, None): "sum", (None, False): "none", (False, False): "none", (True, True): "mean"}


@pytest.mark.parametrize(("flags", "how"), FLAGS.items(), ids=str)
def test_deprecated_flags_mean_what_they_mean(flags, how):
    old, new = (
        gram(LossWatch("mc"), normal(4, 3), f)
        for f in (lambda x: F.mse_loss(x, Y, *flags).sum(), lambda x: F.mse_loss(x, Y, reduction=how).sum())
    )
    torch.testing.assert_close(old, new)


@pytest.mark.parametrize("keyword", [True, False])
@pytest.mark.parametrize("fisher", FISHERS)
def test_label_smoothing_is_dropped_unless_asked_for(fisher, keyword):
    leaf = normal(4, 3).requires_grad_()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.2) if keyword else None
    arguments = (leaf, LABELS, None, None, -100, None, "mean", 0.2)
    found = {}
    for keep in (True, False):
        watch = LossWatch(fisher, label_smoothing=keep)
        with watch:
            found[keep] = criterion(leaf, LABELS) if criterion else F.cross_entropy(*arguments)
    assert torch.equal(found[True], F.cross_entropy(*arguments))
    assert torch.equal(found[False], F.cross_entropy(leaf, LABELS))


def test_empirical_gradients_are_the_gradients():
    def loss_of(x):
        return F.cross_entropy(x, IGNORED, CLASS_WEIGHTS) + F.l1_loss(x, Y)

    watch, leaf = LossWatch("empirical"), normal(4, 3).requires_grad_()
    ((weight, gradient),) = gradients(watch, leaf.detach(), loss_of)
    assert weight == 1.0 and watch.seen == {"cross_entropy", "l1_loss"}
    assert torch.equal(gradient, torch.autograd.grad(loss_of(leaf), leaf)[0])


@pytest.mark.parametrize("fisher", FISHERS)
def test_parts_keep_one_loss_and_stop_the_gradient_of_the_others(fisher):
    z, other = normal(4, 3), normal(4, 3, seed=1).requires_grad_()

    def both(x):
        return 0.3 * F.cross_entropy(x, LABELS) + F.mse_loss(x + other, Y) + F.smooth_l1_loss(other, Y)

    watch = LossWatch(fisher, parts=("cross_entropy",))
    found = gram(watch, z, both)
    assert watch.seen == {"cross_entropy", "mse_loss", "smooth_l1_loss"}
    torch.testing.assert_close(found, gram(LossWatch(fisher), z, lambda x: 0.3 * F.cross_entropy(x, LABELS)))
    with watch:
        loss = both(z.clone().requires_grad_())
    next(watch.draws())
    assert torch.autograd.grad(loss, other, allow_unused=True) == (None,)


def test_exact_columns_of_several_calls_come_one_after_another():
    z = normal(4, 3)
    watch = LossWatch("exact")
    passes = gradients(watch, z, lambda x: F.mse_loss(x[:2], Y[:2]) + F.cross_entropy(x[2:], LABELS[2:]))
    assert watch.count() == len(passes) == 6 and {w for w, _ in passes} == {1.0}
    assert all((g[2:] == 0).all() and (g[:2] != 0).any() for _, g in passes[:3])
    assert all((g[:2] == 0).all() and (g[2:] != 0).any() for _, g in passes[3:])


def test_calls_that_no_gradient_reaches_are_left_alone():
    def loss(x):
        with torch.no_grad():
            F.l1_loss(x, Y)
        F.smooth_l1_loss(Y, 2 * Y)
        return F.cross_entropy(x, LABELS)

    watch = LossWatch("exact")
    assert len(gradients(watch, normal(4, 3), loss)) == 3 and watch.seen == {"cross_entropy"}


@pytest.mark.parametrize("name", ["ce mean", "nll", "kl smoothing", "mse", "bce", "ctc"])
def test_draws_depend_on_seed_and_batch_and_differ_among_passes_and_calls(name):
    z, loss_of = case(name)

    def drawn(seed, number):
        return torch.stack([g for _, g in gradients(LossWatch("mc", samples=2, seed=seed), z, loss_of, number)])

    first = drawn(0, 5)
    torch.manual_seed(99)
    state, resumed = torch.get_rng_state(), LossWatch("mc", samples=2)
    gradients(resumed, z, loss_of, 4)
    assert torch.equal(first, torch.stack([g for _, g in gradients(resumed, z, loss_of, 5)]))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, drawn(1, 5)) and not torch.equal(first, drawn(0, 6))
    twice = gradients(LossWatch("mc", samples=2), z, lambda x: loss_of(x) + loss_of(x), 5)
    assert not torch.allclose(twice[0][1], 2 * first[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fisher", TRUE_FISHERS)
@pytest.mark.parametrize("name", ["ce ignored", "kl batchmean", "mse", "bce"])
def test_gradients_come_in_the_type_of_the_outputs(name, fisher, dtype):
    z = normal(4, 3).to(dtype)

    def loss_of(x):
        return EXACT[name](x).float()

    hessian = torch.autograd.functional.hessian(EXACT[name], z.double()).reshape(12, 12)
    passes = gradients(LossWatch(fisher, samples=400 if fisher == "mc" else 1), z, loss_of)
    assert {g.dtype for _, g in passes} == {dtype}
    found = sum(w * g.double().square().flatten() for w, g in passes)
    tolerance = 0.35 if fisher == "mc" else 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found, hessian.diagonal(), rtol=tolerance, atol=1e-6)


def test_autocast_changes_nothing():
    x, layer = normal(4, 5).float(), nn.Linear(5, 3)

    def loss_of(z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(z)
            assert y.dtype == torch.bfloat16
            flat = F.ctc_loss(y.log_softmax(-1)[:, None], LABELS[None, :2], (4,), (2,), blank=0)
            return F.cross_entropy(y, LABELS) + flat + F.mse_loss(y, Y.float())

    ((_, gradient),) = gradients(LossWatch("mc"), x, loss_of)
    assert gradient.dtype == torch.float32 and torch.isfinite(gradient).all() and (gradient != 0).any()


@pytest.mark.parametrize("fisher", TRUE_FISHERS)
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_losses_without_labels_to_draw_are_refused_by_name(name, fisher):
    z, one = normal(4, 3).requires_grad_(), torch.ones(4).double()
    arguments = {
        "binary_cross_entropy": (z.sigmoid(), YES),
        "cosine_embedding_loss": (z, Y, one),
        "gaussian_nll_loss": (z, Y, POSITIVE),
        "margin_ranking_loss": (z[:, 0], z[:, 1], one),
        "multi_margin_loss": (z, LABELS),
        "multilabel_margin_loss": (z, torch.zeros(4, 3).long()),
        "triplet_margin_loss": (z, Y, YES),
        "triplet_margin_with_distance_loss": (z, Y, YES),
    }.get(name, (z, YES))
    with LossWatch(fisher):
        message = refusal(lambda: getattr(F, name)(*arguments))
    assert message.startswith(f"{name} has no fisher='{fisher}'") and "cross_entropy" in message


@pytest.mark.parametrize("fisher", TRUE_FISHERS)
def test_a_loss_of_ones_own_is_refused_with_the_remedy(fisher):
    watch = LossWatch(fisher)
    with watch:
        loss = (normal(3).requires_grad_() ** 2).sum()
    for call in (watch.draws, lambda: watch.check(loss)):
        message = refusal(call)
        assert all(name in message for name in LOSSES) and "asrcl.curvature.estimation.sampling" in message


OWN = [("mc", None), ("exact", None), ("mc", ("mse_loss",)), ("empirical", ("mse_loss",))]


@pytest.mark.parametrize(("fisher", "parts"), OWN)
def test_a_path_past_the_known_losses_is_found(fisher, parts):
    watch = LossWatch(fisher, parts=parts)
    with watch:
        z = normal(4, 3).requires_grad_()
        inner = 2 * z
        clean = (F.mse_loss(inner, Y, reduction="none") * POSITIVE).sum() + 3.0
        mixed = clean + inner.square().mean()
    watch.check(clean)
    assert "past its calls of mse_loss (a term written by hand?)" in refusal(lambda: watch.check(mixed))


def test_plain_empirical_has_no_such_limits():
    watch = LossWatch("empirical")
    with watch:
        loss = (normal(3).requires_grad_() ** 2).sum()
    watch.check(loss)
    assert list(watch.draws()) == [1.0] and watch.seen == set()


@pytest.mark.parametrize("fisher", FISHERS)
def test_a_wanted_part_that_never_came_is_named(fisher):
    watch = LossWatch(fisher, parts=["ctc_loss", "kl_div"])
    with watch:
        F.cross_entropy(normal(4, 3).requires_grad_(), LABELS)
    assert refusal(watch.draws) == "parts asks for ctc_loss, kl_div, but the loss called cross_entropy; mend parts or loss_fn"
    watch.start_batch(1)
    assert "called none of the known losses" in refusal(watch.draws)


@pytest.mark.parametrize("name", ["ce mean", "nll", "kl sum", "mse", "bce", "ctc"])
def test_a_subtracted_loss_is_refused(name):
    z, loss_of = case(name)
    message = refusal(lambda: gradients(LossWatch("mc"), z, lambda x: -0.1 * loss_of(x)))
    assert "has a weight below 0" in message


def test_logits_in_the_place_of_log_probabilities_are_refused():
    message = refusal(lambda: gradients(LossWatch("mc"), normal(4, 3), lambda z: F.nll_loss(z, LABELS)))
    assert message == "nll_loss: no log-probabilities: exp(input) must sum to 1 over axis 1; use log_softmax there"


REFUSED = {
    "ctc exact": ("exact", lambda z: ctc(z[:, None].expand(4, 3, 3), input_lengths=torch.tensor([4, 3, 4])), "use fisher='mc'"),
    "pos_weight": ("mc", lambda z: nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS)(z, YES), "leave pos_weight out"),
    "kl shapes": ("mc", lambda z: F.kl_div(z.log_softmax(-1), SOFT[:1]), "input [4, 3] and target [1, 3]"),
}


@pytest.mark.parametrize(("fisher", "loss_of", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_at_the_call(fisher, loss_of, words):
    with LossWatch(fisher):
        assert words in refusal(lambda: loss_of(normal(4, 3).requires_grad_()))


OPTIONS = {
    "fisher='true' does not exist; there are empirical, mc, exact": {"fisher": "true"},
    "samples=0 with fisher='mc'": {"fisher": "mc", "samples": 0},
    "samples=2 with fisher='exact'": {"fisher": "exact", "samples": 2},
    "parts names 'ctc'; it can name binary_cross": {"fisher": "mc", "parts": ["ctc"]},
    "parts names nothing": {"fisher": "mc", "parts": []},
}


@pytest.mark.parametrize(("words", "options"), OPTIONS.items())
def test_wrong_options_are_refused(words, options):
    assert re.match(re.escape(words), refusal(lambda: LossWatch(**options)))


def test_a_backward_pass_outside_the_draws_is_an_error():
    watch, leaf = LossWatch("mc"), normal(4, 3).requires_grad_()
    with watch:
        loss = F.cross_entropy(leaf, LABELS)
    with pytest.raises(RuntimeError, match="inside the loop"):
        loss.backward(retain_graph=True)
    for _ in watch.draws():
        loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inside the loop"):
        loss.backward()
