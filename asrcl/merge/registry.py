"""The merge methods by name, each a pure function with a plan.

A method file holds two functions and registers the first with the second:

    def plan_mine(old, new, *, strength=0.5) -> list[PlanRow]: ...

    @merge_method("mine", plan=plan_mine)
    def mine(old, new, *, strength=0.5) -> StateDict: ...

Both get state dicts with the same keys that hold finite real floating tensors only, return something for
every key, and change nothing they are given. Their keyword-only arguments are the method's knobs. A method
that names `task` (how many domains there are with the new one) or `curvature` among them receives these from
`merge`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.plans import PlanRow

StateDict = dict[str, Tensor]
MergeFunction = Callable[..., StateDict]
PlanFunction = Callable[..., list[PlanRow]]
CONTEXT = ("task", "curvature")


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes:
        name: what the user asks for.
        run: the merge itself.
        plan: what `run` will do, tensor by tensor, without computing it.
        knobs: the options with their defaults.
        context: which of `task` and `curvature` it uses.
    """

    name: str
    run: MergeFunction
    plan: PlanFunction
    knobs: dict[str, Any]
    context: tuple[str, ...]

    def arguments(self, knobs: dict[str, Any], **context: Any) -> dict[str, Any]:
        """The keyword arguments of a call, with unknown options refused.

        Raises:
            InputError: lists the options that exist.
        """
        unknown = sorted(set(knobs) - set(self.knobs))
        if unknown:
            known = ", ".join(self.knobs) or "none"
            raise InputError(f"merge method {self.name} has no option {', '.join(unknown)}; it has: {known}")
        return {**knobs, **{name: context[name] for name in self.context}}


_METHODS: dict[str, MergeMethod] = {}


def merge_method(name: str, *, plan: PlanFunction) -> Callable[[MergeFunction], MergeFunction]:
    """Register a merge method; see the head of this file for what it must offer.

    Raises:
        InputError: the name is taken.
    """

    def register(run: MergeFunction) -> MergeFunction:
        if name in _METHODS:
            raise InputError(f"a merge method named {name} is registered already; choose another name")
        options = [p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]
        knobs = {option.name: option.default for option in options if option.name not in CONTEXT}
        context = tuple(option.name for option in options if option.name in CONTEXT)
        _METHODS[name] = MergeMethod(name, run, plan, knobs, context)
        return run

    return register


def methods() -> dict[str, MergeMethod]:
    """All registered methods by name."""
    return dict(_METHODS)


def find_method(name: str) -> MergeMethod:
    """One method by name.

    Raises:
        InputError: lists the methods that exist.
    """
    if name not in _METHODS:
        raise InputError(f"there is no merge method {name!r}; there are: {', '.join(sorted(_METHODS))}")
    return _METHODS[name]
