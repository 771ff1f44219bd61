"""Two or many systems on the same references: every pair tested, with Holm's correction over the pairs.

    load_systems   hypothesis files, stored error counts or results.json -> systems with the same items
    compare        systems -> every pair's difference with its interval, p values, effect sizes

Holm's correction is made within each test over all pairs. Which test to believe is in `paired_tests` and, with numbers, in
docs/significance.md: report `bootstrap` where speakers are known, `mapsswe` or `wilcoxon` where they are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.scoring.counting.align import Costs
from asrcl.scoring.counting.errors import FORMAT as ERRORS_FORMAT
from asrcl.scoring.counting.errors import Errors, ItemErrors, name_some
from asrcl.scoring.results.run_result import FILE_NAME, RunResult
from asrcl.scoring.significance.bootstrap import PairedInterval
from asrcl.scoring.significance.paired_tests import (
    TESTS,
    PairedTest,
    bootstrap_test,
    holm,
    mapsswe_test,
    mcnemar_test,
    sign_test,
    wilcoxon_test,
)
from asrcl.scoring.significance.pairing import pool, sum_seeds
from asrcl.scoring.transcripts.files import AnyPath, Source, plain_name, read_source
from asrcl.scoring.transcripts.formats import read_table
from asrcl.scoring.transcripts.score import NO_VALUE, Options, finite, normalise_errors, score
from asrcl.text import normaliser
from asrcl.visible import json_safe

FORMAT: Final = "asrcl-comparison/1"
STARS: Final = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


@dataclass(frozen=True)
class System:
    """A recogniser's counts.

    Attributes:
        name: in tables.
        errors: counts per item; summed over seeds if several files bear the name.
        files: where they come from.
        seeds: how many were summed.
    """

    name: str
    errors: Errors
    files: Sequence[str] = ()
    seeds: int = 1


@dataclass(frozen=True)
class Pair:
    """System a against system b.

    Attributes:
        a: name of the one.
        b: name of the other.
        interval: of rate(a) − rate(b) in points, over speakers; negative favours a.
        tests: by name.
        p_holm: by name of the test, corrected over all pairs.
    """

    a: str
    b: str
    interval: PairedInterval
    tests: dict[str, PairedTest]
    p_holm: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """All pairs of some systems.

    Attributes:
        systems: in the order given.
        pairs: every two of them, in that order.
        tests: names of the tests made.
        by: whether wilcoxon and sign compare items or speakers ("group").
        normaliser: under which the counts were made.
        draws: resamples of the bootstrap.
        seed: of its generator.
        skipped: what was left out, a line each.
    """

    systems: list[System]
    pairs: list[Pair]
    tests: list[str]
    by: str = "item"
    normaliser: str = "none"
    draws: int = 2000
    seed: int = 0
    skipped: list[str] = field(default_factory=list)


def stars(p: float) -> str:
    """`***` below 0.001, `**` below 0.01, `*` below 0.05."""
    return next((mark for level, mark in STARS if p < level), "")


def compare(
    systems: Sequence[System],
    tests: Sequence[str] = TESTS,
    *,
    by: str = "item",
    costs: Costs = "unit",
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Test every pair of systems.

    Args:
        systems: two or more, with the same items.
        tests: names out of `paired.TESTS`; the interval over speakers is always made.
        by: "item", or "group" to compare error rates of speakers in wilcoxon and sign.
        costs: of the alignments that mapsswe cuts into segments.
        draws: resamples of the bootstrap.
        seed: of the random generator; the same seed gives the same numbers.

    Raises:
        InputError: fewer than two systems, names that repeat, an unknown test, systems with different numbers of seeds, with
            different items or with different references.
    """
    _check(systems, tests)
    _check_alike(systems)
    pairs = []
    for a, b in combinations(systems, 2):
        try:
            pairs.append(_test_pair(a, b, tests, by, costs, draws, seed))
        except InputError as error:
            raise InputError(f"{a.name} against {b.name}: {error}") from error
    return Comparison(list(systems), _corrected(pairs, tests), list(tests), by, draws=draws, seed=seed)


def load_systems(
    sources: Sequence[str], reference: AnyPath | Source | None = None, options: Options | None = None
) -> tuple[list[System], list[str]]:
    """Systems out of files, and what was skipped.

    A source is a path, or NAME=path. The path leads to a hypothesis file (`reference` is needed), to stored counts per item
    (errors.jsonl), or to a results.json or its folder, of which the last stage's items of all domains count. Sources of one
    given name, and runs of one method, are seeds of one system: their counts are added item by item, and every system needs as
    many of them.

    Args:
        sources: in the order of tables.
        reference: of hypothesis files.
        options: how hypothesis files are scored; with `skip`, items that one system lacks are left out for all. Its `meta` names
            the speakers of every kind of source.

    Raises:
        InputError: a file cannot be read, names collide, systems have different items or references, or an option says how to
            read hypothesis files where there are none.
    """
    options = options or Options()
    skipped: list[str] = []
    if options.meta is not None:  # read once, for a pipe has nothing to say a second time; likewise the reference
        options = replace(options, meta=_table_of_speakers(options.meta, options.id_key))
    if reference is not None:
        reference = read_source(reference, options.format)
    loaded = [_load(source, reference, options, skipped) for source in sources]
    _check_references([(part.path, part.errors) for part in loaded])
    _refuse_unused(loaded, reference, options)
    systems = [_with_seeds(name, parts) for name, parts in _grouped(loaded).items()]
    return _same_items(systems, options.skip, skipped), skipped


def _check(systems: Sequence[System], tests: Sequence[str]) -> None:
    names = [system.name for system in systems]
    if len(systems) < 2:
        raise InputError(f"{len(systems)} system to compare ({', '.join(names)}); give at least two")
    if len(set(names)) < len(names):
        raise InputError(f"two systems are called alike in {', '.join(names)}; name them, NAME=file")
    unknown = sorted(set(tests) - set(TESTS))
    if unknown:
        raise InputError(f"unknown tests: {', '.join(unknown)}; choose among {', '.join(TESTS)}")


def _check_alike(systems: Sequence[System]) -> None:
    """Tests of counts per item need as many seeds and the same references on all sides."""
    seeds = {system.name: system.seeds for system in systems}
    if len(set(seeds.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in seeds.items())
        raise InputError(f"the systems have different numbers of seeds ({listed}); give as many files of each")
    _check_references([(system.name, system.errors) for system in systems])


def _check_references(sides: Sequence[tuple[str, Errors]]) -> None:
    """Every item must have the same reference (where texts are kept) and the same length on all sides."""
    known: dict[str, tuple[str, ItemErrors]] = {}
    for name, errors in sides:
        other = ""
        apart = []
        for item in errors.items:
            first_name, first = known.setdefault(item.id, (name, item))
            texts = item.reference and first.reference
            if first.length != item.length or (texts and first.reference != item.reference):
                other = first_name
                apart.append(item.id)
        if apart:
            raise InputError(f"{other} and {name} have different references for {name_some(apart)}; score both against one file")


def _test_pair(a: System, b: System, tests: Sequence[str], by: str, costs: Costs, draws: int, seed: int) -> Pair:
    resampled, interval = bootstrap_test(a.errors, b.errors, draws, seed)
    makers: dict[str, Callable[[], PairedTest]] = {
        "wilcoxon": lambda: wilcoxon_test(a.errors, b.errors, by),
        "sign": lambda: sign_test(a.errors, b.errors, by),
        "mcnemar": lambda: mcnemar_test(a.errors, b.errors),
        "mapsswe": lambda: mapsswe_test(a.errors, b.errors, costs),
        "bootstrap": lambda: resampled,
    }
    return Pair(a.name, b.name, interval, {name: makers[name]() for name in tests})


def _corrected(pairs: list[Pair], tests: Sequence[str]) -> list[Pair]:
    corrected = {name: holm([pair.tests[name].p_value for pair in pairs]) for name in tests}
    return [replace(pair, p_holm={name: corrected[name][place] for name in tests}) for place, pair in enumerate(pairs)]


@dataclass(frozen=True)
class _Loaded:
    name: str
    given: bool
    seed: int | None
    errors: Errors
    path: str
    stored: bool = True


def _refuse_unused(loaded: Sequence[_Loaded], reference: Source | None, options: Options) -> None:
    """Refuse what has a meaning for hypothesis files alone where none is compared."""
    given = {"--reference": reference, "--ref-key": options.reference_key, "--hyp-key": options.hypothesis_key}
    given |= {"--format": options.format, "--id-key": None if options.meta else options.id_key}
    unused = [name for name, value in given.items() if value is not None]
    if unused and all(part.stored for part in loaded):
        raise InputError(f"{', '.join(unused)}: of hypothesis files, but all systems are stored counts; leave it out")


def _load(source: str, reference: Source | None, options: Options, skipped: list[str]) -> _Loaded:
    name, path = _named(source)
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file or folder; a system is a hypothesis file, errors.jsonl, or the folder of a run")
    if os.path.isdir(path) or Path(path).name == FILE_NAME:
        return _load_run(name, Path(path), options)
    if _is_stored(path):
        errors = _renormalised(_with_speakers(Errors.load(path), options, path), options, path)
        return _Loaded(name or _stem(path), bool(name), None, errors, path)
    if reference is None:
        raise InputError(f"{path}: a hypothesis file needs its reference; add --reference FILE")
    found = score(reference, path, options)
    known = set(skipped)
    skipped.extend(line for line in found.skipped if line not in known)
    return _Loaded(name or _stem(path), bool(name), None, found.normalised or found.raw, path, stored=False)


def _with_speakers(errors: Errors, options: Options, path: str) -> Errors:
    """The counts with the speakers of the table of metadata, if there is one."""
    if options.meta is None:
        return errors
    table = read_table(options.meta, options.id_key)
    if not any(key in table for key in errors.ids):
        raise InputError(f"{path}: none of its ids ({name_some(errors.ids)}) is in the table of --meta; name the ids alike")
    speakers = {key: table[key].get("speaker") or NO_VALUE for key in errors.ids if key in table}
    return Errors([replace(item, group=speakers.get(item.id, NO_VALUE)) for item in errors.items], errors.unit)


def _table_of_speakers(path: AnyPath | Source, id_key: str | None) -> Source:
    """The table of metadata, which must name speakers: nothing else of it is used here."""
    meta = read_source(path)
    if not any(row.get("speaker") for row in read_table(meta, id_key).values()):
        raise InputError(f"{meta.path}: names no speaker; give a table with a column speaker, or utt2spk, or leave --meta out")
    return meta


def _named(source: str) -> tuple[str, str]:
    """NAME=path, or a path; folders of Hydra have equals signs of their own."""
    name, sign, path = source.partition("=")
    if not sign or os.path.exists(source) or "/" in name:
        return "", source
    if not name or not path:
        raise InputError(f"{source!r}: write NAME=FILE, or FILE alone")
    return name, path


def _load_run(name: str, path: Path, options: Options) -> _Loaded:
    run = RunResult.load(path / FILE_NAME if path.is_dir() else path)
    sets = run.final_items()
    if sets is None:
        raise InputError(f"{path}: no counts per item were kept of its last stage; evaluate this run again")
    sets = [_with_speakers(part, options, f"{path}: {domain}") for part, domain in zip(sets, run.domains, strict=True)]
    errors = _renormalised(pool(sets, run.domains), options, str(path))
    return _Loaded(name or run.method, bool(name), run.seed, errors, str(path))


def _is_stored(path: str) -> bool:
    """Whether the file holds counts per item, not texts; a pipe, of which a look would take something away, does not."""
    if not Path(path).is_file():
        return False
    try:
        with open(path, encoding="utf-8") as stream:
            return f'"{ERRORS_FORMAT.split("/")[0]}/' in stream.readline(200)
    except (OSError, UnicodeDecodeError):
        return False  # the reader of transcripts says what is wrong with it


def _renormalised(errors: Errors, options: Options, path: str) -> Errors:
    rules = normaliser(options.normaliser)
    if rules.name == "none" and options.costs == "unit":
        return errors
    if any(item.length and not item.reference for item in errors.items):
        raise InputError(f"{path}: its items have no texts to count again; leave out --normaliser and --costs")
    try:
        return normalise_errors(errors, rules, options.costs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _stem(path: str) -> str:
    """The file's name; the folder's where the file's says only what it is."""
    stem = plain_name(path).stem
    return Path(path).resolve().parent.name if stem in ("hyp", "hypothesis", "text", "errors") else stem


def _grouped(loaded: list[_Loaded]) -> dict[str, list[_Loaded]]:
    """Sources by name; several of one name must be seeds: named alike on purpose, or runs with different seeds."""
    groups: dict[str, list[_Loaded]] = {}
    for part in loaded:
        groups.setdefault(part.name, []).append(part)
    for name, parts in groups.items():
        seeds = [part.seed for part in parts]
        if len(parts) > 1 and not all(part.given for part in parts) and (None in seeds or len(set(seeds)) < len(seeds)):
            files = ", ".join(part.path for part in parts)
            raise InputError(f"several systems would be called {name} ({files}); name them, NAME=file")
    return groups


def _with_seeds(name: str, parts: list[_Loaded]) -> System:
    errors = parts[0].errors if len(parts) == 1 else sum_seeds([part.errors for part in parts])
    return System(name, errors, [part.path for part in parts], len(parts))


def _same_items(systems: list[System], skip: bool, skipped: list[str]) -> list[System]:
    sets = [set(system.errors.ids) for system in systems]
    if not sets:
        return systems
    common, every = set.intersection(*sets), set.union(*sets)
    if common == every:
        return systems
    lacking = "; ".join(f"{s.name} lacks {name_some(every - ids)}" for s, ids in zip(systems, sets, strict=True) if every - ids)
    if not common:
        raise InputError(f"the systems have no item in common: {lacking}; compare systems on the same references")
    if not skip:
        raise InputError(f"the systems have different items: {lacking}; score the same utterances, or add --skip")
    skipped.append(f"left out for all systems: {lacking}")
    return [
        replace(s, errors=Errors([item for item in s.errors.items if item.id in common], s.errors.unit)) for s in systems
    ]


def as_json(found: Comparison) -> dict[str, Any]:
    """Every number, for JSON; those without a value are null."""
    systems = [
        {
            "name": system.name,
            "files": list(system.files),
            "rate": finite(system.errors.rate),
            "items": len(system.errors),
            "errors": system.errors.total,
            "length": system.errors.length,
        }
        for system in found.systems
    ]
    settings = {"by": found.by, "normaliser": found.normaliser, "draws": found.draws, "seed": found.seed}
    rows = [{key: finite(value) for key, value in row.items()} for row in rows_of(found)]
    return {"format": FORMAT, **settings, "systems": systems, "skipped": found.skipped, "tests": rows}


def rows_of(found: Comparison) -> list[dict[str, Any]]:
    """One row per pair and test."""
    rates = {system.name: system.errors.rate for system in found.systems}
    rows = []
    for pair in found.pairs:
        interval = pair.interval
        head = {"a": pair.a, "b": pair.b, "rate_a": rates[pair.a], "rate_b": rates[pair.b], "difference": interval.estimate}
        head |= {"ci95_low": interval.low, "ci95_high": interval.high, "p_a_better": interval.p_better}
        for name, test in pair.tests.items():
            values = {"test": name, "p": test.p_value, "p_holm": pair.p_holm[name], "statistic": test.statistic}
            rows.append(head | values | {"effect": test.effect, "used": test.used, "unit": test.unit})
    return rows


def dump_json(found: Comparison) -> str:
    """`as_json` as text."""
    return json_safe(json.dumps(as_json(found), indent=1, ensure_ascii=False)) + "\n"
