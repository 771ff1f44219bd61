"""Which positions count and how: every so-manieth, one per item, no padding; and that batches make no difference."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import Items, TwoLayer, batches_of, collate, make_items, masks, seeded, sequence_loss
from fisher_cases import assert_same_blocks, item_gradients, matrix_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from asrcl.curvature import BlockKey, estimate
from asrcl.exceptions import InputError

LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=6)
few = settings(max_examples=15, deadline=None)


class Mixing(nn.Module):
    """Every position sees the mean of the real ones of its item; garbage in the padding must not matter."""

    def __init__(self, features=3, hidden=4, out=2):
        super().__init__()
        self.first, self.norm = nn.Linear(features, hidden), nn.LayerNorm(hidden)
        self.context, self.last = nn.Linear(hidden, hidden), nn.Linear(hidden, out)
        self.scale = nn.Parameter(torch.rand(hidden))

    def forward(self, x):
        h = self.norm(torch.tanh(self.first(x))) * self.scale
        real = torch.ones(x.shape[:2], dtype=torch.bool) if self.mask is None else self.mask
        mean = torch.where(real[..., None], h, 0).sum(1) / real.sum(1, keepdim=True)
        return self.last(torch.tanh(h + self.context(mean)[:, None]))


def masked_loss(model, batch):
    model.mask = batch.mask
    return sequence_loss(model, batch)


def factors(curvature):
    return {key: block for key, block in curvature.blocks.items() if block.kind == "kronecker"}


def assert_same_factors(first, second, **tolerance):
    assert factors(first).keys() == factors(second).keys() and factors(first)
    for key, block in factors(first).items():
        torch.testing.assert_close(block.A_II, factors(second)[key].A_II, **tolerance)
        torch.testing.assert_close(block.G_OO, factors(second)[key].G_OO, **tolerance)


@few
@given(LENGTHS, st.integers(1, 5), st.integers(1, 3))
def test_all_offsets_together_are_all_positions(lengths, stride, size):
    """Batch number i starts at position i modulo the stride: every batch as often as there are offsets is every position."""
    model, items = seeded(TwoLayer), make_items(lengths)
    whole = batches_of(items, size)
    full = estimate(model, sequence_loss, whole, padding=masks)
    thin = estimate(model, sequence_loss, [batch for batch in whole for _ in range(stride)], padding=masks, stride=stride)
    assert_same_factors(thin, full)
    for key, block in factors(thin).items():
        assert (block.positions, block.items) == (sum(lengths), stride * len(lengths))
        torch.testing.assert_close(block.output.dense(), factors(full)[key].output.dense() * stride)


def test_one_pass_takes_every_other_real_position():
    model, items = seeded(TwoLayer), make_items((5, 2, 4))
    block = factors(estimate(model, sequence_loss, [items], padding=masks, stride=2))[BlockKey("first.weight", 0, 4)]
    rows = items.x[items.mask][::2]
    torch.testing.assert_close(block.A_II, rows.T @ rows / len(rows))
    assert block.positions == len(rows) == 6
    without = factors(estimate(model, sequence_loss, [items], stride=4))[BlockKey("first.weight", 0, 4)]
    rows = items.x.reshape(-1, 3)[::4]
    torch.testing.assert_close(without.A_II, rows.T @ rows / len(rows))


def test_the_offset_rotates_over_batches():
    model, single = seeded(TwoLayer), make_items((6,))
    key = BlockKey("first.weight", 0, 4)
    both = factors(estimate(model, sequence_loss, [single] * 4, stride=3))[key]
    rows = torch.cat([single.x[0, start::3] for start in (0, 1, 2, 0)])
    torch.testing.assert_close(both.A_II, rows.T @ rows / len(rows))


def test_a_stride_leaves_everything_exact_alone():
    """Biases and the squares of EK-FAC need whole items."""
    model, items = seeded(TwoLayer), make_items((5, 2, 4))
    full, thin = (estimate(model, sequence_loss, [items], padding=masks, stride=s) for s in (1, 3))
    for name in ("first.bias", "last.bias"):
        torch.testing.assert_close(thin.diagonals()[name], full.diagonals()[name])
    corrected = estimate(model, sequence_loss, [items], padding=masks, stride=3, structure="ekfac")
    squares = item_gradients(model, sequence_loss, list(items.items()))["last.weight"].square().mean(0).sum()
    (block,) = corrected.blocks_of("last.weight").values()
    assert block.trace() == pytest.approx(float(squares))


def looked_up(model, batch):
    output = model(batch.x)
    return (output.square().sum(-1) * batch.mask).sum(1).mean()


class Table(nn.Module):
    """Rows by the signs of the features."""

    def __init__(self):
        super().__init__()
        self.table, self.last = nn.Embedding(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.table((x[..., 0] > 0).long() + 2 * (x[..., 1] > 0))))


@pytest.mark.parametrize("options", [{"stride": 3}, {"weight_sharing": "reduce"}, {}])
def test_tables_count_all_positions(options):
    """One-hot inputs cannot be averaged over an item, so that "reduce" leaves tables as they are."""
    model, items = seeded(Table), make_items((5, 2, 4))
    full = estimate(model, looked_up, [items], padding=masks).blocks[BlockKey("table.weight", 0, 4)]
    found = estimate(model, looked_up, [items] * 3, padding=masks, **options).blocks[BlockKey("table.weight", 0, 4)]
    ids = ((items.x[..., 0] > 0).long() + 2 * (items.x[..., 1] > 0))[items.mask]
    counts = torch.bincount(ids, minlength=4) / len(ids)
    torch.testing.assert_close(found.A.diagonal(), counts.to(found.A.diagonal()))
    torch.testing.assert_close(found.G_OO, full.G_OO)


def reduced_truth(model, loss, items, layout=lambda x: x):
    """A and G of the two maps: means and sums over each unpadded item's positions."""
    inputs, outer = {}, {}
    for single in items.items():
        z1 = single.x @ model.first.weight.T + model.first.bias
        a2 = torch.tanh(z1)
        z2 = a2 @ model.last.weight.T + model.last.bias
        gradients = torch.autograd.grad(loss(lambda _, z=z2: z, single), [z1, z2])
        for name, a, g in (("first.weight", single.x, gradients[0]), ("last.weight", a2, gradients[1])):
            mean, total = a[0].mean(0).detach(), g[0].sum(0)
            inputs[name] = inputs.get(name, 0) + torch.outer(mean, mean) / len(items)
            outer[name] = outer.get(name, 0) + torch.outer(total, total) / len(items)
    return {name: (inputs[name], outer[name]) for name in inputs}


class Layout(nn.Module):
    """The same network with its data as [N, P, F], as [P, N, F], or as [N * P, F]."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last, self.how = nn.Linear(3, 4), nn.Linear(4, 2), how

    def forward(self, x):
        if self.how == "flat":
            return self.last(torch.tanh(self.first(x.flatten(0, 1)))).unflatten(0, x.shape[:2])
        moved = x.transpose(0, 1) if self.how == "time first" else x[:, :, None] if self.how == "deep" else x
        output = self.last(torch.tanh(self.first(moved)))
        return output.transpose(0, 1) if self.how == "time first" else output[:, :, 0] if self.how == "deep" else output


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("how", ["plain", "time first", "flat", "deep"])
def test_reduce_is_one_mean_and_one_sum_per_item(how, size):
    model, items = seeded(lambda: Layout(how)), make_items((4, 2, 3, 1, 4))
    found = estimate(model, sequence_loss, batches_of(items, size), padding=masks, weight_sharing="reduce")
    truth = reduced_truth(model, sequence_loss, items)
    for key, block in factors(found).items():
        assert (block.positions, block.items) == (5, 5)
        torch.testing.assert_close(block.A_II, truth[key.name][0])
        torch.testing.assert_close(block.G_OO, truth[key.name][1])


def test_reduce_without_positions_is_expand():
    model, x = seeded(TwoLayer), make_items([1] * 5).x[:, 0]
    batch = Items(x, torch.ones(5, dtype=torch.long))
    both = [
        estimate(model, lambda m, b: m(b.x).square().sum(-1).mean(), [batch], weight_sharing=way) for way in ("expand", "reduce")
    ]
    assert_same_blocks(*both)


def test_a_stride_and_reduce_exclude_each_other():
    model, items = seeded(TwoLayer), make_items((2,))
    for options, words in (
        ({"stride": 2, "weight_sharing": "reduce"}, "leave stride at 1"),
        ({"stride": 0}, "at least 1"),
        ({"weight_sharing": "both"}, "there are expand, reduce"),
    ):
        with pytest.raises(InputError, match=words):
            estimate(model, sequence_loss, [items], **options)


WAYS = [
    {"structure": "kron"},
    {"structure": "kron", "weight_sharing": "reduce"},
    {"structure": "diagonal"},
    {"structure": "ekfac"},
    {"structure": "dense"},
]


@st.composite
def splits(draw, lengths):
    """Where to cut the items into batches."""
    edges = sorted(draw(st.sets(st.integers(1, max(1, len(lengths) - 1)))))
    return [0, *[edge for edge in edges if edge < len(lengths)], len(lengths)]


@st.composite
def datasets(draw):
    lengths = draw(LENGTHS)
    return lengths, draw(splits(lengths)), draw(splits(lengths)), draw(st.integers(0, 99))


def parts_of(items, edges):
    singles = list(items.items())
    return [collate(singles[start:stop]) for start, stop in itertools.pairwise(edges)]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
@few
@given(datasets())
def test_neither_padding_nor_batches_matter(way, dataset):
    """In double precision; against items one by one, which have no padding at all."""
    lengths, edges, _, seed = dataset
    model, items = seeded(Mixing), make_items(lengths, seed=seed)
    found = estimate(model, masked_loss, parts_of(items, edges), padding=masks, **way)
    alone = estimate(model, masked_loss, list(items.items()), **way)
    assert_same_blocks(found, alone, atol=1e-9, rtol=1e-7)
    assert found.metadata["items"] == len(lengths) and found.metadata["unmasked"] == []


@pytest.mark.parametrize("way", WAYS[:3], ids=lambda way: "-".join(way.values()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=6, deadline=None)
@given(datasets())
def test_lower_precision_differs_by_its_rounding(way, dtype, dataset):
    lengths, edges, other, seed = dataset
    exact, items = seeded(Mixing), make_items(lengths, seed=seed)
    model, rounded = seeded(Mixing).to(dtype), Items(items.x.to(dtype), items.lengths)
    found, again = (estimate(model, masked_loss, parts_of(rounded, cut), padding=masks, **way) for cut in (edges, other))
    truth = estimate(exact, masked_loss, parts_of(items, edges), padding=masks, **way)
    bound = 1e-3 if dtype == torch.float32 else 0.5
    for key, block in found.blocks.items():
        assert all(tensor.dtype == torch.float32 for tensor in block.tensors().values())
        for one in (again, truth):
            here, there = (matrix_of(b.map(lambda t: t.double())) for b in (block, one.blocks[key]))
            assert (here - there).norm() <= bound * there.norm() + 1e-12, key


@few
@given(LENGTHS, st.integers(0, 4))
def test_garbage_in_the_padding_is_never_seen(lengths, kind):
    """Not even where it is not finite."""
    model, items = seeded(TwoLayer), make_items([*lengths, max(lengths) + 1])
    garbage = [0.0, 7.0, -1e30, 1e30, float("nan")][kind]
    dirty = Items(items.x.masked_fill(~items.mask[..., None], garbage), items.lengths)

    def loss(model, batch):
        target = torch.linspace(-1, 1, 2, dtype=batch.x.dtype)
        per_position = (model(batch.x) - target).square().sum(-1)
        return torch.where(batch.mask, per_position, 0).sum(1).mean()

    for sharing in ("expand", "reduce"):
        found, truth = (
            estimate(model, loss, batches, padding=pad, layers="linear", weight_sharing=sharing)
            for batches, pad in (([dirty], masks), (list(items.items()), None))
        )
        assert_same_factors(found, truth)


def test_maps_of_one_source_may_have_masks_of_their_own():
    """Their input products are shared only where the masks agree."""

    class Streams(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(3, 2) for _ in range(3))

        def forward(self, x):
            return self.one(x), self.two(x), self.three(x)

    model, x = seeded(Streams), make_items([4, 4, 4]).x
    lengths = [torch.tensor([4, 2, 3]), torch.tensor([1, 4, 2]), torch.tensor([4, 2, 3])]
    streams = [Items(x, each) for each in lengths]

    def loss(model, batch):
        parts = zip(model(batch.x), streams, strict=True)
        return sum((F.softplus(z).sum(-1) * stream.mask).sum(1).mean() for z, stream in parts)

    found = estimate(model, loss, [streams[0]] * 3, padding=lambda _: [stream.mask for stream in streams[:2]])
    for name, stream in zip(("one", "two", "three"), streams, strict=True):
        block, rows = found.blocks[BlockKey(f"{name}.weight", 0, 2)], x[stream.mask]
        assert block.positions == 3 * len(rows)
        torch.testing.assert_close(block.A_II, rows.T @ rows / len(rows))
