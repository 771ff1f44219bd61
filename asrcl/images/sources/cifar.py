"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) as distributed: the python and the binary version, unpacked or as .tar.gz."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.images.data import Images, source
from asrcl.images.sources.arrays import images_of
from asrcl.images.sources.unpickle import load_plain
from asrcl.images.splits import Count, cut, located

_ORIGIN: Final = "www.cs.toronto.edu/~kriz/cifar.html"
_LARGEST: Final = 2**30  # bytes of one file in an archive; those of CIFAR have less than a fifth of that
_PLACES: Final = {
    10: ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    100: ("cifar-100-python", "cifar-100-python.tar.gz", "cifar-100-binary", "cifar-100-binary.tar.gz"),
}
_TRAINING: Final = {10: tuple(f"data_batch_{number}" for number in range(1, 6)), 100: ("train",)}
_TESTING: Final = {10: "test_batch", 100: "test"}
Read = Callable[[str], bytes | None]
"""The content of a file of the set, None where there is no such file."""


@source("cifar")
def cifar(
    data_dir: str | None = None,
    version: int = 10,
    labels: Literal["fine", "coarse"] = "fine",
    file: str | None = None,
    train: Count = None,
    dev: Count = None,
    test: Count = None,
) -> dict[str, Images]:
    """CIFAR-10 or CIFAR-100: 32 x 32 pixels in colour. Python files are read by an unpickler that calls nothing.

    Args:
        data_dir: where the set lies.
        version: 10 or 100.
        labels: of CIFAR-100, the 100 classes or the 20 superclasses.
        file: the folder or the .tar.gz, relative to `data_dir`; by default the first that is there of those one can download.
        train: see `asrcl.images.splits.cut`, as for `dev` and `test`.
        dev: by default a tenth of the training set.
        test: by default all of the test set.

    Raises:
        InputError: files that are missing, damaged, of another version, or call something.
    """
    if version not in _PLACES or (version == 10 and labels == "coarse"):
        raise InputError(f"scenario.images (cifar): version={version} with labels={labels}; give 10, or 100 with fine or coarse")
    names = (file,) if file else _PLACES[version]
    there = [name for name in names if data_dir is not None and (Path(data_dir).expanduser() / name).exists()]
    path = located(data_dir, there[0] if there else names[0], f"{_ORIGIN} (as {', '.join(_PLACES[version])})")
    read = _folder(path) if path.is_dir() else _archive(path)
    binary = read(f"{_TESTING[version]}.bin") is not None
    parse, ending = (_binary, ".bin") if binary else (_python, "")
    classes = _names(path, read, version, labels, binary)
    sets = []
    for wanted in (_TRAINING[version], (_TESTING[version],)):
        parts = []
        for name in wanted:
            content = read(f"{name}{ending}")
            if content is None:
                raise InputError(f"{path}: holds no {name}{ending}; get CIFAR-{version} again from {_ORIGIN}")
            parts.append(parse(path / name, content, version, labels))
        pixels, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        sets.append(images_of(path, pixels.reshape(-1, 3, 32, 32), numbers, classes))
    return cut(sets[0], None, sets[1], train, dev, test, str(path))


def _folder(path: Path) -> Read:
    def read(name: str) -> bytes | None:
        with reading(path / name, f"get it again from {_ORIGIN}"):
            return (path / name).read_bytes() if (path / name).is_file() else None

    return read


def _archive(path: Path) -> Read:
    """Files of an archive by the last part of their names, read into memory in one pass; nothing is unpacked to disk."""
    batches = {name for names in (*_TRAINING.values(), _TESTING.values()) for name in names}
    wanted = batches | {f"{name}.bin" for name in batches}
    wanted |= {"batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt", "coarse_label_names.txt"}
    files: dict[str, bytes] = {}
    with reading(path, f"get it again from {_ORIGIN}"), tarfile.open(path) as archive:
        for member in archive:
            if not member.isfile() or (name := member.name.rpartition("/")[2]) not in wanted:
                continue
            if member.size > _LARGEST:
                raise InputError(f"{path}: {member.name} has {member.size} bytes, no file of CIFAR is so large")
            stream = archive.extractfile(member)
            assert stream is not None  # it is a file
            files[name] = stream.read()
    return files.get


def _pickled(path: Path, content: bytes, *keys: str) -> dict[str, Any]:
    """Entries of a pickled dict, whose keys are bytes or texts."""
    with reading(path, f"get it again from {_ORIGIN}"):
        try:
            found = load_plain(content)
        except InputError as error:
            raise InputError(f"{path}: {error}; nothing in it was called; get it again from {_ORIGIN}") from error
        entries = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        return {key: entries[key] for key in keys}


def _python(path: Path, content: bytes, version: int, labels: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    key = "labels" if version == 10 else f"{labels}_labels"
    entries = _pickled(path, content, "data", key)
    pixels, numbers = entries["data"], entries[key]
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: data are no bytes of shape [N, 3072]; get it again from {_ORIGIN}")
    if not isinstance(numbers, list) or len(numbers) != len(pixels) or not all(type(number) is int for number in numbers):
        raise InputError(f"{path}: {key} are not {len(pixels)} whole numbers; get it again from {_ORIGIN}")
    return pixels, np.array(numbers, dtype=np.int64)


def _binary(path: Path, content: bytes, version: int, labels: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Records of one label, or a coarse and a fine one, and the pixels channel by channel."""
    marks = 1 if version == 10 else 2
    if not content or len(content) % (marks + 3072):
        raise InputError(f"{path}.bin: {len(content)} bytes are no records of {marks + 3072}; get it again from {_ORIGIN}")
    records = np.frombuffer(content, np.uint8).reshape(-1, marks + 3072)
    return records[:, marks:], records[:, 0 if labels == "coarse" else marks - 1].astype(np.int64)


def _names(path: Path, read: Read, version: int, labels: str, binary: bool) -> tuple[str, ...]:
    """Names of the classes; their numbers where the file with the names is not there."""
    key = "label_names" if version == 10 else f"{labels}_label_names"
    file = ("batches.meta.txt" if version == 10 else f"{key}.txt") if binary else ("batches.meta" if version == 10 else "meta")
    content, count = read(file), 20 if labels == "coarse" else version
    if content is None:
        return tuple(map(str, range(count)))
    if binary:
        names = content.decode("utf-8", "replace").split()
    else:
        listed = _pickled(path / file, content, key)[key]
        names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in listed]
    if len(names) != count:
        raise InputError(f"{path / file}: has {len(names)} names of classes, not {count}; get it again from {_ORIGIN}")
    return tuple(names)
