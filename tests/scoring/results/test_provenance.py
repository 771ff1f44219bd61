from dataclasses import replace

from asrcl.scoring import RunResult
from asrcl.scoring.results.provenance import commits, config_differences, flatten, grouped, short_names

CONFIG = {"train": {"epochs": 8}, "parts": [{"x": 1}, {"x": 2}], "list": [1]}
RUN = RunResult("toy", "ft", 0, "word", ["a"], [[1]], [9], config=CONFIG)


def test_nested_settings_get_dotted_names() -> None:
    assert dict(flatten(RUN.config)) == {"train.epochs": 8, "parts.0.x": 1, "parts.1.x": 2, "list": [1]}
    assert dict(flatten({"a": {}, "b": []})) == {"a": {}, "b": []}


def test_differences_name_values_and_runs() -> None:
    other = replace(RUN, method="ihr", config={"train": {"epochs": 8}, "parts": [{"x": 1}, {"x": 3}], "list": [1], "tau": 2.0})
    found = config_differences([RUN, replace(RUN, seed=1), other])
    assert [(entry.key, entry.values) for entry in found] == [
        ("parts.1.x", [("2", ["toy/ft/0", "toy/ft/1"]), ("3", ["toy/ihr/0"])]),
        ("tau", [("(absent)", ["toy/ft/0", "toy/ft/1"]), ("2.0", ["toy/ihr/0"])]),
    ]
    assert config_differences([RUN]) == [] and config_differences([RUN, replace(RUN, seed=1)]) == []


def test_names_of_seeds_are_gathered() -> None:
    names = ["a/ft/3", "a/ft/1", "a/ft/2", "a/ft/7", "a/ihr/1", "b/x/first"]
    assert short_names(names) == "a/ft/1–3,7, a/ihr/1, b/x/first"


def test_equal_values_are_said_once_in_order() -> None:
    assert grouped([({"a": 1}, "x"), ("s", "y"), ({"a": 1}, "z")]) == [({"a": 1}, ["x", "z"]), ("s", ["y"])]
    runs = [replace(RUN, seed=seed, environment={"git": git} if git else {}) for seed, git in ((0, "abc"), (1, "abc+"), (2, ""))]
    assert commits(runs) == [("abc", ["toy/ft/0"]), ("abc+", ["toy/ft/1"]), ("", ["toy/ft/2"])]
