"""Sources that read arrays: npz, IDX, MATLAB, JPEG files in an npz, Omniglot; tiny files, and real ones where they are."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import idx_bytes, labels, pixels, write_cifar10_jpeg, write_idx, write_omniglot, write_svhn

from asrcl.exceptions import InputError
from asrcl.images.data import load_images

DATA = Path(os.environ.get("ASRCL_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))


def loaded(folder, /, **options):
    return load_images(options, str(folder))


def refusal(folder, /, **options):
    with pytest.raises(InputError) as caught:
        loaded(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (3, 6, 5), (1, 6, 5)])
@pytest.mark.parametrize("real", [False, True])
def test_npz_in_every_layout(tmp_path, shape, real):
    images = pixels(30, *shape)
    stored, names = images / np.float64(255) if real else images, np.array(["a", "b", "c"])
    np.savez(tmp_path / "own.npz", x=stored, y=labels(30, 3)[:, None], c=names)
    splits = loaded(tmp_path, kind="npz", file="own.npz", arrays={"train": ["x", "y"]}, classes="c", dev=6, test=3)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [21, 6, 3] and splits["train"].classes == ("a", "b", "c")
    assert splits["train"].shape == ((3, 6, 5) if 3 in shape else (1, 6, 5))
    first = torch.from_numpy(images).float() / 255
    first = first[:, None] if len(shape) == 2 else first.permute(0, 3, 1, 2) if shape[2] == 3 else first
    found = torch.cat([splits[name].pixels for name in ("train", "dev", "test")])
    torch.testing.assert_close(found.flatten(1).sum(1).sort().values, first.flatten(1).sum(1).sort().values)


def test_npz_with_sets_of_its_own(tmp_path):
    arrays = {f"{part}_{split}": array for split, count in (("train", 9), ("dev", 5), ("test", 4))
              for part, array in (("x", pixels(count, 4, 4)), ("y", labels(count, 2)))}  # fmt: skip
    np.savez(tmp_path / "own.npz", **arrays)
    splits = loaded(tmp_path, kind="npz", file="own.npz", arrays={s: [f"x_{s}", f"y_{s}"] for s in ("train", "dev", "test")})
    for split, images in splits.items():
        assert torch.equal(images.pixels[:, 0] * 255, torch.from_numpy(arrays[f"x_{split}"]).float())
        assert images.labels.tolist() == arrays[f"y_{split}"].tolist()


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"x_train": np.zeros((9, 4))}, r"own\.npz.*shape \(9, 4\)"),
        ({"x_train": np.zeros((9, 2, 4, 4))}, r"own\.npz.*\(9, 2, 4, 4\).*1 or 3 channels"),
        ({"x_train": np.zeros((9, 4, 4), np.int16)}, r"own\.npz.*int16"),
        ({"x_train": np.full((9, 4, 4), 2.0)}, r"own\.npz.*2\.0.*0 to 1"),
        ({"x_train": np.full((9, 4, 4), np.nan)}, r"own\.npz.*nan"),
        ({"x_train": np.zeros((8, 4, 4))}, r"own\.npz.*\(8, 1, 4, 4\).*\(9,\)"),
        ({"y_train": labels(9, 2) - 1}, r"own\.npz.*-1"),
        ({"y_train": labels(9, 2) / 2}, r"own\.npz.*float64"),
        ({"y_train": labels(9, 3), "c": np.array(["a", "b"])}, r"own\.npz.*0 to 2.*2 classes"),
        ({"x_test": np.zeros((4, 5, 5))}, r"train \(1, 4, 4\).*test \(1, 5, 5\)"),
    ],
)
def test_arrays_that_are_no_images(tmp_path, change, fault):
    arrays = {"x_train": pixels(9, 4, 4), "y_train": labels(9, 2), "x_test": pixels(4, 4, 4), "y_test": labels(4, 2)} | change
    np.savez(tmp_path / "own.npz", **arrays)
    options = {"classes": "c"} if "c" in arrays else {}
    with pytest.raises(InputError, match=fault) as caught:
        loaded(tmp_path, kind="npz", file="own.npz", dev=2, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, fault",
    [
        ({}, "lacks file"), ({"file": 3}, "file=3"), ({"file": "own.npz", "arrays": {"dev": ["a", "b"]}}, "give train"),
        ({"file": "own.npz", "arrays": {"train": ["a"]}}, "name of labels"),
        ({"file": "own.npz", "arrays": {"train": ["a", "b"]}}, "lacks a, b"),
        ({"file": "own.npz", "train": "many"}, "train=many"), ({"file": "own.npz", "angle": 3}, r"angle.*arrays.*size"),
    ],
)  # fmt: skip
def test_options_that_npz_does_not_have(tmp_path, options, fault):
    np.savez(tmp_path / "own.npz", x=pixels(9, 4, 4))
    with pytest.raises(InputError, match=fault):
        loaded(tmp_path, kind="npz", **options)


@pytest.mark.parametrize(
    "kind, place",
    [("idx", "mnist"), ("svhn", "svhn/train_32x32.mat"), ("cifar10_jpeg", "cifar10_jpeg.npz"), ("omniglot", "omniglot_small.npz"),
     ("mnist", "mnist.npz"), ("cifar", "cifar-10-batches-py")],
)  # fmt: skip
def test_a_missing_file_says_where_it_belongs_and_where_it_comes_from(tmp_path, kind, place):
    message = refusal(tmp_path, kind=kind)
    assert str(tmp_path) in message and place in message and "not found" in message
    assert any(origin in message for origin in (".com/", ".edu/", ".ca/", ".org/"))
    with pytest.raises(InputError, match="data_dir is not set"):
        load_images({"kind": kind}, None)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path, packed):
    images = write_idx(tmp_path / "fashion", packed)
    splits = loaded(tmp_path, kind="idx", folder="fashion", dev=10, names=[f"item{n}" for n in range(10)])
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [50, 10, 20] and splits["test"].classes[3] == "item3"
    found = {bytes(image.mul(255).byte().numpy().tobytes()) for name in ("train", "dev") for image in splits[name].pixels}
    assert found == {image.tobytes() for image in images}


@pytest.mark.parametrize(
    "damage, fault",
    [
        (lambda content: content[:-5], r"47051 bytes.*47056"), (lambda content: content + b"x", "47057 bytes"),
        (lambda content: content[:7], "7 bytes"), (lambda content: b"no IDX file", "does not begin"),
        (lambda content: b"", "does not begin"),
        (lambda content: bytes((0, 0, 13)) + content[3:], "does not begin"),
        (lambda content: idx_bytes(pixels(60, 28, 27)), r"\(1, 28, 27\).*\(1, 28, 28\)"),
        (lambda content: idx_bytes(pixels(60, 3)), r"shape \(60, 3\)"),
        (lambda content: idx_bytes(pixels(59, 28, 28)), r"\(59, 1, 28, 28\)"),
    ],
)  # fmt: skip
def test_idx_files_that_are_damaged(tmp_path, damage, fault):
    write_idx(tmp_path / "mnist")
    path = tmp_path / "mnist" / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=fault) as caught:
        loaded(tmp_path, kind="idx")
    assert "\n" not in str(caught.value)


def test_idx_cut_short_while_compressed(tmp_path):
    write_idx(tmp_path / "mnist", packed=True)
    path = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    assert "t10k-labels-idx1-ubyte.gz" in refusal(tmp_path, kind="idx")
    path.unlink()
    assert "nor with .gz" in refusal(tmp_path, kind="idx")


def test_idx_labels_out_of_range(tmp_path):
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels(60, 11)))
    assert "0 to 10, but there are 10 classes" in refusal(tmp_path, kind="idx")


def test_svhn_has_ten_for_zero(tmp_path):
    write_svhn(tmp_path / "svhn")
    splits = loaded(tmp_path, kind="svhn", dev=5)
    assert splits["test"].labels.tolist() == labels(20).tolist() and splits["test"].shape == (3, 32, 32)
    assert torch.equal(splits["test"].store.tensor, torch.from_numpy(pixels(20, 32, 32, 3).transpose(0, 3, 1, 2)))
    path = tmp_path / "svhn" / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:300])
    assert "train_32x32.mat" in refusal(tmp_path, kind="svhn")


def test_cifar10_as_jpeg(tmp_path):
    write_cifar10_jpeg(tmp_path / "cifar10_jpeg")
    splits = loaded(tmp_path, kind="cifar10_jpeg", dev=10)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [30, 10, 40]
    assert all(images.labels.bincount().unique().numel() == 1 for images in splits.values())  # of every class as many
    for images in splits.values():
        torch.testing.assert_close(images.pixels.mean((1, 2, 3)) * 255, 20.0 * images.labels, atol=1.0, rtol=0)
    path = tmp_path / "cifar10_jpeg" / "cifar10_jpeg.npz"
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **{**arrays, "train_ends": arrays["train_ends"] - 100})
    assert "cifar10_jpeg.npz" in refusal(tmp_path, kind="cifar10_jpeg")


def test_omniglot_keeps_drawers_apart(tmp_path):
    write_omniglot(tmp_path / "omniglot_small")
    splits = loaded(tmp_path, kind="omniglot", alphabet="Latin")
    drawers = {name: {round(float(value) * 255) for value in images.pixels.mean((1, 2, 3))} for name, images in splits.items()}
    assert drawers == {"train": set(range(1, 15)), "dev": {15, 16}, "test": {17, 18, 19, 20}}
    assert splits["train"].classes == ("Latin/character00", "Latin/character01", "Latin/character02")
    assert splits["train"].labels.bincount().tolist() == [14, 14, 14]
    both = loaded(tmp_path, kind="omniglot", train=10)
    assert len(both["train"].classes) == 6 and len(both["train"]) == 60
    assert "alphabet=Klingon" in refusal(tmp_path, kind="omniglot", alphabet="Klingon")
    assert "20" in refusal(tmp_path, kind="omniglot", train=18)
    (tmp_path / "omniglot_small" / "manifest.csv").write_text("alphabet,character,drawer\nGreek,a,1\n")
    assert "lists 1" in refusal(tmp_path, kind="omniglot")
    (tmp_path / "omniglot_small" / "manifest.csv").write_text("what,else\nGreek,a\n")
    assert "manifest.csv" in refusal(tmp_path, kind="omniglot")


@pytest.mark.parametrize(
    "options, sizes, shape, classes",
    [
        ({"kind": "mnist"}, [5000, 1000, 2000], (1, 28, 28), 10),
        ({"kind": "cifar10_jpeg"}, [18000, 2000, 5000], (3, 32, 32), 10),
        ({"kind": "omniglot", "alphabet": "Korean"}, [560, 80, 160], (1, 28, 28), 40),
    ],
)
def test_real_data(options, sizes, shape, classes):
    folder = "omniglot_small" if options["kind"] == "omniglot" else options["kind"]
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} in {DATA}; ASRCL_DATA names the folder of data")
    splits = loaded(DATA, **options)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == sizes
    for images in splits.values():
        assert images.shape == shape and images.labels.unique().tolist() == list(range(classes))
    assert 0.02 < float(splits["test"].pixels.mean()) < 0.6
