"""Made-up runs that look like real ones: error counts per utterance drawn around a plausible matrix R."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from asrcl.scoring.counting.errors import Errors, ItemErrors
from asrcl.scoring.results.run_result import RunResult

DOMAINS = ["us", "england", "australia", "india", "scotland"]
INITIAL = np.array([15.4, 22.7, 23.4, 31.4, 28.5])
LEARNED = np.array([15.4, 11.2, 9.9, 16.9, 11.5])
# Per method: forgetting in points per later stage, and the share of the gap to LEARNED that is closed.
METHODS = {
    "initial": (0.0, 0.0),
    "ft": (1.6, 1.0),
    "fta": (0.3, 0.55),
    "ewc": (0.8, 0.8),
    "ihr": (0.2, 0.8),
    "separate": (0.0, 1.0),
    "joint": (0.0, 0.95),
}


def expected_rates(method: str) -> np.ndarray:
    """The matrix R that a method's counts are drawn around; nan where it is not measured."""
    drift, gain = METHODS[method]
    size = len(DOMAINS)
    rates = np.full((size, size), np.nan)
    learned = INITIAL + gain * (LEARNED - INITIAL)
    for i in range(size):
        for j in range(size if i == 0 else i + 1):
            rates[i, j] = INITIAL[j] if i == 0 else learned[j] + drift * (i - j)
    if method == "initial":
        rates[1:] = np.nan
    if method == "joint":
        rates[:-1], rates[-1] = np.nan, learned
    return rates


def make_items(rate: float, domain: str, generator: np.random.Generator, count: int = 60) -> Errors:
    """About ten words per utterance, six speakers, the better and the worse."""
    items = []
    for index in range(count):
        speaker = index % 6
        chance = min(1.0, rate / 100 * (0.6 + 0.16 * speaker))
        wrong = int(generator.binomial(10, chance))
        items.append(
            ItemErrors(
                f"{domain}{speaker}-{index:03d}", f"{domain}{speaker}", wrong, 0, 0, 10, "", "", wrong, 50
            )
        )
    return Errors(items)


def make_run(
    folder: Path, method: str, seed: int, scenario: str = "accents", keep_items: bool = True
) -> RunResult:
    """Write one run below `folder` and return it as loaded from disk."""

    def draw(i: int, j: int) -> np.random.Generator:
        """All methods share the initial model, so the first row depends on the seed alone."""
        return np.random.default_rng([seed, j] if i == 0 else [seed, j, i, list(METHODS).index(method)])

    rates, size, home = expected_rates(method), len(DOMAINS), folder / scenario / method / str(seed)
    sets = [
        [
            None if np.isnan(rates[i, j]) else make_items(rates[i, j], DOMAINS[j], draw(i, j))
            for j in range(size)
        ]
        for i in range(size)
    ]
    files: list[list[str | None]] = [[None] * size for _ in range(size)]
    for i, row in enumerate(sets):
        for j, errors in enumerate(row):
            if errors is not None and keep_items:
                files[i][j] = f"items/{i}-{j}.jsonl"
                errors.save(home / f"items/{i}-{j}.jsonl")
    run = RunResult(
        scenario=scenario,
        method=method,
        seed=seed,
        unit="word",
        domains=DOMAINS,
        errors=[[None if errors is None else errors.total for errors in row] for row in sets],
        lengths=[600] * size,
        character_errors=[
            [None if errors is None else errors.character_errors for errors in row] for row in sets
        ],
        character_lengths=[3000] * size,
        item_files=files if keep_items else [],
        command=f"recipes/accents/run.sh --method {method} --seed {seed}",
        environment={"python": "3.11.2", "torch": "2.11.0", "cpu": "2 cores", "git": "abc1234"},
    )
    run.save(home / "results.json")
    return RunResult.load(home / "results.json")


@pytest.fixture(scope="session")
def fake_run() -> Callable[..., RunResult]:
    """Writes one run below a folder: (folder, method, seed, scenario="accents", keep_items=True)."""
    return make_run


@pytest.fixture
def item() -> Callable[..., ItemErrors]:
    """One item with substitutions only: (id, speaker, errors, length=10)."""
    return lambda key, speaker, errors, length=10: ItemErrors(key, speaker, errors, 0, 0, length)


@pytest.fixture
def fake_set() -> Callable[..., Errors]:
    """A set of items: (rate in percent, domain, seed, count=60)."""

    def build(rate: float, domain: str = "us", seed: int = 0, count: int = 60) -> Errors:
        return make_items(rate, domain, np.random.default_rng(seed), count)

    return build
