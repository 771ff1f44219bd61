"""The table of runs, a data frame: one row per run and domain (or per run, stage and domain), with settings joined on demand.

Columns of every row; rates are in percent, differences in points, and missing means not measured:

    scenario, method, role, seed, unit which run; the role is initial, method, reference or oracle
    domain, position, length           which test set, its place in the order from 1, and its reference length
    first                              rate of the first model
    learned                            rate right after the domain was learned
    final                              rate after the last stage; where domains have models of their own, by that of the domain
    errors                             errors behind `final`
    forgotten                          final − lowest rate since the domain was learned; empty where a stage was not measured
    cer                                `final` in characters
    written, capped, punctuation,      of runs that counted them, after the last stage (`asrcl.scoring.counting.written`)
    precision, recall, case,
    empty, looping
    avg, bwt, fwt, forgetting          of the whole run, the same in all its rows
    seconds                            of training, curvature and decoding, from the costs.json beside the results
    git, path                          source commit, and where results.json lies

With `every_stage`: `stage` and `rate` in place of first, learned, final, errors, forgotten and cer.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, write_text
from asrcl.scoring.counting.written import Written
from asrcl.scoring.display.table import csv_value
from asrcl.scoring.results import metrics
from asrcl.scoring.results.provenance import flatten
from asrcl.scoring.results.run_result import FILE_NAME, RunResult
from asrcl.scoring.results.stage_records import run_seconds

Row = dict[str, Any]
MAX_VALUES: Final = 8
FORMATS: Final = (".csv", ".jsonl", ".parquet")
_CONDITION: Final = re.compile(r"([\w.]+)\s*(<=|>=|!=|=|<|>)\s*([^=~<>!].*|)")
_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def run_table(runs: Iterable[RunResult], *, every_stage: bool = False, settings: Sequence[str] = ()) -> pd.DataFrame:
    """The table of all runs.

    Args:
        runs: in the order wanted.
        every_stage: one row per stage too.
        settings: dotted names of the configuration to join as columns, such as "train.adapt.epochs"; missing where absent.

    Raises:
        InputError: a setting that no run has.
    """
    configs = [(run, dict(flatten(run.config))) for run in runs]
    known = {name for _, found in configs for name in found}
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "look at `config` in a results.json"
            raise InputError(f"no run has the setting {name!r}; {hint}")
    parts = [(found, _stage_rows(run) if every_stage else _domain_rows(run)) for run, found in configs]
    table = pd.DataFrame([row for _, rows in parts for row in rows])
    if "errors" in table:
        table["errors"] = table["errors"].astype("Int64")
    for name in settings:  # of any type, so none is guessed
        table[name] = pd.Series([found.get(name) for found, rows in parts for _ in rows], dtype=object)
    return table


def keep(table: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """The rows that meet all conditions.

    Args:
        table: of `run_table`.
        conditions: "method=ihr", "method=ihr,ft" (any of them), "method!=joint", "final<20"; a column on the left. Decimals
            are compared as far as they are written: "final=20.13" holds for 20.1342.

    Raises:
        InputError: not a condition, an unknown column, or a comparison of what is no number.
    """
    tests = [_condition(text, table) for text in conditions]
    for name, test in tests:
        table = table[[test(value) for value in table[name]]]
    return table


def sort(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """By a column, missing entries last; "-avg" sorts downwards.

    Raises:
        InputError: an unknown column.
    """
    name = column.removeprefix("-")
    require_columns([name], table)
    numbers = all(isinstance(value, int | float | np.number) for value in table[name] if not _is_missing(value))

    def comparable(values: pd.Series[Any]) -> pd.Series[Any]:
        return values if numbers else values.map(lambda value: None if _is_missing(value) else str(value))

    return table.sort_values(name, ascending=name == column, kind="stable", na_position="last", key=comparable)


def write_table(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write .csv, .jsonl or .parquet, by the ending of the path.

    Text that a spreadsheet would run as a formula is guarded in csv; numbers have all their digits.

    Raises:
        InputError: another ending.
    """
    target = Path(path)
    if target.suffix not in FORMATS:
        raise InputError(f"{path}: rows are written as {', '.join(FORMATS)}; choose one of these endings")
    plain = table.map(lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)
    if target.suffix == ".csv":
        cells = plain.astype(object).map(lambda value: csv_value(None if _is_missing(value) else value))
        write_text(target, cells.rename(columns=csv_value).to_csv(index=False, lineterminator="\n"))
    elif target.suffix == ".jsonl":
        write_text(target, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in _json_rows(table)))
    else:
        with atomic_path(target) as temporary:
            plain.apply(_one_type).to_parquet(temporary, index=False)
    return target


def _json_rows(table: pd.DataFrame) -> Iterable[Row]:
    """Rows as JSON can hold them: missing is null, infinity is text."""
    for row in table.to_dict("records"):
        yield {str(name): None if _is_missing(v) else str(v) if v in (math.inf, -math.inf) else v for name, v in row.items()}


def _one_type(column: pd.Series[Any]) -> pd.Series[Any]:
    """A column of one type: anything mixed, or too long for a column of numbers, as text."""
    known = [value for value in column if not _is_missing(value)]
    kinds = {type(value) for value in known}
    long = any(isinstance(value, int) and abs(value) >= 2**63 for value in known)
    if not long and (len(kinds) < 2 or kinds <= {int, float}):
        return column
    return column.map(lambda value: None if _is_missing(value) else str(value))


def _domain_rows(run: RunResult) -> list[Row]:
    rates, characters = run.completed(), run.completed(run.character_rates())
    whole, written = _whole_run(run), run.final_written()
    rows = []
    for j, domain in enumerate(run.domains):
        final = float(rates[-1, j])
        rows.append(
            {
                **_identity(run, j, domain),
                "first": _known(rates[0, j]),
                "learned": _known(rates[j, j]),
                "final": _known(final),
                "errors": run.errors[run.final_stage(j)][j],
                "forgotten": _known(final - float(np.min(rates[j:, j]))),
                "cer": _known(characters[-1, j]),
                **({key: _known(rate) for key, rate in _rates_as_written(written[domain]).items()} if domain in written else {}),
                **whole,
            }
        )
    return rows


def _rates_as_written(counts: tuple[Written, int]) -> dict[str, float]:
    found, length = counts
    return found.rates(length)


def _stage_rows(run: RunResult) -> list[Row]:
    whole = _whole_run(run)
    return [
        {**_identity(run, j, domain), "stage": i + 1, "rate": _known(rate), "errors": run.errors[i][j], **whole}
        for i, row in enumerate(run.rates())
        for j, (domain, rate) in enumerate(zip(run.domains, row, strict=True))
    ]


def _identity(run: RunResult, index: int, domain: str) -> Row:
    names = {"scenario": run.scenario, "method": run.method, "role": run.role, "seed": run.seed, "unit": run.unit}
    return {**names, "domain": domain, "position": index + 1, "length": run.lengths[index]}


def _whole_run(run: RunResult) -> Row:
    rates = run.completed()
    found = {"avg": metrics.avg, "bwt": metrics.bwt, "fwt": metrics.fwt, "forgetting": metrics.forgetting}
    return {
        **{name: _known(metric(rates)) for name, metric in found.items()},
        "seconds": run_seconds(run),
        "git": str(run.environment.get("git", "")),
        "path": str((run.folder or Path()) / FILE_NAME),
    }


def require_columns(names: Sequence[str], table: pd.DataFrame) -> None:
    """Make sure that the table, if it has rows, has these columns.

    Raises:
        InputError: an unknown column; those that there are are listed.
    """
    for name in names:
        if len(table) and name not in table:
            raise InputError(f"no column {name!r}; there are: {', '.join(table)} (join settings with --setting)")


def values_of_conditions(table: pd.DataFrame, conditions: Sequence[str]) -> str:
    """What the columns of some conditions hold, for a message: "method: ft, ihr; seed: 1, 2"."""
    names = [match.group(1) for text in conditions if (match := _CONDITION.fullmatch(text.strip()))]
    parts = []
    for name in dict.fromkeys(names):
        values = list(dict.fromkeys(f"{v:.2f}" if isinstance(v, float) else str(v) for v in table[name]))
        more = f", and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
        parts.append(f"{name}: {', '.join(values[:MAX_VALUES])}{more}")
    return "; ".join(parts)


def _condition(text: str, table: pd.DataFrame) -> tuple[str, Callable[[Any], bool]]:
    """The column of a condition, and the test of its values."""
    match = _CONDITION.fullmatch(text.strip())
    if not match:
        raise InputError(f"condition {text!r}: write column=value, column!=value or column<number, e.g. method=ihr,ft")
    name, sign, wanted = match.groups()
    require_columns([name], table)
    if sign in ("=", "!="):
        values = [value.strip() for value in wanted.split(",")]
        return name, lambda found: any(_equal(found, value) for value in values) == (sign == "=")
    limit, compare = _as_number(wanted, text), _COMPARE[sign]
    return name, lambda found: not _is_missing(found) and compare(_as_number(found, text), limit)


def _as_number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"condition {where!r}: {value!r} is not a number; use = or != for names") from error


def _equal(value: Any, wanted: str) -> bool:
    """Whether a cell is what was typed; numbers to as many decimals as were typed."""
    if _is_missing(value):
        return wanted == ""
    if isinstance(value, float):
        decimals = len(wanted.partition(".")[2])
        try:
            return round(value, decimals) == float(wanted) if decimals else value == float(wanted)
        except ValueError:
            return False
    return str(value) == wanted


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
