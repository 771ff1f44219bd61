"""A merge of files as far as named domains bear it, measured by a command of the user's."""

import sys

import pytest
import torch
from merge_cases import make_curvature, make_state
from safetensors.torch import load_file, save_file

from asrcl.exceptions import InputError
from asrcl.keep import MOST, read_budgets
from asrcl.merge import MergeSpec, merge, methods
from asrcl.merge.card import MergeRecord
from asrcl.merge.path import at_strength
from asrcl.merge.rules import parse_rules
from asrcl.merge.within import RateCommand, merge_within

BUDGETS = read_budgets("probe:+0.5 general:+5%")


@pytest.fixture
def models(tmp_path):
    save_file({"w": torch.zeros(4), "n": torch.tensor(3)}, tmp_path / "old.safetensors")
    save_file({"w": torch.ones(4), "n": torch.tensor(9)}, tmp_path / "new.safetensors")
    return tmp_path


class Rates:
    """The probe rises by two points, the general domain by one, along the way; counts its calls."""

    def __init__(self):
        self.seen = []

    def __call__(self, model):
        weight = float(load_file(model)["w"][0])
        self.seen.append(weight)
        return {"probe": 15.0 + 2 * weight, "general": 10.0 + weight, "other": 1.0}


WHOLE = MergeSpec("interpolate", {"strength": 1.0})


def within(folder, evaluate, spec=WHOLE, budgets=BUDGETS, **options):
    old, new, out = folder / "old.safetensors", folder / "new.safetensors", folder / "out" / "m.safetensors"
    record = merge_within(old, [new], out, spec, budgets, evaluate, **options)
    return load_file(out), record


def test_the_largest_strength_within_every_budget_is_taken(models):
    rates = Rates()
    found, record = within(models, rates)
    assert float(found["w"][0]) == record.trade["strength"] == 0.25
    assert len(rates.seen) == len(record.trade["tried"]) == MOST and rates.seen[:3] == [0.0, 1.0, 0.5]
    assert sorted(path.name for path in (models / "out").iterdir()) == ["m.safetensors", "m.safetensors.json", "m.safetensors.md"]


def test_the_card_has_the_trade(models):
    _, record = within(models, Rates(), command="asrcl merge ...")
    assert MergeRecord.load(models / "out" / "m.safetensors.json").trade == record.trade
    card = (models / "out" / "m.safetensors.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in card.splitlines() if line.startswith("|")]
    assert ["limit", "15.50 (+0.5)", "10.50 (+5%)", ""] in [[*row, ""][:4] for row in rows]
    assert ["0.25", "15.50", "10.25", "yes"] in rows and ["1", "17.00", "11.00", "no"] in rows


def test_all_of_it_where_it_fits_and_nothing_where_it_does_not(models):
    rates = Rates()
    found, record = within(models, rates, budgets=read_budgets("probe:+2"))
    assert len(rates.seen) == 2 and record.trade["strength"] == 1
    assert torch.equal(found["w"], torch.ones(4)) and int(found["n"]) == 9
    found, record = within(models, rates, budgets=read_budgets("probe:+0"), overwrite=True)
    assert record.trade["strength"] == 0 and torch.equal(found["w"], torch.zeros(4)) and int(found["n"]) == 3


@pytest.mark.parametrize("method", sorted(methods()))
def test_scale_zero_is_the_old_model_to_the_bit(tmp_path, method):
    from asrcl.merge import merge_files

    save_file(make_state(1), tmp_path / "old.safetensors")
    save_file(make_state(2), tmp_path / "new.safetensors")
    base = tmp_path / "old.safetensors" if methods()[method].least > 1 else None
    new_curvature = make_curvature(5) if "new_blocks" in methods()[method].context else None
    chosen = MergeSpec(method, curvature=make_curvature(), new_curvature=new_curvature, base=base)
    merge_files(tmp_path / "old.safetensors", [tmp_path / "new.safetensors"], tmp_path / "m.safetensors", chosen, scale=0.0)
    found, old = load_file(tmp_path / "m.safetensors"), make_state(1)
    assert all(torch.equal(found[name], value) for name, value in old.items())


@pytest.mark.parametrize("method, rest", [("ihr", None), ("ihr", 0.4), ("laplace", "keep"), ("laplace", "1/t"), ("ihr", "new")])
def test_a_path_by_damping_multiplies_damping_and_rest(method, rest):
    curvature = make_curvature()
    spec = MergeSpec(method, {"damping": 4.0}, curvature=curvature, rest=rest, task=3)
    weight = {None: 1 / 3, "1/t": 1 / 3, "keep": 0.0, "new": 1.0}.get(rest, rest)
    chosen, scale = at_strength(spec, "damping", 0.25)
    assert scale == 1.0 and at_strength(spec, "damping", 1.0) == (spec, 1.0)
    assert at_strength(spec, "straight", 0.25) == (spec, 0.25)
    wanted = merge(make_state(1), make_state(2), method, curvature=curvature, damping=1.0, rest=weight / 4, task=3)
    found = merge(make_state(1), make_state(2), chosen)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    "spec, path, message",
    [
        (MergeSpec("average"), "damping", "--path=damping: merge method average has no damping"),
        (MergeSpec("ihr", rest="fisher"), "damping", "--path=damping: rest=fisher has no weight"),
        (MergeSpec("ihr"), "curved", "--path=curved: choose from straight, damping"),
        (MergeSpec("ihr", rules=parse_rules({"rules": [{"match": "w", "method": "keep"}]})), "damping", "rules by tensor name"),
    ],
)
def test_paths_that_there_are_not(models, spec, path, message):
    with pytest.raises(InputError, match=message):
        within(models, Rates(), spec, path=path)


def test_a_budget_that_not_even_the_old_model_meets(models):
    rates = Rates()
    with pytest.raises(InputError, match=r"probe:-1 is not met by the old model itself"):
        within(models, rates, budgets=read_budgets("probe:-1"))
    assert rates.seen == []


def test_what_the_merge_refuses_is_refused_before_anything_is_measured(models):
    rates = Rates()
    wrong = MergeSpec("interpolate", {"strenght": 1})
    for spec, message in ((MergeSpec("ihr"), "needs curvature="), (wrong, "no option strenght")):
        with pytest.raises(InputError, match=message):
            within(models, rates, spec)
    (models / "out" / "m.safetensors" / "more").mkdir(parents=True)
    with pytest.raises(InputError, match=r"m\.safetensors: exists already"):
        within(models, rates)
    assert rates.seen == []


# --- the command


def command(tmp_path, program):
    (tmp_path / "score.py").write_text(f"import sys\nmodel = sys.argv[1]\n{program}\n")
    return RateCommand(f"{sys.executable} {tmp_path}/score.py {{model}}", BUDGETS)


@pytest.mark.parametrize(
    "program",
    [
        "print('loading', model)\nprint('probe 99')\nprint('probe 15.5')\nprint('general 3.75%')\nprint('done')",
        "print('probe: 15.5\\ngeneral:  3.75')",
        "print('log')\nprint('{\"probe\": 15.5, \"general\": 3.75, \"more\": null}')",
        "import json\nprint(json.dumps({'probe': 15.5, 'general': '3.75'}, indent=1))",
    ],
)
def test_rates_are_read_from_lines_or_json(tmp_path, program):
    assert command(tmp_path, program)(tmp_path / "m") == {"probe": 15.5, "general": 3.75}


@pytest.mark.parametrize(
    "program, message",
    [
        ("print('probe 15.5')", r"no error rate of general; print a line 'general RATE'.*it printed 'probe 15.5\\n'"),
        ("print('')", "no error rate of probe"),
        ("print('probe high\\ngeneral 1')", r"what is no number for probe.*'probe high\\ngeneral 1\\n'"),
        ("print('{\"probe\": [1], \"general\": 1}')", "what is no number for probe"),
        ("print('probe nan\\ngeneral 1')", "nan is no error rate of probe"),
        ("print('probe -2\\ngeneral 1')", "-2.0 is no error rate of probe"),
        ("print('x' * 5000)", r"it printed 'x{200}\.\.\.'$"),
        ("print('half'); sys.exit('out of memory')", r"exit code 1 of .*: out of memory"),
    ],
)
def test_what_is_no_rate_is_shown(tmp_path, program, message):
    with pytest.raises(InputError, match=f"^--evaluate: .*{message}") as caught:
        command(tmp_path, program)(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_command_names_the_model():
    with pytest.raises(InputError, match=r"write \{model\} where the checkpoint goes"):
        RateCommand("python score.py", BUDGETS)


def test_nothing_is_left_behind_where_the_command_fails(models):
    def fails(model):
        if model.name == "m.safetensors":
            raise InputError("--evaluate: no")
        return {"probe": 1.0, "general": 1.0}

    with pytest.raises(InputError, match="--evaluate: no"):
        within(models, fails)
    assert not (models / "out").exists() or list((models / "out").iterdir()) == []
