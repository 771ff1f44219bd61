"""Keep what is named: how far the error rate of a domain may rise, and the largest strength of a change that stays within that.

    budgets = read_budgets("probe:+0.5 general:+5%")
    trade = search(budgets, {"probe": 15.3, "general": 3.8}, measure)     # measure(strength) -> {"probe": Reading(15.9), ...}
    trade.strength

The change of a model, by training or by a merge, is taken along a path: strength 0 is the old model, 1 the change as a whole.
Error rates need not rise steadily along it, and no search of few evaluations can know what lies between those that it made: the
strength that is found was measured and is within every budget; that there is no larger one is true where rates rise steadily.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.visible import visible

MOST: Final = 8
"""Evaluations of a search, those of strength 0 and 1 included."""
ROUNDING: Final = 1e-9
"""Points by which a rise may exceed its budget: rates are quotients of counts, and their differences are rounded."""
_BUDGET: Final = re.compile(r"(?P<domain>[^\s,:][^:]*?):(?P<amount>[+-]?(?:\d+\.?\d*|\.\d+))(?P<relative>%?)(?:[\s,]+|$)")


@dataclass(frozen=True)
class Budget:
    """How far the error rate of a domain may rise above its baseline.

    Attributes:
        domain: its name.
        amount: points, or per cent of the baseline; a negative one asks for an improvement.
        relative: whether it is per cent of the baseline.
    """

    domain: str
    amount: float
    relative: bool = False

    def __str__(self) -> str:
        return f"{self.domain}:{self.text}"

    @property
    def text(self) -> str:
        """The amount as it is typed, e.g. "+0.5" or "+5%"."""
        return f"{self.amount:+g}{'%' if self.relative else ''}"

    def rise(self, baseline: float) -> float:
        """The points by which a baseline in percent may rise."""
        return baseline * self.amount / 100 if self.relative else self.amount


def read_budgets(text: Any, option: str = "keep") -> tuple[Budget, ...]:
    """The budgets in a text such as "probe:+0.5 general:+5%": a domain each, with points or with per cent of its error rate.

    Args:
        text: budgets between spaces or commas; the name of a domain may have spaces in it.
        option: what messages call it.

    Raises:
        InputError: there is no budget, one is of another form, or a domain has two.
    """
    found: list[Budget] = []
    left = str(text).strip() if isinstance(text, str) else ""
    while match := _BUDGET.match(left):
        found.append(Budget(match["domain"], float(match["amount"]), bool(match["relative"])))
        left = left[match.end() :]
    if left or not found:
        wanted = "DOMAIN:+POINTS or DOMAIN:+PER_CENT%, e.g. 'probe:+0.5 general:+5%'"
        raise InputError(f"{option}: {visible(str(left or text))} is no budget; write {wanted}")
    names = [budget.domain for budget in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{option}: {visible(twice[0])} has two budgets; give it one")
    return tuple(found)


@dataclass(frozen=True)
class Reading:
    """What was measured of one domain at one strength.

    Attributes:
        rate: error rate in percent.
        low, high: ends of the 95 % interval of its rise above the baseline, in points; None where there is none.
    """

    rate: float
    low: float | None = None
    high: float | None = None


Readings = Mapping[str, Reading]


@dataclass(frozen=True)
class Trade:
    """What a search found, and everything that it measured.

    Attributes:
        strength: the largest one tried that is within every budget; 0 where none is.
        budgets: what was to be kept.
        baselines: error rate of every domain that the budgets count from, in percent.
        confident: whether the upper end of the interval of a rise must be within the budget, in place of the rise itself.
        tried: strengths in the order in which they were tried, each with what was measured.
    """

    strength: float
    budgets: tuple[Budget, ...]
    baselines: Mapping[str, float]
    confident: bool
    tried: Mapping[float, Readings]

    def as_json(self) -> dict[str, Any]:
        """JSON values: `strength`, `criterion`, `domains` (budget, baseline and limit), `tried`; docs/keep.md has the keys."""
        domains = {
            budget.domain: {
                "budget": budget.text,
                "baseline": self.baselines[budget.domain],
                "limit": self.baselines[budget.domain] + budget.rise(self.baselines[budget.domain]),
            }
            for budget in self.budgets
        }
        tried = [
            {
                "strength": strength,
                "within": not exceeded(self.budgets, self.baselines, readings, self.confident),
                "domains": {name: self._reading(name, readings[name]) for name in domains},
            }
            for strength, readings in self.tried.items()
        ]
        criterion = "interval" if self.confident else "rate"
        return {"strength": self.strength, "criterion": criterion, "domains": domains, "tried": tried}

    def _reading(self, name: str, reading: Reading) -> dict[str, float]:
        values = {"rate": reading.rate, "rise": reading.rate - self.baselines[name], "low": reading.low, "high": reading.high}
        return {key: value for key, value in values.items() if value is not None}


def exceeded(
    budgets: Sequence[Budget], baselines: Mapping[str, float], readings: Readings, confident: bool = False
) -> list[Budget]:
    """The budgets that are exceeded.

    Args:
        budgets: of the domains.
        baselines: their error rates that the budgets count from, in percent.
        readings: what was measured of them.
        confident: take the upper end of the interval of a rise, where there is one, in place of the rise itself.
    """
    found = []
    for budget in budgets:
        baseline, reading = baselines[budget.domain], readings[budget.domain]
        rise = reading.high if confident and reading.high is not None else reading.rate - baseline
        if not rise <= budget.rise(baseline) + ROUNDING:  # a rate that is no number is within no budget
            found.append(budget)
    return found


def search(
    budgets: Sequence[Budget],
    baselines: Mapping[str, float],
    measure: Callable[[float], Readings],
    confident: bool = False,
    known: Mapping[float, Readings] | None = None,
) -> Trade:
    """The largest strength within every budget, by bisection, and all that was measured on the way.

    Args:
        budgets: what is to be kept.
        baselines: error rates of these domains that the budgets count from, in percent.
        measure: gives the readings of all of them at a strength; called once for each, `MOST` times at most.
        confident: see `exceeded`.
        known: strengths that were measured already.
    """
    tried: dict[float, Readings] = dict(known or {})

    def fits(strength: float) -> bool:
        if strength not in tried:
            tried[strength] = measure(strength)
        return not exceeded(budgets, baselines, tried[strength], confident)

    return Trade(largest(fits), tuple(budgets), dict(baselines), confident, tried)


def largest(fits: Callable[[float], bool], most: int = MOST) -> float:
    """The largest strength that fits, between 0 and 1, by bisection; where few fit, it may not be found (see the module).

    Args:
        fits: asked of 1 first, then of 0, then of the middle of the interval that is left.
        most: how often it is asked.

    Returns:
        1 where that fits, 0 where no other strength tried does.
    """
    if fits(1.0):
        return 1.0
    low, high = 0.0, 1.0
    if fits(low):
        for _ in range(most - 2):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def check_baselines(baselines: Mapping[str, float], where: str) -> None:
    """Refuse baselines that no budget can count from.

    Raises:
        InputError: an error rate that is not a finite number, as of a set without references; names the domain.
    """
    for name, rate in baselines.items():
        if not math.isfinite(rate):
            why = f"the error rate of {name} is {rate}, which no budget can count from"
            raise InputError(f"{where}: {why}; look at its references")
