"""Methods that leave the model of the first domain as it is and learn for every later one what it adds to it.

Such a method never forgets, and grows with every domain; it has to be told at test time which domain an item is from. What
knows no domain, a probe or one that is still to come, is decoded with the shared model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asrcl.contract.method import Method, joined_state, parted_state
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights, fingerprint
from asrcl.exceptions import InputError
from asrcl.methods.increments import Factors, Increment
from asrcl.methods.references import FineTuning
from asrcl.state import StateDict

MARK: Final = "increment:"
"""What the names of factors begin with in the weights that `unwrap` gives; no parameter of a module has a colon in its name."""


class LowRank(Protocol):
    """A parametrization of a weight by low-rank factors."""

    def factors(self) -> Factors:
        """The factors as they are now."""
        ...


class PerDomainMethod(Method):
    """The state and the bookkeeping of a method that learns an `Increment` for every domain but the first.

    To reports it is a method like others (`decoded_by` is "stage_model"): what is measured after a stage counts, since a method
    may change the increments of earlier domains.

    A subclass wraps a model with parametrizations that have `factors()`, and may override `train_increment`.
    """

    continues = False

    def __init__(self) -> None:
        self.base: Weights | None = None
        self.increments: dict[str, Increment] = {}
        self._models: dict[str, Weights] = {}

    def start_run(self, learner: Learner) -> None:
        self.base, self.increments, self._models = None, {}, {}

    # --- state

    def state_dict(self) -> StateDict:
        held = {f"{domain}/{name}": value for domain, item in self.increments.items() for name, value in item.state().items()}
        return joined_state({"base": self.base or {}, "increments": held})

    def training_state(self) -> StateDict:
        """Training reads the shared weights alone: what another domain added does not matter to a new one."""
        return joined_state({"base": self.base or {}})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        base, held = parted_state(self, state, "base", "increments")
        domains: dict[str, StateDict] = {}
        for name, value in held.items():
            domain, _, rest = name.partition("/")
            domains.setdefault(domain, {})[rest] = value
        self.base, self._models = Weights(base) if base else None, {}
        self.increments = {domain: Increment.of(parts) for domain, parts in domains.items()}

    # --- a run

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights | None:
        if self.base is None:  # nothing to add to yet: the first domain trains the model that all share
            return learner.fine_tune(old, domain, FineTuning())
        learned = self.train_increment(learner, domain, self.base)
        self.keep(domain.name, increment_of(learned, self.base, learner.foreign(domain)))
        return self.model_of(domain.name)

    def train_increment(self, learner: Learner, domain: Domain, base: Weights) -> Weights:
        """Weights and marked factors after training on a domain."""
        return learner.fine_tune(base, domain, self)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if self.base is None:
            self.base = new
        return new

    def weights_for(self, learner: Learner, domain: Domain) -> Weights | None:
        return self.model_of(domain.name) if domain.name in self.increments else self.base

    def parameters(self, learner: Learner, biases: bool = True) -> int:
        """The shared model with the head of its domain, and all increments (`Increment.numbers`)."""
        return self.shared_numbers(learner) + sum(increment.numbers(biases) for increment in self.increments.values())

    def kept_bytes(self, learner: Learner) -> int:
        """What the domains add; the shared model is the weights that all else is beside."""
        return sum(value.nbytes for increment in self.increments.values() for value in increment.state().values())

    def shared_numbers(self, learner: Learner) -> int:
        """How many numbers the shared model has, with the head of the first domain alone."""
        assert self.base is not None
        foreign = learner.foreign(learner.domains[0])
        return sum(value.numel() for name, value in self.base.items() if name not in foreign and value.is_floating_point())

    def write(self, folder: Path) -> None:
        """`increments/<domain>.safetensors` for every domain that has one; `Increment.load` reads them."""
        for domain, increment in self.increments.items():
            increment.save(folder / "increments" / f"{domain}.safetensors")

    def keep(self, domain: str, increment: Increment) -> None:
        """Keep what a domain adds, in place of what it added before."""
        self.increments[domain] = increment
        self._models.pop(domain, None)

    def model_of(self, domain: str) -> Weights:
        """The whole model of a domain that was learned; the same object until its increment changes."""
        assert self.base is not None
        if domain not in self._models:
            self._models[domain] = Weights(self.increments[domain].weights(self.base))
        return self._models[domain]

    # --- a fine-tune

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        """The plain weights and, for `learn` to take out, the factors under names that begin with `MARK`."""
        plain, factors = unwrapped(model)
        if self.base is not None:
            plain |= {f"{MARK}{name}.{part}": value for name, item in factors.items() for part, value in item.items()}
        return {name: value.detach().cpu().clone() for name, value in plain.items()}


def increment_of(learned: Mapping[str, Tensor], base: Mapping[str, Tensor], foreign: Set[str]) -> Increment:
    """What was learned as an increment: the marked factors, and the tensors that are not those of the shared model any more."""
    marked = {name.removeprefix(MARK): value for name, value in learned.items() if name.startswith(MARK)}
    factors = Increment.of(marked).factors
    rest = {name: value for name, value in learned.items() if not name.startswith(MARK) and name not in factors}
    own = {n: v for n, v in rest.items() if n not in foreign and not (n in base and torch.equal(v, base[n]))}
    return Increment(factors, own, fingerprint({name: base[name] for name in factors or base}))


def matrices(
    model: nn.Module, targets: Sequence[str], without: Sequence[str] = (), embeddings: bool = False
) -> Iterator[tuple[nn.Module, str, str]]:
    """The weights of two or more axes that globs choose: the module that holds each, its name there, and its full name.

    What another parametrization (weight normalisation) makes its weight of is left alone, and so are embeddings and what is tied
    to them, unless they are asked for.

    Args:
        model: a plain one.
        targets: globs of full names.
        without: globs of full names that are not meant.
        embeddings: whether weights of embeddings count.
    """
    embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    for path, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue
        for name, value in module.named_parameters(recurse=False):
            full = f"{path}.{name}".lstrip(".")
            meant = matches(full, targets) and not matches(full, without)
            if value.ndim > 1 and meant and (embeddings or id(value) not in embedded):
                yield module, name, full


def parametrized(
    learner: Learner, model: nn.Module, targets: Sequence[str], make: Callable[[str, Tensor], nn.Module]
) -> nn.Module:
    """The model with a parametrization on every weight that globs choose; these and the head of the current domain are trained.

    Args:
        learner: of the run; other domains' heads are not trained at all, and the domain's own whole.
        model: a plain one; it is changed.
        targets: globs of full names.
        make: gives the parametrization of a weight, by its full name and value; one that several layers share has one.

    Raises:
        InputError: the globs choose no weight.
    """
    domain = learner.domains[-1]
    own = learner.private(domain)
    found = list(matrices(model, targets, (*own, *learner.foreign(domain))))
    if not found:
        raise no_target("targets", targets, model)
    for name, value in model.named_parameters():
        value.requires_grad_(name in own)
    made: dict[int, nn.Module] = {}
    for module, inner, name in found:
        weight = getattr(module, inner)
        if id(weight) not in made:
            made[id(weight)] = make(name, weight)
        parametrize.register_parametrization(module, inner, made[id(weight)])
    return model


def matches(name: str, globs: Sequence[str]) -> bool:
    """Whether a name matches one of some globs."""
    return any(fnmatchcase(name, glob) for glob in globs)


def no_target(option: str, targets: Sequence[str], model: nn.Module) -> InputError:
    """What to say where globs choose no weight."""
    known = [name for name, value in model.named_parameters() if value.ndim > 1]
    return InputError(f"method.{option}={list(targets)}: no weight of the model; it has {', '.join(known[:5])}, ...")


@torch.no_grad()
def unwrapped(model: nn.Module) -> tuple[StateDict, dict[str, Factors]]:
    """A wrapped model's state in the layout of the plain one, and the factors of its low-rank weights by their names."""
    plain, factors = dict(model.state_dict()), {}
    for path, module in model.named_modules(remove_duplicate=False):  # a layer under two names has both in a state dict
        for name, chain in getattr(module, "parametrizations", {}).items():
            if hasattr(chain[-1], "factors"):
                inner, full = f"{path}.parametrizations.{name}.".lstrip("."), f"{path}.{name}".lstrip(".")
                plain = {key: value for key, value in plain.items() if not key.startswith(inner)}
                plain[full], factors[full] = getattr(module, name), chain[-1].factors()
    return plain, factors
