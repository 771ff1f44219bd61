"""Every way of using a linear map, against factors computed by hand from one item at a time."""

import functools
import math

import pytest
import torch
from curvature_cases import batches_of, make_items, masks, seeded, sequence_loss, taps_truth
from torch import nn

from asrcl import curvature as room
from asrcl.curvature import BlockKey

estimate = functools.partial(room.estimate, layers="linear")
LENGTHS = (4, 2, 3, 4)
D, HEADS = 4, 2


def assert_truth(curvature, truth, keys):
    for name, key in keys.items():
        A_II, G_OO = truth[name]
        torch.testing.assert_close(curvature.blocks[key].A_II, A_II, msg=lambda m, n=name: f"A of {n}: {m}")
        torch.testing.assert_close(curvature.blocks[key].G_OO, G_OO, msg=lambda m, n=name: f"G of {n}: {m}")


def attend(q, k, v):
    """Multi-head attention of one item [1, P, D] by hand."""
    split = [t.reshape(-1, HEADS, D // HEADS).transpose(0, 1) for t in (q, k, v)]
    weights = torch.softmax(split[0] @ split[1].mT / math.sqrt(D // HEADS), -1)
    return (weights @ split[2]).transpose(0, 1).reshape(1, -1, D)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on [N, P, D], or time first, masked."""

    def __init__(self, batch_first, memory=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, HEADS, batch_first=batch_first)
        self.batch_first, self.memory = batch_first, memory

    def loss(self, _, batch):
        def run(x):
            keys = torch.sin(x) if self.memory else x
            query, keys = (t if self.batch_first else t.transpose(0, 1) for t in (x, keys))
            keys = query if not self.memory else keys
            output, _ = self.attention(query, keys, keys, key_padding_mask=~batch.mask, need_weights=False)
            return output if self.batch_first else output.transpose(0, 1)

        return sequence_loss(run, batch)

    def taps(self, batch):
        x, m = batch.x, self.attention
        memory = torch.sin(x) if self.memory else x
        weights, biases = m.in_proj_weight.split(D), m.in_proj_bias.split(D)
        q, k, v = (t @ w.T + b for t, w, b in zip((x, memory, memory), weights, biases, strict=True))
        if self.memory:
            kv = torch.cat([k, v], -1)
            maps, (k, v) = {"q": (x, q), "kv": (memory, kv)}, kv.split(D, -1)
        else:
            qkv = torch.cat([q, k, v], -1)
            maps, (q, k, v) = {"qkv": (x, qkv)}, qkv.split(D, -1)
        mixed = attend(q, k, v)
        out = mixed @ m.out_proj.weight.T + m.out_proj.bias
        return sequence_loss(lambda _: out, batch), maps | {"out": (mixed, out)}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_multihead_attention(size, batch_first, memory):
    model, items = seeded(lambda: SelfAttention(batch_first, memory)), make_items(LENGTHS, D)
    curvature = estimate(model, model.loss, batches_of(items, size), padding=masks)
    name = "attention.in_proj_weight"
    whole = {"qkv": BlockKey(name, 0, 3 * D)}
    parts = {"q": BlockKey(name, 0, D), "kv": BlockKey(name, D, 3 * D)}
    keys = {"out": BlockKey("attention.out_proj.weight", 0, D), **(parts if memory else whole)}
    assert set(curvature.blocks) == set(keys.values())
    assert_truth(curvature, taps_truth(model.taps, items), keys)


class RawProjection(nn.Module):
    """A raw packed parameter used through F.linear, whole or in chunks."""

    def __init__(self, chunks):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * D, D) / 2)
        self.chunks = chunks

    def loss(self, _, batch):
        def run(x):
            if self.chunks:
                q, k, v = (nn.functional.linear(x, w) for w in self.in_proj_weight.chunk(3))
            else:
                q, k, v = nn.functional.linear(x, self.in_proj_weight).chunk(3, -1)
            return torch.tanh(q) * k + v

        return sequence_loss(run, batch)

    def taps(self, batch):
        z = batch.x @ self.in_proj_weight.T
        q, k, v = (z[..., i * D : (i + 1) * D] * 1 for i in range(3))
        parts = {"q": q, "k": k, "v": v} if self.chunks else {}
        loss = sequence_loss(lambda _: torch.tanh(q) * k + v, batch)
        return loss, {name: (batch.x, part) for name, part in parts.items()} or {"qkv": (batch.x, z)}


@pytest.mark.parametrize("chunks", [True, False])
def test_raw_packed_projection(chunks):
    model, items = seeded(lambda: RawProjection(chunks)), make_items(LENGTHS, D)
    curvature = estimate(model, model.loss, batches_of(items, 2), padding=masks)
    name = "in_proj_weight"
    parts = {part: BlockKey(name, i * D, (i + 1) * D) for i, part in enumerate("qkv")}
    keys = parts if chunks else {"qkv": BlockKey(name, 0, 3 * D)}
    assert set(curvature.blocks) == set(keys.values())
    assert_truth(curvature, taps_truth(model.taps, items), keys)
    if chunks:
        inputs = {id(curvature.blocks[key].input.matrix) for key in keys.values()}
        assert len(inputs) == 1, "query, key and value read one input, so they hold one input sum"


def test_whole_and_chunked_use_of_one_parameter_are_cut_to_parts():
    model, items = seeded(lambda: RawProjection(False)), make_items(LENGTHS, D)
    calls = []

    def loss(model_, batch):
        calls.append(1)
        model.chunks = len(calls) % 2 == 0
        return model.loss(model_, batch)

    curvature = estimate(model, loss, batches_of(items, 1), padding=masks)
    model.chunks = True
    keys = {part: BlockKey("in_proj_weight", i * D, (i + 1) * D) for i, part in enumerate("qkv")}
    assert set(curvature.blocks) == set(keys.values())
    assert_truth(curvature, taps_truth(model.taps, items), keys)


class Pointwise(nn.Module):
    """Pointwise convolutions on [N, C, P]; the depthwise one between them is not a linear map."""

    def __init__(self, stride=1):
        super().__init__()
        self.first = nn.Conv1d(3, D, 1)
        self.depthwise = nn.Conv1d(D, D, 3, padding=1, groups=D)
        self.last = nn.Conv1d(D, 2, 1, stride=stride)
        self.stride = stride

    def hidden(self, x, mask):
        return torch.tanh(self.depthwise(torch.tanh(self.first(x.mT)) * mask[:, None]))

    def forward(self, x, mask):
        return self.last(self.hidden(x, mask)).mT

    def taps(self, batch):
        z1 = batch.x @ self.first.weight[..., 0].T + self.first.bias
        a2 = torch.tanh(self.depthwise(torch.tanh(z1).mT)).mT[:, :: self.stride]
        z2 = a2 @ self.last.weight[..., 0].T + self.last.bias
        return strided_loss(z2, batch, self.stride), {"first": (batch.x, z1), "last": (a2, z2)}


def strided_loss(output, batch, stride):
    return (output.pow(3).sum(-1) * batch.mask[:, ::stride]).sum(1).mean()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 4])
def test_pointwise_convolutions(stride, size):
    model, items = seeded(lambda: Pointwise(stride)), make_items(LENGTHS)

    def loss(model, batch):
        return strided_loss(model(batch.x, batch.mask), batch, stride)

    curvature = estimate(
        model, loss, batches_of(items, size), padding=lambda batch: [batch.mask, batch.mask[:, ::stride]]
    )
    keys = {"first": BlockKey("first.weight", 0, D), "last": BlockKey("last.weight", 0, 2)}
    assert set(curvature.blocks) == set(keys.values())
    assert_truth(curvature, taps_truth(model.taps, items), keys)
    assert "kernel 3" in curvature.metadata["uncovered"]["depthwise.weight"]
    curvature.check(model)


class Tied(nn.Module):
    """One weight used twice under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_tied_weights_add_up():
    model, items = seeded(Tied), make_items(LENGTHS)
    curvature = estimate(model, sequence_loss, batches_of(items, 2), padding=masks)
    w = model.first.weight

    def taps(batch):
        z1 = batch.x @ w.T
        a2 = torch.tanh(z1)
        z2 = a2 @ w.T
        return sequence_loss(lambda _: z2, batch), {"1": (batch.x, z1), "2": (a2, z2)}

    truth = taps_truth(taps, items)
    (key,) = curvature.blocks
    block = curvature.blocks[key]
    assert block.positions == 2 * sum(LENGTHS)
    torch.testing.assert_close(block.A_II, (truth["1"][0] + truth["2"][0]) / 2)
    torch.testing.assert_close(block.G_OO, truth["1"][1] + truth["2"][1])
    assert curvature.blocks_of("second.weight") == curvature.blocks_of("first.weight")
    del (state := dict(model.state_dict()))["first.weight"]
    curvature.check(state)


class RelativePositions(nn.Module):
    """Scores against a projected table of positions [1, P, D] that all items share."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(D, D, bias=False)
        self.position = nn.Linear(D, D, bias=False)
        self.register_buffer("table", torch.randn(1, max(LENGTHS), D))

    def forward(self, x):
        return self.query(x) * self.position(self.table[:, : x.shape[1]])


def test_a_shared_table_of_positions_just_works():
    model, items = seeded(RelativePositions), make_items([3] * 4, D)

    def taps(batch):
        table = model.table[:, :3]
        q, p = batch.x @ model.query.weight.T, table @ model.position.weight.T
        return sequence_loss(lambda _: q * p, batch), {"query": (batch.x, q), "position": (table, p)}

    truth = taps_truth(taps, items)
    keys = {name: BlockKey(f"{name}.weight", 0, D) for name in ("query", "position")}
    assert_truth(estimate(model, sequence_loss, batches_of(items, 1), padding=masks), truth, keys)
    batched = estimate(model, sequence_loss, batches_of(items, 4), padding=masks)
    torch.testing.assert_close(batched.blocks[keys["position"]].A_II, truth["position"][0])
    assert batched.blocks[keys["position"]].positions == 3 * 4


class Transposed(nn.Module):
    """Parameters that hold their map transposed, in every way of writing it; and one of which only some columns are used."""

    def __init__(self, way):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2))
        self.shift = nn.Parameter(torch.randn(2))
        self.scale = nn.Parameter(torch.randn(2, 4))
        self.way = way

    def forward(self, x):
        if self.way == "linear":
            y = nn.functional.linear(x, self.kernel.T)
        elif self.way == "matmul":
            y = x @ self.kernel
        else:
            y = torch.addmm(self.shift, x.flatten(0, 1), self.kernel).reshape(*x.shape[:2], 2)
        return nn.functional.linear(torch.tanh(y), self.scale[:, :2])


@pytest.mark.parametrize("way", ["linear", "matmul", "addmm"])
def test_transposed_maps_and_views_that_are_none(way):
    model, items = seeded(lambda: Transposed(way)), make_items(LENGTHS)
    curvature = estimate(model, sequence_loss, batches_of(items, 1))

    def taps(batch):
        z = batch.x @ model.kernel + (model.shift if way == "addmm" else 0)
        loss = sequence_loss(lambda _: torch.tanh(z) @ model.scale[:, :2].T, batch)
        return loss, {"kernel": (batch.x, z)}

    key = BlockKey("kernel", 0, 3)
    assert_truth(curvature, taps_truth(taps, items), {"kernel": key})
    block = curvature.blocks[key]
    assert block.transposed and (block.rows, block.row_factor.size) == (3, 3)
    assert "not as a range of its rows" in curvature.metadata["uncovered"]["scale"]
    assert curvature.names() == ["kernel"]
    whole = room.estimate(model, sequence_loss, batches_of(items, 1))
    assert "rows" in whole.metadata["notes"]["scale"] and whole.blocks_of("scale")


def test_encoder_layers_of_torch_do_not_take_the_fused_path():
    layer = seeded(lambda: nn.TransformerEncoderLayer(D, HEADS, 6, batch_first=True, dropout=0.1))
    items = make_items(LENGTHS, D)
    curvature = estimate(
        layer,
        lambda m, b: sequence_loss(lambda x: m(x, src_key_padding_mask=~b.mask), b),
        [items],
        padding=masks,
    )
    assert set(curvature.names()) == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
    singles = estimate(layer, sequence_loss, list(items.items()))
    for key, block in curvature.blocks.items():
        torch.testing.assert_close(block.A_II, singles.blocks[key].A_II)
        torch.testing.assert_close(block.G_OO, singles.blocks[key].G_OO)


def test_gradient_checkpointing_counts_once():
    model, items = seeded(RelativePositions), make_items([3] * 2, D)

    def checkpointed(model, batch):
        x = batch.x.requires_grad_()
        return sequence_loss(
            lambda x: torch.utils.checkpoint.checkpoint(model, x, use_reentrant=True),
            type(batch)(x, batch.lengths),
        )

    plain = estimate(model, sequence_loss, [items]).blocks
    for key, block in estimate(model, checkpointed, [make_items([3] * 2, D)]).blocks.items():
        assert block.positions == plain[key].positions
        torch.testing.assert_close(block.G_OO, plain[key].G_OO)


class RelativeAttention(nn.Module):
    """SpeechBrain's self-attention with relative positions: a packed raw parameter, a projected table."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def loss(self, _, batch):
        def run(x):
            length = x.shape[1]
            places = torch.arange(length - 1, -length, -1, dtype=x.dtype)
            table = torch.sin(places[:, None] / torch.arange(1, D + 1))[None]
            return self.attention(x, x, x, table, key_padding_mask=~batch.mask)[0]

        return sequence_loss(run, batch)


def test_speechbrain_relative_attention_padded_equals_single():
    module = pytest.importorskip(
        "speechbrain.nnet.attention", reason="SpeechBrain is not installed (asrcl[recipes])"
    )
    model = seeded(lambda: RelativeAttention(module.RelPosMHAXL(D, HEADS))).float()
    items = make_items(LENGTHS, D, dtype=torch.float32)
    singles, padded = (
        estimate(model, model.loss, batches_of(items, size), padding=masks).blocks for size in (1, 4)
    )
    packed = BlockKey("attention.in_proj_weight", 0, 3 * D)
    out = BlockKey("attention.out_proj.weight", 0, D)
    assert set(padded) == {packed, out, BlockKey("attention.linear_pos.weight", 0, D)}
    for key in (packed, out):
        assert padded[key].positions == sum(LENGTHS)
        torch.testing.assert_close(padded[key].A_II, singles[key].A_II)
        torch.testing.assert_close(padded[key].G_OO, singles[key].G_OO)
