"""Score one file against another: raw and normalised counts side by side, broken down by whatever columns are known.

    Score                      raw counts, normalised counts, columns of metadata, what was skipped
    score(reference, ...)      from files
    Score.breakdown(column)    one set of counts per value: speaker, domain, any column of the files or of a table of metadata
    Score.save(folder)         score.json, score.csv and errors.jsonl

Numbers with many values are cut at their quartiles: more than 12, unless all are integers and at most 100, which are taken for
names (of speakers, of sessions). An utterance without a value is listed under "-".
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import write_json, write_text
from asrcl.scoring.counting.align import Costs
from asrcl.scoring.counting.confusions import Confusions, confusions, item_steps
from asrcl.scoring.counting.errors import Errors, ItemErrors, count_errors, name_some
from asrcl.scoring.display.table import comma_separated
from asrcl.scoring.transcripts.files import STDIN, AnyPath, Source, read_source
from asrcl.scoring.transcripts.formats import Problems, Reading, Utterance, is_table, name_segments, read_table, read_utterances
from asrcl.text import Normaliser, normaliser

FORMAT: Final = "asrcl-score/1"
NO_VALUE: Final = "-"
SAVED_CONFUSIONS: Final = 100
_DISTINCT: Final = 12
_DISTINCT_INTEGERS: Final = 100
_COUNTS: Final = ("items", "length", "substitutions", "deletions", "insertions", "character_errors", "character_length")
_RATES: Final = ("rate", "character_rate", "item_rate")
_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
_NO_ROW: Final[Mapping[str, str]] = {}


@dataclass(frozen=True)
class Options:
    """How to score.

    Attributes:
        normaliser: name of the rules that the second set of figures is counted under; "none" for raw figures alone.
        costs: of the word alignment, see `asrcl.scoring.counting.align`.
        columns: columns to keep for breakdowns; "speaker" is always there, "domain" wherever a file has it.
        meta: a table with further columns (csv, tsv, jsonl, or two columns as utt2spk), matched by id; if it names speakers, they
            replace those of the reference file.
        skip: leave out, and list, what cannot be scored: bad lines, repeated ids, utterances of one side only.
        id_key: name of the id in JSON and tables.
        reference_key: name of the reference text.
        hypothesis_key: name of the hypothesis text.
        format: what files hold whose suffix does not say it (.txt, none, unknown): trn, text, jsonl, csv, tsv or lines.
    """

    normaliser: str = "none"
    costs: Costs = "unit"
    columns: Sequence[str] = ()
    meta: AnyPath | Source | None = None
    skip: bool = False
    id_key: str | None = None
    reference_key: str | None = None
    hypothesis_key: str | None = None
    format: str | None = None


@dataclass(frozen=True)
class Score:
    """The outcome.

    Attributes:
        raw: counts on the texts as they are; groups are speakers.
        normalised: counts on normalised texts; None if no normaliser was asked for.
        normaliser: its name and where its rules come from.
        costs: of the word alignment.
        columns: column to (id to value), without "speaker", which `raw` holds.
        emptied: references that the normaliser left without a word.
        skipped: what was left out: a line per bad line, and one that counts the utterances of one side only.
        every_skipped: what was left out, a line each.
        files: the files scored, with their content hashes.
    """

    raw: Errors
    normalised: Errors | None
    normaliser: Normaliser
    costs: Costs
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    emptied: int = 0
    skipped: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    every_skipped: Sequence[str] = ()

    @property
    def variants(self) -> dict[str, Errors]:
        """The sets of counts by name: "raw" and, if there is one, the normaliser's."""
        return {"raw": self.raw} | ({} if self.normalised is None else {self.normaliser.name: self.normalised})

    @cached_property
    def confusions(self) -> dict[str, Confusions]:
        """What is confused with what, by the names of `variants`."""
        return {name: confusions(errors, self.costs) for name, errors in self.variants.items()}

    def worst(self, errors: Errors, number: int) -> list[ItemErrors]:
        """The utterances with most errors, at most so many; none without an error."""
        return [item for item in sorted(errors.items, key=lambda item: (-item.errors, item.id))[:number] if item.errors]

    def breakdown(self, column: str, errors: Errors | None = None) -> dict[str, Errors]:
        """One set of counts per value of a column, in the order of the values.

        Args:
            column: "speaker", or one of `columns`.
            errors: which counts; the raw ones by default.

        Raises:
            InputError: the column is unknown.
        """
        chosen = self.raw if errors is None else errors
        if column == "speaker":
            return dict(sorted(chosen.by_group().items(), key=lambda entry: _by_number(entry[0])))
        if column not in self.columns:
            raise InputError(f"no column {column!r}; there are {', '.join(['speaker', *self.columns])}")
        labels = _binned(self.columns[column])
        parts: dict[str, list[ItemErrors]] = {label: [] for label in sorted(set(labels.values()), key=_by_number)}
        for item in chosen.items:
            parts.setdefault(labels.get(item.id, NO_VALUE), []).append(item)
        return {label: Errors(items, chosen.unit) for label, items in parts.items() if items}

    def save(self, folder: AnyPath) -> None:
        """Write score.json (all figures), score.csv (one row per part) and errors.jsonl (raw counts per utterance).

        score.json also has the 100 most frequent confusions of each kind.
        """
        rows = self.rows()
        write_json(Path(folder) / "score.json", self.as_json(rows, top=SAVED_CONFUSIONS))
        write_text(Path(folder) / "score.csv", as_csv(rows))
        for name, errors in self.variants.items():
            errors.save(Path(folder) / ("errors.jsonl" if name == "raw" else f"{name}/errors.jsonl"))

    def rows(self) -> list[dict[str, Any]]:
        """One row per set of counts, column and value; the first rows are over all utterances."""
        rows = [_row(name, "all", "", errors) for name, errors in self.variants.items()]
        for column in ("speaker", *self.columns):
            for name, errors in self.variants.items():
                rows.extend(_row(name, column, value, part) for value, part in self.breakdown(column, errors).items())
        return rows

    def as_json(self, rows: list[dict[str, Any]], top: int = 0, worst: int = 0) -> dict[str, Any]:
        """What score.json holds; rates without a value (nan, infinity) are null.

        Args:
            rows: those of `rows`.
            top: how many confusions of each kind to give, under "confusions"; 0 for no such entry.
            worst: how many utterances with most errors to give aligned, under "worst"; 0 for no such entry.
        """
        content: dict[str, Any] = {
            "format": FORMAT,
            "files": dict(self.files),
            "costs": self.costs,
            "normaliser": {"name": self.normaliser.name, "source": self.normaliser.source, "emptied_references": self.emptied},
            "skipped": list(self.every_skipped),
            "rows": [{key: finite(value) for key, value in row.items()} for row in rows],
        }
        if top:
            content["confusions"] = {name: counts.as_json(top) for name, counts in self.confusions.items()}
        if worst:
            content["worst"] = {
                name: [_aligned(item, self.costs) for item in self.worst(errors, worst)] for name, errors in self.variants.items()
            }
        return content


def score(reference: AnyPath | Source, hypothesis: AnyPath | None = None, options: Options | None = None) -> Score:
    """Score a hypothesis file against a reference file, matched by id; the formats may differ.

    Args:
        reference: the reference file (or what was read of it); or one with both texts in every row (JSON lines, csv), if
            `hypothesis` is None.
        hypothesis: the hypothesis file.
        options: how.

    Raises:
        InputError: a file cannot be read or holds nothing; without `skip` also bad lines, repeated ids, and utterances that only
            one side has; an unknown normaliser, costs or column.
    """
    options = options or Options()
    rules, problems = normaliser(options.normaliser), Problems() if options.skip else None
    sources = _read_sources(reference, hypothesis, options)
    files = {source.path: source.digest for source in sources.values()}
    both = _read_both(sources.pop("reference"), sources.pop("hypothesis", None), options, problems)  # and forget their bytes
    where = f"{_name(hypothesis or reference)} against {_name(reference)}"
    said, recognised = _matched(*both, where, problems)
    table = _read_meta(sources.get("meta"), said, options)
    try:
        raw = count_errors({u.id: u.text for u in said}, recognised, _speakers(said, table), options.costs)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    normalised = None if rules.name == "none" else normalise_errors(raw, rules, options.costs)
    emptied = 0 if normalised is None else sum(a.length > 0 == b.length for a, b in zip(raw.items, normalised.items, strict=True))
    columns, left_out = _columns(said, table, options), problems or Problems()
    return Score(raw, normalised, rules, options.costs, columns, emptied, left_out.found, files, left_out.every)


def normalise_errors(errors: Errors, rules: Normaliser, costs: Costs = "unit") -> Errors:
    """Count again on normalised texts; `errors` must hold its texts. Every distinct text is normalised once per utterance."""
    references = {item.id: rules(item.reference) for item in errors.items}
    hypotheses = {
        item.id: references[item.id] if item.hypothesis is item.reference else rules(item.hypothesis) for item in errors.items
    }
    return count_errors(references, hypotheses, {item.id: item.group for item in errors.items}, costs)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as csv text with a header."""
    return comma_separated(list(rows[0]), (list(row.values()) for row in rows)) if rows else ""


def _read_sources(reference: AnyPath | Source, hypothesis: AnyPath | None, options: Options) -> dict[str, Source]:
    """The files, by what they are for; each is read once, for a pipe has nothing to say a second time."""
    paths: dict[str, AnyPath | Source | None] = {"reference": reference, "hypothesis": hypothesis, "meta": options.meta}
    given = {what: path for what, path in paths.items() if path is not None}
    if sum(_name(path) == STDIN for path in given.values()) > 1:
        raise InputError(f"{' and '.join(given)} cannot both be standard input ('{STDIN}'); give a file")
    return {what: read_source(path, None if what == "meta" else options.format) for what, path in given.items()}


def _read_both(
    reference: Source, hypothesis: Source | None, options: Options, problems: Problems | None
) -> tuple[list[Utterance], dict[str, str]]:
    """The references, and the text of every hypothesis by id."""
    alone, keep = hypothesis is None, [*options.columns, "domain"]
    if alone and reference.format and not is_table(reference):
        raise InputError(
            f"{reference.path}: one text per line; give the hypothesis file too, or a .jsonl or .csv with both texts"
        )
    other = reference if hypothesis is None else hypothesis
    said = _require_some(reference, Reading("reference", options.id_key, options.reference_key, keep, alone), problems)
    again = Problems() if problems else None
    recognised = _require_some(other, Reading("hypothesis", options.id_key, options.hypothesis_key, (), alone), again)
    if problems and again:  # the second reading of one file meets the same bad lines again: they are listed once
        known = set(problems.found)
        for line in again.found:
            if line not in known:
                problems.add(line)
    said, recognised = name_segments(said, recognised)
    return said, {utterance.id: utterance.text for utterance in recognised}


def _require_some(source: Source, reading: Reading, problems: Problems | None) -> list[Utterance]:
    utterances = read_utterances(source, reading, problems)
    if not utterances:
        bad = f"none of its lines can be used ({problems.found[-1]})" if problems and problems.found else "it is empty"
        raise InputError(f"{source.path}: no utterances, {bad}; give a file with at least one")
    return utterances


def _matched(
    said: list[Utterance], recognised: dict[str, str], where: str, problems: Problems | None
) -> tuple[list[Utterance], dict[str, str]]:
    """References and hypotheses of the same ids; without `problems`, utterances of one side only are refused."""
    known = {utterance.id for utterance in said}
    lacking = {
        "references without a hypothesis": known - recognised.keys(),
        "hypotheses without a reference": recognised.keys() - known,
    }
    parts = {name: f"{name}: {name_some(ids)}" for name, ids in lacking.items() if ids}
    if not parts:
        return said, recognised
    if problems is None:
        raise InputError(
            f"{where}: {'; '.join(parts.values())}; score the same utterances, or add --skip to leave these out"
        )
    for name, part in parts.items():
        problems.add(f"{where}: {part}", [f"{where}: {name}: {key}" for key in sorted(lacking[name])])
    both = [utterance for utterance in said if utterance.id in recognised]
    if not both:
        why = "; ".join(parts.values())
        raise InputError(f"{where}: no id is in both ({why}); name the ids alike, or choose them with --id-key")
    return both, {utterance.id: recognised[utterance.id] for utterance in both}


def _read_meta(source: Source | None, said: list[Utterance], options: Options) -> dict[str, dict[str, str]]:
    """The rows of the table of metadata by id; what it says of a recording is true of its segments. Empty if there is none."""
    if source is None:
        return {}
    table = read_table(source, options.id_key)
    found = {u.id: table[key] for u in said for key in (u.recording, u.segment, u.id) if key in table}
    if not found:
        raise InputError(f"{source.path}: none of its ids is in the reference ({name_some(table)}); name the ids alike")
    return found


def _speakers(said: list[Utterance], table: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The speaker of every utterance: the reference file's, or if the table names speakers, the table's."""
    if not any(row.get("speaker") for row in table.values()):
        return {u.id: u.speaker for u in said}
    return {u.id: table.get(u.id, _NO_ROW).get("speaker") or NO_VALUE for u in said}


def _columns(said: list[Utterance], table: Mapping[str, Mapping[str, str]], options: Options) -> dict[str, dict[str, str]]:
    """The columns to break down by, from the reference file and then from the table of metadata."""
    columns: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys([*options.columns, "domain"]):
        if name == "speaker":
            continue
        values = {u.id: u.meta[name] for u in said if name in u.meta}
        values |= {u.id: table[u.id][name] for u in said if name in table.get(u.id, _NO_ROW)}
        if values:
            columns[name] = values
        elif name in options.columns:
            raise InputError(f"no utterance has the column {name!r}; columns come from the reference file or from --meta")
    return columns


def _binned(values: Mapping[str, str]) -> Mapping[str, str]:
    """Values as they are; numbers with many distinct values become the quartile they lie in. Empty values are left out."""
    values = {key: value for key, value in values.items() if value}
    distinct = set(values.values())
    names = len(distinct) <= _DISTINCT_INTEGERS and all(map(_INTEGER.fullmatch, distinct))
    if len(distinct) <= _DISTINCT or names:
        return values
    try:
        numbers = {key: float(value) for key, value in values.items()}
    except ValueError:
        return values
    return _quartiles(numbers) if all(map(math.isfinite, numbers.values())) else values


def _quartiles(numbers: Mapping[str, float]) -> dict[str, str]:
    """The quartile of every number, named by its edges; a number on an edge belongs to the lower one."""
    ranked = sorted(numbers.values())
    edges = [ranked[0], *(ranked[math.ceil(len(ranked) * share) - 1] for share in (0.25, 0.5, 0.75)), ranked[-1]]
    names = [f"q{part + 1}: {'above ' * (part > 0)}{edges[part]:.10g} to {edges[part + 1]:.10g}" for part in range(4)]
    return {key: names[sum(number > edge for edge in edges[1:4])] for key, number in numbers.items()}


def _by_number(value: str) -> tuple[float, str]:
    """Sorts numbers by size and before names."""
    try:
        return float(value), value
    except ValueError:
        return math.inf, value


def _row(variant: str, column: str, value: str, errors: Errors) -> dict[str, Any]:
    counts = {name: len(errors) if name == "items" else getattr(errors, name) for name in _COUNTS}
    return {"text": variant, "column": column, "value": value} | counts | {name: getattr(errors, name) for name in _RATES}


def _aligned(item: ItemErrors, costs: Costs) -> dict[str, Any]:
    """An utterance with its alignment, for JSON: steps of operation (C, S, D, I), reference word, hypothesis word."""
    counts = {name: getattr(item, name) for name in ("id", "group", "errors", *_COUNTS[1:5])}
    return counts | {"steps": [list(step) for step in item_steps(item, costs)]}


def _name(path: AnyPath | Source) -> str:
    return path.path if isinstance(path, Source) else os.fspath(path)


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON cannot hold (nan, infinity)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
