"""Rules by tensor name: which one wins, and what is refused where."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.merge.registry import find_method
from asrcl.merge.rules import Rule, Rules, expanded, load_rules, parse_rules

FILE = """\
method: ihr
knobs: {tau: 1.0, damping: 1e-3}
rest: 1/t
statistics: old
rules:
  - match: "encoder.layers.0-3.*"
    method: average
    knobs: {strength: 0.3}
  - match: ["*.embed*", "ctc.*"]
    method: keep
  - match: "encoder.*"
    knobs:
      tau: 2
"""


@pytest.fixture
def write(tmp_path):
    def written(text, name="merge.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return written


def test_the_first_rule_that_matches_wins_and_the_rest_follows_the_method_of_all(write):
    rules = load_rules(write(FILE))
    assert rules.of("encoder.layers.3.norm.weight") == Rule("average", {"strength": 0.3})
    assert rules.of("encoder.layers.4.norm.weight") == Rule("ihr", {"tau": 2, "damping": 1e-3})
    assert rules.of("encoder.layers.13.norm.weight") == Rule("ihr", {"tau": 2, "damping": 1e-3})
    assert rules.of("encoder.embed.out") == Rule("keep", {})
    assert rules.of("decoder.out") == Rule("ihr", {"tau": 1.0, "damping": 1e-3})
    assert (rules.rest, rules.statistics) == ("1/t", "old")


def test_without_a_method_of_all_only_matches_have_a_rule():
    rules = parse_rules({"rules": [{"match": "a.*", "method": "new"}]})
    assert rules.of("a.b") == Rule("new", {}) and rules.of("b.a") is None


def test_json_and_yaml_say_the_same_and_rules_survive_being_written(write):
    rules = load_rules(write(FILE))
    again = load_rules(write(json.dumps(rules.as_json()), "merge.json"))
    assert again == rules and parse_rules(again.as_json()) == rules
    assert load_rules(write("# nothing\n")) == Rules()


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))
def test_a_range_stands_for_its_numbers_and_no_others(first, length, number):
    rules = parse_rules({"rules": [{"match": f"layers.{first}-{first + length}.w", "method": "keep"}]})
    assert (rules.of(f"layers.{number}.w") is not None) == (first <= number <= first + length)


def test_ranges_are_whole_parts_of_names_and_several_multiply():
    assert expanded("a.0-1.b.3-4") == ["a.0.b.3", "a.0.b.4", "a.1.b.3", "a.1.b.4"]
    for untouched in ("conv1-2.w", "layer[0-3].w", "x-1-2.w", "*"):
        assert expanded(untouched) == [untouched]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: ihr\nknob: {tau: 1}\n", "line 2: unknown key 'knob'; did you mean 'knobs'?"),
        (FILE.replace("    method: keep", "    metod: keep"), "line 10: unknown key 'metod'; did you mean 'method'?"),
        ("method: ihr\nmethod: average\n", "line 2: the key 'method' comes twice (first in line 1)"),
        ("method: ihr\nrules:\n  - method: keep\n", "line 3: a rule needs 'match'"),
        ("method: ihr\nrules:\n  - match: a\n", "line 3: the rule for a "),
        ("rules:\n  - match: a\n    knobs: {tau: 1}\n", "line 2: knobs need a method"),
        ("rules:\n  - match: a\n    method: keep\n    knobs: {tau: 1}\n", "line 4: merge method keep "),
        ("rules:\n  - match: l.3-1.a\n    method: keep\n", "line 2: 'l.3-1.a': the range 3-1 runs backwards"),
        ("rules:\n  - match: l.0-99999999.a\n    method: keep\n", "the range 0-99999999 is too long"),
        ("rules: {match: a}\n", "line 1: rules must be a list"),
        ("method: [ihr]\n", "line 1: method must be a name"),
        ("method: ihr\nrest: half\n", "line 2: rest must be a number or"),
        ("method: ihr\nrest: .nan\n", "line 2: rest must be a finite"),
        ("method: ihr\nstatistics: both\n", "line 2: statistics='both' does not exist"),
        ("method: ihr\nknobs: [1]\n", "line 2: knobs must be "),
        ("- ihr\n", "line 1: ['ihr'] stands where entries method"),
        ("method: ihr\n\tknobs: {}\n", "line 2: not readable as YAML"),
        ("knobs: !!python/object/apply:os.system ['true']\n", "line 1: not readable as YAML"),
        ("a: &a [*a]\n", "an alias that contains itself"),
    ],
)
def test_faults_are_named_with_their_line(write, text, message):
    path = write(text)
    with pytest.raises(InputError) as error:
        load_rules(path)
    assert message in str(error.value) and str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_methods_are_checked_by_whom_the_caller_names(write):
    load_rules(write(FILE), find_method)
    with pytest.raises(InputError, match=r"line 7: .*'averag'"):
        load_rules(write(FILE.replace("method: average", "method: averag")), find_method)


def test_json_faults(write):
    with pytest.raises(InputError, match=r"m\.json line 2: .*JSON"):
        load_rules(write('{"method":\n}', "m.json"))
    with pytest.raises(InputError, match="'method' comes twice"):
        load_rules(write('{"method": "a", "method": "b"}', "m.json"))
    with pytest.raises(InputError, match=r"rule 1: unknown key 'methods'"):
        load_rules(write('{"rules": [{"match": "a", "methods": "b"}]}', "m.json"))
    with pytest.raises(InputError, match="no such file"):
        load_rules(write("", "m.json").with_name("other.yaml"))


def test_without_pyyaml_json_still_works(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert load_rules(write('{"method": "average"}', "m.json")).method == "average"
    with pytest.raises(InputError, match="pip install pyyaml"):
        load_rules(write(FILE))


def test_globs_that_fit_no_tensor_are_refused(write):
    rules = load_rules(write(FILE))
    rules.check_names(["encoder.layers.2.w", "decoder.embed.w", "ctc.w", "x"])
    with pytest.raises(InputError, match=r"fits the rule 'ctc.\*' \(nearest: ctc_lo.w"):
        rules.check_names(["encoder.layers.2.w", "decoder.embed.w", "ctc_lo.w"])


def test_a_range_of_any_length_is_one_line():
    with pytest.raises(InputError, match="is too long"):
        expanded("layers.0-" + "9" * 5000)
