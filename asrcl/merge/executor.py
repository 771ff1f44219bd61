"""Merging models tensor by tensor, in whatever container they are stored.

    executor = Executor(old, [new], "ihr", {"tau": 1.0}, MergeOptions(), coverage)
    merged, effect = executor.merge("encoder.layers.0.weight")

What every method shares: type and device of the old tensors; counters and masks are copied from the new model, for there is
nothing between two counts (see `asrcl.merge.numbers`, also for complex numbers, 8-bit floats and quantised codes); running
statistics follow `statistics`; tensors, and rows of tensors, that a method cannot treat follow `rest`. What all models have alike
stays as it is, masks of infinities included; a result that its type cannot hold is refused. `asrcl.merge.treatments` does all
this; the executor checks everything that can be checked before the first tensor, and measures what a merge did.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature import KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.merge.buffers import check_statistics
from asrcl.merge.coverage import Coverage
from asrcl.merge.numbers import check_codes, check_factors, readable
from asrcl.merge.plans import PlanRow
from asrcl.merge.registry import find_method
from asrcl.merge.setup import MergeOptions, Setup, generator, roles_of
from asrcl.merge.sources import TensorSource, kind_of
from asrcl.merge.tensors import distance, updates
from asrcl.merge.treatments import treatment_of


@dataclass(frozen=True)
class Effect:
    """What a merge did to one tensor.

    Attributes:
        step: norm of the change from the old tensor.
        update: norm of the fine-tuning update (of the first new model).
        predicted: predicted increase of the old loss, `½ δᵀFδ`; None without curvature for it.
    """

    step: float
    update: float
    predicted: float | None


class Executor:
    """One method, its options and the models it is for.

    Args:
        start: the old model, or the common ancestor of all.
        models: the others; of one layout with `start`.
        method: a registered method.
        knobs: options of the method.
        options: of all methods.
        coverage: the curvatures.
        names: the tensors that follow the method; None for all.
        roles: what messages call the models, `start` first; by default the old model and the new ones.

    Raises:
        InputError: unknown method or option, an option out of range, curvature or models that the method cannot do without, or
            quantised codes.
    """

    def __init__(
        self,
        start: TensorSource,
        models: Sequence[TensorSource],
        method: str,
        knobs: Mapping[str, Any],
        options: MergeOptions,
        coverage: Coverage,
        names: Sequence[str] | None = None,
        roles: Sequence[str] | None = None,
    ) -> None:
        self.setup = Setup(
            start=start,
            models=tuple(models),
            roles=roles_of(len(models)) if roles is None else tuple(roles),
            method=find_method(method),
            knobs=dict(knobs),
            options=options,
            coverage=coverage,
            names=tuple(start.outlines if names is None else names),
        )
        check_statistics(options.statistics)
        self._check()

    def _check(self) -> None:
        """Refuse what cannot work before the first tensor is read: a merge of large models takes minutes."""
        setup, method, models = self.setup, self.setup.method, self.setup.models
        method.check(setup.knobs)
        _ = setup.rest  # raises where `rest` or `task` is out of range
        if method.takes is not None:
            return
        if len(models) > 1 and not method.several:
            raise InputError(f"merge method {method.name} takes one new model and no base, not {len(models)} updates")
        if len(models) < method.least:
            wanted = f"{method.least} updates: give base=, the model before all domains, or several new models"
            raise InputError(f"merge method {method.name} needs {wanted}")
        if method.curved and not setup.coverage:
            wanted = "curvature=, of the old domains at the old weights (asrcl curvature)"
            raise InputError(f"merge method {method.name} needs {wanted}")
        if "new_blocks" in method.context and len(setup.coverage.new) != len(models):
            wanted = f"new_curvature=, one for each of the {len(models)} new model(s), estimated on its own domain"
            raise InputError(f"merge method {method.name} needs {wanted}")
        _try_out(setup)
        check_codes(setup.start, models, setup.names)
        check_factors(setup.start, models, setup.names)
        if method.curved and setup.names and not any(setup.covers(name) for name in setup.names):
            patterns = list(setup.options.layers)
            raise InputError(f"no tensor fits layers={patterns} and has curvature; nothing would be treated by it")

    def merge(self, name: str, scale: float = 1.0, measure: bool = False) -> tuple[Tensor, Effect | None]:
        """The merged tensor, and what that did where asked to `measure`.

        Args:
            name: of the tensor.
            scale: multiplies the step.
            measure: also compute the norms and the predicted increase.

        Raises:
            InputError: the tensor is not finite, or a solve fails.
        """
        start, *models = (source.read(name).detach() for source in (self.setup.start, *self.setup.models))
        models = [model.to(start.device) for model in models]
        try:
            merged = treatment_of(self.setup, name).apply(start, models, scale)
        except InputError as error:  # what calculates knows no names
            raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
        return merged, self._effect(name, start, models, merged) if measure else None

    def plan(self, name: str) -> PlanRow:
        """Say what will happen to a tensor, and why."""
        treatment = treatment_of(self.setup, name)
        rule, why = treatment.plan()
        return PlanRow(name, rule, treatment.shape, why)

    def _effect(self, name: str, start: Tensor, models: list[Tensor], merged: Tensor) -> Effect:
        if kind_of(start.dtype) == "whole":
            return Effect(0.0, 0.0, None)
        start, merged, *models = (readable(tensor) for tensor in (start, merged, *models))
        coverage = self.setup.coverage
        predicted = coverage.predicted(name, updates(start, [merged])[0]) if coverage.of(name) else None
        return Effect(distance(start, merged), distance(start, models[0]), predicted)


def _try_out(setup: Setup) -> None:
    """Run the method on a tiny tensor, so that options out of range are refused before anything is read."""
    method, models = setup.method, len(setup.models)
    delta = torch.ones(2, 2, dtype=torch.float64)
    block = KroneckerBlock.of(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), 1, 1)
    context: dict[str, Any] = {
        "old": delta,
        "task": setup.task,
        "blocks": (block,),
        "new_blocks": (block,) * models,
        "generator": generator(0, ""),
        "depth": 0.5,
        "shared": method.prepare(lambda: iter(()), **setup.knobs) if method.prepare else None,
    }
    chosen = {name: value for name, value in context.items() if name in method.context}
    method.run([delta] * models if method.several else delta, **chosen, **setup.knobs)
