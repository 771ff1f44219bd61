"""report.html: one file that needs nothing else, made from summarised runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import write_text
from asrcl.scoring.counting.errors import counted
from asrcl.scoring.display.table import Cell, Table, plain
from asrcl.scoring.report.drawing import order_lines
from asrcl.scoring.report.html.charts import stage_lines, swatch
from asrcl.scoring.report.html.examples import MAX_CHARACTERS, decode_examples
from asrcl.scoring.report.html.sections import Scenario
from asrcl.scoring.report.keep_tables import keep_tables
from asrcl.scoring.report.looks import looks
from asrcl.scoring.report.orders import Orders, summarise_orders, told_together
from asrcl.scoring.report.setting_tables import setting_tables
from asrcl.scoring.report.step_tables import step_tables
from asrcl.scoring.report.summary import ScenarioSummary
from asrcl.scoring.report.tables import (
    definitions,
    disparity_table,
    main_table,
    metrics_table,
    number,
    orders_caption,
    orders_significance_caption,
    orders_significance_table,
    orders_table,
    probe_caption,
    probe_sizes,
    probe_tables,
    significance_table,
    unmeasured,
)
from asrcl.scoring.report.trust import trust_tables
from asrcl.scoring.report.written_tables import written_caption, written_tables
from asrcl.scoring.results import metrics
from asrcl.scoring.results.measure import measure_of
from asrcl.scoring.results.provenance import commits, config_differences, grouped, plain_json, short_names
from asrcl.scoring.results.run_result import RunResult
from asrcl.scoring.results.stage_records import Sweep, run_seconds
from asrcl.visible import visible

LONG_NAME: Final = 8
_NO_CHARTS: Final[dict[str, Any]] = {"training": [], "layers": [], "curvature": [], "trust_charts": [], "examples": None}
_REFERENCE_NOTE = "Bold: best of its column, without the initial model, separate models and joint training."


def write_html(
    scenarios: Sequence[ScenarioSummary],
    path: str | os.PathLike[str],
    *,
    sweeps: Mapping[str, Sequence[Sweep]] | None = None,
    notices: Sequence[str] = (),
    title: str = "",
    orders: Sequence[Orders] | None = None,
) -> Path:
    """Write the report; the same runs give the same bytes.

    Args:
        scenarios: of `summarise`.
        path: the file.
        sweeps: per scenario, of `records.sweeps`.
        notices: said at the head of the page, such as which files were left out.
        title: of the page; otherwise the names of the scenarios.
        orders: of `summarise_orders`, where that has been called.

    Raises:
        InputError: jinja2 is not installed, a run's record cannot be read, or the file cannot be written.
    """
    found = summarise_orders(scenarios) if orders is None else orders
    write_text(path, render(scenarios, sweeps or {}, notices, title, found))
    return Path(path)


def render(
    scenarios: Sequence[ScenarioSummary],
    sweeps: Mapping[str, Sequence[Sweep]],
    notices: Sequence[str],
    title: str,
    orders: Sequence[Orders],
) -> str:
    """The page as text; arguments as in `write_html`."""
    runs = [run for summary in scenarios for run in summary.runs]
    budget = MAX_CHARACTERS // max(len(scenarios), 1)
    views = [Scenario(summary, sweeps.get(summary.scenario, ())) for summary in scenarios]
    brief = told_together(orders)
    names = [entry.name for entry in orders if entry.one_experiment]
    names += [summary.scenario for summary in scenarios if summary.scenario not in brief]
    content = {
        "title": title or f"asrcl: {', '.join(names)}",
        "lead": _lead(scenarios, runs),
        "notices": list(notices),
        "methods": _methods(views),
        "scenarios": [_scenario(view, index, budget, view.summary.scenario in brief) for index, view in enumerate(views, 1)],
        "tests": sum(method.comparison is not None for summary in scenarios for method in summary.methods),
        "orders": [_orders(entry) for entry in orders],
        "meaning": _meaning(scenarios, bool(orders)),
        "entries": list({summary.measure.letter: summary.measure for summary in scenarios}.values()),
        "blocks": " or ".join(dict.fromkeys(summary.measure.blocks for summary in scenarios)),
        "version": _version(),
        **_origin(runs),
    }
    return _template().render(content)


def _template() -> Any:
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise InputError("report.html needs jinja2, which is not installed; pip install jinja2") from error
    own = files("asrcl.scoring.report.html")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_written_out
    )
    environment.filters["data"] = lambda value: markupsafe.Markup(_safe_json(value))
    environment.filters["code"] = lambda text: _code(text, markupsafe.Markup)
    for name, file in (("style", "report.css"), ("script", "report.js")):
        environment.globals[name] = markupsafe.Markup(own.joinpath(file).read_text(encoding="utf-8"))
    return environment.from_string(own.joinpath("template.html").read_text(encoding="utf-8"))


def _written_out(value: Any) -> Any:
    """Names and texts of others with what is active in them written out, inside lists and mappings too; markup as it is."""
    if isinstance(value, dict):
        return {name: _written_out(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_written_out(entry) for entry in value]
    return visible(value, keep="\n") if isinstance(value, str) and not hasattr(value, "__html__") else value


def _safe_json(value: Any) -> str:
    """JSON that cannot end its script element, whatever the texts hold."""
    text = json.dumps(_written_out(value), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _code(text: str, markup: Any) -> Any:
    """Words between backquotes as code."""
    parts = visible(text, keep="\n").split("`")
    if len(parts) % 2 == 0:
        return text
    return markup("").join(
        markup("<code>{}</code>").format(part) if index % 2 else part for index, part in enumerate(parts)
    )


def _markup(chart: str) -> Any:
    """Charts are markup; every text in them was escaped when they were drawn."""
    import markupsafe

    return markupsafe.Markup(chart)


def _lead(scenarios: Sequence[ScenarioSummary], runs: Sequence[RunResult]) -> str:
    methods, seeds = {run.method for run in runs}, {run.seed for run in runs}
    counts = ((len(runs), "run"), (len(scenarios), "scenario"), (len(methods), "method"), (len(seeds), "seed"))
    return ", ".join(counted(count, noun) for count, noun in counts) + "."


def _methods(views: Sequence[Scenario]) -> list[dict[str, Any]]:
    """The buttons; a method that several scenarios draw differently has the look of the first."""
    found: dict[str, dict[str, Any]] = {}
    for view in views:
        for method, label in view.labels.items():
            found.setdefault(method, {"id": method, "label": label, "swatch": _markup(swatch(view.looks[method]))})
    return list(found.values())


def _legend(view: Scenario, methods: Collection[str]) -> list[dict[str, Any]]:
    """Those of `methods`, in the order of the page, with the looks that they have in this scenario."""
    return [
        {"id": method, "label": view.labels.get(method, method), "swatch": _markup(swatch(look))}
        for method, look in view.looks.items()
        if method in methods
    ]


def _scenario(view: Scenario, index: int, budget: int, brief: bool) -> dict[str, Any]:
    """The section of a scenario; of an order of several, in `brief`, its tables without charts, which take long."""
    summary = view.summary
    sizes = zip(summary.domains, summary.runs[0].lengths, strict=True)
    caption = f"Domains in order: {' → '.join(summary.domains)}. Test sets in {summary.unit}s: "
    average = summary.measure.symbol
    note = (
        f"{summary.rate_name} in % on each domain, mean over seeds ({average} ± its standard deviation over seeds). CI95 of "
        f"{average} resamples {summary.measure.blocks}, jointly over domains and seeds. {_REFERENCE_NOTE} "
        f"p ({summary.reference}): Wilcoxon test against it, Holm-corrected; + where {summary.reference} is better, − "
        "where it is worse."
    )
    return {
        "id": f"scenario{index}",
        "name": summary.scenario,
        "domains": summary.domains,
        "legend": _legend(view, view.labels),
        "long_names": max(map(len, summary.domains)) > LONG_NAME,
        "rate": summary.rate_name,
        "measure": summary.measure,
        "reference": view.labels.get(summary.reference, summary.reference),
        "caption": caption + ", ".join(f"{domain} {length}" for domain, length in [*sizes, *probe_sizes(summary)]) + ".",
        "main": main_table(summary),
        "main_note": note,
        "unmeasured": unmeasured(summary),
        "definitions": definitions(measure=summary.measure),
        "tests": significance_table(summary),
        "probes": probe_tables(summary),
        "probe_note": probe_caption(summary),
        "written": written_tables(summary),
        "written_note": written_caption(summary),
        "brief": brief,
        "heat": view.heat_maps(),
        "sweeps": [_drawn(sweep) for sweep in view.sweep_views()],
        "sweeps_legend": _legend(view, {sweep.method for sweep in view.sweeps}),
        "kept": keep_tables(summary),
        "steps": step_tables(summary),
        "settings": setting_tables(summary),
        "trust": trust_tables(summary),
        **(_NO_CHARTS if brief else _charts(view, budget)),
    }


def _charts(view: Scenario, budget: int) -> dict[str, Any]:
    """What takes long: charts, and examples of decodes."""
    training = view.training()
    return {
        "stages": _drawn(view.stages()),
        "pareto": [_drawn(plane) for plane in view.pareto()],
        "training": [_drawn(entry) for entry in training],
        "training_legend": _legend(view, {method for entry in training for method in entry["methods"]}),
        "layers": [entry | {"figures": [_drawn(figure) for figure in entry["figures"]]} for entry in view.layers()],
        "curvature": [_drawn(entry) for entry in view.curvature()],
        "trust_charts": [_drawn(entry) for entry in view.trust_charts()],
        "examples": decode_examples(view.summary, budget),
    }


def _drawn(view: dict[str, Any]) -> dict[str, Any]:
    """The same with its charts marked as markup."""
    found = dict(view)
    if "chart" in view:
        found["chart"] = _markup(view["chart"])
    if "charts" in view:
        found["charts"] = [_markup(chart) for chart in view["charts"]]
    return found


def _orders(orders: Orders) -> dict[str, Any]:
    """The section about the order of the domains."""
    methods = [method.first for method in orders.methods]
    found, name = looks(methods), f"mean {orders.measure.name} over the domains seen so far (%)"
    chart = stage_lines(order_lines(orders), found, [""] * len(orders.scenarios[0].domains), name)
    return {
        "name": orders.name,
        "caption": orders_caption(orders),
        "table": orders_table(orders),
        "tests": orders_significance_table(orders),
        "tests_caption": orders_significance_caption(orders).removesuffix(":") + ".",
        "chart": _markup(chart),
        "legend": [{"id": m.method, "label": m.label, "swatch": _markup(swatch(found[m.method]))} for m in methods],
        "disparities": disparity_table(orders),
    }


def _meaning(scenarios: Sequence[ScenarioSummary], orders: bool) -> Table:
    """Formulas of accuracies where all scenarios have them, of both where some have."""
    measure = measure_of([summary.unit for summary in scenarios])
    both = not measure.inverted and any(summary.measure.inverted for summary in scenarios)
    keys = [*measure.shown, *(["accuracy"] if both else []), *(["aopd", "mopd"] if orders else [])]
    return metrics_table(keys, measure, accuracies=both)


def _origin(runs: Sequence[RunResult]) -> dict[str, Any]:
    """Commits, environments, commands and configurations, each once with its runs."""
    everyone = f"all {len(runs)} runs" if len(runs) > 1 else runs[0].name

    def who(names: Sequence[str]) -> str:
        return everyone if len(names) == len(runs) else short_names(names)

    rows = [
        [difference.key, "\n".join(f"{value}: {short_names(names)}" for value, names in difference.values)]
        for difference in config_differences(runs)
    ]
    configs = grouped((run.config, run.name) for run in runs if run.config)
    return {
        "commits": [{"words": _commit(commit), "runs": who(names)} for commit, names in commits(runs)],
        "environments": [
            {"runs": who(names), "table": plain(["what", "value"], [[key, plain_json(value)] for key, value in found.items()])}
            for found, names in grouped((run.environment, run.name) for run in runs)
        ],
        "commands": [
            {"words": command or "(not recorded)", "runs": who(names)}
            for command, names in grouped((run.command, run.name) for run in runs)
        ],
        "differences": plain(["setting", "values and their runs"], rows),
        "no_differences": _no_differences(runs, len(configs)),
        "configs": [
            {"words": json.dumps(config, indent=1, ensure_ascii=False, default=str), "runs": who(names)}
            for config, names in configs[:1]
        ],
        "listing": _listing(runs),
    }


def _commit(commit: str) -> str:
    if not commit:
        return "Source commit not recorded"
    dirty = " with uncommitted changes" if commit.endswith("+") else ""
    return f"Source commit {commit.removesuffix('+')}{dirty}"


def _no_differences(runs: Sequence[RunResult], configs: int) -> str:
    if not configs:
        return "No configuration was recorded."
    return "There is one run." if len(runs) == 1 else "All runs have the same configuration."


def _listing(runs: Sequence[RunResult]) -> Table:
    measure, rows = measure_of([run.unit for run in runs]), []
    for run in runs:
        values = [measure.of(metrics.avg(run.completed())), metrics.bwt(run.completed())]
        seconds = run_seconds(run)
        spent = Cell("–") if seconds is None else Cell(f"{seconds:.0f}", seconds)
        shown = [Cell(number(value, key), value) for key, value in zip(("avg", "bwt"), values, strict=True)]
        rows.append([Cell(run.name), *shown, spent, Cell(str(run.folder or "–"))])
    return Table(["run", measure.symbol, "BWT", "seconds", "folder"], rows, [run.method for run in runs])


def _version() -> str:
    try:
        return version("asrcl")
    except PackageNotFoundError:
        return ""
