"""Cases of raw parameters, linear maps however written, attention, recurrence, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from adapter_cases import FRAMES, ITEMS, WIDTH, Case, Net, frames, lin, normal, plain, w, wrapped
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint


def iadd(n: Net, x: Tensor) -> Tensor:
    x = torch.sin(x)
    x += n.p
    x -= n.q
    return x


def in_place_methods(n: Net, x: Tensor) -> Tensor:
    x = torch.sin(x)
    x.add_(n.p, alpha=2.0).sub_(n.q, alpha=0.5)
    return x


def imul(n: Net, x: Tensor) -> Tensor:
    x = torch.sin(x)
    x *= n.p
    return x + n.q


def class_token(n: Net, x: Tensor) -> Tensor:
    return torch.sin(n.lin(torch.cat([n.token.expand(len(x), -1, -1), x], 1) + n.table[:, : x.shape[1] + 1]))


def written(n: Net, x: Tensor) -> Tensor:
    x = torch.sin(x + n.p)
    x[:, 0] = n.p * 1.0
    x[:, 1] = n.p
    return x


def pair(shape: tuple[int, ...] = (WIDTH,)) -> dict[str, Callable[[], Tensor]]:
    return {"p": lambda: w(*shape), "q": lambda: w(*shape)}


RAW = {
    "added and multiplied": plain(lambda n, x: torch.sin(x * n.p + n.q), **pair()),
    "the other way round": plain(lambda n, x: n.q + n.p * x, **pair()),
    "one number": plain(lambda n, x: torch.sin(n.p * x) + n.q, **pair(())),
    "one number in an axis": plain(lambda n, x: torch.sin(n.p * x) - n.q, **pair((1,))),
    "p - x, x - p": plain(lambda n, x: torch.sin(n.p - x) * torch.cos(x - n.q), **pair()),
    "sub with alpha": plain(lambda n, x: torch.sin(torch.sub(n.p, x, alpha=3)) * torch.cos(torch.sub(x, n.q, alpha=2)), **pair()),
    "add with alpha": plain(lambda n, x: torch.sin(torch.add(n.p, x, alpha=3)) * torch.add(x, n.q, alpha=2), **pair()),
    "methods": plain(lambda n, x: x.add(other=n.p).mul(n.q), **pair()),
    "in place +=": plain(iadd, **pair()),
    "in place add_": plain(in_place_methods, **pair()),
    "in place *=": plain(imul, **pair(), by_item={"p": "mul"}),
    "written into": plain(written, **pair(), by_item={"p": ""}),
    "divided": plain(lambda n, x: torch.sin(x / n.p) + n.q, **pair(), by_item={"p": "div"}),
    "layer scale of channels": plain(lambda n, x: x.mT * n.p + n.q, **pair((WIDTH, 1))),
    "scale of frames": plain(lambda n, x: x * n.p + n.q, **pair((FRAMES, 1))),
    "with leading ones": plain(lambda n, x: x * n.p + n.q, **pair((1, 1, WIDTH))),
    "heads": plain(lambda n, x: x.unflatten(-1, (2, 3)) * n.p + n.q.view(1, 1, 2, 3), p=lambda: w(2, 3), q=lambda: w(WIDTH)),
    "positional table": plain(lambda n, x: torch.sin(x + n.table[:, : x.shape[1]]), table=lambda: w(1, 9, WIDTH)),
    "positional rows": plain(lambda n, x: torch.sin(x + n.table[2 : 2 + x.shape[1]]), table=lambda: w(9, WIDTH)),
    "class token": plain(
        class_token, token=lambda: w(1, 1, WIDTH), table=lambda: w(1, 9, WIDTH), lin=lin(), by_item={"token": "cat"}
    ),
    "expanded first": plain(
        lambda n, x: torch.sin(x + n.p.expand(len(x), -1, -1)), p=lambda: w(1, FRAMES, WIDTH), by_item={"p": "repeated"}
    ),
    "used twice": plain(lambda n, x: torch.sin(x + n.p) + n.p, p=lambda: w(WIDTH)),
    "two halves": plain(lambda n, x: torch.sin(x[..., :3] + n.p[:3]) * n.p[3:], p=lambda: w(WIDTH)),
    "overlapping parts": plain(
        lambda n, x: torch.sin(x[..., :4] + n.p[:4]) * n.p[2:], p=lambda: w(WIDTH), by_item={"p": "overlapping"}
    ),
    "shared by all items": plain(
        lambda n, x: x * torch.sin(n.p * 2 + torch.ones(WIDTH).double()), p=lambda: w(WIDTH), by_item={"p": "share"}, sizes=(2, 4)
    ),
    "both parameters": plain(lambda n, x: x * (n.p * n.q), **pair(), by_item={"p": "mul", "q": "mul"}),
    "detached elsewhere": plain(lambda n, x: torch.sin(x + n.p) * n.p.detach(), p=lambda: w(WIDTH), by_item={"p": "detached"}),
    "a whole expression": plain(lambda n, x: x * torch.exp(n.p), p=lambda: w(WIDTH), by_item={"p": "exp"}),
}

GATHERED = {
    "linear": plain(lambda n, x: n.a(torch.sin(x)), a=lin()),
    "linear of vectors": plain(lambda n, x: n.a(torch.sin(x)), normal(ITEMS, WIDTH), a=lin()),
    "one output": plain(lambda n, x: n.a(torch.sin(x)), a=lin(WIDTH, 1)),
    "one input": plain(lambda n, x: n.a(torch.sin(x[..., :1])), a=lin(1, 3)),
    "imported by name": plain(lambda n, x: linear(torch.sin(x), n.weight, n.bias), weight=lambda: w(3, WIDTH), bias=lambda: w(3)),
    "keywords": plain(
        lambda n, x: F.linear(input=torch.sin(x), weight=n.weight, bias=n.bias), weight=lambda: w(3, WIDTH), bias=lambda: w(3)
    ),
    "vector weight": plain(lambda n, x: F.linear(x, n.weight), weight=lambda: w(WIDTH), by_item={"weight": "vector"}),
    "matmul": plain(lambda n, x: torch.sin(x @ n.p) @ n.q.T, p=lambda: w(WIDTH, 3), q=lambda: w(2, 3)),
    "mm": plain(
        lambda n, x: torch.mm(x, mat2=n.p) + x.mm(n.q),
        normal(ITEMS, WIDTH),
        p=lambda: w(WIDTH, 3),
        q=lambda: w(WIDTH, 3),
        by_item={"p": "mm"},
    ),
    "addmm": plain(
        lambda n, x: torch.addmm(n.b, x.flatten(0, 1), n.p).unflatten(0, x.shape[:2]), b=lambda: w(3), p=lambda: w(WIDTH, 3)
    ),
    "addmm with beta": plain(
        lambda n, x: torch.addmm(n.b, x, n.p, beta=2),
        normal(ITEMS, WIDTH),
        b=lambda: w(3),
        p=lambda: w(WIDTH, 3),
        by_item={"b": "addmm", "p": "addmm"},
    ),
    "on the left": plain(lambda n, x: torch.sin(n.p @ x), p=lambda: w(3, FRAMES), by_item={"p": "matmul"}),
    "low rank": plain(
        lambda n, x: torch.sin(x @ (n.p @ n.q)), p=lambda: w(WIDTH, 2), q=lambda: w(2, 3), by_item={"p": "", "q": ""}
    ),
    "low rank, as many rows as items": plain(
        lambda n, x: torch.sin(x[..., :4] @ F.linear(n.p, n.q)),
        p=lambda: w(ITEMS, 2),
        q=lambda: w(3, 2),
        by_item={"p": "", "q": ""},
    ),
    "queries through a map": plain(
        lambda n, x: torch.sin(x @ n.a(n.p).mT),
        a=lin(),
        p=lambda: w(ITEMS, WIDTH),
        by_item={"p": "", "a.weight": "", "a.bias": ""},
    ),
    "linear twice": plain(lambda n, x: n.a(torch.sin(n.a(x))), a=lin()),
    "W and W.T": plain(
        lambda n, x: F.linear(torch.sin(F.linear(x, n.p)), n.p.T), p=lambda: w(3, WIDTH), by_item={"p": "several places"}
    ),
    "whole and part": plain(
        lambda n, x: F.linear(torch.sin(F.linear(x, n.p)), n.p[:2]), p=lambda: w(WIDTH, WIDTH), by_item={"p": "overlap"}
    ),
    "map and factor": plain(
        lambda n, x: F.linear(x, n.p) * n.p[0], p=lambda: w(WIDTH, WIDTH), by_item={"p": "otherwise in another"}
    ),
    "chunks": plain(lambda n, x: torch.sin(F.linear(x, n.p[:3])) * F.linear(x, n.p[3:]), p=lambda: w(WIDTH, WIDTH)),
    "columns": plain(lambda n, x: torch.sin(F.linear(x[..., :3], n.p[:, :3])), p=lambda: w(4, WIDTH), by_item={"p": "rows"}),
    "detached weight": plain(
        lambda n, x: torch.sin(F.linear(F.linear(x, n.p), n.p.detach())), p=lambda: w(WIDTH, WIDTH), by_item={"p": "detached"}
    ),
    "einsum": plain(lambda n, x: torch.einsum("npi,oi->npo", x, n.p).sin(), p=lambda: w(3, WIDTH), by_item={"p": "einsum"}),
    "a batch of matrices": plain(lambda n, x: torch.sin(x[:, None] @ n.p), p=lambda: w(2, WIDTH, 3), by_item={"p": "matmul"}),
    "bilinear": plain(
        lambda n, x: n.a(x, x.sin()),
        a=lambda: nn.Bilinear(WIDTH, WIDTH, 2),
        by_item={"a.weight": "bilinear", "a.bias": "bilinear"},
    ),
    "prelu": plain(lambda n, x: n.a(x), a=lambda: nn.PReLU(FRAMES), by_item={"a.weight": "prelu"}),
    "time first": plain(
        lambda n, x: n.b(torch.sin(n.a(x.transpose(0, 1)))).transpose(0, 1), a=lin(), b=lin(WIDTH, 2), sizes=(1, 2, 3, 4)
    ),
    "flattened": plain(lambda n, x: n.b(torch.sin(n.a(x.flatten(0, 1)))).view(len(x), -1), a=lin(), b=lin(WIDTH, 2)),
    "flattened, time first": plain(
        lambda n, x: n.b(torch.sin(n.a(x.transpose(0, 1).reshape(-1, WIDTH)))).view(FRAMES, len(x), 2).transpose(0, 1),
        a=lin(),
        b=lin(WIDTH, 2),
    ),
    "heads merged": plain(
        lambda n, x: n.b(torch.sin(n.a(x.unflatten(-1, (2, 3)).transpose(1, 2).reshape(-1, FRAMES, 3)))).view(len(x), -1),
        a=lin(3, 3),
        b=lin(3, 2),
    ),
    "two views stacked": plain(
        lambda n, x: sum(n.a(torch.cat([x.sin(), x.cos()])).chunk(2)),
        a=lin(),
        by_item={"a.weight": "shared", "a.bias": "share"},
    ),
    "packed": plain(
        lambda n, x: n.a(x[x[..., 0] > -9]).view(len(x), FRAMES, -1).sin(),
        a=lin(),
        by_item={"a.weight": "shared", "a.bias": "share"},
    ),
    "detached input": plain(
        lambda n, x: n.a(n.b(x).detach()).sin(),
        a=lin(),
        b=lin(),
    ),
}


def attention(data: Callable[[], Any] = frames, by_item: dict[str, str] | None = None, memory: int = 0, **options: Any) -> Case:
    """Self attention; with `memory` its keys and values have that width."""
    batch_first = options.setdefault("batch_first", True)

    def run(net: Net, x: Tensor) -> Tensor:
        x = torch.sin(x * net.before)
        x = x if batch_first else x.transpose(0, 1)
        other = torch.cos(x[..., :memory]) if memory else x
        value = other[..., : options.get("vdim") or other.shape[-1]]
        output = net.layer(x, other, other if value.shape == other.shape else value)[0]
        return output if batch_first else output.transpose(0, 1)

    def build() -> Net:
        layer = nn.MultiheadAttention(WIDTH, 2, **options)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_(std=0.5)
        return Net(run, layer=layer, before=w(1) + 1)

    return Case(build, data, by_item or {}, sizes=(1, 2, 3, 4))


def checkpointed(reentrant: bool, shared: bool = False) -> Callable[..., Tensor]:
    def run(net: Net, x: Tensor) -> Tensor:
        x = torch.sin(net.first(x) if reentrant or shared else x)
        x = checkpoint(lambda x: torch.sin(net.a(x)) * net.p + net.norm(x), x, use_reentrant=reentrant)
        x = checkpoint(lambda x: net.c(torch.sin(x)), x, use_reentrant=reentrant)
        return net.a(x) if shared else x

    return run


def amp(n: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return n.b(torch.tanh(n.norm(n.a(x.float()))) * n.p).double()


BLOCK: dict[str, Any] = {
    "first": lin(),
    "a": lin(),
    "p": lambda: w(WIDTH),
    "norm": lambda: nn.LayerNorm(WIDTH),
    "c": lin(WIDTH, WIDTH),
}
CELL = {f"layer.{kind}_{part}_l0": "" for kind in ("weight", "bias") for part in ("ih", "hh")}
INSIDE_OUT = "outside of"
LARGER = {
    "attention": attention(),
    "attention, time first": attention(batch_first=False),
    "attention, as many frames as items": attention(normal(ITEMS, ITEMS, WIDTH)),
    "attention without bias": attention(bias=False),
    "attention, bias_kv": attention(add_bias_kv=True, by_item={"layer.bias_k": "appended", "layer.bias_v": "appended"}),
    "attention, zero key": attention(add_zero_attn=True),
    "attention to a memory": attention(memory=WIDTH),
    "attention, kdim and vdim": attention(memory=5, kdim=5, vdim=4),
    "encoder layer": wrapped(lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), frames),
    "checkpointed": plain(checkpointed(False), **BLOCK),
    "checkpointed, reentrant": plain(checkpointed(True), **BLOCK),
    "checkpointed and used outside": plain(checkpointed(False, True), **BLOCK),
    "checkpointed, reentrant and used outside": plain(
        checkpointed(True, True), **BLOCK, by_item={"a.weight": INSIDE_OUT, "a.bias": INSIDE_OUT}
    ),
    "weight norm": wrapped(
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 3)),
        frames,
        by_item={f"layer.parametrizations.weight.original{i}": "weight_norm" for i in (0, 1)},
    ),
    "spectral norm": wrapped(
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 3)),
        frames,
        by_item={"layer.parametrizations.weight.original": ""},
    ),
    "LSTM": Case(
        lambda: Net(lambda n, x: n.layer(x)[0], layer=nn.LSTM(WIDTH, 3, batch_first=True)), frames, {n: "lstm" for n in CELL}
    ),
    "GRU": Case(
        lambda: Net(lambda n, x: n.layer(x)[0], layer=nn.GRU(WIDTH, 3, batch_first=True)), frames, {n: "gru" for n in CELL}
    ),
    "LSTM cell": Case(
        lambda: Net(lambda n, x: n.layer(x[:, 0])[0], layer=nn.LSTMCell(WIDTH, 3)),
        frames,
        {n.removesuffix("_l0"): "lstm_cell" for n in CELL},
    ),
    "half precision products": plain(amp, a=lin(), b=lin(), norm=lambda: nn.LayerNorm(WIDTH), p=lambda: w(WIDTH), tolerance=0.03),
}


MAPS: dict[str, Case] = {**RAW, **GATHERED, **LARGER}
