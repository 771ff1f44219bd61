"""RESULTS.md with its pictures, tables as LaTeX and CSV, figures as PDF, and the table for the terminal.

Views of `summary`, without arithmetic. `asrcl.scoring.report.html` writes report.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from asrcl.files import write_text
from asrcl.scoring.display.table import latex, markdown, markdown_text, plain
from asrcl.scoring.display.terminal import aligned_table
from asrcl.scoring.report.orders import OrderSummary, summarise_orders
from asrcl.scoring.report.plots import draw_heatmaps, draw_pareto, draw_stages
from asrcl.scoring.report.step_tables import step_tables
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.report.tables import (
    SHOWN,
    definitions,
    main_csv,
    main_table,
    matrices_csv,
    matrix_table,
    metrics_csv,
    metrics_table,
    orders_table,
    probe_caption,
    probe_sizes,
    probe_tables,
    significance_table,
    unmeasured,
)
from asrcl.scoring.results.provenance import grouped, plain_json
from asrcl.scoring.results.run_result import RunResult
from asrcl.visible import visible


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
    return write_results(summarise(runs, reference_method, labels), folder)


def write_results(scenarios: Sequence[ScenarioSummary], folder: str | os.PathLike[str]) -> Path:
    """`write_report` of runs that have been summarised."""
    target, runs = Path(folder), [run for summary in scenarios for run in summary.runs]
    parts = ["# Results\n"]
    for summary in scenarios:
        tail = _tail(summary, scenarios)
        heatmap, stages = f"heatmap{tail}.png", f"wer_per_stage{tail}.png"
        draw_heatmaps(summary, target / heatmap)
        draw_stages(summary, target / stages)
        parts.append(_scenario_section(summary, heatmap, stages))
    orders = summarise_orders(scenarios)
    parts += [_orders_section(orders)] if orders else []
    tests = sum(method.comparison is not None for summary in scenarios for method in summary.methods)
    parts.append(_meaning_section(tests, orders))
    parts.append(_origin_section(runs))
    write_text(target / "RESULTS.md", "\n".join(parts))
    return target / "RESULTS.md"


def write_tables(scenarios: Sequence[ScenarioSummary], folder: str | os.PathLike[str]) -> list[Path]:
    """Write the tables of every scenario for papers and spreadsheets; returns their paths.

    `main.tex`, `tests.tex` (booktabs, the best in bold), `main.csv` (all digits), `matrices.csv` (one row per run,
    stage and domain), `metrics.csv` (what the columns mean, with sources) and, over several orders of the domains, `orders.tex`.
    """
    target, files = Path(folder), {}
    for summary in scenarios:
        tail, name = _tail(summary, scenarios), f"{summary.scenario}: {summary.rate_name} (%) after the last stage"
        files[f"main{tail}.tex"] = latex(main_table(summary), name, f"tab:main{tail}", definitions(sources=True))
        tests = significance_table(summary)
        if tests:
            files[f"tests{tail}.tex"] = latex(tests, f"{summary.scenario}: significance", f"tab:tests{tail}")
        files[f"main{tail}.csv"] = main_csv(summary)
        files[f"matrices{tail}.csv"] = matrices_csv(summary)
    orders = summarise_orders(scenarios)
    if orders:
        caption, notes = "Sensitivity to the order of domains", definitions(("aopd", "mopd"), sources=True)
        files["orders.tex"] = latex(orders_table(orders), caption, "tab:orders", notes)
    files["metrics.csv"] = metrics_csv([*SHOWN, "accuracy", *(("aopd", "mopd") if orders else ())])
    for file, text in files.items():
        write_text(target / file, text)
    return [target / file for file in files]


def write_figures(
    scenarios: Sequence[ScenarioSummary], folder: str | os.PathLike[str], formats: Sequence[str] = ("pdf",)
) -> list[Path]:
    """Draw heat maps, error rates per stage and old against new domains for papers; returns the paths.

    Args:
        scenarios: what to draw.
        folder: where.
        formats: "pdf", "png", "svg".

    Raises:
        InputError: matplotlib is not installed, or it does not know the format.
    """
    paths = []
    for summary in scenarios:
        for name, draw in (("heatmap", draw_heatmaps), ("wer_per_stage", draw_stages), ("pareto", draw_pareto)):
            for kind in formats:
                path = Path(folder) / f"{name}{_tail(summary, scenarios)}.{kind}"
                draw(summary, path)
                paths.append(path)
    return paths


def _tail(summary: ScenarioSummary, scenarios: Sequence[ScenarioSummary]) -> str:
    """What tells the files of several scenarios apart."""
    return f"_{re.sub(r'[^A-Za-z0-9.-]+', '-', summary.scenario)}" if len(scenarios) > 1 else ""


def terminal_table(
    runs: list[RunResult], reference_method: str = "ihr", labels: Mapping[str, str] | None = None
) -> str:
    """The main table of every scenario as text for a terminal or a log file, without colour codes.

    Raises:
        InputError: as `write_report`.
    """
    return main_tables(summarise(runs, reference_method, labels))


def main_tables(scenarios: Sequence[ScenarioSummary]) -> str:
    """`terminal_table` of runs that have been summarised."""
    parts = []
    for summary in scenarios:
        content = main_table(summary)
        title = f"{summary.scenario}: {summary.rate_name} (%) after the last stage"
        parts.append(aligned_table(content.header, content.texts(), title=title))
    notes = ["R[i,j]: rate on domain j after stage i", *definitions(sources=True)]
    return "".join([*parts, *(f"{note}\n" for note in notes)])


def _scenario_section(summary: ScenarioSummary, heatmap: str, stages: str) -> str:
    parts = [
        f"## {markdown_text(summary.scenario)}\n",
        _caption(summary),
        markdown(main_table(summary)),
        _tests(summary),
        _probes(summary),
        f"![{summary.rate_name} on each domain after each stage]({heatmap})\n",
        f"![mean {summary.rate_name} over the domains seen so far]({stages})\n",
        *(f"### {step.name}\n\n{step.caption}\n\n{markdown(step.table)}" for step in step_tables(summary)),
        "### Matrices\n",
        f"{summary.rate_name} in %, mean over seeds; row: after this stage, column: on this domain.\n",
        *(markdown(matrix_table(summary, method)) for method in summary.methods),
    ]
    return "\n".join(parts)


def _caption(summary: ScenarioSummary) -> str:
    sizes = zip(summary.domains, summary.runs[0].lengths, strict=True)
    reference = summary.reference
    return (
        f"Domains in order: {markdown_text(' → '.join(summary.domains))}. Test sets, in {summary.unit}s: "
        f"{markdown_text(', '.join(f'{domain} {length}' for domain, length in [*sizes, *probe_sizes(summary)]))}.\n\n"
        f"{summary.rate_name} in % on each domain after the last stage, mean over seeds (AVG with the "
        "standard deviation over seeds). CI95 of AVG resamples speakers, jointly over domains and seeds. "
        "Bold: best of its column, without the initial model and oracles (separate models, joint training). "
        f"p ({reference}): Wilcoxon test against it, Holm-corrected; + where {reference} is better.\n"
        + (f"\n{markdown_text(note)}\n" if (note := unmeasured(summary)) else "")
    )


def _probes(summary: ScenarioSummary) -> str:
    tables = probe_tables(summary)
    return "\n".join([f"{probe_caption(summary)}\n", *map(markdown, tables)]) if tables else ""


def _tests(summary: ScenarioSummary) -> str:
    """The table of signed-rank tests, or nothing if there are none."""
    table = significance_table(summary)
    if table is None:
        return ""
    caption = (
        "Wilcoxon signed-rank test on errors per item, all domains after the last stage; ΔAVG in points (negative: "
        "lower errors), its interval and P(better) by paired bootstrap over speakers:"
    )
    return f"{caption}\n\n{markdown(table)}"


def _orders_section(orders: Sequence[OrderSummary]) -> str:
    names = dict.fromkeys(name for order in orders for name in order.orders)
    caption = f"OPD: spread of a domain's final error rate over the orders, in points. Orders: {', '.join(names)}."
    return f"## Order of the domains\n\n{caption}\n\n{markdown(orders_table(orders))}"


def _meaning_section(tests: int, orders: Sequence[OrderSummary]) -> str:
    keys = (*SHOWN, *(("aopd", "mopd") if orders else ()))
    notes = [
        "R[i,j] is the error rate on domain j after stage i; T is the number of domains. Separate models: each "
        "domain by its own.",
        "Each p value is of a two-sided Wilcoxon signed-rank test on errors per item; the errors of several "
        "seeds are added per item, so that an item enters once. Holm's correction is over all tests of this "
        f"page ({tests}). CI95 is a percentile bootstrap over speakers (2000 resamples).",
    ]
    return "\n".join(["## What the numbers mean\n", markdown(metrics_table(keys)), *(f"{note}\n" for note in notes)])


def _origin_section(runs: Sequence[RunResult]) -> str:
    """Commands and environments, each written once with the runs it belongs to."""
    commands = grouped((run.command or "# (not recorded)", run.name) for run in runs)
    listing = "\n".join(f"# {visible(', '.join(names))}\n{visible(command, keep=chr(10))}" for command, names in commands)
    parts = ["## How they were made\n", f"### Commands\n\n```\n{listing}\n```\n", "### Environment\n"]
    for environment, names in grouped((run.environment, run.name) for run in runs):
        rows = [[key, plain_json(value)] for key, value in environment.items()]
        table = markdown(plain(["", ""], rows)) if rows else "not recorded\n"
        parts.append(f"{'All runs' if len(names) == len(runs) else markdown_text(', '.join(names))}:\n\n{table}")
    return "\n".join(parts)
