"""Tests of two systems on the same items, and how large the difference is.

    test        its null hypothesis                                     what it takes as independent    effect size
    wilcoxon    differences per item are symmetric about zero           items                           rank-biserial correlation
    sign        each differing item favours either system alike         items                           share of items won
    mcnemar     each is alone in making a mistake in an item alike      items                           odds of lone mistakes
    mapsswe     the mean difference per segment is zero                 segments                        mean / standard deviation
    bootstrap   the rates are the same over all speakers                speakers                        relative error reduction

Items of one speaker are independent only given the speaker: where one system suits some speakers and the other suits others, the
first four reject far too often, and only `bootstrap` keeps its level (docs/significance.md has the numbers). `by="group"` makes
wilcoxon and sign tests of speakers' error rates, as NIST's sc_stats does.

All p values are two-sided. An effect above zero (above one half for "share", above one for "odds") speaks for system a.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from asrcl.exceptions import InputError
from asrcl.scoring.counting.align import Costs
from asrcl.scoring.counting.errors import Errors, percent
from asrcl.scoring.counting.segments import cut
from asrcl.scoring.significance.bootstrap import PairedInterval, paired_bootstrap
from asrcl.scoring.significance.pairing import aligned

Array = NDArray[np.float64]

TESTS: Final = ("wilcoxon", "mapsswe", "bootstrap", "sign", "mcnemar")
EFFECTS: Final = {
    "wilcoxon": "rank-biserial",
    "mapsswe": "d",
    "bootstrap": "relative %",
    "sign": "share won",
    "mcnemar": "odds",
}


@dataclass(frozen=True, slots=True)
class PairedTest:
    """One test of system a against system b.

    Attributes:
        name: of the test.
        p_value: two-sided; 1 where nothing differs.
        statistic: W (smaller rank sum), items won by a, lone mistakes of a, Z, or the difference of the rates in points.
        effect: effect size, see the module's table; nan where nothing differs.
        used: how many items, segments or speakers carry the test.
        unit: what they are.
        items: how many items the two systems have in common.
    """

    name: str
    p_value: float
    statistic: float
    effect: float
    used: int
    unit: str
    items: int = 0

    @property
    def direction(self) -> str:
        """How a is against b by the effect: "better", "worse", or "equal" where nothing differs."""
        neutral = {"sign": 0.5, "mcnemar": 1.0}.get(self.name, 0.0)
        if math.isnan(self.effect) or self.effect == neutral:
            return "equal"
        return "better" if self.effect > neutral else "worse"


def wilcoxon_test(a: Errors, b: Errors, by: str = "item") -> PairedTest:
    """Wilcoxon signed-rank test; equal pairs are dropped. Effect: (ranks for a − ranks for b) / all ranks (Kerby 2014).

    The test takes items as independent. The seeds of one system share their items: add them with `sum_seeds` first, so that each
    utterance enters once.

    Raises:
        InputError: the two do not hold the same items.
    """
    difference = _differences(a, b, by)
    difference = difference[difference != 0]
    unit = "speakers" if by == "group" else "items"
    if not len(difference):
        return PairedTest("wilcoxon", 1.0, 0.0, math.nan, 0, unit, len(a))
    ranks = stats.rankdata(np.abs(difference))
    effect = -float(np.sum(np.sign(difference) * ranks) / np.sum(ranks))
    statistic, p = wilcoxon_p(difference)
    return PairedTest("wilcoxon", p, statistic, effect, len(difference), unit, len(a))


def wilcoxon_p(difference: Array) -> tuple[float, float]:
    """The smaller rank sum and the p value of differences of which at least one is not zero."""
    test = stats.wilcoxon(difference, zero_method="wilcox", alternative="two-sided", method="auto")
    return float(test.statistic), float(test.pvalue)


def sign_test(a: Errors, b: Errors, by: str = "item") -> PairedTest:
    """Exact sign test; equal pairs are dropped. Effect: share of the differing pairs in which a has fewer errors.

    Raises:
        InputError: the two do not hold the same items.
    """
    difference = _differences(a, b, by)
    won, lost = int(np.sum(difference < 0)), int(np.sum(difference > 0))
    share = won / (won + lost) if won + lost else math.nan
    unit = "speakers" if by == "group" else "items"
    return PairedTest("sign", sign_p(won, lost), float(won), share, won + lost, unit, len(a))


def sign_p(won: int, lost: int) -> float:
    """Two-sided binomial p value of fair coin tosses."""
    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def mcnemar_test(a: Errors, b: Errors) -> PairedTest:
    """Exact McNemar test of "the item has a mistake". Effect: lone mistakes of b to lone mistakes of a, half a one added to each.

    Raises:
        InputError: the two do not hold the same items.
    """
    errors_a, errors_b = _counts(a), _counts(aligned(b, a))
    only_a, only_b = (int(np.sum((x > 0) & (y == 0))) for x, y in ((errors_a, errors_b), (errors_b, errors_a)))
    odds = (only_b + 0.5) / (only_a + 0.5) if only_a + only_b else math.nan
    return PairedTest("mcnemar", sign_p(only_b, only_a), float(only_a), odds, only_a + only_b, "items", len(a))


def mapsswe_test(a: Errors, b: Errors, costs: Costs = "unit") -> PairedTest:
    """Matched pairs sentence-segment word error test. Effect: mean difference per segment / its standard deviation.

    Raises:
        InputError: the two do not hold the same items, or not the same references.
    """
    difference, unit = cut(a, aligned(b, a), costs)
    z, p = mapsswe_p(difference)
    if not len(difference):
        return PairedTest("mapsswe", p, z, math.nan, 0, unit, len(a))
    return PairedTest("mapsswe", p, z, -z / math.sqrt(len(difference)), len(difference), unit, len(a))


def mapsswe_p(difference: NDArray[np.int64]) -> tuple[float, float]:
    """Z, which is positive where a has more errors, and its p value.

    The normal approximation needs some fifty segments. Where all segments differ alike there is no variance to divide by:
    then p is that of the sign test and Z is infinite.
    """
    size = len(difference)
    if size == 0 or not difference.any():
        return 0.0, 1.0
    mean, deviation = float(np.mean(difference)), float(np.std(difference, ddof=1)) if size > 1 else 0.0
    if deviation == 0.0:
        return math.copysign(math.inf, mean), sign_p(size, 0)
    z = mean / deviation * math.sqrt(size)
    return z, float(2 * stats.norm.sf(abs(z)))


def bootstrap_test(a: Errors, b: Errors, n: int = 2000, seed: int = 0) -> tuple[PairedTest, PairedInterval]:
    """Paired bootstrap over speakers, with its interval. Effect: how many percent of b's errors a avoids.

    Raises:
        InputError: the two do not hold the same items.
    """
    interval = paired_bootstrap(a, b, n=n, seed=seed, interval="student")
    base = percent(b.total, b.length)
    effect = -100.0 * interval.estimate / base if base and math.isfinite(base) else math.nan
    test = PairedTest("bootstrap", interval.p_value, interval.estimate, effect, interval.blocks, "speakers", len(a))
    return test, interval


def _differences(a: Errors, b: Errors, by: str) -> Array:
    """Errors of a − errors of b per item, or error rates per speaker in points."""
    other = aligned(b, a)
    if by == "item":
        return _counts(a) - _counts(other)
    if by != "group":
        raise InputError(f"cannot test by {by!r}; choose 'item' or 'group' (speakers)")
    rows: dict[str, list[float]] = {}
    for x, y in zip(a.items, other.items, strict=True):
        sums = rows.setdefault(x.group, [0.0, 0.0, 0.0, 0.0])
        for place, count in enumerate((x.errors, x.length, y.errors, y.length)):
            sums[place] += count
    rates = [percent(row[0], row[1]) - percent(row[2], row[3]) for row in rows.values() if row[1] and row[3]]
    return np.array(rates, dtype=float)


def _counts(errors: Errors) -> Array:
    return np.array([item.errors for item in errors.items], dtype=float)


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p values, in the order given.

    Entries that are nan stay nan and do not count.
    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 1979.

    Raises:
        InputError: a value outside [0, 1].
    """
    if any(not math.isnan(p) and not 0.0 <= p <= 1.0 for p in pvalues):
        raise InputError(f"p values must lie in [0, 1], got {list(pvalues)}")
    order = sorted((p, index) for index, p in enumerate(pvalues) if not math.isnan(p))
    adjusted, running = [math.nan] * len(pvalues), 0.0
    for rank, (p, index) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[index] = running
    return adjusted
