"""Sequences of classification tasks that never end, each drawn from a seed and its place in the sequence.

Shapes: N samples of a task, D numbers of a sample; tasks are `[N, D]` float32 and labels `[N]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.images.data import Images, load_images
from asrcl.studies.plasticity.networks import generator_of

CHANGE_DRAWS, ORDER_DRAWS, LABEL_DRAWS, MIXTURE_DRAWS = 1, 2, 3, 4
"""Purposes of random numbers: the change of a task, its order, its labels, which task a sample is of."""

Task = tuple[Tensor, Tensor]
"""Samples `[N, D]` and labels `[N]`, in the order in which they are learned."""


class Stream(Protocol):
    """A sequence of tasks for every seed."""

    @property
    def features(self) -> int:
        """D."""
        ...

    @property
    def classes(self) -> int:
        """Number of labels, the same in all tasks: one head serves all."""
        ...

    def task(self, index: int, seed: int) -> Task:
        """The task at a place of a seed's sequence, counted from 0."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Images as vectors.

    Attributes:
        samples: `[M, D]`.
        labels: `[M]`.
        classes: how many.
    """

    samples: Tensor
    labels: Tensor
    classes: int

    @property
    def features(self) -> int:
        """D."""
        return self.samples.shape[1]


@dataclass(frozen=True)
class _AllClasses:
    """A stream whose tasks have the pixels and the classes of the images.

    Attributes:
        pictures: the images.
    """

    pictures: Pictures

    @property
    def features(self) -> int:
        """D."""
        return self.pictures.features

    @property
    def classes(self) -> int:
        """Classes of the images."""
        return self.pictures.classes


@dataclass(frozen=True)
class Permuted(_AllClasses):
    """All images under a permutation of their pixels, anew for each task (Goodfellow et al. 2014); labels stay.

    Attributes:
        width: part of a task, from 0 to 1, in which samples move in a straight line from the previous permutation to the new one.
    """

    width: float = 0.0

    def task(self, index: int, seed: int) -> Task:
        """Shuffled images under the permutation of this place."""
        order = torch.randperm(len(self.pictures.labels), generator=generator_of(seed, ORDER_DRAWS, index))
        samples, labels = self.pictures.samples[order], self.pictures.labels[order]
        new = samples[:, self._permutation(index, seed)]
        if self.width and index:
            share = progress(len(labels), self.width)[:, None]
            new = torch.lerp(samples[:, self._permutation(index - 1, seed)], new, share)
        return new, labels

    def _permutation(self, index: int, seed: int) -> Tensor:
        return torch.randperm(self.features, generator=generator_of(seed, CHANGE_DRAWS, index))


@dataclass(frozen=True)
class RandomLabels(_AllClasses):
    """The same images with random labels, anew for each task, to be learned by heart (Lyle et al. 2023, arXiv 2303.01486).

    Attributes:
        count: how many of them.
        epochs: passes over them.
    """

    count: int = 1280
    epochs: int = 10

    def task(self, index: int, seed: int) -> Task:
        """The images of a seed with the labels of this place, shuffled in each pass."""
        chosen = torch.randperm(len(self.pictures.labels), generator=generator_of(seed, CHANGE_DRAWS))[: self.count]
        labels = torch.randint(self.classes, (len(chosen),), generator=generator_of(seed, LABEL_DRAWS, index))
        shuffles = generator_of(seed, ORDER_DRAWS, index)
        order = torch.cat([torch.randperm(len(chosen), generator=shuffles) for _ in range(self.epochs)])
        return self.pictures.samples[chosen[order]], labels[order]


@dataclass(frozen=True)
class ClassPairs:
    """Two classes to be told apart, others in each task; the head and its labels 0 and 1 stay.

    Attributes:
        pictures: the images.
        partition: True, every class comes once before any comes again (split CIFAR-10 and its like); False, pairs are drawn
            freely (continual binary classes, Dohare et al. 2024).
        epochs: passes over the images.
    """

    pictures: Pictures
    partition: bool = False
    epochs: int = 1

    @property
    def features(self) -> int:
        """D."""
        return self.pictures.features

    @property
    def classes(self) -> int:
        """Two."""
        return 2

    def task(self, index: int, seed: int) -> Task:
        """The images of two classes, shuffled in each pass."""
        pairs = self.pictures.classes // 2 if self.partition else 1
        drawn = torch.randperm(self.pictures.classes, generator=generator_of(seed, CHANGE_DRAWS, index // pairs))
        place = index % pairs * 2
        first, second = (self.pictures.labels == int(name) for name in drawn[place : place + 2])
        positions = (first | second).nonzero()[:, 0]
        shuffles = generator_of(seed, ORDER_DRAWS, index)
        order = positions[torch.cat([torch.randperm(len(positions), generator=shuffles) for _ in range(self.epochs)])]
        return self.pictures.samples[order], second[order].long()


@dataclass(frozen=True)
class Sampled:
    """A stream whose tasks pass into one another: at the beginning of a task some samples are still of the previous one.

    The probability of the new task rises in a straight line (arXiv 2602.09234, task sampling).

    Attributes:
        stream: what changes abruptly.
        width: part of a task, from 0 to 1, in which both occur.
    """

    stream: Stream
    width: float

    @property
    def features(self) -> int:
        """D."""
        return self.stream.features

    @property
    def classes(self) -> int:
        """Those of the stream."""
        return self.stream.classes

    def task(self, index: int, seed: int) -> Task:
        """The task with samples of the previous one among its first."""
        samples, labels = self.stream.task(index, seed)
        if not index:
            return samples, labels
        before, labels_before = self.stream.task(index - 1, seed)
        length = min(len(labels), len(labels_before))  # tasks of two classes differ in length
        samples, labels, before, labels_before = (part[:length] for part in (samples, labels, before, labels_before))
        draws = torch.rand(length, generator=generator_of(seed, MIXTURE_DRAWS, index))
        new = draws < progress(length, self.width)
        return torch.where(new[:, None], samples, before), torch.where(new, labels, labels_before)


def progress(count: int, width: float) -> Tensor:
    """How far the change has come at each of `count` samples, from 0 to 1, when it takes a part `width` of them."""
    return ((torch.arange(count) + 0.5) / (count * width)).clamp(max=1)


def gradual(stream: Stream, width: float, change: Literal["sampling", "interpolation"]) -> Stream:
    """A stream whose tasks change over a part `width` of their samples; the stream itself for 0.

    Raises:
        InputError: a width outside 0..1, or interpolation of a stream other than permuted images.
    """
    if not 0 <= width <= 1:
        raise InputError(f"a change over {width} of a task; give a part from 0 (abrupt) to 1")
    if not width:
        return stream
    if change == "sampling":
        return Sampled(stream, width)
    if change != "interpolation" or not isinstance(stream, Permuted):
        raise InputError(f"change={change}: choose sampling, or for permuted images interpolation")
    return Permuted(stream.pictures, width)


_SOURCES: Final[dict[str, dict[str, Any]]] = {
    "digits": {"kind": "digits"},
    "mnist": {"kind": "mnist", "train": 6000},
    "cifar10": {"kind": "cifar10_jpeg", "size": 16},
}
STREAMS: Final[dict[str, tuple[str, Callable[..., Stream]]]] = {
    "permuted_digits": ("digits", Permuted),
    "permuted_mnist": ("mnist", Permuted),
    "random_label_mnist": ("mnist", RandomLabels),
    "binary_classes": ("cifar10", ClassPairs),
    "split_cifar10": ("cifar10", lambda pictures, **options: ClassPairs(pictures, partition=True, **options)),
}
"""Name -> its images (of `_SOURCES`, unless told otherwise) and what makes a stream of them."""


def stream_of(name: str, data_dir: str | None, images: Mapping[str, Any] | None = None, **options: Any) -> Stream:
    """A stream by name.

    Args:
        name: in `STREAMS`.
        data_dir: folder of data, where the images are files.
        images: options of `asrcl.images.data.load_images` that replace or extend the stream's own.
        **options: of the stream: `epochs`, `count`.

    Raises:
        InputError: an unknown name or option, or images that cannot be read.
    """
    if name not in STREAMS:
        raise InputError(f"stream={name}: unknown; choose from {', '.join(STREAMS)}")
    source, make = STREAMS[name]
    splits = load_images({**(images if images and "kind" in images else {**_SOURCES[source], **(images or {})})}, data_dir)
    # The digits are so few that all of them are learned from; what is measured is learning itself, before each update.
    parts = list(splits.values()) if source == "digits" and not images else [splits["train"]]
    try:
        return make(pictures_of(parts), **options)
    except TypeError as error:
        raise InputError(f"stream={name}: {error}; look at asrcl/studies/plasticity/streams.py for its options") from error


def pictures_of(parts: list[Images]) -> Pictures:
    """Images of one or several splits as vectors."""
    samples = torch.cat([images.pixels.flatten(1) for images in parts])
    return Pictures(samples, torch.cat([images.labels for images in parts]), len(parts[0].classes))
