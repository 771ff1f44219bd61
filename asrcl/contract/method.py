"""A continual-learning method: one small class of hooks, every one with a default.

For every domain after the one that the initial model knows, a run calls

    start_domain -> learn -> merge_domain -> end_domain -> evaluate, by default with weights_for (each domain that is evaluated)

and `learn` by default fine-tunes, which calls

    wrap -> start_epoch -> (loss, penalty) for every batch -> after_backward -> after_step for every optimiser step -> unwrap

For the first domain, on which the initial model was trained, `end_domain` alone is called, with `old=None`. What a method
remembers from one call to the next is its state: it is saved with every finished fine-tune and with the progress of an
unfinished one, so that a run that takes its work from the cache, or goes on after it was killed, ends with the same state as an
undisturbed one. docs/adding_a_method.md walks through an example.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, TypeVar

from torch import Tensor, nn

from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.merge import merge
from asrcl.scoring import Errors
from asrcl.state import StateDict

PLAIN: Final = (str, int, float, bool, type(None))
TRAINING_HOOKS: Final = ("wrap", "unwrap", "start_epoch", "loss", "penalty", "after_backward", "after_step")
"""The hooks that decide what a fine-tune is; a method that overrides one does not share plain fine-tuning's weights."""
HOOKS: Final = (
    *("start_run", "start_domain", "learn", *TRAINING_HOOKS, "merge_domain", "at_strength", "end_domain"),
    *("weights_for", "evaluate", "parameters", "kept_bytes", "write"),
)
CODE_LETTERS: Final = 16


class Method:
    """A continual-learning method; subclasses override what they change.

    Attributes:
        name: under which it is registered.
        label: what tables call it; by default its name.
        role, kind, decoded_by: what reports take it for, in the words of `asrcl.scoring.results.roles`: an "oracle" is told or
            given what a method is not (the domain, all data); metrics know plain fine-tuning and two oracles by their kind.
        version: raise it when code outside of the method's own module changes what it computes.
        shares_fine_tuning: True for a method that fine-tunes exactly as `ft` does and acts before or after; it then shares the
            fine-tunes of all such methods. It has no effect on a subclass that overrides one of `TRAINING_HOOKS`.
        continues: whether every stage starts from the weights of the one before.
        counted_from: what records count a stage's update from: the weights that its fine-tune started from ("start"), or those of
            the "previous" stage.
        own_statistics: whether running statistics of normalisation stay as `merge_domain` gave them; otherwise a stage takes them
            anew at merged weights, on the training data of its domain (`asrcl.adapt.statistics`).
        averages: whether `learn` ends with a mean of weights along the way; a stage then takes running statistics at that mean.
        arguments: what the method was built with, defaults included.
    """

    name: ClassVar[str] = ""
    label: str = ""
    role: ClassVar[Literal["initial", "method", "reference", "oracle"]] = "method"
    kind: ClassVar[Literal["", "fine_tuning", "separate", "joint"]] = ""
    decoded_by: ClassVar[Literal["stage_model", "domain_model", "initial_model"]] = "stage_model"
    version: ClassVar[int] = 1
    shares_fine_tuning: ClassVar[bool] = False
    continues: ClassVar[bool] = True
    counted_from: Literal["start", "previous"] = "start"
    own_statistics: bool = False
    averages: bool = False
    arguments: dict[str, Any]

    def __new__(cls, *values: Any, **options: Any) -> Self:
        """Keep what the method is built with, for its key."""
        method = super().__new__(cls)
        bound = options_of(cls).bind_partial(*values, **options)  # __init__ says what is missing
        bound.apply_defaults()
        method.arguments = dict(bound.arguments)
        return method

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for hook in HOOKS:
            if hook in vars(cls):
                _check_signature(cls, hook)

    @property
    def trains_plainly(self) -> bool:
        """Whether its fine-tunes are those of plain fine-tuning, and shared with all methods of which this is true."""
        declared = self.shares_fine_tuning or type(self) is Method
        return declared and all(getattr(type(self), hook) is getattr(Method, hook) for hook in TRAINING_HOOKS)

    @property
    def has_strength(self) -> bool:
        """Whether less of a stage can be taken: its weights decode all domains, and the next stage starts from them."""
        one = type(self).weights_for is Method.weights_for and type(self).evaluate is Method.evaluate
        return one and self.decoded_by == "stage_model" and self.continues

    def key(self) -> dict[str, Any]:
        """What distinguishes this method's fine-tunes from those of others; equal keys share one.

        Empty for a method that trains plainly, else its class, the code of the modules it is written in, its arguments, and its
        public attributes that are numbers or texts. The method's state is part of a fine-tune's key besides.
        """
        if self.trains_plainly:
            return {}
        public = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "label"}
        settings = {name: value for name, value in public.items() if isinstance(value, PLAIN)}
        cls = type(self)
        return {
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "code": code_of(cls),
            "version": self.version,
            "arguments": self.arguments,
            "settings": settings,
        }

    # --- state

    def training_state(self) -> StateDict:
        """The part of its state that training may read or change: none where it trains plainly, for then no hook is called."""
        return {} if self.trains_plainly else self.state_dict()

    def state_dict(self) -> StateDict:
        """What it remembers, as tensors by name; empty for a method that remembers nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` of the same method gave.

        Raises:
            InputError: the state is not one of this method and model; the message names a tensor.
        """
        if state:
            raise InputError(f"method {_called(self)}: has no state, but is given {next(iter(state))}")

    # --- a run and its domains

    def start_run(self, learner: Learner) -> None:
        """Called once before the first stage: forget what an earlier run left."""

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        """Called before a domain is learned."""

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights | None:
        """Weights after learning a domain, given those of the previous stage.

        Returns:
            New weights; `old` itself where nothing was learned; None where this stage has no model and nothing is evaluated.
        """
        return learner.fine_tune(old, domain, self)

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        """The weights before and after learning merged, by default those after it. It must leave the method's state alone."""
        return new

    def at_strength(
        self, learner: Learner, domain: Domain, old: Weights, new: Weights, merged: Weights, strength: float
    ) -> Weights:
        """Weights on the way from `old`, strength 0, to what `merge_domain` gave, strength 1; by default on a straight line.

        Asked only where error rates of named domains are to be kept (docs/keep.md), and for strengths between the two ends.
        """
        return Weights(merge(old.state, merged.state, "interpolate", strength=strength))

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        """Consolidate (a curvature, an anchor, a memory), given the weights before and those that the stage ends with.

        `new` is what `merge_domain` gave, or less of it where named domains are to be kept, with the head that the domain has for
        itself as it was learned. Other weights may be returned, to end with those instead; not where domains are to be kept.
        """
        return new

    def weights_for(self, learner: Learner, domain: Domain) -> Weights | None:
        """Weights to use for a domain or a probe after the current stage, by default those it ended with; None: it has none."""
        return learner.weights

    def evaluate(self, learner: Learner, domain: Domain, split: str) -> Errors | None:
        """Errors on a domain's or a probe's split after the current stage, by default of `weights_for`; None: no model for it."""
        weights = self.weights_for(learner, domain)
        return None if weights is None else learner.evaluate(weights, domain, split)

    def parameters(self, learner: Learner) -> int:
        """How many numbers the models of all domains so far take up together; by default one model, with their heads alone.

        Growth (capacity) is this divided by what it was after the first domain, less one.
        """
        to_come = set.intersection(*(set(learner.foreign(domain)) for domain in learner.domains))
        return sum(v.numel() for name, v in learner.weights.items() if name not in to_come and v.is_floating_point())

    def kept_bytes(self, learner: Learner) -> int:
        """Bytes that are handed on to the next domain beside the weights: of the state, and of items of earlier domains."""
        return sum(value.nbytes for value in self.state_dict().values())

    def write(self, folder: Path) -> None:
        """Write what a user may want of a stage besides its weights, such as what each domain adds to a shared model."""

    # --- a fine-tune

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        """The model as it is trained, before the optimiser sees its parameters: frozen, with adapters, gates or heads."""
        return model

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        """The weights of a wrapped model in the plain model's layout, copied; training of the wrapped model may go on.

        A method may add tensors under names of its own (factors), which its `learn` then takes out of what `fine_tune` gives.
        """
        return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    def start_epoch(self, learner: Learner, model: nn.Module, epoch: int) -> None:
        """Called before every pass over the training data, numbered from 0, when the model is in training mode."""

    def loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch: the task's, or one with replay or distillation in it."""
        return learner.task.loss(model, batch)

    def penalty(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor | None:
        """A scalar to add to the loss, reported apart from it; None for none."""
        return None

    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        """Called when the gradients of an optimiser step are there, before they are clipped and applied: the place to project."""

    def after_step(self, learner: Learner, model: nn.Module) -> None:
        """Called after every optimiser step, when the weights have moved and the gradients are still there."""


def options_of(cls: type[Method]) -> inspect.Signature:
    """What a method can be built with: the parameters of its `__init__`, or none."""
    if cls.__init__ is object.__init__:
        return inspect.Signature()
    return inspect.Signature(list(inspect.signature(cls.__init__).parameters.values())[1:])


def _called(method: Method) -> str:
    return method.name or type(method).__name__


def _check_signature(cls: type, hook: str) -> None:
    """Refuse a hook that cannot be called as a run calls it, which would otherwise be found after minutes of work."""
    wanted = list(inspect.signature(getattr(Method, hook)).parameters)
    try:
        inspect.signature(vars(cls)[hook]).bind(*wanted)
    except TypeError as error:
        raise InputError(
            f"method class {cls.__qualname__}: {hook}{inspect.signature(vars(cls)[hook])} cannot be called with "
            f"({', '.join(wanted)}), which is what this hook is given ({error})"
        ) from error


def code_of(cls: type) -> str:
    """Hash of the code of all modules in which a method's class and its bases are written; comments and layout do not count.

    A class without source (typed into an interpreter) has "" there, and counts on `version`.
    """
    modules = [base.__module__ for base in cls.__mro__ if issubclass(base, Method) and base is not Method]
    return hashlib.sha256("".join(_code_of_module(name) for name in modules).encode()).hexdigest()[:CODE_LETTERS]


@cache
def _code_of_module(name: str) -> str:
    file = getattr(sys.modules.get(name), "__file__", None)
    try:
        tree = ast.parse(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


# --- states of several tensors per parameter


def joined_state(parts: Mapping[str, Mapping[str, Tensor]]) -> StateDict:
    """`{"fisher": {"w": ...}}` as one state dict, `{"fisher.w": ...}`."""
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def parted_state(method: Method, state: Mapping[str, Tensor], *parts: str) -> list[StateDict]:
    """What `joined_state` joined, in the order of `parts`.

    Raises:
        InputError: a name that belongs to none of the parts.
    """
    found: dict[str, StateDict] = {part: {} for part in parts}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part not in found or not rest:
            raise InputError(f"method {_called(method)}: its state has {name}, but only {', '.join(parts)} are known")
        found[part][rest] = value
    return list(found.values())


def check_fits(method: Method, what: str, state: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Refuse a remembered tensor that belongs to no parameter of the model, or has another shape.

    Raises:
        InputError: names the tensor and both shapes.
    """
    for name, value in state.items():
        wanted = tuple(parameters[name].shape) if name in parameters else "no such parameter"
        if tuple(value.shape) != wanted:
            raise InputError(
                f"method {_called(method)}: its {what} of {name} has shape {tuple(value.shape)}, the model "
                f"{wanted}; it was made with another model"
            )


# --- registry

_METHODS: dict[str, type[Method]] = {}
_AnyMethod = TypeVar("_AnyMethod", bound=type[Method])


def register(name: str) -> Callable[[_AnyMethod], _AnyMethod]:
    """Class decorator: make a method available under `name`."""

    def add(method: _AnyMethod) -> _AnyMethod:
        method.name = name
        method.label = vars(method).get("label") or name
        _METHODS[name] = method
        return method

    return add


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """The class that is registered under a name.

    Raises:
        InputError: an unknown name; the message lists the known ones.
    """
    if name not in _METHODS:
        raise InputError(f"method {name}: unknown; choose from {', '.join(method_names())}")
    return _METHODS[name]


def build_method(name: str, **options: Any) -> Method:
    """Make a method from its name and options.

    Raises:
        InputError: an unknown name or option; the message lists the known ones.
    """
    known = options_of(method_class(name)).parameters
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"method {name}: no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    try:
        return _METHODS[name](**options)
    except TypeError as error:
        raise InputError(f"method {name}: {error}; look at the types of its options") from error
