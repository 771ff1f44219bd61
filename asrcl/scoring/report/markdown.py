"""RESULTS.md with its pictures, tables as LaTeX and CSV, figures as PDF, and the table for the terminal.

Views of `summary`, without arithmetic. `asrcl.scoring.report.html` writes report.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from asrcl.files import write_text
from asrcl.scoring.display.table import latex, markdown, markdown_text, plain
from asrcl.scoring.display.terminal import aligned_table
from asrcl.scoring.report.keep_tables import keep_tables
from asrcl.scoring.report.orders import Orders, summarise_orders, told_together
from asrcl.scoring.report.plots import draw_heatmaps, draw_orders, draw_pareto, draw_stages
from asrcl.scoring.report.setting_tables import setting_tables
from asrcl.scoring.report.step_tables import step_tables
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.report.tables import (
    definitions,
    disparity_table,
    main_csv,
    main_table,
    matrices_csv,
    matrix_table,
    metrics_csv,
    metrics_table,
    orders_caption,
    orders_csv,
    orders_significance_caption,
    orders_significance_table,
    orders_table,
    probe_caption,
    probe_sizes,
    probe_tables,
    significance_caption,
    significance_table,
    unmeasured,
)
from asrcl.scoring.report.trust import draw_trust, trust_stages, trust_tables
from asrcl.scoring.report.written_tables import written_caption, written_csv, written_tables
from asrcl.scoring.results.measure import Measure, measure_of
from asrcl.scoring.results.provenance import grouped, plain_json
from asrcl.scoring.results.run_result import RunResult
from asrcl.visible import visible

MANY: Final = 8
"""Domains of which the table for the terminal has no columns."""


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


def write_results(
    scenarios: Sequence[ScenarioSummary], folder: str | os.PathLike[str], orders: Sequence[Orders] | None = None
) -> Path:
    """`write_report` of runs that have been summarised; orders as of `summarise_orders`, where that has been called."""
    target, runs = Path(folder), [run for summary in scenarios for run in summary.runs]
    found = summarise_orders(scenarios) if orders is None else orders
    brief = told_together(found)
    parts = ["# Results\n"]
    for number, entry in enumerate(found, 1):
        picture = f"orders{number if len(found) > 1 else ''}.png"
        draw_orders(entry, target / picture)
        parts.append(_orders_section(entry, picture))
    for summary in scenarios:
        tail, pictures = _tail(summary, scenarios), []
        if summary.scenario not in brief:
            heatmap, stages = f"heatmap{tail}.png", f"{summary.measure.stages_file}{tail}.png"
            draw_heatmaps(summary, target / heatmap)
            draw_stages(summary, target / stages)
            pictures = [
                f"![{summary.rate_name} on each domain after each stage]({heatmap})\n",
                f"![mean {summary.rate_name} over the domains seen so far]({stages})\n",
            ]
            pictures += _trust_pictures(summary, target, tail)
        parts.append(_scenario_section(summary, pictures))
    tests = sum(method.comparison is not None for summary in scenarios for method in summary.methods)
    measures = dict.fromkeys(summary.measure for summary in scenarios)
    parts.append(_meaning_section(tests, list(measures), bool(found)))
    parts.append(_origin_section(runs))
    write_text(target / "RESULTS.md", "\n".join(parts))
    return target / "RESULTS.md"


def write_tables(
    scenarios: Sequence[ScenarioSummary], folder: str | os.PathLike[str], orders: Sequence[Orders] | None = None
) -> list[Path]:
    """Write the tables of every scenario for papers and spreadsheets; returns their paths.

    `main.tex`, `tests.tex` (booktabs, the best in bold), `main.csv` (all digits), `matrices.csv` (one row per run,
    stage and domain), `metrics.csv` (what the columns mean, with sources), where runs counted punctuation, case, empty and
    looping outputs `written.csv` (one row per run, stage and test set) and, over several orders of the domains, `orders.tex`,
    `orders_tests.tex` and `orders.csv`.
    """
    target, files = Path(folder), {}
    for summary in scenarios:
        tail, name = _tail(summary, scenarios), f"{summary.scenario}: {summary.rate_name} (%) after the last stage"
        notes = definitions(measure=summary.measure, sources=True)
        files[f"main{tail}.tex"] = latex(main_table(summary), name, f"tab:main{tail}", notes)
        tests = significance_table(summary)
        if tests:
            files[f"tests{tail}.tex"] = latex(tests, f"{summary.scenario}: significance", f"tab:tests{tail}")
        files[f"main{tail}.csv"] = main_csv(summary)
        files[f"matrices{tail}.csv"] = matrices_csv(summary)
        if lost := written_csv(summary):
            files[f"written{tail}.csv"] = lost
    found = summarise_orders(scenarios) if orders is None else orders
    for number, entry in enumerate(found, 1):
        tail = str(number) if len(found) > 1 else ""
        notes = [orders_caption(entry), *definitions(("aopd", "mopd"), entry.measure, sources=True)]
        caption = "Sensitivity to the order of domains"
        files[f"orders{tail}.tex"] = latex(orders_table(entry), caption, f"tab:orders{tail}", notes)
        files[f"orders{tail}.csv"] = orders_csv(entry)
        if tests := orders_significance_table(entry):
            files[f"orders_tests{tail}.tex"] = latex(tests, f"{entry.name}: over all orders", f"tab:orders-tests{tail}")
    measure = measure_of([summary.unit for summary in scenarios])
    keys = [*measure.shown, *([] if measure.inverted else ["accuracy"]), *(("aopd", "mopd") if found else ())]
    files["metrics.csv"] = metrics_csv(keys, measure)
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


def main_tables(scenarios: Sequence[ScenarioSummary], orders: Sequence[Orders] | None = None) -> str:
    """`terminal_table` of runs that have been summarised; of orders of one scenario the table over orders alone.

    A table of many domains has no column for each of them, which no terminal is wide enough for.
    """
    found = summarise_orders(scenarios) if orders is None else orders
    told, parts = told_together(found), []
    for summary in scenarios:
        if summary.scenario not in told:
            many = len(summary.domains) + len(summary.probes) >= MANY
            content = main_table(summary, domains=not many)
            title = f"{summary.scenario}: {summary.rate_name} (%) after the last stage"
            more = f"The {len(summary.domains)} domains one by one: report.html, RESULTS.md (asrcl report)\n" if many else ""
            parts.append(aligned_table(content.header, content.texts(), title=title) + more)
    for entry in found:
        content = orders_table(entry)
        parts.append(aligned_table(content.header, content.texts(), title=f"{entry.name}: over {len(entry.names)} orders"))
        parts.append(f"{orders_caption(entry)}\n")
    notes = []
    for measure in dict.fromkeys(summary.measure for summary in scenarios):
        what = "accuracy" if measure.inverted else "rate"
        notes += [f"{measure.letter}[i,j]: {what} on domain j after stage i", *definitions(measure=measure, sources=True)]
    return "".join([*parts, *(f"{note}\n" for note in dict.fromkeys(notes))])


def _scenario_section(summary: ScenarioSummary, pictures: Sequence[str]) -> str:
    parts = [
        f"## {markdown_text(summary.scenario)}\n",
        _caption(summary),
        markdown(main_table(summary)),
        _tests(summary),
        _probes(summary),
        *_written(summary),
        *pictures,
        *(
            f"### {step.name}\n\n{step.caption}\n\n{markdown(step.table)}"
            for tables in (keep_tables, step_tables, setting_tables, trust_tables)
            for step in tables(summary)
        ),
        "### Matrices\n",
        f"{summary.rate_name} in %, mean over seeds; row: after this stage, column: on this domain.\n",
        *(markdown(matrix_table(summary, method)) for method in summary.methods),
    ]
    return "\n".join(parts)


def _trust_pictures(summary: ScenarioSummary, target: Path, tail: str) -> list[str]:
    """A picture per stage whose runs tell how far curvature can be trusted."""
    lines = []
    for stage, found in trust_stages(summary):
        title = f"{summary.scenario}, stage {stage + 1} ({summary.domains[stage]}): loss of {found[0].told[0].domain}"
        draw_trust(found, target / f"trust{stage + 1}{tail}.png", title)
        lines.append(f"![predicted against measured increase of the old loss]({f'trust{stage + 1}{tail}.png'})\n")
    return lines


def _caption(summary: ScenarioSummary) -> str:
    sizes = zip(summary.domains, summary.runs[0].lengths, strict=True)
    reference, average = summary.reference, summary.measure.symbol
    return (
        f"Domains in order: {markdown_text(' → '.join(summary.domains))}. Test sets, in {summary.unit}s: "
        f"{markdown_text(', '.join(f'{domain} {length}' for domain, length in [*sizes, *probe_sizes(summary)]))}.\n\n"
        f"{summary.rate_name} in % on each domain after the last stage, mean over seeds ({average} with the "
        f"standard deviation over seeds). CI95 of {average} resamples {summary.measure.blocks}, jointly over domains and seeds. "
        "Bold: best of its column, without the initial model and oracles (separate models, joint training). "
        f"p ({reference}): Wilcoxon test against it, Holm-corrected; + where {reference} is better.\n"
        + (f"\n{markdown_text(note)}\n" if (note := unmeasured(summary)) else "")
    )


def _probes(summary: ScenarioSummary) -> str:
    tables = probe_tables(summary)
    return "\n".join([f"{probe_caption(summary)}\n", *map(markdown, tables)]) if tables else ""


def _written(summary: ScenarioSummary) -> list[str]:
    """What people lose, over all domains and on every probe, where runs counted it; report.html has each domain."""
    tables, _ = written_tables(summary)
    return [f"### What people lose\n\n{written_caption(summary)}\n", *map(markdown, tables)] if tables else []


def _tests(summary: ScenarioSummary) -> str:
    """The table of signed-rank tests, or nothing if there are none."""
    table = significance_table(summary)
    if table is None:
        return ""
    return f"{significance_caption(summary.measure)}\n\n{markdown(table)}"


def _orders_section(orders: Orders, picture: str) -> str:
    parts = [
        f"## Order of the domains: {markdown_text(orders.name)}\n",
        f"{markdown_text(orders_caption(orders))}\n",
        markdown(orders_table(orders)),
        *([f"{orders_significance_caption(orders)}\n", markdown(tests)] if (tests := orders_significance_table(orders)) else []),
        f"![mean {orders.measure.name} over the domains seen so far]({picture})\n",
        f"OPD: spread of a domain's final {orders.measure.name} over the orders, in points.\n",
        markdown(disparity_table(orders)),
    ]
    return "\n".join(parts)


def _meaning_section(tests: int, measures: Sequence[Measure], orders: bool) -> str:
    blocks = " or ".join(dict.fromkeys(measure.blocks for measure in measures))
    parts = ["## What the numbers mean\n"]
    for measure in {measure.inverted: measure for measure in measures}.values():
        parts.append(markdown(metrics_table((*measure.shown, *(("aopd", "mopd") if orders else ())), measure)))
        parts.append(
            f"{measure.letter}[i,j] is the {measure.entry} on domain j after stage i; T is the number of domains. Separate "
            "models: each domain by its own.\n"
        )
    parts.append(
        "Each p value is of a two-sided Wilcoxon signed-rank test on errors per item; the errors of several "
        "seeds are added per item, so that an item enters once. Holm's correction is over all tests of this "
        f"page ({tests}). CI95 is a percentile bootstrap over {blocks} (2000 resamples).\n"
    )
    return "\n".join(parts)


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
