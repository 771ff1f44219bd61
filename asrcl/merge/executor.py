"""Merging one tensor after another, however the models are stored.

    executor = Executor(old, [new], "ihr", {"tau": 1.0}, MergeOptions(), coverage)
    merged, effect = executor.merge("encoder.layers.0.weight")

What every method shares: type and device of the old tensors; counters and masks are copied from the new model, for there is
nothing between two counts (see `asrcl.merge.numbers`, also for complex numbers, 8-bit floats and quantised codes); running
statistics follow `statistics`; tensors, and rows of tensors, that a method cannot treat follow `rest`. What all models have alike
stays as it is, masks of infinities included; a result that its type cannot hold is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from asrcl.curvature import Block, KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.merge.buffers import Statistics, check_statistics, is_statistic, mean_of, pooled
from asrcl.merge.coverage import Cover, Coverage
from asrcl.merge.depth import depths
from asrcl.merge.numbers import as_before, check_codes, check_factors, checked, copied, not_finite, readable, same_bits
from asrcl.merge.plans import PlanRow
from asrcl.merge.registry import MergeMethod, find_method
from asrcl.merge.sources import TensorSource, kind_of
from asrcl.merge.tensors import add_step, all_finite, by_entry, checked_number, distance, share_of_task, updates

Rest = float | Literal["1/t", "keep", "new", "fisher"]
BUILT_IN = ("keep", "new")
"""Rules that are no methods: the old tensor, the new one."""


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


@dataclass(frozen=True)
class Rows:
    """Rows that a method with curvature treats, read when asked for.

    Attributes:
        cover: which rows.
        read: gives the updates of all models, the old blocks and the new ones.
    """

    cover: Cover
    read: Callable[[], tuple[list[Tensor], tuple[Block, ...], tuple[Block, ...]]]


class Executor:
    """One method, its options and the models it is for.

    Args:
        start: the old model, or the common ancestor of all.
        models: the others; of one layout with `start`.
        method: a registered method, "keep" or "new".
        knobs: options of the method.
        options: of all methods.
        coverage: the curvatures.
        names: the tensors that are its business; None for all.

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
    ) -> None:
        self.start, self.models, self.options, self.coverage = start, tuple(models), options, coverage
        self.names = list(start.outlines) if names is None else list(names)
        self.rule = method
        self.method = None if method in BUILT_IN else find_method(method)
        self.knobs = dict(knobs)
        self.task = options.task if options.task is not None else 1 + len(models)
        share_of_task(self.task)
        self.rest = _rest_weight(options.rest, self.task, len(models))
        check_statistics(options.statistics)
        self.depths = depths(start.outlines)
        self._check()

    def _check(self) -> None:
        method = self.method
        if method is None:
            return
        method.check(self.knobs)
        if len(self.models) > 1 and not method.several:
            raise InputError(f"merge method {method.name} takes one new model and no base, not {len(self.models)} updates")
        if method.curved and not self.coverage:
            wanted = "curvature=, of the old domains at the old weights (asrcl curvature)"
            raise InputError(f"merge method {method.name} needs {wanted}")
        if "new_blocks" in method.context and len(self.coverage.new) != len(self.models):
            wanted = f"new_curvature=, one for each of the {len(self.models)} new model(s), estimated on its own domain"
            raise InputError(f"merge method {method.name} needs {wanted}")
        _trial(method, self.knobs, self.task, len(self.models))
        check_codes(self.start, self.models, self.names)
        check_factors(self.start, self.models, self.names)
        if method.curved and self.names and not any(self._covers(name) for name in self.names):
            patterns = list(self.options.layers)
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
        start, *models = (source.read(name).detach() for source in (self.start, *self.models))
        models = [model.to(start.device) for model in models]
        kind = self._kind(name, tuple(start.shape), start.dtype)
        try:
            merged = self._merged(kind, name, start, models, scale)
        except InputError as error:
            raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
        return merged, self._effect(name, start, models, merged) if measure else None

    def plan(self, name: str) -> PlanRow:
        """What will happen to a tensor, and why."""
        outline = self.start.outlines[name]
        shape = tuple(outline.shape)
        rule, why = self._planned(name, shape, outline.dtype)
        return PlanRow(name, rule, shape, why)

    # How a tensor is treated: `_kind` decides, `_merged` does it, `_planned` says it.

    def _kind(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> str:
        if self.method is None:
            return self.rule
        if kind_of(dtype) == "whole":
            return "copied"
        if is_statistic(name):
            return "statistic"
        if self.method.curved:
            return "curved" if self._covers(name) else "rest"
        if self.method.matrices:
            return "whole" if len(shape) >= 2 else "rest"
        return "entries" if self.method.elementwise else "whole"

    def _merged(self, kind: str, name: str, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        if kind == "keep" or (kind == "copied" and self.weight * scale == 0):
            return start.clone()
        if kind in ("copied", "new"):
            return copied(start, models[-1])
        values = [readable(tensor) for tensor in (start, *models)]
        if all(torch.equal(values[0], value) for value in values[1:]):
            return start.clone(memory_format=torch.contiguous_format)
        for role, tensor in zip(("old", *("new" for _ in models)), values, strict=True):
            if not all_finite(tensor):
                if all(same_bits(start, model) for model in models):  # NaN included
                    return start.clone(memory_format=torch.contiguous_format)
                raise not_finite(name, role)
        return as_before(self._computed(kind, name, values[0], values[1:], scale), start)

    def _computed(self, kind: str, name: str, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        if kind == "statistic":
            return self._statistic(name, start, models, scale)
        if kind == "rest":
            fisher = self._diagonals(name)
            return self._fisher(start, models, fisher, scale) if fisher else self._averaged(start, models, scale)
        assert self.method is not None
        if kind == "entries":
            return by_entry(self._run(name), start, models, scale)
        if kind == "curved":
            return self._curved(name, start, models, scale)
        deltas, flat = updates(start, models), (len(start), -1) if self.method.matrices else start.shape
        step = self._run(name)([delta.reshape(flat) for delta in deltas], start.to(deltas[0].dtype).reshape(flat))
        return add_step(start, step.reshape(start.shape), scale)

    def _run(self, name: str, **blocks: Any) -> Callable[[list[Tensor], Tensor], Tensor]:
        """The method as a function of updates and start."""
        assert self.method is not None
        method, context = self.method, self.method.context
        fixed: dict[str, Any] = {"task": self.task, "depth": self.depths.get(name, 0.0), **blocks}
        if "generator" in context:
            fixed["generator"] = _generator(self.knobs.get("seed", method.knobs.get("seed", 0)), name)
        if "shared" in context:
            fixed["shared"] = self._shared
        chosen = {key: value for key, value in fixed.items() if key in context} | self.knobs

        def run(deltas: list[Tensor], start: Tensor) -> Tensor:
            old = {"old": start} if "old" in context else {}
            return method.run(deltas if method.several else deltas[0], **old, **chosen)

        return run

    @cached_property
    def _shared(self) -> Any:
        assert self.method is not None
        return self.method.prepare(self._rows, **self.knobs) if self.method.prepare else None

    def _rows(self) -> Iterator[Rows]:
        """All rows that curvature treats here, in the order of the model."""
        for name in self.names:
            for cover in self._covers(name):
                yield Rows(cover, lambda name=name, cover=cover: self._read(name, cover))  # type: ignore[misc]

    def _read(self, name: str, cover: Cover) -> tuple[list[Tensor], tuple[Block, ...], tuple[Block, ...]]:
        start, *models = (checked(source, name, "old") for source in (self.start, *self.models))
        deltas = updates(cover.rows.rows_of(start), [cover.rows.rows_of(model) for model in models])
        return deltas, *self.coverage.read(cover)

    def _covers(self, name: str) -> list[Cover]:
        if is_statistic(name):
            return []
        found = self.coverage.of(name, self.options.layers)
        return [cover for cover in found if cover.kind != "diagonal"] if self.options.rest == "fisher" else found

    def _curved(self, name: str, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        covers = self._covers(name)
        whole = sum(cover.rows.row_stop - cover.rows.row_start for cover in covers) == max(len(start) if start.dim() else 1, 1)
        merged = torch.empty_like(start, memory_format=torch.contiguous_format) if whole else self._averaged(start, models, scale)
        for cover in covers:
            old, new = self.coverage.read(cover)
            rows = cover.rows.rows_of(start)
            deltas = updates(rows, [cover.rows.rows_of(model) for model in models])
            step = self._run(name, blocks=old, new_blocks=new)(deltas, rows.to(deltas[0].dtype))
            target = cover.rows.rows_of(merged)
            target.copy_(add_step(rows, step.reshape(rows.shape).to(deltas[0].dtype), scale).reshape(target.shape))
        return merged

    def _averaged(self, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        """The rule `rest`."""
        share = self.rest / len(models)

        def step(deltas: list[Tensor], _: Tensor) -> Tensor:
            return share * torch.stack(deltas).sum(0) if len(deltas) > 1 else share * deltas[0]

        return by_entry(step, start, models, scale)

    def _diagonals(self, name: str) -> list[Cover]:
        """What the rule "fisher" goes by."""
        if self.options.rest != "fisher":
            return []
        return [cover for cover in self.coverage.of(name) if cover.kind == "diagonal"]

    def _fisher(self, start: Tensor, models: list[Tensor], covers: list[Cover], scale: float) -> Tensor:
        """The rule `rest="fisher"`: entries that the old domains care about move less."""
        merged = self._averaged(start, models, scale)
        for cover in covers:
            rows = cover.rows.rows_of(start)
            deltas = updates(rows, [cover.rows.rows_of(model) for model in models])
            diagonal = torch.stack([block.diagonal.to(deltas[0]) for block in self.coverage.read(cover)[0]]).sum(0)
            mean = diagonal.mean()
            weight = mean / (diagonal + mean) if mean > 0 else torch.ones_like(diagonal)
            step = weight.reshape(rows.shape) * torch.stack(deltas).mean(0)
            cover.rows.rows_of(merged).copy_(add_step(rows, step, scale))
        return merged

    def _statistic(self, name: str, start: Tensor, models: list[Tensor], scale: float) -> Tensor:
        rule = self.options.statistics
        if rule != "pool":
            return start.clone() if rule == "old" else models[-1].to(start.dtype, copy=True)
        mean = mean_of(name)
        means = None
        if mean is not None and mean in self.start.outlines:
            means = (checked(self.start, mean, "old"), [checked(m, mean, "new", start) for m in self.models])
        return pooled(start, models, self.weight * scale, means)

    @property
    def weight(self) -> float:
        """The share of the new models in statistics: that of the method where it is an average, that of `rest` elsewhere."""
        strength = self.knobs.get("strength", self.method.knobs.get("strength")) if self.method else None
        return float(strength) if isinstance(strength, int | float) else self.rest

    def _effect(self, name: str, start: Tensor, models: list[Tensor], merged: Tensor) -> Effect:
        if kind_of(start.dtype) == "whole":
            return Effect(0.0, 0.0, None)
        start, merged, *models = (readable(tensor) for tensor in (start, merged, *models))
        covered = bool(self.coverage.of(name))
        predicted = self.coverage.predicted(name, updates(start, [merged])[0]) if covered else None
        return Effect(distance(start, merged), distance(start, models[0]), predicted)

    def _planned(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[str, str]:
        kind = self._kind(name, shape, dtype)
        average = f"average {self.rest:.4g}"
        if kind in BUILT_IN:
            return kind, "by rule"
        if kind == "copied":
            side = "new" if self.weight else "old"
            return side if side == "new" else "keep", f"{str(dtype).removeprefix('torch.')} is copied from the {side} model"
        if kind == "statistic":
            return f"{self.options.statistics} statistics", "running statistics are no weights"
        assert self.method is not None
        if kind == "rest" and self._diagonals(name):
            return "fisher average", "diagonal curvature"
        if kind == "rest":
            return average, self._why_rest(name)
        if kind != "curved":
            return self.method.name, "every entry by itself" if kind == "entries" else "as a whole"
        covers = self._covers(name)
        left = (shape[0] if shape else 1) - sum(cover.rows.row_stop - cover.rows.row_start for cover in covers)
        ranges = ", ".join(f"{c.rows.row_start}:{c.rows.row_stop}" for c in covers)
        count = f" x {len(covers[0].keys)}" if len(covers[0].keys) > 1 else ""
        rule = self.method.name + (f", {average} for {left} rows" if left else "")
        return rule, f"{covers[0].kind} curvature{count}, rows {ranges}"

    def _why_rest(self, name: str) -> str:
        assert self.method is not None
        if self.method.matrices and not self.method.curved:
            return f"{self.method.name} is for matrices"
        return "left out by layers" if self.coverage.of(name) else self.coverage.reason(name)


def _rest_weight(rest: Rest, task: int, count: int) -> float:
    """The weight of all new models together."""
    share = min(count * share_of_task(task), 1.0)
    named: dict[Any, float] = {"1/t": share, "fisher": share, "keep": 0.0, "new": 1.0}
    if isinstance(rest, str) and rest not in named:
        raise InputError(f"rest={rest!r} does not exist; it is a number or one of {', '.join(named)}")
    return named[rest] if isinstance(rest, str) else checked_number("rest", rest)


def _generator(seed: int, name: str) -> torch.Generator:
    """Random numbers of one tensor, whatever came before it."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def _trial(method: MergeMethod, knobs: Mapping[str, Any], task: int, models: int) -> None:
    """Run a method on a tiny tensor, so that options out of range are refused before anything is read."""
    delta = torch.ones(2, 2, dtype=torch.float64)
    block = KroneckerBlock.of(torch.eye(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), 1, 1)
    context: dict[str, Any] = {
        "old": delta,
        "task": task,
        "blocks": (block,),
        "new_blocks": (block,) * models,
        "generator": _generator(0, ""),
        "depth": 0.5,
        "shared": method.prepare(lambda: iter(()), **knobs) if method.prepare else None,
    }
    chosen = {name: value for name, value in context.items() if name in method.context}
    method.run([delta] * models if method.several else delta, **chosen, **knobs)
