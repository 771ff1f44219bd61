"""Runs to numbers: per scenario and method the means over seeds, intervals and tests that reports show.

Reports are views: everything they print is computed here, once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import Errors
from asrcl.scoring.results import metrics
from asrcl.scoring.results.measure import Measure, measure_of
from asrcl.scoring.results.metrics import Matrix
from asrcl.scoring.results.roles import COMPETING, standing_of
from asrcl.scoring.results.run_result import RunResult
from asrcl.scoring.significance.bootstrap import Interval, PairedInterval
from asrcl.scoring.significance.intervals import average_interval, difference_interval, stage_intervals
from asrcl.scoring.significance.paired_tests import PairedTest, holm, wilcoxon_test
from asrcl.scoring.significance.pairing import pool, sum_seeds

Items = dict[tuple[str, int], list[Errors] | None]


@dataclass(frozen=True)
class MethodSummary:
    """What a report says about one method in one scenario. Rates are in percent, means are over seeds.

    Attributes:
        method: its id.
        label: its name in tables and pictures.
        role: see `asrcl.scoring.results.roles`.
        kind: likewise.
        seeds: seeds of the runs.
        matrices: R of every seed, completed as `RunResult.completed` does, [S, T, T].
        values: metric key (as in `metrics.METRICS`, and "cer_avg") to its value of every seed, [S].
        interval: of AVG, resampling speakers jointly over domains and seeds; None without counts per item.
        comparison: Wilcoxon's test of the reference method against this one; None for itself or without a common seed.
        p_holm: the comparison's p value after Holm's correction; nan without one.
        difference: AVG of the reference method minus AVG of this one, resampling speakers; None where `comparison` is.
        probes: error rates on the scenario's probes of every seed and stage, [S, T, probes]; nan where not measured.
        probe_intervals: of each probe after the last stage, resampling speakers; None without counts per item.
    """

    method: str
    label: str
    role: str
    kind: str
    seeds: list[int]
    matrices: Matrix
    values: dict[str, Matrix]
    interval: Interval | None = None
    comparison: PairedTest | None = None
    p_holm: float = float("nan")
    difference: PairedInterval | None = None
    probes: Matrix = field(default_factory=lambda: np.zeros((1, 1, 0)))
    probe_intervals: tuple[Interval | None, ...] = ()

    @property
    def competes(self) -> bool:
        """Whether it can be the best of a column; the initial model and oracles cannot."""
        return self.role in COMPETING

    @property
    def matrix(self) -> Matrix:
        """R, mean over seeds, [T, T]."""
        return np.asarray(self.matrices.mean(axis=0))

    @property
    def final(self) -> Matrix:
        """Error rate on each domain after the last stage, mean over seeds, [T]."""
        return np.asarray(self.matrix[-1])

    def mean(self, metric: str) -> float:
        """A metric's mean over the seeds for which it is defined; nan if there are none."""
        defined = self.values[metric][~np.isnan(self.values[metric])]
        return float(np.mean(defined)) if defined.size else float("nan")

    def deviation(self, metric: str) -> float:
        """A metric's standard deviation over seeds (n − 1); nan with fewer than two."""
        return float(np.std(self.values[metric], ddof=1)) if len(self.seeds) > 1 else float("nan")


@dataclass(frozen=True)
class ScenarioSummary:
    """All methods of one scenario, in the order of tables.

    Attributes:
        scenario: its name.
        domains: names, in order.
        unit: "word", "character", "image".
        methods: one summary each.
        runs: what they were made from.
        reference: the method that the others are tested against.
        items: (method, seed) to the counts per item of every domain after the last stage; None where not kept.
        probes: names of the test sets that no stage trains on.
    """

    scenario: str
    domains: list[str]
    unit: str
    methods: list[MethodSummary]
    runs: list[RunResult] = field(repr=False)
    reference: str = "ihr"
    items: Items = field(repr=False, default_factory=dict)
    probes: list[str] = field(default_factory=list)

    def runs_of(self, method: str) -> list[RunResult]:
        """The runs of a method, by seed."""
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)

    @cached_property
    def bands(self) -> dict[str, list[Interval | None]]:
        """Per method and stage the interval of the mean rate over the domains seen so far; None where it is not known.

        Made when first asked for: it reads the items of all stages.
        """
        return {method.method: stage_intervals(self.runs_of(method.method)) for method in self.methods}

    @property
    def measure(self) -> Measure:
        """How its rates are shown."""
        return measure_of(self.unit)

    @property
    def rate_name(self) -> str:
        """WER, CER, or accuracy for images."""
        return self.measure.name


def summarise(
    runs: Sequence[RunResult], reference_method: str = "ihr", labels: Mapping[str, str] | None = None
) -> list[ScenarioSummary]:
    """Summarise runs per scenario and method.

    Per-utterance tests compare `reference_method` with every other method of the scenario, over all test
    items of all domains after the last stage, errors summed over the common seeds. Holm's correction is
    over all tests returned.

    Raises:
        InputError: no runs, the same run twice, or runs of one scenario that do not have the same test sets.
    """
    if not runs:
        raise InputError(
            "no results to report; run a recipe, or name the folder that holds results.json files"
        )
    _refuse_repeated(runs)
    scenarios = []
    for scenario in dict.fromkeys(run.scenario for run in runs):
        members = _variants_apart([run for run in runs if run.scenario == scenario])
        _require_same_tests(members)
        _require_one_standing(members)
        scenarios.append(_summarise_scenario(members, reference_method, labels or {}))
    return _correct(scenarios)


def _summarise_scenario(runs: list[RunResult], reference: str, labels: Mapping[str, str]) -> ScenarioSummary:
    items = {(run.method, run.seed): run.final_items() for run in runs}
    found = {run.method: run for run in runs}
    probes = list(dict.fromkeys(probe.name for run in runs for probe in run.probes))
    methods = []
    for method in sorted(found, key=lambda key: _rank(found[key], reference)):
        members = sorted((run for run in runs if run.method == method), key=lambda run: run.seed)
        summary = _summarise_method(members, runs, labels.get(method, members[0].label), probes)
        seeds = [items[method, seed] for seed in summary.seeds]
        interval = average_interval([part for part in seeds if part is not None]) if all(seeds) else None
        pairs = [] if method == reference else pairs_with(items, reference, method)
        test, difference = compare_with(pairs, runs[0].domains) if pairs else (None, None)
        methods.append(replace(summary, interval=interval, comparison=test, difference=difference))
    return ScenarioSummary(runs[0].scenario, runs[0].domains, runs[0].unit, methods, runs, reference, items, probes)


def _rank(run: RunResult, reference: str) -> tuple[int, bool, bool, str]:
    """The initial model, references, methods by name with the tested one last, oracles with joint training last."""
    place = ("initial", "reference", "method", "oracle").index(run.role)
    return place, run.method == reference, run.kind == "joint", run.method


def _summarise_method(
    members: list[RunResult], runs: list[RunResult], label: str, probes: Sequence[str]
) -> MethodSummary:
    per_seed = [
        _values(run, {other.kind or other.role: other for other in runs if other.seed == run.seed}) for run in members
    ]
    values = {key: np.array([value[key] for value in per_seed]) for key in per_seed[0]}
    matrices = np.stack([run.completed() for run in members])
    return MethodSummary(
        members[0].method,
        label,
        members[0].role,
        members[0].kind,
        [run.seed for run in members],
        matrices,
        values,
        probes=np.stack([_probe_columns(run, probes) for run in members]),
        probe_intervals=tuple(_probe_interval(members, name) for name in probes),
    )


def _probe_columns(run: RunResult, names: Sequence[str]) -> Matrix:
    """Error rates on the named probes, [T, names]; nan where the run lacks one."""
    known = {probe.name: column for probe, column in zip(run.probes, run.probe_rates().T, strict=True)}
    columns = [known.get(name, np.full(len(run.domains), np.nan)) for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((len(run.domains), 0))


def _probe_interval(runs: Sequence[RunResult], name: str) -> Interval | None:
    found = [[run.probe_items(n) for n, probe in enumerate(run.probes) if probe.name == name] for run in runs]
    seeds = [items for items in found if items and items[0] is not None]
    return average_interval(seeds) if len(seeds) == len(runs) else None  # type: ignore[arg-type]


def _values(run: RunResult, peers: Mapping[str, RunResult]) -> dict[str, float]:
    """Every metric of one run; `peers` are the runs of the same scenario and seed, by kind, or else by role."""
    matrix, nan = run.completed(), float("nan")
    tuned, separate, joint = (peers.get(method) for method in ("fine_tuning", "separate", "joint"))
    return {
        "avg": metrics.avg(matrix),
        "accuracy": metrics.accuracy(matrix),
        "word_weighted_avg": metrics.word_weighted_avg(matrix, run.lengths),
        "bwt": metrics.bwt(matrix),
        "fwt": metrics.fwt(_with_first_row(matrix, peers.get("initial"))),
        "cov": metrics.cov(matrix, tuned.completed(), separate.completed()) if tuned and separate else nan,
        "forgetting": metrics.forgetting(matrix),
        "intransigence": metrics.intransigence(matrix, joint.completed()) if joint else nan,
        "cer_avg": metrics.avg(run.completed(run.character_rates())),
    }


def _with_first_row(matrix: Matrix, initial: RunResult | None) -> Matrix:
    """Fill the gaps of row 1 from the initial model's run: the first stage is the same for all methods."""
    if initial is None:
        return matrix
    filled = matrix.copy()
    filled[0] = np.where(np.isnan(matrix[0]), initial.completed()[0], matrix[0])
    return filled


def pairs_with(items: Items, reference: str, other: str) -> list[tuple[list[Errors], list[Errors]]]:
    """The items of both methods for every seed that both have."""
    return [
        (left, right)
        for (method, seed), left in items.items()
        if method == reference and left is not None and (right := items.get((other, seed))) is not None
    ]


def compare_with(pairs: list[tuple[list[Errors], list[Errors]]], domains: list[str]) -> tuple[PairedTest, PairedInterval]:
    """The reference against another method over all items of all domains."""
    left, right = zip(*pairs, strict=True)
    ours, theirs = (sum_seeds([pool(sets, domains) for sets in side]) for side in (left, right))
    return wilcoxon_test(ours, theirs), difference_interval(left, right)


def _correct(scenarios: list[ScenarioSummary]) -> list[ScenarioSummary]:
    """Holm's correction over every test of every scenario."""
    methods = [method for scenario in scenarios for method in scenario.methods]
    nan = float("nan")
    adjusted = iter(holm([method.comparison.p_value if method.comparison else nan for method in methods]))
    return [
        replace(scenario, methods=[replace(method, p_holm=next(adjusted)) for method in scenario.methods])
        for scenario in scenarios
    ]


def _refuse_repeated(runs: Sequence[RunResult]) -> None:
    seen: dict[str, RunResult] = {}
    for run in runs:
        if run.name in seen:
            places = f"{seen[run.name].folder} and {run.folder}"
            raise InputError(
                f"{run.name} occurs twice, in {places}; report a folder that holds each run once"
            )
        seen[run.name] = run


def _require_same_tests(runs: list[RunResult]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for name in ("domains", "unit", "lengths"):
            if getattr(run, name) != getattr(first, name):
                raise InputError(
                    f"{run.folder}: {name} of {run.name} differ from those of {first.name}; "
                    "only runs on the same test sets belong in one report"
                )
    lengths: dict[str, tuple[int, RunResult]] = {}
    for run in runs:
        for probe in run.probes:
            length, other = lengths.setdefault(probe.name, (probe.length, run))
            if length != probe.length:
                raise InputError(
                    f"{run.folder}: probe {probe.name} of {run.name} differs from that of {other.name}; "
                    "only runs on the same test sets belong in one report"
                )


def _variants_apart(runs: Sequence[RunResult]) -> list[RunResult]:
    """Where `ft`, `separate` or `joint` is there by that name, variants of it (`{name: ft, run: ...}`) are methods like others.

    Metrics need one run of a kind; a variant that is the only one stays what it is.
    """
    usual = {run.kind for run in runs if run.kind and standing_of(run.method).kind == run.kind}

    def settled(run: RunResult) -> RunResult:
        if run.kind not in usual or standing_of(run.method).kind == run.kind:
            return run
        return replace(run, kind="", role="method" if run.role == "reference" else run.role)

    return [settled(run) for run in runs]


def _require_one_standing(runs: Sequence[RunResult]) -> None:
    """Runs of one method must say the same of it, and no two methods may be the initial model or of one kind."""
    first: dict[str, RunResult] = {}
    holder: dict[str, RunResult] = {}
    for run in runs:
        leader = first.setdefault(run.method, run)
        for name in ("role", "kind", "decoded_by"):
            if getattr(run, name) != getattr(leader, name):
                found = f"{getattr(run, name) or '(empty)'}, of {leader.name} {getattr(leader, name) or '(empty)'}"
                raise InputError(f"{run.folder}: {name} of {run.name} is {found}; one method has one {name}")
        mark = run.kind or ("initial" if run.role == "initial" else "")
        if mark and holder.setdefault(mark, run).method != run.method:
            both = f"{holder[mark].name} and {run.name}"
            raise InputError(f"{run.folder}: {both} are both {mark}; metrics need one of it, so report one of them")


def mean_known(arrays: Sequence[Matrix]) -> Matrix:
    """Mean over the first axis of what is known; nan where nothing is."""
    stacked = np.stack(arrays)
    known = ~np.isnan(stacked)
    count = known.sum(axis=0)
    total = np.where(known, stacked, 0.0).sum(axis=0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
