"""How a tensor is treated: each treatment says what it will do, and does it.

    treatment = treatment_of(setup, "encoder.layers.0.weight")
    treatment.plan()                            # ("ihr", "kronecker curvature, rows 0:256")
    treatment.apply(start, models, scale=1.0)   # the merged tensor

`treatment_of` is the only place where the choice is made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from asrcl.merge.buffers import is_statistic, mean_of, pooled
from asrcl.merge.numbers import as_before, checked, copied, not_finite, readable, same_bits
from asrcl.merge.setup import Setup
from asrcl.merge.sources import kind_of
from asrcl.merge.tensors import add_step, all_finite, by_entry, updates


@dataclass(frozen=True)
class Treatment(ABC):
    """What happens to one tensor.

    Attributes:
        setup: the models, the method and the curvature.
        name: of the tensor.
    """

    setup: Setup
    name: str

    @abstractmethod
    def plan(self) -> tuple[str, str]:
        """The rule, short enough to count, and the reason for it."""

    @abstractmethod
    def apply(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """The merged tensor, in type and device of `start` and in memory of its own.

        Args:
            start: of the old model, or of the common ancestor.
            models: of the others, in the shape of `start`.
            scale: multiplies the step.

        Raises:
            InputError: numbers that are not finite, that do not fit into the type of `start`, or a solve that fails.
        """

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(self.setup.start.outlines[self.name].shape)


class Taken(Treatment):
    """The tensor of one model as it is, whatever it holds: the methods `keep` and `new`."""

    def plan(self) -> tuple[str, str]:
        """Return the name of the method."""
        return self.setup.method.name, "by rule"

    def apply(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """The old tensor, or that of the last model."""
        return start.clone() if self.setup.method.takes == "old" or scale == 0 else copied(start, models[-1])


class Copied(Treatment):
    """Counters and masks, of the last model unless nothing of it is to be taken: there is nothing between two counts."""

    def plan(self) -> tuple[str, str]:
        """Return the model that they come from."""
        kind = str(self.setup.start.outlines[self.name].dtype).removeprefix("torch.")
        rule, side = ("new", "new") if self.setup.weight else ("keep", "old")
        return rule, f"{kind} is copied from the {side} model"

    def apply(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """Return a copy."""
        return start.clone() if self.setup.weight * scale == 0 else copied(start, models[-1])


class Computed(Treatment):
    """Everything that calculates with the numbers."""

    def apply(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """The merged tensor; one that all models have alike stays as it is, even where it holds NaN."""
        values = [readable(tensor) for tensor in (start, *models)]
        if all(torch.equal(values[0], value) for value in values[1:]):
            return start.clone(memory_format=torch.contiguous_format)
        for role, tensor in zip(self.setup.roles, values, strict=True):
            if not all_finite(tensor):
                # NaN differs from itself, so that models alike but for NaN come here; masks of infinities did not.
                if all(same_bits(start, model) for model in models):
                    return start.clone(memory_format=torch.contiguous_format)
                raise not_finite(self.name, role)
        return as_before(self.merged(values[0], values[1:], scale), start)

    @abstractmethod
    def merged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """The merged numbers; all that are given are real and finite."""


class Statistic(Computed):
    """Running means and variances of normalisation layers, by the option `statistics`."""

    def plan(self) -> tuple[str, str]:
        """Return the option that decides."""
        return f"{self.setup.options.statistics} statistics", "running statistics are no weights"

    def merged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """Of one model, or of the pooled data: for a variance, the distances of the means count too."""
        rule, setup = self.setup.options.statistics, self.setup
        if rule != "pool":
            return start.clone() if rule == "old" or scale == 0 else models[-1].to(start.dtype, copy=True)
        mean, means = mean_of(self.name), None
        if mean is not None and mean in setup.start.outlines:
            old, *roles = setup.roles
            others = [checked(model, mean, role, start) for model, role in zip(setup.models, roles, strict=True)]
            means = (checked(setup.start, mean, old), others)
        return pooled(start, models, setup.weight * scale, means)


class Average(Computed):
    """What the method cannot treat, by the option `rest`."""

    def plan(self) -> tuple[str, str]:
        """Return the weight, and why the method does not treat the tensor."""
        setup, name = self.setup, self.name
        if setup.diagonals(name):
            return "fisher average", "diagonal curvature"
        if setup.method.matrices and not setup.method.curved:
            why = f"{setup.method.name} is for matrices"
        else:
            why = "left out by layers" if setup.coverage.of(name) else setup.coverage.reason(name)
        return f"average {setup.rest:.4g}", why

    def merged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """Average; with `rest="fisher"`, entries to which the old loss is sensitive move less."""
        merged = self.setup.averaged(start, models, scale)
        for cover in self.setup.diagonals(self.name):
            rows = cover.rows.rows_of(start)
            deltas = updates(rows, [cover.rows.rows_of(model) for model in models])
            diagonal = torch.stack([block.diagonal.to(deltas[0]) for block in self.setup.coverage.read(cover)[0]]).sum(0)
            mean = diagonal.mean()
            weight = mean / (diagonal + mean) if mean > 0 else torch.ones_like(diagonal)
            step = weight.reshape(rows.shape) * torch.stack(deltas).mean(0)
            cover.rows.rows_of(merged).copy_(add_step(rows, step, scale))
        return merged


class Entries(Computed):
    """A method that treats every entry by itself."""

    def plan(self) -> tuple[str, str]:
        """Return the method."""
        return self.setup.method.name, "every entry by itself"

    def merged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """Apply the method to a part of the entries at a time."""
        return by_entry(self.setup.run(self.name), start, models, scale)


class Whole(Computed):
    """A method that needs the whole tensor."""

    def plan(self) -> tuple[str, str]:
        """Return the method."""
        return self.setup.method.name, "as a whole"

    def merged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """Apply the method; one for matrices alone gets `[O, I]`."""
        deltas, flat = updates(start, models), (len(start), -1) if self.setup.method.matrices else start.shape
        step = self.setup.run(self.name)([delta.reshape(flat) for delta in deltas], start.to(deltas[0].dtype).reshape(flat))
        return add_step(start, step.reshape(start.shape), scale)


class Curved(Computed):
    """A method with curvature, on the rows that have it; other rows follow the option `rest`."""

    def plan(self) -> tuple[str, str]:
        """Return the method with the rows that it treats."""
        covers, shape = self.setup.covers(self.name), self.shape
        left = (shape[0] if shape else 1) - sum(cover.rows.row_stop - cover.rows.row_start for cover in covers)
        ranges = ", ".join(f"{c.rows.row_start}:{c.rows.row_stop}" for c in covers)
        count = f" x {len(covers[0].keys)}" if len(covers[0].keys) > 1 else ""
        rule = self.setup.method.name + (f", average {self.setup.rest:.4g} for {left} rows" if left else "")
        return rule, f"{covers[0].kind} curvature{count}, rows {ranges}"

    def merged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """Apply the method block by block."""
        setup, covers = self.setup, self.setup.covers(self.name)
        whole = sum(cover.rows.row_stop - cover.rows.row_start for cover in covers) == max(len(start) if start.dim() else 1, 1)
        merged = torch.empty_like(start, memory_format=torch.contiguous_format) if whole else setup.averaged(start, models, scale)
        for cover in covers:
            old, new = setup.coverage.read(cover)
            rows = cover.rows.rows_of(start)
            deltas = updates(rows, [cover.rows.rows_of(model) for model in models])
            step = setup.run(self.name, blocks=old, new_blocks=new)(deltas, rows.to(deltas[0].dtype))
            target = cover.rows.rows_of(merged)
            target.copy_(add_step(rows, step.reshape(rows.shape).to(deltas[0].dtype), scale).reshape(target.shape))
        return merged


def treatment_of(setup: Setup, name: str) -> Treatment:
    """How a tensor is treated: by its kind of numbers, then by what it is for, then by what the method can treat."""
    method, outline = setup.method, setup.start.outlines[name]
    if method.takes is not None:
        return Taken(setup, name)
    if kind_of(outline.dtype) == "whole":
        return Copied(setup, name)
    if is_statistic(name):
        return Statistic(setup, name)
    if method.curved:
        return Curved(setup, name) if setup.covers(name) else Average(setup, name)
    if method.matrices:
        return Whole(setup, name) if len(outline.shape) >= 2 else Average(setup, name)
    return Entries(setup, name) if method.elementwise else Whole(setup, name)
