"""Merging with many settings and scoring each, to choose one.

    rows = sweep("old.pt", ["new.pt"], "sweep", MergeSpec("ihr", curvature=["c.safetensors"]), {"tau": [0.5, 1, 2]}, evaluate)

What is known without any data is always there: how far the merged model moves, and the predicted increase of the old loss. With
an evaluation also the error on the old and the new domain; the settings that no other beats on both are the Pareto front.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from asrcl.entries import DamagedEntry, fingerprint_file, read_record, remove_entry, seal
from asrcl.exceptions import InputError
from asrcl.files import atomic_path, file_lock, hash_json, parse_json, read_json
from asrcl.merge.card import MergeRecord
from asrcl.merge.files import merge_files
from asrcl.merge.registry import find_method
from asrcl.merge.spec import MergeSpec
from asrcl.search import grid, pareto_front

Evaluate = Callable[[Path], Mapping[str, float]]
OPTIONS = ("rest", "statistics", "budget", "method")
"""What a grid may vary besides the method's own options."""
OF_FILES = ("curvature", "new_curvature", "base", "tokens", "rules")
"""Settings of a merge that name files, or are written as JSON in a way of their own."""
RECORD = "sweep.json"
SHOWN = 200  # letters of what a command printed
ADDRESS = re.compile(r" at 0x[0-9a-f]+")

logger = logging.getLogger(__name__)


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
    choices: Mapping[str, Sequence[Any]],
    evaluate: Evaluate | None = None,
    *,
    keep: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[SweepRow]:
    """Merge with every combination of some choices; settings that `folder` has a result for are not computed again.

    Args:
        old: checkpoint before the new domain.
        new: checkpoints fine-tuned from it.
        folder: where `sweep.json` goes, and merged models while they are scored.
        spec: what is not varied.
        choices: option -> values; options of the method, or `rest`, `statistics`, `budget`, `method`.
        evaluate: merged checkpoint -> scores, with errors "old" and "new" among them. What else they depend on is said by its
            attribute `identity`, JSON or a function that returns it; of a function without one, its code, defaults and enclosed
            values are taken.
        keep: keep the merged models.
        progress: called with a line per setting.

    Raises:
        InputError: an option that does not exist, or as `merge_files` and the evaluation; the folder has results of other models,
            fixed options or another evaluation.
    """
    target = Path(folder)
    if not choices:
        raise InputError("a sweep needs something to vary, e.g. tau=0.5,1,2")
    chosen = grid(choices)
    with file_lock(target / ".sweep.lock"):  # two sweeps into one folder, one after the other
        key = _key(old, new, spec, evaluate)
        known = _known(target, key)
        for number, setting in enumerate(chosen, 1):
            name = hash_json(setting)
            if name not in known or (keep and not _is_kept(target / name, known[name])):
                if progress is not None:
                    progress(f"{number}: {_text(setting)}")
                known[name] = asdict(_one(old, new, target, _varied(spec, setting), setting, evaluate, keep))
                kept = {"content": _content([target / name])} if keep else {}
                known[name] |= kept
                seal(target, RECORD, {"key": key, "rows": known}, files=())
        found = [known[hash_json(setting)] for setting in chosen]
    return [SweepRow(**{name: value for name, value in row.items() if name != "content"}) for row in found]


def pareto(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows that no other beats on both errors, by the error on the old domain; rows without both are left out."""
    scored = [row for row in rows if {"old", "new"} <= row.scores.keys()]
    return pareto_front(scored, lambda row: (row.scores["old"], row.scores["new"]))


@dataclass(frozen=True)
class CommandEvaluation:
    """Scores from a command: `{model}` in it becomes the checkpoint, its last line is `{"old": 5.1, "new": 9.0}` or `5.1 9.0`.

    Attributes:
        command: for the shell's words, without a shell.
        timeout: seconds.

    Raises:
        InputError: a quote that is not closed, or `{model}` is missing; when called: the command fails or prints something else.
    """

    command: str
    timeout: float | None = None

    def __post_init__(self) -> None:
        if not any("{model}" in word for word in self._words()):
            raise InputError("--evaluate: write {model} where the checkpoint goes, e.g. 'python score.py {model}'")

    def _words(self) -> list[str]:
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"--evaluate {self.command!r}: {error}; close the quote, or escape it") from error

    def identity(self) -> dict[str, Any]:
        """The command, and the content of the files it names: a script that was changed scores otherwise."""
        words = self._words()
        return {"command": words, "files": [_content([Path(word)]) for word in words if os.path.isfile(word)]}

    def __call__(self, model: Path) -> dict[str, float]:
        """The scores of a checkpoint."""
        return _scores(self.output(model))

    def output(self, model: Path) -> str:
        """What the command prints of a checkpoint on its standard output.

        Raises:
            InputError: it does not run, or fails.
        """
        called = [word.replace("{model}", str(model)) for word in self._words()]
        options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace", "timeout": self.timeout}
        try:
            done = subprocess.run(called, check=False, **options)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            raise InputError(f"--evaluate: {called[0]!r} did not run ({error})") from error
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no output"]
            raise InputError(f"--evaluate: exit code {done.returncode} of {shlex.join(called)}: {_printable(last[0])}")
        return str(done.stdout)


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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix.lstrip(".") or "png")


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
    remove_entry(place)  # what a killed sweep left, or a kept model that is not what was written
    source = Path(old)
    out = place / (source.name if source.is_dir() or source.suffix else "model.safetensors")
    record: MergeRecord = merge_files(old, new, out, spec, overwrite=True, command=f"asrcl sweep, {_text(setting)}")
    try:
        scores = dict(evaluate(out)) if evaluate is not None else {}
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)
    return SweepRow(setting, record.totals.relative, record.totals.predicted, scores, str(out) if keep else None)


def _known(folder: Path, key: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier call; none where there was none, or where its record is not what was written."""
    path = folder / RECORD
    if not os.path.lexists(path):
        return {}
    try:
        found = read_record(path)
        if not isinstance(found.get("key"), dict) or not isinstance(found.get("rows"), dict) or "files" not in found:
            raise DamagedEntry(f"{folder}: {RECORD} has no hashes (an older version wrote it)")
    except DamagedEntry as error:
        logger.warning("%s; made again", error)
        remove_entry(path)
        return {}
    if differing := [name for name in key if found["key"].get(name) != key[name]]:
        raise InputError(f"{path}: results of another sweep (other {', '.join(differing)}); choose another folder")
    return dict(found["rows"])


def _is_kept(place: Path, row: Mapping[str, Any]) -> bool:
    """Whether the merged model of a setting is there and what was written."""
    return row.get("model") is not None and place.is_dir() and row.get("content") == _content([place])


def _key(
    old: str | Path, new: Sequence[str | Path], spec: MergeSpec, evaluate: Evaluate | None
) -> dict[str, str]:
    """A hash of everything that a row depends on besides its setting, in the parts that a message can name."""
    curvature = _paths([*spec.curvature, *spec.new_curvature])
    models = [Path(old), *map(Path, new), *_paths([spec.base] if spec.base is not None else [])]
    others = {name: getattr(spec, name) for name in spec.__dataclass_fields__ if name not in OF_FILES}
    options = [others, spec.rules.as_json() if spec.rules else None, _tokens(spec)]
    parts = {
        "models": [_content([path]) for path in models],
        "curvature": [len(spec.curvature), *(_content([path]) for path in curvature)],
        "fixed options": options,
        "evaluation": _identity(evaluate),
    }
    return {name: hash_json(part) for name, part in parts.items()}


def _paths(given: Sequence[Any]) -> list[Path]:
    """Where curvatures and models lie.

    Raises:
        InputError: one is in memory, so that a later call could not tell whether it is the same.
    """
    for one in given:
        if not isinstance(one, str | Path):
            raise InputError(f"a sweep takes curvature= and base= as files, not as {type(one).__name__} in memory; save it first")
    return [Path(one) for one in given]


def _tokens(spec: MergeSpec) -> list[Any]:
    """Token lists by what is in their files."""
    lists = spec.tokens or ()
    return [_content([Path(part)]) if isinstance(part, str | Path) else part for part in lists]


def _content(paths: Sequence[Path]) -> dict[str, Any]:
    """Size and hash of every file at or below some places, by its place there; of an index, also of the files it names.

    Raises:
        InputError: one cannot be read.
    """
    found: dict[str, Any] = {}
    for path in paths:
        inner = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path, *_shards(path)]
        try:
            found |= {str(file.relative_to(path.parent)): fingerprint_file(file) for file in inner if file.exists()}
        except OSError as error:
            raise InputError(f"{error.filename or path}: cannot read it ({error.strerror})") from error
    return found


def _shards(path: Path) -> list[Path]:
    if not path.name.endswith(".index.json") or not path.is_file():
        return []
    index = read_json(path)
    named = index.get("weight_map", {}) if isinstance(index, dict) else {}
    return [path.with_name(Path(str(name)).name) for name in sorted(set(named.values()))]


def _identity(evaluate: Evaluate | None) -> Any:
    """What the scores of an evaluation depend on besides the model."""
    given = getattr(evaluate, "identity", None)
    if evaluate is None or given is not None:
        return given() if callable(given) else given
    name = [getattr(evaluate, "__module__", ""), getattr(evaluate, "__qualname__", type(evaluate).__qualname__)]
    code = getattr(evaluate, "__code__", None)
    if code is None:
        return [*name, ADDRESS.sub("", repr(evaluate))]
    cells = [cell.cell_contents for cell in evaluate.__closure__ or ()]
    values = [code.co_consts, code.co_names, evaluate.__defaults__, evaluate.__kwdefaults__, cells]
    return [*name, code.co_code.hex(), [ADDRESS.sub("", repr(value)) for value in values]]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _scores(output: str) -> dict[str, float]:
    last = next(iter(reversed([line for line in output.splitlines() if line.strip()])), "")
    try:
        pair = dict(zip(("old", "new"), last.split(), strict=False))
        found = parse_json(last) if last.lstrip().startswith("{") else pair
        if {"old", "new"} - found.keys():
            raise ValueError("two errors are needed")
        scores = {str(name): float(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        wanted = 'two numbers, or {"old": ..., "new": ...}'
        remedy = f"print {wanted}, errors on the old and the new domain"
        raise InputError(f"--evaluate: its last line is {shortened_output(last)}; {remedy}") from error
    if not all(math.isfinite(value) for value in scores.values()):
        raise InputError(f"--evaluate: its last line is {shortened_output(last)}; the errors must be finite")
    return scores


def shortened_output(text: str) -> str:
    """The beginning of what a command printed, in quotes and in one line."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def _text(setting: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in setting.items())


def lines(rows: Sequence[SweepRow]) -> Iterator[dict[str, Any]]:
    """The rows as flat dicts for a table, the Pareto front marked."""
    front = pareto(rows)
    for row in rows:
        mark = {"front": "*" if row in front else ""} if front else {}
        yield {**row.setting, "moved": row.moved, "predicted increase": row.predicted, **row.scores, **mark}
