"""Quadratic regularisers: derivatives against autograd, facts of the curvature, bookkeeping of penalties and measures."""

import math
from dataclasses import replace

import pytest
import torch
from fisher_cases import cross_entropy as mean_loss
from fisher_cases import dense_of
from torch.func import functional_call, hessian, vmap
from torch.nn.functional import cross_entropy

from asrcl.curvature import estimate
from asrcl.exceptions import InputError
from asrcl.studies.quadratic import curvature as curvatures
from asrcl.studies.quadratic.curvature import empirical_factors, fisher_factors, flattened, second_order
from asrcl.studies.quadratic.landscape import TrustRegion, drift, ends_of_tasks, leakage, sharpness, trust_region
from asrcl.studies.quadratic.monitor import ShadowMonitor, fidelity, penalty_of
from asrcl.studies.quadratic.networks import Perceptrons, Samples
from asrcl.studies.quadratic.tasks import batches, sine_bands
from asrcl.studies.quadratic.training import PUBLISHED, TUNED, Plan, train

SEEDS = (3, 4)
WIDTH = 6
EXACT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture(scope="module")
def networks() -> Perceptrons:
    return Perceptrons(SEEDS, WIDTH)


@pytest.fixture(scope="module")
def samples() -> Samples:
    tasks = sine_bands(SEEDS, tasks=2, samples=12)
    return Samples(tasks.inputs.flatten(1, 2), tasks.labels.flatten(1))


def lone(networks: Perceptrons, copy: int):
    """One copy's network as a module, and its loss as a function of a flat vector and one sample."""
    module = networks._networks.member(copy)

    def loss(vector, x, y):
        sizes = [p.numel() for p in module.parameters()]
        named = zip(module.named_parameters(), vector.split(sizes), strict=True)
        return cross_entropy(functional_call(module, {name: v.view_as(p) for (name, p), v in named}, (x,)), y)

    return module, loss


def noise(networks: Perceptrons) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(networks.start.shape, generator=generator, dtype=torch.float64)


def value_of(penalty, weights):
    """The penalty above its value at the networks' start, which is the anchor of the tests."""
    distance = weights - Perceptrons(SEEDS, WIDTH).start
    return (distance[:, None] @ penalty.matrix @ distance[..., None])[:, 0, 0] / 2


def per_sample_hessians(networks: Perceptrons, samples: Samples, copy: int) -> torch.Tensor:
    _, loss = lone(networks, copy)
    return vmap(hessian(loss), in_dims=(None, 0, 0))(networks.start[copy], samples.inputs[copy], samples.labels[copy])


# The data


def test_bands_labels_and_batches():
    tasks = sine_bands((0, 1))
    x, y = tasks.inputs, tasks.labels
    assert x.shape == (2, 9, 200, 2) and tasks.test_inputs.shape == (2, 9, 50, 2)
    edges = -5 + 10 / 9 * torch.arange(10)
    assert (x[..., 0] >= edges[:-1, None]).all() and (x[..., 0] <= edges[1:, None]).all()
    assert ((x[..., 1] > x[..., 0].sin()) == (y == 1)).all()
    distance = (x[..., 1] - x[..., 0].sin()).square().mean().sqrt()
    assert distance.item() == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(x[0], x[1])
    order = batches((0, 1), task=2, size=200, batch=32, steps=9)
    assert [rows.shape[1] for rows in order] == [32] * 6 + [8] + [32] * 2
    assert torch.cat(order[:7], 1).sort(1).values.tolist() == [list(range(200))] * 2
    assert torch.equal(order[3], batches((0, 1), task=2, size=200, batch=32, steps=4)[3])
    with pytest.raises(InputError, match="tasks=1"):
        sine_bands((0,), tasks=1)


def test_the_network_has_502_parameters():
    assert Perceptrons((0,)).start.shape == (1, 502)


# Derivatives


def test_gradients_and_hessians_are_those_of_autograd(networks, samples):
    found = networks.derivatives(networks.start, samples)
    ours = curvatures.hessian(networks, networks.start, samples, found)
    for copy in range(2):
        _, loss = lone(networks, copy)
        at = (networks.start[copy], samples.inputs[copy], samples.labels[copy])
        gradients = vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(*at)
        torch.testing.assert_close(found.gradients[copy], gradients, **EXACT)
        torch.testing.assert_close(ours[copy], per_sample_hessians(networks, samples, copy).sum(0), **EXACT)


# Kinds of curvature


def test_fisher_is_gauss_newton_for_cross_entropy_and_not_for_squared_error(networks, samples):
    found = networks.derivatives(networks.start, samples)
    J, p = found.jacobian, found.probabilities
    gauss_newton = torch.einsum("sncp,sncd,sndq->spq", J, torch.diag_embed(p) - p[..., :, None] * p[..., None, :], J)
    fisher = second_order(networks, networks.start, samples, "fisher").matrix
    torch.testing.assert_close(fisher, gauss_newton, **EXACT)
    # Of the squared error of the logits, the Gauss-Newton matrix is Jᵀ J: it does not vanish on confident samples.
    assert not torch.allclose(fisher, torch.einsum("sncp,sncq->spq", J, J), rtol=0.1)


def test_binary_softmax_both_have_rank_one_and_the_empirical_one_vanishes_faster(networks, samples):
    found = networks.derivatives(networks.start, samples)
    true, empirical = fisher_factors(found), empirical_factors(found)
    v = found.jacobian[:, :, 1] - found.jacobian[:, :, 0]
    p = found.probabilities[..., 0]
    of_label = found.probabilities.gather(2, samples.labels[..., None])[..., 0]
    squared = torch.einsum("snp,snp->sn", v, v)
    torch.testing.assert_close(true.square().sum((2, 3)), p * (1 - p) * squared, **EXACT)
    torch.testing.assert_close(empirical.square().sum((2, 3)), (1 - of_label) ** 2 * squared, **EXACT)
    ratio = empirical.square().sum((2, 3)) / true.square().sum((2, 3))
    torch.testing.assert_close(ratio, (1 - of_label) / of_label, **EXACT)
    assert (torch.linalg.matrix_rank(true, rtol=1e-9) == 1).all()
    # So the sum over samples has their number as its rank at most, whatever the number of parameters.
    few = Samples(samples.inputs[:, :5], samples.labels[:, :5])
    ranks = torch.linalg.matrix_rank(second_order(networks, networks.start, few).matrix, rtol=1e-9, hermitian=True)
    assert ranks.tolist() == [5, 5]


def test_the_true_fisher_needs_labels_of_the_model(networks, samples):
    """The formula with the data's labels is another matrix: relabelled data change the empirical kind and not the true one."""
    other = Samples(samples.inputs, 1 - samples.labels)
    for kind, same in (("fisher", True), ("empirical", False)):
        one, two = (second_order(networks, networks.start, data, kind).matrix for data in (samples, other))
        assert torch.allclose(one, two) == same


def test_a_hessian_may_be_indefinite_and_is_mended(networks, samples):
    raw = second_order(networks, networks.start, samples, "hessian").matrix
    values, vectors = torch.linalg.eigh(raw)
    assert (values[:, 0] < -1e-3).all()
    penalty = penalty_of([second_order(networks, networks.start, samples, "hessian")], mean=False, first_order=False)
    near, far = (value_of(penalty, networks.start + length * vectors[:, :, 0]) for length in (1.0, 100.0))
    assert (far < 1e3 * near).all() and (near < 0).all()  # a penalty without a lower bound
    for kind, mended in (("hessian_abs", values.abs()), ("hessian_clip", values.clamp(min=0))):
        ours = second_order(networks, networks.start, samples, kind).matrix
        torch.testing.assert_close(ours, (vectors * mended[:, None]) @ vectors.mT, **EXACT)
        assert torch.linalg.eigvalsh(ours).min() > -1e-12


@pytest.mark.parametrize("structure", ["block", "diagonal"])
def test_within_a_tensor_the_hessian_is_the_fisher_information(networks, samples, structure):
    """What a Hessian has beyond it lies between the two layers of this network: so only the full one can be indefinite."""
    one, two = (second_order(networks, networks.start, samples, kind, structure).matrix for kind in ("hessian", "fisher"))
    torch.testing.assert_close(one, two, **EXACT)
    full = [second_order(networks, networks.start, samples, kind).matrix for kind in ("hessian", "fisher")]
    assert not torch.allclose(*full, rtol=0.1)


@pytest.mark.parametrize(("kind", "structure"), [("kfac", "kron"), ("ekfac", "ekfac"), ("fisher", "dense")])
def test_blocks_are_those_of_the_estimator(networks, samples, kind, structure):
    ours = second_order(networks, networks.start, samples, kind, "block").matrix / samples.count
    for copy in range(2):
        module, _ = lone(networks, copy)
        data = (samples.inputs[copy], samples.labels[copy])
        theirs = estimate(module, mean_loss, [data], fisher="exact", structure=structure)
        weights = {name: matrix for name, matrix in dense_of(theirs).items() if "weight" in name}
        assert weights  # of a bias the estimator keeps the diagonal beside Kronecker blocks, and this study the whole
        for name, matrix in weights.items():
            where = networks.tensors[name]
            torch.testing.assert_close(ours[copy][where[:, None], where], matrix, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["fisher", "empirical", "kfac", "ekfac", "hessian", "hessian_abs"])
def test_structures_are_parts_of_the_matrix(networks, samples, kind):
    block, diagonal = (second_order(networks, networks.start, samples, kind, one) for one in ("block", "diagonal"))
    for name, rows in networks.tensors.items():
        for other, columns in networks.tensors.items():
            part = block.matrix[:, rows[:, None], columns]
            assert (part == 0).all() == (name != other)
    if kind != "hessian_abs":  # whose structure comes before the mend
        torch.testing.assert_close(diagonal.matrix, torch.diag_embed(block.matrix.diagonal(dim1=1, dim2=2)), **EXACT)
    distance = noise(networks)
    for model in (block, diagonal):
        total = model.products(distance).sum(1)
        torch.testing.assert_close(total, (model.matrix @ distance[..., None])[..., 0], **EXACT)


def test_products_without_a_matrix_per_sample_are_exact(networks, samples):
    """`dᵀ C_i d = sum_c (a_cᵀ d)²` from the factors, against each sample's own matrix."""
    model = second_order(networks, networks.start, samples)
    distance = noise(networks)
    dense = torch.einsum("sncp,sncq->snpq", model.factors, model.factors)
    torch.testing.assert_close(model.products(distance), torch.einsum("snpq,sq->snp", dense, distance), **EXACT)


@pytest.mark.parametrize(
    ("kind", "structure", "named"),
    [("fischer", "full", "kind=fischer"), ("fisher", "rows", "structure=rows"), ("kfac", "full", "know nothing between tensors")],
)
def test_unknown_curvature_is_named(networks, samples, kind, structure, named):
    with pytest.raises(InputError, match=named):
        second_order(networks, networks.start, samples, kind, structure)


# Bookkeeping: one half, sums and means, both approximations


def test_penalty_is_half_the_quadratic_form_summed_over_samples(networks, samples):
    model = second_order(networks, networks.start, samples)
    distance = noise(networks).requires_grad_()
    wanted = torch.einsum("sncp,sp->snc", model.factors, distance).square().sum() / 2
    (gradient,) = torch.autograd.grad(wanted, distance)
    penalty = penalty_of([model], mean=False, first_order=False)
    torch.testing.assert_close(penalty.gradient(model.anchor + distance.detach()), gradient, **EXACT)
    mean = penalty_of([model], mean=True, first_order=False)
    torch.testing.assert_close(samples.count * mean.gradient(distance.detach()), penalty.gradient(distance.detach()), **EXACT)
    predicted = model.predicted(distance.detach(), model.products(distance.detach()), first_order=False)
    assert predicted.sum().item() == pytest.approx(wanted.item(), rel=1e-12)


def test_the_source_s_ewc_is_the_diagonal_empirical_kind_at_twice_the_strength(networks, samples):
    """`sum_i g_i² d²` without the half, against `½ dᵀ diag(C) d`."""
    model = second_order(networks, networks.start, samples, "empirical", "diagonal")
    distance = noise(networks)
    ewc = 2 * model.gradients.square().sum(1) * distance  # its gradient
    torch.testing.assert_close(ewc, 2 * (model.matrix @ distance[..., None])[..., 0], **EXACT)


def test_accumulated_models_are_one_quadratic_with_one_anchor_each(networks, samples):
    models = [second_order(networks, networks.start + shift, samples) for shift in (0.0, 0.1)]
    weights = noise(networks)
    for first_order in (False, True):
        wanted = sum((m.matrix @ (weights - m.anchor)[..., None])[..., 0] + first_order * m.gradients.sum(1) for m in models)
        penalty = penalty_of(models, mean=False, first_order=first_order)
        torch.testing.assert_close(penalty.gradient(weights), wanted, **EXACT)


def test_with_gradient_and_hessian_the_error_is_of_third_order(networks, samples):
    """Halving the step divides kappa by 8: any other factor before a term leaves an error of first or second order."""
    model = second_order(networks, networks.start, samples, "hessian")
    direction = torch.nn.functional.normalize(torch.ones_like(networks.start), dim=1)
    found = {}
    for first_order in (True, False):
        for length in (1e-3, 5e-4):
            weights = networks.start + length * direction
            measures = fidelity([model], weights, networks.derivatives(weights, samples), first_order=first_order)
            found[first_order, length] = measures["kappa"]
    assert torch.allclose(found[True, 1e-3] / found[True, 5e-4], torch.tensor(8.0, dtype=torch.float64), rtol=0.05)
    assert torch.allclose(found[False, 1e-3] / found[False, 5e-4], torch.tensor(2.0, dtype=torch.float64), rtol=0.05)


def test_measures_by_hand(networks, samples):
    model = second_order(networks, networks.start, samples)
    weights = networks.start + 0.1
    found = networks.derivatives(weights, samples)
    ours = fidelity([model], weights, found)
    for copy in range(2):
        products, increases = [], []
        for n in range(samples.count):
            C = model.factors[copy, n].mT @ model.factors[copy, n]
            d = torch.full_like(weights[copy], 0.1)
            products.append(C @ d)
            increases.append((found.losses[copy, n] - model.losses[copy, n], d @ C @ d / 2))
        gaps = [float(actual - guess) for actual, guess in increases]
        assert ours["kappa"][copy].item() == pytest.approx(sum(gaps) / len(gaps), rel=1e-9)
        norms = [(g - product).norm().item() for g, product in zip(found.gradients[copy], products, strict=True)]
        assert ours["gamma"][copy].item() == pytest.approx(sum(norms) / len(norms), rel=1e-9)
        cosines = [float(g @ p / g.norm() / p.norm()) for g, p in zip(found.gradients[copy], products, strict=True)]
        assert ours["alpha"][copy].item() == pytest.approx(sum(cosines) / len(cosines), rel=1e-9)
        ratio = sum(float(actual) for actual, _ in increases) / sum(float(guess) for _, guess in increases)
        assert ours["rho"][copy].item() == pytest.approx(ratio, rel=1e-9)


def test_at_the_anchor_kappa_is_zero_and_gamma_is_not(networks, samples):
    """With the gradient ignored, as published, gamma at the anchor is the norm of the gradient; keeping it, zero."""
    model = second_order(networks, networks.start, samples)
    found = networks.derivatives(networks.start, samples)
    without, with_it = (fidelity([model], networks.start, found, first_order=first) for first in (False, True))
    assert without["kappa"].abs().max() == 0
    torch.testing.assert_close(without["gamma"], found.gradients.norm(dim=-1).mean(1), **EXACT)
    assert (without["gamma"] > 0.1).all() and with_it["gamma"].abs().max() == 0


def test_the_monitor_keeps_old_anchors_and_moves_the_refreshed_one(networks, samples):
    first, second = (Samples(samples.inputs[:, rows], samples.labels[:, rows]) for rows in (slice(0, 4), slice(4, 9)))
    monitor = ShadowMonitor(networks)
    monitor.end_task(networks.start, first)
    monitor.end_task(networks.start + 1, second)
    stale, fresh = monitor.models["accumulate"], monitor.models["refresh"]
    assert [model.samples.count for model in stale] == [4, 5] and [model.samples.count for model in fresh] == [9]
    assert torch.equal(stale[0].anchor, networks.start) and torch.equal(fresh[0].anchor, networks.start + 1)
    torch.testing.assert_close(fresh[0].losses[:, :4], networks.losses(networks.start + 1, first), **EXACT)
    measured = monitor.measure(networks.start + 1)
    assert measured["refresh"]["kappa"].abs().max() == 0
    assert (measured["accumulate"]["kappa"].abs() > 0).all()


# Spectra and trust


def test_the_spectral_override_bounds_from_above_and_meets_the_top_eigenvector(networks, samples):
    matrix = second_order(networks, networks.start, samples).matrix
    flat, directions = flattened(matrix, energy=0.9)
    values, vectors = torch.linalg.eigh(matrix)
    top = vectors[:, :, -1:]
    torch.testing.assert_close(flat @ top, values[:, -1:, None] * top, **EXACT)
    inside = directions.sum(2, keepdim=True)
    forms = [(inside.mT @ one @ inside).flatten() for one in (flat, matrix)]
    assert (forms[0] > 1.01 * forms[1]).all()
    assert flattened(matrix, rank=2)[1].shape[2] == 2


def test_sharpness_trace_and_rank_are_those_of_the_mean_loss(networks, samples):
    found = sharpness(networks, networks.start, samples)
    for copy in range(2):
        values = torch.linalg.eigvalsh(per_sample_hessians(networks, samples, copy).mean(0))
        assert found["sharpness"][copy].item() == pytest.approx(values.max().item(), rel=1e-9)
        assert found["trace"][copy].item() == pytest.approx(values.sum().item(), rel=1e-9)
        assert found["rank"][copy].item() == (values.abs() > 1e-6 * values.max()).sum().item()


def test_drift_of_low_ranks_counts_real_directions_alone():
    old = torch.diag(torch.tensor([3.0, 1.0] + [0.0] * 58, dtype=torch.float64))[None]
    new = torch.diag(torch.tensor([2.0, 0.0, 6.0] + [0.0] * 57, dtype=torch.float64))[None]
    assert drift(old, old)["overlap"].item() == pytest.approx(1)
    found = drift(old, new)
    assert found["trace_ratio"].item() == 2
    assert found["overlap"].item() == pytest.approx(0.5)


def test_radius_of_trust():
    distances = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    actual = torch.tensor([[1.0, 1.0], [4.0, 4.0], [8.0, 8.0]], dtype=torch.float64)
    predicted = torch.tensor([[1.5, 3.0], [3.0, 4.0], [17.0, 8.0]], dtype=torch.float64)
    region = TrustRegion(distances, actual, {"model": predicted}, torch.ones(2))
    assert region.radius("model").tolist() == [2.0, 0.0]


# Training settings


def test_a_schedule_made_once_rises_again_and_a_renewed_one_does_not():
    """The published cosine over 100 steps is never made anew: in tasks 2, 4, ... the learning rate climbs back."""
    rates = []
    optimizer, schedule = PUBLISHED.make(torch.zeros(1, 3, requires_grad=True))
    for _ in range(4 * PUBLISHED.steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    starts = [rates[task * PUBLISHED.steps] for task in range(4)]
    assert starts == pytest.approx([0.01, 1e-5, 0.01, 1e-5], rel=1e-6)
    assert rates[150] == pytest.approx((0.01 + 1e-5) / 2, rel=1e-6) and math.isclose(rates[50], rates[150], rel_tol=1e-6)
    assert not PUBLISHED.renewed and TUNED.renewed and not TUNED.cosine
    with pytest.raises(InputError, match="optimizer=lion"):
        replace(TUNED, optimizer="lion").make(torch.zeros(1))


# Whole runs, small


@pytest.fixture(scope="module")
def tasks():
    return sine_bands(SEEDS, tasks=4, samples=50)


SHORT = replace(PUBLISHED, steps=12)


def test_copies_train_as_they_would_alone(tasks, networks):
    plan = Plan("regularised", "refresh")
    how = replace(TUNED, steps=12, strength=1.0)
    together = train(tasks, networks, SEEDS, how, plan, checks=3)
    for copy, seed in enumerate(SEEDS):
        own = sine_bands((seed,), tasks=4, samples=50)
        alone = train(own, Perceptrons((seed,), WIDTH), (seed,), how, plan, checks=3)
        assert together.measures.keys() == alone.measures.keys()
        for name, values in alone.measures.items():
            torch.testing.assert_close(together.measures[name][:, copy], values[:, 0], rtol=1e-6, atol=1e-9)


def test_what_is_measured_and_when(tasks, networks):
    run = train(tasks, networks, SEEDS, SHORT, Plan(), checks=3)
    assert run.steps == [16, 20, 24, 28, 32, 36, 40, 44, 48]
    assert len(run.anchors) == 5 and torch.equal(run.anchors[0], networks.start)
    count = torch.arange(2, 5).repeat_interleave(3)[:, None]
    parts = (run.measures["past"] * (count - 1) + run.measures["current"]) / count
    torch.testing.assert_close(run.measures["all"], parts)
    torch.testing.assert_close(run.final("distance"), (run.anchors[4] - run.anchors[3]).norm(dim=1))
    assert run.stored.count == 3 * 4
    # The first task after the first: both approximations have one anchor and the same samples.
    torch.testing.assert_close(run.measures["accumulate.kappa"][:3], run.measures["refresh.kappa"][:3])
    assert not torch.allclose(run.measures["accumulate.kappa"][3:], run.measures["refresh.kappa"][3:])


def test_a_penalty_holds_weights_and_replay_trains_on_what_is_stored(tasks, networks):
    runs = {
        name: train(tasks, networks, SEEDS, replace(SHORT, strength=strength), plan)
        for name, plan, strength in (
            ("free", Plan(), 1.0),
            ("weak", Plan("regularised"), 0.0),
            ("held", Plan("regularised"), 100.0),
            ("mean", Plan("regularised", mean=True), 100.0),
            ("replay", Plan("replay"), 1.0),
        )
    }
    last = {name: run.anchors[-1] for name, run in runs.items()}
    torch.testing.assert_close(last["free"], last["weak"])
    assert not torch.allclose(last["mean"], last["held"])
    assert not torch.allclose(last["replay"], last["free"])
    torch.testing.assert_close(runs["replay"].anchors[1], runs["free"].anchors[1])
    for model in runs["held"].monitor.models["refresh"]:
        moved = {name: fidelity_distance(model, last[name]) for name in ("held", "free")}
        assert (moved["held"] < moved["free"]).all()


def fidelity_distance(model, weights):
    """`dᵀ C d` from the last anchor."""
    distance = (weights - model.anchor)[..., None]
    return (distance.mT @ model.matrix @ distance).flatten()


@pytest.mark.parametrize("how", [PUBLISHED, TUNED], ids=["adam", "sgd"])
def test_a_rank_cut_at_all_parameters_freezes_the_network(tasks, networks, how):
    count = networks.start.shape[1]
    run = train(tasks, networks, SEEDS, replace(how, steps=12), Plan(projected=True, rank=count))
    assert (run.anchors[1] - run.anchors[0]).norm() > 0.01
    assert (run.anchors[-1] - run.anchors[1]).norm(dim=1).max() < 1e-7
    freer = train(tasks, networks, SEEDS, replace(how, steps=12), Plan(projected=True, rank=2))
    assert (freer.anchors[-1] - freer.anchors[1]).norm(dim=1).min() > 0.01


def test_projected_steps_leave_all_anchors_directions_alone(tasks, networks):
    plan = Plan(keeping="accumulate", projected=True)
    run = train(tasks, networks, SEEDS, SHORT, plan)
    directions = plan.directions(run.monitor)
    step = run.anchors[-1] - run.anchors[-2]
    for one in directions:
        assert (one.mT @ step[..., None]).abs().max() < 1e-12
    lost = leakage(directions, noise(networks))
    assert (lost["common"] < 1e-12).all() and (lost["in_turn"] > 1e-3).all()


def test_a_flattened_penalty_is_a_stronger_one(tasks, networks):
    run = train(tasks, networks, SEEDS, SHORT, Plan("regularised", flattened=True))
    (model,) = run.monitor.models["refresh"]
    flat = run.plan.penalty(run.monitor).matrix
    extra = torch.linalg.eigvalsh(flat - model.matrix)
    assert extra.max() > 0.01
    assert extra.min() > -1e-4 * torch.linalg.eigvalsh(model.matrix).max()  # what the cut energy leaves out


def test_the_ends_of_tasks_and_the_trust_region_of_a_run(tasks, networks):
    run = train(tasks, networks, SEEDS, SHORT, Plan())
    training = [Samples(tasks.inputs[:, task], tasks.labels[:, task]) for task in range(4)]
    found = ends_of_tasks(networks, training, run)
    assert found["sharpness"].shape == (4, 2) and found["overlap"].shape == (2, 2)
    assert ((found["overlap"] > 0) & (found["overlap"] < 1)).all()
    region = trust_region(networks, run, torch.tensor([1e-3, 1e-2], dtype=torch.float64))
    best = region.predicted["gradient + Hessian"]
    torch.testing.assert_close(best, region.actual, rtol=0.02, atol=0)
    assert not torch.allclose(region.predicted["Fisher"], region.actual, rtol=0.5)
    assert region.steps.shape == (2,)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"plan": Plan("joint")}, "mode=joint"), ({"stored_share": 0.001}, r"stored_share=0\.001")],
)
def test_settings_that_do_not_fit_are_named(tasks, networks, change, named):
    with pytest.raises(InputError, match=named):
        train(tasks, networks, SEEDS, SHORT, **{"plan": Plan(), **change})
