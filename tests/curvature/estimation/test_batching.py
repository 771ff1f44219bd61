"""Batches of every make: counted, cut to items, moved."""

from collections import OrderedDict, UserDict, defaultdict
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import Items, make_items, seeded
from fisher_cases import assert_same_blocks, cross_entropy, labelled, mlp
from torch import nn

from asrcl.curvature import estimate
from asrcl.curvature.estimation.batching import count_items, counted, split_items, to_device
from asrcl.exceptions import InputError

X, Y = torch.arange(12.0).reshape(3, 4), torch.tensor([5, 6, 7])


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Encoding(UserDict):
    """Like the batches of `transformers`: a mapping that is no dict, with attributes."""

    def __getattr__(self, name):
        return self.data[name]


class Plain:
    """Nothing but a length."""

    def __len__(self):
        return 3


class Endless:
    """Not even that."""


MAKES = {
    "tensor": X,
    "tuple": (X, Y),
    "list": [X, Y],
    "dict": {"x": X, "y": Y},
    "ordered": OrderedDict(x=X, y=Y),
    "encoding": Encoding(x=X, y=Y),
    "named": Pair(X, Y),
    "nested": {"input": (X, {"mask": X > 3}), "y": [Y]},
}


def leaves(batch):
    if isinstance(batch, torch.Tensor):
        return [batch]
    if isinstance(batch, dict | UserDict):
        return [leaf for part in batch.values() for leaf in leaves(part)]
    return [leaf for part in batch for leaf in leaves(part)]


@pytest.fixture(params=MAKES)
def batch(request):
    return MAKES[request.param]


def test_the_first_axis_counts_the_items(batch):
    assert count_items(batch) == 3


def test_items_are_batches_of_one_of_the_same_make(batch):
    items = list(split_items(batch))
    assert len(items) == 3
    for number, item in enumerate(items):
        assert type(item) is type(batch) and count_items(item) == 1
        for part, whole in zip(leaves(item), leaves(batch), strict=True):
            assert torch.equal(part, whole[number : number + 1])
    if isinstance(batch, Encoding | Pair):
        assert torch.equal(items[1].y, Y[1:2])


def test_moving_keeps_the_make(batch):
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert all(leaf.is_meta for leaf in leaves(moved)) and not any(leaf.is_meta for leaf in leaves(batch))


def test_what_has_no_axis_of_items_goes_along():
    batch = {"x": X, "scale": torch.tensor(2.0), "table": torch.zeros(7, 3), "name": "train", "rate": 16000, "none": None}
    for item in split_items(batch):
        assert item["x"].shape == (1, 4) and item["table"].shape == (7, 3)
        assert (item["scale"], item["name"], item["rate"], item["none"]) == (torch.tensor(2.0), "train", 16000, None)
    assert to_device(batch, torch.device("meta"))["name"] == "train"


def test_lists_of_one_entry_per_item_are_cut_too():
    """Transcripts, lengths, and targets of different lengths lie beside the tensors of a batch."""
    targets = [torch.zeros(2), torch.ones(5), torch.zeros(4)]
    batch = {"x": X, "text": ["a", "b", "c"], "lengths": (4, 2, 3), "targets": targets, "languages": ["de", "en"]}
    items = list(split_items(batch))
    assert [item["text"] for item in items] == [["a"], ["b"], ["c"]]
    assert [item["lengths"] for item in items] == [(4,), (2,), (3,)]
    assert all(torch.equal(item["targets"][0], target) for item, target in zip(items, targets, strict=True))
    assert all(item["languages"] == ["de", "en"] for item in items)
    assert [item[1] for item in split_items((X, ["a", "b", "c"]))] == [["a"], ["b"], ["c"]]


def test_as_many_tensors_as_items_are_still_tensors_with_an_axis_of_items():
    three = [X, X + 1, X + 2]
    assert [[part.shape for part in item] for item in split_items(three)] == [[(1, 4)] * 3] * 3


def test_a_mapping_made_of_something_else_becomes_a_dict():
    batch = defaultdict(list, x=X)
    (first, *_) = split_items(batch)
    assert torch.equal(first["x"], X[:1]) and to_device(batch, torch.device("meta"))["x"].is_meta


def test_objects_count_split_and_move_themselves():
    items = make_items((3, 2))
    assert count_items(items) == 2 and [len(item) for item in split_items(items)] == [1, 1]
    assert to_device(items, torch.device("meta")).x.is_meta
    alone = Plain()
    assert count_items(alone) == 3 and to_device(alone, torch.device("meta")) is alone


@pytest.mark.parametrize(
    "batch, words",
    [
        (Endless(), "Endless has no len"),
        (7, "int has no len"),
        ({"rate": 3}, "dict holds no tensor"),
        ([], "list holds no tensor"),
        (torch.tensor(1.0), r"Tensor .*axis"),
    ],
)
def test_what_cannot_be_counted_is_refused(batch, words):
    with pytest.raises(InputError, match=words):
        count_items(batch)


def test_what_cannot_be_split_is_refused_with_the_reason():
    with pytest.raises(InputError, match=r"Plain .*items\(\).*max_items"):
        list(split_items(Plain()))


def test_counting_cuts_where_it_is_told():
    batches = [(X, Y), (X[:2], Y[:2]), (X, Y)]
    assert [size for size, _ in counted(batches, None)] == [3, 2, 3]
    assert [size for size, _ in counted(batches, 5)] == [3, 2]
    assert [size for size, _ in counted(batches, 4)] == [3, 1]
    cut = list(counted(batches, 2))
    assert [size for size, _ in cut] == [1, 1] and torch.equal(cut[1][1][1], Y[1:2])
    assert [size for size, _ in counted(batches, 99)] == [3, 2, 3]


def test_counting_takes_no_more_than_it_needs():
    taken = []

    def stream():
        for number in range(10):
            taken.append(number)
            yield X, Y

    assert sum(size for size, _ in counted(stream(), 6)) == 6
    assert taken in ([0, 1], [0, 1, 2])


def test_empty_batches_are_skipped_and_no_data_refused():
    empty = (X[:0], Y[:0])
    assert [size for size, _ in counted([empty, (X, Y), empty], None)] == [3]
    for nothing in ([], [empty], [empty, empty]):
        with pytest.raises(InputError, match="no item"):
            list(counted(nothing, 4))


def test_every_make_gives_the_same_curvature():
    model, (x, y) = seeded(mlp), labelled()
    truth = estimate(model, cross_entropy, [(x, y)])
    for made in ({"x": x, "y": y}, Encoding(x=x, y=y), Pair(x, y), [x, y]):
        by_name = isinstance(made, dict | UserDict)
        loss = (lambda m, b: cross_entropy(m, (b["x"], b["y"]))) if by_name else cross_entropy
        assert_same_blocks(estimate(model, loss, [made]), truth)
        assert estimate(model, loss, [made], max_items=4, structure="dense").metadata["items"] == 4


def test_parameters_that_need_single_items_say_so_where_there_are_none():
    class Whole:
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.power = nn.Linear(3, 2), nn.Parameter(torch.ones(2))

        def forward(self, x):
            return F.softplus(self.first(x)) ** self.power

    model, batch = seeded(Odd), Whole(make_items([1] * 4).x[:, 0])
    found = estimate(model, lambda m, b: m(b.x).square().sum(-1).mean(), [batch])
    assert "power" not in found.names() and "Whole has no items()" in found.metadata["uncovered"]["power"]
    with pytest.raises(InputError, match="Whole has no items"):
        estimate(model, lambda m, b: m(b.x).square().sum(-1).mean(), [batch], structure="dense")
    split = Items(batch.x[:, None], torch.ones(4, dtype=torch.long))
    assert "power" in estimate(model, lambda m, b: m(b.x).square().sum((-1, -2)).mean(), [split]).names()
