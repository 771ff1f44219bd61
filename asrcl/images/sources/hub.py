"""Image sets as Hugging Face `datasets` has them: saved to disk, as parquet files, as folders, or by their name on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.images.data import Images, source
from asrcl.images.shape import Shape
from asrcl.images.sources.folder import read_picture, stacked
from asrcl.images.splits import Count, cut

_TRAIN: Final = ("train", "training")
_HELD: Final = ("validation", "valid", "val", "dev")


@source("datasets")
def datasets(
    path: str,
    shape: Shape,
    data_dir: str | None = None,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    train: Count = None,
    dev: Count = None,
    test: Count = None,
) -> dict[str, Images]:
    """Images of `datasets`, whose splits are `train`, and perhaps `validation` and `test`.

    Where `train` and `validation` are alone, `validation` is the test set and dev images are cut out of the training set.

    Args:
        path: relative to `data_dir`, a folder of `save_to_disk`, of parquet files or of images, or else a name on the hub, from
            which it is fetched (or taken from the hub's cache, with HF_HUB_OFFLINE=1 from there alone).
        shape: that all images are brought into; without a size they must have one already.
        data_dir: where the folder lies.
        config: of a set that has several.
        image: the column of the images; by default the only one of that type.
        label: the column of the labels, whole numbers or classes; by default the only one of classes, or `label`.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set, where it is cut out.
        test: by default a fifth, where it is cut out.

    Raises:
        InputError: a set that cannot be read, has no training set, or lacks a column.
    """
    found = _open(path, data_dir, config)
    names = {wanted: next((name for name in known if name in found), None)
             for wanted, known in (("train", _TRAIN), ("val", _HELD), ("test", ("test",)))}  # fmt: skip
    if names["train"] is None:
        raise InputError(f"{path}: has the splits {', '.join(map(str, found))}, none of which is train")
    sets = {wanted: _images(path, found[name], image, label, shape) for wanted, name in names.items() if name is not None}
    if "test" not in sets and "val" in sets:
        sets["test"] = sets.pop("val")
    return cut(sets["train"], sets.get("val"), sets.get("test"), train, dev, test, path)


def _open(path: str, data_dir: str | None, config: str | None) -> Mapping[Any, Any]:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    local = Path(data_dir or "").expanduser() / path
    remedy = f"looked for it in {local}, then on huggingface.co; name a folder below data_dir or a set on the hub"
    with reading(path, remedy, "cannot be loaded as a set of datasets"):
        saved = any((local / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
        found = load_from_disk(str(local)) if saved else load_dataset(str(local) if local.exists() else path, config)
    if isinstance(found, Dataset):
        return {"train": found}
    if not isinstance(found, DatasetDict):
        raise InputError(f"{path}: {type(found).__name__} is no set with splits")
    return found


def _images(path: str, rows: Any, image: str | None, label: str | None, shape: Shape) -> Images:
    from datasets import ClassLabel, Image, Value

    features = rows.features
    pictured = _column(path, features, image, [name for name, feature in features.items() if isinstance(feature, Image)], "image")
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = _column(path, features, label, ["label"] if len(classes) != 1 and "label" in features else classes, "label")
    feature, labels = features[named], rows[named][:]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
    elif isinstance(feature, Value) and feature.dtype.startswith(("int", "uint")):
        names = tuple(map(str, range(max(labels, default=-1) + 1)))
    else:
        raise InputError(f"{path}: column {named} holds no classes; name one of whole numbers (label=...)")
    with reading(path, "the set is damaged; fetch it again"):
        pictures = [shape.of_tensor(read_picture(picture), f"{path}: image {n}") for n, picture in enumerate(rows[pictured])]
    places = [f"{path}: image {number}" for number in range(len(pictures))]
    return Images(stacked(pictures, places), torch.tensor(labels, dtype=torch.long), names)


def _column(path: str, features: Mapping[str, Any], wanted: str | None, found: list[str], option: str) -> str:
    """The column that is wanted, or else the only one that was found."""
    name = wanted or (found[0] if len(found) == 1 else None)
    if name not in features:
        raise InputError(f"{path}: which column has the {option}s? It has {', '.join(features)}; name one ({option}=...)")
    return str(name)
