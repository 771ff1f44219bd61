"""One run of one method over one scenario: `results.json`, from which reports are made.

The file holds counts, not rates. What it says about items is the path of a file per evaluation, relative to
itself, so that the folder of a run can be moved as a whole.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from asrcl.entries import FILES, SEAL, DamagedEntry, break_seal, check_files, seal
from asrcl.exceptions import InputError
from asrcl.files import read_json, reading
from asrcl.scoring.counting.errors import MAX_COUNT, Errors, percent, shortened
from asrcl.scoring.counting.written import COUNTS, Written
from asrcl.scoring.results.metrics import Matrix
from asrcl.scoring.results.roles import KINDS, Standing, check_standing, standing_of

FORMAT: Final = "asrcl-results/1"
FILE_NAME: Final = "results.json"

Counts = list[list[int | None]]


class OtherVersionError(InputError):
    """A results file that another version of asrcl wrote, or no results file at all."""


@dataclass
class ProbeCounts:
    """The counts on a test set that no stage trains on; lists have one entry per stage, None where not measured.

    Attributes:
        name: of the probe.
        errors: errors on its test set.
        length: reference units of it.
        character_errors: likewise in characters; None where not counted.
        character_length: likewise in characters.
        item_files: path of each evaluation's saved `Errors`, relative to results.json.
        written: counts of punctuation, case, empty and looping outputs; empty where texts were scored as they came.
    """

    name: str
    errors: list[int | None]
    length: int
    character_errors: list[int | None] = field(default_factory=list)
    character_length: int = 0
    item_files: list[str | None] = field(default_factory=list)
    written: list[Written | None] = field(default_factory=list)


NO_OPTIONS: Final = ("name", "label", "run", "chosen", "like")
"""What entries of `config["methods"]` have beside the options of a method."""


@dataclass
class RunResult:
    """The outcome of one run: a method, a seed, the domains in their order, and the counts after every stage.

    Matrices are T x T lists, row i after stage i, column j for domain j, None where not measured.

    Attributes:
        scenario: name of the sequence of domains.
        method: id of the method; nothing follows from it where the next four are given.
        seed: random seed of the run.
        unit: what lengths count: "word", "character", "image".
        domains: names, in order.
        errors: errors on each domain's test set.
        lengths: reference units of each domain's test set.
        character_errors: likewise in characters; empty where not counted.
        character_lengths: likewise in characters.
        item_files: path of each evaluation's saved `Errors`, relative to results.json; empty if not kept.
        written: counts of punctuation, case, empty and looping outputs, [T][T]; empty where texts were scored as they came.
        probes: counts on test sets that no stage trains on; they enter no metric.
        validation: what was tuned on dev data, free-form; `sweep` is shown in reports.
        config: the resolved configuration.
        command: what to type to make this run again.
        environment: versions and hardware: python, torch, cpu, git and the like.
        stages: per stage, free-form; docs/results.md names the keys that reports show (curves, layers, curvature).
        references: other results this run builds on, free-form.
        role: "initial", "method", "reference" or "oracle", see `roles`. Where it is empty, it and the next three follow from
            the id of the method, as in files of older versions.
        kind: what metrics take the run for: "fine_tuning", "separate", "joint", or "".
        decoded_by: whether domains are decoded by the "stage_model", each by its own "domain_model", or by the "initial_model".
        label: what tables and figures call the method.
        folder: where results.json lies; set by `save` and `load`, not stored.
    """

    scenario: str
    method: str
    seed: int
    unit: str
    domains: list[str]
    errors: Counts
    lengths: list[int]
    character_errors: Counts = field(default_factory=list)
    character_lengths: list[int] = field(default_factory=list)
    item_files: list[list[str | None]] = field(default_factory=list)
    written: list[list[Written | None]] = field(default_factory=list)
    probes: list[ProbeCounts] = field(default_factory=list)
    validation: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, Any] = field(default_factory=dict)
    role: str = ""
    kind: str = ""
    decoded_by: str = ""
    label: str = ""
    folder: Path | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        told = Standing(self.role, self.kind) if self.role or self.kind else standing_of(str(self.method))
        self.role = told.role or next((role for kind, role in KINDS.items() if kind == told.kind), "method")
        self.kind = told.kind
        self.decoded_by = self.decoded_by or told.decoded_by
        self.label = self.label or told.label or self.method

    @property
    def name(self) -> str:
        """Scenario, method and seed, for messages and tables."""
        return f"{self.scenario}/{self.method}/{self.seed}"

    def rates(self) -> Matrix:
        """The matrix R as measured: error rates in percent, [T, T], nan where not measured."""
        return _rates(self.errors, self.lengths, len(self.domains))

    def character_rates(self) -> Matrix:
        """R in characters, [T, T]; all nan where characters were not counted."""
        size = len(self.domains)
        return _rates(self.character_errors or _nothing(size), self.character_lengths or [0] * size, size)

    def probe_rates(self) -> Matrix:
        """Error rates of the probes in percent, [T, probes]; a model that never changes has those of the first stage."""
        rates = np.full((len(self.domains), len(self.probes)), np.nan)
        for j, probe in enumerate(self.probes):
            for i, count in enumerate(probe.errors):
                if count is not None:
                    rates[i, j] = percent(count, probe.length)
                elif self.decoded_by == "initial_model" and i:
                    rates[i, j] = rates[i - 1, j]
        return rates

    def completed(self, rates: Matrix | None = None) -> Matrix:
        """R (or `rates`, a matrix like it) with the entries that follow from which model decodes, [T, T].

        The initial model is the same after every stage: missing entries are those of an earlier row. A model that domain j has
        for itself is kept as it is: R[i, j] = R[j, j] for i > j. Of all others R is unchanged, and what was not measured is nan.
        """
        matrix = (self.rates() if rates is None else rates).copy()
        size = len(matrix)
        for i in range(1, size):
            for j in range(size):
                if self.decoded_by == "initial_model" and np.isnan(matrix[i, j]):
                    matrix[i, j] = matrix[i - 1, j]
                if self.decoded_by == "domain_model" and i > j and not np.isnan(matrix[j, j]):
                    matrix[i, j] = matrix[j, j]
        return matrix

    def final_stage(self, domain: int) -> int:
        """The stage whose model stands for this run on domain `domain` (an index) after the last stage."""
        return self.source_stage(len(self.domains) - 1, domain)

    def source_stage(self, stage: int, domain: int) -> int:
        """The row of R that holds what `completed` says of domain `domain` after stage `stage` (indices from 0)."""
        if self.decoded_by == "domain_model" and domain < stage and self.errors[domain][domain] is not None:
            return domain
        measured = [i for i in range(stage + 1) if self.errors[i][domain] is not None]
        return measured[-1] if self.decoded_by == "initial_model" and measured else stage

    def items(self, stage: int, domain: int) -> Errors:
        """The stored counts per item on domain `domain` after stage `stage` (indices from 0).

        Raises:
            InputError: no items were kept, their file is missing, or it contradicts the counts of the run.
        """
        return self._load_items(self._item_path(stage, domain), self.errors[stage][domain], self.lengths[domain])

    def _load_items(self, path: Path, total: int | None, length: int) -> Errors:
        errors = Errors.load(path)
        expected = (total, length, self.unit)
        found = (errors.total, errors.length, errors.unit)
        if found != expected:
            raise InputError(
                f"{path}: holds {_say(found)}, its run says {_say(expected)}; evaluate this run again"
            )
        return errors

    def probe_items(self, probe: int) -> Errors | None:
        """The stored counts per item of a probe (an index) after the last stage; None where they were not kept.

        Raises:
            InputError: their file is missing, or it contradicts the counts of the run.
        """
        counts = self.probes[probe]
        measured = [i for i, file in enumerate(counts.item_files) if file is not None]
        if not measured or self.folder is None:
            return None
        if measured[-1] < len(self.domains) - 1 and self.decoded_by != "initial_model":
            return None
        stage = measured[-1]
        return self._load_items(self.folder / str(counts.item_files[stage]), counts.errors[stage], counts.length)

    def final_items(self) -> list[Errors] | None:
        """Counts per item of every domain after the last stage; None where one was not kept."""
        stages = [(self.final_stage(domain), domain) for domain in range(len(self.domains))]
        if not all(self.has_items(stage, domain) for stage, domain in stages):
            return None
        return [self.items(stage, domain) for stage, domain in stages]

    def has_items(self, stage: int, domain: int) -> bool:
        """Whether counts per item were kept for this evaluation."""
        return bool(self.item_files) and self.item_files[stage][domain] is not None

    def final_written(self) -> dict[str, tuple[Written, int]]:
        """Counts of written text after the last stage, by domain and probe, each with the reference words as scored.

        What was not measured, or was scored as it came, is left out.
        """
        found: dict[str, tuple[Written | None, int]] = {}
        if self.written:
            for j, domain in enumerate(self.domains):
                found[domain] = self.written[self.final_stage(j)][j], self.lengths[j]
        for probe in self.probes:
            measured = [entry for entry in probe.written if entry is not None]
            last = measured[-1] if measured and self.decoded_by == "initial_model" else (probe.written or [None])[-1]
            found[probe.name] = last, probe.length
        return {name: (entry, length) for name, (entry, length) in found.items() if entry is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write results.json, atomically, with the hashes of the items that were kept beside it.

        Raises:
            InputError: fields contradict each other (the field is named).
        """
        self.validate(str(path))
        content = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "folder"}
        content["probes"] = [_plain(asdict(probe)) for probe in self.probes]
        content["written"] = [[entry and asdict(entry) for entry in row] for row in self.written]
        content = _plain(content)
        self.folder = Path(path).parent
        kept = {file for row in [*self.item_files, *(probe.item_files for probe in self.probes)] for file in row if file}
        seal(self.folder, Path(path).name, {"format": FORMAT} | content, [n for n in kept if (self.folder / n).is_file()])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RunResult:
        """Read results.json.

        Raises:
            OtherVersionError: the file is of another format.
            InputError: the file is missing, not JSON, its fields do not fit together, or it or the items that were kept beside it
                are not what was written.
        """
        with reading(path, "run it again with this version"):
            return cls._load(Path(path))

    @classmethod
    def _load(cls, path: Path) -> RunResult:
        content = read_json(path)
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise OtherVersionError(f"{path}: expected format {FORMAT}, found {shortened(found)}; run it again with this version")
        written = {**content}
        for name in ("format", FILES, SEAL):
            content.pop(name, None)
        known = {entry.name for entry in fields(cls)} - {"folder"}
        required = {"scenario", "method", "seed", "unit", "domains", "errors", "lengths"}
        wrong = sorted((required - content.keys()) | (content.keys() - known))
        if wrong:
            raise InputError(
                f"{path}: missing or unknown fields: {', '.join(wrong)}; run it again with this version"
            )
        listed = content.pop("probes", None) or []
        if not isinstance(listed, list):
            raise InputError(f"{path}: probes must be of type list; run it again")
        probes = [_probe(entry, str(path)) for entry in listed]
        content["written"] = [_written(row, f"{path}: written") for row in content.get("written") or []]
        run = cls(**content, probes=probes, folder=path.parent)
        run.validate(str(path))
        _check_written(Path(path), written)
        return run

    def validate(self, where: str) -> None:
        """Check types and shapes.

        Args:
            where: what to name in the message, usually the file.

        Raises:
            InputError: a field has the wrong type or shape (the field is named).
        """
        _check_plain(self, where)
        check_standing(self.role, self.kind, self.decoded_by, where)
        size = len(self.domains)
        _check_row(self.lengths, size, f"{where}: lengths")
        _check_square(self.errors, size, f"{where}: errors", int)
        if self.character_errors:
            _check_square(self.character_errors, size, f"{where}: character_errors", int)
            _check_row(self.character_lengths, size, f"{where}: character_lengths")
        if self.item_files:
            _check_square(self.item_files, size, f"{where}: item_files", str)
        if self.written:
            _check_square(self.written, size, f"{where}: written", Written)
        for probe in self.probes:
            _check_probe(probe, size, f"{where}: probe {probe.name}", self.domains)

    def _item_path(self, stage: int, domain: int) -> Path:
        where = f"{self.name}: stage {stage + 1}, domain {self.domains[domain]}"
        if self.folder is None:
            raise InputError(f"{where}: the run has no folder yet; save it before its items are read")
        name = self.item_files[stage][domain] if self.item_files else None
        if name is None:
            raise InputError(f"{where}: no counts per item were kept; evaluate this run again")
        return self.folder / name


def _check_written(path: Path, content: dict[str, Any]) -> None:
    """Refuse what was changed on the disk; results of older versions, which have no hashes, are taken as they are."""
    try:
        break_seal(path, content)
        check_files(path.parent, content.pop(FILES, {}), missing_too=False)
    except DamagedEntry as error:
        raise InputError(f"{error}; run the decode stage again") from error


def _rates(errors: Counts, lengths: list[int], size: int) -> Matrix:
    rates = np.full((size, size), np.nan)
    for i, row in enumerate(errors):
        for j, count in enumerate(row):
            if count is not None:
                rates[i, j] = percent(count, lengths[j])
    return rates


def _nothing(size: int) -> Counts:
    return [[None] * size for _ in range(size)]


def _say(counts: tuple[int | None, int, str]) -> str:
    return f"{counts[0]} errors in {counts[1]} {counts[2]}s"


def _check_plain(run: RunResult, where: str) -> None:
    kinds: dict[type, tuple[str, ...]] = {
        str: ("scenario", "method", "unit", "command", "role", "kind", "decoded_by", "label"),
        int: ("seed",),
        dict: ("validation", "config", "environment", "references"),
        list: (
            "domains",
            "probes",
            "errors",
            "lengths",
            "character_errors",
            "character_lengths",
            "item_files",
            "written",
            "stages",
        ),
    }
    for kind, names in kinds.items():
        for name in names:
            if not isinstance(getattr(run, name), kind):
                raise InputError(f"{where}: {name} must be of type {kind.__name__}; run it again")
    domains = run.domains
    if (
        not domains
        or len(set(map(str, domains))) < len(domains)
        or not all(isinstance(d, str) for d in domains)
    ):
        raise InputError(f"{where}: domains must be distinct names, at least one; found {shortened(domains)}")


def _check_square(matrix: Any, size: int, where: str, kind: type) -> None:
    if len(matrix) != size or not all(isinstance(row, list) and len(row) == size for row in matrix):
        raise InputError(f"{where} must be {size} rows of {size}, a stage and a domain each; run it again")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            if value is not None and not _is_valid(value, kind):
                raise InputError(
                    f"{where}[{i}][{j}] is {shortened(repr(value))}, expected {kind.__name__} or null; run it again"
                )


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    """What is written: without counts of written text where there are none, as files of before."""
    return {name: value for name, value in content.items() if value or name != "written"}


def _written(row: Any, where: str) -> list[Written | None]:
    """Counts of written text as they are stored, one object or null per evaluation."""
    if not isinstance(row, list):
        raise InputError(f"{where} holds {shortened(repr(row))}, expected a list; run it again")
    for entry in row:
        counts = entry.values() if isinstance(entry, dict) and set(entry) == set(COUNTS) else [None]
        if entry is not None and not all(_is_valid(value, int) for value in counts):
            raise InputError(f"{where} holds {shortened(repr(entry))}, expected the counts {', '.join(COUNTS)}; run it again")
    return [entry and Written(**entry) for entry in row]


def _probe(entry: Any, where: str) -> ProbeCounts:
    try:
        return ProbeCounts(**{**entry, "written": _written(entry.get("written", []), f"{where}: probes: written")})
    except (TypeError, AttributeError) as error:
        raise InputError(f"{where}: probes: not what a run writes ({error}); run it again with this version") from error


def _check_probe(probe: ProbeCounts, size: int, where: str, domains: list[str]) -> None:
    if not isinstance(probe.name, str) or probe.name in domains:
        raise InputError(f"{where}: needs a name of its own; run it again")
    _check_row([probe.length, probe.character_length], 2, where)
    for name, kind in (("errors", int), ("character_errors", int), ("item_files", str), ("written", Written)):
        row = getattr(probe, name)
        if not isinstance(row, list) or ((row or name == "errors") and len(row) != size):
            raise InputError(f"{where}: {name} must be {size} entries, one per stage; run it again")
        if wrong := [value for value in row if value is not None and not _is_valid(value, kind)]:
            raise InputError(f"{where}: {name} holds {shortened(repr(wrong[0]))}, expected {kind.__name__} or null; run it again")


def _check_row(row: Any, size: int, where: str) -> None:
    if not isinstance(row, list) or len(row) != size or not all(_is_valid(value, int) for value in row):
        raise InputError(f"{where} must be {size} counts, one per domain; run it again")


def _is_valid(value: Any, kind: type) -> bool:
    """Counts are integers from 0; names are strings."""
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return not isinstance(value, int) or 0 <= value <= MAX_COUNT
