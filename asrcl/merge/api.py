"""Merging models in memory, and planning it.

    merged = merge("old.safetensors", "new.ckpt", method="ihr", curvature=Curvature.load("curvature.safetensors"))
    merged = merge(old, new, MergeSpec("ihr", {"tau": 1.4}, curvature=["curvature.safetensors"]))

For models that do not fit into memory see `asrcl.merge.files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch

from asrcl.exceptions import InputError
from asrcl.merge.containers import Source, load_state
from asrcl.merge.job import MergeJob
from asrcl.merge.layout import check_same_layout
from asrcl.merge.plans import Plan
from asrcl.merge.setup import roles_of
from asrcl.merge.sources import StateSource, as_named_in
from asrcl.merge.spec import MergeSpec
from asrcl.state import StateDict

OF_FILES = ("vocabulary", "tokens", "trailing", "tensors")
"""What only `merge_files` can do."""


def merge(old: Source, new: Source | Sequence[Source], method: str | MergeSpec = "ihr", **options: Any) -> StateDict:
    """Merge a fine-tuned model with the model it started from.

    The result has the keys, types and devices of the old model and shares no memory with any input.

    Args:
        old: state dict, module or checkpoint path of the model before the new domain.
        new: the same of the model fine-tuned on the new domain; several, for methods that take them.
        method: the name of a merge method, or everything that is asked for in a `MergeSpec`.
        **options: attributes of `MergeSpec` by name, such as `curvature`, `task`, `rest` or `budget`; every other name is an
            option of the method, such as `tau` or `strength`. One or several `Curvature` objects or files may be given.

    Raises:
        InputError: unreadable checkpoints, different keys or shapes, numbers that are not finite, or unknown options.
    """
    spec = _spec(method, options)
    job = _job(old, new, spec)
    with torch.no_grad():
        scale = 1.0 if spec.budget is None else job.scale_within(spec.budget)[0]
        return {name: tensor for name, tensor, _ in job.run(scale)}


def plan(old: Source, new: Source | Sequence[Source], method: str | MergeSpec = "ihr", **options: Any) -> Plan:
    """What `merge` with the same arguments will do, tensor by tensor; nothing is computed.

    Raises:
        InputError: as `merge`, for everything that shows before computing.
    """
    return _job(old, new, _spec(method, options)).plan()


def _spec(method: str | MergeSpec, options: dict[str, Any]) -> MergeSpec:
    spec = (method if isinstance(method, MergeSpec) else MergeSpec(method)).changed(options)
    for option in fields(spec):
        if option.name in OF_FILES and getattr(spec, option.name) != option.default:
            raise InputError(f"{option.name}= is for models in files; use merge_files, or leave it out")
    return spec


def _job(old: Source, new: Source | Sequence[Source], spec: MergeSpec) -> MergeJob:
    news: list[Any] = list(new) if isinstance(new, list | tuple) else [new]
    if not news:
        raise InputError("there is no new model to merge")
    options = spec.options(len(news))
    states = [load_state(old, "old"), *(load_state(one, "new") for one in news)]
    if spec.base is not None:
        states.insert(0, load_state(spec.base, "base"))
    start = StateSource(states[0])
    others = [as_named_in(start.outlines, StateSource(state)) for state in states[1:]]
    for other in others:
        check_same_layout(start.outlines, other.outlines)
    roles = roles_of(len(news), spec.base is not None)
    return MergeJob(start, others, spec.method, spec.knobs, options, *spec.curvatures(), spec.rules, roles)
