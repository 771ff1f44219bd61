"""Folders of image files, Tiny-ImageNet, and sets of Hugging Face datasets."""

import logging

import datasets
import numpy as np
import pytest
import torch
from image_files import labels, pixels, write_pictures, write_tiny_imagenet
from PIL import Image

from asrcl.exceptions import InputError
from asrcl.images.data import load_images


def loaded(place, /, **options):
    return load_images({"kind": "folder", "folder": "mine", **options}, str(place))


def refusal(place, /, **options):
    with pytest.raises(InputError) as caught:
        loaded(place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_folder_for_each_class_is_cut_in_three(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "mine" / name, 10)
    splits = loaded(tmp_path)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [14, 2, 4] and splits["train"].classes == ("cat", "dog")
    found = {bytes(image.numpy().tobytes()) for images in splits.values() for image in images.store.tensor}
    assert found == {pixels(1, 8, 8, 3, seed=n)[0].transpose(2, 0, 1).tobytes() for n in range(10)}


@pytest.mark.parametrize("held", ["val", "valid", "validation", "dev"])
def test_splits_that_are_there_are_used(tmp_path, held):
    for split, count in (("train", 20), (held, 3), ("test", 4)):
        for name in ("cat", "dog"):
            write_pictures(tmp_path / "mine" / split / name, count)
    assert [len(loaded(tmp_path)[name]) for name in ("train", "dev", "test")] == [40, 6, 8]


def test_a_validation_set_alone_is_the_test_set(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "mine" / "train" / name, 10)
    write_pictures(tmp_path / "mine" / "val" / "dog", 3)  # some of the classes
    splits = loaded(tmp_path)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [18, 2, 3] and splits["test"].labels.tolist() == [1, 1, 1]
    write_pictures(tmp_path / "mine" / "val" / "fox", 1)
    assert "class fox is not in the training set" in refusal(tmp_path)


def test_tiny_imagenet(tmp_path):
    write_tiny_imagenet(tmp_path / "mine")
    splits = loaded(tmp_path, dev=4)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [16, 4, 8]
    assert splits["test"].labels.tolist() == [0, 1, 2, 3] * 2 and splits["test"].classes[3] == "n00000003"
    with Image.open(tmp_path / "mine" / "val" / "images" / "006.JPEG") as picture:
        assert np.array_equal(splits["test"].store.tensor[6].permute(1, 2, 0), np.asarray(picture))
    assert loaded(tmp_path, size=32)["train"].shape == (3, 32, 32)


@pytest.mark.parametrize(
    "line", ["000.JPEG", "000.JPEG\tn99999999\t0", "../../evil.JPEG\tn00000001\t0", "\tn00000001", "..\tn00000001", "a\x1b\tb"]
)
def test_a_damaged_list_of_tiny_imagenet(tmp_path, line):
    write_tiny_imagenet(tmp_path / "mine")
    with open(tmp_path / "mine" / "val" / "val_annotations.txt", "a") as listing:
        listing.write(f"{line}\n")
    assert "val_annotations.txt: line 9" in refusal(tmp_path)


def test_grey_and_colour_together_are_colour(tmp_path):
    write_pictures(tmp_path / "mine" / "cat", 5, mode="L")
    write_pictures(tmp_path / "mine" / "dog", 5)
    found = loaded(tmp_path)["train"]
    assert found.shape == (3, 8, 8)
    grey = found.store.tensor[found.labels == 0]
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert loaded(tmp_path, channels=1)["train"].shape == (1, 8, 8)
    write_pictures(tmp_path / "grey" / "cat", 10, mode="L")
    write_pictures(tmp_path / "grey" / "dog", 10, mode="L")
    assert loaded(tmp_path, folder="grey")["train"].shape == (1, 8, 8)


def test_sizes_that_differ_need_one(tmp_path):
    write_pictures(tmp_path / "mine" / "cat", 5)
    write_pictures(tmp_path / "mine" / "dog", 5, side=9)
    message = refusal(tmp_path)
    assert "8 x 8 and 9 x 9" in message and "scenario.images.size" in message and "dog/000.png" in message
    assert loaded(tmp_path, size=6)["train"].shape == (3, 6, 6)
    assert loaded(tmp_path, size=12, fit="pad")["train"].shape == (3, 12, 12)


def test_files_that_are_no_images(tmp_path, caplog):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "mine" / name, 10)
    path = tmp_path / "mine" / "dog" / "004.png"
    path.write_bytes(path.read_bytes()[:60])
    (tmp_path / "mine" / "dog" / "005.png").write_bytes(b"")
    message = refusal(tmp_path)
    assert "dog/004.png" in message and "skip_damaged: true" in message
    with caplog.at_level(logging.WARNING):
        splits = loaded(tmp_path, skip_damaged=True)
    assert sum(map(len, splits.values())) == 18 and "2 of 20" in caplog.text


def test_images_of_more_than_a_byte_are_refused(tmp_path):
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "mine" / name, 5)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "mine" / "cat" / "003.png")
    assert "mode I;16" in refusal(tmp_path)


def test_folders_that_are_none(tmp_path):
    assert str(tmp_path / "mine") in refusal(tmp_path)
    (tmp_path / "mine").mkdir()
    assert "a folder for each class" in refusal(tmp_path)
    (tmp_path / "mine" / "cat").mkdir()
    assert "a folder for each class" in refusal(tmp_path)
    assert "skip_damaged=perhaps" in refusal(tmp_path, skip_damaged="perhaps")


@pytest.fixture(scope="module")
def rows():
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    pictures = [Image.fromarray(picture) for picture in pixels(20, 8, 8, 3)]
    return datasets.Dataset.from_dict({"img": pictures, "label": labels(20, 2)}, features=features)


def of_datasets(place, **options):
    return load_images({"kind": "datasets", "path": "mine", **options}, str(place))


def test_datasets_saved_to_disk(tmp_path, rows):
    datasets.DatasetDict({"train": rows, "test": rows.select(range(6))}).save_to_disk(tmp_path / "mine")
    splits = of_datasets(tmp_path, dev=4)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [16, 4, 6] and splits["test"].classes == ("cat", "dog")
    assert torch.equal(splits["test"].store.tensor, torch.from_numpy(pixels(20, 8, 8, 3)[:6].transpose(0, 3, 1, 2)))
    assert splits["test"].labels.tolist() == [0, 1] * 3
    rows.save_to_disk(tmp_path / "single")
    assert [len(images) for images in of_datasets(tmp_path, path="single", size=4).values()] == [14, 2, 4]


def test_datasets_as_parquet_and_as_folders(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    rows.to_parquet(tmp_path / "mine" / "train.parquet")
    rows.select(range(4)).to_parquet(tmp_path / "mine" / "validation.parquet")
    assert [len(images) for images in of_datasets(tmp_path, dev=4).values()] == [16, 4, 4]  # validation is the test set
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pictures" / "train" / name, 10)
    assert of_datasets(tmp_path, path="pictures")["train"].classes == ("cat", "dog")


def test_columns_of_datasets(tmp_path, rows):
    numbered = rows.add_column("kind", [n % 3 for n in range(20)]).add_column("word", ["a"] * 20)
    numbered.save_to_disk(tmp_path / "mine")
    assert of_datasets(tmp_path, label="kind")["train"].classes == ("0", "1", "2")
    for options, fault in (({"label": "word"}, "word holds no classes"), ({"label": "none"}, "which column has the labels"),
                           ({"image": "none"}, "which column has the images")):  # fmt: skip
        with pytest.raises(InputError, match=fault):
            of_datasets(tmp_path, **options)
    numbered.remove_columns(["img"]).save_to_disk(tmp_path / "blind")
    with pytest.raises(InputError, match=r"which column has the images.*label, kind, word"):
        of_datasets(tmp_path, path="blind")


def test_sets_of_datasets_that_are_none(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.parquet").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"mine.*cannot be loaded") as caught:
        of_datasets(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rf"nowhere/none.*looked for it in {tmp_path}"):
        of_datasets(tmp_path, path="nowhere/none")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "untrained")
    with pytest.raises(InputError, match="has the splits test, none of which is train"):
        of_datasets(tmp_path, path="untrained")
