"""What all tensors that follow one method share: the models, the method with its options, and the curvature."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from asrcl.curvature import Block
from asrcl.exceptions import InputError
from asrcl.merge.buffers import Statistics, is_statistic
from asrcl.merge.coverage import Cover, Coverage
from asrcl.merge.depth import depths
from asrcl.merge.numbers import checked
from asrcl.merge.registry import MergeMethod
from asrcl.merge.sources import TensorSource
from asrcl.merge.tensors import by_entry, checked_number, share_of_task, updates

Rest = float | Literal["1/t", "keep", "new", "fisher"]


@dataclass(frozen=True)
class MergeOptions:
    """What holds for every method.

    Attributes:
        task: number of domains with the new ones; None for the number of models.
        rest: what happens to tensors and rows that the method cannot treat: "1/t" for each, or a number for all together, is the
            weight of the new models, "keep" is 0, "new" is 1; "fisher" weighs entries that have a diagonal curvature f by
            mean(f) / (f + mean(f)), and is "1/t" elsewhere.
        statistics: of normalisation layers: "pool" (see `asrcl.merge.buffers`), "old" or "new".
        layers: glob patterns of the tensors that curvature may treat.
    """

    task: int | None = None
    rest: Rest = "1/t"
    statistics: Statistics = "pool"
    layers: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class Rows:
    """Rows that a method with curvature treats, read when asked for.

    Attributes:
        cover: which rows.
        read: gives the updates of all models, the old blocks and the new ones.
    """

    cover: Cover
    read: Callable[[], tuple[list[Tensor], tuple[Block, ...], tuple[Block, ...]]]


@dataclass(frozen=True)
class Setup:
    """The models of a merge and what one method needs to treat their tensors.

    Attributes:
        start: the old model, or the common ancestor of all.
        models: the others; of one layout with `start`.
        roles: what messages call them, `start` first; see `roles_of`.
        method: how tensors are merged.
        knobs: options of the method.
        options: of all methods.
        coverage: the curvatures.
        names: the tensors that follow the method.
    """

    start: TensorSource
    models: tuple[TensorSource, ...]
    roles: tuple[str, ...]
    method: MergeMethod
    knobs: Mapping[str, Any]
    options: MergeOptions
    coverage: Coverage
    names: tuple[str, ...]

    @cached_property
    def task(self) -> int:
        """Number of domains with the new ones."""
        return self.options.task if self.options.task is not None else 1 + len(self.models)

    @cached_property
    def rest(self) -> float:
        """The weight of all new models together in what the method cannot treat.

        Raises:
            InputError: the option `rest` or `task` is out of range.
        """
        rest, share = self.options.rest, min(len(self.models) * share_of_task(self.task), 1.0)
        named: dict[Any, float] = {"1/t": share, "fisher": share, "keep": 0.0, "new": 1.0}
        if isinstance(rest, str) and rest not in named:
            raise InputError(f"rest={rest!r} does not exist; it is a number or one of {', '.join(named)}")
        return named[rest] if isinstance(rest, str) else checked_number("rest", rest)

    @property
    def weight(self) -> float:
        """The share of the new models in statistics: that of the method where it is an average, that of `rest` elsewhere."""
        strength = self.knobs.get("strength", self.method.knobs.get("strength"))
        return float(strength) if isinstance(strength, int | float) else self.rest

    def run(self, name: str, **blocks: Any) -> Callable[[list[Tensor], Tensor], Tensor]:
        """The method for one tensor, as a function of updates and start."""
        method, context = self.method, self.method.context
        fixed: dict[str, Any] = {"task": self.task, "depth": self._depths.get(name, 0.0), **blocks}
        if "generator" in context:
            fixed["generator"] = generator(self.knobs.get("seed", method.knobs.get("seed", 0)), name)
        if "shared" in context:
            fixed["shared"] = self._shared
        chosen = {key: value for key, value in fixed.items() if key in context} | dict(self.knobs)

        def run(deltas: list[Tensor], start: Tensor) -> Tensor:
            old = {"old": start} if "old" in context else {}
            return method.run(deltas if method.several else deltas[0], **old, **chosen)

        return run

    def averaged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """The plain average by the option `rest`."""
        share = self.rest / len(models)

        def step(deltas: list[Tensor], _: Tensor) -> Tensor:
            return share * torch.stack(deltas).sum(0) if len(deltas) > 1 else share * deltas[0]

        return by_entry(step, start, models, scale)

    def covers(self, name: str) -> list[Cover]:
        """The rows of a tensor that curvature may treat."""
        if is_statistic(name):
            return []
        found = self.coverage.of(name, self.options.layers)
        return [cover for cover in found if cover.kind != "diagonal"] if self.options.rest == "fisher" else found

    def diagonals(self, name: str) -> list[Cover]:
        """The rows of a tensor that `rest="fisher"` weighs by diagonal curvature."""
        if self.options.rest != "fisher":
            return []
        return [cover for cover in self.coverage.of(name) if cover.kind == "diagonal"]

    @cached_property
    def _depths(self) -> dict[str, float]:
        return depths(self.start.outlines)

    @cached_property
    def _shared(self) -> Any:
        """What the method's first pass over all tensors found; made once, when the first tensor is merged."""
        return self.method.prepare(self._rows, **self.knobs) if self.method.prepare else None

    def _rows(self) -> Iterator[Rows]:
        """All rows that curvature treats, in the order of the model."""
        for name in self.names:
            for cover in self.covers(name):
                yield Rows(cover, lambda name=name, cover=cover: self._read(name, cover))  # type: ignore[misc]

    def _read(self, name: str, cover: Cover) -> tuple[list[Tensor], tuple[Block, ...], tuple[Block, ...]]:
        sources = zip((self.start, *self.models), self.roles, strict=True)
        start, *models = (checked(source, name, role) for source, role in sources)
        deltas = updates(cover.rows.rows_of(start), [cover.rows.rows_of(model) for model in models])
        return deltas, *self.coverage.read(cover)


def roles_of(new: int, base: bool = False) -> tuple[str, ...]:
    """What messages call the models of a merge.

    Args:
        new: how many new models there are.
        base: whether the common ancestor comes first.
    """
    news = ["the new model"] if new == 1 else [f"new model {number}" for number in range(1, new + 1)]
    return (*(("the base model",) if base else ()), "the old model", *news)


def generator(seed: int, name: str) -> torch.Generator:
    """Random numbers of one tensor, whatever came before it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
