"""Street View House Numbers (Netzer et al., 2011): the cropped digits as MATLAB files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asrcl.experiment.reading import reading
from asrcl.images.data import Images, source
from asrcl.images.sources.arrays import DIGITS, images_of
from asrcl.images.splits import Count, cut, located


@source("svhn")
def svhn(
    data_dir: str | None = None, folder: str = "svhn", train: Count = None, dev: Count = None, test: Count = None
) -> dict[str, Images]:
    """SVHN from `train_32x32.mat` and `test_32x32.mat`: 32 x 32 pixels in colour, ten digits.

    Args:
        data_dir: where the folder lies.
        folder: that holds the files, relative to `data_dir`.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set.
        test: by default all of the test set.

    Raises:
        InputError: files that are missing or damaged.
    """
    origin = "ufldl.stanford.edu/housenumbers"
    paths = [located(data_dir, f"{folder}/{split}_32x32.mat", origin) for split in ("train", "test")]
    training, testing = (_read(path, origin) for path in paths)
    return cut(training, None, testing, train, dev, test, str(paths[0].parent))


def _read(path: Path, origin: str) -> Images:
    from scipy.io import loadmat

    with reading(path, f"get it again from {origin}"):
        found = loadmat(str(path), variable_names=("X", "y"))
        pixels, labels = found["X"].transpose(3, 0, 1, 2), found["y"].reshape(-1)
    return images_of(path, pixels, np.where(labels == 10, 0, labels), DIGITS)  # the file has 10 where a 0 is seen
