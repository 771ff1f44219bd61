"""Is the difference real? Signed-rank test per utterance, Holm's correction, intervals over speakers.

Utterances of one speaker are dependent, so intervals resample speakers as blocks (Liu et al., Statistical
Testing on ASR Performance via Blockwise Bootstrap, arXiv 1912.09508). A speaker drawn brings all of its
utterances along: in every domain it occurs in, and under every seed. Several seeds therefore narrow an
interval only as far as they average out the noise of training, never as if they were new speakers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import Errors, ItemErrors
from asrcl.scoring.significance.pairing import aligned

Array = NDArray[np.float64]

_DRAWS_AT_ONCE: Final = 256
_MOST_KEPT: Final = 4_000_000
"""Weights of resamples that are kept for other sets of the same blocks, 32 MB."""
_TIED: Final = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % bootstrap percentile interval around an estimate, in percent (or points, for a difference).

    Attributes:
        estimate: the value on the data itself.
        low: 2.5 % quantile of the resampled values; nan where no domain has two blocks to choose from.
        high: 97.5 % quantile.
        blocks: speakers (or items) that were resampled.
    """

    estimate: float
    low: float
    high: float
    blocks: int


@dataclass(frozen=True, slots=True)
class PairedInterval(Interval):
    """The interval of a difference a − b (negative: a is better), with the chance that a is better.

    Attributes:
        p_better: share of resamples in which a has the lower rate; ties count half.
        p_value: two-sided, of "the two rates are the same"; below 0.05 where a student interval excludes zero. nan for a
            percentile interval, and where there is none.
    """

    p_better: float
    p_value: float = math.nan


def bootstrap_ci(
    errors: Errors | Sequence[Errors], by: str = "group", n: int = 2000, seed: int = 0
) -> Interval:
    """95 % interval of an error rate, or of the mean rate over several domains (AVG), by resampling speakers.

    Speakers are drawn with replacement among those that occur in the same domains, so that every draw keeps
    the number of speakers of each domain; a speaker of several domains brings all of them along.

    Args:
        errors: one set, or one per domain.
        by: "group" resamples speakers, "item" single items.
        n: resamples.
        seed: of the random generator; the same seed gives the same interval.

    Raises:
        InputError: `by` is neither of the two, or `n` is not positive.
    """
    blocks = _blocks([_as_list(errors)], by)
    drawn = _resample(blocks, n, seed)[:, 0]
    return Interval(float(blocks.rates()[0]), *_limits(drawn, blocks), blocks.count)


def paired_bootstrap(
    a: Errors | Sequence[Errors],
    b: Errors | Sequence[Errors],
    by: str = "group",
    n: int = 2000,
    seed: int = 0,
    interval: str = "percentile",
) -> PairedInterval:
    """95 % interval of rate(a) − rate(b) and the chance that a is better, both under the same draws.

    Arguments as in `bootstrap_ci`; with one set per domain, the difference of the mean rates. A "percentile" interval is too
    narrow for few speakers. A "student" interval is the difference ± t · s, with the 97.5 % quantile t of Student's distribution
    with K − 1 degrees of freedom for K speakers, and s the standard deviation of the resampled differences times
    sqrt(K / (K − 1)), which makes up for resampling K out of K (Hesterberg, What teachers should know about the bootstrap, The
    American Statistician 69, 2015).

    Raises:
        InputError: the two do not hold the same items, or an argument is invalid.
    """
    sets_a, sets_b = _as_list(a), _as_list(b)
    if len(sets_a) != len(sets_b):
        raise InputError(f"{len(sets_a)} domains against {len(sets_b)}; compare systems on the same domains")
    sets_b = [aligned(part_b, part_a) for part_a, part_b in zip(sets_a, sets_b, strict=True)]
    blocks = _blocks([sets_a, sets_b], by)
    rates, drawn = blocks.rates(), _resample(blocks, n, seed)
    with np.errstate(invalid="ignore"):  # rates over empty references are infinite
        difference, estimate = drawn[:, 0] - drawn[:, 1], float(rates[0] - rates[1])
    better = _share_better(difference) if _resampled(blocks) else math.nan
    if interval == "percentile":
        return PairedInterval(estimate, *_limits(difference, blocks), blocks.count, better)
    if interval != "student":
        raise InputError(f"unknown interval {interval!r}; choose 'percentile' or 'student'")
    if not _resampled(blocks):
        return PairedInterval(estimate, math.nan, math.nan, blocks.count, better)
    reach = _student_error(difference, blocks.count) * float(stats.t.ppf(0.975, blocks.count - 1))
    value = bootstrap_p(estimate, difference, blocks.count)
    return PairedInterval(estimate, estimate - reach, estimate + reach, blocks.count, better, value)


def _share_better(difference: Array) -> float:
    """Share of resamples below zero; ties, and two infinite rates, count half."""
    return float(np.mean((difference < -_TIED) + 0.5 * ~(np.abs(difference) > _TIED)))


def bootstrap_p(estimate: float, difference: Array, blocks: int) -> float:
    """Two-sided p value of "no difference": at which level would the student interval end at zero?

    Where every resample differs alike there is no error to divide by, and p is that of a sign test over the blocks.

    Args:
        estimate: the difference on the data itself.
        difference: one per resample, [n].
        blocks: speakers that were resampled, at least 2.
    """
    if not np.isfinite(difference).all():
        return math.nan
    error = _student_error(difference, blocks)
    if error <= _TIED:
        return 1.0 if abs(estimate) <= _TIED else 2.0 ** (1 - blocks)
    return float(2 * stats.t.sf(abs(estimate) / error, blocks - 1))


def _student_error(difference: Array, blocks: int) -> float:
    """Standard error of the difference; nan where a resample has no finite rate."""
    if not np.isfinite(difference).all():
        return math.nan
    return float(np.std(difference)) * math.sqrt(blocks / (blocks - 1))


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Sums per block: errors and lengths [systems, blocks, domains]; the stratum of every block [blocks]."""

    errors: Array
    lengths: Array
    strata: NDArray[np.int64]

    @property
    def count(self) -> int:
        return len(self.strata)

    def rates(self) -> Array:
        """Mean over domains of the error rate in percent, per system."""
        return _mean_rate(self.errors.sum(axis=1), self.lengths.sum(axis=1))


def _blocks(systems: list[list[Errors]], by: str) -> _Blocks:
    if by not in ("group", "item"):
        raise InputError(f"cannot resample by {by!r}; choose 'group' (speakers) or 'item'")
    domains = range(len(systems[0]))
    names: dict[str, int] = {}
    for domain in domains:
        for item in systems[0][domain].items:
            names.setdefault(_block_of(item, domain, by), len(names))
    errors = np.zeros((len(systems), len(names), len(domains)))
    lengths, present = np.zeros_like(errors), np.zeros((len(names), len(domains)), dtype=bool)
    for system, sets in enumerate(systems):
        for domain, part in enumerate(sets):
            # Where the items of system b sit is decided by a's speakers: the pairs are drawn together.
            rows = [names[_block_of(item, domain, by)] for item in systems[0][domain].items]
            np.add.at(errors[system, :, domain], rows, [item.errors for item in part.items])
            np.add.at(lengths[system, :, domain], rows, [item.length for item in part.items])
            present[rows, domain] = True
    strata = np.unique(present, axis=0, return_inverse=True)[1] if names else np.zeros(0)
    return _Blocks(errors, lengths, np.asarray(strata, dtype=np.int64).reshape(-1))


def _block_of(item: ItemErrors, domain: int, by: str) -> str:
    return item.group if by == "group" else f"{domain}:{item.id}"


def _resample(blocks: _Blocks, n: int, seed: int) -> Array:
    """Rates of `n` resamples per system, [n, systems]."""
    if n < 1:
        raise InputError(f"{n} bootstrap resamples; give a positive number (2000 is usual)")
    return np.asarray(np.mean(_resampled_rates(blocks, n, seed), axis=-1))


def _resampled_rates(blocks: _Blocks, n: int, seed: int) -> Array:
    """Rates of `n` resamples per system and domain, [n, systems, domains]; what was drawn is kept for sets of the same blocks."""
    if n * blocks.count > _MOST_KEPT:
        return domain_rates(blocks.errors, blocks.lengths, blocks.strata, n, np.random.default_rng(seed))
    drawn = _drawn(blocks.strata.tobytes(), n, seed)
    return np.concatenate([_weighted_rates(weights, blocks.errors, blocks.lengths) for weights in drawn])


@lru_cache(maxsize=4)
def _drawn(strata: bytes, n: int, seed: int) -> list[Array]:
    """The weights that `domain_rates` draws: to draw them takes longer than to use them, and methods have the same test sets."""
    return list(_draws(np.frombuffer(strata, dtype=np.int64), n, np.random.default_rng(seed)))


def block_rates(
    errors: Array, lengths: Array, strata: NDArray[np.int64], n: int, generator: np.random.Generator
) -> Array:
    """Mean rates over domains of `n` resamples of blocks, in percent, [n, systems].

    Args:
        errors: sums per block, [systems, blocks, domains].
        lengths: likewise.
        strata: blocks are drawn among those of the same number, [blocks].
        n: resamples.
        generator: of random numbers.
    """
    return np.asarray(np.mean(domain_rates(errors, lengths, strata, n, generator), axis=-1))


def domain_rates(
    errors: Array, lengths: Array, strata: NDArray[np.int64], n: int, generator: np.random.Generator
) -> Array:
    """Rates of `n` resamples of blocks on every domain, in percent, [n, systems, domains]; arguments as for `block_rates`."""
    return np.concatenate([_weighted_rates(weights, errors, lengths) for weights in _draws(strata, n, generator)])


def _draws(strata: NDArray[np.int64], n: int, generator: np.random.Generator) -> Iterator[Array]:
    for start in range(0, n, _DRAWS_AT_ONCE):
        yield _draw(strata, min(_DRAWS_AT_ONCE, n - start), generator)


def _weighted_rates(weights: Array, errors: Array, lengths: Array) -> Array:
    return _rate(*(np.einsum("nb,sbd->nsd", weights, part, optimize=True) for part in (errors, lengths)))


def resampled_domains(systems: Sequence[Sequence[Errors]], n: int = 2000, seed: int = 0) -> Array:
    """Rates of several systems on every domain in `n` resamples of speakers, the same for all, [n, systems, domains].

    Args:
        systems: each one set per domain, all with the same items.
        n: resamples.
        seed: of the random generator.

    Returns:
        Percent; nan everywhere where no domain has two speakers to choose from.

    Raises:
        InputError: the systems do not hold the same items.
    """
    first, *others = systems
    same = [list(first), *([aligned(part, to) for part, to in zip(other, first, strict=True)] for other in others)]
    blocks = _blocks(same, "group")
    rates = _resampled_rates(blocks, n, seed)
    return rates if _resampled(blocks) else np.full_like(rates, math.nan)


def _draw(strata: NDArray[np.int64], n: int, generator: np.random.Generator) -> Array:
    """How often each block is drawn, [n, blocks]: with replacement, within its stratum."""
    weights = np.zeros((n, len(strata)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        share = np.full(len(members), 1.0 / len(members))
        weights[:, members] = generator.multinomial(len(members), share, size=n)
    return weights


def _mean_rate(errors: Array, lengths: Array) -> Array:
    """Percent per domain, then the mean over domains (last axis)."""
    return np.asarray(np.mean(_rate(errors, lengths), axis=-1))


def _rate(errors: Array, lengths: Array) -> Array:
    """Percent, with the edge rules of `errors.percent`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = 100.0 * errors / lengths
    return np.asarray(np.where((lengths == 0) & (errors == 0), 0.0, rates))


def _limits(drawn: Array, blocks: _Blocks) -> tuple[float, float]:
    if not _resampled(blocks):
        return math.nan, math.nan
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _resampled(blocks: _Blocks) -> bool:
    """Whether some stratum has two blocks to choose from."""
    return int(np.bincount(blocks.strata, minlength=1).max()) >= 2


def _as_list(errors: Errors | Sequence[Errors]) -> list[Errors]:
    return [errors] if isinstance(errors, Errors) else list(errors)


