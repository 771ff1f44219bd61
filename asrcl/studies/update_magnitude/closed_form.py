"""Expected forgetting and excess risk of frozen and initialised training in the linear two-part model.

The model of Ju, Lin, Squillante, Liang and Shroff (arXiv 2306.04901), which He, Bai and Yang (arXiv 2602.20796) take over: task k
has

    y = X u_k + Z q_k + noise,    X `[n, p]` shared and Z `[n, p2]` task-specific features, all independent and standard normal.

Task 1 is learned with n1 samples from zero, task 2 with n2 from the solution of task 1, both by least squares with the smallest
change. *Frozen* training keeps the shared u of task 1 and learns the p2 numbers of q alone; *initialised* training learns all
N = p + p2. With more samples than numbers (n > m + 1) least squares is unbiased, with fewer (n < m - 1) it keeps the part of its
start that lies outside of n random directions:

    n > m + 1    |w - w*|² = m (noise² + b) / (n - m - 1)
    n < m - 1    |w - w'|² = (1 - n/m) |start - w'|² + (n/m) |w* - w'|² + n (noise² + b) / (m - n - 1),   for any w'

where w* is the truth and b the squared error of what is held fixed, which acts as noise of its own. Between the two the
expectation does not exist. The expectations here are over both tasks, a truth w1* of random direction and shifts of random
direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from asrcl.exceptions import InputError

QUANTITIES: Final = ("frozen_forgetting", "initialised_forgetting", "frozen_excess", "initialised_excess")
"""Of both kinds of training: forgetting, how much task 2 adds to task 1's risk; excess, the risk of task 2 above the noise."""
MARGIN: Final = 5
"""Sizes nearer to interpolation than this are refused: the variance over draws grows without bound."""


@dataclass(frozen=True)
class TwoTasks:
    """Sizes of the two tasks and how far apart they are.

    Attributes:
        shared: p, numbers that both tasks share.
        specific: p2, numbers that a task has of its own.
        first: n1, samples of task 1.
        second: n2, samples of task 2.
        noise: standard deviation of the noise.
        distance_shared: D_u, the squared distance of the shared truths.
        distance_specific: D_q, the squared distance of the task-specific truths.
        signal: squared norm of task 1's truth; it matters where task 1 has fewer samples than numbers.
    """

    shared: int = 100
    specific: int = 10
    first: int = 500
    second: int = 60
    noise: float = 0.3
    distance_shared: float = 0.0
    distance_specific: float = 0.0
    signal: float = 1.0

    def __post_init__(self) -> None:
        if min(self.shared, self.specific, self.first, self.second) < 1 or min(self.noise, self.signal) < 0:
            raise InputError(f"linear model {self}: sizes must be at least 1, noise and signal not negative")
        for name, samples, numbers in (
            ("first", self.first, self.total), ("second", self.second, self.total), ("second", self.second, self.specific)
        ):  # fmt: skip
            if abs(samples - numbers) < MARGIN:
                raise InputError(
                    f"linear model: {name}={samples} samples for {numbers} numbers; keep at least {MARGIN} apart, "
                    "for at interpolation no expectation exists"
                )

    @property
    def total(self) -> int:
        """N."""
        return self.shared + self.specific


def first_errors(tasks: TwoTasks) -> tuple[float, float]:
    """Expected squared errors of task 1's solution, (shared e_u, task-specific e_q): the truth has no preferred direction."""
    whole = _error(tasks.first, tasks.total, tasks.noise**2, start=tasks.signal, truth=0.0)
    return whole * tasks.shared / tasks.total, whole * tasks.specific / tasks.total


def expected(tasks: TwoTasks) -> dict[str, float]:
    """`QUANTITIES` in expectation (the setting of theorem IV.4 of arXiv 2602.20796)."""
    shared, specific = first_errors(tasks)
    apart_u, apart_q, noise = tasks.distance_shared, tasks.distance_specific, tasks.noise**2
    held = apart_u + shared  # b: task 2 sees the error of the frozen part as noise
    few, all_of_it = tasks.specific, tasks.total
    frozen_old = _error(tasks.second, few, noise + held, start=specific, truth=apart_q)
    frozen_new = _error(tasks.second, few, noise + held, start=specific + apart_q, truth=0.0)
    moved_old = _error(tasks.second, all_of_it, noise, start=shared + specific, truth=apart_u + apart_q)
    moved_new = _error(tasks.second, all_of_it, noise, start=shared + specific + apart_u + apart_q, truth=0.0)
    return {
        "frozen_forgetting": frozen_old - specific,
        "initialised_forgetting": moved_old - shared - specific,
        "frozen_excess": frozen_new + held,
        "initialised_excess": moved_new,
    }


def _error(samples: int, numbers: int, noise: float, *, start: float, truth: float) -> float:
    """Expected squared distance of the smallest-change solution from a point.

    Args:
        samples: n.
        numbers: m, how many are learned.
        noise: its variance.
        start: squared distance of the start from that point.
        truth: squared distance of the truth from it.
    """
    if samples > numbers:
        return truth + numbers * noise / (samples - numbers - 1)
    kept = 1 - samples / numbers
    return kept * start + (1 - kept) * truth + samples * noise / (numbers - samples - 1)


@dataclass(frozen=True)
class Frontier:
    """Where frozen training is better than initialised: the difference of the two is `offset + slope * d²`, d² = D_u = D_q.

    Attributes:
        offset: frozen less initialised for equal tasks; negative where frozen training is better at distance 0.
        slope: what the difference gains with the squared distance.
    """

    offset: float
    slope: float

    @property
    def kind(self) -> str:
        """"below" or "above" a distance, "always" or "never": where frozen training is better."""
        if self.offset < 0:
            return "below" if self.slope > 0 else "always"
        return "above" if self.slope < 0 else "never"

    @property
    def distance(self) -> float:
        """The critical distance d; nan where the two do not cross."""
        return math.sqrt(-self.offset / self.slope) if self.kind in ("below", "above") else math.nan


def frontier(tasks: TwoTasks, quantity: str) -> Frontier:
    """The frontier for "forgetting" or "excess" with both distances equal; exact, since all quantities are affine in d²."""

    def difference(squared: float) -> float:
        found = expected(replace(tasks, distance_shared=squared, distance_specific=squared))
        return found[f"frozen_{quantity}"] - found[f"initialised_{quantity}"]

    return Frontier(difference(0.0), difference(1.0) - difference(0.0))
