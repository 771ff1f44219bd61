"""Averages and interpolations."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.merge.registry import find_method
from asrcl.merge.steps.elementwise import average, interpolate, total

torch.set_num_threads(1)


@pytest.fixture
def deltas():
    g = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("task", [1, 2, 5])
def test_average_moves_one_part_in_t(deltas, task):
    torch.testing.assert_close(average(deltas[:1], task=task), deltas[0] / task)


def test_several_models_at_once_weigh_as_one_after_the_other(deltas):
    old = torch.ones(3, 4, dtype=torch.float64)
    running = old
    for t, delta in enumerate(deltas, start=2):
        running = running + average([old + delta - running], task=t)
    at_once = old + average(deltas, task=4)
    torch.testing.assert_close(at_once, running)
    torch.testing.assert_close(at_once, torch.stack([old, *(old + d for d in deltas)]).mean(0))


def test_as_many_models_as_domains_leaves_nothing_of_the_start(deltas):
    torch.testing.assert_close(average(deltas, task=3), torch.stack(deltas).mean(0))


def test_strength_is_the_weight_of_all_new_models(deltas):
    torch.testing.assert_close(average(deltas, task=7, strength=0.3), 0.3 * torch.stack(deltas).mean(0))
    assert torch.equal(average(deltas[:1], strength=1.0), deltas[0])


@pytest.mark.parametrize("strength", [-0.5, 0.0, 0.25, 1.0, 1.7])
def test_interpolation_is_a_line_through_both_models(deltas, strength):
    assert torch.equal(interpolate(deltas[0], strength=strength), strength * deltas[0])


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0,)])
def test_shapes_types_and_inputs_are_kept(kind, shape):
    deltas = [torch.ones(shape, dtype=kind), torch.full(shape, 2.0, dtype=kind)]
    before = [delta.clone() for delta in deltas]
    for step in (average(deltas, task=3), average(deltas[:1]), interpolate(deltas[0]), total(deltas)):
        assert step.shape == shape and step.dtype == kind
        assert not {step.data_ptr()} & {d.data_ptr() for d in deltas} or not step.numel()
    assert all(torch.equal(delta, old) for delta, old in zip(deltas, before, strict=True))


def test_nothing_new_and_no_strength_are_no_step(deltas):
    zeros = [torch.zeros(3, 4)] * 2
    assert not average(zeros, task=3).any() and not interpolate(zeros[0]).any()
    assert not average(deltas, strength=0.0).any() and not interpolate(deltas[0], strength=0).any()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: average(d, task=0), r"task .*whole number"),
        (lambda d: average(d, task=2), "task=2 domains cannot come from 3 models"),
        (lambda d: average(d, task=True), "task must be"),
        (lambda d: average(d, strength=float("nan")), r"strength .*finite"),
        (lambda d: interpolate(d[0], strength="half"), r"strength .*finite.*'half'"),
    ],
)
def test_bad_options_are_refused(deltas, call, message):
    with pytest.raises(InputError, match=message):
        call(deltas)


def test_both_go_entry_by_entry(deltas):
    assert find_method("average").several and not find_method("interpolate").several
    for name in ("average", "interpolate"):
        assert find_method(name).elementwise and not find_method(name).partial
    parts = [average([d[:, n : n + 1] for d in deltas], task=4) for n in range(4)]
    assert torch.equal(torch.cat(parts, dim=1), average(deltas, task=4))
