"""Images that are arrays: scikit-learn's digits, MNIST as npz, and npz files of any names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.images.data import Images, source
from asrcl.images.splits import Count, cut, located

DIGITS = tuple(map(str, range(10)))
_KERAS = "storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"


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

    Raises:
        InputError: a file that is missing or damaged, or more images wanted than there are.
    """
    path = located(data_dir, file, _KERAS)
    arrays = read_npz(path, ("x_train", "y_train", "x_test", "y_test"))
    training = images_of(path, arrays["x_train"], arrays["y_train"], DIGITS)
    testing = images_of(path, arrays["x_test"], arrays["y_test"], DIGITS)
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


@source("npz")
def npz(
    file: str,
    data_dir: str | None = None,
    arrays: dict[str, list[str]] | None = None,
    classes: str | None = None,
    train: Count = None,
    dev: Count = None,
    test: Count = None,
) -> dict[str, Images]:
    """Images and labels from the arrays of an npz file; see `images_of` for their shapes and types.

    Args:
        file: relative to `data_dir`.
        data_dir: where the file lies.
        arrays: names of the images and the labels of each split, by default `{train: [x_train, y_train],
            test: [x_test, y_test]}`; a dev or test set that is not named is cut out of the training set.
        classes: name of an array with the names of the classes; by default their numbers.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set, where it is cut out.
        test: by default a fifth, where it is cut out.

    Raises:
        InputError: a file that is missing or damaged, lacks an array, or holds images or labels that are none.
    """
    path = located(data_dir, file, "where your images come from (numpy.savez writes such a file)")
    pairs = arrays or {"train": ["x_train", "y_train"], "test": ["x_test", "y_test"]}
    if "train" not in pairs or not set(pairs) <= {"train", "dev", "test"} or any(len(pair) != 2 for pair in pairs.values()):
        raise InputError(f"{path}: arrays={pairs}; give train and perhaps dev and test, each [name of images, name of labels]")
    wanted = [name for pair in pairs.values() for name in pair]
    found = read_npz(path, (*wanted, *([classes] if classes else [])))
    highest = max((int(found[pair[1]].max(initial=0)) for pair in pairs.values() if found[pair[1]].dtype.kind in "iu"), default=0)
    names = tuple(map(str, found[classes].tolist())) if classes else tuple(map(str, range(highest + 1)))
    sets = {split: images_of(path, found[pair[0]], found[pair[1]], names) for split, pair in pairs.items()}
    return cut(sets["train"], sets.get("dev"), sets.get("test"), train, dev, test, str(path))


def read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of an npz file; no pickle in it is ever opened.

    Raises:
        InputError: a missing or damaged file, one that holds objects, or one without one of the names.
    """
    with reading(path, "name a file as NumPy's savez writes it, without objects"), np.load(path, allow_pickle=False) as found:
        if missing := [name for name in names if name not in found]:
            raise InputError(f"{path}: lacks {', '.join(missing)}; it has {', '.join(found)}")
        return {name: found[name] for name in names}


def images_of(path: Path, pixels: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], names: tuple[str, ...]) -> Images:
    """Images of arrays as files have them, grey or with their channels first or last.

    Args:
        path: the file, for messages.
        pixels: `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]`, bytes, or floats from 0 to 1.
        labels: `[N]` or `[N, 1]` whole numbers from 0.
        names: of the classes.

    Raises:
        InputError: arrays that are not these; the message names the file.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[3] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.transpose(0, 3, 1, 2)
    real = pixels.dtype.kind == "f"
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or not (real or pixels.dtype == np.uint8):
        raise InputError(
            f"{path}: images are {pixels.dtype} of shape {pixels.shape}; expected bytes, or floats from 0 to 1, "
            "of shape [N, H, W], or with 1 or 3 channels"
        )
    if real and pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        raise InputError(f"{path}: images run from {pixels.min()} to {pixels.max()}; give bytes, or floats from 0 to 1")
    if labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels are {labels.dtype}; give whole numbers, the classes from 0")
    values = torch.from_numpy(np.require(pixels, np.float32 if real else np.uint8, ["C", "W"]))
    try:
        return Images(values, torch.from_numpy(labels.astype(np.int64)), names)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
