"""A whole merge: which tensor follows which rule, and the scale that keeps it within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge.coverage import Coverage
from asrcl.merge.executor import Effect, Executor, MergeOptions
from asrcl.merge.plans import Plan, PlanRow
from asrcl.merge.sources import TensorSource


class RuleBook(Protocol):
    """Rules by tensor name, as `asrcl.merge.rules.Rules` reads them."""

    def of(self, name: str) -> Any: ...  # noqa: D102  (something with `method` and `knobs`)


class Merged(NamedTuple):
    """One tensor of the result, and what became of it."""

    name: str
    tensor: Tensor
    effect: Effect | None


class MergeJob:
    """All tensors of a merge in the order of the old model.

    Args:
        start: the old model, or the common ancestor.
        models: the others, of the same layout.
        method: what tensors without a rule of their own follow.
        knobs: its options.
        options: what holds for all methods.
        curvature: of the old domains.
        new_curvature: of the new models.
        rules: methods by tensor name, None for one method everywhere.

    Raises:
        InputError: see `Executor`.
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
    ) -> None:
        self.method, self.start = method, start
        self.coverage = Coverage(curvature, new_curvature, start.outlines)
        groups: dict[tuple[str, str], tuple[dict[str, Any], list[str]]] = {}
        for name in start.outlines:
            rule = rules.of(name) if rules is not None else None
            chosen = (rule.method, dict(rule.knobs)) if rule is not None else (method, dict(knobs))
            groups.setdefault((chosen[0], repr(sorted(chosen[1].items()))), (chosen[1], []))[1].append(name)
        self._executors: dict[str, Executor] = {}
        for (chosen_method, _), (chosen_knobs, names) in groups.items():
            executor = Executor(start, models, chosen_method, chosen_knobs, options, self.coverage, names)
            self._executors |= dict.fromkeys(names, executor)

    def plan(self) -> Plan:
        """What will happen to every tensor; nothing is computed."""
        return Plan(self.method, tuple(executor.plan(name) for name, executor in self._executors.items()))

    def row(self, name: str) -> PlanRow:
        """What will happen to one tensor."""
        return self._executors[name].plan(name)

    def run(self, scale: float = 1.0, measure: bool = False, progress: Callable[[str], None] | None = None) -> Iterator[Merged]:
        """Merge one tensor after another.

        Args:
            scale: multiplies every step.
            measure: also tell the effects.
            progress: called with the name of every tensor before it is merged.
        """
        for name, executor in self._executors.items():
            if progress is not None:
                progress(name)
            yield Merged(name, *executor.merge(name, scale, measure))

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
