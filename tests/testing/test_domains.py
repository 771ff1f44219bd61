import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.testing import VectorDomain, blob_domain


def whole(domain, split="train"):
    batches = list(domain.batches(split, shuffle=False, seed=0))
    return torch.cat([batch.inputs for batch in batches]), torch.cat([batch.labels for batch in batches])


def test_blobs_are_deterministic():
    (first, labels), (second, _) = whole(blob_domain("a", 3, 0.5)), whole(blob_domain("b", 3, 0.5))
    assert torch.equal(first, second)
    assert labels.bincount().tolist() == [16] * 4
    assert blob_domain("a", 3).fingerprint("dev") == blob_domain("b", 3).fingerprint("dev")


@pytest.mark.parametrize("change", [{"seed": 4}, {"rotation": 0.6}, {"noise": 0.1}, {"batch_size": 8}])
def test_fingerprint_sees_every_change(change):
    options = {"seed": 3, "rotation": 0.5}
    assert blob_domain("a", **options).fingerprint("train") != blob_domain("a", **options | change).fingerprint("train")


def test_rotation_moves_blobs_and_keeps_lengths():
    (plain, labels), (turned, _) = whole(blob_domain("a", 3)), whole(blob_domain("a", 3, 1.0))
    torch.testing.assert_close(plain.norm(dim=1), turned.norm(dim=1))
    moves = [(plain[labels == c].mean(0) - turned[labels == c].mean(0)).norm() for c in range(4)]
    assert min(moves) > 1
    (near, _) = whole(blob_domain("a", 3, 0.01))
    assert (near - plain).norm(dim=1).max() < 0.3


def test_splits_are_different_draws():
    domain = blob_domain("a", sizes={"train": 32, "dev": 32, "test": 16})
    assert not torch.equal(whole(domain)[0], whole(domain, "dev")[0])
    assert [domain.size(split) for split in ("train", "dev", "test", "extra")] == [32, 32, 16, 0]


def test_shuffling_depends_on_the_seed_alone():
    domain = blob_domain("a")

    def order(seed, shuffle=True):
        return [item for batch in domain.batches("train", shuffle=shuffle, seed=seed) for item in batch.ids]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == order(5, shuffle=False) == order(6, shuffle=False)


def test_batches_and_their_items():
    domain = blob_domain("a", sizes={"train": 20}, batch_size=8)
    batches = list(domain.batches("train", shuffle=True, seed=0))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    items = list(batches[0].items())
    assert [len(item) for item in items] == [1] * 8
    assert torch.equal(torch.cat([item.inputs for item in items]), batches[0].inputs)
    assert tuple(item.ids[0] for item in items) == batches[0].ids
    assert batches[0].to("cpu").labels.device.type == "cpu"


def test_ids_tell_group_and_position():
    ids = [name for batch in blob_domain("a").batches("dev", shuffle=False, seed=0) for name in batch.ids]
    assert ids[0] == "g000-dev0000" and ids[31] == "g003-dev0031"
    assert len(set(ids)) == 32


def test_missing_split():
    domain = VectorDomain("half", {"train": (torch.zeros(2, 3), torch.tensor([0, 1]))})
    with pytest.raises(InputError, match="half: no split test; it has train"):
        list(domain.batches("test", shuffle=False, seed=0))
    with pytest.raises(InputError, match="half: no split dev"):
        domain.fingerprint("dev")
