"""Cases of layers: convolutions, norms, tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from adapter_cases import FRAMES, ITEMS, WIDTH, Case, Net, channels, frames, images, lin, normal, numbers, plain, w, wrapped
from torch import Tensor, nn

CONVOLUTIONS = {
    "conv1d": wrapped(lambda: nn.Conv1d(WIDTH, 3, 3, stride=2, padding=1), channels),
    "conv1d same, even kernel": wrapped(lambda: nn.Conv1d(WIDTH, 3, 4, padding="same", dilation=2), channels),
    "conv1d valid": wrapped(lambda: nn.Conv1d(WIDTH, 3, 2, padding="valid", bias=False), channels),
    "conv1d circular": wrapped(lambda: nn.Conv1d(WIDTH, 3, 3, padding=1, padding_mode="circular"), channels),
    "conv1d reflect same": wrapped(lambda: nn.Conv1d(WIDTH, 3, 4, padding="same", padding_mode="reflect"), channels),
    "conv1d pointwise": wrapped(lambda: nn.Conv1d(WIDTH, 3, 1, stride=2, padding=1), channels),
    "conv1d one output": wrapped(lambda: nn.Conv1d(WIDTH, 1, 3), channels),
    "conv2d": wrapped(lambda: nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), images),
    "conv2d int padding": wrapped(lambda: nn.Conv2d(4, 3, 3, padding=2), images),
    "conv2d same": wrapped(lambda: nn.Conv2d(4, 3, (3, 4), padding="same", dilation=(2, 1)), images),
    "conv2d circular": wrapped(lambda: nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode="circular"), images),
    "conv3d": wrapped(lambda: nn.Conv3d(2, 3, (2, 3, 1), stride=(1, 2, 1), padding=(0, 1, 0)), normal(ITEMS, 2, 3, 5, 2)),
    "grouped": wrapped(lambda: nn.Conv1d(WIDTH, 9, 3, groups=3, padding=1), channels),
    "grouped 2d": wrapped(lambda: nn.Conv2d(4, 6, (2, 3), groups=2, stride=2), images),
    "depthwise": wrapped(lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=1, stride=2), channels),
    "depthwise same": wrapped(lambda: nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH, padding="same", dilation=2), channels),
    "depthwise 2d": wrapped(lambda: nn.Conv2d(4, 4, (3, 2), groups=4, stride=(2, 3), dilation=(1, 2)), images),
    "depthwise 3d": wrapped(lambda: nn.Conv3d(2, 2, 2, groups=2), normal(ITEMS, 2, 3, 3, 3)),
    "depth multiplier": wrapped(lambda: nn.Conv1d(WIDTH, 2 * WIDTH, 3, groups=WIDTH), channels),
    "unbatched conv1d": plain(lambda n, x: n.c(torch.sin(x[0]))[None], channels, c=lambda: nn.Conv1d(WIDTH, 3, 3), sizes=(1,)),
    "unbatched depthwise": plain(
        lambda n, x: n.c(torch.sin(x[0]))[None], channels, c=lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH), sizes=(1,)
    ),
    "unbatched conv of a shared table": plain(
        lambda n, x: x + torch.tanh(n.c(torch.ones(WIDTH, 9, dtype=x.dtype).cumsum(1)))[None],
        channels,
        c=lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH),
        by_item={"c.weight": "share", "c.bias": "share"},
    ),
    "conv depthwise twice": plain(
        lambda n, x: n.c(torch.sin(n.c(x))), channels, c=lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=1)
    ),
    "conv grouped twice": plain(
        lambda n, x: n.c(torch.sin(n.c(x))), channels, c=lambda: nn.Conv1d(WIDTH, WIDTH, 3, groups=2, padding=1)
    ),
    "transposed conv": wrapped(
        lambda: nn.ConvTranspose1d(WIDTH, 3, 3),
        channels,
        by_item={"layer.weight": "conv_transpose1d", "layer.bias": "conv_transpose1d"},
    ),
    "conv of merged items": plain(
        lambda n, x: n.c(x.reshape(-1, 2, 7)).reshape(len(x), 3, -1), channels, c=lambda: nn.Conv1d(2, 3, 3)
    ),
    "depthwise of merged items": plain(
        lambda n, x: n.c(x.reshape(-1, 2, 7)).reshape(len(x), 6, -1), channels, c=lambda: nn.Conv1d(2, 2, 3, groups=2)
    ),
    "channels last memory": plain(
        lambda n, x: n.c(torch.sin(x)), images, c=lambda: nn.Conv2d(4, 3, 2).to(memory_format=torch.channels_last)
    ),
}


def batch_norm(kind: type[nn.Module], size: int, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = kind(size, **options)
        with torch.no_grad():
            if layer.running_mean is not None:
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
            layer.weight.normal_()
            layer.bias.normal_()
        return layer

    return build


STATISTICS = "batch statistics"
NORMS = {
    "layer norm": wrapped(lambda: nn.LayerNorm(WIDTH), frames),
    "layer norm of two axes": wrapped(lambda: nn.LayerNorm((FRAMES, WIDTH)), frames),
    "layer norm without bias": wrapped(lambda: nn.LayerNorm(WIDTH, bias=False), frames),
    "rms norm": wrapped(lambda: nn.RMSNorm(WIDTH), frames),
    "group norm": wrapped(lambda: nn.GroupNorm(2, WIDTH), channels),
    "group norm of vectors": wrapped(lambda: nn.GroupNorm(2, WIDTH), normal(ITEMS, WIDTH)),
    "group norm 2d": wrapped(lambda: nn.GroupNorm(2, 4), images),
    "instance norm": wrapped(lambda: nn.InstanceNorm1d(WIDTH, affine=True), channels),
    "instance norm 2d": wrapped(batch_norm(nn.InstanceNorm2d, 4, affine=True, track_running_stats=True), images),
    "batch norm": wrapped(batch_norm(nn.BatchNorm1d, WIDTH), channels),
    "batch norm of vectors": wrapped(batch_norm(nn.BatchNorm1d, WIDTH), normal(ITEMS, WIDTH)),
    "batch norm 2d": wrapped(batch_norm(nn.BatchNorm2d, 4), images),
    "batch norm with batch statistics": Case(
        lambda: Net(lambda net, x: net.layer(x), layer=batch_norm(nn.BatchNorm1d, WIDTH, track_running_stats=False)()),
        channels,
        {"layer.weight": STATISTICS, "layer.bias": STATISTICS},
        sizes=(1,),
    ),
}


def embed(run: Callable[..., Tensor], table: Callable[[], Any], by_item: dict[str, str] | None = None) -> Case:
    return plain(run, numbers(ITEMS, FRAMES), e=table, by_item=by_item or {})


TABLES = {
    "embedding": embed(lambda n, ids: torch.tanh(n.e(ids)), lambda: nn.Embedding(7, 3)),
    "embedding with padding": embed(lambda n, ids: torch.tanh(n.e(ids)), lambda: nn.Embedding(5, 3, padding_idx=2)),
    "negative padding": embed(lambda n, ids: torch.tanh(n.e(ids)), lambda: nn.Embedding(5, 3, padding_idx=-1)),
    "rows of a parameter": embed(lambda n, ids: torch.tanh(n.e[ids]), lambda: w(5, 3)),
    "rows of a part": embed(lambda n, ids: torch.tanh(n.e[1:6][ids]), lambda: w(7, 3)),
    "columns of a parameter": embed(lambda n, ids: torch.tanh(n.e.T[ids]), lambda: w(3, 5), {"e": "transposed"}),
    "scaled by frequency": embed(
        lambda n, ids: torch.tanh(n.e(ids)), lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), {"e.weight": "embedding"}
    ),
    "index_select": embed(
        lambda n, ids: torch.tanh(n.e.index_select(0, ids.flatten())).unflatten(0, ids.shape),
        lambda: w(5, 3),
        {"e": "index_select"},
    ),
    "positions, one row of numbers": plain(
        lambda n, x: torch.sin(x * n.e(torch.arange(FRAMES)[None])),
        e=lambda: nn.Embedding(7, WIDTH),
        by_item={"e.weight": "shared"},
    ),
    "positions, as many as items": plain(
        lambda n, x: torch.sin(x[:, :4] * n.e(torch.arange(4))),
        e=lambda: nn.Embedding(7, WIDTH),
        by_item={"e.weight": "shared"},
        sizes=(1, 2, 3),
    ),
    "positions for every item": plain(
        lambda n, x: torch.sin(x * n.e(torch.arange(FRAMES)[None].expand(len(x), -1))), e=lambda: nn.Embedding(7, WIDTH)
    ),
    "embedding twice": embed(
        lambda n, ids: torch.tanh(n.e(ids)) * n.e(4 - ids), lambda: nn.Embedding(5, 3), {"e.weight": "several places"}
    ),
    "tied output": plain(
        lambda n, ids: torch.tanh(n.h(n.e(ids))) @ n.e.weight.T,
        numbers(ITEMS, FRAMES),
        e=lambda: nn.Embedding(5, 3),
        h=lin(3, 3),
        by_item={"e.weight": "table"},
    ),
}


LAYERS: dict[str, Case] = {**CONVOLUTIONS, **NORMS, **TABLES}
