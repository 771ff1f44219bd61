"""The tables of a report, made from `summary` once; RESULTS.md, report.html, the terminal, LaTeX and CSV write them down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from asrcl.scoring.display.numbers import NONE, decimal, p_value
from asrcl.scoring.display.table import Cell, Table, comma_separated, plain
from asrcl.scoring.report.orders import OrderSummary
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, mean_known
from asrcl.scoring.results.metrics import METRICS
from asrcl.scoring.significance.paired_tests import PairedTest

SHOWN: Final = ("avg", "word_weighted_avg", "bwt", "fwt", "cov", "forgetting", "intransigence")
_NAN: Final = float("nan")


def number(value: float, metric: str = "avg") -> str:
    """Two decimals, differences with their sign, COV with one; a dash for nan."""
    if metric == "cov":
        return decimal(value, 1)
    return decimal(value, signed=METRICS[metric].unit == "points")


def main_table(summary: ScenarioSummary) -> Table:
    """Methods by domains and metrics, after the last stage; the best of each column marked, references apart."""
    reference, images = summary.reference, summary.unit == "image"
    characters = summary.unit == "word" and any(not math.isnan(method.mean("cer_avg")) for method in summary.methods)
    header = ["Method", "seeds", *summary.domains, METRICS["avg"].symbol, "CI95", *summary.probes]
    header += [METRICS[key].symbol for key in SHOWN[1:]]
    header += (["ACC"] if images else []) + (["CER"] if characters else []) + [f"p ({reference})"]
    rows = [_main_row(method, reference, characters, images) for method in summary.methods]
    return Table(header, _mark_best(header, rows, summary.methods), [method.method for method in summary.methods])


def significance_table(summary: ScenarioSummary) -> Table | None:
    """The signed-rank tests of the reference method against the others; None without any."""
    tested = [(method, method.comparison) for method in summary.methods if method.comparison]
    if not tested:
        return None
    name = next(method.label for method in summary.methods if method.method == summary.reference)
    noun = "utterances" if summary.unit in ("word", "character") else "items"
    header = [f"{name} against", "p", "p (Holm)", f"{name} is", f"{noun} that differ", "of"]
    header += ["ΔAVG", "CI95 of ΔAVG", f"P({name} better)"]
    return Table(header, [_test_row(method, test) for method, test in tested], [method.method for method, _ in tested])


def matrix_table(summary: ScenarioSummary, method: MethodSummary) -> Table:
    """R of one method, mean over seeds: a row per stage, a column per domain."""
    rows = [
        [Cell(f"{stage + 1} {name}"), *(Cell(number(value), value) for value in values)]
        for stage, (name, values) in enumerate(zip(summary.domains, method.matrix, strict=True))
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
        "resamples speakers. Not part of AVG or any other metric."
    )


def probe_tables(summary: ScenarioSummary) -> list[Table]:
    """Per probe the error rate after every stage, with the interval over speakers after the last; mean over seeds."""
    tables = []
    for n, probe in enumerate(summary.probes):
        header = [probe, *(f"{stage} {domain}" for stage, domain in enumerate(summary.domains, 1)), "CI95"]
        measured = [method for method in summary.methods if not np.isnan(method.probes[:, :, n]).all()]
        rows = []
        for method in measured:
            rates, interval = mean_known(list(method.probes))[:, n].tolist(), method.probe_intervals[n]
            limits = NONE if interval is None or math.isnan(interval.low) else f"{interval.low:.2f}–{interval.high:.2f}"
            rows.append([Cell(method.label), *(Cell(number(rate), rate) for rate in rates), Cell(limits)])
        tables.append(Table(header, rows, [method.method for method in measured]))
    return tables


def metrics_table(keys: Sequence[str], *, accuracies: bool = False) -> Table:
    """What each number means: formula, direction, unit, which other runs it needs, source.

    Args:
        keys: of `METRICS`.
        accuracies: add the formulas for accuracies.
    """
    header = ["", "meaning", "definition", *(["with accuracies A = 100 − R"] if accuracies else [])]
    header += ["better", "unit", "needs of R", "reference models", "source"]
    rows = []
    for metric in (METRICS[key] for key in keys):
        formulas = [f"`{metric.formula}`", *([f"`{metric.accuracy_formula}`"] if accuracies else [])]
        words = [metric.better, metric.unit, metric.entries, metric.references, metric.source]
        rows.append([metric.symbol, metric.name, *formulas, *words])
    return plain(header, rows)


def definitions(keys: Sequence[str] = SHOWN, *, sources: bool = False) -> list[str]:
    """One line per metric, to stand under its numbers: "BWT = formula (higher is better; needs ...)".

    Args:
        keys: of the metrics.
        sources: say also where each definition comes from.
    """
    lines = []
    for metric in (METRICS[key] for key in keys):
        needs = "" if metric.references == "none" else f"; needs {metric.references}"
        source = f" [{metric.source}]" if sources else ""
        lines.append(f"{metric.symbol} = {metric.formula} ({metric.better} is better{needs}){source}")
    return lines


def metrics_csv(keys: Sequence[str]) -> str:
    """What the columns of `main_csv` mean: key, symbol, formula, sign, unit, reference models, source."""
    header = ["key", "symbol", "name", "formula", "better", "unit", "entries", "references", "source"]
    found = [METRICS[key] for key in keys]
    return comma_separated(
        header,
        (
            [key, m.symbol, m.name, m.formula, m.better, m.unit, m.entries, m.references, m.source]
            for key, m in zip(keys, found, strict=True)
        ),
    )


def orders_table(orders: Sequence[OrderSummary]) -> Table:
    """AOPD and MOPD, and the disparity of every domain."""
    header = ["Method", "orders", *(f"OPD {domain}" for domain in orders[0].domains), "AOPD", "MOPD"]
    rows = [
        [Cell(order.label), Cell(str(len(order.orders)), len(order.orders))]
        + [Cell(number(value), value) for value in (*order.disparity, order.aopd, order.mopd)]
        for order in orders
    ]
    return Table(header, rows, [order.method for order in orders])


def verdict(method: MethodSummary) -> str:
    """What the test allows to be said of the reference against `method`, at the 5 % level after correction."""
    if method.comparison is None:
        return NONE
    direction = method.comparison.direction
    return direction if method.p_holm < 0.05 else f"not distinguishable ({direction})"


def main_csv(summary: ScenarioSummary) -> str:
    """The main table with all digits: means, deviations, interval, p values."""
    keys = [*SHOWN, "accuracy", "cer_avg"]
    header = ["scenario", "method", "label", "seeds", *summary.domains, *summary.probes]
    header += [name for key in keys for name in (key, f"{key}_sd")] + ["avg_ci_low", "avg_ci_high", "p", "p_holm"]
    return comma_separated(header, (_csv_row(summary, method, keys) for method in summary.methods))


def matrices_csv(summary: ScenarioSummary) -> str:
    """One row per run, stage and domain: errors, reference length and rate in percent, as measured."""
    header = ["scenario", "method", "seed", "stage", "learned", "domain", "errors", "length", "rate"]
    return comma_separated(
        header,
        (
            [run.scenario, run.method, run.seed, i + 1, run.domains[i], domain, run.errors[i][j], run.lengths[j], rate]
            for run in summary.runs
            for i, row in enumerate(run.rates())
            for j, (domain, rate) in enumerate(zip(run.domains, row.tolist(), strict=True))
        ),
    )


def _csv_row(summary: ScenarioSummary, method: MethodSummary, keys: Sequence[str]) -> list[Any]:
    interval, test = method.interval, method.comparison
    return [
        *(summary.scenario, method.method, method.label, len(method.seeds), *method.final.tolist()),
        *mean_known(list(method.probes))[-1].tolist(),
        *(value for key in keys for value in (method.mean(key), method.deviation(key))),
        *((interval.low, interval.high) if interval else (None, None)),
        *(test.p_value if test else None, method.p_holm),
    ]


def _main_row(method: MethodSummary, reference: str, characters: bool, images: bool) -> list[Cell]:
    average, deviation, interval = method.mean("avg"), method.deviation("avg"), method.interval
    spread = "" if math.isnan(deviation) else f" ± {deviation:.2f}"
    known = interval is not None and not math.isnan(interval.low)
    row = [Cell(method.label), Cell(str(len(method.seeds)), len(method.seeds))]
    row += [Cell(number(value), value) for value in method.final.tolist()]
    row.append(Cell(number(average) + spread, average))
    row.append(Cell(f"{interval.low:.2f}–{interval.high:.2f}" if known and interval else NONE))
    row += [Cell(number(value), value) for value in mean_known(list(method.probes))[-1].tolist()]
    row += [Cell(number(method.mean(key), key), method.mean(key)) for key in SHOWN[1:]]
    extra = (["accuracy"] if images else []) + (["cer_avg"] if characters else [])
    row += [Cell(number(method.mean(key)), method.mean(key)) for key in extra]
    own = method.method == reference
    row.append(Cell("reference") if own else Cell(_signed_p(method), method.p_holm))
    return row


def _mark_best(header: list[str], rows: list[list[Cell]], methods: list[MethodSummary]) -> list[list[Cell]]:
    """The best value of each column of rates and metrics; the initial model and oracles do not compete."""
    better = {metric.symbol: metric.better for metric in METRICS.values()}
    competing = [index for index, method in enumerate(methods) if method.competes]
    marked = [list(row) for row in rows]
    for column, name in enumerate(header):
        if name == "seeds" or name.startswith("p ("):
            continue
        sign = -1.0 if better.get(name) == "higher" else 1.0
        values = {index: sign * round(rows[index][column].value, 2) for index in competing}
        values = {index: value for index, value in values.items() if not math.isnan(value)}
        for index, value in values.items():
            if len(values) > 1 and value == min(values.values()):
                marked[index][column] = replace(rows[index][column], best=True)
    return marked


def _test_row(method: MethodSummary, test: PairedTest) -> list[Cell]:
    return [
        Cell(method.label),
        Cell(p_value(test.p_value), test.p_value),
        Cell(p_value(method.p_holm), method.p_holm),
        Cell(verdict(method)),
        Cell(str(test.used), test.used),
        Cell(str(test.items), test.items),
        *_difference(method),
    ]


def _difference(method: MethodSummary) -> list[Cell]:
    """ΔAVG, its interval and P(better), by paired bootstrap over speakers."""
    found = method.difference
    if found is None:
        return [Cell(NONE)] * 3
    known = not math.isnan(found.low)
    limits = f"{found.low:+.2f} to {found.high:+.2f}" if known else NONE
    better = Cell(f"{found.p_better:.3f}", found.p_better) if known else Cell(NONE)
    return [Cell(f"{found.estimate:+.2f}", found.estimate), Cell(limits), better]


def _signed_p(method: MethodSummary) -> str:
    """The corrected p value and a sign: "+" when the reference is better."""
    direction = method.comparison.direction if method.comparison else ""
    return p_value(method.p_holm) + {"better": " +", "worse": " −", "equal": " ="}.get(direction, "")
