"""Does the order of the domains matter? AOPD and MOPD of every method over scenarios that differ in order alone.

Every order is a scenario of its own (`accents`, `accents_reversed`, ...), with the same test sets. For method m,
P[o,j] is the mean over seeds of the error rate on domain j (the same domain in all orders, wherever it stands) after
the last stage under order o. Source: Yoon et al., ICLR 2020, arXiv 1902.09432.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asrcl.scoring.report.summary import ScenarioSummary
from asrcl.scoring.results.metrics import Matrix, aopd, mopd, order_disparity


@dataclass(frozen=True)
class OrderSummary:
    """One method over several orders; rates in percent, disparities in points.

    Attributes:
        method: its id.
        label: its name.
        domains: in the order of the first scenario.
        orders: names of the scenarios.
        final: P, [orders, domains].
    """

    method: str
    label: str
    domains: list[str]
    orders: list[str]
    final: Matrix

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


def summarise_orders(scenarios: Sequence[ScenarioSummary]) -> list[OrderSummary]:
    """One entry per method and set of domains that at least two scenarios have in different orders.

    Scenarios whose test sets differ in length are not the same domains, even where the names agree.
    """
    groups: dict[tuple[str, tuple[tuple[str, int], ...]], list[ScenarioSummary]] = {}
    for scenario in scenarios:
        tests = tuple(sorted(zip(scenario.domains, scenario.runs[0].lengths, strict=True)))
        groups.setdefault((scenario.unit, tests), []).append(scenario)
    return [entry for members in groups.values() for entry in _over_orders(members)]


def _over_orders(scenarios: list[ScenarioSummary]) -> list[OrderSummary]:
    if len({tuple(scenario.domains) for scenario in scenarios}) < 2:
        return []
    found = []
    for first in {method.method: method for scenario in scenarios for method in scenario.methods}.values():
        parts = {s.scenario: _final(s, first.method, scenarios[0].domains) for s in scenarios}
        known = {name: row for name, row in parts.items() if row is not None}
        if len(known) > 1:
            final = np.stack(list(known.values()))
            found.append(OrderSummary(first.method, first.label, scenarios[0].domains, list(known), final))
    return found


def _final(scenario: ScenarioSummary, method: str, domains: list[str]) -> Matrix | None:
    """Final rates of a method, columns in the order of `domains`; None if the scenario lacks it."""
    for entry in scenario.methods:
        if entry.method == method:
            return entry.final[[scenario.domains.index(domain) for domain in domains]]
    return None
