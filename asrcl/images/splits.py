"""Training, dev and test images of sets that come with two of them, or with one; and files that are where they should be."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.images.data import Images

Count = int | float | None
"""So many images, this share of them (a number below 1), or all there are."""

DEV = 0.1  # share of the training set, where there is no dev set
TEST = 0.2  # share of all images, where there is no test set


def located(data_dir: str | None, name: str, origin: str) -> Path:
    """A file or folder of data.

    Args:
        data_dir: folder of data.
        name: below that folder.
        origin: where to get the data.

    Raises:
        InputError: no folder is set, or nothing is there; the message says where it is looked for and where to get it.
    """
    if data_dir is None and not Path(name).is_absolute():
        raise InputError(f"data_dir is not set; name the folder that holds {name} (data_dir=DIR); get it from {origin}")
    path = Path(data_dir or "").expanduser() / name
    if not path.exists():
        raise InputError(f"{path}: not found; get it from {origin} and put it there, or set data_dir or the source's option")
    return path


def stratified(labels: Tensor, count: int, seed: int) -> Tensor:
    """Positions of `count` images, of every class in proportion, in ascending order.

    With one seed a smaller count takes a subset of what a larger one takes.

    Args:
        labels: `[N]`.
        count: from 0 to N.
        seed: of the draw within the classes.
    """
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = drawn[labels[drawn].argsort(stable=True)]
    sizes = labels.unique(return_counts=True)[1]
    places = torch.cat([(torch.arange(int(size)) + 0.5) / int(size) for size in sizes]) if len(sizes) else torch.empty(0)
    # Equal places of equally large classes are taken as drawn, not class by class.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return by_class[order[places[order].argsort(stable=True)]][:count].sort().values


def cut(
    training: Images, held: Images | None, testing: Images | None, train: Count, dev: Count, test: Count, where: str
) -> dict[str, Images]:
    """The three splits, drawn class by class and always in the same way where there are fewer sets than splits.

    Args:
        training: the training set.
        held: the dev set; None takes `dev` out of the training set, by default a tenth.
        testing: the test set; None takes `test` out of the training set, by default a fifth.
        train: how many of the training images that are left.
        dev: how many images of the dev set, or of the training set.
        test: how many images of the test set, or of the training set.
        where: what to name in messages.

    Raises:
        InputError: a number of images that there are not.
    """
    if testing is None:
        testing, training = _parted(training, TEST if test is None else test, f"{where}: test={test}")
        test = None
    if held is None:
        held, training = _parted(training, DEV if dev is None else dev, f"{where}: dev={dev}")
        dev = None
    wanted = {"train": (training, train), "dev": (held, dev), "test": (testing, test)}
    return {split: _some(images, count, f"{where}: {split}={count}") for split, (images, count) in wanted.items()}


def _some(images: Images, count: Count, where: str) -> Images:
    return images if count is None else _parted(images, count, where, rest=False)[0]


def _parted(images: Images, count: Count, where: str, rest: bool = True) -> tuple[Images, Images]:
    """So many of the images, and the others, of which there must be some if `rest`."""
    assert count is not None
    share, most = isinstance(count, float), len(images) - 1 if rest else len(images)
    number = round(count * len(images)) if share and 0 < count < 1 else 0 if share else int(count)
    if not 1 <= number <= most:
        raise InputError(f"{where}: there are {len(images)} images; give a number from 1 to {most}, or a share between 0 and 1")
    chosen = stratified(images.labels, number, 0)
    others = torch.ones(len(images), dtype=torch.bool)
    others[chosen] = False
    return images.take(chosen), images.take(others.nonzero().flatten())
