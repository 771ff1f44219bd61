"""Models and curvatures shared by the merge tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asrcl.curvature import Block, BlockKey, Curvature, DiagonalBlock, KroneckerBlock

torch.set_num_threads(1)


def make_state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Everything that occurs: matrices, a pointwise convolution, a scalar, statistics, counters."""
    g = torch.Generator().manual_seed(seed)
    return {
        "encoder.weight": torch.randn(4, 3, generator=g).to(dtype),
        "encoder.bias": torch.randn(4, generator=g).to(dtype),
        "norm.running_mean": torch.randn(4, generator=g).to(dtype),
        "norm.num_batches_tracked": torch.tensor(seed),
        "packed": torch.randn(6, 3, generator=g).to(dtype),
        "conv.weight": torch.randn(2, 4, 1, generator=g).to(dtype),
        "gain": torch.randn((), generator=g).to(dtype),
        "mask": torch.tensor([seed % 2 == 0, True]),
    }


def kron(rows: int, columns: int, seed: int = 0, decay: float = 3.0) -> KroneckerBlock:
    """A well spread Kronecker block."""
    g = torch.Generator().manual_seed(seed)

    def spread(size: int) -> Tensor:
        basis, _ = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))
        return (basis * torch.logspace(0, -decay, size, dtype=torch.float64)) @ basis.T

    return KroneckerBlock.of(spread(columns) * 20, spread(rows) * 1e-6 * 5, 20, 5)


def make_curvature(seed: int = 0) -> Curvature:
    """Blocks of every kind for `make_state`: whole, ranges of rows, pointwise, diagonal."""
    return Curvature(
        {
            BlockKey("encoder.weight", 0, 4): kron(4, 3, seed),
            BlockKey("packed", 0, 2): kron(2, 3, seed + 1),
            BlockKey("packed", 4, 6): kron(2, 3, seed + 2),
            BlockKey("conv.weight", 0, 2): kron(2, 4, seed + 3),
            BlockKey("encoder.bias", 0, 4): DiagonalBlock(torch.rand(4, dtype=torch.float64) + 0.1, 5),
        }
    )


def identity_like(curvature: Curvature) -> Curvature:
    """The same blocks, each the identity."""
    blocks: dict[BlockKey, Block] = {}
    for key, block in curvature.blocks.items():
        if isinstance(block, KroneckerBlock):
            eyes = (torch.eye(block.input.size), torch.eye(block.output.size))
            blocks[key] = KroneckerBlock.of(*eyes, 1, 1)
        else:
            blocks[key] = DiagonalBlock(torch.ones_like(block.square_sum), 1)
    return Curvature(blocks)


def bits(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {
        name: t.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        for name, t in state.items()
    }


def floating(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
