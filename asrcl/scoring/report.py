"""RESULTS.md with its pictures, and the table for the terminal: views of `summary`, without arithmetic."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from asrcl.files import write_text
from asrcl.scoring.metrics import METRICS
from asrcl.scoring.plots import draw_heatmaps, draw_stages
from asrcl.scoring.results import RunResult
from asrcl.scoring.summary import REFERENCES, MethodSummary, ScenarioSummary, summarise

NONE: Final = "–"
SHOWN: Final = ("avg", "word_weighted_avg", "bwt", "fwt", "cov", "forgetting", "intransigence")

# A cell of the big table: what is printed, and the value by which the best of a column is found (or nan).
Cell = tuple[str, float]


def write_report(
    runs: list[RunResult],
    folder: str | os.PathLike[str],
    reference_method: str = "ihr",
    labels: Mapping[str, str] | None = None,
) -> Path:
    """Write RESULTS.md, heatmap.png and wer_per_stage.png; several scenarios have a pair of pictures each.

    Args:
        runs: results of any number of scenarios, methods and seeds.
        folder: where to write.
        reference_method: id of the method that is tested against all others.
        labels: method id to the name to print; the usual methods have one.

    Returns:
        The path of RESULTS.md.

    Raises:
        InputError: the runs do not fit together, a file of items is missing, or the folder cannot be written.
    """
    scenarios, target = summarise(runs, reference_method, labels), Path(folder)
    parts = ["# Results\n"]
    for summary in scenarios:
        tail = f"_{re.sub(r'[^A-Za-z0-9.-]+', '-', summary.scenario)}" if len(scenarios) > 1 else ""
        heatmap, stages = f"heatmap{tail}.png", f"wer_per_stage{tail}.png"
        draw_heatmaps(summary, target / heatmap)
        draw_stages(summary, target / stages)
        parts.append(_scenario_section(summary, reference_method, heatmap, stages))
    tests = sum(method.comparison is not None for summary in scenarios for method in summary.methods)
    parts.append(_meaning_section(scenarios, tests))
    parts.append(_origin_section(runs))
    write_text(target / "RESULTS.md", "\n".join(parts))
    return target / "RESULTS.md"


def terminal_table(
    runs: list[RunResult], reference_method: str = "ihr", labels: Mapping[str, str] | None = None
) -> str:
    """The main table of every scenario as text for a terminal or a log file, without colour codes.

    Raises:
        InputError: as `write_report`.
    """
    stream = io.StringIO()
    console = Console(file=stream, width=240, force_terminal=False, color_system=None)
    for summary in summarise(runs, reference_method, labels):
        header, rows = _main_table(summary, reference_method)
        title = f"{summary.scenario}: {summary.rate_name} (%) after the last stage"
        table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(text for text, _ in row))
        console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _scenario_section(summary: ScenarioSummary, reference: str, heatmap: str, stages: str) -> str:
    header, rows = _main_table(summary, reference)
    better = {METRICS[key].symbol: METRICS[key].better for key in SHOWN}
    parts = [
        f"## {summary.scenario}\n",
        _caption(summary, reference),
        _markdown(header, _bold_best(header, rows, summary.methods, better)),
        _tests(summary, reference),
        f"![{summary.rate_name} on each domain after each stage]({heatmap})\n",
        f"![mean {summary.rate_name} over the domains seen so far]({stages})\n",
        "### Matrices\n",
        f"{summary.rate_name} in %, mean over seeds; row: after this stage, column: on this domain.\n",
        *(_matrix(summary, method) for method in summary.methods),
    ]
    return "\n".join(parts)


def _caption(summary: ScenarioSummary, reference: str) -> str:
    sizes = zip(summary.domains, summary.runs[0].lengths, strict=True)
    return (
        f"Domains in order: {' → '.join(summary.domains)}. Test sets, in {summary.unit}s: "
        f"{', '.join(f'{domain} {length}' for domain, length in sizes)}.\n\n"
        f"{summary.rate_name} in % on each domain after the last stage, mean over seeds (AVG with the "
        "standard deviation over seeds). CI95 of AVG resamples speakers, jointly over domains and seeds. "
        "Bold: best of its column, without the first model, separate models and joint training. "
        f"p ({reference}): Wilcoxon test against it, Holm-corrected; + where {reference} is better.\n"
    )


def _main_table(summary: ScenarioSummary, reference: str) -> tuple[list[str], list[list[Cell]]]:
    """Header and cells of the table method x domains and metrics."""
    characters = any(not math.isnan(method.mean("cer_avg")) for method in summary.methods)
    shown = [METRICS[key].symbol for key in SHOWN]
    header = ["Method", "seeds", *summary.domains, shown[0], "CI95", *shown[1:]]
    header += (["CER"] if characters and summary.unit == "word" else []) + [f"p ({reference})"]
    return header, [_main_row(method, reference, "CER" in header) for method in summary.methods]


def _main_row(method: MethodSummary, reference: str, characters: bool) -> list[Cell]:
    nan = float("nan")
    average, deviation, interval = method.mean("avg"), method.deviation("avg"), method.interval
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    known = interval is not None and not math.isnan(interval.low)
    row: list[Cell] = [(method.label, nan), (str(len(method.seeds)), nan)]
    row += [(_number(value), value) for value in method.final]
    row.append((_number(average) + spread, average))
    row.append((f"{interval.low:.2f}–{interval.high:.2f}" if known and interval else NONE, nan))
    row += [(_number(method.mean(key), key), method.mean(key)) for key in SHOWN[1:]]
    if characters:
        row.append((_number(method.mean("cer_avg")), method.mean("cer_avg")))
    row.append(("reference" if method.method == reference else _signed_p(method), nan))
    return row


def _bold_best(
    header: list[str], rows: list[list[Cell]], methods: list[MethodSummary], better: Mapping[str, str]
) -> list[list[str]]:
    """Texts of the cells, the best value of each column in bold; `REFERENCES` do not compete."""
    texts = [[text for text, _ in row] for row in rows]
    competing = [index for index, method in enumerate(methods) if method.method not in REFERENCES]
    for column, name in enumerate(header):
        sign = -1.0 if better.get(name) == "higher" else 1.0
        values = {index: sign * round(rows[index][column][1], 2) for index in competing}
        values = {index: value for index, value in values.items() if not math.isnan(value)}
        for index, value in values.items():
            if len(values) > 1 and value == min(values.values()):
                texts[index][column] = f"**{texts[index][column]}**"
    return texts


def _tests(summary: ScenarioSummary, reference: str) -> str:
    """The table of signed-rank tests, or nothing if there are none."""
    tested = [(method, method.comparison) for method in summary.methods if method.comparison]
    if not tested:
        return ""
    name = next(method.label for method in summary.methods if method.method == reference)
    noun = "utterances" if summary.unit in ("word", "character") else "items"
    header = [f"{name} against", "p", "p (Holm)", f"{name} is", f"{noun} that differ", "of"]
    rows = [
        [
            method.label,
            _p(test.p_value),
            _p(method.p_holm),
            _verdict(method),
            str(test.different),
            str(test.items),
        ]
        for method, test in tested
    ]
    caption = "Wilcoxon signed-rank test on errors per item, all domains after the last stage:"
    return f"{caption}\n\n{_markdown(header, rows)}"


def _verdict(method: MethodSummary) -> str:
    """What the test allows to be said of the reference against `method`."""
    if method.comparison is None:
        return NONE
    direction = method.comparison.direction
    return direction if method.p_holm < 0.05 else f"not distinguishable ({direction})"


def _matrix(summary: ScenarioSummary, method: MethodSummary) -> str:
    header = [method.label, *summary.domains]
    rows = [
        [f"{stage + 1} {name}", *(_number(value) for value in values)]
        for stage, (name, values) in enumerate(zip(summary.domains, method.matrix, strict=True))
    ]
    return _markdown(header, rows)


def _meaning_section(scenarios: list[ScenarioSummary], tests: int) -> str:
    header = ["", "meaning", "definition", "better", "unit", "source"]
    rows = [
        [f"{metric.symbol}", metric.name, f"`{metric.formula}`", metric.better, metric.unit, metric.source]
        for metric in (METRICS[key] for key in SHOWN)
    ]
    notes = [
        "R[i,j] is the error rate on domain j after stage i; T is the number of domains. COV needs the "
        "methods `ft` and `separate`, I needs `joint`, with the same scenario and seed. FWT takes R[1,k] "
        "from the `initial` run where a run has not measured it. Separate models: each domain by its own.",
        "Each p value is of a two-sided Wilcoxon signed-rank test on errors per item; the errors of several "
        "seeds are added per item, so that an item enters once. Holm's correction is over all tests of this "
        f"page ({tests}). CI95 is a percentile bootstrap over speakers (2000 resamples).",
    ]
    return "\n".join(
        ["## What the numbers mean\n", _markdown(header, rows), *(f"{note}\n" for note in notes)]
    )


def _origin_section(runs: Sequence[RunResult]) -> str:
    """Commands and environments, each written once with the runs it belongs to."""
    commands = _grouped((run.command or "# (not recorded)", run.name) for run in runs)
    listing = "\n".join(f"# {', '.join(names)}\n{command}" for command, names in commands)
    parts = ["## How they were made\n", f"### Commands\n\n```\n{listing}\n```\n", "### Environment\n"]
    for environment, names in _grouped((_dump(run.environment), run.name) for run in runs):
        rows = [
            [key, value if isinstance(value, str) else _dump(value)]
            for key, value in json.loads(environment).items()
        ]
        table = _markdown(["", ""], rows) if rows else "not recorded\n"
        parts.append(f"{'All runs' if len(names) == len(runs) else ', '.join(names)}:\n\n{table}")
    return "\n".join(parts)


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for key, name in pairs:
        groups.setdefault(key, []).append(name)
    return list(groups.items())


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _number(value: float, metric: str = "avg") -> str:
    """Two decimals, differences with their sign, COV with one; a dash for nan."""
    if math.isnan(value):
        return NONE
    if metric == "cov":
        return f"{value:.1f}"
    return f"{value:+.2f}" if METRICS[metric].unit == "points" else f"{value:.2f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return NONE
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _signed_p(method: MethodSummary) -> str:
    """The corrected p value and a sign: "+" when the reference is better."""
    direction = method.comparison.direction if method.comparison else ""
    return _p(method.p_holm) + {"better": " +", "worse": " −", "equal": " ="}.get(direction, "")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: first column left, the others right if they hold numbers."""
    numeric = [
        all(re.match(r"[*<+−–\d-]|reference", row[column]) for row in rows) for column in range(len(header))
    ]
    rule = ["---:" if right and column else "---" for column, right in enumerate(numeric)]
    lines = [list(header), rule, *map(list, rows)]
    cells = [[re.sub(r"\s*\n\s*", " ", cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)
