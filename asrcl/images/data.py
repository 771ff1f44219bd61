"""Labelled images in memory, and sources of them by name: a source is a function that gives the splits train, dev and test.

Shapes: N images of a split, B of them, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.images.options import check_options
from asrcl.images.shape import CHUNK, Shape

SPLITS: Final = ("train", "dev", "test")


class Change(Protocol):
    """What is done to every image of a domain alike; its `repr` is part of the domain's fingerprint."""

    @property
    def costly(self) -> bool:
        """Whether to do it once for all images when they are first used, rather than batch by batch."""
        ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Changed images, both `[B, C, H, W]` float32."""
        ...


class Store:
    """Pixels as they lie in memory; all domains that show the same ones share them, and they are hashed once.

    Attributes:
        tensor: `[N, C, H, W]`, bytes from 0 to 255 or float32 from 0 to 1.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @cached_property
    def hash(self) -> str:
        """Content hash, of the type as well."""
        digest = hashlib.sha256(f"{self.tensor.dtype}{tuple(self.tensor.shape)}".encode())
        for part in self.tensor.split(CHUNK):  # a grey image shown in three channels is contiguous only in parts
            digest.update(part.contiguous().numpy())
        return digest.hexdigest()


class Images:
    """Labelled images. What a domain changes about them is done when they are asked for, not before.

    Args:
        pixels: `[N, C, H, W]`, bytes from 0 to 255 or float32 from 0 to 1; bytes take a quarter of the memory.
        labels: `[N]` whole numbers, classes from 0.
        classes: names of the classes.
        changes: see `Change`; the first is done first.

    Raises:
        InputError: shapes or types that are not these, or labels without a class.
    """

    def __init__(
        self, pixels: Tensor | Store, labels: Tensor, classes: tuple[str, ...], changes: tuple[Change, ...] = ()
    ) -> None:
        self.store = pixels if isinstance(pixels, Store) else Store(pixels)
        self.labels, self.classes, self.changes = labels.long(), tuple(classes), changes
        _check(self.store.tensor, labels, self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        channels, height, width = self.store.tensor.shape[1:]
        return channels, height, width

    @property
    def pixels(self) -> Tensor:
        """All images, `[N, C, H, W]` float32 from 0 to 1."""
        return self.at(torch.arange(len(self)))

    def at(self, positions: Tensor) -> Tensor:
        """The images at some positions, `[B, C, H, W]` float32 from 0 to 1."""
        tensor, changes = self._ready
        pixels = _floats(tensor.index_select(0, positions))
        for change in changes:
            pixels = change(pixels)
        return pixels

    def take(self, positions: Tensor) -> Images:
        """Some of the images, in the order of `positions`."""
        return Images(self.store.tensor[positions], self.labels[positions], self.classes, self.changes)

    def labelled(self, labels: Tensor, classes: tuple[str, ...] | None = None) -> Images:
        """The same images with other labels."""
        return Images(self.store, labels, self.classes if classes is None else classes, self.changes)

    def changed(self, change: Change) -> Images:
        """The same images with one more change."""
        return Images(self.store, self.labels, self.classes, (*self.changes, change))

    def describe(self) -> list[object]:
        """What tells these images and labels from others, for content hashes; no change is carried out for it."""
        labels = hashlib.sha256(self.labels.numpy().tobytes()).hexdigest()
        return [self.store.hash, labels, [repr(change) for change in self.changes]]

    @cached_property
    def _ready(self) -> tuple[Tensor, tuple[Change, ...]]:
        """Pixels after the last costly change, in the type they are stored in, and the changes that remain."""
        done = max((number for number, change in enumerate(self.changes, 1) if change.costly), default=0)
        if not done:
            return self.store.tensor, self.changes
        tensor = torch.empty(self.store.tensor.shape, dtype=self.store.tensor.dtype)
        for source, target in zip(self.store.tensor.split(CHUNK), tensor.split(CHUNK), strict=True):
            pixels = _floats(source)
            for change in self.changes[:done]:
                pixels = change(pixels)
            target.copy_(pixels.mul(255).round_() if tensor.dtype == torch.uint8 else pixels)
        return tensor, self.changes[done:]


def _floats(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).div_(255) if pixels.dtype == torch.uint8 else pixels


def _check(pixels: Tensor, labels: Tensor, classes: tuple[str, ...]) -> None:
    if pixels.ndim != 4 or labels.ndim != 1 or len(pixels) != len(labels):
        shapes = f"pixels have shape {tuple(pixels.shape)}, labels {tuple(labels.shape)}"
        raise InputError(f"images: {shapes}; expected [N, C, H, W] and [N]")
    if pixels.shape[1] not in (1, 3) and pixels.shape[3] in (1, 3):
        raise InputError(f"images: pixels of shape {tuple(pixels.shape)} have their channels last; give [N, C, H, W]")
    if pixels.dtype not in (torch.uint8, torch.float32):
        raise InputError(f"images: pixels are {pixels.dtype}; give bytes from 0 to 255, or float32 from 0 to 1")
    if labels.is_floating_point() or labels.is_complex():
        raise InputError(f"images: labels are {labels.dtype}; give whole numbers, the classes from 0")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(
            f"images: labels run from {int(labels.min())} to {int(labels.max())}, but there are "
            f"{len(classes)} classes; number them from 0"
        )


Source = Callable[..., dict[str, Images]]
_SOURCES: dict[str, Source] = {}
_BUILT_IN: Final = {
    **dict.fromkeys(("digits", "mnist", "npz"), "arrays"),
    **dict.fromkeys(("cifar10_jpeg", "omniglot"), "packed"),
    **{"cifar": "cifar", "datasets": "hub", "folder": "folder", "idx": "idx", "svhn": "svhn"},
}
"""Sources that come with asrcl, and the modules of `asrcl.images.sources` they are in; imported when they are asked for."""
_SHAPES: Final = ("size", "channels", "fit")


def source(kind: str) -> Callable[[Source], Source]:
    """Decorator: make a function available as `images.kind`; its parameters are the options that the configuration may give.

    Every source has the options of `asrcl.images.shape.Shape` as well. A function with a parameter `shape` brings its images into
    that shape itself, as it must where they have different sizes; for all others `load_images` does.

    Raises:
        InputError: another source has that name.
    """

    def add(function: Source) -> Source:
        known = _SOURCES.get(kind)
        taken = f"asrcl.images.sources.{_BUILT_IN[kind]}" if kind in _BUILT_IN else known.__module__ if known else None
        if taken not in (None, function.__module__):
            raise InputError(f"scenario.images.kind={kind}: {taken} has a source of this name; choose another")
        _SOURCES[kind] = function
        return function

    return add


def load_images(options: Mapping[str, Any], data_dir: str | None) -> dict[str, Images]:
    """The splits of a source.

    Args:
        options: `kind`, what the source takes, and what `asrcl.images.shape.Shape` takes.
        data_dir: folder of data, for sources that read files.

    Raises:
        InputError: an unknown kind or option, or files that are missing or damaged.
    """
    function = _source(options.get("kind"))
    where = f"scenario.images ({options['kind']})"
    shape = Shape.of({name: options[name] for name in _SHAPES if name in options}, where)
    given = {name: value for name, value in options.items() if name not in ("kind", *_SHAPES)}
    check_options(function, given, where, own=("data_dir", "shape"), more=_SHAPES)
    itself = "shape" in inspect.signature(function).parameters
    splits = function(data_dir=data_dir, **({"shape": shape} if itself else {}), **given)
    if not itself:
        splits = {
            split: Images(shape.of_tensor(images.store.tensor, where), images.labels, images.classes, images.changes)
            for split, images in splits.items()
        }
    if len({(images.shape, images.classes) for images in splits.values()}) != 1 or not {"train", "test"} <= set(splits):
        found = ", ".join(f"{split} {images.shape} with {len(images.classes)} classes" for split, images in splits.items())
        raise InputError(f"{where}: gives {found or 'nothing'}; expected train and test, of one shape and with the same classes")
    return splits


def _source(kind: Any) -> Source:
    if kind in _BUILT_IN:
        importlib.import_module(f"asrcl.images.sources.{_BUILT_IN[kind]}")
    if kind not in _SOURCES:
        known = ", ".join(sorted({*_BUILT_IN, *_SOURCES}))
        raise InputError(f"scenario.images.kind={kind}: unknown; choose from {known}, or name its module under imports")
    return _SOURCES[kind]
