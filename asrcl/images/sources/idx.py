"""IDX files, the format of MNIST, Fashion-MNIST and KMNIST, compressed or not.

torchvision reads them as well, but neither compressed ones nor with a message for one that is cut short.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.images.data import Images, source
from asrcl.images.sources.arrays import DIGITS, images_of
from asrcl.images.splits import Count, cut, located

_BYTES = 0x08  # the type code of the format for bytes without sign


@source("idx")
def idx(
    data_dir: str | None = None,
    folder: str = "mnist",
    names: list[str] | None = None,
    train: Count = None,
    dev: Count = None,
    test: Count = None,
) -> dict[str, Images]:
    """Four IDX files, `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k`, each perhaps with `.gz`.

    Args:
        data_dir: where the folder lies.
        folder: that holds the files, relative to `data_dir`.
        names: of the classes, by default 0 to 9.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set.
        test: by default all of the test set.

    Raises:
        InputError: files that are missing, cut short, or no IDX files.
    """
    origin = "yann.lecun.com/exdb/mnist, github.com/zalandoresearch/fashion-mnist or github.com/rois-codh/kmnist"
    place, sets = located(data_dir, folder, origin), []
    for part in ("train", "t10k"):
        (path, pixels), (_, labels) = (read_idx(place, f"{part}-{kind}-ubyte", origin) for kind in ("images-idx3", "labels-idx1"))
        sets.append(images_of(path, pixels, labels, tuple(names or DIGITS)))
    return cut(sets[0], None, sets[1], train, dev, test, str(place))


def read_idx(folder: Path, name: str, origin: str) -> tuple[Path, np.ndarray[Any, Any]]:
    """The path and the bytes of an IDX file, compressed if there is no other, in the shape that its header states.

    Raises:
        InputError: a file that is missing, of another type, or longer or shorter than its header says.
    """
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.is_file() else packed
    if not path.is_file():
        raise InputError(f"{plain}: not found, nor with .gz; get it from {origin} and put it there")
    with reading(path, f"get it again from {origin}"), (gzip.open(path) if path == packed else open(path, "rb")) as stream:
        content = stream.read()
    if len(content) < 4 or content[:3] != bytes((0, 0, _BYTES)):
        raise InputError(f"{path}: does not begin as an IDX file of bytes does; get it again from {origin}")
    start = 4 + 4 * content[3]
    shape = tuple(int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4))
    if len(content) != (expected := start + math.prod(shape)):
        raise InputError(f"{path}: has {len(content)} bytes, its header says {expected}; get it again from {origin}")
    return path, np.frombuffer(content, np.uint8, offset=start).reshape(shape)
