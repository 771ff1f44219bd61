"""Scoring as a check: count every stored decode again and hold the counts against `results.json`."""

from __future__ import annotations

from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.scoring.report import terminal_table
from asrcl.scoring.results import RunResult, find_results
from asrcl.scoring.transcripts import score_files


def recount(folder: Path) -> str:
    """Count the errors of every `hyp.trn` below a folder against its `ref.trn`.

    Returns the table of results and a line that says how many decodes were counted.

    Raises:
        InputError: there are no results, or a count differs from its `results.json`.
    """
    runs = find_results(folder)
    if not runs:
        raise InputError(f"{folder}: no results.json below it; run the decode stage (asrcl decode) first")
    counted = sum(_recount_run(run) for run in runs)
    proof = f"recounted {counted} decodes of {len(runs)} runs: every count agrees with its results.json"
    return f"{terminal_table(runs)}\n{proof}"


def _recount_run(run: RunResult) -> int:
    decodes = 0
    for stage, row in enumerate(run.item_files):
        for domain, name in enumerate(row):
            if name is None or run.folder is None:
                continue
            folder = (run.folder / name).parent
            total = score_files(folder / "ref.trn", folder / "hyp.trn").total
            if total != run.errors[stage][domain]:
                stored = run.errors[stage][domain]
                raise InputError(f"{folder}: {total} errors here, {stored} in results.json; run the decode stage again")
            decodes += 1
    return decodes
