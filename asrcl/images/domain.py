"""Domains of images: the same images permuted, rotated, or some of their classes; batches, and what a domain's labels mean.

Shapes: N images of a split, B of a batch, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from asrcl.exceptions import InputError
from asrcl.files import hash_json
from asrcl.images.data import SPLITS, Images


@dataclass(frozen=True)
class ImageBatch:
    """A few images of one domain.

    Attributes:
        ids: one string per image.
        pixels: `[B, C, H, W]` float32.
        labels: `[B]` int64, outputs of the head that the domain has.
        domain: name of the domain.
        mixable: whether images of several domains may stand in one batch; not where each domain has a head of its own.
    """

    ids: tuple[str, ...]
    pixels: Tensor
    labels: Tensor
    domain: str
    mixable: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str) -> Self:
        """The same batch on `device`."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True), labels=self.labels.to(device, non_blocking=True))

    def as_of(self, domain: str) -> Self:
        """The same images for the head of another domain; labels are numbers of a head and mean nothing there."""
        return replace(self, domain=domain)

    def items(self) -> Iterator[Self]:
        """The images one by one."""
        for i in range(len(self)):
            yield replace(self, ids=self.ids[i : i + 1], pixels=self.pixels[i : i + 1], labels=self.labels[i : i + 1])

    @classmethod
    def collate(cls, parts: Sequence[Self]) -> Self:
        """One batch with the images of several."""
        ids = tuple(name for part in parts for name in part.ids)
        pixels, labels = torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts])
        return replace(parts[0], ids=ids, pixels=pixels, labels=labels)


class ImageDomain:
    """Images behind the `asrcl.contract.protocols.Domain` protocol.

    Args:
        name: of the domain.
        splits: train, dev and test.
        batch_size: images per batch in training; evaluation takes eight times as many.
        mixable: see `ImageBatch`.
    """

    def __init__(self, name: str, splits: Mapping[str, Images], batch_size: int = 32, mixable: bool = True) -> None:
        self.name, self.batch_size, self.mixable = name, batch_size, mixable
        self._splits = dict(splits)
        self._hashes: dict[str, str] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """C, H, W."""
        return self._splits["train"].shape

    @property
    def classes(self) -> tuple[str, ...]:
        """What the labels stand for."""
        return self._splits["train"].classes

    def size(self, split: str) -> int:
        """Number of images, 0 where the split is missing."""
        return len(self._splits[split]) if split in self._splits else 0

    def fingerprint(self, split: str) -> str:
        """Content hash of pixels, changes, labels and batch size."""
        if split not in self._hashes:
            own = [] if self.mixable else [self.name]  # it selects the head
            self._hashes[split] = hash_json([*self._split(split).describe(), self.batch_size, *own])
        return self._hashes[split]

    def batches(self, split: str, *, shuffle: bool, seed: int) -> Iterator[ImageBatch]:
        """Batches in the order of the images, or in one drawn from `seed`.

        Raises:
            InputError: the domain has no such split.
        """
        count, generator = len(self._split(split)), torch.Generator().manual_seed(seed)
        order = torch.randperm(count, generator=generator) if shuffle else torch.arange(count)
        for chosen in order.split(self.batch_size if split == "train" else 8 * self.batch_size):
            yield self._batch(split, chosen)

    def item(self, split: str, position: int) -> ImageBatch:
        """One image as a batch of one."""
        return self._batch(split, torch.tensor([position]))

    def _batch(self, split: str, chosen: Tensor) -> ImageBatch:
        images = self._split(split)
        ids = tuple(f"{split}{position:05d}" for position in chosen.tolist())
        return ImageBatch(ids, images.at(chosen), images.labels[chosen], self.name, self.mixable)

    def _split(self, split: str) -> Images:
        if split not in self._splits:
            raise InputError(f"domain {self.name}: no split {split}; choose {', '.join(SPLITS)}")
        return self._splits[split]


@dataclass(frozen=True)
class Permutation:
    """All pixels, of all channels together, in another order that depends on `seed` alone (Goodfellow et al., 2013)."""

    seed: int
    costly: ClassVar[bool] = False  # 30 microseconds for 32 images of MNIST, and no second copy of them

    def __call__(self, pixels: Tensor) -> Tensor:
        """Permuted images."""
        flat = pixels.flatten(1)
        return flat.index_select(1, _order(flat.shape[1], self.seed)).view(pixels.shape)


@lru_cache(maxsize=256)
def _order(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Rotation:
    """Counter-clockwise about the centre, bilinear, black beyond the border (Lopez-Paz and Ranzato, 2017)."""

    degrees: float
    costly: ClassVar[bool] = True  # as much as a step of training on MNIST

    def __call__(self, pixels: Tensor) -> Tensor:
        """Rotated images."""
        angle = math.radians(self.degrees)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]])
        grid = functional.affine_grid(turn.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
        return functional.grid_sample(pixels, grid, align_corners=False)


def permuted(images: Images, seed: int) -> Images:
    """The same images with their pixels permuted (`Permutation`)."""
    return images.changed(Permutation(seed))


def rotated(images: Images, degrees: float) -> Images:
    """The same images rotated (`Rotation`)."""
    return images.changed(Rotation(degrees))


def of_classes(images: Images, classes: Sequence[int], relabel: bool) -> Images:
    """The images of some classes, numbered from 0 in the order of `classes`, or with the numbers they have."""
    lookup = torch.full((len(images.classes),), -1)
    lookup[list(classes)] = torch.arange(len(classes)) if relabel else torch.tensor(classes)
    chosen = images.take((lookup[images.labels] >= 0).nonzero().flatten())
    names = tuple(images.classes[number] for number in classes) if relabel else images.classes
    return chosen.labelled(lookup[chosen.labels], names)
