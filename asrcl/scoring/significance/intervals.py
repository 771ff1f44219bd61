"""Intervals of a report: of AVG, of the mean error rate after every stage, and of differences between methods.

All of them resample speakers jointly over domains and seeds (see `bootstrap`). Since a speaker is
drawn whole, its items are added up first; the intervals are the same, and 60 runs take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy import stats

from asrcl.scoring.counting.errors import Errors, ItemErrors
from asrcl.scoring.results.metrics import order_disparity
from asrcl.scoring.results.run_result import RunResult
from asrcl.scoring.significance.bootstrap import Interval, PairedInterval, bootstrap_ci, paired_bootstrap, resampled_domains
from asrcl.scoring.significance.pairing import pool, sum_seeds

BAND_RESAMPLES: Final = 1000


def by_speaker(errors: Errors) -> Errors:
    """The counts of every group added up: one item per group, named like it, in order of first appearance."""
    sums: dict[str, list[int]] = {}
    for item in errors.items:
        counts = sums.setdefault(item.group, [0, 0, 0, 0])
        for index, value in enumerate((item.substitutions, item.deletions, item.insertions, item.length)):
            counts[index] += value
    items = [
        ItemErrors(name, name, substitutions=wrong, deletions=missing, insertions=extra, length=length)
        for name, (wrong, missing, extra, length) in sums.items()
    ]
    return Errors(items, errors.unit)


def average_interval(seeds: Sequence[Sequence[Errors]], resamples: int = 2000) -> Interval:
    """95 % interval of the mean rate over domains, in percent.

    Args:
        seeds: per seed, one set of counts per domain.
        resamples: of the bootstrap.
    """
    return bootstrap_ci([pool([by_speaker(part) for part in domain]) for domain in zip(*seeds, strict=True)], n=resamples)


def difference_interval(
    ours: Sequence[Sequence[Errors]], theirs: Sequence[Sequence[Errors]], resamples: int = 2000
) -> PairedInterval:
    """95 % interval of AVG(ours) − AVG(theirs) in points, and the chance that ours is lower; arguments as above.

    Raises:
        InputError: the two sides do not hold the same items.
    """
    a, b = ([by_speaker(sum_seeds(domain)) for domain in zip(*side, strict=True)] for side in (ours, theirs))
    return paired_bootstrap(a, b, n=resamples)


def student_interval(values: Sequence[float]) -> Interval:
    """Mean of a few values and its 95 % interval by Student's distribution: mean ± t s / sqrt(K), K − 1 degrees of freedom.

    For the orders of domains, of which there are few: a percentile bootstrap of five values would be too narrow (Hesterberg,
    The American Statistician 69, 2015).

    Args:
        values: K of them; nan is left out.

    Returns:
        `estimate` nan of nothing, the ends nan of a single value.
    """
    known = np.array([value for value in values if np.isfinite(value)])
    mean = float(known.mean()) if known.size else np.nan
    if known.size < 2:
        return Interval(mean, np.nan, np.nan, known.size)
    reach = float(stats.t.ppf(0.975, known.size - 1) * known.std(ddof=1) / np.sqrt(known.size))
    return Interval(mean, mean - reach, mean + reach, known.size)


def disparity_intervals(orders: Sequence[Sequence[Sequence[Errors]]], resamples: int = 2000) -> tuple[Interval, Interval]:
    """95 % intervals of AOPD and MOPD, in points, by resampling speakers (or images) alike in all orders.

    The orders stay as they are: of orders drawn with replacement some come twice, and the range over fewer is smaller. A range
    of resampled rates is wider than that of the rates, since noise is added to them; the ends are moved down by the mean of this
    excess, and not below zero.

    Args:
        orders: per order and seed one set of counts per domain, the domains in the same order everywhere.
        resamples: of the bootstrap.

    Raises:
        InputError: two orders do not hold the same items.
    """
    columns = [zip(*seeds, strict=True) for seeds in orders]
    systems = [[by_speaker(sum_seeds(parts) if len(parts) > 1 else parts[0]) for parts in domains] for domains in columns]
    drawn = resampled_domains(systems, resamples)
    ranges = drawn.max(axis=1) - drawn.min(axis=1)
    own = order_disparity([[part.rate for part in system] for system in systems])
    speakers = len({item.group for part in systems[0] for item in part.items})
    means, largest = ranges.mean(axis=1), ranges.max(axis=1)
    return _centred(float(own.mean()), means, speakers), _centred(float(own.max()), largest, speakers)


def _centred(estimate: float, drawn: np.ndarray[tuple[int], np.dtype[np.float64]], blocks: int) -> Interval:
    """The 2.5 % and 97.5 % quantiles of resamples whose mean was moved to the estimate."""
    if not np.isfinite(drawn).all():
        return Interval(estimate, np.nan, np.nan, blocks)
    low, high = np.quantile(drawn, [0.025, 0.975]) - (drawn.mean() - estimate)
    return Interval(estimate, max(float(low), 0.0), max(float(high), 0.0), blocks)


def stage_intervals(runs: Sequence[RunResult]) -> list[Interval | None]:
    """Of the mean rate over the domains seen so far, after every stage; the runs are the seeds of one method.

    None where counts per item of a seen domain were not kept. Reads the items of all stages.

    Raises:
        InputError: a file of items is missing or contradicts its run.
    """
    found: list[Interval | None] = []
    for stage in range(len(runs[0].domains)):
        seen = range(stage + 1)
        kept = all(run.has_items(run.source_stage(stage, domain), domain) for run in runs for domain in seen)
        found.append(_stage_interval(runs, stage) if kept else None)
    return found


def _stage_interval(runs: Sequence[RunResult], stage: int) -> Interval:
    seen = range(stage + 1)
    seeds = [[by_speaker(run.items(run.source_stage(stage, domain), domain)) for domain in seen] for run in runs]
    return average_interval(seeds, BAND_RESAMPLES)
