"""Tiny image sets in the formats that real ones have."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Bytes drawn at random."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count: int, classes: int = 10) -> np.ndarray:
    """Classes in turn."""
    return np.arange(count) % classes


def write_mnist(folder: Path, train: int = 50, test: int = 20) -> dict[str, np.ndarray]:
    """`mnist/mnist.npz` below a folder, and what is in it."""
    arrays = {"x_train": pixels(train, 28, 28), "y_train": labels(train).astype(np.uint8)}
    arrays |= {"x_test": pixels(test, 28, 28, seed=1), "y_test": labels(test).astype(np.uint8)}
    (folder / "mnist").mkdir(parents=True)
    np.savez(folder / "mnist" / "mnist.npz", **arrays)
    return arrays


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, packed: bool = False, side: int = 28, train: int = 60, test: int = 20) -> np.ndarray:
    """Four IDX files, and the training images in them."""
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        images = pixels(count, side, side)
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels(count))):
            content = idx_bytes(array)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return pixels(train, side, side)


def cifar_files(version: int, binary: bool, per_batch: int = 20, protocol: int = 2) -> dict[str, bytes]:
    """Files of CIFAR-10 or CIFAR-100 as they are distributed, with so many images in each."""
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"] if version == 10 else ["train", "test"]
    count = per_batch if version == 10 else max(per_batch, 100)
    files = {}
    for number, name in enumerate(batches):
        data, fine = pixels(count, 3072, seed=number), labels(count, version)
        coarse = fine // 5
        if binary:
            marks = [fine] if version == 10 else [coarse, fine]
            files[f"{name}.bin"] = np.concatenate([*(mark[:, None].astype(np.uint8) for mark in marks), data], axis=1).tobytes()
        else:
            content = {b"data": data, b"batch_label": name.encode()}
            content |= {b"labels": fine.tolist()} if version == 10 else {}
            content |= {b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()} if version == 100 else {}
            files[name] = pickle.dumps(content, protocol=protocol)
    names = {"label_names": [f"class{n}" for n in range(10)]}
    if version == 100:
        names = {"fine_label_names": [f"fine{n}" for n in range(100)], "coarse_label_names": [f"coarse{n}" for n in range(20)]}
    if binary:
        for key, listed in names.items():
            files["batches.meta.txt" if version == 10 else f"{key}.txt"] = "\n".join(listed).encode()
    else:
        meta = {key.encode(): [name.encode() for name in listed] for key, listed in names.items()}
        files["batches.meta" if version == 10 else "meta"] = pickle.dumps(meta, protocol=protocol)
    return files


def write_files(path: Path, files: dict[str, bytes]) -> None:
    """Files in a folder, or in an archive where the path ends with .tar.gz."""
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"somewhere/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)


def write_svhn(folder: Path, count: int = 20) -> None:
    """Both MATLAB files; a 0 is labelled 10."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        marks = np.where(labels(count) == 0, 10, labels(count)).astype(np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": pixels(count, 32, 32, 3).transpose(1, 2, 3, 0), "y": marks[:, None]})


def write_pictures(folder: Path, count: int, side: int = 8, mode: str = "RGB", ending: str = "png", first: int = 0) -> None:
    """So many pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        array = pixels(1, side, side, *([3] if mode == "RGB" else []), seed=number)[0]
        Image.fromarray(array).save(folder / f"{number:03d}.{ending}")


def write_tiny_imagenet(folder: Path, classes: int = 4, side: int = 64) -> None:
    """The layout of Tiny-ImageNet: training images by class, validation images with a list, a test set without labels."""
    names = [f"n{number:08d}" for number in range(classes)]
    for name in names:
        write_pictures(folder / "train" / name / "images", 5, side, ending="JPEG")
        (folder / "train" / name / f"{name}_boxes.txt").write_text("000.JPEG\t0\t0\t9\t9\n")
    write_pictures(folder / "val" / "images", 2 * classes, side, ending="JPEG")
    lines = [f"{number:03d}.JPEG\t{names[number % classes]}\t0\t0\t9\t9\n" for number in range(2 * classes)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    write_pictures(folder / "test" / "images", 3, side, ending="JPEG")


def write_cifar10_jpeg(folder: Path, per_class: int = 4) -> None:
    """JPEG files of ten classes, joined in an npz."""
    folder.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {"classes": np.array([f"class{n}" for n in range(10)])}
    for split in ("train", "test"):
        files = []
        for number in range(10 * per_class):
            stream = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), 20 * (number // per_class), np.uint8)).save(stream, "JPEG")
            files.append(stream.getvalue())
        arrays[f"{split}_bytes"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_ends"] = np.cumsum([len(file) for file in files])
        arrays[f"{split}_labels"] = np.repeat(np.arange(10), per_class).astype(np.uint8)
    np.savez(folder / "cifar10_jpeg.npz", **arrays)


def write_omniglot(folder: Path, alphabets: tuple[str, ...] = ("Greek", "Latin"), characters: int = 3, drawers: int = 20) -> None:
    """Characters drawn by some people, with the list beside them; the mean of an image tells its drawer."""
    folder.mkdir(parents=True)
    rows, images = ["set,alphabet,character,drawer,src"], []
    for alphabet in alphabets:
        for character in range(characters):
            for drawer in range(1, drawers + 1):
                rows.append(f"1,{alphabet},character{character:02d},{drawer},x.png")
                images.append(np.full((28, 28), drawer, np.uint8))
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    np.savez(folder / "omniglot_small.npz", x28=np.stack(images))
