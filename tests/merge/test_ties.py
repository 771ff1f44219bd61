"""Parameters with several names stay one parameter, whatever a method does by name, depth or chance."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_merge_laws import EVERY, context
from ties_cases import TIED, curvature, state

from asrcl.curvature import BlockKey, Curvature
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge, merge_files, plan
from asrcl.merge.rules import parse_rules


@EVERY
@pytest.mark.parametrize("turned", [False, True], ids=["in order", "reversed"])
def test_tied_parameters_stay_tied_under_every_method(method, knobs, turned):
    old, new = (state(seed, turned) for seed in (1, 2))
    chosen = {name: value for name, value in knobs.items() if name != "layers"}
    merged = merge(old, new, method, **context(method, old, curvature()), **chosen)
    assert list(merged) == list(old)
    for first, second in TIED:
        assert torch.equal(merged[first], merged[second])
        assert merged[first].data_ptr() != merged[second].data_ptr()
    assert not torch.equal(merged["decoder.layers.0.weight"], merged["decoder.layers.1.weight"]), "equal shapes are no tie"


RULES = [{"method": "keep"}, {"method": "new"}, {"method": "dare", "knobs": {"seed": 3}}, {"knobs": {"last": 0.1}}]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", TIED[0])
def test_a_rule_for_one_name_holds_for_all(rule, name):
    old, new = state(1), state(2)
    rules = parse_rules({"method": "lines", "rules": [{"match": name, **rule}]})
    merged = merge(old, new, "lines", rules=rules)
    both = parse_rules({"method": "lines", "rules": [{"match": list(TIED[0]), **rule}]})
    assert torch.equal(merged[TIED[0][0]], merged[TIED[0][1]])
    assert torch.equal(merged[name], merge(old, new, "lines", rules=both)[name])


def test_two_rules_for_one_parameter_are_refused():
    rules = [{"match": TIED[0][0], "method": "keep"}, {"match": TIED[0][1], "method": "new"}]
    with pytest.raises(InputError, match=r"\(tied\).*different rules"):
        merge(state(1), state(2), "interpolate", rules=parse_rules({"method": "interpolate", "rules": rules}))


def test_curvature_under_one_name_treats_the_parameter():
    old, new = state(1), state(2)
    blocks = {BlockKey(TIED[0][1], 0, 8): curvature().blocks[BlockKey(TIED[0][1], 0, 8)]}
    merged = merge(old, new, "ihr", curvature=Curvature(blocks), damping=0.1)
    rows = {row.name: row for row in plan(old, new, "ihr", curvature=Curvature(blocks), damping=0.1).rows}
    assert torch.equal(merged[TIED[0][0]], merged[TIED[0][1]])
    assert rows[TIED[0][0]].rule == "ihr" and rows[TIED[0][0]].why.startswith(f"tied to {TIED[0][1]}: ")


def test_the_cost_of_a_tied_parameter_counts_once(tmp_path):
    old, new = state(1), state(2)
    for name, model in (("old", old), ("new", new)):
        save_file({n: t.clone() for n, t in model.items()}, tmp_path / f"{name}.safetensors")
    curvature().save(tmp_path / "c.safetensors")
    spec = MergeSpec("ihr", curvature=(tmp_path / "c.safetensors",))
    record = merge_files(tmp_path / "old.safetensors", [tmp_path / "new.safetensors"], tmp_path / "m.safetensors", spec)
    measured = [layer for layer in record.layers if layer.name in TIED[0] and layer.predicted is not None]
    assert len(measured) == 1 and record.totals.predicted == pytest.approx(measured[0].predicted)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_that_hold_a_parameter_twice(tmp_path, suffix):
    for name, seed in (("old", 1), ("new", 2)):
        model = {n: t.clone() for n, t in state(seed).items()}
        path = tmp_path / f"{name}.{suffix}"
        save_file(model, path) if suffix == "safetensors" else torch.save({"model": model}, path)
    paths = [tmp_path / f"{name}.{suffix}" for name in ("old", "new", "merged")]
    merge_files(paths[0], [paths[1]], paths[2], MergeSpec("dare"))
    merged = load_file(paths[2]) if suffix == "safetensors" else torch.load(paths[2], weights_only=True)["model"]
    assert all(torch.equal(merged[first], merged[second]) for first, second in TIED)
    assert not torch.equal(merged[TIED[0][0]], state(1)[TIED[0][0]])
