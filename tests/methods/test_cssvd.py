"""Rotations of the tail singular vectors: the head of every weight stays, lengths stay with Cayley's, rotations are averaged."""

import pytest
import torch
from method_cases import Raw

from asrcl.adapt import TrainConfig, run_stages
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.cssvd import TailRotation
from asrcl.testing import tiny_learner, tiny_scenario

TRAINING = TrainConfig(epochs=6, learning_rate=0.05, average_best=1)


def run(folder, domains=3, **options):
    learner = tiny_learner(folder, tiny_scenario(domains), TRAINING)
    method = build_method("cssvd", **{"share": 0.5, **options})
    return learner, method, [stage.models[0] for stage in run_stages(learner, method, None)]


def parts(weight, share):
    """Leading and tail singular vectors of a weight `[O, I]`: U_h, V_h, U_k, V_k."""
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    size = int(share * len(S))
    return U[:, :-size], Vh[:-size].mT, U[:, -size:], Vh[-size:].mT


@pytest.mark.parametrize("rotation", ["first_order", "cayley"])
def test_the_head_of_the_first_weights_is_touched_in_no_stage(tmp_path, rotation):
    """And nothing else is but the tail: no bias moves by an ulp."""
    _, _, (first, *later) = run(tmp_path, rotation=rotation)
    for name in ("0.weight", "3.weight"):
        U_h, V_h, U_k, V_k = parts(first[name], 0.5)
        for weights in later:
            change = (weights[name] - first[name]).double()
            assert change.norm() > 1e-3
            assert max((U_h.mT @ change).norm(), (change @ V_h).norm()) < 1e-6 * first[name].norm()
            torch.testing.assert_close(U_k @ (U_k.mT @ change @ V_k) @ V_k.mT, change, rtol=0, atol=1e-6)
    assert all(torch.equal(first[name], weights[name]) for weights in later for name in ("0.bias", "3.bias"))


def test_cayley_rotates_so_that_singular_values_stay(tmp_path):
    _, _, (first, second, *_) = run(tmp_path, rotation="cayley")
    _, _, (_, other, *_) = run(tmp_path / "other", rotation="first_order")
    before, after, longer = (torch.linalg.svdvals(weights["0.weight"]) for weights in (first, second, other))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    assert (longer - before).abs().max() > 1e-4


@pytest.mark.parametrize("rotation", ["first_order", "cayley"])
def test_the_formula(rotation):
    torch.manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    turned = TailRotation(U[:, 2:] * S[2:], Vh[2:].mT, rotation)
    assert turned.angles.shape == (3,) and torch.equal(turned(weight), weight)
    with torch.no_grad():
        turned.angles.copy_(torch.tensor([0.3, -0.2, 0.5]))
    a, b, c = turned.angles.detach()
    K = torch.tensor([[0, -a, -b], [a, 0, -c], [b, c, 0]], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    G = eye - 2 * K if rotation == "first_order" else (eye - K) @ torch.linalg.inv(eye + K)
    expected = U[:, :2] @ torch.diag(S[:2]) @ Vh[:2] + U[:, 2:] @ torch.diag(S[2:]) @ G @ Vh[2:]
    torch.testing.assert_close(turned(weight), expected)
    if rotation == "cayley":
        torch.testing.assert_close(G @ G.mT, eye)
    assert torch.autograd.gradcheck(lambda angles: torch.func.functional_call(turned, {"angles": angles}, weight), turned.angles)


def test_the_first_rotation_is_taken_whole_and_later_ones_are_averaged(tmp_path):
    learner, method, (first, second, third) = run(tmp_path)
    for stage, old in ((2, first), (3, second)):
        learner.enter(stage)
        learned = Weights({name: value + 0.1 for name, value in old.items()})
        merged = method.merge_domain(learner, learner.scenario.domains[stage - 1], old, learned)
        torch.testing.assert_close(merged["0.weight"] - old["0.weight"], torch.full((16, 8), 0.1 / (stage - 1)))
    whole = build_method("cssvd", share=0.5, strength=1.0)
    *_, last = run_stages(learner, whole, None)
    torch.testing.assert_close(2 * (third["0.weight"] - second["0.weight"]), last.models[0]["0.weight"] - second["0.weight"])


def test_strength_zero_keeps_the_old_weights(tmp_path):
    _, _, (first, *later) = run(tmp_path, strength=0.0)
    assert all(torch.equal(first[name], weights[name]) for weights in later for name in first)


def test_a_raw_attention_and_a_convolution_are_rotated():
    torch.manual_seed(0)
    model, method = Raw(), build_method("cssvd", share=1.0)
    learner = tiny_learner("unused", tiny_scenario(2))
    learner.frozen = lambda weights: model
    before = Weights({name: value.clone() for name, value in model.state_dict().items()})
    method.end_domain(learner, learner.scenario.domains[0], None, before)
    model.requires_grad_(True)
    wrapped = method.wrap(learner, model)
    trained = {name for name, value in wrapped.named_parameters() if value.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"angles"} and len(trained) == 3
    assert all(torch.equal(value, before[name]) for name, value in method.unwrap(learner, wrapped).items())
    tokens = torch.randint(5, (3, 7))
    plain, found = Raw(), wrapped.eval()(tokens)
    plain.load_state_dict(before)
    torch.testing.assert_close(plain.eval()(tokens), found, rtol=0, atol=0)


def test_tails_of_another_model_and_weights_without_any_are_refused(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    method = build_method("cssvd")
    method.load_state_dict({"left.0.weight": torch.zeros(9, 2), "right.0.weight": torch.zeros(8, 2)})
    learner.enter(2)
    with pytest.raises(InputError, match=r"cssvd.*0\.weight.*9 x 8"):
        method.learn(learner, learner.scenario.domains[1], learner.initial)
    learner.enter(1)
    with pytest.raises(InputError, match=r"method\.share=0\.1"):
        build_method("cssvd", share=0.1).end_domain(learner, learner.scenario.domains[0], None, learner.initial)


@pytest.mark.parametrize("option", [{"share": 0.0}, {"share": 1.5}, {"rotation": "givens"}, {"strength": 2.0}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("cssvd", **option)
