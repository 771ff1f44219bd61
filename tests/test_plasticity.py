"""The study of plasticity: the written-out networks against autograd, laws of the regularisers, streams and measures."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from asrcl.curvature.spectrum import effective_rank, hessian_operator
from asrcl.exceptions import InputError
from asrcl.studies.ensemble import Ensemble
from asrcl.studies.plasticity.measures import LabelledBatch, SpectrumSettings, hidden_state, online, spectra
from asrcl.studies.plasticity.networks import Networks, error_slopes, generator_of
from asrcl.studies.plasticity.regularisers import REGULARISERS, Plain, rank_gradient, regulariser
from asrcl.studies.plasticity.streams import ClassPairs, Permuted, Pictures, RandomLabels, Sampled, gradual, stream_of
from asrcl.studies.plasticity.training import Training, learn, train
from asrcl.studies.study import run_study, study_of

DATA = Path(os.environ.get("ASRCL_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
WIDTHS = (6, 7, 5, 3)


def networks(copies=3, layer_norm=False, widths=WIDTHS):
    made = Networks(widths, [generator_of(seed, 1) for seed in range(copies)], layer_norm=layer_norm)
    for part in ("weights", "biases", "scales", "shifts"):
        setattr(made, part, [tensor.double() for tensor in getattr(made, part)])
    return made


def data(copies=3, samples=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(copies, samples, WIDTHS[0], generator=generator, dtype=torch.float64)
    return inputs, torch.randint(WIDTHS[-1], (copies, samples), generator=generator)


def pictures(classes=4, per_class=5, features=6):
    labels = torch.arange(classes).repeat_interleave(per_class)
    return Pictures(torch.rand(len(labels), features, generator=torch.Generator().manual_seed(0)), labels, classes)


# Networks


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("decay_all", [False, True])
def test_steps_are_those_of_autograd(batch, layer_norm, decay_all):
    made = networks(layer_norm=layer_norm)
    inputs, labels = data()
    modules = [made.member(copy).double() for copy in range(3)]
    own = Plain(decay=0.1, decay_all=decay_all, layer_norm=layer_norm)
    logits = learn(made, own, inputs, labels, Training(rate=0.3, batch=batch, block=8))
    for copy, module in enumerate(modules):
        weights = [layer.weight for layer in module if isinstance(layer, nn.Linear)]
        others = [parameter for parameter in module.parameters() if not any(parameter is weight for weight in weights)]
        # Trap 6 of the note: decay hits biases and layer normalisation as well, or does not; trap 10: it is an L2 penalty.
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.1 if decay_all else 0.0}]
        optimizer = torch.optim.SGD(groups, lr=0.3)
        for start in range(0, 8, batch):
            rows = slice(start, start + batch)
            optimizer.zero_grad()
            outputs = module(inputs[copy, rows])
            # Trap 8: what counts are the logits before the update.
            torch.testing.assert_close(logits[copy, rows], outputs.detach(), rtol=1e-9, atol=1e-9)
            cross_entropy(outputs, labels[copy, rows]).backward()
            optimizer.step()
        for learned, expected in zip(made.member(copy).double().parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(learned, expected, rtol=1e-6, atol=1e-7)


def test_an_ensemble_learns_the_same():
    made = networks()
    inputs, labels = data()
    members = [made.member(copy).double() for copy in range(3)]
    ensemble = Ensemble.of(lambda copy: members[copy], range(3))
    optimizer = torch.optim.SGD(ensemble.parameters.values(), lr=0.1)
    for sample in range(8):
        ensemble.backward(cross_entropy, inputs[:, sample : sample + 1], labels[:, sample : sample + 1])
        optimizer.step()
    learn(made, Plain(), inputs, labels, Training(rate=0.1))
    for learned, weight in zip(made.weights, list(ensemble.parameters.values())[::2], strict=True):
        torch.testing.assert_close(learned.mT, weight.detach())


def test_biases_decay_unless_told_otherwise():
    made, (inputs, labels) = networks(), data()
    made.biases[0].fill_(1.0)
    other = networks()
    other.load(made)
    learn(made, Plain(decay=0.5, decay_all=False), inputs[:, :1], labels[:, :1], Training(rate=0.1))
    learn(other, Plain(decay=0.5), inputs[:, :1], labels[:, :1], Training(rate=0.1))
    torch.testing.assert_close(made.biases[0] - other.biases[0], torch.full_like(made.biases[0], 0.05))
    torch.testing.assert_close(made.weights[0], other.weights[0])


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_copy_learns_what_it_would_learn_alone(name):
    options = {"redo": {"period": 1, "threshold": 0.5}, "continual_backprop": {"replacement": 0.2, "maturity": 3}}.get(name, {})
    how, stream = Training((9, 8), rate=0.1, block=5), Permuted(pictures())
    together = train(stream, regulariser(name, options), [3, 4, 5], 3, how)
    alone = train(stream, regulariser(name, options), [4], 3, how)
    assert [task.accuracy[1] for task in together.tasks] == [task.accuracy[0] for task in alone.tasks]
    norms = [[state["weight_norm"][place] for state in run.states] for run, place in ((together, 1), (alone, 0))]
    np.testing.assert_allclose(*norms, rtol=1e-5)


# Effective rank


def reference_rank(features):
    values = torch.linalg.svdvals(features)
    return torch.special.entr(values / values.sum()).sum().exp()


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_gradient_of_effective_rank_is_that_of_autograd(shape):
    features = torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    rank = reference_rank(features)
    rank.backward()
    found, gradient = rank_gradient(features.detach())
    assert float(found) == pytest.approx(rank.item()) == pytest.approx(effective_rank(torch.linalg.svdvals(features.detach())))
    torch.testing.assert_close(gradient, features.grad, rtol=1e-8, atol=1e-8)


def test_dead_units_and_repeated_samples_have_a_finite_gradient():
    # Trap 5: zero singular values; the entropy of a zero share has no gradient, and autograd gives NaN.
    features = torch.rand(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    features[:, 2] = 0.0
    features[5] = features[4]
    broken = features.clone().requires_grad_()
    values = torch.linalg.svdvals(broken)
    shares = torch.where(values > 1e-12, values, 0.0) / values.sum()
    (-(shares * shares.log()).nansum()).exp().backward()
    assert not torch.isfinite(broken.grad).all()
    rank, gradient = rank_gradient(features)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    assert float(rank) == pytest.approx(float(reference_rank(features)), rel=1e-9)
    step = 1e-6  # along what keeps the dead unit dead, the gradient is that of the rank
    direction = torch.rand(8, 6, dtype=torch.float64) * (features > 0)
    direction[5] = direction[4]
    slope = (reference_rank(features + step * direction) - reference_rank(features - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)
    zero_rank, zero_gradient = rank_gradient(torch.zeros(2, 4, 3))
    assert not zero_rank.any() and not zero_gradient.any()


def test_effective_rank_cannot_hold_the_scale_of_features():
    # Trap 5, second half, and why L2 is needed beside it.
    features = torch.rand(8, 6, dtype=torch.float64)
    rank, gradient = rank_gradient(features)
    assert float(rank_gradient(10 * features)[0]) == pytest.approx(float(rank))
    assert float((gradient * features).sum()) == pytest.approx(0.0, abs=1e-9)


def test_the_step_of_effective_rank_is_one_of_its_own():
    # Section 1.3 of the note: not a part of the loss, own learning rate, a whole block, no weight decay, all hidden layers.
    made, plain, (inputs, labels) = networks(copies=1), networks(copies=1), data(copies=1, samples=40)
    for each in (made, plain):
        for bias in each.biases:
            bias.fill_(1.0)  # no dead units, so that autograd has a gradient too
    how = Training(rate=0.01, block=40)
    learn(plain, Plain(decay=0.01), inputs, labels, how)
    learn(made, regulariser("l2_er", {"er_rate": 0.2, "decay": 0.01}), inputs, labels, how)
    module = plain.member(0).double()
    hidden, ranks = inputs[0], []
    for layer in list(module)[:-1]:
        hidden = layer(hidden)
        if isinstance(layer, nn.ReLU):
            ranks.append(reference_rank(hidden))
    torch.stack(ranks).mean().backward()
    for index in range(2):
        expected = module[2 * index].weight + 0.2 * module[2 * index].weight.grad
        torch.testing.assert_close(made.weights[index][0].mT, expected.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(made.weights[-1], plain.weights[-1])


def test_no_step_is_taken_on_part_of_a_block():
    made, plain, (inputs, labels) = networks(), networks(), data(samples=7)
    for each, own in ((made, "er"), (plain, "bp")):
        learn(each, regulariser(own, {}), inputs, labels, Training(rate=0.05, block=8))
    torch.testing.assert_close(made.flat(), plain.flat())


# Other regularisers


def test_l2_init_and_spectral_regularisation_are_steps_of_their_penalties():
    inputs, labels = data(samples=2)
    for name, options in (("l2_init", {"strength": 0.3}), ("spectral_reg", {"strength": 0.005})):
        made = networks(copies=1)
        module = made.member(0).double()
        initial = [parameter.detach().clone() for parameter in module.parameters()]
        own = regulariser(name, options)
        own.begin(made, WIDTHS, [0])
        learn(made, own, inputs[:1], labels[:1], Training(rate=0.1))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for sample in range(2):
            optimizer.zero_grad()
            loss = cross_entropy(module(inputs[0, sample : sample + 1]), labels[0, sample : sample + 1])
            for parameter, start in zip(module.parameters(), initial, strict=True):
                if name == "l2_init":
                    loss = loss + 0.15 * (parameter - start).square().sum()
                elif parameter.ndim == 2:
                    loss = loss + 0.005 * (torch.linalg.matrix_norm(parameter, 2).square() - 2).square()
                else:
                    loss = loss + 0.005 * parameter.square().sum()
            loss.backward()
            optimizer.step()
        for layer, weight in enumerate(made.weights):  # one power iteration a step follows the largest singular value
            torch.testing.assert_close(weight[0].mT, module[2 * layer].weight.detach(), rtol=1e-4, atol=1e-4)


def test_reset_draws_all_weights_anew_for_every_task():
    own, made = regulariser("reset", {}), networks()
    own.begin(made, WIDTHS, [0, 1, 2])
    before = made.flat()
    own.task(made, 1)
    first = made.flat()
    own.task(made, 2)
    assert (first != before).any() and (made.flat() != first).any()
    assert float(made.biases[0].abs().sum()) == 0


def test_redo_replaces_dormant_units_and_no_others():
    made = networks()
    made.weights[0][1, :, 3], made.biases[0][1, 0, 3] = 0.0, -1.0
    made.weights[0][:, :, :3], made.biases[0][:, :, :3] = made.weights[0][:, :, :3].abs(), 1.0
    inputs = data()[0].abs()
    features = made.forward(inputs).inputs[1].mean(1)
    dormant = features <= 0.05 * features.mean(1, keepdim=True)
    assert dormant[1, 3] and not dormant[:, :3].any()
    before = made.weights[0].clone()
    own = regulariser("redo", {"threshold": 0.05, "period": 1})
    own.begin(made, WIDTHS, [0, 1, 2])
    own.block(made, inputs)
    changed = (made.weights[0] != before).any(1)
    torch.testing.assert_close(changed, dormant)
    # New units reach nothing but units of the next layer that are new as well, and these reach nothing.
    reached = made.weights[2].abs().sum(2) > 0
    assert reached.any() and float((made.weights[1].abs() * reached[:, None])[dormant].sum()) == 0
    assert (made.weights[1].abs().sum(2)[~dormant] > 0).all() and float(made.biases[0][1, 0, 3]) == 0


def test_continual_backprop_replaces_the_least_useful_mature_unit():
    made = networks()
    made.weights[1][0, 4] = 0.0  # unit 4 of the first copy reaches nothing
    own = regulariser("continual_backprop", {"replacement": 0.1, "maturity": 2})
    own.begin(made, WIDTHS, [0, 1, 2])
    done = made.forward(data()[0])
    before = made.weights[0].clone()
    for _ in range(2):
        own.stepped(made, done)
    torch.testing.assert_close(made.weights[0], before)  # none is older than two steps yet
    for _ in range(2):  # 7 mature units x 0.1 in two steps make one
        own.stepped(made, done)
    assert (made.weights[0][0] != before[0]).any(0).nonzero().flatten().tolist() == [4]
    assert ((made.weights[0] != before).any(1).sum(1) == 1).all()


def test_shrink_and_perturb_adds_the_noise_of_a_block():
    made = networks(widths=(300, 200, 3))
    before = made.weights[0].clone()
    own = regulariser("shrink_and_perturb", {"noise": 0.01})
    own.begin(made, (300, 200, 3), [0, 1, 2])
    own.block(made, torch.zeros(3, 25, 300))
    assert float((made.weights[0] - before).std()) == pytest.approx(0.01 * 5, rel=0.02)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [("l3", {}, "l3 is unknown; choose from bp"), ("l2", {"rate": 1}, r"options\.l2: rate is unknown; it has decay")],
)
def test_unknown_regularisers_and_options_are_refused(name, options, named):
    with pytest.raises(InputError, match=named):
        regulariser(name, options)


# Streams


def test_permuted_tasks_keep_labels_and_change_pixels_by_seed_and_place():
    stream = Permuted(pictures())
    (first, labels), (again, _), (second, _) = stream.task(0, 7), stream.task(0, 7), stream.task(1, 7)
    torch.testing.assert_close(first, again)
    assert sorted(labels.tolist()) == sorted(pictures().labels.tolist())
    torch.testing.assert_close(first.sort(1).values.sum(0), second.sort(1).values.sum(0))
    assert (stream.task(0, 8)[0] != first).any()


def test_random_labels_change_while_images_stay():
    stream = RandomLabels(pictures(per_class=50), count=120, epochs=2)
    (x, y), (u, v) = stream.task(0, 1), stream.task(1, 1)
    assert len(y) == 240 and set(map(tuple, x.tolist())) == set(map(tuple, u.tolist()))
    labels = [dict(zip(map(tuple, samples.tolist()), given.tolist(), strict=True)) for samples, given in ((x, y), (u, v))]
    kept = np.mean([labels[0][image] == labels[1][image] for image in labels[0]])
    assert kept == pytest.approx(0.25, abs=0.13)


@pytest.mark.parametrize("partition", [True, False])
def test_pairs_of_classes_have_the_labels_zero_and_one(partition):
    base, stream = pictures(), ClassPairs(pictures(), partition=partition, epochs=2)
    where = {tuple(sample): label for sample, label in zip(base.samples.tolist(), base.labels.tolist(), strict=True)}
    seen = []
    for index in range(2):
        samples, labels = stream.task(index, 3)
        assert labels.bincount().tolist() == [10, 10]
        seen.append({where[tuple(sample)] for sample in samples.tolist()})
    assert all(len(pair) == 2 for pair in seen)
    if partition:
        assert seen[0] | seen[1] == {0, 1, 2, 3}


def test_a_gradual_change_passes_from_one_task_to_the_next():
    stream = Permuted(pictures(per_class=500))
    mixed = Sampled(stream, 0.5)
    (before, _), (new, labels), (samples, mixed_labels) = stream.task(0, 1), stream.task(1, 1), mixed.task(1, 1)
    is_new = (samples == new).all(1)
    assert ((samples == before).all(1) | is_new).all()
    torch.testing.assert_close(mixed_labels[is_new], labels[is_new])
    half = len(labels) // 2
    assert is_new[half:].all() and is_new[:half].double().mean() == pytest.approx(0.5, abs=0.06)
    assert is_new[: half // 4].double().mean() < 0.2
    torch.testing.assert_close(mixed.task(0, 1)[0], before)
    assert gradual(stream, 0.0, "sampling") is stream


def test_interpolation_moves_the_same_images_from_one_permutation_to_the_next():
    pixels, stream = pictures(per_class=10), Permuted(pictures(per_class=10))
    moving = gradual(stream, 1.0, "interpolation")
    abrupt, labels = stream.task(1, 5)
    samples, same_labels = moving.task(1, 5)
    torch.testing.assert_close(labels, same_labels)
    far = (samples - abrupt).abs().mean(1)
    assert far[:10].mean() > 5 * far[-10:].mean()
    assert samples.mean(1).sum() == pytest.approx(float(pixels.samples.mean(1).sum()), rel=1e-5)


def test_streams_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="stream=digit: unknown; choose from permuted_digits"):
        stream_of("digit", None)
    with pytest.raises(InputError, match=r"stream=permuted_digits: .*epochs"):
        stream_of("permuted_digits", None, epochs=2)
    with pytest.raises(InputError, match="give a part from 0"):
        gradual(Permuted(pictures()), 1.5, "sampling")
    with pytest.raises(InputError, match="change=interpolation"):
        gradual(ClassPairs(pictures()), 0.5, "interpolation")


@pytest.mark.parametrize(
    ("name", "classes", "features"),
    [("permuted_digits", 10, 64), ("permuted_mnist", 10, 784), ("random_label_mnist", 10, 784), ("binary_classes", 2, 768),
     ("split_cifar10", 2, 768)],
)  # fmt: skip
def test_streams_by_name(name, classes, features):
    if name != "permuted_digits" and not DATA.is_dir():
        pytest.skip(f"no data in {DATA} (ASRCL_DATA)")
    images = {} if name == "permuted_digits" else {"train": 300}
    stream = stream_of(name, str(DATA), images)
    samples, labels = stream.task(3, 0)
    assert (stream.classes, stream.features) == (classes, features) and samples.shape == (len(labels), features)
    assert float(samples.min()) >= 0 and float(samples.max()) <= 1 and int(labels.max()) == classes - 1


def test_all_digits_are_learned_from():
    # Trap 6 of the note: no row is left out or comes twice.
    samples, _ = stream_of("permuted_digits", None).task(0, 0)
    assert len(samples) == 1797


# Measures


def test_tau_trainability_and_online_accuracy_are_taken_before_updates():
    labels = torch.zeros(2, 7, dtype=torch.long)
    logits = torch.zeros(2, 7, 2)
    logits[0, 2:, 0] = 5.0  # the first copy is right from the third sample on; the second never is sure
    found = online(logits, labels, torch.tensor([1.0, 0.5]), tau=0.1, window=2)
    assert found.steps_to_tau == [4, None]
    assert found.end_accuracy == [1.0, 0.5]
    logits[0, :2, 1] = 1.0
    assert online(logits, labels, torch.zeros(2), 0.1, 2).accuracy[0] == pytest.approx(5 / 7)


def test_hidden_state_counts_dead_units():
    made, (inputs, _) = networks(), data()
    made.weights[0][1, :, :2], made.biases[0][1, 0, :2] = 0.0, -1.0
    found = hidden_state(made, inputs)
    features = made.forward(inputs).inputs[1:]
    assert found["dead_units"] == [sum(int((layer[copy].abs().sum(0) == 0).sum()) for layer in features) for copy in range(3)]
    assert found["dead_units"][1] >= 2
    assert found["weight_norm"][2] == pytest.approx(float(made.flat()[2].norm()))
    assert found["effective_rank"][0] == pytest.approx(np.mean([float(reference_rank(layer[0])) for layer in features]))


def test_spectra_are_those_of_the_dense_matrices():
    made, (inputs, labels) = networks(), data(samples=30)
    module = made.member(0).double()
    settings = SpectrumSettings(epsilons=(0.01, 0.1), items=30)
    found = spectra(module, inputs[0], labels[0], settings, seed=0)
    batch = LabelledBatch(inputs[0], labels[0])
    operator = hessian_operator(module, lambda net, b: cross_entropy(net(b.samples), b.labels), [batch])
    values = np.linalg.eigvalsh(operator @ np.eye(operator.shape[0]))
    assert found["hessian"]["epsilon_rank"] == pytest.approx([np.mean(np.abs(values) > e) for e in (0.01, 0.1)])
    assert found["hessian"]["largest"] == pytest.approx(values.max(), abs=1e-6)
    assert found["hessian"]["effective_rank"] == pytest.approx(effective_rank(values), rel=1e-6)
    assert found["hessian"]["smallest"] < -1e-3 and found["ggn"]["smallest"] > -1e-9
    estimated = spectra(module, inputs[0], labels[0], replace(settings, exact_below=0, draws=40), seed=0)
    assert estimated["hessian"]["epsilon_rank"] == pytest.approx(found["hessian"]["epsilon_rank"], abs=0.05)
    assert 1 <= found["kfac_ranks"]["A"] <= 8 and 1 <= found["kfac_ranks"]["G"] <= 7


def test_penalties_are_no_part_of_the_measured_loss():
    # Section 1.4 of the note: two regularisers at the same weights have the same spectrum.
    stream, how = Permuted(pictures()), Training((5,), spectra_at=(0,), spectrum_seeds=1, spectrum=SpectrumSettings(items=10))
    start = [train(stream, regulariser(name, {}), [0], 1, how).spectra[0]["start"][0] for name in ("bp", "l2_er")]
    assert start[0] == start[1]


def test_error_slopes_are_the_gradient_of_the_mean_cross_entropy():
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(3, (2, 5))
    sum(cross_entropy(logits[copy], labels[copy]) for copy in range(2)).backward()
    torch.testing.assert_close(error_slopes(logits.detach(), nn.functional.one_hot(labels, 3)), logits.grad)


# The study


def test_a_small_study_from_beginning_to_end(tmp_path):
    small = ["tasks=3", "seeds=2", "spectra=2", "spectrum_seeds=2", "hessian_steps=4", "ggn_steps=4", "spectrum_items=10",
             "hidden=[8,8]", "jobs=1", "exact_below=0", "widths=[0,1]", "gradual_regularisers=[bp]", "fresh_tasks=1",
             "regularisers=[l2_er,bp]", "options.l2_er.decay=0.01"]  # fmt: skip
    shown = run_study("plasticity", tmp_path, small)
    assert "L2-ER" in shown and "unseen tasks" in shown
    from asrcl.files import read_json

    record = read_json(tmp_path / "results.json")
    assert list(record["regularisers"]) == ["bp", "l2_er"] and set(record["abruptness"]["bp"]) == {"0", "1"}
    history = record["regularisers"]["l2_er"]
    assert len(history["tasks"]) == 3 and set(history["spectra"]) == {"0", "2"}
    shares = history["spectra"]["2"]["end"][0]["ggn"]["epsilon_rank"]
    assert all(0 <= share <= 1 and math.isfinite(share) for share in shares)
    abrupt, slow = (record["abruptness"]["bp"][width] for width in "01")
    assert abrupt["tasks"][0] == slow["tasks"][0] and abrupt["tasks"][1] != slow["tasks"][1]  # a first task has nothing before it
    assert len(abrupt["fresh"]) == len(slow["fresh"]) == 2 and not slow["spectra"] and not history["fresh"]
    for name in ("plasticity", "plasticity_measures", "plasticity_abruptness"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert set(record["sections"]) == {"plasticity", "plasticity_spectra", "plasticity_predictors", "plasticity_abruptness"}


def test_the_published_size_is_a_valid_study():
    full = study_of("plasticity_full")
    assert full.hidden == (1000, 1000, 1000) and full.tasks == 800


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("regularisers=[l3]", "l3 is unknown"),
        ("options.l2_init.strength=1", r"options\.l2_init: no such regulariser is run"),
        ("block=7 batch=2", "must be a multiple of batch=2"),
        ("seeds=0", "seeds=0: give at least 1"),
        ("epsilons=[]", "epsilons="),
    ],
)
def test_settings_that_do_not_fit_are_refused(override, named):
    with pytest.raises(InputError, match=named):
        study_of("plasticity", override.split())
