"""What a continual-learning method may add to fine-tuning: one small class, every hook with a default.

The loop over domains (`asrcl.adapt`) calls the hooks in this order, for every domain after the first:

    start_domain  ->  (penalty, after_backward) for every batch  ->  end_domain

For the first domain, on which the initial model was trained, `end_domain` alone is called, with `old=None`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from torch import Tensor, nn

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError

StateDict = dict[str, Tensor]
PLAIN = (str, int, float, bool, type(None))


class Learner(Protocol):
    """What a method may ask of the loop."""

    @property
    def stage(self) -> int:
        """Number of the current domain, 1 for the first (the paper's t)."""
        ...

    @property
    def last(self) -> bool:
        """Whether no domain follows the current one."""
        ...

    def estimate_curvature(self, state: StateDict, domain: Any, structure: Literal["kron", "diagonal"]) -> Curvature:
        """Curvature of the task's loss at `state` on the training data of `domain`; computed once, then kept on disk."""
        ...


class Method:
    """A continual-learning method; subclasses override what they change.

    Attributes:
        starts_from: the weights that fine-tuning starts from: those of the previous stage, or the initial model's.
        data: "current" domain only, or "all" domains seen so far (only upper bounds may ask for it).
        trains: False for a method that never trains.
        own_model_per_domain: True when every domain keeps a model of its own (an oracle that is told the domain).
        last_only: True when only the last stage is trained and measured.
    """

    name: ClassVar[str] = ""
    starts_from: ClassVar[Literal["previous", "initial"]] = "previous"
    data: ClassVar[Literal["current", "all"]] = "current"
    trains: ClassVar[bool] = True
    own_model_per_domain: ClassVar[bool] = False
    last_only: ClassVar[bool] = False

    def training_key(self) -> dict[str, Any]:
        """What distinguishes this method's training from plain fine-tuning; equal keys share one fine-tune.

        By default nothing; of a method that has a `penalty` or an `after_backward` of its own, its class and those of its public
        attributes that are numbers or texts. One whose training depends on anything else must say so here.
        """
        if all(getattr(type(self), hook) is getattr(Method, hook) for hook in ("penalty", "after_backward")):
            return {}
        settings = {name: value for name, value in vars(self).items() if isinstance(value, PLAIN) and not name.startswith("_")}
        return {"class": f"{type(self).__module__}.{type(self).__qualname__}", "settings": settings}

    def start_domain(self, learner: Learner, domain: Any) -> None:
        """Called before fine-tuning on a domain."""

    def penalty(self, model: nn.Module, batch: Any) -> Tensor | None:
        """A scalar to add to the task's loss, or None."""
        return None

    def after_backward(self, model: nn.Module) -> None:
        """Called when gradients are there and before they are clipped and applied."""

    def end_domain(self, learner: Learner, domain: Any, old: StateDict | None, new: StateDict) -> StateDict:
        """Weights to go on with, given those before (`old`) and after (`new`) fine-tuning; the place to consolidate curvature."""
        return new


_METHODS: dict[str, type[Method]] = {}
_AnyMethod = TypeVar("_AnyMethod", bound=type[Method])


def register(name: str) -> Callable[[_AnyMethod], _AnyMethod]:
    """Class decorator: make a method available under `name`."""

    def add(method: _AnyMethod) -> _AnyMethod:
        method.name = name
        _METHODS[name] = method
        return method

    return add


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)


def build_method(name: str, **options: Any) -> Method:
    """Make a method from its name and options.

    Raises:
        InputError: an unknown name or option; the message lists the known ones.
    """
    if name not in _METHODS:
        raise InputError(f"method {name}: unknown; choose from {', '.join(method_names())}")
    known = inspect.signature(_METHODS[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"method {name}: no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    try:
        return _METHODS[name](**options)
    except TypeError as error:
        raise InputError(f"method {name}: {error}; look at the types of its options") from error
