"""What every method was given and what it took: how its hyper-parameters were chosen, their values, time, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from asrcl.scoring.display.numbers import NONE
from asrcl.scoring.display.table import Cell, Table
from asrcl.scoring.report.orders import slowdown
from asrcl.scoring.report.step_tables import StepTable
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, mean_known
from asrcl.scoring.results.run_result import NO_OPTIONS, RunResult
from asrcl.scoring.results.stage_records import kept_bytes, selected

_COLUMNS: Final = ("train.adapt.learning_rate", "train.adapt.epochs")
_CAPTION: Final = (
    "Chosen: how hyper-parameters were found, as `methods.NAME.chosen` of the configuration says: the protocol of `asrcl tune` "
    "(first: after the first adaptation; sequence: after all of them; with ≤: of the settings that raise the first domain's dev "
    "error rate by no more than so many points) and settings tried; as NAME: those of another; changed: not all is as it was "
    "chosen; a dash: defaults. Options: those that are searched, of the method and of the merge behind it. Time: seconds of "
    "learning over those of plain fine-tuning with the same seeds, at what learning rate and epochs each has. Kept: what a "
    "method hands on from domain to domain beside the weights (curvature, a memory, other domains' additions or models), in MB "
    "after the last but one stage."
)


def setting_tables(summary: ScenarioSummary) -> list[StepTable]:
    """Hyper-parameters and costs, and which models decoded what; without what no run tells of."""
    return [*_settings(summary), *_selections(summary)]


def _selections(summary: ScenarioSummary) -> list[StepTable]:
    """Of methods that choose between models, the share of each domain's items that every model decoded after the last stage."""
    rows, keys, last = [], [], len(summary.domains) - 1
    for method in summary.methods:
        found = [selected(run, last) for run in summary.runs_of(method.method)]
        for domain in dict.fromkeys(domain for run in found for domain in run):
            counts = {name: math.fsum(run.get(domain, {}).get(name, 0.0) for run in found) for name in summary.domains}
            every = math.fsum(counts.values())
            shares = [100 * count / every if every else math.nan for count in counts.values()]
            cells = [Cell(NONE if math.isnan(share) else f"{share:.0f}", share) for share in shares]
            rows.append([Cell(method.label), Cell(domain), *cells])
            keys.append(method.method)
    caption = (
        "Share in % of the items of a row's domain or probe that the model of a column's domain decoded, being the surest of "
        "what it recognised (`select`, docs/selection.md); after the last stage, all seeds together."
    )
    table = Table(["Method", "items of", *(f"by {name}" for name in summary.domains)], rows, keys)
    return [StepTable("Which model decoded", caption, table)] if rows else []


def _settings(summary: ScenarioSummary) -> list[StepTable]:
    """The table of hyper-parameters, where runs say with which configuration they were made."""
    rows, keys = [], []
    for method in summary.methods:
        runs = summary.runs_of(method.method)
        if all("methods" in run.config for run in runs):
            rows.append(_row(summary, method, runs))
            keys.append(method.method)
    if not rows:
        return []
    header = ["Method", "chosen", "learning rate", "epochs", "options", "time", "kept"]
    return [StepTable("Hyper-parameters and costs", _CAPTION, Table(header, rows, keys))]


def _row(summary: ScenarioSummary, method: MethodSummary, runs: Sequence[RunResult]) -> list[Cell]:
    trained = method.role != "initial"
    time = float(mean_known([np.array(slowdown(summary, run)) for run in runs]))
    kept = float(mean_known([np.array(kept_bytes(run)) for run in runs]))
    return [
        Cell(method.label),
        Cell(_one([str(own.get("chosen") or NONE) for own in map(_own, runs)])),
        *(Cell(_one([_column(_at(run, name)) if trained else NONE for run in runs])) for name in _COLUMNS),
        Cell(_one(list(map(_options, runs)))),
        Cell(NONE if math.isnan(time) or not trained else f"{time:.2f}", time),
        Cell(NONE if math.isnan(kept) else f"{kept / 1e6:.1f}", kept),
    ]


def _column(value: Any) -> str:
    return NONE if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)


def _one(found: Sequence[str]) -> str:
    """What all seeds say; otherwise everything that is said."""
    return " or ".join(dict.fromkeys(found))


def _own(run: RunResult) -> dict[str, Any]:
    """The options of the run's method in its configuration; empty where it was run under another name."""
    found = run.config["methods"].get(run.method)
    return dict(found) if isinstance(found, Mapping) else {}


def _options(run: RunResult) -> str:
    """Those options of the run's method that its search space names, or all where it has none; and its merge."""
    own = {name: value for name, value in _own(run).items() if name not in NO_OPTIONS}
    merge = own.pop("merge", None)
    space = _at(run, f"search.methods.{run.method}")
    if isinstance(space, Mapping):
        own = {name: value for name, value in own.items() if name in space}
        of_run = [name for name in space if "." in name and name not in _COLUMNS and not name.startswith("merge.")]
        own |= {name.rpartition(".")[2]: value for name in of_run if (value := _at(run, name)) is not None}
    return ", ".join([*(f"{name}={_written(name, value)}" for name, value in own.items()), *_merge(merge)]) or NONE


def _at(run: RunResult, name: str) -> Any:
    """What the configuration has under a name with dots; None for nothing."""
    node: Any = run.config
    for key in name.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _merge(merge: Any) -> Iterator[str]:
    if isinstance(merge, Mapping):
        rest = ", ".join(f"{name}={_written(name, value)}" for name, value in merge.items() if name != "method")
        yield f"merge: {merge.get('method')}" + (f" ({rest})" if rest else "")
    elif merge is not None:
        yield f"merge: {merge}"


def _written(name: str, value: Any) -> str:
    if value is None:
        return "1/t" if name == "strength" else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
