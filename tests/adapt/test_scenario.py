from importlib.metadata import version

import torch

from asrcl.adapt import Batch, Domain, Task, UnionDomain
from asrcl.adapt.environment import environment
from asrcl.testing import ClassificationTask, blob_domain


def parts():
    return [
        blob_domain("a", 1, sizes={"train": 48, "dev": 16}),
        blob_domain("b", 2, 1.0, sizes={"train": 96, "dev": 32}),
    ]


def labels_and_inputs(domain, split="train", shuffle=True, seed=0):
    return [(batch.ids, batch.inputs) for batch in domain.batches(split, shuffle=shuffle, seed=seed)]


def rows(batches):
    return sorted(tuple(row.tolist()) for _, inputs in batches for row in inputs)


def test_protocols_are_met():
    domain = blob_domain("blobs")
    assert isinstance(domain, Domain) and isinstance(UnionDomain([domain]), Domain)
    assert isinstance(ClassificationTask(), Task)
    assert isinstance(next(iter(domain.batches("dev", shuffle=False, seed=0))), Batch)


def test_union_holds_every_item_once():
    union = UnionDomain(parts())
    assert (union.name, union.size("train"), union.size("dev")) == ("a+b", 144, 48)
    expected = rows([batch for domain in parts() for batch in labels_and_inputs(domain)])
    for shuffle in (True, False):
        assert rows(labels_and_inputs(union, shuffle=shuffle)) == expected


def test_union_in_order_is_one_part_after_the_other():
    union, (first, second) = UnionDomain(parts()), parts()
    expected = labels_and_inputs(first, "dev", False) + labels_and_inputs(second, "dev", False)
    found = labels_and_inputs(union, "dev", False)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(found, expected, strict=True))


def test_shuffled_union_mixes_and_depends_on_the_seed():
    union = UnionDomain(parts())

    def origins(seed):
        known = {tuple(row.tolist()) for _, inputs in labels_and_inputs(parts()[0]) for row in inputs}
        batches = labels_and_inputs(union, seed=seed)
        return "".join("a" if tuple(inputs[0].tolist()) in known else "b" for _, inputs in batches)

    orders = {origins(seed) for seed in range(10)}
    assert all(order.count("a") == 3 and order.count("b") == 6 for order in orders)
    assert len(orders) > 5
    assert any("ba" in order for order in orders)
    first, second = labels_and_inputs(union, seed=4), labels_and_inputs(union, seed=4)
    assert [ids for ids, _ in first] == [ids for ids, _ in second]


def test_union_fingerprint_follows_its_parts():
    first, second = parts()
    whole = UnionDomain([first, second]).fingerprint("train")
    assert whole == UnionDomain(parts()).fingerprint("train")
    assert whole != UnionDomain([second, first]).fingerprint("train")
    assert whole != UnionDomain([first, second]).fingerprint("dev")


def test_environment_tells_versions_and_machine():
    found = environment("cpu")
    assert found["torch"] == version("torch")
    assert found["accelerator"] == "none"
    assert "cores" in found["processor"]


def test_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment()["git"] == ""
