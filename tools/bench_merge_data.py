"""The linear maps of a Conformer with attention decoder, their curvature and an update, made up and written to files.

Every factor has the eigenvalues `i^-1.5` with mean 1, in the eigenbasis of its size with its coordinates permuted: so the
eigenvectors are known and a decomposed curvature costs nothing to make.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from asrcl.curvature import BlockKey, Curvature, DenseFactor, DiagonalFactor, Factor, KroneckerBlock, LowRankFactor

DECAY = 1.5


@dataclass(frozen=True)
class Size:
    """Widths and numbers of blocks of a model."""

    width: int
    inner: int
    outputs: int
    frontend: int
    encoder: int
    decoder: int


SIZES = {
    "full": Size(256, 2048, 5000, 4864, 12, 6),
    "medium": Size(256, 2048, 1000, 1216, 2, 1),
    "tiny": Size(24, 96, 150, 120, 2, 1),
    "whisper": Size(384, 1536, 51_864, 240, 4, 4),
}
WIDEST = 8192
"""Factors beyond are diagonals, as `estimate` keeps them; a model with so many outputs has no second output layer."""


@dataclass(frozen=True)
class Map:
    """A linear map `[outputs, inputs]`; maps with the same `source` read the same input."""

    name: str
    outputs: int
    inputs: int
    source: str

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight."""
        return self.outputs, self.inputs

    def solve_flops(self) -> tuple[float, float]:
        """Operations of the two factorisations, and of the two solves."""
        O, I = self.shape  # noqa: E741 (output and input features)
        return (O**3 + I**3) / 3, 2.0 * O * I * (O + I)


def maps(size: Size) -> list[Map]:
    """All linear maps in the order of the model."""
    found = [Map("encoder.embed", size.width, size.frontend, "frontend")]
    for number in range(size.encoder):
        name = f"encoder.{number}"
        heads = f"{name}.attention"
        found += [*_inner(f"{name}.macaron", size), *_attention(heads, size, heads, heads)]
        found += [Map(f"{name}.position", size.width, size.width, "positions"), *_inner(f"{name}.feed_forward", size)]
    if size.outputs <= WIDEST:
        found.append(Map("ctc", size.outputs, size.width, "memory"))
    for number in range(size.decoder):
        name = f"decoder.{number}"
        found += [*_attention(f"{name}.self", size, f"{name}.self", f"{name}.self")]
        found += [*_attention(f"{name}.source", size, f"{name}.source", "memory"), *_inner(f"{name}.feed_forward", size)]
    return [*found, Map("decoder.output", size.outputs, size.width, "decoder.output")]


def _inner(name: str, size: Size) -> list[Map]:
    up = Map(f"{name}.up", size.inner, size.width, f"{name}.up")
    return [up, Map(f"{name}.down", size.width, size.inner, f"{name}.down")]


def _attention(name: str, size: Size, query: str, memory: str) -> list[Map]:
    sources = {"query": query, "key": memory, "value": memory, "out": f"{name}.out"}
    return [Map(f"{name}.{part}", size.width, size.width, source) for part, source in sources.items()]


@cache
def _basis(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    values_D = torch.arange(1, size + 1, dtype=torch.float64) ** -DECAY
    return values_D / values_D.mean(), torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


@cache
def _matrix(size: int) -> Tensor:
    values_D, vectors_DD = _basis(size)
    matrix_DD = (vectors_DD * values_D) @ vectors_DD.mT
    return (matrix_DD + matrix_DD.mT).div_(2).float()


def _factor(size: int, seed: int, decomposed: bool) -> Factor:
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    if size > WIDEST:
        values_D = torch.arange(1, size + 1, dtype=torch.float64) ** -DECAY
        return DiagonalFactor((values_D / values_D.mean())[order].float())
    if decomposed:
        values_D, vectors_DD = _basis(size)
        return LowRankFactor(vectors_DD[order].float(), values_D, torch.zeros((), dtype=torch.float64))
    return DenseFactor(_matrix(size)[order][:, order].contiguous())


def curvature(size: Size, decomposed: bool = False) -> Curvature:
    """Factors with mean eigenvalue 1, so that absolute and relative damping agree; inputs shared where maps share them."""
    inputs: dict[str, Factor] = {}
    blocks = {}
    for number, each in enumerate(maps(size)):
        if each.source not in inputs:
            inputs[each.source] = _factor(each.inputs, 2 * number, decomposed)
        output = _factor(each.outputs, 2 * number + 1, decomposed)
        key = BlockKey(f"{each.name}.weight", 0, each.outputs)
        blocks[key] = KroneckerBlock(inputs[each.source], output, 1, 1)
    return Curvature(blocks, {"parameters": {f"{each.name}.weight": list(each.shape) for each in maps(size)}})


def weights(size: Size) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, old weight and update of every map."""
    generator = torch.Generator().manual_seed(0)
    for each in maps(size):
        old, delta = (torch.randn(each.shape, generator=generator) for _ in range(2))
        yield f"{each.name}.weight", 0.05 * old, 0.001 * delta


def write(size: Size, folder: Path) -> None:
    """`curvature.safetensors`, `old.safetensors` and `new.safetensors` in a folder."""
    curvature(size).save(folder)
    found = list(weights(size))
    save_file({name: old for name, old, _ in found}, folder / "old.safetensors")
    save_file({name: old + delta for name, old, delta in found}, folder / "new.safetensors")
