"""What a domain and a task must offer so that the loop over domains can adapt to them.

Speech and images implement these two protocols; nothing else in the house knows audio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from asrcl.scoring import Errors

StateDict = dict[str, Tensor]


@runtime_checkable
class Batch(Protocol):
    """A few items (utterances, images) as tensors."""

    def __len__(self) -> int:
        """Number of items."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        ...

    def items(self) -> Iterable[Self]:
        """The items one by one, each as a batch of one without padding (per-item gradients need this)."""
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

    def size(self, split: str) -> int:
        """Number of items in a split, 0 where the split is missing."""
        ...

    def fingerprint(self, split: str) -> str:
        """Content hash of a split; two splits with the same fingerprint hold the same data."""
        ...


@runtime_checkable
class Task(Protocol):
    """The model side of the problem: how to lose and how to be judged. Its batches are those of its own domains."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Training loss, the mean over the batch's items; a scalar, differentiable."""
        ...

    def curvature_loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss whose curvature is estimated: as `loss`, without label smoothing and augmentation."""
        ...

    def padding(self, model: nn.Module, batch: Any) -> Sequence[Tensor]:
        """Masks `[items, positions]`, True at real positions, one for each padded axis that the layers of `model` see."""
        ...

    def evaluate(self, model: nn.Module, domain: Domain, split: str) -> Errors:
        """Errors of the model on a split, counted item by item."""
        ...

    def describe(self) -> dict[str, Any]:
        """What changes a gradient, under `loss`, and what changes a score, under `evaluation`; JSON values, for cache keys."""
        ...
