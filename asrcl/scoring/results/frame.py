"""Runs as data: one row per run and domain (or per run, stage and domain), to filter, to join with settings, to write.

Columns of every row; rates are in percent, differences in points, and empty (None) means not measured:

    scenario, method, role, seed, unit which run; the role is initial, method, reference or oracle
    domain, position, length           which test set, its place in the order from 1, and its reference length
    first                              rate of the first model
    learned                            rate right after the domain was learned
    final                              rate after the last stage; where domains have models of their own, by that of the domain
    errors                             errors behind `final`
    forgotten                          final − lowest rate since the domain was learned; empty where a stage was not measured
    cer                                `final` in characters
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

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, write_text
from asrcl.scoring.display.table import comma_separated
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


def result_rows(runs: Iterable[RunResult], *, every_stage: bool = False, settings: Sequence[str] = ()) -> list[Row]:
    """The rows of all runs.

    Args:
        runs: in the order wanted.
        every_stage: one row per stage too.
        settings: dotted names of the configuration to join as columns, such as "train.adapt.epochs"; None where absent.

    Raises:
        InputError: a setting that no run has.
    """
    rows: list[Row] = []
    configs = [(run, dict(flatten(run.config))) for run in runs]
    known = {name for _, found in configs for name in found}
    for name in settings:
        if name not in known:
            near = get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else "look at `config` in a results.json"
            raise InputError(f"no run has the setting {name!r}; {hint}")
    for run, found in configs:
        joined = {name: found.get(name) for name in settings}
        rows.extend({**row, **joined} for row in (_stage_rows(run) if every_stage else _domain_rows(run)))
    return rows


def keep_rows(rows: Iterable[Row], conditions: Sequence[str]) -> list[Row]:
    """The rows that meet all conditions.

    Args:
        rows: of `result_rows`.
        conditions: "method=ihr", "method=ihr,ft" (any of them), "method!=joint", "final<20"; a column on the left. Decimals
            are compared as far as they are written: "final=20.13" holds for 20.1342.

    Raises:
        InputError: not a condition, an unknown column, or a comparison of what is no number.
    """
    rows = list(rows)
    tests = [_condition(text, rows) for text in conditions]
    return [row for row in rows if all(test(row) for test in tests)]


def sort_rows(rows: Sequence[Row], column: str) -> list[Row]:
    """By a column, empty entries last; "-avg" sorts downwards.

    Raises:
        InputError: an unknown column.
    """
    name, down = column.removeprefix("-"), column.startswith("-")
    require_columns([name], rows)
    known = [row for row in rows if row[name] is not None]
    numbers = all(isinstance(row[name], int | float) for row in known)
    ranked = sorted(known, key=lambda row: row[name] if numbers else str(row[name]), reverse=down)
    return [*ranked, *(row for row in rows if row[name] is None)]


def pick_columns(rows: Sequence[Row], columns: Sequence[str]) -> list[Row]:
    """Only these columns, in this order; all of them when none is named.

    Raises:
        InputError: an unknown column.
    """
    require_columns(columns, rows)
    return [{name: row[name] for name in columns} for row in rows] if columns else list(rows)


def write_rows(rows: Sequence[Row], path: str | os.PathLike[str]) -> Path:
    """Write .csv, .jsonl or .parquet, by the ending of the path.

    Raises:
        InputError: another ending, or pyarrow is needed and absent.
    """
    target = Path(path)
    writers = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if target.suffix not in writers:
        raise InputError(f"{path}: rows are written as {', '.join(FORMATS)}; choose one of these endings")
    writers[target.suffix](rows, target)
    return target


def _domain_rows(run: RunResult) -> list[Row]:
    rates, characters = run.completed(), run.completed(run.character_rates())
    whole = _whole_run(run)
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
                **whole,
            }
        )
    return rows


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


def _condition(text: str, rows: Sequence[Row]) -> Callable[[Row], bool]:
    match = _CONDITION.fullmatch(text.strip())
    if not match:
        raise InputError(f"condition {text!r}: write column=value, column!=value or column<number, e.g. method=ihr,ft")
    name, sign, wanted = match.groups()
    require_columns([name], rows)
    if sign in ("=", "!="):
        values = [value.strip() for value in wanted.split(",")]
        return lambda row: any(_equal(row[name], value) for value in values) == (sign == "=")
    limit = _as_number(wanted, text)
    compare = _COMPARE[sign]
    return lambda row: row[name] is not None and compare(_as_number(row[name], text), limit)


def require_columns(names: Sequence[str], rows: Sequence[Row]) -> None:
    """Make sure that the rows, if there are any, have these columns.

    Raises:
        InputError: an unknown column; those that there are are listed.
    """
    for name in names:
        if rows and name not in rows[0]:
            raise InputError(f"no column {name!r}; there are: {', '.join(rows[0])} (join settings with --setting)")


def values_of_conditions(rows: Sequence[Row], conditions: Sequence[str]) -> str:
    """What the columns of some conditions hold, for a message: "method: ft, ihr; seed: 1, 2"."""
    names = [match.group(1) for text in conditions if (match := _CONDITION.fullmatch(text.strip()))]
    parts = []
    for name in dict.fromkeys(names):
        values = list(dict.fromkeys(f"{v:.2f}" if isinstance(v := row[name], float) else str(v) for row in rows))
        more = f", and {len(values) - MAX_VALUES} more" if len(values) > MAX_VALUES else ""
        parts.append(f"{name}: {', '.join(values[:MAX_VALUES])}{more}")
    return "; ".join(parts)


def _as_number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"condition {where!r}: {value!r} is not a number; use = or != for names") from error


def _equal(value: Any, wanted: str) -> bool:
    """Whether a cell is what was typed; numbers to as many decimals as were typed."""
    if value is None:
        return wanted == ""
    if isinstance(value, float):
        decimals = len(wanted.partition(".")[2])
        try:
            return round(value, decimals) == float(wanted) if decimals else value == float(wanted)
        except ValueError:
            return False
    return str(value) == wanted


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain(value: Any) -> Any:
    """Lists and mappings of the configuration as JSON text, so that a cell is a scalar."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    header = list(rows[0]) if rows else []
    write_text(path, comma_separated(header, ([_plain(value) for value in row.values()] for row in rows)))


def _write_jsonl(rows: Sequence[Row], path: Path) -> None:
    def strict(value: Any) -> Any:
        return str(value) if isinstance(value, float) and math.isinf(value) else value

    lines = (json.dumps({name: strict(value) for name, value in row.items()}, ensure_ascii=False) for row in rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{path}: parquet needs pyarrow, which is not installed; pip install pyarrow, or choose .csv"
        ) from error
    columns = list(rows[0]) if rows else []
    table = pyarrow.table({name: _column([_plain(row[name]) for row in rows]) for name in columns})
    with atomic_path(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: numbers as they are, anything mixed, or too long for a column of numbers, as text."""
    kinds = {type(value) for value in values if value is not None}
    long = any(isinstance(value, int) and abs(value) >= 2**63 for value in values)
    mixed = long or (len(kinds) > 1 and not kinds <= {int, float})
    return [None if value is None else str(value) for value in values] if mixed else values
