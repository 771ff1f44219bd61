"""What makes domains of images."""

from hashlib import sha256

import pytest
import torch

from asrcl.contract.protocols import Batch, Domain, Task
from asrcl.exceptions import InputError
from asrcl.images.data import Images, load_images
from asrcl.images.domain import ImageDomain, of_classes, permuted, rotated
from asrcl.images.task import ImageTask


@pytest.fixture(scope="module")
def images():
    return load_images({"kind": "digits"}, None)["test"]


def test_protocols_are_met(images):
    domain = ImageDomain("digits", {"train": images})
    assert isinstance(domain, Domain) and isinstance(domain.item("train", 3), Batch)
    assert isinstance(ImageTask({}), Task)


def test_a_permutation_moves_every_pixel_alike_and_loses_none(images):
    found = permuted(images, 5)
    assert torch.equal(found.pixels.flatten(1).sort().values, images.pixels.flatten(1).sort().values)
    assert not torch.equal(found.pixels, images.pixels)
    assert torch.equal(permuted(images, 5).pixels, found.pixels) and not torch.equal(permuted(images, 6).pixels, found.pixels)
    numbered = Images(torch.arange(64.0).view(1, 1, 8, 8).expand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), ("a",))
    first, second = permuted(numbered, 1).pixels
    assert torch.equal(first, second)  # one order for all images


def test_channels_are_permuted_together():
    colour = Images(torch.arange(48.0).view(1, 3, 4, 4), torch.zeros(1, dtype=torch.long), ("a",))
    found = permuted(colour, 1).pixels[0].flatten(1)
    assert any(not set(channel.tolist()) <= set(range(16 * n, 16 * n + 16)) for n, channel in enumerate(found))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_rotation_is_counter_clockwise(images, quarters):
    expected = images.pixels.rot90(quarters, (2, 3))
    torch.testing.assert_close(rotated(images, 90 * quarters).pixels, expected, rtol=0, atol=1e-5)


def as_bytes(images):
    return Images((images.pixels * 255).round().byte(), images.labels, images.classes)


def test_bytes_are_floats_when_they_are_asked_for(images):
    stored = as_bytes(images)
    chosen = torch.tensor([3, 3, 0])
    assert stored.at(chosen).dtype == torch.float32
    assert torch.equal(stored.at(chosen), stored.store.tensor[chosen] / 255)
    assert torch.equal(stored.pixels, stored.store.tensor / 255)


@pytest.mark.parametrize("change", [lambda images: permuted(images, 3), lambda images: rotated(images, 30)])
def test_a_changed_domain_shares_the_pixels_of_the_plain_one(images, change):
    stored = as_bytes(images)
    changed = change(stored)
    assert changed.store is stored.store and ImageDomain("a", {"train": changed}).fingerprint("train")
    assert "_ready" not in vars(changed)  # nothing is carried out to load or to hash
    torch.testing.assert_close(changed.pixels, change(images).pixels, rtol=0, atol=1.01 / 255)  # rounded to bytes at most twice


def test_one_change_after_another(images):
    both = permuted(rotated(images, 90), 4)
    torch.testing.assert_close(both.pixels, permuted(Images(rotated(images, 90).pixels, images.labels, images.classes), 4).pixels)
    other = rotated(permuted(images, 4), 90)
    assert not torch.allclose(both.pixels, other.pixels)
    assert [change.costly for change in other.changes] == [False, True]
    torch.testing.assert_close(other.pixels, permuted(images, 4).pixels.rot90(1, (2, 3)), rtol=0, atol=1e-5)
    chosen = torch.tensor([5, 2])
    assert torch.equal(both.take(chosen).pixels, both.pixels[chosen])


def test_pixels_are_hashed_once_for_all_domains(images, monkeypatch):
    stored = as_bytes(images)
    hashes = []
    monkeypatch.setattr("asrcl.images.data.hashlib.sha256", lambda *parts: hashes.append(parts) or sha256(*parts))
    domains = [ImageDomain(str(seed), {"train": permuted(stored, seed)}) for seed in range(5)]
    prints = {domain.fingerprint("train") for domain in domains}
    assert len(prints) == 5 and len([parts for parts in hashes if b"uint8" in parts[0]]) == 1


def test_some_classes(images):
    relabelled, kept = of_classes(images, [7, 2], relabel=True), of_classes(images, [7, 2], relabel=False)
    assert torch.equal(relabelled.pixels, kept.pixels) and relabelled.classes == ("7", "2") and kept.classes == images.classes
    assert set(kept.labels.tolist()) == {2, 7} and torch.equal(relabelled.labels == 0, kept.labels == 7)


def test_batches_cover_a_split_once(images):
    domain = ImageDomain("digits", {"train": images, "test": images}, batch_size=32)
    for split, size in (("train", 32), ("test", 256)):
        batches = list(domain.batches(split, shuffle=True, seed=4))
        assert max(map(len, batches)) == size
        assert sorted(name for batch in batches for name in batch.ids) == [f"{split}{n:05d}" for n in range(497)]
    again = [batch.ids for batch in domain.batches("train", shuffle=True, seed=4)]
    assert again == [batch.ids for batch in domain.batches("train", shuffle=True, seed=4)]
    item = domain.item("train", 9)
    assert torch.equal(item.pixels[0], images.pixels[9]) and item.domain == "digits"
    joined = type(item).collate([item, *next(iter(domain.batches("train", shuffle=False, seed=0))).items()])
    assert len(joined) == 33 and joined.ids[0] == "train00009" and joined.domain == "digits"


def test_a_split_that_is_not_there(images):
    domain = ImageDomain("digits", {"train": images})
    assert domain.size("dev") == 0
    with pytest.raises(InputError, match=r"digits.*dev"):
        next(domain.batches("dev", shuffle=False, seed=0))


def test_fingerprints_follow_pixels_labels_and_batches(images):
    other = Images(images.pixels, images.labels.roll(1), images.classes)
    domains = [
        ImageDomain("a", {"train": images}), ImageDomain("a", {"train": other}), ImageDomain("a", {"train": permuted(images, 1)}),
        ImageDomain("a", {"train": images}, batch_size=8), ImageDomain("a", {"train": rotated(images, 1)}),
        ImageDomain("a", {"train": permuted(rotated(images, 1), 1)}),
        ImageDomain("a", {"train": rotated(permuted(images, 1), 1)}),
        ImageDomain("a", {"train": images.take(torch.arange(400))}),
    ]  # fmt: skip
    hashes = [domain.fingerprint("train") for domain in domains]
    assert len(set(hashes)) == 8 and ImageDomain("b", {"train": images}).fingerprint("train") == hashes[0]
