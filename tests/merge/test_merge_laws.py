"""Laws that every registered merge method obeys; a new method joins by being registered."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merge_cases import bits, floating, identity_like, make_curvature, make_state

from asrcl import merge as room
from asrcl.exceptions import InputError
from asrcl.merge import methods

VARIANTS = [
    *((name, {}) for name, method in methods().items() if method.takes is None),
    ("average", {"strength": 0.3}),
    *(("ihr", {"rescale": rescale}) for rescale in ("global", "none")),
    ("ihr", {"damping_kind": "absolute", "damping": 1e-3}),
    ("ihr", {"tau": 2.0, "rest": 0.9, "layers": "enc*"}),
]
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NOT_LINEAR = {"slerp", "karcher", "ties", "dare", "iso_c", "tsv_m"}
"""Methods that turn or thin out the update by themselves."""
EVERY = pytest.mark.parametrize("method, knobs", VARIANTS)
SETTINGS = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10_000)


def context(method, old, curvature):
    """What a method needs besides the two models."""
    uses = methods()[method].context
    needed = {"curvature": curvature, "new_curvature": curvature if "new_blocks" in uses else None}
    return needed | ({"base": old} if methods()[method].least > 1 else {})


def merge(old, new, method, *, curvature, **rest):
    return room.merge(old, new, method, **context(method, old, curvature), **rest)


def plan(old, new, method, *, curvature, **rest):
    return room.plan(old, new, method, **context(method, old, curvature), **rest)


def zero_knobs(method):
    """The knobs at which a method does nothing."""
    return {name: 0.0 for name in ("strength", "tau") if name in methods()[method].knobs} | (
        {"rest": 0.0} if methods()[method].partial else {}
    )


@EVERY
@SETTINGS
@given(seed=seeds, dtype=st.sampled_from(TYPES), task=st.integers(2, 9))
def test_merging_a_model_with_itself_changes_no_bit(method, knobs, seed, dtype, task):
    state = make_state(seed, dtype)
    state["encoder.bias"][0] = -0.0
    state["packed"][0, 0] = torch.finfo(dtype).max
    state["packed"][1, 1] = torch.finfo(dtype).smallest_normal / 4
    merged = merge(
        state,
        {n: t.clone() for n, t in state.items()},
        method,
        curvature=make_curvature(seed),
        task=task,
        **knobs,
    )
    assert bits(merged) == bits(state)


@EVERY
@SETTINGS
@given(seed=seeds, dtype=st.sampled_from(TYPES))
def test_strength_zero_is_the_old_model_to_the_bit(method, knobs, seed, dtype):
    old, new = make_state(seed, dtype), make_state(seed + 1, dtype)
    old["encoder.bias"][0] = -0.0
    merged = merge(old, new, method, curvature=make_curvature(seed), **(knobs | zero_knobs(method)))
    assert bits(merged) == bits(old)


@EVERY
def test_order_types_devices_and_counters_are_kept(method, knobs):
    kinds = [dtype for dtype in TYPES if dtype != torch.float16 or knobs.get("rescale") != "none"]  # that one is out of its range
    for dtype in kinds:
        old, new = make_state(1, dtype), make_state(2)
        shuffled = dict(sorted(new.items(), reverse=True))
        before = bits(old), bits(shuffled)
        merged = merge(old, shuffled, method, curvature=make_curvature(), **knobs)
        assert list(merged) == list(old)
        assert [(t.dtype, t.shape, t.device) for t in merged.values()] == [
            (t.dtype, t.shape, t.device) for t in old.values()
        ]
        assert merged["norm.num_batches_tracked"] == 2 and merged["mask"].tolist() == new["mask"].tolist()
        assert (bits(old), bits(shuffled)) == before, "inputs are left alone"
        theirs = {t.untyped_storage().data_ptr() for state in (old, shuffled) for t in state.values()}
        assert not theirs & {t.untyped_storage().data_ptr() for t in merged.values()}, "no memory is shared"


@EVERY
@SETTINGS
@given(seed=seeds, scale=st.sampled_from([1e-9, 1e-3, 7.0, 1e6]))
def test_the_unit_of_the_curvature_does_not_matter(method, knobs, seed, scale):
    if knobs.get("damping_kind") == "absolute" or knobs.get("rescale") == "none":
        return  # both are, by definition, in the units of the curvature
    old, new, curvature = (
        make_state(seed, torch.float64),
        make_state(seed + 1, torch.float64),
        make_curvature(seed),
    )
    first = merge(old, new, method, curvature=curvature, **knobs)
    second = merge(old, new, method, curvature=curvature.scale(scale), **knobs)
    for name, tensor in floating(first).items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-9, atol=1e-9)


@EVERY
@SETTINGS
@given(seed=seeds)
def test_identity_curvature_scales_the_update(method, knobs, seed):
    if method in NOT_LINEAR:
        return
    old, new = make_state(seed, torch.float64), make_state(seed + 1, torch.float64)
    merged = merge(old, new, method, curvature=identity_like(make_curvature()), **knobs)
    for name, tensor in floating(merged).items():
        parts = (slice(0, 2), slice(2, 4), slice(4, 6)) if name == "packed" else (slice(None),)
        for part in parts:
            taken, full = ((t - old[name])[part] if t.dim() else t - old[name] for t in (tensor, new[name]))
            ratio = (taken * full).sum() / full.square().sum()
            torch.testing.assert_close(taken, ratio * full, rtol=1e-9, atol=1e-9)
            assert ratio > 0


@EVERY
def test_a_plan_has_a_row_for_every_tensor_in_order(method, knobs):
    old, new = make_state(1), make_state(2)
    planned = plan(old, new, method, curvature=make_curvature(), **knobs)
    assert [row.name for row in planned.rows] == list(old)
    assert all(row.rule and row.why and row.shape == tuple(old[row.name].shape) for row in planned.rows)
    assert {row.name for row in planned.rows if row.rule == "new"} == {"norm.num_batches_tracked", "mask"}
    lines = planned.table().splitlines()
    assert len(lines) == len(old) + 2 and lines[-1].startswith(method)


@EVERY
def test_gradients_do_not_flow(method, knobs):
    old = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in make_state(1).items()}
    merged = merge(old, make_state(2), method, curvature=make_curvature(), **knobs)
    assert not any(tensor.requires_grad for tensor in merged.values())


IN_TURN = {"opcm", "magmax", "dare"}
"""Methods that take one model after the other, or draw numbers for each."""


@pytest.mark.parametrize("method", sorted(n for n, m in methods().items() if m.several and m.takes is None and n not in IN_TURN))
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_order_of_the_new_models_does_not_matter(method, kind):
    old, news = make_state(1, kind), [make_state(seed, kind) for seed in (2, 3, 4)]
    curvatures = [make_curvature(10 * seed) for seed in range(3)] if "new_blocks" in methods()[method].context else None
    fixed, merged = context(method, old, make_curvature(50)), []
    for order in ((0, 1, 2), (2, 0, 1)):
        needed = fixed | {"new_curvature": curvatures and [curvatures[n] for n in order]}
        merged.append(room.merge(old, [news[n] for n in order], method, **needed))
    exact = 1e-4 if kind == torch.float32 else 1e-8
    for name, tensor in floating(merged[0]).items():
        torch.testing.assert_close(merged[1][name], tensor, rtol=exact, atol=exact)


@pytest.mark.parametrize("method", sorted(name for name, kind in methods().items() if kind.least > 1))
def test_one_update_alone_is_refused_where_several_are_needed(method):
    with pytest.raises(InputError, match=rf"merge method {method} needs 2 updates: give base="):
        room.merge(make_state(1), make_state(2), method)
