"""Synthetic domains: labelled vectors, and Gaussian blobs that each domain sees rotated by another angle.

Shapes: N items of a split, B items of a batch, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.files import hash_json

ITEMS_PER_GROUP = 8


@dataclass(frozen=True)
class VectorBatch:
    """Labelled vectors, behind the `asrcl.adapt.Batch` protocol.

    Attributes:
        ids: one string per item, `<group>-<split><number>`.
        inputs: `[B, D]`.
        labels: `[B]` class numbers.
        domain: name of the domain that the items are from.
    """

    ids: tuple[str, ...]
    inputs: Tensor
    labels: Tensor
    domain: str = ""
    mixable: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        return type(self)(self.ids, self.inputs.to(device), self.labels.to(device), self.domain)

    def as_of(self, domain: str) -> Self:
        """The same items under the name of another domain."""
        return type(self)(self.ids, self.inputs, self.labels, domain)

    def items(self) -> Iterator[Self]:
        """The items one by one."""
        for i in range(len(self)):
            yield type(self)(self.ids[i : i + 1], self.inputs[i : i + 1], self.labels[i : i + 1], self.domain)

    @classmethod
    def collate(cls, parts: Sequence[Self]) -> Self:
        """One batch with the items of several."""
        ids = tuple(name for part in parts for name in part.ids)
        inputs, labels = torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts])
        return cls(ids, inputs, labels, parts[0].domain)


class VectorDomain:
    """A domain of given tensors, behind the `asrcl.adapt.Domain` protocol.

    Args:
        name: of the domain.
        splits: split name -> (inputs `[N, D]`, labels `[N]`).
        batch_size: items per batch.
    """

    def __init__(self, name: str, splits: Mapping[str, tuple[Tensor, Tensor]], batch_size: int = 16) -> None:
        self.name, self.batch_size = name, batch_size
        self._splits = dict(splits)

    def size(self, split: str) -> int:
        """Number of items, 0 where the split is missing."""
        return len(self._splits[split][1]) if split in self._splits else 0

    def fingerprint(self, split: str) -> str:
        """Content hash of inputs, labels and batch size."""
        hashes = [hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in self._tensors(split)]
        return hash_json([*hashes, self.batch_size])

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterator[VectorBatch]:
        """Batches in the order of the tensors, or in one drawn from `seed`.

        Raises:
            InputError: the domain has no such split.
        """
        inputs, labels = self._tensors(split)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(labels), generator=generator) if shuffle else torch.arange(len(labels))
        for chosen in order.split(self.batch_size):
            ids = tuple(f"g{int(i) // ITEMS_PER_GROUP:03d}-{split}{int(i):04d}" for i in chosen)
            yield VectorBatch(ids, inputs[chosen], labels[chosen], self.name)

    def item(self, split: str, position: int) -> VectorBatch:
        """One item as a batch of one."""
        inputs, labels = self._tensors(split)
        identity = f"g{position // ITEMS_PER_GROUP:03d}-{split}{position:04d}"
        return VectorBatch((identity,), inputs[position : position + 1], labels[position : position + 1], self.name)

    def _tensors(self, split: str) -> tuple[Tensor, Tensor]:
        if split not in self._splits:
            raise InputError(f"{self.name}: no split {split}; it has {', '.join(self._splits)}")
        return self._splits[split]


def blob_domain(
    name: str,
    seed: int = 0,
    rotation: float = 0.0,
    *,
    sizes: Mapping[str, int] | None = None,
    classes: int = 4,
    features: int = 8,
    noise: float = 0.4,
    batch_size: int = 16,
) -> VectorDomain:
    """One Gaussian blob per class around fixed centres, the whole space turned.

    Args:
        name: of the domain.
        seed: of the noise and of the plane of rotation; the centres are the same for all seeds.
        rotation: how far the space is turned: 0 leaves it as it is; from about 1 on, the new places of the blobs have nothing to
            do with the old ones.
        sizes: items per split; 64 for training, 32 for dev and 48 for test if not given.
        classes: number of classes.
        features: D.
        noise: standard deviation of a blob; centres are about 2 from the origin.
        batch_size: items per batch.
    """
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(0))
    centres = 2 * centres / centres.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(1 + seed)
    turn = _rotation(features, rotation, generator)
    splits = {}
    for split, size in (sizes or {"train": 64, "dev": 32, "test": 48}).items():
        labels = torch.arange(size) % classes
        vectors = centres[labels] + noise * torch.randn(size, features, generator=generator)
        splits[split] = (vectors @ turn.T, labels)
    return VectorDomain(name, splits, batch_size)


def _rotation(features: int, amount: float, generator: torch.Generator) -> Tensor:
    """An orthogonal matrix `[D, D]`, the identity at amount 0."""
    square = torch.randn(features, features, generator=generator)
    return torch.linalg.matrix_exp(amount * (square - square.T) / 2)
