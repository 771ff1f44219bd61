"""Sources of images: splits, and files that are not what they should be."""

import pickle

import numpy as np
import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.images.data import Images, load_images, source
from asrcl.images.sources.arrays import digits, read_npz


def test_digits_come_in_three_splits_that_share_nothing():
    splits = load_images({"kind": "digits"}, None)
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [1000, 300, 497]
    pixels = splits["train"].pixels
    assert pixels.shape[1:] == (1, 8, 8) and (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)
    assert all(set(images.labels.tolist()) == set(range(10)) for images in splits.values())
    again = load_images({"kind": "digits"}, None)
    assert all(torch.equal(splits[name].pixels, again[name].pixels) for name in splits)


@pytest.fixture
def mnist(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {"x_train": generator.integers(0, 256, (50, 28, 28), dtype=np.uint8), "y_train": np.arange(50, dtype=np.uint8) % 10}
    arrays |= {"x_test": generator.integers(0, 256, (20, 28, 28), dtype=np.uint8), "y_test": np.arange(20, dtype=np.uint8) % 10}
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "mnist.npz", **arrays)
    return tmp_path, arrays


def test_mnist_takes_dev_from_the_end_of_the_training_set(mnist):
    folder, arrays = mnist
    splits = load_images({"kind": "mnist", "train": 30, "dev": 10, "test": 20}, str(folder))
    assert torch.equal(splits["train"].pixels[:, 0], torch.from_numpy(arrays["x_train"][:30]) / 255)
    assert torch.equal(splits["dev"].labels, torch.from_numpy(arrays["y_train"][40:]).long())
    assert len(splits["test"]) == 20


@pytest.mark.parametrize(
    "options, fault",
    [
        ({"kind": "digit"}, r"kind=digit.*digits.*mnist"),
        ({"kind": "mnist", "train": 45, "dev": 10}, r"mnist\.npz.*50.*train=45"),
        ({"kind": "mnist", "angle": 4}, r"mnist.*angle.*train, dev, test"),
        ({"kind": "mnist", "file": "none.npz"}, r"none\.npz"),
    ],
)
def test_what_cannot_be_loaded(mnist, options, fault):
    with pytest.raises(InputError, match=fault) as caught:
        load_images(options, str(mnist[0]))
    assert "\n" not in str(caught.value)


def test_a_folder_of_data_is_needed():
    with pytest.raises(InputError, match="data_dir"):
        load_images({"kind": "mnist"}, None)


class Caller:
    """What a hostile pickle does when it is opened."""

    called = False

    def __reduce__(self):
        return (Caller.call, ())

    @staticmethod
    def call():
        Caller.called = True
        return []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"no archive"),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(pickle.dumps(Caller())),
        lambda path: np.savez(path, x=np.array([Caller()], dtype=object), y=np.zeros(1)),
        lambda path: np.savez(path, x=np.zeros(1)),
    ],
    ids=["text", "cut", "pickle", "objects", "lacking"],
)
def test_a_damaged_archive_is_refused_and_no_pickle_is_opened(tmp_path, damage):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros(1000), y=np.zeros(1))
    damage(path)
    with pytest.raises(InputError, match=r"data\.npz") as caught:
        read_npz(path, ("x", "y"))
    assert "\n" not in str(caught.value) and not Caller.called


@pytest.mark.parametrize(
    "pixels, labels, fault",
    [
        ((4, 1, 2, 2), [0, 1, 2, 3], "0 to 3.*3 classes"),
        ((4, 2, 2), [0, 1, 2, 0], r"\(4, 2, 2\)"),
        ((4, 1, 2, 2), [0, 1], r"\(2,\)"),
        ((2, 1, 2, 2), [-1, 0], "-1"),
        ((2, 1, 2, 2), [[0], [1]], r"labels \(2, 1\)"),
        ((2, 1, 2, 2), [0.0, 1.0], "labels are torch.float32"),
        ((2, 28, 28, 3), [0, 1], r"\(2, 28, 28, 3\) have their channels last"),
    ],
)
def test_images_that_do_not_fit_their_labels(pixels, labels, fault):
    with pytest.raises(InputError, match=fault):
        Images(torch.zeros(pixels), torch.tensor(labels), ("a", "b", "c"))


def test_pixels_of_another_type():
    with pytest.raises(InputError, match=r"float64; give bytes"):
        Images(torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1]), ("a", "b"))


def own_source(data_dir: str | None = None, count: int = 4) -> dict[str, Images]:
    images = Images(torch.rand(count, 1, 6, 6), torch.arange(count) % 2, ("a", "b"))
    return {"train": images, "dev": images, "test": images}


@pytest.fixture
def registered(monkeypatch):
    from asrcl.images import data

    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))
    return data


def test_a_source_of_one_s_own(registered):
    source("mine")(own_source)
    splits = load_images({"kind": "mine", "count": 6, "size": 4}, None)
    assert len(splits["dev"]) == 6 and splits["train"].shape == (1, 4, 4)
    with pytest.raises(InputError, match=r"images \(mine\): count=many: expected"):
        load_images({"kind": "mine", "count": "many"}, None)
    for taken, function in (("mnist", own_source), ("mine", digits)):
        with pytest.raises(InputError, match=f"kind={taken}: .* has a source of this name"):
            source(taken)(function)


@pytest.mark.parametrize(
    "splits, fault",
    [
        ({}, "gives nothing"), ({"train": own_source()["train"]}, "expected train and test"),
        ({**own_source(), "test": Images(torch.zeros(1, 1, 5, 5), torch.tensor([0]), ("a", "b"))}, r"test \(1, 5, 5\)"),
        ({**own_source(), "test": Images(torch.zeros(1, 1, 6, 6), torch.tensor([0]), ("a",))}, "test .* with 1 classes"),
    ],
)  # fmt: skip
def test_splits_that_do_not_belong_together(registered, splits, fault):
    source("odd")(lambda data_dir=None: splits)
    with pytest.raises(InputError, match=fault):
        load_images({"kind": "odd"}, None)
