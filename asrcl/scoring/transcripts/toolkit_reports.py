"""Error counts in the file layouts of other toolkits, for scripts and readers that expect these.

    sclite_summary      sclite -o sum: one row per speaker, in percent
    sclite_alignments   sclite -o pra: REF / HYP / Eval per utterance
    icefall_errors      errs-*.txt: rate, alignments, confusions, statistics per word
    icefall_transcripts recogs-*.txt: reference and hypothesis as lists
    speechbrain_errors  wer_*.txt: rate, then every alignment

Each takes counts that hold their texts and gives the whole file as text; `write_toolkit_reports` writes them all.
Layouts were learned from files that the tools wrote (sclite 2.4.10, SpeechBrain 1.1.2) and from icefall's documented example.
The alignments are those of `counting.align`: the total of errors is the toolkit's own where its costs are used, while
the alignment shown, and the shares of substitutions, deletions and insertions, may differ. wer_*.txt with unit costs is an
exception: it is what SpeechBrain 1.1.2 writes, byte for byte, with its alignments and its rates for empty references.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Final

from asrcl.exceptions import InputError
from asrcl.files import write_parts, write_text
from asrcl.scoring.counting.align import PRICES, Costs
from asrcl.scoring.counting.confusions import Confusions, confusions, item_steps, items_steps
from asrcl.scoring.counting.cost_tables import Step, speechbrain_steps
from asrcl.scoring.counting.errors import Errors, ItemErrors, percent
from asrcl.scoring.transcripts.files import AnyPath
from asrcl.scoring.transcripts.read_write import cell_width, pad_cell, write_trn

_HEADER: Final = ("SPKR", "# Snt", "# Wrd", "Corr", "Sub", "Del", "Ins", "Err", "S.Err")
_NOTES: Final = (
    "* No reference words for this speaker: counts of words instead of percentages.",
    "+ Speakers without reference words are left out.",
)
_RULE: Final = "=" * 80
_EMPTY: Final = "<eps>"
_ICEFALL_EMPTY: Final = "*"


def write_toolkit_reports(
    errors: Errors, folder: AnyPath, name: str, costs: Costs = "unit", counts: Confusions | None = None
) -> list[str]:
    """Write ref.trn, hyp.trn, hyp.trn.sys, hyp.trn.pra, errs-NAME.txt, recogs-NAME.txt and wer_NAME.txt into a folder.

    `counts` are the confusions of the set under these costs, where they are known already.

    Returns what could not be written, a line each: ids or texts that a .trn cannot hold.
    """
    home, left_out = Path(folder), []
    for side in ("reference", "hypothesis"):
        try:
            write_trn(home / f"{side[:3]}.trn", {item.id: getattr(item, side) for item in errors.items})
        except InputError as error:
            left_out.append(str(error))
    write_text(home / "hyp.trn.sys", sclite_summary(errors, "hyp.trn", costs))
    write_parts(home / "hyp.trn.pra", _joined(_pra_lines(errors, "hyp.trn", costs)))
    write_parts(home / f"errs-{name}.txt", (f"{line}\n" for line in _errs_lines(errors, costs, counts)))
    write_parts(home / f"recogs-{name}.txt", _recogs_lines(errors))
    _write_speechbrain(home / f"wer_{name}.txt", errors, costs)
    return left_out


def _joined(lines: Iterable[str]) -> Iterator[str]:
    """The lines with line feeds between them, none at the end."""
    for number, line in enumerate(lines):
        yield f"\n{line}" if number else line


def sclite_summary(errors: Errors, title: str, costs: Costs = "unit") -> str:
    """Percentages per speaker with sum, mean, standard deviation (n - 1) and median over speakers.

    A speaker without reference words has counts, marked "*", and is left out of the last three rows, marked "+".
    """
    groups = errors.by_group()
    rows = [_sclite_row(name, part) for name, part in groups.items()]
    whole = [_sclite_row("Sum/Avg", errors)]
    return _sclite_table(title, [rows, whole, _spread_rows(list(groups.values()))], costs)


def sclite_alignments(errors: Errors, title: str, costs: Costs = "unit") -> str:
    """Every utterance in three lines, words that are wrong in capitals, grouped by speaker; `title` names the system."""
    return "\n".join(_pra_lines(errors, title, costs))


def _pra_lines(errors: Errors, title: str, costs: Costs) -> Iterator[str]:
    groups = errors.by_group()
    yield from ("\n\n\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE", "", f"System name:   {title}", _costs_line(costs), "", "Speakers: ")
    yield from (f"{place:5}:  {group}" for place, group in enumerate(groups))
    yield ""
    for place, (group, part) in enumerate(groups.items()):
        yield f"Speaker sentences {place:3}:  {group}   #utts: {len(part)}"
        for item, steps in zip(part.items, items_steps(part.items, costs), strict=True):
            correct = item.length - item.substitutions - item.deletions
            yield f"id: ({item.id})"
            yield f"Scores: (#C #S #D #I) {correct} {item.substitutions} {item.deletions} {item.insertions}"
            yield three_lines(steps) + "\n"


def three_lines(steps: Sequence[Step]) -> str:
    """An alignment as REF, HYP and Eval lines; wrong words in capitals, missing ones as stars.

    Two words that differ in case alone stay as they are written, for in capitals nobody would see what is wrong.
    """
    columns = [_column(*step) for step in steps]
    rows = zip(*columns, strict=True) if columns else iter([(), (), ()])
    return "\n".join(
        f"{name + ':':<6}{' '.join(cells)}".rstrip() for name, cells in zip(("REF", "HYP", "Eval"), rows, strict=True)
    )


def icefall_errors(errors: Errors, costs: Costs = "unit", counts: Confusions | None = None) -> str:
    """The file errs-*.txt; `counts` are its confusions, where they are known already."""
    return "".join(f"{line}\n" for line in _errs_lines(errors, costs, counts))


def _errs_lines(errors: Errors, costs: Costs, counts: Confusions | None) -> Iterator[str]:
    counts = confusions(errors, costs) if counts is None else counts
    correct = errors.length - errors.substitutions - errors.deletions
    yield f"%WER = {percent(errors.total, errors.length):.2f}"
    kinds = f"{errors.insertions} insertions, {errors.deletions} deletions, {errors.substitutions} substitutions"
    yield f"Errors: {kinds}, over {errors.length} reference words ({correct} correct)"
    yield "Search below for sections starting with PER-UTT DETAILS:, SUBSTITUTIONS:, DELETIONS:, INSERTIONS:, PER-WORD STATS:"
    yield from ("", "PER-UTT DETAILS: corr or (ref->hyp)  ")
    aligned = zip(errors.items, items_steps(errors.items, costs), strict=True)
    yield from (f"{item.id}:\t{_arrows(steps)}" for item, steps in aligned)
    yield from ("", "SUBSTITUTIONS: count ref -> hyp")
    yield from (f"{count}   {word} -> {other}" for (word, other), count in _descending(counts.substitutions))
    yield from ("", "DELETIONS: count ref", *_counted(counts.deletions))
    yield from ("", "INSERTIONS: count hyp", *_counted(counts.insertions))
    yield from ("", "PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp")
    table = counts.words().items()
    words = sorted(((wrong, word, right, said, recognised) for word, (right, wrong, said, recognised) in table), reverse=True)
    yield from (f"{word}   {right} {wrong} {said} {recognised}" for wrong, word, right, said, recognised in words)


def icefall_transcripts(errors: Errors) -> str:
    """The file recogs-*.txt."""
    return "".join(_recogs_lines(errors))


def _recogs_lines(errors: Errors) -> Iterator[str]:
    for item in errors.items:
        yield f"{item.id}:\tref={item.reference.split()}\n{item.id}:\thyp={item.hypothesis.split()}\n"


def speechbrain_errors(errors: Errors, costs: Costs = "unit") -> str:
    """The file wer_*.txt: with unit costs SpeechBrain's own, with others its layout of other alignments.

    SpeechBrain has no infinite rates: errors on an empty reference are taken per one word, those of a set whose references are
    all empty are 0.00 %.
    """
    totals = Counter[str]()
    body = "".join(_speechbrain_parts(errors, costs, totals))
    return _speechbrain_head(errors, totals) + body


def _write_speechbrain(path: Path, errors: Errors, costs: Costs) -> None:
    """`speechbrain_errors` into a file; what follows the head waits on disk until the totals in the head are known."""
    totals = Counter[str]()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as body:
        body.writelines(_speechbrain_parts(errors, costs, totals))
        body.seek(0)
        write_parts(path, chain([_speechbrain_head(errors, totals)], iter(lambda: body.read(1 << 20), "")))


def _speechbrain_parts(errors: Errors, costs: Costs, totals: Counter[str]) -> Iterator[str]:
    """Every utterance; insertions, deletions, substitutions ("I", "D", "S") and wrong utterances ("wrong") are added up."""
    for item in errors.items:
        steps = _speechbrain_steps(item, costs)
        names = [step[0] for step in steps]
        kinds = {kind: names.count(kind) for kind in "IDS"}
        totals.update(kinds, wrong=int(any(kinds.values())))
        rate = _kaldi_counts([*kinds.values()], item.length, max(1, item.length))
        yield f"{_RULE}\n{item.id}, %WER {rate}\n{_semicolons(steps)}\n"


def _speechbrain_head(errors: Errors, totals: Counter[str]) -> str:
    wrong, whole = totals["wrong"], [totals[kind] for kind in "IDS"]
    example: list[Step] = [("I", "", "and"), ("S", "reference", "hypothesis"), ("C", "on", "on"), ("C", "the", "the")]
    example += [("S", "first", "third"), ("D", "line", "")]
    head = [
        f"%WER {_kaldi_counts(whole, errors.length, errors.length or math.inf)}",
        f"%SER {percent(wrong, len(errors)):.2f} [ {wrong} / {len(errors)} ]",
        f"Scored {len(errors)} sentences, 0 not present in hyp.",
        *(_RULE, "ALIGNMENTS", "", "Format:", "<utterance-id>, WER DETAILS", _semicolons(example)),
    ]
    return "\n".join(head) + "\n"


def _speechbrain_steps(item: ItemErrors, costs: Costs) -> list[Step]:
    if costs == "unit":
        return speechbrain_steps(item.reference.split(), item.hypothesis.split())
    return item_steps(item, costs)


def _kaldi_counts(kinds: Sequence[int], length: int, divisor: float) -> str:
    """Insertions, deletions and substitutions as Kaldi's tools print them."""
    shares = f"{kinds[0]} ins, {kinds[1]} del, {kinds[2]} sub"
    return f"{100.0 * sum(kinds) / divisor:.2f} [ {sum(kinds)} / {length}, {shares} ]"


def _semicolons(steps: Sequence[Step]) -> str:
    """Three lines of cells, each centred in its column: reference, operation, hypothesis."""
    columns = []
    for operation, word, other in steps:
        if operation == "C":
            columns.append((word, "=".center(len(word)), word))
            continue
        said, recognised = word or _EMPTY, other or _EMPTY
        width = max(len(said), len(recognised))
        columns.append((said.center(width), operation.center(width), recognised.center(width)))
    return "\n".join(" ; ".join(row) for row in zip(*columns, strict=True)) if columns else "\n\n"


def _arrows(steps: Sequence[Step]) -> str:
    """Correct words as they are, runs of errors together as (reference words->hypothesis words)."""
    parts: list[str] = []
    said: list[str] = []
    recognised: list[str] = []
    for operation, word, other in [*steps, ("C", "", "")]:
        if operation != "C":
            said += [word] if word else []
            recognised += [other] if other else []
            continue
        if said or recognised:
            parts.append(f"({' '.join(said) or _ICEFALL_EMPTY}->{' '.join(recognised) or _ICEFALL_EMPTY})")
            said, recognised = [], []
        parts += [word] if word else []
    return " ".join(parts)


def _descending(counts: Counter[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return [(key, count) for count, key in sorted(((count, key) for key, count in counts.items()), reverse=True)]


def _counted(counts: Counter[str]) -> list[str]:
    return [f"{count}   {word}" for count, word in sorted(((count, word) for word, count in counts.items()), reverse=True)]


def _column(operation: str, word: str, other: str) -> tuple[str, str, str]:
    if operation == "C":
        return word, other, " " * cell_width(word)
    said, recognised = word.upper(), other.upper()
    if said == recognised:
        said, recognised = word, other
    width = max(cell_width(said), cell_width(recognised), 1)
    cells = (pad_cell(text, width) if text else "*" * width for text in (said, recognised))
    return next(cells), next(cells), operation.ljust(width)


def _costs_line(costs: Costs) -> str:
    return f"Alignment costs: {costs} ({PRICES[costs]}); upper and lower case differ"


def _sclite_row(name: str, part: Errors) -> list[str]:
    cells = [name, str(len(part)), str(part.length)]
    numbers = (part.length - part.substitutions - part.deletions, part.substitutions, part.deletions, part.insertions, part.total)
    if part.length:
        cells += [f"{percent(number, part.length):.1f}" for number in numbers]
    else:
        cells += [f"{number}*" for number in numbers]
    return [*cells, f"{part.item_rate:.1f}"]


def _spread_rows(parts: list[Errors]) -> list[list[str]]:
    """Mean, standard deviation and median over speakers; rates over speakers with reference words."""
    spoken = [part for part in parts if part.length]
    mark = "+" if len(spoken) < len(parts) else ""
    rates: list[list[float]] = [
        [percent(part.length - part.substitutions - part.deletions, part.length) for part in spoken],
        *([percent(getattr(part, name), part.length) for part in spoken] for name in ("substitutions", "deletions")),
        *([percent(getattr(part, name), part.length) for part in spoken] for name in ("insertions", "total")),
    ]
    whole = [[float(len(part)) for part in parts], [float(part.length) for part in parts]]
    wrong = [part.item_rate for part in parts]
    rows = []
    for name, function in (("Mean", statistics.fmean), ("S.D.", _deviation), ("Median", statistics.median)):
        cells = [f"{function(values):.1f}" for values in whole]
        cells += [f"{function(values):.1f}{mark}" if values else f"-{mark}" for values in rates]
        rows.append([name, *cells, f"{function(wrong):.1f}" if wrong else ""])
    return rows


def _deviation(values: Iterable[float]) -> float:
    numbers = list(values)
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def _sclite_table(title: str, sections: list[list[list[str]]], costs: Costs) -> str:
    """Boxes in sclite's manner: a rule between speakers, a double rule before the sums."""
    rows = [list(_HEADER), *(row for section in sections for row in section)]
    widths = [max(cell_width(row[place]) for row in rows) for place in range(len(_HEADER))]
    lines = [_sclite_line(row, widths) for row in rows]
    inner, speakers = len(lines[0]) - 2, len(sections[0])
    thin = "|" + "+".join("-" * len(part) for part in lines[0].strip("|").split("|")) + "|"
    thick = f"|{'=' * inner}|"
    drawn = [f",{'-' * inner}.", f"|{title[:inner].center(inner)}|", f"|{'-' * inner}|", lines[0]]
    for line in lines[1 : 1 + speakers]:
        drawn += [thin, line]
    drawn += [thick, lines[1 + speakers], thick, *lines[2 + speakers :], f"`{'-' * inner}'"]
    body = "\n".join(drawn)
    notes = [note for note in _NOTES if note[0] in "".join(line for line in lines)]
    head = ["SYSTEM SUMMARY PERCENTAGES by SPEAKER".center(inner + 2).rstrip(), _costs_line(costs), ""]
    return "\n".join([*head, body, *notes]) + "\n"


def _sclite_line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [pad_cell(row[0], widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return f"| {cells[0]} | {'  '.join(cells[1:3])} | {'  '.join(cells[3:])} |"
