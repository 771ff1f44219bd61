"""Least interference between updates, against dense solves and the published optimisation."""

import pytest
import torch

from asrcl.curvature import KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.merge.steps.fisher import regmean
from asrcl.merge.steps.wudi import wudi

torch.set_num_threads(1)
DOUBLE = torch.float64
SHAPES = pytest.mark.parametrize("shape", [(4, 3), (3, 6), (5, 5)])


def updates(shape, count, seed=0):
    g = torch.Generator().manual_seed(seed)
    scale = torch.logspace(0, -2, shape[1], dtype=DOUBLE)
    return [torch.randn(shape, generator=g, dtype=DOUBLE) * scale.roll(n) for n in range(count)]


def interference(merged, deltas):
    """The paper's loss, written out."""
    return sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas)


def dense_minimum(deltas, damping):
    """Of the loss plus ε times the squared distance from the sum, over all entries as one vector: its Hessian by autograd."""
    start = sum(deltas)
    mean = len(deltas) / start.shape[1]  # every Gram matrix has trace 1

    def loss(flat):
        merged = flat.reshape(start.shape)
        return interference(merged, deltas) + damping * mean * (merged - start).square().sum()

    flat = start.flatten()
    gradient = torch.autograd.functional.jacobian(loss, flat)
    return start - torch.linalg.solve(torch.autograd.functional.hessian(loss, flat), gradient).reshape(start.shape)


@SHAPES
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("damping", [1e-3, 0.1, 3.0])
def test_it_is_the_minimum_of_the_damped_loss(shape, count, damping):
    deltas = updates(shape, count)
    torch.testing.assert_close(wudi(deltas, damping=damping), dense_minimum(deltas, damping), rtol=1e-7, atol=1e-9)


@SHAPES
def test_less_damping_leaves_less_interference_and_much_of_it_the_sum(shape):
    deltas = updates(shape, 3)
    losses = [float(interference(wudi(deltas, damping=damping), deltas)) for damping in (1e9, 10.0, 1.0, 0.1, 1e-2, 1e-4)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    torch.testing.assert_close(wudi(deltas, damping=1e9), sum(deltas), rtol=1e-6, atol=1e-8)


def test_gradient_descent_from_the_sum_goes_the_same_way():
    """Stopped early, it leaves flat directions alone as damping does: it ends nearer to a damped minimum than to either end."""
    deltas = updates((6, 8), 3)
    merged = sum(deltas).requires_grad_()
    for _ in range(400):
        (slope,) = torch.autograd.grad(interference(merged, deltas), merged)
        merged = (merged - 0.2 * slope).detach().requires_grad_()
    distances = {d: float((wudi(deltas, damping=d) - merged.detach()).norm()) for d in (1e-9, 1e-3, 1e-2, 1e-1, 1e9)}
    best = min(distances, key=distances.get)
    assert best not in (1e-9, 1e9) and distances[best] < 0.5 * min(distances[1e-9], distances[1e9])


def test_it_is_regmean_with_the_updates_for_inputs():
    first, second = updates((7, 3), 2)
    blocks = [KroneckerBlock.of(d.T @ d / d.square().sum(), torch.eye(7, dtype=DOUBLE), 1, 1) for d in (first, second)]
    zero = KroneckerBlock.of(torch.zeros(3, 3, dtype=DOUBLE), torch.eye(7, dtype=DOUBLE), 1, 1)
    wanted = regmean([first, second], blocks=[zero], new_blocks=blocks, offdiagonal=1.0, damping=0.0)
    torch.testing.assert_close(wudi([first, second], damping=1e-12), wanted, rtol=1e-6, atol=1e-8)


def test_updates_that_do_not_meet_add_up():
    deltas = [torch.zeros(4, 6, dtype=DOUBLE) for _ in range(2)]
    deltas[0][:, :3], deltas[1][:, 3:] = updates((4, 3), 2)
    torch.testing.assert_close(wudi(deltas), deltas[0] + deltas[1])


def test_the_size_of_the_updates_is_that_of_the_result():
    deltas = updates((4, 3), 2)
    torch.testing.assert_close(wudi([1e-5 * delta for delta in deltas]), 1e-5 * wudi(deltas), rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", [torch.float32, DOUBLE])
def test_updates_of_zero_do_not_count_and_shapes_types_and_inputs_are_kept(kind):
    deltas = [delta.to(kind) for delta in updates((4, 3), 2)]
    before = [delta.clone() for delta in deltas]
    zero = torch.zeros_like(deltas[0])
    assert torch.equal(wudi([deltas[0], zero, deltas[1]]), wudi(deltas)) and torch.equal(wudi([zero, deltas[0]]), deltas[0])
    assert not wudi([zero, zero]).any() and not wudi(deltas, strength=0.0).any()
    assert wudi(deltas, strength=0.5).dtype == kind and wudi(deltas).shape == (4, 3)
    assert all(torch.equal(delta, old) for delta, old in zip(deltas, before, strict=True))


@pytest.mark.parametrize(
    ("knobs", "message"), [({"damping": 0.0}, "damping must be above 0"), ({"strength": None}, r"strength .*finite")]
)
def test_bad_options_are_refused(knobs, message):
    with pytest.raises(InputError, match=message):
        wudi(updates((4, 3), 2), **knobs)
