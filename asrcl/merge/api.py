"""Merging models in memory, and planning it.

    merged = merge("old.safetensors", "new.ckpt", method="ihr", curvature=Curvature.load("curvature.safetensors"))

For models that do not fit into memory see `asrcl.merge.files`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge.buffers import Statistics
from asrcl.merge.containers import Source, load_state
from asrcl.merge.job import MergeJob, RuleBook
from asrcl.merge.layout import check_same_layout
from asrcl.merge.plans import Plan
from asrcl.merge.registry import StateDict, find_method
from asrcl.merge.setup import MergeOptions, Rest, roles_of
from asrcl.merge.sources import StateSource, as_named_in

Curvatures = Curvature | Sequence[Curvature] | None


def merge(
    old: Source,
    new: Source | Sequence[Source],
    method: str = "ihr",
    *,
    curvature: Curvatures = None,
    new_curvature: Curvatures = None,
    base: Source | None = None,
    task: int | None = None,
    rest: Rest | None = None,
    statistics: Statistics = "pool",
    layers: Sequence[str] = ("*",),
    rules: RuleBook | None = None,
    budget: float | None = None,
    **knobs: Any,
) -> StateDict:
    """Merge a fine-tuned model with the model it started from.

    The result has the keys, types and devices of the old model and shares no memory with any input.

    Args:
        old: state dict, module or checkpoint path of the model before the new domain.
        new: the same of the model fine-tuned on the new domain; several, for methods that take them.
        method: "ihr" or any other of `methods()`.
        curvature: of the old domains at `old`, one or several; methods that use none ignore it.
        new_curvature: of the new models on their own domains, for methods that weigh both sides.
        base: the ancestor that `old` and `new` were both fine-tuned from, where it is another model than `old`.
        task: number of domains with the new ones; one more than there are new models by default.
        rest: weight of the new model in tensors and rows that the method cannot treat: a number, "1/t" with t = `task` (default),
            "keep", "new", or "fisher" (see `MergeOptions`).
        statistics: running means and variances of normalisation: "pool" (as of pooled data), "old" or "new".
        layers: glob patterns of the tensors that curvature may treat.
        rules: other methods for some tensors, see `asrcl.merge.rules`.
        budget: how much the old loss may grow, predicted by `curvature`; the step shrinks until it does not grow more.
        **knobs: options of the method, such as `tau` or `strength`.

    Raises:
        InputError: unreadable checkpoints, different keys or shapes, numbers that are not finite, or unknown options.
    """
    options = _options(method, task, rest, statistics, layers)
    job = _job(old, new, method, curvature, new_curvature, base, rules, options, knobs)
    with torch.no_grad():
        scale = 1.0 if budget is None else job.scale_within(budget)[0]
        return {name: tensor for name, tensor, _ in job.run(scale)}


def plan(
    old: Source,
    new: Source | Sequence[Source],
    method: str = "ihr",
    *,
    curvature: Curvatures = None,
    new_curvature: Curvatures = None,
    base: Source | None = None,
    task: int | None = None,
    rest: Rest | None = None,
    statistics: Statistics = "pool",
    layers: Sequence[str] = ("*",),
    rules: RuleBook | None = None,
    **knobs: Any,
) -> Plan:
    """What `merge` with the same arguments will do, tensor by tensor; nothing is computed.

    Raises:
        InputError: as `merge`, for everything that shows before computing.
    """
    options = _options(method, task, rest, statistics, layers)
    return _job(old, new, method, curvature, new_curvature, base, rules, options, knobs).plan()


def _job(
    old: Source,
    new: Source | Sequence[Source],
    method: str,
    curvature: Curvatures,
    new_curvature: Curvatures,
    base: Source | None,
    rules: RuleBook | None,
    options: MergeOptions,
    knobs: Mapping[str, Any],
) -> MergeJob:
    news: list[Any] = list(new) if isinstance(new, list | tuple) else [new]
    if not news:
        raise InputError("there is no new model to merge")
    states = [load_state(old, "old"), *(load_state(one, "new") for one in news)]
    if base is not None:
        states.insert(0, load_state(base, "base"))
        options = replace(options, task=1 + len(news) if options.task is None else options.task)
    start = StateSource(states[0])
    others = [as_named_in(start.outlines, StateSource(state)) for state in states[1:]]
    for other in others:
        check_same_layout(start.outlines, other.outlines)
    roles = roles_of(len(news), base is not None)
    return MergeJob(start, others, method, knobs, options, as_list(curvature), as_list(new_curvature), rules, roles)


def _options(method: str, task: int | None, rest: Rest | None, statistics: Statistics, layers: Sequence[str]) -> MergeOptions:
    if rest is not None and not find_method(method).partial:
        raise InputError(f"merge method {method} treats every tensor, so that rest={rest!r} means nothing to it")
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    return MergeOptions(task, "1/t" if rest is None else rest, statistics, patterns)


def as_list(curvature: Curvatures) -> list[Curvature]:
    """One or several curvatures as a list.

    Raises:
        InputError: something else was given.
    """
    found = [curvature] if isinstance(curvature, Curvature) else list(curvature or ())
    for one in found:
        if not isinstance(one, Curvature):
            raise InputError(f"curvature= takes Curvature objects, not {type(one).__name__}; load files with Curvature.load")
    return found
