"""The merge methods by name, each one pure function on one tensor.

    @merge_method("mine", source="who, where")
    def mine(delta: Tensor, *, strength: float = 0.5) -> Tensor:
        return strength * delta

A method gets the update of one tensor, `new − start`, and returns the step to take: merged = start + step. So a step of zero
keeps every bit of the start, which is the old model (or `base`, the common ancestor of all, where one is given; the old model's
update then comes first).

What a function gets depends on the names in its signature.
    delta               the update, first argument; exactly one new model
    deltas              first argument instead: a sequence of updates, one per model
  and after the star, as far as it names them:
    old                 the start itself
    task                number of domains with the new one
    blocks              curvature of the old loss for exactly these rows, one block per curvature given
    new_blocks          the same of the new models' losses
    generator           a random generator of this tensor's own, from the option `seed`, which the method must have
    depth               place of the layer in the model, 0 for the first, 1 for the last
    shared              what the method's `prepare` found in a first pass over all tensors
Everything else after the star is an option of the user. Numbers come in single or double precision, on the device of the old
model; shape, type and device are to be kept, inputs to be left alone.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from asrcl.exceptions import InputError

MergeFunction = Callable[..., Tensor]
CONTEXT = ("old", "task", "blocks", "new_blocks", "generator", "depth", "shared")


@dataclass(frozen=True)
class MergeMethod:
    """A registered method.

    Attributes:
        name: what the user asks for.
        run: the function.
        source: authors, year, where; with the equation.
        knobs: the options with their defaults.
        context: which of `CONTEXT` it wants.
        several: whether it takes several models at once (`deltas`).
        least: how many updates it needs; those of several new models, or with `base` the old model's and the new one's.
        elementwise: whether every entry goes by itself, so that any part may be handed over.
        matrices: whether it is for matrices alone, handed over as `[O, I]` with trailing axes flattened.
        prepare: a first pass: (the rows it will treat, the options) -> `shared`.
        takes: the model whose tensors are taken as they are, whatever they hold; None for methods that calculate.
    """

    name: str
    run: MergeFunction
    source: str
    knobs: dict[str, Any]
    context: frozenset[str]
    several: bool = False
    least: int = 1
    elementwise: bool = False
    matrices: bool = False
    prepare: Callable[..., Any] | None = None
    takes: Literal["old", "new"] | None = None

    @property
    def curved(self) -> bool:
        """Whether it needs curvature."""
        return bool(self.context & {"blocks", "new_blocks"})

    @property
    def partial(self) -> bool:
        """Whether some tensors are left to the rule `rest`."""
        return self.curved or self.matrices

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.run) or "").partition("\n")[0]

    def check(self, knobs: Mapping[str, Any]) -> None:
        """Refuse options that do not exist.

        Raises:
            InputError: lists the options that exist.
        """
        for name in knobs:
            if name not in self.knobs:
                known = ", ".join(self.knobs) or "none"
                close = difflib.get_close_matches(name, self.knobs, 1)
                guess = f" (did you mean {close[0]}?)" if close else ""
                raise InputError(f"merge method {self.name} has no option {name}{guess}; it has: {known}")


_METHODS: dict[str, MergeMethod] = {}
_WRAPPERS: dict[str, Callable[[MergeMethod], MergeMethod]] = {}


def merge_method(
    name: str,
    *,
    source: str,
    several: bool = False,
    least: int = 1,
    elementwise: bool = False,
    matrices: bool = False,
    prepare: Callable[..., Any] | None = None,
    takes: Literal["old", "new"] | None = None,
) -> Callable[[MergeFunction], MergeFunction]:
    """Register a merge method; see the head of this file for what its function gets and gives.

    Args:
        name: what users ask for.
        source: where the method comes from.
        several: it takes a sequence of updates.
        least: how many updates it needs.
        elementwise: any part of a tensor can be treated by itself.
        matrices: for tensors of two axes or more only.
        prepare: called once with the rows that will be treated and the options; its result is the argument `shared`.
        takes: take the tensors of this model as they are, of any type; the function then only says which step that is.

    Raises:
        InputError: the name is taken.
    """

    def register(run: MergeFunction) -> MergeFunction:
        if name in _METHODS:
            raise InputError(f"a merge method named {name} is registered already; choose another name")
        options = [p for p in inspect.signature(run).parameters.values() if p.kind is p.KEYWORD_ONLY]
        knobs = {option.name: option.default for option in options if option.name not in CONTEXT}
        context = frozenset(option.name for option in options if option.name in CONTEXT)
        _METHODS[name] = MergeMethod(name, run, source, knobs, context, several, least, elementwise, matrices, prepare, takes)
        return run

    return register


def wrapper(name: str) -> Callable[[Callable[[MergeMethod], MergeMethod]], Callable[[MergeMethod], MergeMethod]]:
    """Register a function that makes another method of any method; users ask for it as "name+method"."""

    def register(wrap: Callable[[MergeMethod], MergeMethod]) -> Callable[[MergeMethod], MergeMethod]:
        _WRAPPERS[name] = wrap
        return wrap

    return register


def methods() -> dict[str, MergeMethod]:
    """Return all registered methods by name."""
    return dict(_METHODS)


def find_method(name: str) -> MergeMethod:
    """One method by name; "WRAPPER+NAME" is the method NAME inside a wrapper, such as "lines+ihr".

    Raises:
        InputError: lists the methods that exist.
    """
    outer, plus, inner = name.partition("+")
    if plus and outer in _WRAPPERS:
        return _WRAPPERS[outer](find_method(inner))
    if name not in _METHODS:
        raise InputError(f"there is no merge method {name!r}; there are: {', '.join(sorted(_METHODS))}")
    return _METHODS[name]
