"""Factors and blocks of every kind with the dense float64 matrices that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from asrcl.curvature import (
    Block,
    BlockKey,
    Curvature,
    DenseBlock,
    DenseFactor,
    DiagonalBlock,
    DiagonalFactor,
    EigenBlock,
    Factor,
    KroneckerBlock,
    LowRankFactor,
)

DOUBLE = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spd(size: int, seed: int, decay: float = 2.0, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Symmetric to the bit, eigenvalues from 1 down to 10^-decay."""
    basis = orthogonal(size, seed)
    matrix = (basis * torch.logspace(0, -decay, size, dtype=DOUBLE)) @ basis.T
    return (matrix + matrix.T).div(2).to(dtype)


def orthogonal(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator(seed), dtype=DOUBLE))[0]


def factors(size: int = 5, seed: int = 0, dtype: torch.dtype = DOUBLE) -> dict[str, Factor]:
    basis = orthogonal(size, seed)[:, :2].to(dtype)
    values, tail = torch.tensor([3.0, 1.0], dtype=dtype), torch.linspace(0.1, 0.5, size, dtype=dtype)
    return {
        "dense": DenseFactor(spd(size, seed, dtype=dtype), 2.0),
        "diagonal": DiagonalFactor(torch.linspace(0.5, 3, size, dtype=dtype), 0.5),
        "isotropic": LowRankFactor(basis, values, torch.tensor(0.25, dtype=dtype), 1.5),
        "tailed": LowRankFactor(basis, values, tail, 1.5),
    }


def factor_matrix(factor: Factor) -> Tensor:
    """From the definition, entry by entry."""
    tensors = {role: tensor.double() for role, tensor in factor.tensors().items()}
    if isinstance(factor, DenseFactor):
        return factor.unit * tensors["matrix"]
    if isinstance(factor, DiagonalFactor):
        return factor.unit * torch.diag(tensors["values"])
    kept = sum(v * torch.outer(c, c) for v, c in zip(tensors["values"], tensors["vectors"].T, strict=True))
    return factor.unit * (kept + torch.diag(tensors["tail"].expand(factor.size)))


def blocks(dtype: torch.dtype = DOUBLE) -> dict[str, tuple[Block, tuple[int, ...]]]:
    """Every kind of block with a shape of the rows it covers."""
    left, right = factors(4, 1, dtype), factors(6, 2, dtype)
    table: dict[str, tuple[Block, tuple[int, ...]]] = {}
    for name in left:
        table[f"kronecker {name}"] = KroneckerBlock(right["dense"], left[name], 7, 3), (4, 6)
        table[f"kronecker {name} input"] = KroneckerBlock(right[name], left["dense"], 7, 3), (4, 2, 3)
        table[f"transposed {name} input"] = KroneckerBlock(right[name], left["dense"], 7, 3, transposed=True), (6, 4)
    squares = torch.rand(4, 6, generator=generator(3), dtype=DOUBLE).add(0.1).to(dtype)
    U, V = orthogonal(4, 4).to(dtype), orthogonal(6, 5).to(dtype)
    table["eigen"] = EigenBlock(U, V, squares, 3), (4, 6)
    table["eigen rows"] = EigenBlock(U, None, squares, 3), (4, 3, 2)
    table["eigen columns"] = EigenBlock(None, V, squares, 3), (4, 6)
    groups = torch.stack([spd(6, seed, dtype=dtype) for seed in range(4)])
    table["dense rows"] = DenseBlock(groups, 3, rows=4), (4, 1, 6)
    table["dense whole"] = DenseBlock(spd(12, 9, dtype=dtype)[None], 3, rows=3), (3, 4)
    table["diagonal"] = DiagonalBlock(squares, 3), (4, 6)
    table["diagonal scalar"] = DiagonalBlock(squares[0, :1], 3), (1,)
    return table


def block_matrix(block: Block) -> Tensor:
    """The matrix on the row-major weights, from the format page."""
    if isinstance(block, KroneckerBlock):
        A, G = factor_matrix(block.input) / block.positions, factor_matrix(block.output) / block.items
        return torch.kron(A, G) if block.transposed else torch.kron(G, A)
    if isinstance(block, EigenBlock):
        R, C = block.square_sum.shape
        U = torch.eye(R, dtype=DOUBLE) if block.row_vectors is None else block.row_vectors.double()
        V = torch.eye(C, dtype=DOUBLE) if block.column_vectors is None else block.column_vectors.double()
        basis = torch.kron(U.contiguous(), V.contiguous())
        return basis @ torch.diag(block.square_sum.double().flatten() / block.items) @ basis.T
    if isinstance(block, DenseBlock):
        return torch.block_diag(*block.matrix_sum.double()) / block.items
    assert isinstance(block, DiagonalBlock)
    return torch.diag(block.square_sum.double().flatten()) / block.items


def rows_like(shape: tuple[int, ...], seed: int = 8) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=DOUBLE)


def everything(dtype: torch.dtype = DOUBLE) -> Curvature:
    """One block of each kind under its name, with sharing: `q` and `k` read one input, two eigen blocks have one basis."""
    table = {BlockKey(name, 0, shape[0]): block for name, (block, shape) in blocks(dtype).items()}
    shared = factors(6, 7, dtype)["dense"]
    outputs = [factors(3, seed, dtype)["dense"] for seed in (10, 11)]
    table |= {BlockKey(name, 0, 3): KroneckerBlock(shared, G, 7, 3) for name, G in zip("qk", outputs, strict=True)}
    eigen = table[BlockKey("eigen", 0, 4)]
    assert isinstance(eigen, EigenBlock)
    table[BlockKey("eigen twin", 4, 8)] = EigenBlock(eigen.row_vectors, eigen.column_vectors, eigen.square_sum * 2, 3)
    return Curvature(table, {"loss": "squares", "items": 3, "parameters": {"q": [3, 6], "k": [3, 6]}})


def assert_same(loaded: Curvature, curvature: Curvature) -> None:
    """Equal to the bit, in the same order."""
    assert loaded.metadata == curvature.metadata
    assert list(loaded.blocks) == list(curvature.blocks)
    for key, block in curvature.blocks.items():
        other = loaded.blocks[key]
        assert type(other) is type(block) and other.items == block.items and other.rows == block.rows
        for side in ("input", "output"):
            mine, stored = getattr(block, side, None), getattr(other, side, None)
            assert type(mine) is type(stored) and getattr(mine, "unit", 0) == getattr(stored, "unit", 0)
        assert getattr(other, "transposed", 0) == getattr(block, "transposed", 0)
        assert getattr(other, "positions", 0) == getattr(block, "positions", 0)
        assert list(other.tensors()) == list(block.tensors())
        for role, tensor in block.tensors().items():
            assert torch.equal(other.tensors()[role], tensor) and other.tensors()[role].dtype == tensor.dtype
