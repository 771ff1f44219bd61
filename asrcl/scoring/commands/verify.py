"""Scoring as a check: count every stored decode again and hold the counts against `results.json`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import Errors, counted
from asrcl.scoring.counting.written import Written, count_written
from asrcl.scoring.report.markdown import terminal_table
from asrcl.scoring.results.discovery import find_results, look_below
from asrcl.scoring.results.run_result import RunResult
from asrcl.scoring.transcripts.read_write import score_files


@dataclass
class _Tally:
    """What was checked: decodes, runs with at least one; what was not: measured results without a decode, runs without any."""

    decodes: int = 0
    runs: int = 0
    missing: int = 0
    unchecked_runs: int = 0


@dataclass(frozen=True)
class _Measured:
    """One evaluation: its file of items, and its counts."""

    file: str | None
    errors: int | None
    length: int
    character_errors: int | None
    character_length: int
    written: Written | None = None


def recount(*folders: Path, table: bool = True) -> str:
    """Count the errors of every decode below some folders again, with unit costs: those of `hyp.trn` against `ref.trn`.

    Of images, which have no such files, the items of `utterances.jsonl` whose class and whose guess differ are counted.

    Compared with `results.json` are the errors (substitutions, deletions and insertions together), the reference words, and
    the errors and lengths in characters where the run counted them. Where it kept counts of punctuation, case, empty and looping
    outputs, these are counted again on the texts as written, which `utterances.jsonl` has.

    Returns the table of results, where it is wanted, and a line that says how many decodes were counted, and what could not be.

    Raises:
        InputError: there are no results, or a count differs from its `results.json`.
    """
    runs = [run for folder in folders for run in find_results(folder)]
    strays = "; ".join(line for folder in folders if (line := look_below(folder).stray_line()))
    if not runs:
        more = f" ({strays})" if strays else ""
        raise InputError(f"{folders[0]}: no results.json below it{more}; run the decode stage (asrcl decode) first")
    tally = _Tally()
    for run in runs:
        _recount_run(run, tally)
    shown = f"{terminal_table(runs)}\n" if table else ""
    return f"{shown}{_verdict(tally)}\n{strays and f'{strays}{chr(10)}'}"


def _recount_run(run: RunResult, tally: _Tally) -> None:
    decodes = 0
    for measured in _measured(run):
        home = _decode_folder(run, measured.file)
        if home is not None:
            _check(measured, home, run.unit)
            decodes += 1
        elif measured.errors is not None:
            tally.missing += 1
    tally.decodes += decodes
    tally.runs += decodes > 0
    tally.unchecked_runs += decodes == 0


def _measured(run: RunResult) -> Iterator[_Measured]:
    """What a run says of every stage and domain, and of every stage and probe."""
    for stage, row in enumerate(run.errors):
        for domain, errors in enumerate(row):
            file = run.item_files[stage][domain] if run.item_files else None
            characters = run.character_errors[stage][domain] if run.character_errors else None
            length = run.character_lengths[domain] if run.character_errors else 0
            written = run.written[stage][domain] if run.written else None
            yield _Measured(file, errors, run.lengths[domain], characters, length, written)
    for probe in run.probes:
        for stage, errors in enumerate(probe.errors):
            file = probe.item_files[stage] if probe.item_files else None
            characters = probe.character_errors[stage] if probe.character_errors else None
            written = probe.written[stage] if probe.written else None
            yield _Measured(file, errors, probe.length, characters, probe.character_length, written)


def _decode_folder(run: RunResult, file: str | None) -> Path | None:
    """Where the decodes of an evaluation lie; None if none were kept, or none that can be counted again."""
    return None if file is None or run.folder is None or run.unit not in ("word", "image") else (run.folder / file).parent


def _check(measured: _Measured, home: Path, unit: str) -> None:
    if unit == "image":
        _check_images(measured, home)
        return
    found = score_files(home / "ref.trn", home / "hyp.trn")
    pairs = {"errors": (found.total, measured.errors), "reference words": (found.length, measured.length)}
    if measured.character_errors is not None:
        pairs["character errors"] = found.character_errors, measured.character_errors
        pairs["reference characters"] = found.character_length, measured.character_length
    for what, (here, stored) in [*pairs.items(), *_written_pairs(measured, home)]:
        if here != stored:
            raise InputError(f"{home}: {what}: {here} here, {stored} in results.json; run the decode stage again")


def _written_pairs(measured: _Measured, home: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """The counts of written text, made again from the texts as written, beside those that the run kept."""
    if measured.written is None:
        return
    items = home / "utterances.jsonl"
    counted_again = count_written(Errors.load(items))
    if counted_again is None:
        raise InputError(f"{items}: does not say how its texts were normalised; run the decode stage again")
    stored = asdict(measured.written)
    for name, count in asdict(counted_again).items():
        yield f"written text, {name}", (count, stored[name])


def _check_images(measured: _Measured, home: Path) -> None:
    items = Errors.load(home / "utterances.jsonl").items
    wrong = sum(item.reference != item.hypothesis for item in items)
    for what, here, stored in (("errors", wrong, measured.errors), ("images", len(items), measured.length)):
        if here != stored:
            raise InputError(f"{home}: {what}: {here} here, {stored} in results.json; run the decode stage again")


def _verdict(tally: _Tally) -> str:
    lines = []
    if tally.decodes:
        done = f"recounted {counted(tally.decodes, 'decode')} of {counted(tally.runs, 'run')}"
        lines.append(f"{done}: every count agrees with its results.json")
    else:
        lines.append("nothing was recounted: no run kept its decodes")
    if tally.unchecked_runs:
        lines.append(f"{counted(tally.unchecked_runs, 'run')} without decodes could not be checked")
    if tally.missing:
        lines.append(f"{counted(tally.missing, 'result')} without decodes could not be checked")
    return "\n".join(lines)
