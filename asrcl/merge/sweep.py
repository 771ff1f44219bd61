"""Merging with many settings, each scored: which one to take.

    rows = sweep("old.pt", ["new.pt"], "sweep", MergeSpec("ihr", curvature=["c.safetensors"]), {"tau": [0.5, 1, 2]}, evaluate)

What is known without any data is always there: how far the merged model moves, and the predicted increase of the old loss. With
an evaluation also the error on the old and the new domain; the settings that no other beats on both are the Pareto front.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.files import hash_json, read_json, write_json
from asrcl.merge.card import MergeRecord
from asrcl.merge.files import MergeSpec, merge_files
from asrcl.merge.registry import find_method

Evaluate = Callable[[Path], Mapping[str, float]]
OPTIONS = ("rest", "statistics", "budget", "method")
"""What a grid may vary besides the method's own options."""


@dataclass(frozen=True)
class SweepRow:
    """One setting.

    Attributes:
        setting: what was varied.
        moved: norm of the step over norm of the update; 1 is as far as fine-tuning.
        predicted: increase of the old loss; None without curvature.
        scores: of the evaluation; "old" and "new" are errors, lower is better.
        model: where the merged model lies; None where it was not kept.
    """

    setting: dict[str, Any]
    moved: float | None
    predicted: float | None
    scores: dict[str, float]
    model: str | None = None


def sweep(
    old: str | Path,
    new: Sequence[str | Path],
    folder: str | Path,
    spec: MergeSpec,
    grid: Mapping[str, Sequence[Any]],
    evaluate: Evaluate | None = None,
    *,
    keep: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[SweepRow]:
    """Merge with every combination of a grid; settings that `folder` has a result for are not computed again.

    Args:
        old: checkpoint before the new domain.
        new: checkpoints fine-tuned from it.
        folder: where `sweep.json` goes, and merged models while they are scored.
        spec: what is not varied.
        grid: option -> values; options of the method, or `rest`, `statistics`, `budget`, `method`.
        evaluate: merged checkpoint -> scores, with errors "old" and "new" among them.
        keep: keep the merged models.
        progress: called with a line per setting.

    Raises:
        InputError: an option that does not exist, or as `merge_files` and the evaluation.
    """
    target = Path(folder)
    known = _known(target, _key(old, new, spec, evaluate))
    rows = []
    for number, setting in enumerate(settings(grid), 1):
        name = hash_json(setting)
        if name not in known:
            if progress is not None:
                progress(f"{number}: {_text(setting)}")
            known[name] = asdict(_one(old, new, target, _varied(spec, setting), setting, evaluate, keep))
            write_json(target / "sweep.json", {"key": _key(old, new, spec, evaluate), "rows": known})
        rows.append(SweepRow(**known[name]))
    return rows


def settings(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of a grid.

    Raises:
        InputError: there is nothing to vary.
    """
    if not grid:
        raise InputError("a sweep needs something to vary, e.g. tau=0.5,1,2")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def pareto(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows that no other beats on both errors, by the error on the old domain."""
    scored = [row for row in rows if {"old", "new"} <= row.scores.keys()]
    return sorted(
        (row for row in scored if not any(_beats(other.scores, row.scores) for other in scored)),
        key=lambda row: row.scores["old"],
    )


def command_evaluation(command: str, timeout: float | None = None) -> Evaluate:
    """Scores from a command: `{model}` in it becomes the checkpoint, its last line is `{"old": 5.1, "new": 9.0}` or `5.1 9.0`.

    Args:
        command: for the shell's words, without a shell.
        timeout: seconds.

    Raises:
        InputError: `{model}` is missing; later: the command fails or prints something else.
    """
    words = shlex.split(command)
    if not any("{model}" in word for word in words):
        raise InputError("--evaluate: write {model} where the checkpoint goes, e.g. 'python score.py {model}'")

    def evaluate(model: Path) -> dict[str, float]:
        called = [word.replace("{model}", str(model)) for word in words]
        try:
            done = subprocess.run(called, capture_output=True, text=True, timeout=timeout, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"--evaluate: {called[0]} did not run ({error})") from error
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no output"]
            raise InputError(f"--evaluate: exit code {done.returncode} of {shlex.join(called)}: {last[0]}")
        return _scores(done.stdout)

    return evaluate


def plot(rows: Sequence[SweepRow], path: str | Path) -> None:
    """Error on the new domain over error on the old one, the Pareto front as a line (matplotlib).

    Raises:
        InputError: matplotlib is not installed, or no row has both errors.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("the plot needs matplotlib: pip install matplotlib, or leave --plot out") from error
    scored = [row for row in rows if {"old", "new"} <= row.scores.keys()]
    if not scored:
        raise InputError("a plot needs the errors of an evaluation (--evaluate)")
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    front = pareto(rows)
    if beaten := [row for row in scored if row not in front]:
        axes.scatter(*_points(beaten), s=22, color="#999999", label="beaten")
    axes.plot(*_points(front), "o-", color="#0072B2", lw=1.2, ms=5, label="Pareto front")
    middle = sum(axes.get_xlim()) / 2
    for place, text in {(row.scores["old"], row.scores["new"]): _text(row.setting) for row in reversed(front)}.items():
        left = place[0] < middle  # labels point inwards, one for settings that end in the same place
        side: Any = "left" if left else "right"
        axes.annotate(text, place, xytext=(5 if left else -5, 5), textcoords="offset points", fontsize=7, ha=side)
    axes.set(xlabel="error on the old domain", ylabel="error on the new domain")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _points(rows: Sequence[SweepRow]) -> tuple[list[float], list[float]]:
    return [row.scores["old"] for row in rows], [row.scores["new"] for row in rows]


def _varied(spec: MergeSpec, setting: Mapping[str, Any]) -> MergeSpec:
    options = {name: value for name, value in setting.items() if name in OPTIONS}
    knobs = {**spec.knobs, **{name: value for name, value in setting.items() if name not in OPTIONS}}
    chosen = replace(spec, **options, knobs=knobs)
    find_method(chosen.method).check(knobs)
    return chosen


def _one(
    old: str | Path,
    new: Sequence[str | Path],
    folder: Path,
    spec: MergeSpec,
    setting: dict[str, Any],
    evaluate: Evaluate | None,
    keep: bool,
) -> SweepRow:
    place = folder / hash_json(setting)
    source = Path(old)
    out = place / (source.name if source.is_dir() or source.suffix else "model.safetensors")
    record: MergeRecord = merge_files(old, new, out, spec, overwrite=True, command=f"asrcl sweep, {_text(setting)}")
    try:
        scores = dict(evaluate(out)) if evaluate is not None else {}
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    return SweepRow(setting, record.totals.relative, record.totals.predicted, scores, str(out) if keep else None)


def _known(folder: Path, key: str) -> dict[str, dict[str, Any]]:
    path = folder / "sweep.json"
    if not path.exists():
        return {}
    found = read_json(path)
    if not isinstance(found, dict) or found.get("key") != key:
        raise InputError(f"{path}: results of another sweep (other models, curvature or fixed options); choose another folder")
    return dict(found["rows"])


def _key(old: str | Path, new: Sequence[str | Path], spec: MergeSpec, evaluate: Evaluate | None) -> str:
    files = [str(path) for path in (old, *new, *spec.curvature, *spec.new_curvature, *([spec.base] if spec.base else []))]
    stamps = [(os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in files if os.path.exists(path)]
    fixed = (spec.method, dict(spec.knobs), spec.rest, spec.statistics, spec.layers, spec.budget, spec.vocabulary, spec.task)
    return hash_json([files, stamps, fixed, spec.rules.as_json() if spec.rules else None, evaluate is not None])


def _scores(output: str) -> dict[str, float]:
    last = next(iter(reversed([line for line in output.splitlines() if line.strip()])), "")
    try:
        pair = dict(zip(("old", "new"), last.split(), strict=False))
        found = json.loads(last) if last.lstrip().startswith("{") else pair
        if {"old", "new"} - found.keys():
            raise ValueError("two errors are needed")
        scores = {str(name): float(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        wanted = 'two numbers, or {"old": ..., "new": ...}'
        remedy = f"print {wanted}, errors on the old and the new domain"
        raise InputError(f"--evaluate: its last line is {last!r}; {remedy}") from error
    if not all(math.isfinite(value) for value in scores.values()):
        raise InputError(f"--evaluate: its last line is {last!r}; the errors must be finite")
    return scores


def _beats(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    pairs = [(first[name], second[name]) for name in ("old", "new")]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def _text(setting: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def lines(rows: Sequence[SweepRow]) -> Iterator[dict[str, Any]]:
    """The rows as flat dicts for a table, the Pareto front marked."""
    front = pareto(rows)
    for row in rows:
        mark = {"front": "*" if row in front else ""} if front else {}
        yield {**row.setting, "moved": row.moved, "predicted increase": row.predicted, **row.scores, **mark}
