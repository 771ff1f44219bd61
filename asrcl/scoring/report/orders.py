"""Does the order of the domains matter? Every method over scenarios that differ in order alone.

Every order is a scenario of its own (`digits_order_A`, `digits_order_B`; `accents`, `accents_reversed`), with the same test sets.
For method m, P[o,j] is the mean over seeds of the error rate on domain j (the same domain in all orders, wherever it stands)
after the last stage under order o. AOPD and MOPD: Yoon et al., ICLR 2020, arXiv 1902.09432.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from asrcl.scoring.counting.errors import Errors
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, compare_with, mean_known, pairs_with
from asrcl.scoring.results.measure import Measure, measure_of
from asrcl.scoring.results.metrics import Matrix, aopd, mopd, order_disparity, stage_averages
from asrcl.scoring.results.run_result import RunResult
from asrcl.scoring.results.stage_records import learning_seconds, parameters
from asrcl.scoring.significance.bootstrap import Interval
from asrcl.scoring.significance.intervals import disparity_intervals, student_interval
from asrcl.scoring.significance.paired_tests import holm


@dataclass(frozen=True)
class OrderSummary:
    """One method over several orders; rates in percent, disparities in points.

    Attributes:
        first: its summary in the first order that has it, which says its id, label and role.
        domains: in the order of the first scenario.
        orders: names of the scenarios.
        final: P, [orders, domains].
        averages: AVG per order, mean over seeds, with Student's interval over orders.
        forgetting: likewise.
        disparities: the intervals of AOPD and MOPD over test items, the orders as they are; None without counts per item.
        growth: parameters of the models of all domains after the last stage over those after the first; nan where not kept.
        slowdown: seconds of learning over those of plain fine-tuning, same orders and seeds; nan where not kept.
        curves: mean error rate over the domains seen so far, [orders, stages], mean over seeds.
        coverage: COV, mean over orders and seeds; nan where it is not defined.
        probes: error rates on the scenarios' probes after the last stage, mean over orders and seeds, [probes].
    """

    first: MethodSummary
    domains: list[str]
    orders: list[str]
    final: Matrix
    averages: Interval
    forgetting: Interval
    disparities: tuple[Interval, Interval] | None
    growth: float
    slowdown: float
    curves: Matrix
    coverage: float
    probes: Matrix

    @property
    def method(self) -> str:
        """Its id."""
        return self.first.method

    @property
    def label(self) -> str:
        """Its name."""
        return self.first.label

    @property
    def disparity(self) -> Matrix:
        """OPD of every domain, [domains]."""
        return order_disparity(self.final)

    @property
    def aopd(self) -> float:
        """Mean disparity; lower is better."""
        return aopd(self.final)

    @property
    def mopd(self) -> float:
        """Largest disparity; lower is better."""
        return mopd(self.final)


@dataclass(frozen=True)
class Orders:
    """Scenarios that differ in the order of their domains alone.

    Attributes:
        scenarios: their summaries, no two in the same order.
    """

    scenarios: list[ScenarioSummary]

    @property
    def names(self) -> list[str]:
        """Names of the scenarios."""
        return [summary.scenario for summary in self.scenarios]

    @property
    def name(self) -> str:
        """The scenario whose orders these are, or the names of all."""
        names = {run.config.get("scenario", {}).get("name") for summary in self.scenarios for run in summary.runs}
        return str(names.pop()) if len(names) == 1 and names != {None} else ", ".join(self.names)

    @property
    def measure(self) -> Measure:
        """How their rates are shown."""
        return measure_of(self.scenarios[0].unit)

    @property
    def probes(self) -> list[str]:
        """Names of the test sets that no stage trains on, of the first scenario."""
        return self.scenarios[0].probes

    @property
    def one_experiment(self) -> bool:
        """Whether one command ran them as orders of one scenario."""
        return all(run.config.get("scenario", {}).get("order") for summary in self.scenarios for run in summary.runs)

    @cached_property
    def methods(self) -> list[OrderSummary]:
        """One entry per method that has run in two orders at least."""
        found: dict[str, list[tuple[ScenarioSummary, MethodSummary]]] = {}
        for summary in self.scenarios:
            for method in summary.methods:
                found.setdefault(method.method, []).append((summary, method))
        return [_over_orders(members, self.scenarios[0].domains) for members in found.values() if len(members) > 1]

    @property
    def reference(self) -> str:
        """The method that the others are tested against."""
        return self.scenarios[0].reference

    @cached_property
    def tested(self) -> list[MethodSummary]:
        """Every method's first summary with the test of the reference against it over all orders and seeds that both have.

        The errors of all orders and seeds are added per item, so that an item enters once; Holm's correction is over these tests.
        Methods that share fewer than two orders with the reference are left out.
        """
        found = []
        for method in self.methods:
            shared = [(summary, pairs_with(summary.items, self.reference, method.method)) for summary in self.scenarios]
            if method.method == self.reference or sum(bool(pairs) for _, pairs in shared) < 2:
                continue
            pairs = [self._in_one_order(summary, pair) for summary, members in shared for pair in members]
            test, difference = compare_with(pairs, self.scenarios[0].domains)
            found.append(replace(method.first, comparison=test, difference=difference))
        adjusted = holm([method.comparison.p_value for method in found if method.comparison])
        return [replace(method, p_holm=p) for method, p in zip(found, adjusted, strict=True)]

    def _in_one_order(
        self, summary: ScenarioSummary, pair: tuple[list[Errors], list[Errors]]
    ) -> tuple[list[Errors], list[Errors]]:
        places = [summary.domains.index(name) for name in self.scenarios[0].domains]
        left, right = ([side[place] for place in places] for side in pair)
        return left, right


def summarise_orders(scenarios: Sequence[ScenarioSummary]) -> list[Orders]:
    """One entry per set of domains that at least two scenarios, with a method in common, have in different orders.

    Scenarios whose test sets differ in length are not the same domains, even where the names agree. Of several in the same
    order the first counts.
    """
    groups: dict[tuple[str, tuple[tuple[str, int], ...]], dict[tuple[str, ...], ScenarioSummary]] = {}
    for scenario in scenarios:
        tests = tuple(sorted(zip(scenario.domains, scenario.runs[0].lengths, strict=True)))
        groups.setdefault((scenario.unit, tests), {}).setdefault(tuple(scenario.domains), scenario)
    found = [Orders(list(members.values())) for members in groups.values() if len(members) > 1]
    return [orders for orders in found if orders.methods]


def told_together(orders: Sequence[Orders]) -> set[str]:
    """Names of the scenarios that are orders of one experiment, which reports tell of in one table first, and apart in brief."""
    return {name for entry in orders if entry.one_experiment for name in entry.names}


def _over_orders(members: Sequence[tuple[ScenarioSummary, MethodSummary]], domains: list[str]) -> OrderSummary:
    runs = [summary.runs_of(method.method) for summary, method in members]
    averages = student_interval([method.mean("avg") for _, method in members])
    return OrderSummary(
        members[0][1],
        domains,
        [summary.scenario for summary, _ in members],
        np.stack([method.final[[summary.domains.index(name) for name in domains]] for summary, method in members]),
        replace(averages, low=max(averages.low, 0.0)),  # of two orders it may reach below what a rate can be
        student_interval([method.mean("forgetting") for _, method in members]),
        _disparities(members, domains),
        _mean([_growth(run) for order in runs for run in order]),
        _mean([slowdown(summary, run) for summary, method in members for run in summary.runs_of(method.method)]),
        np.stack([mean_known([stage_averages(matrix) for matrix in method.matrices]) for _, method in members]),
        _mean([method.mean("cov") for _, method in members]),
        mean_known([_probes(summary, method, members[0][0].probes) for summary, method in members]),
    )


def _probes(summary: ScenarioSummary, method: MethodSummary, names: Sequence[str]) -> Matrix:
    """A method's error rates on these probes after the last stage, mean over seeds; nan where the scenario lacks one."""
    rates = mean_known(list(method.probes))[-1]
    return np.array([rates[summary.probes.index(name)] if name in summary.probes else math.nan for name in names])


def _disparities(
    members: Sequence[tuple[ScenarioSummary, MethodSummary]], domains: list[str]
) -> tuple[Interval, Interval] | None:
    orders: list[list[list[Errors]]] = []
    for summary, method in members:
        places = [summary.domains.index(name) for name in domains]
        seeds = [summary.items[method.method, seed] for seed in method.seeds]
        kept = [[items[place] for place in places] for items in seeds if items is not None]
        if len(kept) < len(seeds):
            return None
        orders.append(kept)
    return disparity_intervals(orders)


def _growth(run: RunResult) -> float:
    first, last = parameters(run)
    return last / first if first else math.nan


def slowdown(summary: ScenarioSummary, run: RunResult) -> float:
    """Seconds of learning over those of plain fine-tuning with the same seed; nan where either is not kept."""
    plain = [other for other in summary.runs if other.kind == "fine_tuning" and other.seed == run.seed]
    seconds = learning_seconds(plain[0]) if plain else math.nan
    return learning_seconds(run) / seconds if seconds else math.nan


def _mean(values: Sequence[float]) -> float:
    """Of what is known; nan where nothing is."""
    return float(mean_known([np.array(value) for value in values]))
