"""What `asrcl report` and `asrcl results` do: plain functions of stored files. The command line parses and calls them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asrcl.exceptions import InputError
from asrcl.scoring.display.numbers import NONE, decimal
from asrcl.scoring.display.terminal import aligned_table
from asrcl.scoring.report.orders import summarise_orders
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.results.discovery import scan_results, with_same_tests
from asrcl.visible import visible

if TYPE_CHECKING:
    import pandas as pd

VIEWS: Final = ("html", "md", "tables", "figures")
FIGURE_FORMATS: Final = ("pdf", "png", "svg")
SHORT: Final = ("scenario", "method", "seed", "domain", "first", "learned", "final", "forgotten", "avg", "bwt")
SHORT_STAGES: Final = ("scenario", "method", "seed", "stage", "domain", "rate", "errors", "length")


def make_report(
    folders: Sequence[Path],
    *,
    out: Path | None = None,
    views: Sequence[str] = ("html", "md"),
    reference_method: str = "ihr",
    figure_formats: Sequence[str] = ("pdf",),
    skip_bad: bool = False,
    title: str = "",
    say: Callable[[str], object] = print,
) -> list[Path]:
    """Write the views of all runs below the folders and print the main table.

    Args:
        folders: that hold results.json files at any depth.
        out: where to write; by default the first folder.
        views: "html" (report.html), "md" (RESULTS.md with two pictures per scenario), "tables" (tables/*.tex and *.csv),
            "figures" (figures/*).
        reference_method: tested against all others.
        figure_formats: of "figures": "pdf", "png", "svg".
        skip_bad: leave out files that cannot be used, and say so, instead of refusing.
        title: of the page.
        say: prints a line.

    Returns:
        The files written, without the pictures of RESULTS.md.

    Raises:
        InputError: an unknown view or format, a folder without runs, or files that cannot be used (all are named).
    """
    from asrcl.scoring.report.markdown import main_tables, write_figures, write_results, write_tables

    _check_known("--views", views, VIEWS)
    _check_known("--figures", figure_formats, FIGURE_FORMATS)
    if not folders:
        raise InputError("no folder given; name the one that holds the runs, e.g. exp/accents")
    scan = with_same_tests(scan_results(folders))
    runs, left_out = scan.require(skip_bad), scan.lines()
    target = out or _folder(folders[0])
    scenarios = summarise(runs, reference_method)
    orders = summarise_orders(scenarios)
    notices = [*left_out, *_untested(scenarios)]
    written: list[Path] = []
    if "html" in views:
        from asrcl.scoring.report.html.page import write_html
        from asrcl.scoring.results.stage_records import sweeps

        found = sweeps(runs, folders)
        written.append(write_html(scenarios, target / "report.html", sweeps=found, notices=notices, title=title, orders=orders))
    if "md" in views:
        written.append(write_results(scenarios, target, orders))
    if "tables" in views:
        written += write_tables(scenarios, target / "tables", orders)
    if "figures" in views:
        written += write_figures(scenarios, target / "figures", figure_formats)
    say(main_tables(scenarios, orders).rstrip())
    for line in [*notices, *(f"report: {path}" for path in written)]:
        say(visible(line))
    return written


def _untested(scenarios: Sequence[ScenarioSummary]) -> list[str]:
    """Scenarios of several methods that lack the reference method, and those with runs that kept no counts per item."""
    lacking = [s for s in scenarios if len(s.methods) > 1 and s.reference not in {m.method for m in s.methods}]
    notices = [
        f"{s.scenario}: no run of {s.reference}, so no significance is tested; name a method with --reference-method"
        for s in lacking
    ]
    for s in scenarios:
        bare = [f"{method}/{seed}" for (method, seed), items in s.items.items() if items is None]
        if bare:
            more = f" and {len(bare) - 5} more" if len(bare) > 5 else ""
            notices.append(
                f"{s.scenario}: no counts per item of {', '.join(bare[:5])}{more}, so no interval and no test; decode them again"
            )
    return notices


def list_results(
    folders: Sequence[Path],
    *,
    where: Sequence[str] = (),
    columns: Sequence[str] = (),
    settings: Sequence[str] = (),
    sort: str = "",
    every_stage: bool = False,
    out: Path | None = None,
    skip_bad: bool = False,
    say: Callable[[str], object] = print,
) -> pd.DataFrame:
    """Print or write one row per run and domain; `asrcl.scoring.results.frame` names the columns.

    Args:
        folders: that hold results.json files at any depth.
        where: conditions, all of which must hold: "method=ihr,ft", "final<20".
        columns: to show; by default a short selection on the terminal, all of them in a file.
        settings: dotted names of the configuration to join.
        sort: a column; "-avg" sorts downwards.
        every_stage: one row per stage too.
        out: a .csv, .jsonl or .parquet file instead of the terminal.
        skip_bad: leave out files that cannot be used, and say so, instead of refusing.
        say: prints a line.

    Returns:
        The table, as printed or written.

    Raises:
        InputError: files that cannot be used (all are named), no runs, an unknown column, or a bad condition.
    """
    from asrcl.scoring.results import frame  # pandas takes half a second to load

    scan = scan_results(folders)
    everything = frame.run_table(scan.require(skip_bad), every_stage=every_stage, settings=settings)
    frame.require_columns([*columns, *([sort.removeprefix("-")] if sort else [])], everything)
    table = frame.keep(everything, where)
    table = frame.sort(table, sort) if sort else table
    if not columns and out is None:
        columns = [*(SHORT_STAGES if every_stage else SHORT), *settings]
    table = table[list(columns)] if columns else table
    if out is not None:
        say(f"{len(table)} rows: {visible(str(frame.write_table(table, out)))}")
    elif len(table):
        say(table_text(table))
    else:
        say(f"no row meets the conditions ({frame.values_of_conditions(everything, where)})")
    for line in scan.lines():
        say(visible(line))
    return table


def table_text(table: pd.DataFrame) -> str:
    """A table of runs for a terminal or a log file; numbers with two decimals."""
    left = [n for n, name in enumerate(table) if any(isinstance(value, str) for value in table[name])]
    rows = [[_shown(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return f"{aligned_table(list(table), rows, left=left)}{len(table)} rows"


def _shown(value: object) -> str:
    if value is None or value != value or str(value) == "<NA>":  # nan, and pandas' own sign for what is missing
        return NONE
    return decimal(value) if isinstance(value, float) else str(value)


def _check_known(option: str, values: Sequence[str], known: Sequence[str]) -> None:
    wrong = [value for value in values if value not in known]
    if wrong or not values:
        raise InputError(f"{option} {' '.join(wrong)}: choose from {', '.join(known)}")


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path
