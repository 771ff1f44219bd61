"""Images and labels from what users have: scikit-learn's digits, MNIST as npz. A source is a function that gives three splits.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading

SPLITS: Final = ("train", "dev", "test")


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: `[N, C, H, W]` float32 from 0 to 1.
        labels: `[N]` int64, classes from 0.
        classes: names of the classes.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4 or len(self.pixels) != len(self.labels):
            shapes = f"pixels have shape {tuple(self.pixels.shape)}, labels {tuple(self.labels.shape)}"
            raise InputError(f"images: {shapes}; expected [N, C, H, W] and [N]")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise InputError(
                f"images: labels run from {int(self.labels.min())} to {int(self.labels.max())}, but there are "
                f"{len(self.classes)} classes; number them from 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Tensor) -> Images:
        """The images at some positions."""
        return Images(self.pixels[positions], self.labels[positions], self.classes)


Source = Callable[..., dict[str, Images]]
_SOURCES: dict[str, Source] = {}


def source(kind: str) -> Callable[[Source], Source]:
    """Decorator: make a function available as `images.kind`; its parameters are the options that the configuration may give."""

    def add(function: Source) -> Source:
        _SOURCES[kind] = function
        return function

    return add


def load_images(options: Mapping[str, Any], data_dir: str | None) -> dict[str, Images]:
    """The splits of a source.

    Args:
        options: `kind` and what else the source takes.
        data_dir: folder of data, for sources that read files.

    Raises:
        InputError: an unknown kind or option, or files that are missing or damaged.
    """
    rest = dict(options)
    kind = rest.pop("kind", None)
    if kind not in _SOURCES:
        raise InputError(f"scenario.images.kind={kind}: unknown; choose from {', '.join(sorted(_SOURCES))}")
    try:
        return _SOURCES[kind](data_dir=data_dir, **rest)
    except TypeError as error:
        raise InputError(f"scenario.images ({kind}): {error}; see docs/images.md for its options") from error


@source("digits")
def digits(data_dir: str | None = None) -> dict[str, Images]:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn: 1,000 for training, 300 for dev, 497 for test.

    They are shuffled once, always in the same way. (Optical Recognition of Handwritten Digits, UCI; 43 writers, not told apart.)
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    whole = Images(pixels, torch.tensor(found.target, dtype=torch.long), tuple(str(name) for name in found.target_names))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return {"train": whole.take(order[:1000]), "dev": whole.take(order[1000:1300]), "test": whole.take(order[1300:])}


@source("mnist")
def mnist(
    data_dir: str | None = None, file: str = "mnist/mnist.npz", train: int = 5000, dev: int = 1000, test: int = 2000
) -> dict[str, Images]:
    """MNIST from an npz with `x_train`, `y_train`, `x_test`, `y_test`: 28 x 28 pixels, ten digits.

    Args:
        data_dir: where the file lies.
        file: relative to `data_dir`.
        train: the first so many images of the training set.
        dev: the last so many of the training set.
        test: the first so many of the test set.
    """
    if data_dir is None:
        raise InputError("data_dir is not set; name the folder that holds mnist/mnist.npz (--data_dir DIR)")
    path = Path(data_dir) / file
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"))
    names = tuple(map(str, range(10)))
    training = _grey(path, arrays["x_train"], arrays["y_train"], names)
    testing = _grey(path, arrays["x_test"], arrays["y_test"], names)
    if train + dev > len(training) or test > len(testing) or min(train, dev, test) < 1:
        raise InputError(
            f"{path}: has {len(training)} and {len(testing)} images, train={train}, dev={dev} and test={test} are wanted; "
            "each at least 1, train and dev together no more than the first"
        )
    positions = torch.arange(len(training))
    return {
        "train": training.take(positions[:train]),
        "dev": training.take(positions[len(training) - dev :]),
        "test": testing.take(torch.arange(test)),
    }


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of an npz file; no pickle in it is ever opened.

    Raises:
        InputError: a missing or damaged file, one that holds objects, or one without one of the names.
    """
    with reading(path, "name a file as NumPy's savez writes it, without objects"), np.load(path, allow_pickle=False) as found:
        if missing := [name for name in names if name not in found]:
            raise InputError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(found)}")
        return {name: found[name] for name in names}


def _grey(path: Path, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], names: tuple[str, ...]) -> Images:
    """Grey images of bytes, `[N, H, W]`."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise InputError(f"{path}: images are {pixels.dtype} of shape {pixels.shape}; expected bytes of shape [N, H, W]")
    return Images(torch.from_numpy(pixels).float()[:, None] / 255, torch.from_numpy(labels.astype(np.int64)), names)
