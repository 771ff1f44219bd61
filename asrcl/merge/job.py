"""A whole merge: which tensor follows which rule, and the scale that keeps it within a budget."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge.coverage import Coverage
from asrcl.merge.executor import Effect, Executor
from asrcl.merge.plans import Plan, PlanRow
from asrcl.merge.setup import MergeOptions
from asrcl.merge.sources import TensorSource
from asrcl.merge.ties import tied_names

Choice = tuple[str, dict[str, Any]]
"""A method and its options."""


class RuleBook(Protocol):
    """Rules by tensor name, as `asrcl.merge.rules.Rules` reads them."""

    def of(self, name: str) -> Any: ...  # noqa: D102  (something with `method` and `knobs`)


class Merged(NamedTuple):
    """One tensor of the result, and what became of it."""

    name: str
    tensor: Tensor
    effect: Effect | None


@dataclass(frozen=True)
class Tie:
    """One parameter with several names.

    Attributes:
        names: of it, in the order of the model.
        rule: method and options that it follows.
    """

    names: tuple[str, ...]
    rule: Choice

    @classmethod
    def of(cls, names: tuple[str, ...], chosen: Mapping[str, Choice], default: Choice) -> Tie:
        """With the rule that any of its names has, or else that of all.

        Raises:
            InputError: two names have different rules.
        """
        own = [name for name in names if chosen[name] != default]
        strange = next((name for name in own if chosen[name] != chosen[own[0]]), None)
        if strange is not None:
            raise InputError(f"{own[0]} and {strange} are one parameter (tied), but have different rules; give both the same")
        return cls(names, chosen[own[0]] if own else default)

    def leader(self, coverage: Coverage, layers: Sequence[str]) -> str:
        """The name that stands for it: one that curvature treats, whatever the order of the model."""
        return min(self.names, key=lambda name: (not coverage.of(name, layers), name))


def _rule(rules: RuleBook, name: str, default: Choice) -> Choice:
    rule = rules.of(name)
    return default if rule is None else (rule.method, dict(rule.knobs))


class MergeJob:
    """All tensors of a merge in the order of the old model; tied parameters stay tied.

    Args:
        start: the old model, or the common ancestor.
        models: the others, of the same layout.
        method: what tensors without a rule of their own follow.
        knobs: its options.
        options: what holds for all methods.
        curvature: of the old domains.
        new_curvature: of the new models.
        rules: methods by tensor name, None for one method everywhere.
        roles: what messages call the models, `start` first; by default the old model and the new ones.

    Raises:
        InputError: see `Executor`; or names of one parameter have different rules.
    """

    def __init__(
        self,
        start: TensorSource,
        models: Sequence[TensorSource],
        method: str,
        knobs: Mapping[str, Any],
        options: MergeOptions,
        curvature: Sequence[Curvature] = (),
        new_curvature: Sequence[Curvature] = (),
        rules: RuleBook | None = None,
        roles: Sequence[str] | None = None,
    ) -> None:
        self.method, self.start = method, start
        self.coverage = Coverage(curvature, new_curvature, start.outlines)
        default = (method, dict(knobs))
        chosen = {name: default if rules is None else _rule(rules, name, default) for name in start.outlines}
        self._ties = [Tie.of(names, chosen, default) for names in tied_names(start, models)]
        chosen |= {name: tie.rule for tie in self._ties for name in tie.names}
        groups: dict[tuple[str, str], list[str]] = {}
        for name, (kind, options_of) in chosen.items():
            groups.setdefault((kind, repr(sorted(options_of.items()))), []).append(name)
        self._executors: dict[str, Executor] = {}
        for names in groups.values():
            executor = Executor(start, models, *chosen[names[0]], options, self.coverage, names, roles)
            self._executors |= dict.fromkeys(names, executor)
        self._leaders = {name: tie.leader(self.coverage, options.layers) for tie in self._ties for name in tie.names}

    def plan(self) -> Plan:
        """Say what will happen to every tensor; nothing is computed."""
        return Plan(self.method, tuple(self.row(name) for name in self.start.outlines))

    def row(self, name: str) -> PlanRow:
        """Say what will happen to one tensor."""
        leader = self._leaders.get(name, name)
        row = self._executors[name].plan(leader)
        return row if leader == name else row._replace(name=name, why=f"tied to {leader}: {row.why}")

    def run(self, scale: float = 1.0, measure: bool = False, progress: Callable[[str], None] | None = None) -> Iterator[Merged]:
        """Merge one tensor after another.

        Args:
            scale: multiplies every step.
            measure: also tell the effects; of parameters with several names that of the first.
            progress: called with the name of every tensor before it is merged.
        """
        waiting: dict[str, tuple[Tensor, Effect | None]] = {}
        left = Counter(self._leaders.values())
        for name in self.start.outlines:
            if progress is not None:
                progress(name)
            leader = self._leaders.get(name, name)
            if leader in waiting:
                yield Merged(name, waiting[leader][0].clone(), None)
            else:
                merged = self._executors[name].merge(leader, scale, measure)
                if left[leader] > 1:
                    waiting[leader] = merged
                yield Merged(name, *merged)
            left[leader] -= 1
            if left[leader] <= 0:
                waiting.pop(leader, None)

    def scale_within(self, budget: float, progress: Callable[[str], None] | None = None) -> tuple[float, float]:
        """The largest scale, at most 1, whose predicted increase of the old loss stays within a budget; and the increase at 1.

        The increase is a square of the step, so one pass over the model tells it for all scales.

        Args:
            budget: in the unit of the old loss, a mean per item; above 0.
            progress: see `run`.

        Raises:
            InputError: the budget is not above 0, or there is no curvature to predict with.
        """
        if not (isinstance(budget, int | float) and math.isfinite(budget) and budget > 0):
            raise InputError(f"budget must be a number above 0, the allowed increase of the old loss, not {budget!r}")
        if not self.coverage:
            raise InputError("a budget needs curvature= of the old domains, which predicts the increase (asrcl curvature)")
        predicted = sum(m.effect.predicted or 0.0 for m in self.run(measure=True, progress=progress) if m.effect)
        return (1.0 if predicted <= budget else math.sqrt(budget / predicted)), predicted
