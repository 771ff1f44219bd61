"""Score one file against another: raw and normalised counts side by side, broken down by whatever columns are known.

    Score                      raw counts, normalised counts, columns of metadata, what was skipped
    score(reference, ...)      from files
    Score.breakdown(column)    one set of counts per value: speaker, domain, any column of the files or of a table of metadata
    Score.save(folder)         score.json, score.csv and errors.jsonl

A number has too many values for a table, so numbers are cut at their quartiles. An utterance without a value is listed under "-".
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.files import hash_file, write_json, write_text
from asrcl.scoring.align import Costs
from asrcl.scoring.errors import Errors, ItemErrors, count_errors, name_some
from asrcl.scoring.formats import AnyPath, Problems, Reading, Utterance, is_table, read_table, read_utterances
from asrcl.scoring.normalise import Normaliser, normaliser
from asrcl.scoring.table import comma_separated

FORMAT: Final = "asrcl-score/1"
NO_VALUE: Final = "-"
_DISTINCT: Final = 12
_COUNTS: Final = ("items", "length", "substitutions", "deletions", "insertions", "character_errors", "character_length")
_RATES: Final = ("rate", "character_rate", "item_rate")


@dataclass(frozen=True)
class Options:
    """How to score.

    Attributes:
        normaliser: name of the rules that the second set of figures is counted under; "none" for raw figures alone.
        costs: of the word alignment, see `asrcl.scoring.align`.
        columns: columns to keep for breakdowns; "speaker" is always there, "domain" wherever a file has it.
        meta: a table with further columns (csv, tsv, jsonl), matched by id.
        skip: leave out, and list, what cannot be scored: bad lines, repeated ids, utterances of one side only.
        id_key: name of the id in JSON and tables.
        reference_key: name of the reference text.
        hypothesis_key: name of the hypothesis text.
    """

    normaliser: str = "none"
    costs: Costs = "unit"
    columns: Sequence[str] = ()
    meta: AnyPath | None = None
    skip: bool = False
    id_key: str | None = None
    reference_key: str | None = None
    hypothesis_key: str | None = None


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
        skipped: what was left out, a line each.
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

    @property
    def variants(self) -> dict[str, Errors]:
        """The sets of counts by name: "raw" and, if there is one, the normaliser's."""
        return {"raw": self.raw} | ({} if self.normalised is None else {self.normaliser.name: self.normalised})

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
        """Write score.json (all figures), score.csv (one row per part) and errors.jsonl (raw counts per utterance)."""
        rows = self.rows()
        write_json(Path(folder) / "score.json", self.as_json(rows))
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

    def as_json(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What score.json holds; rates without a value (nan, infinity) are null."""
        return {
            "format": FORMAT,
            "files": dict(self.files),
            "costs": self.costs,
            "normaliser": {"name": self.normaliser.name, "source": self.normaliser.source, "emptied_references": self.emptied},
            "skipped": list(self.skipped),
            "rows": [{key: finite(value) for key, value in row.items()} for row in rows],
        }


def score(reference: AnyPath, hypothesis: AnyPath | None = None, options: Options | None = None) -> Score:
    """Score a hypothesis file against a reference file, matched by id; the formats may differ.

    Args:
        reference: the reference file; or one with both texts in every row (JSON lines, csv), if `hypothesis` is None.
        hypothesis: the hypothesis file.
        options: how.

    Raises:
        InputError: a file cannot be read or holds nothing; without `skip` also bad lines, repeated ids, and utterances that only
            one side has; an unknown normaliser, costs or column.
    """
    options = options or Options()
    rules, problems = normaliser(options.normaliser), Problems() if options.skip else None
    both = _read_both(reference, hypothesis, options, problems)
    said, heard = _matched(*both, f"{hypothesis or reference} against {reference}", problems)
    raw = count_errors(
        {utterance.id: utterance.text for utterance in said}, heard, {u.id: u.speaker for u in said}, options.costs
    )
    normalised = None if rules.name == "none" else normalise_errors(raw, rules, options.costs)
    emptied = 0 if normalised is None else sum(a.length > 0 == b.length for a, b in zip(raw.items, normalised.items, strict=True))
    files = {str(path): hash_file(path) for path in (reference, hypothesis, options.meta) if path is not None}
    found = problems.found if problems else []
    return Score(raw, normalised, rules, options.costs, _columns(said, options), emptied, found, files)


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


def _read_both(
    reference: AnyPath, hypothesis: AnyPath | None, options: Options, problems: Problems | None
) -> tuple[list[Utterance], dict[str, str]]:
    """The references, and the text of every hypothesis by id."""
    alone, keep = hypothesis is None, [*options.columns, "domain"]
    if alone and not is_table(reference):
        raise InputError(f"{reference}: one text per line; give the hypothesis file too, or a .jsonl or .csv with both texts")
    other = reference if hypothesis is None else hypothesis
    said = _require_some(reference, Reading("reference", options.id_key, options.reference_key, keep, alone), problems)
    again = Problems() if problems else None
    heard = _require_some(other, Reading("hypothesis", options.id_key, options.hypothesis_key, (), alone), again)
    if problems and again:  # the second reading of one file meets the same bad lines again: they are listed once
        problems.found.extend(line for line in again.found if line not in set(problems.found))
    return said, {utterance.id: utterance.text for utterance in heard}


def _require_some(path: AnyPath, reading: Reading, problems: Problems | None) -> list[Utterance]:
    utterances = read_utterances(path, reading, problems)
    if not utterances:
        bad = f"none of its lines can be used ({problems.found[-1]})" if problems and problems.found else "it is empty"
        raise InputError(f"{os.fspath(path)}: no utterances, {bad}; give a file with at least one")
    return utterances


def _matched(
    said: list[Utterance], heard: dict[str, str], where: str, problems: Problems | None
) -> tuple[list[Utterance], dict[str, str]]:
    """References and hypotheses of the same ids; without `problems`, utterances of one side only are refused."""
    known = {utterance.id for utterance in said}
    missing, extra = known - heard.keys(), heard.keys() - known
    parts = [f"references without a hypothesis: {name_some(missing)}"] if missing else []
    parts += [f"hypotheses without a reference: {name_some(extra)}"] if extra else []
    if not parts:
        return said, heard
    if problems is None:
        raise InputError(f"{where}: {'; '.join(parts)}; score the same utterances, or add --skip to leave these out")
    for part in parts:
        problems.add(f"{where}: {part}")
    both = [utterance for utterance in said if utterance.id in heard]
    if not both:
        raise InputError(f"{where}: no id is in both ({'; '.join(parts)}); name the ids alike, or choose them with --id-key")
    return both, {utterance.id: heard[utterance.id] for utterance in both}


def _columns(said: list[Utterance], options: Options) -> dict[str, dict[str, str]]:
    """The columns to break down by, from the reference file and then from the table of metadata."""
    table = read_table(options.meta, options.id_key) if options.meta is not None else {}
    if table and not any(utterance.id in table for utterance in said):
        raise InputError(f"{options.meta}: none of its ids is in the reference ({name_some(table)}); name the ids alike")
    columns: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys([*options.columns, "domain"]):
        if name == "speaker":
            continue
        values = {u.id: u.meta[name] for u in said if name in u.meta}
        values |= {u.id: table[u.id][name] for u in said if name in table.get(u.id, ())}
        if values:
            columns[name] = values
        elif name in options.columns:
            raise InputError(f"no utterance has the column {name!r}; columns come from the reference file or from --meta")
    return columns


def _binned(values: Mapping[str, str]) -> Mapping[str, str]:
    """Values as they are; numbers with many distinct values become the quartile they lie in."""
    if len(set(values.values())) <= _DISTINCT:
        return values
    try:
        numbers = {key: float(value) for key, value in values.items() if value}
    except ValueError:
        return values
    if not all(map(math.isfinite, numbers.values())):
        return values
    ranked = sorted(numbers.values())
    edges = [ranked[0], *(ranked[math.ceil(len(ranked) * share) - 1] for share in (0.25, 0.5, 0.75)), ranked[-1]]
    names = [f"q{part + 1}: {edges[part]:g} to {edges[part + 1]:g}" for part in range(4)]
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


def finite(value: Any) -> Any:
    """The value, or None for a number that JSON cannot hold (nan, infinity)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
