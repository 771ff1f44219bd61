"""Spherical interpolation against its formula."""

import math

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.merge.steps.elementwise import average
from asrcl.merge.steps.slerp import angle, karcher, slerp

torch.set_num_threads(1)


def pair(seed=0, turn=1.0, kind=torch.float64):
    g = torch.Generator().manual_seed(seed)
    old, other = (torch.randn(4, 5, generator=g, dtype=torch.float64) for _ in range(2))
    return old.to(kind), (turn * other).to(kind)


def by_the_book(a, b, alpha):
    omega = torch.arccos((a * b).sum() / a.norm() / b.norm())
    return (torch.sin((1 - alpha) * omega) * a + torch.sin(alpha * omega) * b) / torch.sin(omega)


@pytest.mark.parametrize("alpha", [-0.3, 0.1, 0.5, 0.8, 1.4])
@pytest.mark.parametrize("turn", [0.05, 1.0, 30.0])
def test_it_is_the_formula(alpha, turn):
    old, delta = pair(turn=turn)
    torch.testing.assert_close(old + slerp(delta, old=old, strength=alpha), by_the_book(old, old + delta, alpha))


def test_on_a_circle_the_angle_divides():
    old = torch.tensor([2.0, 0.0], dtype=torch.float64)
    new = 2 * torch.tensor([math.cos(1.2), math.sin(1.2)], dtype=torch.float64)
    for alpha in (0.25, 0.5, 1.5):
        at = old + slerp(new - old, old=old, strength=alpha)
        expected = torch.tensor([math.cos(1.2 * alpha), math.sin(1.2 * alpha)], dtype=torch.float64)
        torch.testing.assert_close(at, 2 * expected)


def test_the_ends_are_the_models():
    old, delta = pair()
    assert not slerp(delta, old=old, strength=0).any()
    torch.testing.assert_close(slerp(delta, old=old, strength=1.0), delta, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("change", [lambda o: 0.5 * o, lambda o: -2 * o, torch.zeros_like, lambda o: -o])
def test_parallel_opposite_and_zero_tensors_go_straight(change):
    old, _ = pair()
    delta = change(old)
    assert torch.equal(slerp(delta, old=old, strength=0.3), 0.3 * delta)
    assert torch.equal(slerp(delta, old=torch.zeros_like(old), strength=0.3), 0.3 * delta)


@pytest.mark.parametrize("turn", [1e-4, 1e-6, 1e-8, 1e-12])
def test_small_angles_lose_no_digits(turn):
    """The book's formula loses half of them; the truth here is the series of the arc in the angle."""
    old, across = torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 3.0], dtype=torch.float64)
    omega = math.atan(turn)
    step = slerp(turn * across, old=old, strength=0.3)
    truth = [3 * 0.3 * 0.7 * omega**2 / 2, 3 * turn * 0.3 * (1 + 0.91 * omega**2 / 6)]
    assert float(step[1]) == pytest.approx(truth[1], rel=1e-12)
    assert float(step[0]) == pytest.approx(truth[0], rel=1e-7, abs=1e-20 if turn > 1e-7 else 1e-13)


def test_the_angle_is_exact_at_both_ends():
    e, f = torch.eye(2, dtype=torch.float64)
    for omega in (1e-9, 0.3, math.pi / 2, math.pi - 1e-9):
        other = 5 * (math.cos(omega) * e + math.sin(omega) * f)
        assert angle(7 * e, other) == pytest.approx(omega, rel=1e-12, abs=1e-15)
    assert angle(e, 0 * e) == 0


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2)])
def test_shape_type_and_inputs_are_kept(kind, shape):
    old, delta = (torch.randn(shape, dtype=kind, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    before = old.clone(), delta.clone()
    step = slerp(delta, old=old)
    assert step.shape == shape and step.dtype == kind
    assert torch.equal(old, before[0]) and torch.equal(delta, before[1])


def test_strength_must_be_a_number():
    old, delta = pair()
    with pytest.raises(InputError, match=r"strength .*finite"):
        slerp(delta, old=old, strength=math.inf)


def models(count, turn=0.3, seed=0, shape=(4, 5)):
    """An old tensor and updates of some models; `turn` is about the angle between them."""
    g = torch.Generator().manual_seed(seed)
    old, *deltas = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count + 1))
    return old, [turn * delta for delta in deltas]


def log(at, to):
    """The tangent at one unit vector towards another, by the book."""
    omega = torch.arccos((at * to).sum().clamp(-1, 1))
    return omega * (to - omega.cos() * at) / omega.sin()


@pytest.mark.parametrize("turn", [0.03, 0.3, 0.8])
@pytest.mark.parametrize(("count", "task", "strength"), [(1, 2, None), (2, 3, None), (3, 7, None), (3, 2, 0.4), (2, 2, 1.0)])
def test_from_the_karcher_mean_the_weighted_directions_cancel(turn, count, task, strength):
    old, deltas = models(count, turn)
    merged = old + karcher(deltas, old=old, task=task, strength=strength)
    share = (count / task if strength is None else strength) / count
    points, weights = [old, *(old + delta for delta in deltas)], [1 - share * count] + [share] * count
    centre = merged / merged.norm()
    pulls = [weight * log(centre, point / point.norm()) for weight, point in zip(weights, points, strict=True) if weight]
    assert float(sum(pulls).norm()) < 1e-9 * max(float(pull.norm()) for pull in pulls)
    assert float(merged.norm()) == pytest.approx(sum(w * float(p.norm()) for w, p in zip(weights, points, strict=True)))


@pytest.mark.parametrize("turn", [1e-6, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_of_two_models_of_one_length_the_karcher_mean_is_slerp(turn, alpha):
    old, delta = pair(turn=turn)
    delta = (old + delta) * (old.norm() / (old + delta).norm()) - old
    step, wanted = karcher([delta], old=old, strength=alpha), slerp(delta, old=old, strength=alpha)
    torch.testing.assert_close(step, wanted, rtol=1e-9, atol=1e-9 * float(delta.abs().max()))


def test_nearby_models_have_their_plain_average_as_karcher_mean():
    old, deltas = models(3, turn=1e-5)
    step, plain = karcher(deltas, old=old, task=4), average(deltas, task=4)
    assert float((step - plain).norm()) < 1e-4 * float(plain.norm())


def test_the_karcher_mean_grows_with_its_models_and_turns_with_them():
    old, deltas = models(3)
    rotation, _ = torch.linalg.qr(models(1, shape=(4, 4))[0])
    step = karcher(deltas, old=old, task=5)
    turned = karcher([1e3 * rotation @ delta for delta in deltas], old=1e3 * rotation @ old, task=5)
    torch.testing.assert_close(turned, 1e3 * rotation @ step)


@pytest.mark.parametrize("change", [lambda o: 0.5 * o, lambda o: -2 * o, lambda o: -o])
def test_parallel_opposite_and_zero_tensors_have_their_plain_average(change):
    old, other = pair()
    for deltas in ([change(old)], [change(old), change(old)]):
        torch.testing.assert_close(karcher(deltas, old=old, task=3), average(deltas, task=3))
    torch.testing.assert_close(karcher([other], old=torch.zeros_like(old), task=3), other / 3)


def test_three_directions_around_a_circle_have_no_karcher_mean_but_a_plain_one():
    points = [torch.tensor([math.cos(x), math.sin(x)], dtype=torch.float64) for x in (0.0, 2.1, 4.2)]
    deltas = [point - points[0] for point in points[1:]]
    assert torch.equal(karcher(deltas, old=points[0], task=3), average(deltas, task=3))


def test_no_new_model_is_no_step_and_numbers_that_are_no_weights_are_refused(monkeypatch):
    old, deltas = models(2)
    assert not karcher(deltas, old=old, strength=0.0).any()
    for strength in (-0.1, 1.1):
        with pytest.raises(InputError, match="strength must lie between 0 and 1"):
            karcher(deltas, old=old, strength=strength)
    monkeypatch.setattr("asrcl.merge.steps.slerp.STEPS", 1)
    with pytest.raises(InputError, match=r"moves by .* after 1 steps; choose method average"):
        karcher(deltas, old=old, task=3)
