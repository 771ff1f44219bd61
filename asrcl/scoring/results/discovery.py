"""Finding runs on disk, and saying of every results file that cannot be used which one it is and why.

Nothing is dropped silently: `Scan.require` refuses with the whole list, or hands out the usable runs because the user
said so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import name_some
from asrcl.scoring.results.run_result import FILE_NAME, OtherVersionError, RunResult
from asrcl.scoring.results.stage_records import run_seconds

OTHER_VERSION: Final = "other version"
DAMAGED: Final = "damaged"
UNLISTED: Final = "unreadable"
DUPLICATE: Final = "duplicate"
OTHER_TESTS: Final = "other test sets"
INCOMPLETE: Final = "incomplete"
MAX_NAMED: Final = 20
_DECODE: Final = "hyp.trn"


@dataclass(frozen=True, slots=True)
class Problem:
    """A results file that is not used.

    Attributes:
        path: the file.
        kind: "other version", "damaged", "incomplete" (files of items are missing), "unreadable" (a folder), "duplicate" or
            "other test sets".
        reason: one line.
    """

    path: Path
    kind: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What lies below some folders.

    Attributes:
        runs: those that can be used, by path.
        problems: the rest, by path.
        remarks: what else there is and is not used, a line each: decodes without results.
    """

    runs: list[RunResult]
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def count(self) -> str:
        """For example "3 results files not used: 2 damaged, 1 duplicate"; empty if there are none."""
        if not self.problems:
            return ""
        kinds = Counter(problem.kind for problem in self.problems)
        noun = "results file" if len(self.problems) == 1 else "results files"
        return f"{len(self.problems)} {noun} not used: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}"

    def lines(self) -> list[str]:
        """The count, then one line per file, the first 20 of them; then the remarks."""
        return [*self._problem_lines(), *self.remarks]

    def _problem_lines(self) -> list[str]:
        named = [f"{problem.kind}: {problem.reason}" for problem in self.problems[:MAX_NAMED]]
        more = len(self.problems) - len(named)
        return [self.count(), *named, *([f"and {more} more"] if more else [])] if self.problems else []

    def require(self, skip: bool = False) -> list[RunResult]:
        """The usable runs.

        Args:
            skip: hand them out although some files are not usable.

        Raises:
            InputError: some files are not usable and `skip` is off (all are named), or no run is left.
        """
        if self.problems and not skip:
            count, *rest = self._problem_lines()
            raise InputError(f"{count} ({'; '.join(rest)}). Mend or remove them, or leave them out with --skip-bad")
        if not self.runs:
            more = f" ({'; '.join(self.lines())})" if self.lines() else ""
            raise InputError(f"no usable {FILE_NAME} below the given folders{more}; run a recipe (asrcl decode) first")
        return self.runs


def scan_results(folders: Iterable[str | os.PathLike[str]]) -> Scan:
    """Load every results.json below the folders (or the files themselves), by path.

    Of several files with the same scenario, method and seed the first by path is used; a file found by two of the
    folders counts once.

    Raises:
        InputError: a folder does not exist.
    """
    runs: dict[str, RunResult] = {}
    files, problems, remarks = _files(folders)
    for path in files:
        try:
            run = RunResult.load(path)
            run_seconds(run)  # costs.json can be read
        except OtherVersionError as error:
            problems.append(Problem(path, OTHER_VERSION, str(error)))
        except InputError as error:
            problems.append(Problem(path, DAMAGED, str(error)))
        else:
            if missing := _missing_items(run):
                problems.append(Problem(path, INCOMPLETE, missing))
            elif run.name in runs:
                reason = f"{path}: {run.name} is also in {runs[run.name].folder}"
                problems.append(Problem(path, DUPLICATE, reason))
            else:
                runs[run.name] = run
    return Scan(list(runs.values()), problems, remarks)


def _missing_items(run: RunResult) -> str:
    """What to say of files that a run names and that are not there; empty if all are."""
    rows = [*run.item_files, *(probe.item_files for probe in run.probes)]
    names = [name for row in rows for name in row if name is not None]
    lost = [name for name in names if not ((run.folder or Path()) / name).is_file()]
    if not lost:
        return ""
    return f"{(run.folder or Path()) / lost[0]}: missing, {len(lost)} of {len(names)} files of items; decode this run again"


def with_same_tests(scan: Scan) -> Scan:
    """Move runs whose test sets are not those of their scenario's first run to the problems.

    Reports compare methods, so all runs of a scenario must have been measured on the same domains in the same order.
    """
    first: dict[str, RunResult] = {}
    runs, problems = [], []
    for run in scan.runs:
        leader = first.setdefault(run.scenario, run)
        name = different_tests(run, leader)
        if name is None:
            runs.append(run)
        else:
            path = (run.folder or Path()) / FILE_NAME
            reason = f"{path}: {name} of {run.name} differ from those of {leader.name}"
            problems.append(Problem(path, OTHER_TESTS, reason))
    return replace(scan, runs=runs, problems=[*scan.problems, *problems])


def different_tests(run: RunResult, other: RunResult) -> str | None:
    """The first of "domains", "unit", "lengths" in which two runs differ; None if they have the same test sets."""
    names: Sequence[str] = ("domains", "unit", "lengths")
    return next((name for name in names if getattr(run, name) != getattr(other, name)), None)


def _files(folders: Iterable[str | os.PathLike[str]]) -> tuple[list[Path], list[Problem], list[str]]:
    """The results files, folders that cannot be listed, and what is to be said of decodes without results."""
    found: dict[Path, Path] = {}
    problems, remarks = [], []
    for name in folders:
        folder = Path(name)
        if os.path.isfile(folder):  # unlike Path's, False for a name that is too long
            found.setdefault(folder.resolve(), folder)
        elif os.path.isdir(folder):
            below = look_below(folder)
            for path in below.results:
                found.setdefault(path.resolve(), path)
            problems += [Problem(place, UNLISTED, f"{place}: cannot be listed ({why})") for place, why in below.unlisted.items()]
            remarks += [line] if (line := below.stray_line()) else []
        else:
            raise InputError(f"{folder}: no such folder; give the folder that holds the runs")
    return list(found.values()), problems, remarks


def find_results(folder: str | os.PathLike[str]) -> list[RunResult]:
    """Load every results.json under `folder`, below linked folders too, ordered by path; an empty list if there is none.

    Raises:
        InputError: `folder` is not a folder, one below it cannot be listed, or one of the files is invalid.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; give the folder that holds the runs")
    below = look_below(folder)
    for place, reason in below.unlisted.items():
        raise InputError(f"{place}: cannot be listed ({reason}); make it readable, or give another folder")
    return [RunResult.load(path) for path in below.results]


@dataclass
class Below:
    """What was found.

    Attributes:
        results: paths of results.json, in order; a folder of that name is among them.
        strays: folders with a decode that no results.json in them or above them sums up, in order.
        unlisted: folders that cannot be listed, each with the reason.
    """

    results: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)
    unlisted: dict[Path, str] = field(default_factory=dict)

    def stray_line(self) -> str:
        """What to say of decodes without results; "" if there are none."""
        if not self.strays:
            return ""
        named = name_some(map(str, self.strays))
        return f"decodes without a {FILE_NAME}, not used: {named}; finish their runs (asrcl decode)"


def look_below(folder: str | os.PathLike[str]) -> Below:
    """Walk a folder and the folders that links in it lead to; real folders first, so that a link never hides the place itself."""
    found, waiting, seen = Below(), [Path(folder)], set[str]()
    decodes: list[Path] = []

    def note(error: OSError) -> None:
        found.unlisted[Path(error.filename)] = error.strerror or str(error)

    while waiting:
        for name, folders, files in os.walk(waiting.pop(0), onerror=note):
            home, real = Path(name), os.path.realpath(name)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            waiting += sorted(home / inner for inner in folders if (home / inner).is_symlink())
            folders.sort()
            found.results += [home / FILE_NAME] if FILE_NAME in files or FILE_NAME in folders else []
            decodes += [home] if _DECODE in files else []
    found.results.sort()
    summed = {path.parent.resolve() for path in found.results}
    found.strays = sorted(home for home in decodes if not _is_summed(home.resolve(), summed))
    return found


def _is_summed(home: Path, summed: Iterable[Path]) -> bool:
    """Whether a folder or one above it, also above the one that was walked, has results."""
    return any(place in summed or (place / FILE_NAME).is_file() for place in (home, *home.parents))
