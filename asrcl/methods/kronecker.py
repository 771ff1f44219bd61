"""Blocks of curvature that a method keeps over domains: their quadratic form, their eigenbasis, and their tensors as a state.

A kept block is in units of one domain: the output sum of a Kronecker block is the sum over domains of G, over one item, and its
input sum the sum over domains of A, over so many positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from asrcl.curvature import Block, BlockKey, DenseBlock, KroneckerBlock, kron
from asrcl.state import StateDict

Kept = dict[BlockKey, Block]


def joined(before: Block | None, block: Block, decay: float = 1.0) -> Block:
    """A kept block and that of another domain as one: of Kronecker blocks G adds up and A is the mean.

    Args:
        before: what is kept so far; None where the domain is the first.
        block: of the domain, as it was estimated.
        decay: weight of `before`.
    """
    if isinstance(block, DenseBlock):  # of depthwise kernels
        assert before is None or isinstance(before, DenseBlock)
        return DenseBlock(block.matrix if before is None else decay * before.matrix_sum + block.matrix, 1.0, block.rows)
    assert isinstance(block, KroneckerBlock)
    inputs, outputs, transposed = block.A.smallest(), block.G.smallest(), block.transposed
    if before is None:
        return KroneckerBlock.of(inputs, outputs, 1.0, 1.0, transposed)
    assert isinstance(before, KroneckerBlock)
    inputs, outputs = decay * before.input.smallest() + inputs, decay * before.output.smallest() + outputs
    return KroneckerBlock.of(inputs, outputs, decay * before.positions + 1.0, 1.0, transposed)


def blended(before: Block | None, block: Block, rate: float, unit: float) -> Block:
    """A running block `(1 - rate) before + rate block`, factor by factor, of blocks in units of their own (mean eigenvalue 1).

    Args:
        before: what is kept so far; None where the domain is the first, whose block is taken whole.
        block: of the domain, as it was estimated.
        rate: of the domain's factors.
        unit: curvature that counts as 1; A is divided by its own mean eigenvalue, and G by what remains.
    """
    unit = unit or 1.0  # nothing is curved: all directions are free
    share = 1.0 if before is None else rate
    if isinstance(block, DenseBlock):
        assert before is None or isinstance(before, DenseBlock)
        matrix = share / unit * block.matrix
        return DenseBlock(matrix if before is None else (1 - share) * before.matrix + matrix, 1.0, block.rows)
    assert isinstance(block, KroneckerBlock)
    mean = block.A.mean() or 1.0
    inputs, outputs = share / mean * block.A.smallest(), share * mean / unit * block.G.smallest()
    if before is not None:
        assert isinstance(before, KroneckerBlock)
        inputs, outputs = (1 - share) * before.A.smallest() + inputs, (1 - share) * before.G.smallest() + outputs
    return KroneckerBlock.of(inputs, outputs, 1.0, 1.0, block.transposed)


def spectral(block: Block, input_alone: bool) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Eigenvectors of the rows and of the columns, None for an identity, and the eigenvalues in their basis, in float64.

    Args:
        block: over rows of a parameter that is seen as a matrix `[R, C]`.
        input_alone: take the output factor of a Kronecker block for the identity.

    Returns:
        Vectors `[R, R]` and `[C, C]` with eigenvalues `[R, C]`, which have one row or column where a side does not count; of a
        block of depthwise kernels None and `[B, K, K]` with `[B, 1, K]`.
    """
    if isinstance(block, DenseBlock):
        values, vectors = kron.eigenbasis(block.matrix)
        return None, vectors, values[:, None]
    assert isinstance(block, KroneckerBlock)
    inputs = block.A.eigen()
    output = (inputs[0].new_ones(1), None) if input_alone else block.G.eigen()
    sides = (inputs, output) if block.transposed else (output, inputs)
    (rows, row_vectors), (columns, column_vectors) = sides
    return row_vectors, column_vectors, torch.outer(rows, columns)


@dataclass(frozen=True)
class Filter:
    """What a change is rotated into, and by what it is multiplied there.

    Attributes:
        rows, columns: eigenvectors of both sides; None for the identity.
        gains: `[R, C]`, or with one row or column where a side does not count; of depthwise kernels `[B, 1, K]`.
    """

    rows: Tensor | None
    columns: Tensor | None
    gains: Tensor

    def __call__(self, change: Tensor) -> Tensor:
        """The filtered change of the covered rows, in their shape."""
        matrix = change.reshape(len(self.gains), 1, -1) if self.gains.dim() == 3 else change.flatten(1)
        turned = kron.rotate(self.rows, matrix, self.columns) * self.gains
        return kron.rotate_back(self.rows, turned, self.columns).reshape(change.shape)


def half_quadratic(block: Block, delta: Tensor) -> Tensor:
    """`½ deltaᵀ F delta`, a scalar whose gradient `F delta` is computed with the value, not by autograd."""
    product = (delta * block.multiply(delta.detach())).sum()
    return product - 0.5 * product.detach()


def block_state(kept: Mapping[BlockKey, Block]) -> StateDict:
    """Kept blocks as tensors by name."""
    state: StateDict = {}
    for key, block in kept.items():
        if isinstance(block, KroneckerBlock):
            form = "transposed" if block.transposed else "plain"
            sides = {"input": block.input, "output": block.output}
            tensors = {side: next(iter(factor.tensors().values())) for side, factor in sides.items()}
            tensors["positions"] = torch.tensor(block.positions, dtype=torch.float64)
        else:
            assert isinstance(block, DenseBlock)
            form, tensors = "dense", {"matrix": block.matrix_sum}
        state |= {f"{role}.{form}.{key.row_start}.{key.row_stop}.{key.name}": value for role, value in tensors.items()}
    return state


def blocks_of_state(state: Mapping[str, Tensor]) -> Kept:
    """The blocks whose tensors `block_state` gave."""
    parts: dict[tuple[str, BlockKey], dict[str, Tensor]] = {}
    for full, value in state.items():
        role, form, start, stop, name = full.split(".", 4)
        parts.setdefault((form, BlockKey(name, int(start), int(stop))), {})[role] = value
    kept: Kept = {}
    for (form, key), held in parts.items():
        if form == "dense":
            kept[key] = DenseBlock(held["matrix"], 1.0, key.row_stop - key.row_start)
        else:
            positions = float(held["positions"])
            kept[key] = KroneckerBlock.of(held["input"], held["output"], positions, 1.0, form == "transposed")
    return kept
