"""Blocks of curvature that a method keeps: running sums over domains, their quadratic form, and their tensors as a state.

A kept block is in units of one domain: the output sum of a Kronecker block is the sum over domains of G, over one item, and its
input sum the sum over domains of A, over so many positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asrcl.curvature import Block, BlockKey, DenseBlock, KroneckerBlock
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


def half_quadratic(block: Block, delta: Tensor) -> Tensor:
    """`½ deltaᵀ F delta`, a scalar whose gradient `F delta` is computed with the value, not by autograd."""
    image = block.multiply(delta.detach())
    return (delta * image).sum() - 0.5 * (delta.detach() * image).sum()


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
