"""EWC against its formula, with Fisher values given by hand; dimensions: one linear map, P parameters in all."""

import pytest
import torch
from torch import nn

from asrcl.adapt import fingerprint, run_stages
from asrcl.curvature import BlockKey, Curvature, DiagonalBlock
from asrcl.methods import FineTuning, build_method
from asrcl.testing import tiny_learner, tiny_scenario

ITEMS = 10


class GivenCurvature:
    """A learner that hands out curvatures made in advance, one per stage."""

    def __init__(self, fishers):
        self.stage, self.last, self.device, self.asked = 1, False, "cpu", []
        self._fishers = fishers

    def estimate_curvature(self, state, domain, structure):
        self.asked.append((self.stage, structure))
        fisher = self._fishers[self.stage - 1]
        blocks = {BlockKey(n, 0, len(f)): DiagonalBlock(f * ITEMS, ITEMS) for n, f in fisher.items()}
        return Curvature(blocks, {"model_hash": f"model{self.stage}", "data_hash": f"data{self.stage}"})


def draw(seed, count):
    """`count` states of the linear map, of numbers between 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (3, 4), "bias": (3,)}
    return [
        {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
        for _ in range(count)
    ]


def consolidate(method, fishers, weights):
    learner = GivenCurvature(fishers)
    for learner.stage, new in enumerate(weights, 1):
        old = None if learner.stage == 1 else weights[learner.stage - 2]
        assert method.end_domain(learner, "a domain", old, new) is new  # no hook of EWC needs the type of its weights
    return learner


def model_at(state):
    model = nn.Linear(4, 3).double()
    model.load_state_dict(state)
    return model


def value_and_gradient(method, state):
    model = model_at(state)
    penalty = method.penalty(None, model, None)
    penalty.backward()
    return penalty.item(), {name: p.grad for name, p in model.named_parameters()}


def quadratic(strength, terms, state):
    """(strength / 2) * sum over terms (F, anchor) of F (x - anchor)^2, and its gradient."""
    value = sum((f[n] * (state[n] - a[n]) ** 2).sum() for f, a in terms for n in state) * strength / 2
    gradient = {n: sum(strength * f[n] * (state[n] - a[n]) for f, a in terms) for n in state}
    return value.item(), gradient


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["online", "sum"])
def test_one_earlier_domain(mode):
    fishers, weights, [here] = draw(1, 1), draw(2, 1), draw(3, 1)
    method = build_method("ewc", strength=7.0, mode=mode)
    assert method.penalty(None, model_at(here), None) is None
    consolidate(method, fishers, weights)
    value, gradient = value_and_gradient(method, here)
    expected, expected_gradient = quadratic(7.0, [(fishers[0], weights[0])], here)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_same(gradient, expected_gradient)
    assert value_and_gradient(method, weights[0])[0] == 0


def test_sum_of_quadratics_up_to_a_constant():
    fishers, weights, points = draw(4, 3), draw(5, 3), draw(6, 4)
    method = build_method("ewc", strength=0.3, mode="sum")
    consolidate(method, fishers, weights)
    differences = []
    for here in points:
        value, gradient = value_and_gradient(method, here)
        expected, expected_gradient = quadratic(0.3, list(zip(fishers, weights, strict=True)), here)
        assert_same(gradient, expected_gradient)
        differences.append(expected - value)
    assert differences == pytest.approx([differences[0]] * 4, abs=1e-12)
    assert differences[0] > 0


def test_sum_where_the_loss_is_flat():
    """No Fisher, no pull, and no division by zero."""
    [fisher], weights, [here] = draw(7, 1), draw(8, 2), draw(9, 1)
    flat = {name: value.clone() for name, value in fisher.items()}
    flat["weight"][0] = 0
    method = build_method("ewc", mode="sum")
    consolidate(method, [flat, flat], weights)
    _, gradient = value_and_gradient(method, here)
    assert torch.equal(gradient["weight"][0], torch.zeros(4, dtype=torch.float64))
    assert gradient["weight"][1:].abs().min() > 0


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_online_fisher_decays_and_the_anchor_moves(decay):
    fishers, weights, [here] = draw(10, 3), draw(11, 3), draw(12, 1)
    method = build_method("ewc", strength=2.0, decay=decay)
    consolidate(method, fishers, weights)
    running = {n: decay * (decay * fishers[0][n] + fishers[1][n]) + fishers[2][n] for n in here}
    value, gradient = value_and_gradient(method, here)
    expected, expected_gradient = quadratic(2.0, [(running, weights[2])], here)
    assert value == pytest.approx(expected, rel=1e-12)
    assert_same(gradient, expected_gradient)


def test_last_domain_needs_no_curvature():
    fishers, weights = draw(13, 2), draw(14, 2)
    method = build_method("ewc")
    learner = consolidate(method, fishers, weights)
    learner.last = True
    method.end_domain(learner, "last", weights[0], weights[1])
    assert learner.asked == [(1, "diagonal"), (2, "diagonal")]


def test_key_and_state_tell_trainings_apart():
    fishers, weights = draw(15, 2), draw(16, 2)

    def key(stages=1, **options):
        method = build_method("ewc", **options)
        consolidate(method, fishers[:stages], weights[:stages])
        return method.key(), fingerprint(method.state_dict())

    keys = [key(), key(2), key(strength=2.0), key(mode="sum"), key(decay=0.5)]
    assert all(keys.count(one) == 1 for one in keys)
    assert key() == keys[0]


def test_parameters_without_fisher_are_free():
    fishers, weights, [here] = draw(17, 1), draw(18, 1), draw(19, 1)
    method = build_method("ewc")
    consolidate(method, [{"weight": fishers[0]["weight"]}], weights)
    _, gradient = value_and_gradient(method, here)
    assert gradient["bias"] is None and gradient["weight"] is not None


def models(learner, method):
    return [fingerprint(stage.models[0]) for stage in run_stages(learner, method, None)]


def test_strength_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    plain = models(tiny_learner(tmp_path / "plain", scenario), FineTuning())
    for mode in ("online", "sum"):
        method = build_method("ewc", strength=0.0, mode=mode)
        assert models(tiny_learner(tmp_path / mode, scenario), method) == plain


def test_more_strength_keeps_the_weights_closer(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    moved = []
    for strength in (0.0, 10.0, 1000.0):
        *_, stage = run_stages(learner, build_method("ewc", strength=strength), None)
        moved.append(stage.record["update_norm"])
    assert moved[0] > 1.02 * moved[1] > 1.02 * moved[2]


def test_modes_agree_until_the_second_consolidation(tmp_path):
    learner = tiny_learner(tmp_path)
    online, total = (models(learner, build_method("ewc", strength=100.0, mode=mode)) for mode in ("online", "sum"))
    assert online[:2] == total[:2] and online[2] != total[2]
