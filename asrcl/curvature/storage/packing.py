"""Tensors as a curvature file stores them: symmetric matrices as one triangle, and a checksum of the bytes.

Shapes: D size of a symmetric matrix, T = D(D+1)/2 numbers of its triangle; both may follow other axes.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

ASYMMETRY = 1e-3
"""Relative to the largest entry: more than rounding, even in half precision, so the matrix is not meant to be symmetric."""


def triangle(size: int) -> int:
    """Numbers in a triangle with its diagonal."""
    return size * (size + 1) // 2


def pack(M_DD: Tensor) -> Tensor:
    """The upper triangle row by row, `[..., D, D]` to `[..., T]`, in the same type.

    Raises:
        ValueError: the matrix is not symmetric.
    """
    size = M_DD.shape[-1]
    if M_DD.numel() and (M_DD - M_DD.mT).abs().max() > ASYMMETRY * M_DD.abs().max():
        raise ValueError("a matrix that is not symmetric")
    packed_T = M_DD.new_empty(*M_DD.shape[:-2], triangle(size))
    start = 0
    for row in range(size):
        packed_T[..., start : start + size - row] = M_DD[..., row, row:]
        start += size - row
    return packed_T


def unpack(packed_T: Tensor, size: int) -> Tensor:
    """The symmetric matrix `[..., D, D]` of a packed triangle `[..., T]`."""
    M_DD = packed_T.new_empty(*packed_T.shape[:-1], size, size)
    start = 0
    for row in range(size):
        part = packed_T[..., start : start + size - row]
        M_DD[..., row, row:] = part
        M_DD[..., row:, row] = part
        start += size - row
    return M_DD


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order, without a copy where it lies so already."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def checksum(content: memoryview | bytes) -> str:
    """Return the CRC-32 as 8 hexadecimal digits."""
    return f"{zlib.crc32(content):08x}"
