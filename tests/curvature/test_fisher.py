"""The kinds of Fisher information, from a loss to the blocks: against labels enumerated by hand, Hessians, and each other."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import seeded
from curvature_processes import unchecked
from fisher_cases import (
    assert_same_blocks,
    cross_entropy,
    dense_of,
    distance,
    exact_fisher,
    item_gradients,
    labelled,
    matrix_of,
    mlp,
    singles,
)
from torch import nn

from asrcl.curvature import correct, estimate
from asrcl.curvature.estimation.losses import LossWatch
from asrcl.exceptions import InputError

DOUBLE = torch.float64


@pytest.fixture
def model():
    return seeded(mlp)


@pytest.fixture
def data():
    return labelled()


@pytest.mark.parametrize("size", [1, 4, 6])
def test_exact_is_the_mean_over_all_labels(model, data, size):
    parts = list(zip(*(part.split(size) for part in data), strict=True))
    truth = exact_fisher(model, data[0], lambda m, x: m(x))
    found = dense_of(estimate(model, cross_entropy, parts, fisher="exact", structure="dense"))
    for name, matrix in truth.items():
        torch.testing.assert_close(found[name], matrix)
    diagonal = estimate(model, cross_entropy, parts, fisher="exact", structure="diagonal").diagonals()
    for name, values in diagonal.items():
        torch.testing.assert_close(values.flatten(), truth[name].diagonal())


def test_exact_of_a_sequence_is_the_mean_over_all_label_sequences_on_average():
    """Two positions: the products across them come with a random sign, and vanish in the mean over label sequences."""
    layer, (x, _) = seeded(lambda: nn.Linear(2, 3)), labelled(6, 2)
    x = x.reshape(3, 2, 2)

    def loss(model, batch):
        logits = model(batch[0])
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten(), reduction="sum") / len(logits)

    truth = torch.zeros(6, 6, dtype=DOUBLE)
    p = layer(x).detach().softmax(-1)
    for item, labels in itertools.product(range(3), itertools.product(range(3), repeat=2)):
        pair = [(x[item : item + 1], torch.tensor([labels]))]
        g = item_gradients(layer, loss, pair)["weight"].flatten()
        truth += p[item, 0, labels[0]] * p[item, 1, labels[1]] * torch.outer(g, g) / 3
    batch = (x, torch.zeros(3, 2, dtype=torch.long))
    draws = torch.stack(
        [dense_of(estimate(layer, loss, [batch], fisher="exact", structure="dense", seed=s))["weight"] for s in range(80)]
    )
    noise = draws.std(0) / math.sqrt(len(draws))
    assert noise.max() > 1e-3 and ((draws.mean(0) - truth).abs() < 4 * noise + 1e-12).all()
    (block,) = estimate(layer, loss, [batch], fisher="exact", layers="linear").blocks.values()
    each = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    torch.testing.assert_close(block.G_OO, each.sum(1).mean(0))


def test_drawn_labels_converge_to_exact_at_the_right_rate(model, data):
    exact = dense_of(estimate(model, cross_entropy, [data], fisher="exact"))
    counts = [4, 16, 64, 256, 1024]
    errors = [
        [
            math.log(distance(dense_of(estimate(model, cross_entropy, [data], fisher="mc", samples=n, seed=seed)), exact))
            for seed in range(4)
        ]
        for n in counts
    ]
    x = torch.tensor(counts, dtype=DOUBLE).log()
    y = torch.tensor(errors, dtype=DOUBLE).mean(1)
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    assert abs(slope + 0.5) < 0.12, (slope, y)
    assert y[-1] < math.log(0.1)


def test_draws_follow_the_seed_and_the_batch(model, data):
    def drawn(seed, batches):
        return dense_of(estimate(model, cross_entropy, batches, fisher="mc", seed=seed))

    assert distance(drawn(3, [data]), drawn(3, [data])) == 0
    assert distance(drawn(4, [data]), drawn(3, [data])) > 0.01
    half = tuple(part[:3] for part in data)
    assert distance(drawn(3, [half, half]), drawn(3, [half])) > 0.01, "each batch draws its own"
    before = torch.get_rng_state()
    drawn(3, [data])
    assert torch.equal(torch.get_rng_state(), before)


def test_several_samples_are_the_mean_of_their_draws(model, data):
    watch = LossWatch("mc", samples=4, seed=7)
    with watch:
        loss = F.cross_entropy(logits := model(data[0]), data[1])
    draws = []
    for weight in watch.draws():
        (rows,) = torch.autograd.grad(loss * len(data[0]), logits, retain_graph=True)
        assert weight == 1 / 4
        draws.append(rows.T @ rows / len(rows))
    assert all((one - other).abs().max() > 0.01 for one, other in itertools.combinations(draws, 2))
    for fisher_samples, truth in ((4, sum(draws) / 4), (1, draws[0])):
        found = estimate(model, cross_entropy, [data], fisher="mc", samples=fisher_samples, seed=7)
        (block,) = found.blocks_of("2.weight").values()
        torch.testing.assert_close(block.G_OO, truth)
        torch.testing.assert_close(found.diagonals()["2.bias"], truth.diagonal())


class Recogniser(nn.Module):
    """An encoder with a CTC head at every frame and a head of tokens on the mean frame."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.ctc = nn.Linear(2, 3)
        self.attention = nn.Linear(2, 3)

    def forward(self, x):
        h = torch.tanh(self.encoder(x))
        return self.ctc(h).log_softmax(-1), self.attention(h.mean(1))


def joint(ctc=0.3, attention=0.7, smoothing=0.0):
    def loss(model, batch):
        x, labels = batch
        frames, token = model(x)
        lengths = torch.full((len(x),), x.shape[1]), torch.ones(len(x), dtype=torch.long)
        first = F.ctc_loss(frames.transpose(0, 1), labels[:, None], *lengths, reduction="sum") / len(x)
        return ctc * first + attention * F.cross_entropy(token, labels, label_smoothing=smoothing)

    return loss


def speech():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(2, 3, 2, generator=generator, dtype=DOUBLE)
    return x, torch.randint(1, 3, (2,), generator=generator)


def test_the_parts_of_a_joint_loss_add_up():
    model, batch = seeded(Recogniser), speech()

    def information(parts, samples=400, seed=0):
        options = {"fisher": "mc", "structure": "dense", "samples": samples, "seed": seed, "parts": parts}
        return dense_of(estimate(model, joint(), [batch], **options))

    whole, other = information(None), information(None, seed=1)
    parts = {name: information((name,), seed=2) for name in ("ctc_loss", "cross_entropy")}
    assert set(parts["ctc_loss"]) == {"encoder.weight", "encoder.bias", "ctc.weight", "ctc.bias"}
    assert set(parts["cross_entropy"]) == {"encoder.weight", "encoder.bias", "attention.weight", "attention.bias"}
    zero = {name: torch.zeros_like(matrix) for name, matrix in whole.items()}
    total = {name: sum((part | {n: zero[n] for n in zero if n not in part})[name] for part in parts.values()) for name in whole}
    noise = distance(other, whole)
    assert 0.005 < noise < 0.2 and distance(total, whole) < 2.5 * noise
    assert all(distance({n: (zero | part)[n] for n in whole}, whole) > 5 * noise for part in parts.values())


def test_the_attention_part_alone_is_exact_and_ctc_refuses():
    model, batch = seeded(Recogniser), speech()
    found = dense_of(estimate(model, joint(), [batch], fisher="exact", structure="dense", parts=("cross_entropy",)))
    truth = exact_fisher(model, batch[0], lambda m, x: m(x)[1])
    for name, matrix in found.items():
        torch.testing.assert_close(matrix, 0.7 * truth[name])
    with pytest.raises(InputError, match="ctc_loss would enumerate"):
        estimate(model, joint(), [batch], fisher="exact")


@pytest.mark.parametrize("part, weights", [("ctc_loss", (0.3, 0.7)), ("cross_entropy", (0.3, 0.7))])
@pytest.mark.parametrize("fisher", ["mc", "empirical"])
def test_the_weight_of_a_part_scales_its_information(part, weights, fisher):
    """Of the true Fisher by the weight, of the labels' squared gradients by its square: the same draws, so to the digit."""
    model, batch = seeded(Recogniser), speech()
    options = {"fisher": fisher, "structure": "dense", "parts": (part,)}
    weight = weights[part == "cross_entropy"]
    whole, scaled = (dense_of(estimate(model, joint(*w), [batch], **options)) for w in ((1, 1), weights))
    for name, matrix in whole.items():
        torch.testing.assert_close(scaled[name], matrix * (weight if fisher == "mc" else weight**2))


@pytest.mark.parametrize("fisher", ["empirical", "mc", "exact"])
def test_label_smoothing_is_left_out_unless_asked_for(model, data, fisher):
    def smooth(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.2)

    plain, dropped = (estimate(model, loss, [data], fisher=fisher) for loss in (cross_entropy, smooth))
    assert_same_blocks(dropped, plain)
    kept = estimate(model, smooth, [data], fisher=fisher, label_smoothing=True)
    changed = distance(dense_of(kept), dense_of(plain))
    assert changed > 0.05 if fisher == "empirical" else changed == 0
    assert kept.metadata["options"]["label_smoothing"] and not plain.metadata["options"]["label_smoothing"]


CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=DOUBLE)


def soft(y):
    return (0.8 * F.one_hot(y, 4) + 0.05).to(DOUBLE)


FORMS = {
    "mean": lambda z, y: F.cross_entropy(z, y),
    "sum over items": lambda z, y: F.cross_entropy(z, y, reduction="sum") / len(z),
    "none": lambda z, y: F.cross_entropy(z, y, reduction="none").mean(),
    "weighted terms": lambda z, y: (F.cross_entropy(z, y, reduction="none") * torch.linspace(0, 1, len(z))).mean(),
    "three times": lambda z, y: 3 * F.cross_entropy(z, y),
    "two calls": lambda z, y: F.cross_entropy(z, y) + 0.5 * F.cross_entropy(2 * z, y),
    "ignored": lambda z, y: F.cross_entropy(z, y.where(y != 1, -100)),
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=CLASS_WEIGHTS),
    "soft labels": lambda z, y: F.cross_entropy(z, soft(y)),
    "log probabilities": lambda z, y: F.nll_loss(z.log_softmax(-1), y),
    "divergence": lambda z, y: F.kl_div(z.log_softmax(-1), soft(y), reduction="batchmean"),
    "temperature": lambda z, y: F.cross_entropy(z / 1.7, y),
    "binary": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 4).to(z)),
    "binary sum": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 4).to(z), reduction="sum") / len(z),
    "squares": lambda z, y: F.mse_loss(z, F.one_hot(y, 4).to(z)),
    "squares sum": lambda z, y: 0.5 * F.mse_loss(z, F.one_hot(y, 4).to(z), reduction="sum") / len(z),
}


def hessians(layer, loss_of_logits, x, y):
    """The Hessian of the loss of a linear layer in its weight and in its bias."""

    def value(weight, bias):
        return loss_of_logits(F.linear(x, weight, bias), y)

    blocks = torch.autograd.functional.hessian(value, (layer.weight.detach(), layer.bias.detach()))
    return {name: blocks[i][i].reshape(getattr(layer, name).numel(), -1) for i, name in enumerate(("weight", "bias"))}


OF_A_BATCH = {"weighted terms", "ignored", "class weights"}
"""Not a mean of losses that each item has by itself."""


@pytest.mark.parametrize("form", [form for form in FORMS if form not in OF_A_BATCH])
def test_exact_is_the_hessian_of_a_linear_model(form):
    layer, data = seeded(lambda: nn.Linear(3, 4)), labelled()

    def loss(model, batch):
        return FORMS[form](model(batch[0]), batch[1])

    found = dense_of(estimate(layer, loss, [data], fisher="exact", structure="dense"))
    for name, truth in hessians(layer, FORMS[form], *data).items():
        torch.testing.assert_close(found[name], truth, atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_exact_output_factor_is_the_hessian_of_the_bias(form):
    """In one batch, so that normalisations over all its labels count as the user wrote them."""
    layer, data = seeded(lambda: nn.Linear(3, 4)), labelled()

    def loss(model, batch):
        return FORMS[form](model(batch[0]), batch[1])

    with unchecked():  # one of the forms weighs items by their place in the batch
        (block,) = estimate(layer, loss, [data], fisher="exact", layers="linear").blocks.values()
    truth = hessians(layer, FORMS[form], *data)["bias"]
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(block.G_OO, truth, atol=1e-12, rtol=1e-8)


TOKENS = {
    "mean over tokens": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten()),
    "sum over tokens": lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="sum") / len(z),
    "padded tokens": lambda z, y: F.cross_entropy(z.movedim(-1, 1), y.where(y > 0, -100)),
    "mean per item": lambda z, y: (F.cross_entropy(z.mT, y, reduction="none") * (y > 0)).sum(1).div((y > 0).sum(1)).mean(),
}


@pytest.mark.parametrize("form", TOKENS)
def test_exact_of_sequences_has_the_scale_of_the_loss(form):
    layer, (x, y) = seeded(lambda: nn.Linear(3, 4)), labelled(12)
    x, y = x.reshape(4, 3, 3), y.reshape(4, 3)
    y[:, 0] = 1

    def loss(model, batch):
        return TOKENS[form](model(batch[0]), batch[1])

    (block,) = estimate(layer, loss, [(x, y)], fisher="exact", layers="linear").blocks.values()
    torch.testing.assert_close(block.G_OO, hessians(layer, TOKENS[form], x, y)["bias"], atol=1e-12, rtol=1e-8)


def test_the_mean_over_tokens_and_over_items_differ_by_their_number():
    layer, (x, y) = seeded(lambda: nn.Linear(3, 4)), labelled(12)
    batch = x.reshape(4, 3, 3), y.reshape(4, 3)
    mean, total = (
        estimate(layer, lambda m, b, f=TOKENS[form]: f(m(b[0]), b[1]), [batch], fisher="exact", layers="linear").trace()
        for form in ("mean over tokens", "sum over tokens")
    )
    assert total == pytest.approx(3 * mean)


class Recurrent(nn.Module):
    """A recurrent layer, which no adapter knows, under a linear one, which is known."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 2, batch_first=True)
        self.last = nn.Linear(2, 3)

    def forward(self, x):
        return self.last(self.rnn(x)[0][:, -1])


@pytest.fixture
def recurrent():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 3, 2, generator=generator, dtype=DOUBLE)
    return seeded(Recurrent), (x, torch.randint(0, 3, (4,), generator=generator))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("fisher", ["empirical", "exact"])
def test_unknown_operations_fall_back_to_single_items(recurrent, fisher, size):
    model, data = recurrent
    parts = list(zip(*(part.split(size) for part in data), strict=True))
    found = estimate(model, cross_entropy, parts, fisher=fisher)
    assert "item by item" in found.metadata["notes"]["rnn.weight_ih_l0"]
    if fisher == "exact":
        truth = {name: matrix.diagonal() for name, matrix in exact_fisher(model, data[0], lambda m, x: m(x)).items()}
    else:
        truth = {n: g.square().mean(0).flatten() for n, g in item_gradients(model, cross_entropy, singles(data)).items()}
    for key, block in found.blocks.items():
        assert block.items == 4 and (block.kind == "diagonal") == (key.name != "last.weight")
        if block.kind == "diagonal":
            torch.testing.assert_close(block.diagonal.flatten(), truth[key.name])


def test_drawn_labels_of_single_items_approach_the_exact_ones(recurrent):
    model, data = recurrent
    options = {"include": ["rnn.*"]}
    exact = estimate(model, cross_entropy, [data], fisher="exact", **options)
    few, many = (estimate(model, cross_entropy, [data], fisher="mc", samples=n, **options) for n in (4, 400))
    far, near = (distance(one.diagonals(), exact.diagonals()) for one in (few, many))
    assert near < 0.12 and near < far / 3
    again = estimate(model, cross_entropy, [data], fisher="mc", samples=4, **options)
    assert distance(again.diagonals(), few.diagonals()) == 0
    other = estimate(model, cross_entropy, [data], fisher="mc", samples=4, seed=1, **options)
    assert distance(other.diagonals(), few.diagonals()) > 0.01


def by_hand(model, batch):
    logits = model(batch[0])
    return F.cross_entropy(logits, batch[1]) + logits.square().mean()


@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "dense"])
@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_a_term_written_by_hand_has_no_drawn_labels_in_any_structure(model, data, fisher, structure):
    with pytest.raises(InputError, match="written by hand"):
        estimate(model, by_hand, [data], fisher=fisher, structure=structure)
    assert estimate(model, by_hand, [data], structure=structure).blocks


def test_a_term_written_by_hand_is_refused_on_single_items_too(recurrent):
    model, data = recurrent

    def decay(model, batch):
        return cross_entropy(model, batch) + 0.1 * model.rnn.weight_hh_l0.square().sum()

    with pytest.raises(InputError, match="written by hand"):
        estimate(model, decay, [data], fisher="mc")
    assert estimate(model, decay, [data]).blocks


class Shifted(nn.Module):
    """A weight of a linear map whose first row is also added as a shift."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))
        self.last = nn.Linear(3, 4)

    def forward(self, x):
        return self.last(torch.tanh(F.linear(x, self.weight) + self.weight[0]))


@pytest.mark.parametrize("structure", ["kron", "diagonal", "ekfac"])
def test_a_map_that_is_also_a_shift_gets_the_squares_of_both_uses(data, structure):
    model = seeded(Shifted)
    found = estimate(model, cross_entropy, [data, data], structure=structure)
    truth = item_gradients(model, cross_entropy, singles(data))["weight"].square().mean(0)
    torch.testing.assert_close(found.diagonals()["weight"], truth)
    assert "otherwise in another" in found.metadata["notes"]["weight"]


@pytest.mark.parametrize("fisher", ["mc", "exact"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_inputs_count_once_however_many_backward_passes(data, fisher, reentrant):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Sequential):
        def forward(self, x):
            return checkpoint(lambda h: self[3](self[2](self[1](h))), self[0](x), use_reentrant=reentrant)

    plain = seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh()))
    wrapped = Checkpointed(*copy.deepcopy(plain))
    options = {"fisher": fisher, "samples": 3 if fisher == "mc" else 1}
    truth, found = (estimate(m, cross_entropy, [data], **options) for m in (plain, wrapped))
    assert_same_blocks(found, truth)
    assert all(block.positions == 6 for block in found.blocks.values() if block.kind == "kronecker")


def test_correcting_a_pooled_curvature_needs_one_way_of_estimating(model, data):
    one, two = (estimate(model, cross_entropy, [data], fisher="mc", samples=8, seed=seed) for seed in (1, 2))
    pooled = correct(one + two, model, cross_entropy, [data])
    again = correct(one + two, model, cross_entropy, [data])
    assert_same_blocks(pooled, again)
    labels = correct(estimate(model, cross_entropy, [data]), model, cross_entropy, [data])
    drawn = correct(one, model, cross_entropy, [data])
    assert distance(dense_of(pooled), dense_of(labels)) > 2 * distance(dense_of(pooled), dense_of(drawn))
    with pytest.raises(InputError, match="one way"):
        correct(one + estimate(model, cross_entropy, [data]), model, cross_entropy, [data])


def test_matrices_of_blocks_are_what_quadratic_says(model, data):
    found = estimate(model, cross_entropy, [data], fisher="exact", structure="dense")
    delta = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    by_matrix = sum(0.5 * d.flatten() @ dense_of(found)[n] @ d.flatten() for n, d in delta.items())
    torch.testing.assert_close(found.quadratic(delta), by_matrix)
    assert all(torch.equal(matrix_of(b), matrix_of(b).T) for b in found.blocks.values())
