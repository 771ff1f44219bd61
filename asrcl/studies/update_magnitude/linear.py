"""The two sweeps of the linear model: samples and distance of task 2 (the map), and the number of task-specific parameters."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from asrcl.studies.update_magnitude.closed_form import MARGIN, QUANTITIES, TwoTasks, expected
from asrcl.studies.update_magnitude.monte_carlo import estimate, learn_first, simulate

logger = logging.getLogger(__name__)

CRITERIA: Final = ("forgetting", "excess")


@dataclass(frozen=True)
class Cell:
    """One setting, simulated.

    Attributes:
        tasks: the setting, with its distances.
        expected: `QUANTITIES` by closed form.
        mean: the same, over draws.
        error: their standard errors.
        advantage: initialised less frozen by criterion, over draws: positive where frozen training is better.
        advantage_error: its standard error; both kinds of training saw the same draws.
    """

    tasks: TwoTasks
    expected: dict[str, float]
    mean: dict[str, float]
    error: dict[str, float]
    advantage: dict[str, float]
    advantage_error: dict[str, float]

    @property
    def distance(self) -> float:
        """The distance d of both parts, or of the task-specific one where that alone moves."""
        return float(self.tasks.distance_specific**0.5)

    def expected_advantage(self, criterion: str) -> float:
        """Initialised less frozen by closed form."""
        return self.expected[f"initialised_{criterion}"] - self.expected[f"frozen_{criterion}"]

    def deviation(self, quantity: str) -> float:
        """How many standard errors the simulation lies above the closed form."""
        return (self.mean[quantity] - self.expected[quantity]) / self.error[quantity]

    def record(self) -> dict[str, Any]:
        """Everything, for `results.json`."""
        return asdict(self)


def distance_map(tasks: TwoTasks, second: Sequence[int], distances: Sequence[float], draws: int, seed: int) -> list[Cell]:
    """All cells of the map for one n1, by samples of task 2, then by distance.

    Task 1 is drawn and learned once and serves all of them; samples of task 2 too near to interpolation are left out.

    Args:
        tasks: sizes; its `second` and distances are not used.
        second: n2 of every column.
        distances: d of every row, of the shared and of the task-specific truths alike.
        draws: of both tasks.
        seed: of all randomness.
    """
    generator = torch.Generator().manual_seed(seed)
    first = learn_first(tasks, draws, generator)
    cells: list[Cell] = []
    for samples in second:
        if min(abs(samples - tasks.specific), abs(samples - tasks.total)) >= MARGIN:
            sized = replace(tasks, second=samples)
            settings = [replace(sized, distance_shared=d**2, distance_specific=d**2) for d in distances]
            cells += _cells(settings, simulate(sized, first, distances, generator))
    logger.info("n1=%d: %d cells of %d draws", tasks.first, len(cells), draws)
    return cells


def specific_sweeps(
    tasks: TwoTasks, specific: Sequence[int], second: Sequence[int], distances: Sequence[float], draws: int, seed: int
) -> list[list[Cell]]:
    """Frozen and initialised training against the number of task-specific parameters, the shared truths being equal.

    Task 1 of every size is drawn and learned once. Sizes too near to interpolation (p2 or p + p2 near n2, p + p2 near n1) are
    left out.

    Returns:
        For every n2 of `second` its cells, by p2, then by distance.
    """
    generator = torch.Generator().manual_seed(seed)
    sweeps: list[list[Cell]] = [[] for _ in second]
    for numbers in specific:
        total = tasks.shared + numbers
        if abs(tasks.first - total) < MARGIN:
            continue
        first = learn_first(replace(tasks, specific=numbers), draws, generator)
        for cells, samples in zip(sweeps, second, strict=True):
            if min(abs(samples - numbers), abs(samples - total)) >= MARGIN:
                sized = replace(tasks, specific=numbers, second=samples)
                settings = [replace(sized, distance_specific=d**2) for d in distances]
                cells += _cells(settings, simulate(sized, first, distances, generator, shared=False))
    logger.info("%d sizes of the task-specific part, %d draws", len(specific), draws)
    return sweeps


def _cells(settings: Sequence[TwoTasks], values: dict[str, Tensor]) -> Iterator[Cell]:
    """A cell for every distance, from values `[B, D]`."""
    measured = {name: estimate(found) for name, found in values.items()}
    gaps = {name: estimate(values[f"initialised_{name}"] - values[f"frozen_{name}"]) for name in CRITERIA}
    for place, tasks in enumerate(settings):
        yield Cell(
            tasks,
            expected(tasks),
            {name: float(measured[name].mean[place]) for name in QUANTITIES},
            {name: float(measured[name].error[place]) for name in QUANTITIES},
            {name: float(gaps[name].mean[place]) for name in CRITERIA},
            {name: float(gaps[name].error[place]) for name in CRITERIA},
        )
