"""What people lose: punctuation, case, empty and looping outputs after the last stage, of runs that counted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from asrcl.scoring.counting.written import COUNTS, RATES
from asrcl.scoring.display.numbers import decimal
from asrcl.scoring.display.table import Cell, Table, comma_separated
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, mean_known
from asrcl.scoring.results.metrics import Matrix

SHOWN: Final = ("written", "capped", "punctuation", "case", "empty", "looping")
CAPTION: Final = (
    "What people lose, in %, after the last stage, means over seeds. WER: of normalised texts, as above. As written: "
    "on texts with case and punctuation. Capped: normalised, at most 100 % per utterance, so that no looping output decides. "
    "Punctuation: F1 of . , ? ! ; : behind aligned words. Case: aligned words written alike. A dash where the references have no "
    "punctuation, or no capital letters. Empty: outputs without a word. Looping: outputs that repeat themselves."
)
_DOMAINS: Final = "mean over domains"


def written_tables(summary: ScenarioSummary) -> tuple[list[Table], list[Table]]:
    """Of the mean over the domains and of each probe a table, and then of each domain; none where no run has such counts."""
    rows = {method.method: _rows(summary, method) for method in summary.methods}
    return _tables(summary, rows, (_DOMAINS, *summary.probes)), _tables(summary, rows, summary.domains)


def _tables(summary: ScenarioSummary, rows: Mapping[str, Mapping[str, Matrix]], names: Sequence[str]) -> list[Table]:
    tables = []
    for name in names:
        measured = [method for method in summary.methods if name in rows[method.method]]
        cells = [[Cell(m.label), *(Cell(decimal(v), v) for v in rows[m.method][name].tolist())] for m in measured]
        if cells:
            header = [name, summary.rate_name, *(RATES[key] for key in SHOWN)]
            tables.append(Table(header, cells, [method.method for method in measured]))
    return tables


def _rows(summary: ScenarioSummary, method: MethodSummary) -> dict[str, Matrix]:
    """The rates of a method after the last stage by test set, means over seeds: word errors as scored, then those shown."""
    scored = [*method.final, *mean_known(list(method.probes))[-1]]
    seeds = [run.final_written() for run in summary.runs_of(method.method)]
    rows = {}
    for name, rate in zip((*summary.domains, *summary.probes), scored, strict=True):
        rates = [entry.rates(length) for found in seeds if name in found for entry, length in [found[name]]]
        if rates:
            rows[name] = np.array([rate, *mean_known([np.array([each[key] for key in SHOWN]) for each in rates])])
    domains = [rows[name] for name in summary.domains if name in rows]
    return {_DOMAINS: mean_known(domains), **rows} if domains else rows


def written_caption(summary: ScenarioSummary) -> str:
    """What the tables show, and how many references the normaliser left empty."""
    found = {name: entry.emptied for run in summary.runs for name, (entry, _) in run.final_written().items() if entry.emptied}
    if not found:
        return CAPTION
    sets = ", ".join(f"{name} {count}" for name, count in found.items())
    return f"{CAPTION} References that the normaliser left without words, where what is recognised counts as inserted: {sets}."


def written_csv(summary: ScenarioSummary) -> str:
    """One row per run, stage and test set with all counts and rates; nothing where no run has such counts."""
    rows = []
    for run in summary.runs:
        for stage, row in enumerate(run.written):
            places = zip(run.domains, row, run.lengths, strict=True)
            probes = ((probe.name, probe.written[stage], probe.length) for probe in run.probes if probe.written)
            for name, entry, length in [*places, *probes]:
                if entry is not None:
                    counts, rates = [getattr(entry, key) for key in COUNTS], entry.rates(length).values()
                    rows.append([run.scenario, run.method, run.seed, stage + 1, run.domains[stage], name, *counts, *rates])
    header = ["scenario", "method", "seed", "stage", "learned", "test", *COUNTS, *(f"{key}_rate" for key in RATES)]
    return comma_separated(header, rows) if rows else ""
