"""Intervals of a report: of AVG, of the mean error rate after every stage, and of differences between methods.

All of them resample speakers jointly over domains and seeds (see `bootstrap`). Since a speaker is
drawn whole, its items are added up first; the intervals are the same, and 60 runs take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from asrcl.scoring.counting.errors import Errors, ItemErrors
from asrcl.scoring.results.run_result import RunResult
from asrcl.scoring.significance.bootstrap import Interval, PairedInterval, bootstrap_ci, paired_bootstrap
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
