"""The tables of a report, made from `summary` once; RESULTS.md, report.html, the terminal, LaTeX and CSV write them down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from asrcl.scoring.display.numbers import NONE, decimal, p_value
from asrcl.scoring.display.table import Cell, Table, comma_separated, plain
from asrcl.scoring.report.orders import Orders
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, mean_known
from asrcl.scoring.results.measure import WORDS, Measure
from asrcl.scoring.results.metrics import METRICS
from asrcl.scoring.significance.bootstrap import Interval
from asrcl.scoring.significance.paired_tests import PairedTest

_NAN: Final = float("nan")


def number(value: float, metric: str = "avg") -> str:
    """Two decimals, differences with their sign, COV with one; a dash for nan."""
    if metric == "cov":
        return decimal(value, 1)
    return decimal(value, signed=METRICS[metric].unit == "points")


@dataclass(frozen=True)
class _Column:
    """A column of the main table.

    Attributes:
        name: in the header.
        cell: of a method.
        better: "lower" or "higher" where the best is marked; otherwise empty.
    """

    name: str
    cell: Callable[[MethodSummary], Cell]
    better: str = ""


def main_table(summary: ScenarioSummary, domains: bool = True) -> Table:
    """Methods by domains and metrics, after the last stage; the best of each column marked, references apart.

    Args:
        summary: the numbers.
        domains: whether there is a column for every domain and probe.
    """
    columns, methods = _main_columns(summary, domains), summary.methods
    cells = [_mark_best(methods, [column.cell(method) for method in methods], column.better) for column in columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table([column.name for column in columns], rows, [method.method for method in methods])


def significance_table(summary: ScenarioSummary) -> Table | None:
    """The signed-rank tests of the reference method against the others; None without any."""
    return _tests_table(summary, summary.methods)


def orders_significance_table(orders: Orders) -> Table | None:
    """The tests of the reference method against the others over all orders and seeds; None without any."""
    return _tests_table(orders.scenarios[0], orders.tested)


def _tests_table(summary: ScenarioSummary, methods: Sequence[MethodSummary]) -> Table | None:
    tested = [(method, method.comparison) for method in methods if method.comparison]
    if not tested:
        return None
    name = next(method.label for method in summary.methods if method.method == summary.reference)
    noun = "utterances" if summary.unit in ("word", "character") else "items"
    header = [f"{name} against", "p", "p (Holm)", f"{name} is", f"{noun} that differ", "of"]
    average = summary.measure.symbol
    header += [f"Δ{average}", f"CI95 of Δ{average}", f"P({name} better)"]
    rows = [_test_row(summary.measure, method, test) for method, test in tested]
    return Table(header, rows, [method.method for method, _ in tested])


def significance_caption(measure: Measure, over: str = "all domains after the last stage") -> str:
    """What a table of tests shows."""
    better = "positive: higher accuracy" if measure.inverted else "negative: lower errors"
    return (
        f"Wilcoxon signed-rank test on errors per item, {over}; Δ{measure.symbol} in points "
        f"({better}), its interval and P(better) by paired bootstrap over {measure.blocks}:"
    )


def orders_significance_caption(orders: Orders) -> str:
    """What the table of tests over orders shows."""
    over = "all domains after the last stage, errors of all orders and seeds added per item; Holm's correction is over this table"
    return significance_caption(orders.measure, over)


def matrix_table(summary: ScenarioSummary, method: MethodSummary) -> Table:
    """R of one method (A of accuracies), mean over seeds: a row per stage, a column per domain."""
    rows = [
        [Cell(f"{stage + 1} {name}"), *(Cell(number(value), value) for value in values)]
        for stage, (name, values) in enumerate(zip(summary.domains, summary.measure.of(method.matrix), strict=True))
    ]
    return Table([method.label, *summary.domains], rows)


def unmeasured(summary: ScenarioSummary) -> str:
    """What to say of entries of R on and below the diagonal that were not measured; empty if all of them were."""
    lacking = [m.label for m in summary.methods if np.isnan(m.matrix[np.tril_indices(len(summary.domains))]).any()]
    if not lacking:
        return ""
    names = ", ".join(lacking)
    return f"Not every domain was measured after every stage ({names}): a dash marks what was not, and metrics that need it."


def probe_sizes(summary: ScenarioSummary) -> list[tuple[str, int]]:
    """Name and reference length of every probe."""
    found = {probe.name: probe.length for run in summary.runs for probe in run.probes}
    return [(f"{name} (never trained on)", length) for name, length in found.items()]


def probe_caption(summary: ScenarioSummary) -> str:
    """What the tables of probes show."""
    return (
        f"{summary.rate_name} in % on what no stage trains on, after every stage, mean over seeds; CI95 after the last stage "
        f"resamples {summary.measure.blocks}. Not part of {summary.measure.symbol} or any other metric."
    )


def probe_tables(summary: ScenarioSummary) -> list[Table]:
    """Per probe the rate after every stage, with the interval over speakers after the last; mean over seeds."""
    tables = []
    for n, probe in enumerate(summary.probes):
        header = [probe, *(f"{stage} {domain}" for stage, domain in enumerate(summary.domains, 1)), "CI95"]
        measured = [method for method in summary.methods if not np.isnan(method.probes[:, :, n]).all()]
        rows = []
        for method in measured:
            rates = summary.measure.of(mean_known(list(method.probes))[:, n]).tolist()
            limits = limits_text(summary.measure, method.probe_intervals[n])
            rows.append([Cell(method.label), *(Cell(number(rate), rate) for rate in rates), Cell(limits)])
        tables.append(Table(header, rows, [method.method for method in measured]))
    return tables


def metrics_table(keys: Sequence[str], measure: Measure = WORDS, *, accuracies: bool = False) -> Table:
    """What each number means: formula, direction, unit, which other runs it needs, source.

    Args:
        keys: of `METRICS`.
        measure: whether formulas are of error rates or of accuracies.
        accuracies: add the formulas for accuracies to those for error rates.
    """
    header = ["", "meaning", "definition", *(["with accuracies A = 100 − R"] if accuracies else [])]
    header += ["better", "unit", f"needs of {measure.letter}", "reference models", "source"]
    rows = []
    for metric in (METRICS[key] for key in keys):
        formulas = [f"`{measure.formula(metric)}`", *([f"`{metric.accuracy_formula}`"] if accuracies else [])]
        words = [metric.better, metric.unit, metric.entries, measure.references(metric), metric.source]
        rows.append([metric.symbol, metric.name, *formulas, *words])
    return plain(header, rows)


def definitions(keys: Sequence[str] = (), measure: Measure = WORDS, *, sources: bool = False) -> list[str]:
    """One line per metric, to stand under its numbers: "BWT = formula (higher is better; needs ...)".

    Args:
        keys: of the metrics; by default those that the measure shows.
        measure: whether formulas are of error rates or of accuracies.
        sources: say also where each definition comes from.
    """
    lines = []
    for metric in (METRICS[key] for key in keys or measure.shown):
        needs = "" if metric.references == "none" else f"; needs {measure.references(metric)}"
        source = f" [{metric.source}]" if sources else ""
        lines.append(f"{metric.symbol} = {measure.formula(metric)} ({metric.better} is better{needs}){source}")
    return lines


def metrics_csv(keys: Sequence[str], measure: Measure = WORDS) -> str:
    """What the columns of `main_csv` mean: key, symbol, formula, sign, unit, reference models, source."""
    header = ["key", "symbol", "name", "formula", "better", "unit", "entries", "references", "source"]
    found = [METRICS[key] for key in keys]
    return comma_separated(
        header,
        (
            [key, m.symbol, m.name, measure.formula(m), m.better, m.unit, m.entries, measure.references(m), m.source]
            for key, m in zip(keys, found, strict=True)
        ),
    )


def orders_table(orders: Orders) -> Table:
    """Per method over all orders: average, forgetting, AOPD and MOPD with their intervals, capacity and time as ratios."""
    measure, methods = orders.measure, orders.methods
    points = WORDS  # differences are the same of error rates and of accuracies
    columns: list[tuple[str, list[Cell], str]] = [("Method", [Cell(m.label) for m in methods], "")]
    columns.append(("orders", [Cell(str(len(m.orders)), len(m.orders)) for m in methods], ""))
    if len({len(m.first.seeds) for m in methods}) > 1:
        columns.append(("seeds", [Cell(str(len(m.first.seeds)), len(m.first.seeds)) for m in methods], ""))
    for name, better, shown, intervals in (
        (measure.symbol, measure.better, measure, [m.averages for m in methods]),
        (METRICS["forgetting"].symbol, "lower", points, [m.forgetting for m in methods]),
        (METRICS["aopd"].symbol, "lower", points, [m.disparities[0] if m.disparities else _bare(m.aopd) for m in methods]),
        (METRICS["mopd"].symbol, "lower", points, [m.disparities[1] if m.disparities else _bare(m.mopd) for m in methods]),
    ):
        values = [shown.of(interval.estimate) for interval in intervals]
        columns.append((name, [Cell(number(value), value) for value in values], better))
        columns.append(("CI95", [Cell(limits_text(shown, interval)) for interval in intervals], ""))
    if any(not math.isnan(m.coverage) for m in methods):
        columns.append(("COV", [Cell(number(m.coverage, "cov"), m.coverage) for m in methods], METRICS["cov"].better))
    for place, name in enumerate(orders.probes):
        rates = [float(measure.of(m.probes)[place]) for m in methods]
        columns.append((name, [Cell(number(rate), rate) for rate in rates], measure.better))
    columns.append(("capacity", [Cell(_ratio(m.growth), m.growth) for m in methods], ""))
    columns.append(("time", [Cell(_ratio(m.slowdown), m.slowdown) for m in methods], ""))
    cells = [_mark_best([m.first for m in methods], column, better) for _, column, better in columns]
    rows = [list(row) for row in zip(*cells, strict=True)]
    return Table([name for name, _, _ in columns], rows, [method.method for method in methods])


def orders_caption(orders: Orders) -> str:
    """What the table over orders shows."""
    measure = orders.measure
    return (
        f"The same domains in {len(orders.names)} orders: {', '.join(orders.names)}. {measure.symbol} ({measure.name} in %) and "
        "F: means over orders and seeds after the last stage, with Student's 95 % interval over the orders. AOPD and MOPD: mean "
        "and maximum over domains of the spread of a domain's final rate over the orders, in points; their intervals resample "
        f"{measure.blocks}, alike in all orders, and keep the orders. {_what_else(orders)}capacity: parameters of the models of "
        "all domains after the last stage, over those after the first. time: seconds of learning over those of plain fine-tuning."
    )


def _what_else(orders: Orders) -> str:
    """The columns that not every experiment has."""
    names = ["COV"] * any(not math.isnan(method.coverage) for method in orders.methods) + orders.probes
    return f"{', '.join(names)}: means over orders and seeds. " if names else ""


def orders_csv(orders: Orders) -> str:
    """The table over orders with all digits."""
    header, keys = ["method", "label", "orders", "seeds"], (orders.measure.average, "forgetting", "aopd", "mopd")
    header += [name for key in keys for name in (key, f"{key}_low", f"{key}_high")]
    rows = []
    for m in orders.methods:
        averages = (orders.measure.of(m.averages.estimate), *orders.measure.limits(m.averages.low, m.averages.high))
        row = [m.method, m.label, len(m.orders), len(m.first.seeds), *averages]
        for interval in (m.forgetting, *(m.disparities or (_bare(m.aopd), _bare(m.mopd)))):
            row += [interval.estimate, interval.low, interval.high]
        rows.append([*row, m.coverage, *orders.measure.of(m.probes).tolist(), m.growth, m.slowdown, *m.disparity.tolist()])
    header += ["cov", *orders.probes, "capacity", "time", *(f"opd_{domain}" for domain in orders.scenarios[0].domains)]
    return comma_separated(header, rows)


def disparity_table(orders: Orders) -> Table:
    """AOPD and MOPD, and the disparity of every domain."""
    header = ["Method", "orders", *(f"OPD {domain}" for domain in orders.scenarios[0].domains), "AOPD", "MOPD"]
    rows = [
        [Cell(order.label), Cell(str(len(order.orders)), len(order.orders))]
        + [Cell(number(value), value) for value in (*order.disparity, order.aopd, order.mopd)]
        for order in orders.methods
    ]
    return Table(header, rows, [order.method for order in orders.methods])


def _bare(value: float) -> Interval:
    return Interval(value, _NAN, _NAN, 0)


def _ratio(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.2f}"


def verdict(method: MethodSummary) -> str:
    """What the test allows to be said of the reference against `method`, at the 5 % level after correction."""
    if method.comparison is None:
        return NONE
    direction = method.comparison.direction
    return direction if method.p_holm < 0.05 else f"not distinguishable ({direction})"


def main_csv(summary: ScenarioSummary) -> str:
    """The main table with all digits: means, deviations, interval, p values."""
    measure = summary.measure
    keys = [*measure.shown] if measure.inverted else [*measure.shown, "accuracy", "cer_avg"]
    header = ["scenario", "method", "label", "seeds", *summary.domains, *summary.probes]
    header += [name for key in keys for name in (key, f"{key}_sd")]
    header += [f"{measure.average}_ci_low", f"{measure.average}_ci_high", "p", "p_holm"]
    return comma_separated(header, (_csv_row(summary, method, keys) for method in summary.methods))


def matrices_csv(summary: ScenarioSummary) -> str:
    """One row per run, stage and domain: errors, reference length and rate (or accuracy) in percent, as measured."""
    name = summary.measure.name if summary.measure.inverted else "rate"
    header = ["scenario", "method", "seed", "stage", "learned", "domain", "errors", "length", name]
    return comma_separated(
        header,
        (
            [run.scenario, run.method, run.seed, i + 1, run.domains[i], domain, run.errors[i][j], run.lengths[j], rate]
            for run in summary.runs
            for i, row in enumerate(summary.measure.of(run.rates()))
            for j, (domain, rate) in enumerate(zip(run.domains, row.tolist(), strict=True))
        ),
    )


def _csv_row(summary: ScenarioSummary, method: MethodSummary, keys: Sequence[str]) -> list[Any]:
    interval, test, measure = method.interval, method.comparison, summary.measure
    return [
        *(summary.scenario, method.method, method.label, len(method.seeds), *measure.of(method.final).tolist()),
        *measure.of(mean_known(list(method.probes))[-1]).tolist(),
        *(value for key in keys for value in (method.mean(key), method.deviation(key))),
        *(measure.limits(interval.low, interval.high) if interval else (None, None)),
        *(test.p_value if test else None, method.p_holm),
    ]


def _main_columns(summary: ScenarioSummary, domains: bool) -> list[_Column]:
    """The columns in their order; of accuracies the average comes first, as the field has it."""
    measure, reference = summary.measure, summary.reference
    characters = summary.unit == "word" and any(not math.isnan(method.mean("cer_avg")) for method in summary.methods)
    average = [
        _Column(measure.symbol, partial(_average_cell, measure.average), METRICS[measure.average].better),
        _Column("CI95", lambda method: Cell(limits_text(measure, method.interval))),
    ]
    columns = [
        _Column(name, partial(_domain_cell, measure, index), measure.better) for index, name in enumerate(summary.domains)
    ]
    probes = [_Column(name, partial(_probe_cell, measure, index), measure.better) for index, name in enumerate(summary.probes)]
    first = [*average, *(columns if domains else [])] if measure.inverted else [*(columns if domains else []), *average]
    rest = [*measure.shown[1:], *(["cer_avg"] if characters else [])]
    return [
        _Column("Method", lambda method: Cell(method.label)),
        _Column("seeds", lambda method: Cell(str(len(method.seeds)), len(method.seeds))),
        *first,
        *(probes if domains else []),
        *(_Column(*_named(key), _better(key)) for key in rest),
        _Column(f"p ({reference})", partial(_p_cell, reference)),
    ]


def _named(key: str) -> tuple[str, Callable[[MethodSummary], Cell]]:
    """The name and the cells of a metric's column."""
    shown = "avg" if key == "cer_avg" else key
    return "CER" if key == "cer_avg" else METRICS[key].symbol, lambda m: Cell(number(m.mean(key), shown), m.mean(key))


def _better(key: str) -> str:
    return "lower" if key == "cer_avg" else METRICS[key].better


def _domain_cell(measure: Measure, index: int, method: MethodSummary) -> Cell:
    value = float(measure.of(method.final)[index])
    return Cell(number(value), value)


def _probe_cell(measure: Measure, index: int, method: MethodSummary) -> Cell:
    value = float(measure.of(mean_known(list(method.probes)))[-1][index])
    return Cell(number(value), value)


def _average_cell(key: str, method: MethodSummary) -> Cell:
    average, deviation = method.mean(key), method.deviation(key)
    return Cell(number(average) + ("" if math.isnan(deviation) else f" ± {deviation:.2f}"), average)


def _p_cell(reference: str, method: MethodSummary) -> Cell:
    return Cell("reference") if method.method == reference else Cell(_signed_p(method), method.p_holm)


def limits_text(measure: Measure, interval: Interval | None) -> str:
    """An interval of error rates as it is shown: "4.18–7.12"; a dash where there is none."""
    if interval is None or math.isnan(interval.low):
        return NONE
    low, high = measure.limits(interval.low, interval.high)
    return f"{low:.2f}–{high:.2f}"


def _mark_best(methods: Sequence[MethodSummary], cells: list[Cell], better: str) -> list[Cell]:
    """A column with its best values marked; the initial model and oracles do not compete."""
    sign = -1.0 if better == "higher" else 1.0
    values = {index: sign * round(cells[index].value, 2) for index, method in enumerate(methods) if better and method.competes}
    values = {index: value for index, value in values.items() if not math.isnan(value)}
    best = {index for index, value in values.items() if len(values) > 1 and value == min(values.values())}
    return [replace(cell, best=True) if index in best else cell for index, cell in enumerate(cells)]


def _test_row(measure: Measure, method: MethodSummary, test: PairedTest) -> list[Cell]:
    return [
        Cell(method.label),
        Cell(p_value(test.p_value), test.p_value),
        Cell(p_value(method.p_holm), method.p_holm),
        Cell(verdict(method)),
        Cell(str(test.used), test.used),
        Cell(str(test.items), test.items),
        *_difference(measure, method),
    ]


def _difference(measure: Measure, method: MethodSummary) -> list[Cell]:
    """ΔAVG (ΔACC), its interval and P(better), by paired bootstrap over speakers (images)."""
    found = method.difference
    if found is None:
        return [Cell(NONE)] * 3
    known, estimate = not math.isnan(found.low), measure.gain(found.estimate)
    low, high = sorted((measure.gain(found.low), measure.gain(found.high))) if known else (_NAN, _NAN)
    limits = f"{low:+.2f} to {high:+.2f}" if known else NONE
    better = Cell(f"{found.p_better:.3f}", found.p_better) if known else Cell(NONE)
    return [Cell(f"{estimate:+.2f}", estimate), Cell(limits), better]


def _signed_p(method: MethodSummary) -> str:
    """The corrected p value and a sign: "+" when the reference is better."""
    direction = method.comparison.direction if method.comparison else ""
    return p_value(method.p_holm) + {"better": " +", "worse": " −", "equal": " ="}.get(direction, "")
