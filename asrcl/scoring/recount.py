"""Scoring as a check: count every stored decode again and hold the counts against `results.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.scoring.errors import counted
from asrcl.scoring.report import terminal_table
from asrcl.scoring.results import RunResult, find_results
from asrcl.scoring.transcripts import score_files


@dataclass
class _Tally:
    """What was checked: decodes, runs with at least one; what was not: measured results without a decode, runs without any."""

    decodes: int = 0
    runs: int = 0
    missing: int = 0
    unchecked_runs: int = 0


def recount(folder: Path) -> str:
    """Count the errors of every `hyp.trn` below a folder against its `ref.trn`, with unit costs.

    Compared with `results.json` are the errors (substitutions, deletions and insertions together), the reference words, and
    the errors and lengths in characters where the run counted them.

    Returns the table of results and a line that says how many decodes were counted, and what could not be.

    Raises:
        InputError: there are no results, or a count differs from its `results.json`.
    """
    runs = find_results(folder)
    if not runs:
        raise InputError(f"{folder}: no results.json below it; run the decode stage (asrcl decode) first")
    tally = _Tally()
    for run in runs:
        _recount_run(run, tally)
    return f"{terminal_table(runs)}\n{_verdict(tally)}\n"


def _recount_run(run: RunResult, tally: _Tally) -> None:
    decodes = 0
    for stage, row in enumerate(run.errors):
        for domain, measured in enumerate(row):
            home = _decode_folder(run, stage, domain)
            if home is not None:
                _check(run, stage, domain, home)
                decodes += 1
            elif measured is not None:
                tally.missing += 1
    tally.decodes += decodes
    tally.runs += decodes > 0
    tally.unchecked_runs += decodes == 0


def _decode_folder(run: RunResult, stage: int, domain: int) -> Path | None:
    """Where the transcripts of an evaluation lie; None if none were kept, as of tasks without words."""
    name = run.item_files[stage][domain] if run.item_files else None
    return None if name is None or run.folder is None or run.unit != "word" else (run.folder / name).parent


def _check(run: RunResult, stage: int, domain: int, home: Path) -> None:
    found = score_files(home / "ref.trn", home / "hyp.trn")
    pairs = {"errors": (found.total, run.errors[stage][domain]), "reference words": (found.length, run.lengths[domain])}
    if run.character_errors and run.character_errors[stage][domain] is not None:
        pairs["character errors"] = found.character_errors, run.character_errors[stage][domain]
        pairs["reference characters"] = found.character_length, run.character_lengths[domain]
    for what, (here, stored) in pairs.items():
        if here != stored:
            raise InputError(f"{home}: {what}: {here} here, {stored} in results.json; run the decode stage again")


def _verdict(tally: _Tally) -> str:
    lines = []
    if tally.decodes:
        done = f"recounted {counted(tally.decodes, 'decode')} of {counted(tally.runs, 'run')}"
        lines.append(f"{done}: every count agrees with its results.json")
    else:
        lines.append("nothing was recounted: no run kept its transcripts")
    if tally.unchecked_runs:
        lines.append(f"{counted(tally.unchecked_runs, 'run')} without transcripts could not be checked")
    if tally.missing:
        lines.append(f"{counted(tally.missing, 'result')} without transcripts could not be checked")
    return "\n".join(lines)
