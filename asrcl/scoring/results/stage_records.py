"""What runs may tell beside their counts: losses, update norms, layers, curvature, sweeps (docs/results.md).

All of it is optional, and a section of the report is there when a run carries it. What is there but cannot be read is
refused with the run, the stage and the key.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrcl.entries import DamagedEntry, break_seal
from asrcl.exceptions import InputError
from asrcl.files import read_json, reading
from asrcl.scoring.counting.errors import shortened
from asrcl.scoring.results.run_result import RunResult

RATES = ("old", "new", "average", "rise")


@dataclass(frozen=True)
class Layer:
    """One layer in one stage.

    Attributes:
        name: of the layer or parameter.
        update: norm of the fine-tuning update.
        merged: norm of what was kept of it; None where unknown.
        increase: loss increase on old domains that the curvature predicts for the fine-tuned weights; None where unknown.
        merged_increase: likewise for the merged weights.
    """

    name: str
    update: float
    merged: float | None = None
    increase: float | None = None
    merged_increase: float | None = None


@dataclass(frozen=True)
class Block:
    """One curvature block, as in the card of a curvature file; `spectrum` is largest first, empty where not kept."""

    name: str
    kind: str
    weights: int
    share: float
    mean: float
    largest: float
    effective_rank: float
    spectrum: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """What sort of curvature a stage left behind.

    Attributes:
        structure: "kron", "ekfac", "diagonal", "dense".
        covered: share of the weights that have a block, 0 to 1; nan where unknown.
    """

    structure: str
    covered: float


@dataclass(frozen=True)
class KeptDomain:
    """A domain that a stage was to keep; dev error rates in percent.

    Attributes:
        name: of the domain.
        budget: how far its rate might rise, as it was typed.
        baseline: that its budget counts from.
        limit: the highest rate within the budget.
        whole: rate of the whole merge; nan where it was not measured.
        taken: rate of what was taken of it.
    """

    name: str
    budget: str
    baseline: float
    limit: float
    whole: float
    taken: float


@dataclass(frozen=True)
class Kept:
    """What a stage took of its merge to keep named domains.

    Attributes:
        strength: from 0, the old weights, to 1, the whole merge.
        evaluations: strengths that were tried.
        domains: what was to be kept.
        learned: dev error rates of the learned domain, of the whole merge and of what was taken; nan where not kept.
    """

    strength: float
    evaluations: int
    domains: list[KeptDomain]
    learned: tuple[float, float]


@dataclass(frozen=True)
class Sweep:
    """Settings of one method tried on dev data.

    Attributes:
        method: its id.
        seeds: of the runs.
        hyper_parameters: their names.
        rows: per setting the hyper-parameters and `old`, `new`, `average`: dev error rates in percent, best first.
        protocol: after which adaptations they were measured: "first" or "sequence".
        domains: those of the measurement, in order; empty where not kept.
        space: the values that could be drawn for each of them; empty where not kept.
        rise: what the first domain's error rate was allowed to rise by, in points; None for anything.
    """

    method: str
    seeds: list[int]
    hyper_parameters: list[str]
    rows: list[dict[str, Any]]
    protocol: str = "first"
    domains: list[str] = field(default_factory=list)
    space: dict[str, list[Any]] = field(default_factory=dict)
    rise: float | None = None


def training(run: RunResult, stage: int) -> dict[str, list[float]]:
    """Loss per epoch under "train_loss" and "dev_loss"; empty where not kept."""
    epochs = _list(run, stage, "training")
    names = ("train_loss", "dev_loss")
    found = {name: [_number(run, stage, f"training[{n}].{name}", e.get(name)) for n, e in enumerate(epochs)] for name in names}
    return {name: values for name, values in found.items() if any(not math.isnan(value) for value in values)}


def norms(run: RunResult, stage: int) -> tuple[float, float]:
    """Norm of the fine-tuning update and of the merged one, over all weights; nan where not kept."""
    record = _record(run, stage)
    first, second = (_number(run, stage, key, record.get(key)) for key in ("update_norm", "merged_update_norm"))
    return first, second


def measured(run: RunResult, stage: int) -> tuple[float, float]:
    """Increase of the loss on the domain before, as measured, after fine-tuning and after merging; nan where not kept."""
    record = _record(run, stage)
    first, second = (_number(run, stage, key, record.get(key)) for key in ("measured_increase", "merged_measured_increase"))
    return first, second


def predicted_on(run: RunResult, stage: int) -> str:
    """Name of the domain whose loss increase is predicted and measured in a stage; "" where not kept."""
    name = _record(run, stage).get("predicted_on") or ""
    if not isinstance(name, str):
        raise _unreadable(run, stage, "predicted_on", f"is {shortened(repr(name))}, expected the name of a domain")
    return name


def layers(run: RunResult, stage: int) -> list[Layer]:
    """Per layer, in the run's order; empty where not kept."""
    found = []
    for index, entry in enumerate(_list(run, stage, "layers")):
        where = f"layers[{index}]"
        update = _number(run, stage, f"{where}.update_norm", entry.get("update_norm"))
        if not isinstance(entry.get("name"), str) or math.isnan(update):
            raise _unreadable(run, stage, where, "needs a name and an update_norm")
        keys = ("merged_update_norm", "predicted_increase", "merged_predicted_increase")
        values = [_number(run, stage, f"{where}.{key}", entry.get(key)) for key in keys]
        found.append(Layer(entry["name"], update, *(None if math.isnan(value) else value for value in values)))
    return found


def blocks(run: RunResult, stage: int) -> list[Block]:
    """Of the curvature that was estimated in a stage, largest share first; empty where not kept."""
    entries = _card(run, stage).get("blocks", [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise _unreadable(run, stage, "curvature", "needs `blocks`, a list of objects")
    return sorted((_block(run, stage, n, entry) for n, entry in enumerate(entries)), key=lambda block: -block.share)


def kind(run: RunResult, stage: int) -> Kind | None:
    """Of the curvature that was estimated in a stage; None where not kept."""
    card = _card(run, stage)
    facts = card.get("facts") or {}
    structure = facts.get("structure") or "" if isinstance(facts, Mapping) else None
    if not isinstance(structure, str):
        raise _unreadable(run, stage, "curvature.facts", "needs `structure`, a word")
    covered, weights = (_number(run, stage, f"curvature.{key}", card.get(key)) for key in ("covered", "weights"))
    return Kind(structure, covered / weights if weights else math.nan) if structure else None


def kept(run: RunResult, stage: int) -> Kept | None:
    """What a stage took to keep named domains; None where it was to keep none, or the method has nothing to choose."""
    record = _record(run, stage).get("keep")
    if not record or (isinstance(record, Mapping) and "left_out" in record):
        return None
    with reading(f"{run.folder}/results.json: stages[{stage}].keep", "see docs/keep.md, or run it again"):
        tried = {float(entry["strength"]): entry["domains"] for entry in record["tried"]}
        taken, whole = tried[float(record["strength"])], tried.get(1.0, {})
        domains = [
            KeptDomain(
                name,
                str(one["budget"]),
                float(one["baseline"]),
                float(one["limit"]),
                float(whole.get(name, {}).get("rate", math.nan)),
                float(taken[name]["rate"]),
            )
            for name, one in record["domains"].items()
        ]
        learned = record.get("learned") or {}
        rates = float(learned.get("whole", math.nan)), float(learned.get("taken", math.nan))
        return Kept(float(record["strength"]), len(tried), domains, rates)


def sweeps(runs: Sequence[RunResult], folders: Sequence[str | os.PathLike[str]]) -> dict[str, list[Sweep]]:
    """Per scenario, the sweeps that runs carry in `validation.sweep` and those in `tuning/*.json` of their output folder.

    The output folder of a scenario is the one that holds <method>/<seed>/results.json, or one of `folders`.
    """
    found: dict[str, list[Sweep]] = {}
    for run in runs:
        if "sweep" in run.validation:
            where = f"{run.folder}: validation.sweep"
            found.setdefault(run.scenario, []).append(_sweep(run.validation["sweep"], run.method, where))
    homes = {run.folder.parent.parent: run.scenario for run in runs if run.folder is not None}
    only = {run.scenario for run in runs}
    if len(only) == 1:
        homes = {Path(folder): next(iter(only)) for folder in folders if Path(folder).is_dir()} | homes
    for path, scenario in {p.resolve(): name for home, name in homes.items() for p in sorted(home.glob("tuning/*.json"))}.items():
        found.setdefault(scenario, []).append(_sweep(_searched(path), path.stem, str(path)))
    return found


def _searched(path: Path) -> Any:
    """What `asrcl tune` wrote, if it still is that; a file of another program, which has no seal, as it is."""
    content = read_json(path)
    if isinstance(content, dict):
        try:
            break_seal(path, content)
        except DamagedEntry as error:
            raise InputError(f"{error}; run asrcl tune again") from error
    return content


def _sweep(content: Any, method: str, where: str) -> Sweep:
    with reading(where, "run asrcl tune again"):
        return _parse_sweep(content, method, where)


def _parse_sweep(content: Any, method: str, where: str) -> Sweep:
    rows = content.get("rows") if isinstance(content, Mapping) else None
    if not isinstance(rows, list) or not rows or not all(_is_setting(row) for row in rows):
        raise InputError(f"{where}: needs `rows`, each with numbers `old` and `new`; run asrcl tune again")
    hyper_parameters = [name for name in rows[0] if name not in RATES]
    seeds = [seed for seed in content.get("seeds", []) if isinstance(seed, int)]
    protocol, domains = str(content.get("protocol", "first")), list(map(str, content.get("domains") or []))
    rise = None if content.get("rise") is None else float(content["rise"])
    space = {str(parameter): list(values) for parameter, values in (content.get("space") or {}).items()}
    return Sweep(str(content.get("method", method)), seeds, hyper_parameters, rows, protocol, domains, space, rise)


def _is_setting(row: Any) -> bool:
    """Whether a row has its rates; a number that is too long to be drawn is an OverflowError."""
    if not isinstance(row, Mapping):
        return False
    for value in row.values():
        if isinstance(value, int):
            float(value)
    return all(isinstance(row.get(name, None if name in ("old", "new") else 0.0), int | float) for name in RATES)


def _block(run: RunResult, stage: int, index: int, entry: Mapping[str, Any]) -> Block:
    where = f"curvature.blocks[{index}]"
    names = ("weights", "share", "mean", "largest", "effective_rank")
    values = {name: _number(run, stage, f"{where}.{name}", entry.get(name)) for name in names}
    if not isinstance(entry.get("name"), str) or any(math.isnan(value) for value in values.values()):
        raise _unreadable(run, stage, where, f"needs name, {', '.join(names)}")
    spectrum = entry.get("spectrum") or []
    if not isinstance(spectrum, list):
        raise _unreadable(run, stage, f"{where}.spectrum", "must be a list of eigenvalues")
    numbers = [_number(run, stage, f"{where}.spectrum[{n}]", value) for n, value in enumerate(spectrum)]
    weights = int(values.pop("weights"))
    return Block(entry["name"], str(entry.get("kind", "")), weights, **values, spectrum=numbers)


def _record(run: RunResult, stage: int) -> Mapping[str, Any]:
    """What the run says of a stage; empty if nothing."""
    record = run.stages[stage] if stage < len(run.stages) else {}
    if not isinstance(record, Mapping):
        raise _unreadable(run, stage, "", "must be an object")
    return record


def _card(run: RunResult, stage: int) -> Mapping[str, Any]:
    """Of the curvature that was estimated in a stage; empty if there is none."""
    card = _record(run, stage).get("curvature") or {}
    if not isinstance(card, Mapping):
        raise _unreadable(run, stage, "curvature", "needs `blocks`, a list of objects")
    return card


def _list(run: RunResult, stage: int, key: str) -> list[Mapping[str, Any]]:
    entries = _record(run, stage).get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise _unreadable(run, stage, key, "must be a list of objects")
    return entries


def _number(run: RunResult, stage: int, key: str, value: Any) -> float:
    """A number; nan for None."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unreadable(run, stage, key, f"is {shortened(repr(value))}, expected a number")
    try:
        return float(value)
    except OverflowError as error:
        raise _unreadable(run, stage, key, "has too many digits") from error


def _unreadable(run: RunResult, stage: int, key: str, reason: str) -> InputError:
    place = f"{run.folder}/results.json: stages[{stage}].{key}".removesuffix(".")
    return InputError(f"{place} {reason}; see docs/results.md, or run it again")


def parameters(run: RunResult) -> tuple[float, float]:
    """How many numbers the models of all domains took after the first stage and after the last; nan where not kept."""
    stages = (0, len(run.domains) - 1)
    first, last = (_number(run, stage, "parameters", _record(run, stage).get("parameters")) for stage in stages)
    return first, last


def kept_bytes(run: RunResult) -> float:
    """Bytes that the method handed on to the last stage beside the weights; nan where not kept."""
    stage = max(len(run.domains) - 2, 0)
    return _number(run, stage, "kept_bytes", _record(run, stage).get("kept_bytes"))


def selected(run: RunResult, stage: int) -> dict[str, dict[str, float]]:
    """Per domain or probe, how many of its items the model of each domain decoded; empty for a method that does not choose."""
    found = _record(run, stage).get("selected") or {}
    if not isinstance(found, Mapping) or not all(isinstance(counts, Mapping) for counts in found.values()):
        raise _unreadable(run, stage, "selected", "must be an object of objects")
    return {
        str(domain): {str(name): _number(run, stage, f"selected.{domain}.{name}", value) for name, value in counts.items()}
        for domain, counts in found.items()
    }


def run_seconds(run: RunResult) -> float | None:
    """Everything in the run's costs.json whose name ends in `_seconds`, added up; None without such a file."""
    found = _seconds(run)
    return sum(found.values()) if found else None


def learning_seconds(run: RunResult) -> float:
    """What it took to learn: the same without decoding and diagnostics; nan without such a file."""
    found = _seconds(run)
    return math.fsum(value for name, value in found.items() if name not in _NO_LEARNING) if found else math.nan


_NO_LEARNING = ("errors_seconds", "diagnostics_seconds")


def _seconds(run: RunResult) -> dict[str, float]:
    """Per name the seconds of all stages; empty without costs.json."""
    path = (run.folder or Path()) / "costs.json"
    if run.folder is None or not path.is_file():
        return {}
    total: dict[str, float] = {}
    with reading(path, "delete it and run its stages again"):
        costs = read_json(path)
        for stage in costs if isinstance(costs, list) else []:
            for name, value in stage.items() if isinstance(stage, Mapping) else ():
                if name.endswith("_seconds") and isinstance(value, int | float):
                    total[name] = total.get(name, 0.0) + float(value)
    return total
