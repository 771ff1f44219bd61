"""What the items of a batch are: told by its make, settled by the loss, or refused; never guessed."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import Items, make_items, masks, seeded
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from asrcl.curvature import estimate
from asrcl.exceptions import InputError

torch.set_num_threads(1)
N, T, WIDTH, CLASSES = 3, 7, 4, 5


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = normal(N, T, WIDTH), torch.tensor([0, 2, 1])
WAVES = [normal(length, WIDTH, seed=length) for length in (7, 5, 6)]
EQUAL = [normal(N, WIDTH, seed=s) for s in range(N)]
"""As many positions as items."""


class Batch(NamedTuple):
    x: object
    y: object


@dataclass
class Record:
    x: object
    y: object


def model():
    return seeded(lambda: nn.Linear(WIDTH, CLASSES))


def truth_of(net, loss_fn, singles):
    """Mean over items of squared gradients."""
    squares = {}
    for single in singles:
        gradients = torch.autograd.grad(loss_fn(net, single), list(net.parameters()))
        for (name, _), gradient in zip(net.named_parameters(), gradients, strict=True):
            squares[name] = squares.get(name, 0) + gradient.square() / len(singles)
    return squares


def assert_truth(net, loss_fn, batch, singles):
    truth = truth_of(net, loss_fn, singles)
    for structure in ("diagonal", "kron", "ekfac", "dense"):
        found = estimate(net, loss_fn, [batch], structure=structure)
        assert found.metadata["items"] == len(singles)
        for name, value in found.diagonals().items():
            if structure in ("diagonal", "dense") or "bias" in name:
                torch.testing.assert_close(value, truth[name], msg=f"{structure} {name}")


def of_waves(net, waves, labels):
    return F.cross_entropy(torch.stack([net(wave).mean(0) for wave in waves]), labels)


def of_tensor(net, x, labels):
    return F.cross_entropy(net(x).mean(1), labels)


def packed(net, batch):
    padded, lengths = pad_packed_sequence(batch[0], batch_first=True)
    real = torch.arange(padded.shape[1])[None] < lengths[:, None]
    return F.cross_entropy((net(padded) * real[..., None]).sum(1) / lengths[:, None], batch[1])


COUNTED = {
    "waves and labels": (lambda n, b: of_waves(n, b[0], b[1]), (WAVES, Y), [([w], Y[k : k + 1]) for k, w in enumerate(WAVES)]),
    "tuples of waves": (lambda n, b: of_waves(n, *b), (tuple(WAVES), Y), [((w,), Y[k : k + 1]) for k, w in enumerate(WAVES)]),
    "waves of as many frames as items": (
        lambda n, b: of_waves(n, *b), (EQUAL, Y), [([w], Y[k : k + 1]) for k, w in enumerate(EQUAL)]
    ),
    "a list of pairs": (
        lambda n, b: of_waves(n, [w for w, _ in b], torch.stack([y for _, y in b])),
        list(zip(WAVES, Y, strict=True)),
        [[pair] for pair in zip(WAVES, Y, strict=True)],
    ),
    "a list of pairs of one length": (
        lambda n, b: of_waves(n, [w for w, _ in b], torch.stack([y for _, y in b])),
        list(zip(X, Y, strict=True)),
        [[pair] for pair in zip(X, Y, strict=True)],
    ),
    "a list of dicts": (
        lambda n, b: of_waves(n, [row["x"] for row in b], torch.tensor([row["y"] for row in b])),
        [{"x": w, "y": int(y)} for w, y in zip(WAVES, Y, strict=True)],
        [[{"x": w, "y": int(y)}] for w, y in zip(WAVES, Y, strict=True)],
    ),
    "a list of waves alone": (
        lambda n, b: torch.stack([n(w).logsumexp(-1).mean() for w in b]).square().mean(), WAVES, [[w] for w in WAVES]
    ),
    "a loader's list": (lambda n, b: of_tensor(n, *b), [X, Y], [[X[k : k + 1], Y[k : k + 1]] for k in range(N)]),
    "a loader's list of one type": (
        lambda n, b: F.mse_loss(n(b[0]).mean(1), b[1]), [X, normal(N, CLASSES)],
        [[X[k : k + 1], normal(N, CLASSES)[k : k + 1]] for k in range(N)],
    ),
    "dict": (
        lambda n, b: of_tensor(n, b["x"], b["y"]), {"x": X, "y": Y}, [{"x": X[k : k + 1], "y": Y[k : k + 1]} for k in range(N)]
    ),
    "named": (lambda n, b: of_tensor(n, b.x, b.y), Batch(X, Y), [Batch(X[k : k + 1], Y[k : k + 1]) for k in range(N)]),
    "named waves": (lambda n, b: of_waves(n, b.x, b.y), Batch(WAVES, Y), [Batch([w], Y[k : k + 1]) for k, w in enumerate(WAVES)]),
    "dataclass": (lambda n, b: of_tensor(n, b.x, b.y), Record(X, Y), [Record(X[k : k + 1], Y[k : k + 1]) for k in range(N)]),
    "NumPy labels": (
        lambda n, b: of_tensor(n, b[0], torch.as_tensor(b[1])), (X, Y.numpy()), [(X[k : k + 1], Y[k : k + 1]) for k in range(N)]
    ),
    "labels and lengths in lists": (
        lambda n, b: of_tensor(n, b[0][:, : max(b[2])], torch.tensor(b[1])),
        (X, Y.tolist(), [T] * N),
        [(X[k : k + 1], [int(Y[k])], [T]) for k in range(N)],
    ),
    "packed": (
        packed,
        (pack_sequence(WAVES, enforce_sorted=False), Y),
        [(pack_sequence([w]), Y[k : k + 1]) for k, w in enumerate(WAVES)],
    ),
    "one item": (lambda n, b: of_tensor(n, *b), (X[:1], Y[:1]), [(X[:1], Y[:1])]),
    "one wave": (lambda n, b: of_waves(n, *b), (WAVES[:1], Y[:1]), [(WAVES[:1], Y[:1])]),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_items_are_what_the_loss_takes_the_mean_of(name):
    loss_fn, batch, singles = COUNTED[name]
    assert_truth(model(), loss_fn, batch, singles)


REFUSED = {
    "time first with lengths": (X.transpose(0, 1), torch.full((N,), T), Y),
    "time first in a dict": {"x": X.transpose(0, 1), "lengths": torch.full((N,), T)},
    "time first with lengths in a list": (X.transpose(0, 1), [T] * N),
    "time first with texts": (X.transpose(0, 1), ["a", "b", "c"]),
    "time first of one item": (X[:1].transpose(0, 1), Y[:1]),
    "flat targets": (X, torch.tensor([1, 2, 3, 4, 1, 2]), torch.tensor([2, 3, 1])),
    "flat targets in a dict": {"x": X, "targets": torch.ones(6), "lengths": torch.tensor([2, 3, 1])},
    "class weights": (X, Y, torch.ones(CLASSES)),
    "a table": {"x": X, "table": torch.zeros(T, WIDTH)},
    "named": Batch(X.transpose(0, 1), Y),
    "dataclass": Record(X.transpose(0, 1), Y),
    "too many waves": (WAVES, Y[:2]),
}


@pytest.mark.parametrize("structure", ["kron", "diagonal"])
@pytest.mark.parametrize("name", REFUSED)
def test_tensors_that_disagree_are_refused(name, structure):
    with pytest.raises(InputError, match=r"how many items .*first axis.*put the items") as caught:
        estimate(model(), lambda n, b: pytest.fail("the loss was asked"), [REFUSED[name]], structure=structure)
    assert "\n" not in str(caught.value)


def test_two_ways_that_both_fit_are_refused():
    """A list of tensors of one length, under a loss that is a mean over items and over their frames."""
    with pytest.raises(InputError, match=r"7 \(along \[0\], \[1\], \[2\]\) or 3 \(.*batch\) items"):
        estimate(model(), lambda n, b: torch.stack([n(x).square().mean() for x in b]).mean(), [list(X)])


def test_batches_of_two_makes_are_refused():
    def loss_fn(net, batch):
        if isinstance(batch, list):
            return of_waves(net, [w for w, _ in batch], torch.stack([y for _, y in batch]))
        return of_tensor(net, *batch)

    with pytest.raises(InputError, match=r"lists of items.*tensors"):
        estimate(model(), loss_fn, [(X, Y), list(zip(WAVES, Y, strict=True))])


def test_a_later_batch_of_another_make_is_looked_at_too():
    good, flat = (X, Y, torch.ones(N)), (X, Y, torch.ones(6))
    estimate(model(), lambda n, b: of_tensor(n, b[0], b[1]), [good, good])
    with pytest.raises(InputError, match=r"6 along .*axis"):
        estimate(model(), lambda n, b: of_tensor(n, b[0], b[1]), [good, flat])


# ---- the loss


def per_item(net, batch):
    return F.cross_entropy(net(batch[0]).mean(1), batch[1], reduction="none")


SUMS = {
    "sum": lambda n, b: per_item(n, b).sum(),
    "twice the mean": lambda n, b: 2 * per_item(n, b).sum() / len(b[0]) ** 0.5,
    "sum over a fixed number": lambda n, b: per_item(n, b).sum() / 32,
    "sum and regulariser": lambda n, b: per_item(n, b).sum() + n.weight.square().sum(),
    "cross entropy": lambda n, b: F.cross_entropy(n(b[0]).mean(1), b[1], reduction="sum"),
}


@pytest.mark.parametrize("count", [2, N, 40])
@pytest.mark.parametrize("name", SUMS)
def test_a_loss_that_sums_is_refused(name, count):
    batch = (normal(count, T, WIDTH), torch.arange(count) % CLASSES)
    with pytest.raises(InputError, match=r"loss of .* items is .*by themselves") as caught:
        estimate(model(), SUMS[name], [batch])
    summed = name in ("sum", "cross entropy", "sum over a fixed number")
    assert ("a sum over the items where their mean is needed" in str(caught.value)) == summed


def test_a_sum_over_objects_is_refused_too():
    items = make_items((4, 2, 3), WIDTH)
    summed = lambda n, b: (n(b.x).square().sum(-1) * b.mask).sum()  # noqa: E731
    with pytest.raises(InputError, match=r"a sum .*mean"):
        estimate(model(), summed, [items])
    found = estimate(model(), lambda n, b: summed(n, b) / len(b), [items], padding=masks)
    assert found.metadata["checks"]["loss"] == "the mean over items (held against 3 single items)"


def test_a_sum_is_found_in_the_first_batch_of_several_items():
    one, several = (X[:1], Y[:1]), (X, Y)
    assert estimate(model(), SUMS["sum"], [one, one]).metadata["checks"]["loss"] == "not checked: no batch of several items"
    with pytest.raises(InputError, match="a sum over"):
        estimate(model(), SUMS["sum"], [one, several])


def frames(net, batch):
    real = torch.arange(T)[None] < batch[1][:, None]
    return (net(batch[0]).square().sum(-1) * real).sum() / real.sum()


def test_means_that_weigh_items_are_named_and_kept():
    """Over frames or tokens of all items: what such a mean depends on the batches, as ever."""
    found = estimate(model(), frames, [(X, torch.tensor([1, 7, 3]))])
    assert found.metadata["checks"]["loss"].startswith("a mean that weighs the items")
    assert "a mean that weighs" in " ".join(str(value) for value in found.metadata["checks"].values())
    even = estimate(model(), frames, [(X, torch.tensor([4, 4, 4]))])
    assert even.metadata["checks"]["loss"].startswith("the mean over items")


def test_items_without_a_loss_of_their_own_do_not_stop_an_estimate():
    labels = torch.tensor([-100, 2, 1])
    found = estimate(model(), lambda n, b: F.cross_entropy(n(b[0]).mean(1), b[1]), [(X, labels)])
    assert found.metadata["checks"]["loss"].startswith("the mean over items (held against 2")


class Normed(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(WIDTH, **options), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        return self.last(self.norm(x.mean(1)))


def test_what_mixes_items_is_refused():
    by_batch = seeded(lambda: Normed(track_running_stats=False))
    with pytest.raises(InputError, match=r"item 0 .*ValueError: Expected more than 1 value"):
        estimate(by_batch, lambda n, b: F.cross_entropy(n(b[0]), b[1]), [(X, Y)])
    contrast = lambda n, b: F.cross_entropy(n(b[0]).mean(1) @ n(b[0]).mean(1).T, torch.arange(len(b[0])))  # noqa: E731
    with pytest.raises(InputError, match=r"no mean .*items"):
        estimate(model(), contrast, [(X, Y)])
    running = seeded(Normed).train()
    found = estimate(running, lambda n, b: F.cross_entropy(n(b[0]), b[1]), [(X, Y)])
    assert found.metadata["checks"]["loss"].startswith("the mean over items") and running.training


def test_a_loss_with_random_numbers_of_its_own_is_let_pass_and_named():
    def noisy(net, batch):
        return of_tensor(net, batch[0] + 0.5 * torch.randn_like(batch[0]), batch[1])

    net = model()
    torch.manual_seed(3)
    found = estimate(net, noisy, [(X, Y)] * 2)
    after = torch.rand(1)
    torch.manual_seed(3)
    noisy(net, (X, Y)), noisy(net, (X, Y))
    assert torch.equal(after, torch.rand(1)), "looking ahead draws nothing"
    assert found.metadata["checks"]["loss"].startswith(("not checked: the loss of one batch", "the mean", "a mean"))


def test_what_cannot_be_checked_says_so():
    class Whole:
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

    found = estimate(model(), lambda n, b: n(b.x).square().mean(), [Whole(X)])
    assert found.metadata["checks"]["loss"] == "not checked: Whole has no items()"

    def only_several(net, batch):
        if len(batch) < 2:
            raise IndexError("one is not enough")
        return net(batch.x).square().mean()

    items = Items(X, torch.full((N,), T))
    found = estimate(model(), only_several, [items])
    assert found.metadata["checks"]["loss"] == "not checked: item 0 by itself fails with IndexError: one is not enough"


# ---- as many positions as items


class Transposed(nn.Module):
    """Works on `[T, N, F]` inside, or on `[N, T, F]`, on rows of both merged, and on a table that all items share."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.norm, self.last = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        inside = x.transpose(0, 1) if "time first" in self.how else x
        if "merged" in self.how:
            inside = inside.reshape(-1, WIDTH)
        hidden = torch.tanh(self.norm(self.first(inside)))
        if "merged" in self.how:
            hidden = hidden.unflatten(0, (-1, len(x)) if "time first" in self.how else (len(x), -1))
        hidden = hidden.cumsum(0 if "time first" in self.how else 1)
        return self.last(hidden).sum(0 if "time first" in self.how else 1)


@pytest.mark.parametrize("first", [[], [5], [2]], ids=str)
@pytest.mark.parametrize("how", ["items first", "time first", "items first, merged", "time first, merged"])
@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal"])
def test_as_many_positions_as_items_are_told_apart(how, first, structure):
    net, count = seeded(lambda: Transposed(how)), 4
    loss_fn = lambda n, b: F.cross_entropy(n(b[0]), b[1])  # noqa: E731
    batches = [(normal(size, count, WIDTH, seed=size), torch.arange(size) % CLASSES) for size in [*first, count]]
    singles = [(x[k : k + 1], y[k : k + 1]) for x, y in batches for k in range(len(x))]
    truth = truth_of(net, loss_fn, singles)
    found = estimate(net, loss_fn, batches, structure=structure)
    if how != "time first, merged" or first:  # else the first batch is a row of frames in one way or another: item by item
        assert not found.metadata["notes"]
    for name, value in found.diagonals().items():
        if structure == "diagonal" or value.dim() == 1:
            torch.testing.assert_close(value, truth[name], msg=name)
    apart = estimate(net, loss_fn, singles, structure=structure, weight_sharing="reduce" if structure == "kron" else "expand")
    whole = estimate(net, loss_fn, batches, structure=structure, weight_sharing="reduce" if structure == "kron" else "expand")
    for key, block in whole.blocks.items():
        if type(block) is type(apart.blocks[key]):
            torch.testing.assert_close(block.diagonal, apart.blocks[key].diagonal)
