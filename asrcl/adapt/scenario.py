"""What a run is about: an ordered list of domains, a task, a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from asrcl.adapt.evaluation import EvaluationPolicy
from asrcl.contract.protocols import Batch, Domain, Task
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.files import hash_json

if TYPE_CHECKING:
    from asrcl.adapt.observers import Observer


@dataclass
class Scenario:
    """An ordered list of domains, with the task and the model that goes through them.

    Attributes:
        name: of the scenario, in result files.
        domains: in the order in which they are learned.
        task: loss and evaluation.
        build_model: makes the model with fresh weights.
        initial: weights of the initial model: trained on the first domain, read from a checkpoint, or pretrained.
        config: everything the user chose, for the result file.
        model_config: what the model does beyond its weights' names, shapes and values (dropout, heads, activation), as JSON
            values for cache keys; may stay empty where `build_model` never changes.
        probes: domains that are never trained on; their test sets are scored after every stage. evaluation: which domains are
        evaluated after which stage. learn_first: whether the first domain is learned like the others. Otherwise the initial
        model stands for it, which needs not
            have been trained on its data: the first domain is then what methods take for the old one.
        private: gives, for the name of a domain, the names of the parameters that this domain alone uses, such as a head of its
        own: a
            stage takes them as they were learned, whatever its method merges.
        observers: what else is looked at when a stage is over, besides what the run's diagnostics ask for.
    """

    name: str
    domains: Sequence[Domain]
    task: Task
    build_model: Callable[[], nn.Module]
    initial: Mapping[str, Tensor] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)
    probes: Sequence[Domain] = ()
    evaluation: EvaluationPolicy = field(default_factory=EvaluationPolicy)
    learn_first: bool = False
    observers: Sequence[Observer] = ()
    private: Callable[[str], Sequence[str]] = field(default=lambda domain: ())

    def __post_init__(self) -> None:
        self.initial = None if self.initial is None else Weights.of(self.initial)
        names = [domain.name for domain in [*self.domains, *self.probes]]
        if not self.domains:
            raise InputError(f"scenario {self.name}: no domains; list at least one")
        if len(set(names)) < len(names):
            raise InputError(f"scenario {self.name}: domain names repeat ({', '.join(names)}); rename them")


class UnionDomain:
    """Several domains as one, for joint training; a batch holds items of one domain.

    Args:
        domains: the parts.
    """

    def __init__(self, domains: Sequence[Domain]) -> None:
        self.name = "+".join(domain.name for domain in domains)
        self._domains = list(domains)

    def size(self, split: str) -> int:
        """Number of items."""
        return sum(domain.size(split) for domain in self._domains)

    def fingerprint(self, split: str) -> str:
        """Content hash of all parts."""
        return hash_json([domain.fingerprint(split) for domain in self._domains])

    def item(self, split: str, position: int) -> Batch:
        """One item; the parts are counted through one after the other."""
        ends = list(accumulate(domain.size(split) for domain in self._domains))
        part = next(n for n, end in enumerate(ends) if position < end)
        return self._domains[part].item(split, position - (ends[part - 1] if part else 0))

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterable[Batch]:
        """Batches of the parts, one part after the other, or drawn from all in proportion to their size when shuffled."""
        generator = random.Random(seed)
        streams = [
            (iter(domain.batches(split, shuffle=shuffle, seed=generator.randrange(2**31))), domain.size(split))
            for domain in self._domains
        ]
        while streams:
            weights = [size for _, size in streams]
            pick = generator.choices(range(len(streams)), weights)[0] if shuffle else 0
            batch = next(streams[pick][0], None)
            if batch is None:
                streams.pop(pick)
            else:
                yield batch
