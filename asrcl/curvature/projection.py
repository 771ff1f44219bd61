"""Directions of weight space that must not move: leading eigenvectors, one common basis of many, and the projection of a step.

    from asrcl.curvature.projection import common_basis, confined, leading_directions
    kept = [leading_directions(matrix, energy=0.99999)[1] for matrix in curvatures_of_earlier_tasks]
    basis = common_basis(torch.cat(kept, dim=-1))
    with confined(model.parameters(), basis):
        optimizer.step()            # with momentum, Adam's scaling and weight decay: the step itself is projected

Shapes: P numbers in all parameters, K directions, R of them independent; `...` stands for any batch (copies of a network).
All arithmetic is in float64. Where the members of a batch have fewer directions than the largest, their last columns are zero,
which changes no projection.

Projecting onto the complement of one space after another is not the same as projecting onto the complement of their sum: the
second projection brings back parts of what the first removed, unless the spaces are orthogonal. Hence one basis for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from asrcl.exceptions import InputError


def leading_directions(matrix: Tensor, *, energy: float | None = None, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues `[..., K]`, descending, and eigenvectors `[..., P, K]` of symmetric matrices `[..., P, P]`.

    Args:
        matrix: positive semi-definite up to rounding.
        energy: keep the smallest number of eigenvalues whose sum is at least this share of the trace.
        rank: or keep so many; all, where there are no more.

    Raises:
        InputError: not exactly one of the two is given, or it is out of range.
    """
    if (energy is None) == (rank is None):
        raise InputError(f"energy={energy}, rank={rank}: give one of the two")
    if energy is not None and not 0 < energy <= 1:
        raise InputError(f"energy={energy}: a share of the trace is above 0 and at most 1")
    if rank is not None and rank < 1:
        raise InputError(f"rank={rank}: keep one direction at least")
    values, vectors = torch.linalg.eigh(matrix.double())
    values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
    if rank is not None:
        return values[..., :rank], vectors[..., :rank]
    before = values.cumsum(-1) - values
    kept = before < energy * values.sum(-1, keepdim=True)
    most = int(kept.sum(-1).max())
    return (values * kept)[..., :most], (vectors * kept[..., None, :])[..., :most]


def common_basis(directions: Tensor, *, method: Literal["svd", "qr"] = "svd", tolerance: float = 1e-10) -> Tensor:
    """An orthonormal basis `[..., P, R]` of the span of directions `[..., P, K]`, which may depend on each other.

    A plain QR decomposition gives as many columns as it is given; those of dependent columns are rounding noise, made unit
    length, and hold arbitrary directions fast. Here what is below the tolerance is no direction.

    Args:
        directions: columns; those of length zero are ignored, the others are scaled to unit length first.
        method: "svd" (singular value decomposition), or "qr" (QR with column pivoting, LAPACK's geqp3).
        tolerance: least singular value, or least diagonal entry of R, relative to the largest.

    Raises:
        InputError: the method is unknown or the tolerance is not between 0 and 1.
    """
    if method not in ("svd", "qr"):
        raise InputError(f"method={method}: choose svd or qr")
    if not 0 < tolerance < 1:
        raise InputError(f"tolerance={tolerance}: must lie between 0 and 1")
    columns = torch.nn.functional.normalize(directions.double(), dim=-2)
    if method == "svd":
        vectors, sizes, _ = torch.linalg.svd(columns, full_matrices=False)
    else:
        vectors, sizes = _pivoted_qr(columns)
    kept = sizes > tolerance * sizes[..., :1]
    most = int(kept.sum(-1).max()) if kept.numel() else 0
    return (vectors * kept[..., None, :])[..., :most]


def _pivoted_qr(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Q and the magnitudes of the diagonal of R, which pivoting sorts."""
    from scipy.linalg import qr

    flat = columns.reshape(-1, *columns.shape[-2:])
    pairs = [qr(one.cpu().numpy(), mode="economic", pivoting=True)[:2] for one in flat]
    Q = torch.stack([torch.from_numpy(q) for q, _ in pairs])
    sizes = torch.stack([torch.from_numpy(r.diagonal().copy()).abs() for _, r in pairs])
    batch = columns.shape[:-2]
    return Q.reshape(*batch, *Q.shape[1:]).to(columns.device), sizes.reshape(*batch, -1).to(columns.device)


def project_out(change: Tensor, basis: Tensor) -> Tensor:
    """A change of the weights `[..., P]` without its part in the span of orthonormal columns `[..., P, R]`, in its own type."""
    exact, columns = change.double()[..., None], basis.double()
    return (exact - columns @ (columns.mT @ exact))[..., 0].to(change.dtype)


@contextmanager
def confined(parameters: Iterable[Tensor], basis: Tensor) -> Iterator[None]:
    """Let the block move the parameters, and take the part of their motion in the basis back afterwards.

    Because the difference of the weights is projected, not a gradient, this holds whatever the optimiser adds: momentum,
    per-parameter scales, weight decay.

    Args:
        parameters: of one model, in the order of the rows of the basis.
        basis: orthonormal columns `[P, R]`, see `common_basis`.

    Raises:
        InputError: the basis has another number of rows than the parameters have numbers.
    """
    held = list(parameters)
    before = parameters_to_vector(held).detach().clone()
    if len(basis) != len(before):
        raise InputError(f"a basis of {len(basis)} rows does not fit parameters of {len(before)} numbers")
    yield
    after = parameters_to_vector(held).detach()
    vector_to_parameters(before + project_out(after - before, basis.to(before.device)), held)
