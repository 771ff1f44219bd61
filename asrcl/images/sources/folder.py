"""Folders of image files, class by class, and Tiny-ImageNet, whose validation images are listed in a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.experiment.reading import plain, reason
from asrcl.images.data import Images, source
from asrcl.images.shape import Shape
from asrcl.images.splits import Count, cut, located

logger = logging.getLogger(__name__)

_HELD: Final = ("val", "valid", "validation", "dev")
_ANNOTATED: Final = "val_annotations.txt"
_MODES: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # others hold more than a byte per channel
Sample = tuple[Path, int]


@source("folder")
def folder(
    folder: str,
    shape: Shape,
    data_dir: str | None = None,
    skip_damaged: bool = False,
    train: Count = None,
    dev: Count = None,
    test: Count = None,
) -> dict[str, Images]:
    """Image files in one folder for each class, those of a split below `train`, `val` and `test`, or all in one place.

    Where `train` and `val` are alone, `val` is the test set and dev images are cut out of the training set. So it is for
    Tiny-ImageNet, too (`val/val_annotations.txt` has file and class in each line; its `test` has no labels). Names of classes are
    those of the folders, numbered in their order.

    Args:
        folder: relative to `data_dir`.
        shape: that all images are brought into; without a size they must have one already.
        data_dir: where the folder lies.
        skip_damaged: leave out files that are no images (notMNIST has some) instead of refusing the folder; they are counted.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set, where it is cut out.
        test: by default a fifth, where it is cut out.

    Raises:
        InputError: a folder that is missing or holds no classes, files that are no images, or images of several sizes.
    """
    root = located(data_dir, folder, "where your images come from")
    below = {child.name: child for child in root.iterdir() if child.is_dir()}
    if "train" not in below:
        classes, samples = _listed(root)
        return cut(_load(root, samples, classes, shape, skip_damaged), None, None, train, dev, test, str(root))
    classes, samples = _listed(below["train"])
    held = next((below[name] for name in _HELD if name in below), None)
    annotated = held is not None and (held / _ANNOTATED).is_file()
    sets = {"train": samples}
    if held is not None:
        sets["val"] = _annotated(held, classes) if annotated else _matching(held, classes)
    if "test" in below and not annotated:
        sets["test"] = _matching(below["test"], classes)
    loaded = {name: _load(root, found, classes, shape, skip_damaged) for name, found in sets.items()}
    if "test" not in loaded and "val" in loaded:
        loaded["test"] = loaded.pop("val")
    _check_channels(root, loaded)
    return cut(loaded["train"], loaded.get("val"), loaded.get("test"), train, dev, test, str(root))


def _listed(root: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """Classes and files of a folder, both in the order of their names."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(root))
    except FileNotFoundError as error:
        raise InputError(f"{root}: {plain(reason(error))}; expected a folder for each class, with images in each") from error
    return tuple(found.classes), [(Path(path), label) for path, label in found.samples]


def _matching(root: Path, classes: tuple[str, ...]) -> list[Sample]:
    """Files of a split whose classes are those of the training set, or some of them."""
    names, samples = _listed(root)
    if unknown := [name for name in names if name not in classes]:
        raise InputError(f"{root}: class {unknown[0]} is not in the training set ({len(classes)} classes)")
    return [(path, classes.index(names[label])) for path, label in samples]


def _annotated(root: Path, classes: tuple[str, ...]) -> list[Sample]:
    """Files of Tiny-ImageNet's validation set: a line has name, class and the corners of a box, with tabs between them."""
    listing, samples = root / _ANNOTATED, []
    for number, line in enumerate(listing.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        label = rest.partition("\t")[0]
        if label not in classes or Path(name).name != name or name in ("", ".."):
            raise InputError(plain(f"{listing}: line {number}: {line[:60]!r} names no file and class; get Tiny-ImageNet again"))
        samples.append((root / "images" / name, classes.index(label)))
    return samples


def _load(root: Path, samples: Sequence[Sample], classes: tuple[str, ...], shape: Shape, skip_damaged: bool) -> Images:
    """The images of the files, grey if none of them is in colour."""
    pictures: list[Tensor] = []
    labels, skipped = [], 0
    for path, label in samples:
        try:
            picture = shape.of_tensor(read_picture(path), str(path))
        except InputError:
            if not skip_damaged:
                raise
            skipped += 1
            continue
        pictures.append(picture)
        labels.append(label)
    if skipped:
        logger.warning("%s: %d of %d files are no images and were left out", root, skipped, len(samples))
    return Images(stacked(pictures, [str(path) for path, _ in samples]), torch.tensor(labels, dtype=torch.long), classes)


def read_picture(file: Any) -> Tensor:
    """One image, `[1, C, H, W]` bytes, with one channel where it is grey.

    Args:
        file: a path, or a picture that Pillow has opened.

    Raises:
        InputError: no image, one that is cut short, or one of more than a byte per channel; the message names the file.
    """
    import numpy as np
    from PIL import Image

    where = str(getattr(file, "filename", None) or "picture") if isinstance(file, Image.Image) else str(file)
    try:
        with Image.open(file) if not isinstance(file, Image.Image) else file as picture:
            if picture.mode not in _MODES:
                raise InputError(f"{where}: is of mode {picture.mode}; convert it to grey or RGB with a byte per channel")
            array = np.array(picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders promise no closed list
        advice = "replace it, or leave such files out (skip_damaged: true)"
        raise InputError(plain(f"{where}: cannot be read as an image ({reason(error)}); {advice}")) from error
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)[None]


def stacked(pictures: Sequence[Tensor], names: Sequence[str]) -> Tensor:
    """Images `[1, C, H, W]` as one tensor, the grey among them in three channels if any has three.

    Raises:
        InputError: none at all, or several sizes; the message names the first that differs and the option that helps.
    """
    if not pictures:
        raise InputError(f"scenario.images: none of {len(names)} files is an image")
    first = pictures[0].shape[2:]
    for picture, name in zip(pictures, names, strict=False):
        if picture.shape[2:] != first:
            sizes = " and ".join(f"{height} x {width}" for height, width in (first, picture.shape[2:]))
            raise InputError(f"{name}: images of {sizes} pixels; bring them to one size (scenario.images.size=32)")
    channels = max(picture.shape[1] for picture in pictures)
    return torch.cat([picture.expand(-1, channels, -1, -1) for picture in pictures])


def _check_channels(root: Path, sets: Mapping[str, Images]) -> None:
    if len({images.shape for images in sets.values()}) > 1:
        shapes = ", ".join(f"{name} {images.shape}" for name, images in sets.items())
        raise InputError(f"{root}: shapes differ ({shapes}); set size and channels (scenario.images.channels=3)")
