"""Where runs come from, said once: equal commands and environments grouped, and where configurations differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

from asrcl.scoring.results.run_result import RunResult

Value = TypeVar("Value")
ABSENT = "(absent)"


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """One setting that not all runs share.

    Attributes:
        key: dotted name, such as `train.adapt.epochs`.
        values: (value as printed, names of its runs), in order of appearance.
    """

    key: str
    values: list[tuple[str, list[str]]]


def grouped(pairs: Iterable[tuple[Value, str]]) -> list[tuple[Value, list[str]]]:
    """Equal values (as JSON) once each, with the names that have them, in order of appearance."""
    groups: dict[str, tuple[Value, list[str]]] = {}
    for value, name in pairs:
        groups.setdefault(json.dumps(value, default=str), (value, []))[1].append(name)
    return list(groups.values())


def plain_json(value: Any) -> str:
    """Strings as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and plain values of nested mappings and lists; empty ones count as values."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list) and any(isinstance(entry, Mapping | list) for entry in value):
        children = enumerate(value)
    children = list(children)
    if not children:
        yield prefix, value
    for key, child in children:
        yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))


def config_differences(runs: Sequence[RunResult]) -> list[ConfigDifference]:
    """Settings that differ between runs, by name; empty for one run or equal configurations."""
    flat = [dict(flatten(run.config)) if run.config else {} for run in runs]
    keys = sorted({key for config in flat for key in config})
    found = []
    for key in keys:
        values = [plain_json(config[key]) if key in config else ABSENT for config in flat]
        if len(set(values)) > 1:
            pairs = zip(values, (run.name for run in runs), strict=True)
            found.append(ConfigDifference(key, grouped(pairs)))
    return found


def commits(runs: Sequence[RunResult]) -> list[tuple[str, list[str]]]:
    """The source commits the runs say they were made with ("" where not recorded), with their runs.

    A commit that ends in + was made with uncommitted changes.
    """
    return grouped((str(run.environment.get("git", "")), run.name) for run in runs)


def short_names(names: Sequence[str]) -> str:
    """Names of runs with their seeds gathered: a/ihr/1, a/ihr/2, a/ihr/3 give "a/ihr/1–3"."""
    parts = [name.rsplit("/", 1) for name in names]
    said = []
    for stem, members in groupby(parts, key=lambda part: part[0]):
        seeds = [part[1] for part in members if len(part) > 1]
        said.append(f"{stem}/{_ranges(seeds)}" if seeds else stem)
    return ", ".join(said)


def _ranges(seeds: list[str]) -> str:
    """1, 2, 3, 7 as "1–3,7"; what is no number is listed."""
    if not all(re.fullmatch(r"\d+", seed) for seed in seeds):
        return ",".join(seeds)
    numbers = sorted(map(int, seeds))
    runs: list[list[int]] = []
    for value in numbers:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
