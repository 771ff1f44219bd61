"""What a benchmark offers (`Batch`, `Domain`, `Task`) and what a method may ask of a run (`Learner`).

Speech, images and toy problems implement the first three; `asrcl.adapt.DomainLearner` is the fourth. Nothing here knows audio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from asrcl.contract.outputs import Outputs
from asrcl.contract.weights import Weights
from asrcl.curvature import Curvature
from asrcl.scoring import Errors

if TYPE_CHECKING:
    from asrcl.contract.method import Method


@runtime_checkable
class Batch(Protocol):
    """A few items (utterances, images) of one domain as tensors."""

    @property
    def domain(self) -> str:
        """Name of the domain that the items are from; it selects a head or a model where a domain has its own."""
        ...

    @property
    def mixable(self) -> bool:
        """Whether items of several domains may stand in one batch; not where each domain has a head of its own."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        ...

    def as_of(self, domain: str) -> Self:
        """The same items as if they were of another domain: where every domain has a head, they go through that of `domain`."""
        ...

    def items(self) -> Iterable[Self]:
        """The items one by one, each as a batch of one without padding (per-item gradients need this)."""
        ...

    @classmethod
    def collate(cls, parts: Sequence[Self]) -> Self:
        """One batch with the items of several, padded anew; its domain is that of the first. See `mixable`."""
        ...


@runtime_checkable
class Domain(Protocol):
    """A named source of labelled data with the splits `train`, `dev` and `test`."""

    name: str

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterable[Batch]:
        """Batches of one split; the order depends on `seed` alone when `shuffle` is set.

        Raises:
            InputError: the domain has no such split.
        """
        ...

    def item(self, split: str, position: int) -> Batch:
        """One item of a split as a batch of one; positions run from 0 to `size(split) - 1`, always in the same order."""
        ...

    def size(self, split: str) -> int:
        """Number of items in a split, 0 where the split is missing."""
        ...

    def fingerprint(self, split: str) -> str:
        """Content hash of a split; two splits with the same fingerprint hold the same data."""
        ...


@runtime_checkable
class Task(Protocol):
    """The problem that a model solves: its loss, its outputs, its errors. Its batches are those of its own domains."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Training loss, the mean over the batch's items; a scalar, differentiable."""
        ...

    def curvature_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss whose curvature is estimated: as `loss`, without label smoothing and augmentation."""
        ...

    def outputs(self, model: nn.Module, batch: Any) -> Outputs:
        """What the model says of a batch before any label is looked at: logits, and masks of the real positions."""
        ...

    def loss_and_outputs(self, model: nn.Module, batch: Any) -> tuple[Tensor, Outputs, Any]:
        """The training loss, the outputs it was computed from, and the batch as the model saw it (augmented), in one pass."""
        ...

    def distillation(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """How far a student's outputs are from a teacher's on the same batch, the mean over items; a scalar, differentiable."""
        ...

    def padding(self, model: nn.Module, batch: Any) -> Sequence[Tensor]:
        """Masks `[items, positions]`, True at real positions, one for each padded axis that the layers of `model` see."""
        ...

    def evaluate(self, model: nn.Module, domain: Domain, split: str) -> Errors:
        """Errors of the model on a split, counted item by item."""
        ...

    def confidence(self, model: nn.Module, domain: Domain, split: str, errors: Errors) -> list[float]:
        """How sure the model is of what it recognised: the log probability of each hypothesis per token, in nats; -inf at worst.

        `errors` is what `evaluate` gave for the same model and split; the result is in the order of its items.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """What changes a gradient, under `loss`, and what changes a score, under `evaluation`; JSON values, for cache keys."""
        ...


class Learner(Protocol):
    """What a method may ask of the run it takes part in."""

    @property
    def task(self) -> Task:
        """The problem."""
        ...

    @property
    def stage(self) -> int:
        """Number of the current domain, 1 for the first (t in the papers)."""
        ...

    @property
    def last(self) -> bool:
        """Whether no domain follows the current one."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the run; a method draws its random numbers from this and from counters that are part of its state."""
        ...

    @property
    def device(self) -> str:
        """Where models and batches are while they are trained."""
        ...

    @property
    def initial(self) -> Weights:
        """The initial model of the run."""
        ...

    @property
    def fresh(self) -> Weights:
        """Weights that nothing has trained, drawn from the run's seed."""
        ...

    @property
    def weights(self) -> Weights:
        """What the last finished stage ended with; the initial model before the first."""
        ...

    @property
    def epochs(self) -> int:
        """Passes over the training data that a fine-tune of this run takes."""
        ...

    @property
    def domains(self) -> Sequence[Domain]:
        """The domains from the first to the current one. Those before the current one are for memories and upper bounds alone."""
        ...

    @property
    def record(self) -> dict[str, Any]:
        """What the current stage did, for `results.json`; a method may add JSON values under names of its own."""
        ...

    def to_come(self, domain: Domain) -> bool:
        """Whether a domain is one of the run's that no stage so far has learned; False for a probe."""
        ...

    def fine_tune(
        self,
        parent: Weights,
        domain: Domain,
        method: Method,
        epochs: int | None = None,
        learning_rate: float | None = None,
    ) -> Weights:
        """Train on `domain` from `parent` with the method's hooks; done once for the same inputs, then read from the cache.

        A method that learns a domain in two parts gives the `epochs`, and the `learning_rate`, of a part; where it gives none
        they are those of the run.
        """
        ...

    def private(self, domain: Domain) -> Set[str]:
        """Names of the parameters that `domain` alone uses: those of its head, where every domain has its own."""
        ...

    def foreign(self, domain: Domain) -> Set[str]:
        """Names of the parameters that other domains of the run alone use."""
        ...

    def union(self, domains: Sequence[Domain]) -> Domain:
        """Several domains as one, for training on all of them together."""
        ...

    def frozen(self, weights: Weights) -> nn.Module:
        """A second model with these weights, in evaluation mode and without gradients: a teacher. Valid until the next call."""
        ...

    def evaluate(self, weights: Weights, domain: Domain, split: str = "test") -> Errors:
        """Errors of these weights on a split, item by item; decoded once, then read from the cache."""
        ...

    def confidence(self, weights: Weights, domain: Domain, split: str, errors: Errors) -> list[float]:
        """`Task.confidence` of these weights in what `evaluate` gave for them, in the order of its items; likewise kept."""
        ...

    def estimate_curvature(self, weights: Weights, domain: Domain, structure: Literal["kron", "diagonal"]) -> Curvature:
        """Curvature of the task's loss at `weights` on the training data of `domain`; computed once, then kept on disk."""
        ...
