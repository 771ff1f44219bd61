"""What the commands `asrcl score` and `asrcl compare` do, as functions that return what is to be printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import write_text
from asrcl.scoring.commands.verify import recount
from asrcl.scoring.counting.align import check_costs
from asrcl.scoring.counting.confusions import item_steps, most
from asrcl.scoring.counting.errors import Errors, ItemErrors, counted
from asrcl.scoring.display.terminal import aligned_table
from asrcl.scoring.transcripts.files import STDIN, plain_name
from asrcl.scoring.transcripts.read_write import summary_row
from asrcl.scoring.transcripts.score import Options, Score, as_csv, score
from asrcl.scoring.transcripts.toolkit_reports import three_lines, write_toolkit_reports
from asrcl.visible import json_safe, visible

FORMATS: Final = ("text", "json", "csv")
COMPARE_FORMATS: Final = (*FORMATS, "latex")
ENDINGS: Final = {".csv": "csv", ".json": "json", ".tex": "latex"}
MAX_SHOWN: Final = 40


def score_command(
    reference: Path,
    hypothesis: Path | None = None,
    options: Options | None = None,
    *,
    by: Sequence[str] = (),
    output: str = "text",
    out: Path | None = None,
    top: int = 0,
    worst: int = 0,
) -> str:
    """Score, write what is asked for, and give the text to print.

    Args:
        reference: a reference file; one file with both texts in every row; or the output folder of a scenario, whose decodes are
            then counted again, with no option but the folder.
        hypothesis: the hypothesis file.
        options: how to score; its `columns` are those of `by` but the speaker.
        by: columns to break down by; speaker and domain by default, where there are several and not as many as utterances.
        output: "text", "json" or "csv".
        out: folder for score.json, score.csv, errors.jsonl and the files in the layouts of other toolkits; normalised figures
            go into a folder below it that bears the normaliser's name.
        top: how many confusions, deletions and insertions to list, as text or in JSON.
        worst: how many utterances with most errors to show aligned, as text or in JSON.

    Raises:
        InputError: bad input, or an unknown option.
    """
    options = options or Options()
    if hypothesis is None and os.path.isdir(reference):  # unlike Path's, False for a name that is too long
        _refuse_options(reference, options, {"by": by, "output": output, "out": out, "top": top, "worst": worst})
        return recount(reference)
    _require(output, FORMATS)
    check_costs(options.costs)
    if output == "csv" and (top or worst):
        raise InputError("--top and --worst do not fit into rows of counts; choose --output json or text")
    found = score(reference, hypothesis, options)
    notes = _write(found, out, _stem(hypothesis or reference)) if out else []
    if output != "text":
        rows = found.rows()
        if output == "csv":
            return as_csv(rows)
        return json_safe(json.dumps(found.as_json(rows, top, worst), indent=1, ensure_ascii=False)) + "\n"
    return _text(found, by, top, worst, out, notes)


def compare_command(
    sources: Sequence[str],
    reference: Path | None = None,
    options: Options | None = None,
    *,
    tests: Sequence[str] = (),
    by: str = "item",
    output: str = "text",
    out: Path | None = None,
    plot: Path | None = None,
    stars_of: str = "",
    draws: int = 2000,
    seed: int = 0,
) -> str:
    """Compare systems, write what is asked for, and give the text to print.

    Args:
        sources: two or more of NAME=path or path, as `compare.load_systems` reads them.
        reference: of hypothesis files.
        options: how hypothesis files are scored.
        tests: names; all by default.
        by: "item" or "speaker": what wilcoxon and sign compare.
        output: "text", "json", "csv" or "latex".
        out: file beside what is printed; where `output` is "text", the endings .csv, .json and .tex say the file's format.
        plot: file for the matrix plot (.png, .pdf, .svg).
        stars_of: the test whose stars stand in the plot and in LaTeX; the first by default.
        draws: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        InputError: bad input, or an unknown option.
    """
    from dataclasses import replace

    from asrcl.scoring.significance import compare_view as view
    from asrcl.scoring.significance.compare import compare, dump_json, load_systems
    from asrcl.scoring.significance.paired_tests import TESTS

    _require(output, COMPARE_FORMATS)
    if by not in ("item", "speaker"):
        raise InputError(f"cannot compare by {by!r}; choose item or speaker")
    options, chosen = options or Options(), list(tests) or list(TESTS)
    systems, skipped = load_systems(sources, reference, options)
    unit = "group" if by == "speaker" else "item"
    found = compare(systems, chosen, by=unit, costs=options.costs, draws=draws, seed=seed)
    found = replace(found, normaliser=options.normaliser, skipped=skipped)
    starred = stars_of or chosen[0]
    if plot:
        view.draw_matrix(found, starred, plot)
    writers: dict[str, Callable[[Any], str]] = {"json": dump_json, "csv": view.as_csv, "text": view.as_text}
    writers["latex"] = partial(view.as_latex, test=starred)
    if out:
        kind = ENDINGS.get(out.suffix.lower(), output) if output == "text" else output
        write_text(out, writers[kind](found))
    return writers[output](found)


def _refuse_options(folder: Path, options: Options, views: dict[str, Any]) -> None:
    """Counting decodes again takes no options: what is given beside the folder is refused, not ignored."""
    names = {"columns": "by", "reference_key": "ref_key", "hypothesis_key": "hyp_key"}
    given = [name for name, value in views.items() if value and value != "text"]
    for option in fields(Options):
        value = getattr(options, option.name)
        given += [names.get(option.name, option.name)] if value and value != option.default else []
    if given:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in dict.fromkeys(given))
        raise InputError(
            f"{folder}: the decodes of a folder are only counted again, which takes no {listed}; "
            "leave that out, or score one decode: asrcl score ref.trn hyp.trn"
        )


def _stem(path: Path) -> str:
    """What the files of `--out` are called after."""
    return "stdin" if str(path) == STDIN else plain_name(path).stem


def _text(found: Score, by: Sequence[str], top: int, worst: int, out: Path | None, notes: Sequence[str]) -> str:
    parts = [_head(found), _summary(found)]
    parts += [text for column in by or _usual(found) if (text := _breakdown(found, column))]
    for name, errors in found.variants.items():
        parts += _confusions(found, name, top) if top else []
        parts += _worst(found, name, errors, worst) if worst else []
    rest = "all in score.json" if out else "--out FOLDER lists all in score.json"
    parts += [*_listed("skipped", found.every_skipped, rest), *_listed("note", notes)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _require(output: str, known: Sequence[str]) -> None:
    if output not in known:
        raise InputError(f"unknown output {output!r}; choose {', '.join(known)}")


def _write(found: Score, out: Path, name: str) -> list[str]:
    """Write all files; what could not be written is returned."""
    found.save(out)
    notes = []
    for variant, errors in found.variants.items():
        home = out if variant == "raw" else out / variant
        notes += write_toolkit_reports(errors, home, name, found.costs, found.confusions[variant])
    return notes


def _head(found: Score) -> str:
    lines = [f"{visible(path)} ({digest})" for path, digest in found.files.items()]
    lines.append(f"alignment costs: {found.costs}; normaliser: {found.normaliser.name} ({found.normaliser.source})")
    if found.emptied:
        lines.append(f"the normaliser leaves {counted(found.emptied, 'reference')} without a word")
    return "\n".join(lines)


def _summary(found: Score) -> str:
    rows = [summary_row(name, errors) for name, errors in found.variants.items()]
    return aligned_table(_header("text"), rows, edge=False)


def _usual(found: Score) -> list[str]:
    """Speaker and domain, where they say something."""
    return [
        column
        for column in ("domain", "speaker")
        if (column == "speaker" or column in found.columns) and 1 < len(found.breakdown(column)) < min(len(found.raw), MAX_SHOWN)
    ]


def _breakdown(found: Score, column: str) -> str:
    """A table of one column's values; raw and normalised figures below each other."""
    tables = {name: found.breakdown(column, errors) for name, errors in found.variants.items()}
    rows = [_header(column)]
    for value in tables["raw"]:
        for name, parts in tables.items():
            rows.append(summary_row(value if name == "raw" else f"  {name}", parts[value]))
    return aligned_table(rows[0], rows[1:], edge=False)


def _header(first: str) -> list[str]:
    return [first, "items", "length", "WER %", "CER %", "S", "D", "I", "items wrong %"]


def _confusions(result: Score, name: str, top: int) -> list[str]:
    counts = result.confusions[name]
    rows = {"substitution": [[f"{a} -> {b}", str(n)] for (a, b), n in most(counts.substitutions, top)]}
    rows["deletion"] = [[word, str(n)] for word, n in most(counts.deletions, top)]
    rows["insertion"] = [[word, str(n)] for word, n in most(counts.insertions, top)]
    tables = [aligned_table([kind, "times"], found, edge=False) for kind, found in rows.items() if found]
    return [f"most frequent, {name}:", *tables] if tables else [f"most frequent, {name}: no errors"]


def _worst(found: Score, name: str, errors: Errors, worst: int) -> list[str]:
    shown = [_aligned(found, item) for item in found.worst(errors, worst)]
    return [f"most errors, {name}:", *shown] if shown else [f"most errors, {name}: no errors"]


def _aligned(found: Score, item: ItemErrors) -> str:
    counts = f"{item.errors} of {item.length}: {item.substitutions} S, {item.deletions} D, {item.insertions} I"
    steps = [(kind, visible(word), visible(other)) for kind, word, other in item_steps(item, found.costs)]
    return f"{visible(item.id)} ({counts})\n{three_lines(steps)}"


def _listed(title: str, lines: Sequence[str], rest: str = "") -> list[str]:
    """A counted list, cut where it gets long; `rest` says where all of it is."""
    if not lines:
        return []
    shown = [f"  {visible(line)}" for line in lines[:MAX_SHOWN]]
    if len(lines) > MAX_SHOWN:
        shown.append(f"  ... and {len(lines) - MAX_SHOWN} more{rest and '; '}{rest}")
    return ["\n".join([f"{title} ({len(lines)}):", *shown])]
