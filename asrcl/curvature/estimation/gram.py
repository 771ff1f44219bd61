"""Adding up `rowsᵀ rows` as fast as a machine can: only one triangle is computed while adding, the other is mirrored at the end.

Shapes: P positions, D features. Sums are in single precision at least, whatever the rows are.

With one thread on a CPU the symmetric rank-k update of BLAS (`syrk`, through SciPy) does half the work of a general product.
With several, SciPy's threads and torch's would wait for each other actively (measured: seven times slower), so that, as without
SciPy and on a GPU, the triangle is covered by blocks of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

Products = Literal["float32", "tf32", "bfloat16"]
PRODUCTS = ("float32", "tf32", "bfloat16")
SMALL = 96
"""Below this size a plain product is fastest."""


@contextmanager
def blas_threads() -> Iterator[None]:
    """Hold SciPy's BLAS to as many threads as torch has, where threadpoolctl can do that."""
    limits = _threadpool_limits()
    if limits is None:
        yield
        return
    with limits(torch.get_num_threads(), "blas"):
        yield


@contextmanager
def product_precision(products: Products) -> Iterator[None]:
    """Allow TensorFloat-32 products on GPUs for "tf32", forbid them for "float32"; restored on leaving."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The type to add in: half-precision sums would lose small terms."""
    return torch.promote_types(dtype, torch.float32)


def add_gram(total_DD: Tensor, rows_PD: Tensor, alpha: float = 1.0, products: Products = "float32") -> None:
    """`total += alpha rowsᵀ rows`; only the upper triangle of `total` (and anything below it) is meaningful afterwards.

    Args:
        total_DD: the sum, in place; it may lie on another device than the rows (off-loaded sums).
        rows_PD: any floating type.
        alpha: weight of these rows.
        products: "bfloat16" rounds the rows before multiplying, for speed.
    """
    rows_PD = rows_PD.to(torch.bfloat16 if products == "bfloat16" else total_DD.dtype)
    if rows_PD.dtype != total_DD.dtype or rows_PD.device != total_DD.device:
        total_DD.add_((rows_PD.mT @ rows_PD).to(total_DD), alpha=alpha)
    elif total_DD.shape[0] < SMALL or not rows_PD.shape[0]:
        total_DD.addmm_(rows_PD.mT, rows_PD, alpha=alpha)
    elif _has_syrk(total_DD):
        _syrk(total_DD, rows_PD.contiguous(), alpha)
    else:
        _by_columns(total_DD, rows_PD, alpha)


def mirror(total_DD: Tensor) -> Tensor:
    """The symmetric matrix whose upper triangle is that of `total`."""
    upper_DD = total_DD.triu()
    return upper_DD + upper_DD.triu(1).mT


def mirror_(total_DD: Tensor, block: int = 256) -> Tensor:
    """`mirror` in place, a block of rows at a time, so that hardly any further memory is needed."""
    for start in range(0, total_DD.shape[0], block):
        stop = start + block
        total_DD[start:stop, start:stop] = mirror(total_DD[start:stop, start:stop])
        total_DD[stop:, start:stop] = total_DD[start:stop, stop:].mT
    return total_DD


def _has_syrk(total_DD: Tensor) -> bool:
    alone = total_DD.device.type == "cpu" and total_DD.is_contiguous() and torch.get_num_threads() == 1
    return alone and _symmetric_updates() is not None


def _syrk(total_DD: Tensor, rows_PD: Tensor, alpha: float) -> None:
    updates = _symmetric_updates()
    assert updates is not None
    # To BLAS, which counts columns first, our matrices are transposed: its lower triangle is our upper one.
    updates[total_DD.dtype](alpha, rows_PD.numpy().T, beta=1.0, c=total_DD.numpy().T, lower=1, overwrite_c=1)


def _by_columns(total_DD: Tensor, rows_PD: Tensor, alpha: float) -> None:
    size = total_DD.shape[0]
    count = 4 if size < 1024 else 8
    edges = [size * step // count for step in range(count + 1)]
    for start, stop in pairwise(edges):
        total_DD[:stop, start:stop].addmm_(rows_PD[:, :stop].mT, rows_PD[:, start:stop], alpha=alpha)


@cache
def _symmetric_updates() -> dict[torch.dtype, Callable[..., Any]] | None:
    """BLAS's symmetric updates by type; None where SciPy is missing or its threads could not be limited to ours."""
    if _threadpool_limits() is None:
        return None
    try:
        from scipy.linalg.blas import dsyrk, ssyrk
    except ImportError:
        return None
    return {torch.float32: ssyrk, torch.float64: dsyrk}


@cache
def _threadpool_limits() -> Any:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return None
    return threadpool_limits
