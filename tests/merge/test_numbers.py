"""What the numbers of a tensor mean: complex, 8-bit, beyond the range, infinite, counted, quantised."""

import pytest
import torch
from merge_cases import bits
from test_merge_laws import EVERY, context, zero_knobs

from asrcl.exceptions import InputError
from asrcl.merge import merge, methods, plan

EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
UNUSUAL = [torch.complex64, torch.complex128, *EIGHT_BITS]


def numbers(seed, dtype, shape=(6, 4)):
    g = torch.Generator().manual_seed(seed)
    if dtype.is_complex:
        return torch.complex(*(torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2))).to(dtype)
    return torch.randn(shape, generator=g).to(dtype)


def model(seed, dtype):
    return {"w": numbers(seed, dtype), "v": numbers(seed + 100, dtype, (5,)), "s": numbers(seed + 200, dtype, ())}


def without_curvature():
    return [name for name, method in methods().items() if not method.curved and method.takes is None]


@pytest.mark.parametrize("dtype", UNUSUAL, ids=str)
@pytest.mark.parametrize("method", without_curvature())
def test_strength_zero_is_the_old_model_to_the_bit_in_unusual_types(method, dtype):
    old = model(1, dtype)
    merged = merge(old, model(2, dtype), method, **context(method, old, None), **zero_knobs(method))
    assert bits(merged) == bits(old) and {t.dtype for t in merged.values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_complex_numbers_are_averaged_as_numbers(dtype, strength):
    old, new = model(1, dtype), model(2, dtype)
    merged = merge(old, new, "interpolate", strength=strength)
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (1 - strength) * old[name] + strength * new[name])
    assert {row.rule for row in plan(old, new, "interpolate").rows} == {"interpolate"}


@pytest.mark.parametrize("method", without_curvature())
def test_a_complex_tensor_is_merged_as_its_pairs_of_numbers(method):
    old, new = model(1, torch.complex64), model(2, torch.complex64)
    pairs = [{name: torch.view_as_real(tensor) for name, tensor in state.items()} for state in (old, new)]
    complexes = merge(old, new, method, **context(method, old, None))
    reals = merge(*pairs, method, **context(method, pairs[0], None))
    for name in ("w",) if methods()[method].matrices else ("w", "v"):
        assert torch.equal(torch.view_as_real(complexes[name]), reals[name])


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_8_bit_floats_are_merged_to_the_nearest(dtype):
    old, new = model(1, dtype), model(2, dtype)
    merged = merge(old, new, "interpolate", strength=0.5)
    for name, tensor in merged.items():
        assert torch.equal(tensor.float(), ((old[name].double() + new[name].double()) / 2).to(dtype).float())


def test_complex_and_real_models_differ():
    with pytest.raises(InputError, match=r"w is complex64 .*float32"):
        merge({"w": numbers(1, torch.complex64)}, {"w": numbers(1, torch.float32)}, "interpolate")


@pytest.mark.parametrize(
    "dtype, old, new, strength",
    [
        (torch.float16, [40000.0, 1.0], [60000.0, 2.0], 3.0),
        (torch.float16, [1.0, 1.0], [200000.0, 2.0], 0.5),
        (torch.bfloat16, [3e38, 1.0], [-3e38, 1.0], -1.0),
        (torch.float32, [3e38, 1.0], [-3e38, 1.0], -1.0),
        (torch.float8_e4m3fn, [400.0, 1.0], [448.0, 1.0], 4.0),
        (torch.float8_e5m2, [50000.0, 1.0], [20000.0, 1.0], -2.0),
        (torch.complex64, [3e38j, 1.0], [-3e38j, 1.0], -1.0),
    ],
)
def test_a_result_that_its_type_cannot_hold_is_refused(dtype, old, new, strength):
    wide = dtype if dtype.is_complex else torch.float32
    with pytest.raises(InputError, match=r"w: the merged tensor .*smaller step"):
        merge({"w": torch.tensor(old).to(dtype)}, {"w": torch.tensor(new, dtype=wide)}, "interpolate", strength=strength)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
@EVERY
def test_masks_of_infinities_that_all_models_share_stay(method, knobs, dtype):
    from merge_cases import make_curvature, make_state

    mask = torch.full((4, 4), float("-inf")).triu(1)
    mask[0, 0] = float("nan")
    mask = mask.to(dtype)
    old, new = make_state(1) | {"attention.mask": mask}, make_state(2) | {"attention.mask": mask.clone()}
    merged = merge(old, new, method, **context(method, old, make_curvature()), **knobs)
    assert bits(merged)["attention.mask"] == bits(old)["attention.mask"]


@pytest.mark.parametrize("rule, side", [("keep", 0), ("new", 1)])
def test_rules_take_tensors_that_are_not_finite(rule, side):
    from asrcl.merge.rules import parse_rules

    states = [{"w": torch.full((2,), float(n)), "mask": torch.tensor([float("-inf"), float(n)])} for n in range(2)]
    with pytest.raises(InputError, match=r"mask of the old model .*NaN.*rules="):
        merge(*states, "interpolate")
    rules = parse_rules({"method": "interpolate", "rules": [{"match": "mask", "method": rule}]})
    merged = merge(*states, "interpolate", rules=rules, strength=0.5)
    assert torch.equal(merged["mask"], states[side]["mask"]) and merged["w"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("strength, expected", [(0.0, 5), (0.5, 9), (1.0, 9)])
def test_counters_follow_the_new_model_unless_nothing_does(strength, expected):
    old, new = ({"w": torch.full((2,), float(n)), "count": torch.tensor(n), "hist": torch.tensor([n, 1])} for n in (5, 9))
    merged = merge(old, new, "interpolate", strength=strength)
    assert int(merged["count"]) == expected and int(merged["hist"][0]) == expected
    row = next(row for row in plan(old, new, "interpolate", strength=strength).rows if row.name == "count")
    assert row.rule == ("keep" if strength == 0 else "new")


def test_a_counter_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"count: .*int64.*int8"):
        merge({"count": torch.tensor(5, dtype=torch.int8)}, {"count": torch.tensor(900)}, "interpolate")


# What quantisers write. Sources: documentation of bitsandbytes, GPTQ, AWQ, compressed-tensors, quanto, DeepSeek-V3, MX formats.


def codes(dtype, shape=(4, 8), seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 100, shape, generator=g).to(dtype)


LAYOUTS = {
    "int8 with a scale": lambda s: {"l.weight": codes(torch.int8, seed=s), "l.weight_scale": torch.full((4, 1), 0.1 + s)},
    "uint8 alone": lambda s: {"l.weight": codes(torch.uint8, seed=s)},
    "int16 alone": lambda s: {"l.weight": codes(torch.int16, seed=s)},
    "LLM.int8": lambda s: {"l.weight": codes(torch.int8, seed=s), "l.SCB": torch.full((4,), 1.0 + s)},
    "nf4": lambda s: {"l.weight": codes(torch.uint8, (16, 1), s), "l.weight.absmax": torch.full((4,), 1.0 + s)},
    "GPTQ": lambda s: {
        "l.qweight": codes(torch.int32, seed=s), "l.qzeros": codes(torch.int32, (1, 8)), "l.g_idx": codes(torch.int32, (8,)),
        "l.scales": torch.full((1, 8), 0.1 + s).half(),
    },
    "act-order alone": lambda s: {"l.g_idx": codes(torch.int32, (8,), s), "l.scales": torch.ones(1, 8)},
    "packed": lambda s: {"l.weight_packed": codes(torch.int32, seed=s), "l.weight_scale": torch.ones(4, 1)},
    "int64 matrix": lambda s: {"l.codebook": codes(torch.int64, seed=s)},
    "float8 with blocks": lambda s: {
        "l.weight": codes(torch.float32, seed=s).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.full((4, 1), 0.1 + s)
    },
    "shared exponents": lambda s: {"l.exponents": torch.full((4,), 2.0**s).to(torch.float8_e8m0fnu)},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantised_codes_that_differ_are_refused_before_anything_is_merged(layout):
    old, new = (LAYOUTS[layout](seed) | {"other": torch.full((3,), float(seed))} for seed in (0, 1))
    for call in (merge, plan):
        with pytest.raises(InputError, match=r"^l\..* quantised codes \(.*\).*dequantise both"):
            call(old, new, "interpolate", strength=0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_quantised_codes_that_are_alike_stay(layout):
    old, new = (LAYOUTS[layout](0) | {"other": torch.full((3,), float(seed))} for seed in (0, 1))
    merged = merge(old, new, "interpolate", strength=0.5)
    assert bits({n: t for n, t in merged.items() if n != "other"}) == bits({n: t for n, t in old.items() if n != "other"})


def test_a_rule_may_take_the_codes_of_one_model():
    from asrcl.merge.rules import parse_rules

    old, new = (LAYOUTS["int8 with a scale"](seed) | {"other": torch.full((3,), float(seed))} for seed in (0, 1))
    rules = parse_rules({"method": "interpolate", "rules": [{"match": "l.*", "method": "keep"}]})
    assert torch.equal(merge(old, new, "interpolate", rules=rules)["l.weight"], old["l.weight"])


def test_a_learned_scale_beside_wide_weights_is_no_quantiser():
    old, new = ({"l.weight": torch.full((2, 2), float(n)), "l.weight_scale": torch.tensor(float(n))} for n in (0, 1))
    merged = merge(old, new, "interpolate", strength=0.5)
    assert merged["l.weight"].unique().tolist() == [0.5] and float(merged["l.weight_scale"]) == 0.5
