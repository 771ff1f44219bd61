"""Simulated pairs of systems: how often does each test reject where nothing differs, and where something does?

The world: speakers differ in how hard they are, and so do their utterances. Every word is wrong with the utterance's chance,
every gap holds an insertion with a fifth of it. Both systems meet the same chances and err independently given these. System b's
chances are scaled by `1 + gain`, so a is better where gain > 0. With `taste`, one system suits this speaker, the other that one:
the ratio of the two systems' chances for a speaker has a logarithm of mean zero and this standard deviation.

    gain = 0, taste = 0    no difference, for any speaker
    gain = 0, taste > 0    no difference over all speakers, but differences within each: utterances are not independent evidence
    gain > 0               a difference; the share of rejections is the power

The two systems share the taste: one's chances are divided by the root of the ratio, the other's multiplied. With `lopsided`
all of it falls on b, as a factor of mean one: rates are the same, but the differences over speakers have a long tail.

Rejections are counted by the functions that `asrcl compare` runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from asrcl.scoring.counting.segments import Counts, segment_differences
from asrcl.scoring.significance.bootstrap import block_rates, bootstrap_p
from asrcl.scoring.significance.paired_tests import TESTS, mapsswe_p, sign_p, wilcoxon_p

Array = NDArray[np.float64]

LEVEL: Final = 0.05
_INSERTIONS: Final = 0.2


@dataclass(frozen=True, slots=True)
class World:
    """What is simulated.

    Attributes:
        speakers: how many.
        utterances: per speaker.
        words: per utterance.
        rate: mean chance of a wrong word.
        spread: standard deviation of the logarithm of what a speaker, and again an utterance, multiplies it by.
        gain: how much larger the chances of system b are; 0.1 is 10 % relative.
        taste: standard deviation, over speakers, of the logarithm of the ratio of the two systems' chances.
        lopsided: let only system b vary over speakers.
    """

    speakers: int = 40
    utterances: int = 5
    words: int = 10
    rate: float = 0.12
    spread: float = 0.5
    gain: float = 0.0
    taste: float = 0.0
    lopsided: bool = False


def rejections(
    world: World, simulations: int, seed: int = 0, draws: int = 1000, tests: Sequence[str] = TESTS
) -> dict[str, float]:
    """Share of simulations in which each test rejects at `LEVEL`.

    Args:
        world: what is simulated.
        simulations: how many pairs of systems.
        seed: of the random generator.
        draws: resamples of the bootstrap.
        tests: which of `paired.TESTS`.
    """
    generator = np.random.default_rng(seed)
    counts = dict.fromkeys(tests, 0)
    for _ in range(simulations):
        values = p_values(world, generator, draws, tests)
        for name, value in values.items():
            counts[name] += value < LEVEL
    return {name: count / simulations for name, count in counts.items()}


def power(world: World, gains: Sequence[float], simulations: int, seed: int = 0, draws: int = 1000) -> dict[str, list[float]]:
    """Per test the share of rejections at each gain."""
    rows = [rejections(replace(world, gain=gain), simulations, seed + place, draws) for place, gain in enumerate(gains)]
    return {name: [row[name] for row in rows] for name in TESTS}


def p_values(world: World, generator: np.random.Generator, draws: int, tests: Sequence[str] = TESTS) -> dict[str, float]:
    """One simulated pair of systems, and the p value of every test."""
    slots_a, slots_b, speaker = simulate(world, generator)
    errors_a, errors_b = slots_a.sum(axis=1), slots_b.sum(axis=1)
    difference = (errors_a - errors_b).astype(float)
    values: dict[str, float] = {}
    for name in tests:
        if name == "wilcoxon":
            values[name] = wilcoxon_p(difference[difference != 0])[1] if difference.any() else 1.0
        elif name == "sign":
            values[name] = sign_p(int(np.sum(difference < 0)), int(np.sum(difference > 0)))
        elif name == "mcnemar":
            right_a, right_b = errors_a == 0, errors_b == 0
            values[name] = sign_p(int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a)))
        elif name == "mapsswe":
            values[name] = mapsswe_p(_segments(slots_a, slots_b))[1]
        else:
            values[name] = _bootstrap(errors_a, errors_b, speaker, world.words, draws, generator)
    return values


def simulate(world: World, generator: np.random.Generator) -> tuple[Counts, Counts, Counts]:
    """Errors per slot of systems a and b, [utterances, 2 · words + 1] each, and the speaker of every utterance."""
    speaker = np.repeat(np.arange(world.speakers), world.utterances)
    hard = _factor(generator, world.spread, world.speakers)[speaker] * _factor(generator, world.spread, len(speaker))
    chance = world.rate * hard
    likes_a, likes_b = (part[speaker] for part in _tastes(world, generator))
    rates = chance * likes_a, chance * likes_b * (1 + world.gain)
    slots_a, slots_b = (_err(generator, rate, world.words) for rate in rates)
    return slots_a, slots_b, speaker


def _tastes(world: World, generator: np.random.Generator) -> tuple[Array, Array]:
    """What every speaker multiplies the chances of a and of b by."""
    if world.lopsided:
        return np.ones(world.speakers), _factor(generator, world.taste, world.speakers)
    half = np.exp(0.5 * world.taste * generator.standard_normal(world.speakers))
    return 1 / half, half


def _factor(generator: np.random.Generator, deviation: float, size: int) -> Array:
    """Log-normal factors of mean one."""
    return np.exp(deviation * generator.standard_normal(size) - deviation**2 / 2)


def _err(generator: np.random.Generator, chance: Array, words: int) -> Counts:
    slots = np.arange(2 * words + 1)
    share = np.where(slots % 2 == 1, 1.0, _INSERTIONS)
    return (generator.random((len(chance), len(slots))) < np.minimum(chance, 0.95)[:, None] * share).astype(np.int64)


def _segments(slots_a: Counts, slots_b: Counts) -> Counts:
    utterances, slots = slots_a.shape
    is_word = np.tile(np.arange(slots) % 2, utterances)
    return segment_differences(slots_a.ravel(), slots_b.ravel(), is_word, np.repeat(np.arange(utterances), slots))


def _bootstrap(
    errors_a: Counts, errors_b: Counts, speaker: Counts, words: int, draws: int, generator: np.random.Generator
) -> float:
    """The speaker bootstrap on sums per speaker."""
    size = int(speaker[-1]) + 1
    sums = np.stack([np.bincount(speaker, errors, size) for errors in (errors_a, errors_b)])[:, :, None].astype(float)
    lengths = np.broadcast_to(words * np.bincount(speaker)[None, :, None], sums.shape).astype(float)
    drawn = block_rates(sums, lengths, np.zeros(size, dtype=np.int64), draws, generator)
    estimate = 100.0 * float(errors_a.sum() - errors_b.sum()) / float(lengths[0].sum())
    return bootstrap_p(estimate, drawn[:, 0] - drawn[:, 1], size)
