"""What C in `½ dᵀ C d` may be: kinds of curvature, structures, and second-order models of the losses of samples.

    fisher         C_i = sum_c p_c g_c g_cᵀ, g_c the gradient of -log p_c: labels drawn from the model, all of them exactly. For
                   cross-entropy it is the generalised Gauss-Newton matrix Jᵀ (diag p - p pᵀ) J (for other losses it is not)
    empirical      C_i = g_i g_iᵀ with the label of the data: no Fisher information, vanishes faster on confident samples
    hessian        the second derivative itself, which may be indefinite: then the penalty has no lower bound
    hessian_abs    the Hessian of all samples of an anchor with the absolute values of its eigenvalues
    hessian_clip   the same with its negative eigenvalues set to zero
    kfac           Kronecker-factored Fisher information, every weight matrix and bias a block
    ekfac          the same eigenbases with the mean squared projections in place of products of eigenvalues

Structures: `full`, `block` (each tensor by itself; weight and bias are two) and `diagonal`.

Bookkeeping: C is the second derivative, and the factor one half stands in one place, `SecondOrder.predicted`. In the source,
`Lambda = C / 2` is stored and the quadratic form has no half. Its `ewc` leaves the half out of both, so that it equals the
diagonal empirical kind here at twice the strength.

Shapes: S copies, N samples, C classes, R factors of a sample, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from asrcl.curvature.projection import leading_directions
from asrcl.exceptions import InputError
from asrcl.studies.quadratic.networks import Derivatives, Perceptrons, Samples

Kind = Literal["fisher", "empirical", "hessian", "hessian_abs", "hessian_clip", "kfac", "ekfac"]
Structure = Literal["full", "block", "diagonal"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
STRUCTURES: Final[tuple[Structure, ...]] = get_args(Structure)


@dataclass(frozen=True)
class SecondOrder:
    """A second-order model of the losses of N samples around an anchor.

    Attributes:
        anchor: the weights, `[S, P]`.
        samples: whose losses.
        losses: at the anchor, `[S, N]`.
        gradients: at the anchor, `[S, N, P]`.
        matrix: sum over the samples of C_i, `[S, P, P]`.
        factors: per-sample `C_i = sum_r a_r a_rᵀ` within each segment, `[S, N, R, P]`; None where a kind is one of the sum alone
            (Hessians, Kronecker factors), and then every sample stands for its share `matrix / N`.
        segments: the number of the block that a parameter belongs to, `[P]`.
    """

    anchor: Tensor
    samples: Samples
    losses: Tensor
    gradients: Tensor
    matrix: Tensor
    factors: Tensor | None
    segments: Tensor

    def products(self, distance: Tensor) -> Tensor:
        """`C_i d` of each sample for distances `[S, P]`, as `[S, N, P]`, without a matrix per sample."""
        count = self.samples.count
        if self.factors is None:
            share = (self.matrix @ distance[..., None])[..., 0] / count
            return share[:, None].expand(-1, count, -1)
        blocks = int(self.segments.max()) + 1
        inner = self.factors * distance[:, None, None]
        sums = inner.new_zeros(*inner.shape[:-1], blocks).index_add_(-1, self.segments, inner)
        return (self.factors * sums[..., self.segments]).sum(2)

    def predicted(self, distance: Tensor, products: Tensor, *, first_order: bool) -> Tensor:
        """The increase of each sample's loss that the model predicts, `½ dᵀ C_i d`, with `g_iᵀ d` in first order; `[S, N]`."""
        slope = products / 2 + self.gradients if first_order else products / 2
        return torch.einsum("sp,snp->sn", distance, slope)


def second_order(
    networks: Perceptrons, weights: Tensor, samples: Samples, kind: Kind = "fisher", structure: Structure = "full"
) -> SecondOrder:
    """The model of samples' losses around weights `[S, P]`.

    Raises:
        InputError: an unknown kind or structure, or Kronecker factors of the full matrix, which they do not have.
    """
    segments = segments_of(networks, structure)
    if kind not in KINDS:
        raise InputError(f"kind={kind}: choose {', '.join(KINDS)}")
    if kind in ("kfac", "ekfac") and structure == "full":
        raise InputError(f"kind={kind}: Kronecker factors know nothing between tensors; choose structure=block or diagonal")
    found = networks.derivatives(weights, samples)
    factors = {"fisher": fisher_factors, "empirical": empirical_factors}.get(kind, lambda _: None)(found)
    if factors is not None:
        columns = factors.flatten(1, 2)
        matrix = columns.mT @ columns
    elif kind in ("kfac", "ekfac"):
        matrix = kronecker(networks, weights, samples, found, eigenvalue_corrected=kind == "ekfac")
    else:
        matrix = hessian(networks, weights, samples, found)
    matrix = matrix * (segments[:, None] == segments)
    if kind in ("hessian_abs", "hessian_clip"):
        matrix = positive(matrix, "abs" if kind == "hessian_abs" else "clip")
    return SecondOrder(weights.clone(), samples, found.losses, found.gradients, matrix, factors, segments)


def segments_of(networks: Perceptrons, structure: Structure) -> Tensor:
    """Which block each parameter belongs to, `[P]`: all to one, each tensor's to its own, or each to its own.

    Raises:
        InputError: an unknown structure.
    """
    count = networks.start.shape[1]
    if structure == "full":
        return torch.zeros(count, dtype=torch.long)
    if structure == "block":
        return torch.cat([torch.full_like(where, number) for number, where in enumerate(networks.tensors.values())])
    if structure == "diagonal":
        return torch.arange(count)
    raise InputError(f"structure={structure}: choose {', '.join(STRUCTURES)}")


def fisher_factors(found: Derivatives) -> Tensor:
    """`sqrt(p_c) g_c` for every label c, `[S, N, C, P]`: the exact expectation over labels, no draw and no label of the data."""
    p = found.probabilities
    residual = p[:, :, None] - torch.eye(p.shape[-1], dtype=p.dtype)
    return p.sqrt()[..., None] * (residual @ found.jacobian)


def empirical_factors(found: Derivatives) -> Tensor:
    """The gradient of each sample at the label of the data, `[S, N, 1, P]`."""
    return found.gradients[:, :, None]


def hessian(networks: Perceptrons, weights: Tensor, samples: Samples, found: Derivatives) -> Tensor:
    """Second derivative of the sum of the samples' losses, `[S, P, P]`: Gauss-Newton part and that of the logits' curvature."""
    columns = fisher_factors(found).flatten(1, 2)
    residual = found.probabilities - torch.nn.functional.one_hot(samples.labels, networks.classes)
    return columns.mT @ columns + networks.second_derivatives(weights, samples.inputs, residual)


def positive(matrix: Tensor, mend: Literal["abs", "clip"]) -> Tensor:
    """A symmetric matrix without negative eigenvalues: their absolute values, or zero in their place."""
    values, vectors = torch.linalg.eigh(matrix)
    values = values.abs() if mend == "abs" else values.clamp(min=0)
    return (vectors * values[:, None]) @ vectors.mT


def kronecker(
    networks: Perceptrons, weights: Tensor, samples: Samples, found: Derivatives, *, eigenvalue_corrected: bool
) -> Tensor:
    """Kronecker-factored Fisher information of the sum of the samples' losses, `[S, P, P]`, zero between tensors.

    A weight matrix gets `N * G ⊗ A` with G and A the means over samples of `g gᵀ` (all labels, weighted) and `a aᵀ` (Martens
    and Grosse 2015, arXiv 1503.05671), or with the eigenvalue correction `U diag(v) Uᵀ` where U holds the eigenvectors of both
    factors and v the summed squares of the gradients in that basis (George et al. 2018, arXiv 1806.03884). A bias gets its own
    block, which is exact. The factors come from gradients: that of a bias is the gradient of its layer's output.
    """
    factors = fisher_factors(found)
    result = weights.new_zeros(len(weights), weights.shape[1], weights.shape[1])
    for name, inputs in networks.layer_inputs(weights, samples.inputs).items():
        bias = networks.tensors[name.replace("weight", "bias")]
        outputs = factors[..., bias]
        flat = outputs.flatten(1, 2)
        G, A = flat.mT @ flat, inputs.mT @ inputs / samples.count
        _place(result, bias, G)
        if eigenvalue_corrected:
            U_G, U_A = torch.linalg.eigh(G)[1], torch.linalg.eigh(A)[1]
            squares = torch.einsum("snco,sni->soi", (outputs @ U_G[:, None]).square(), (inputs @ U_A).square())
            basis = _kronecker_product(U_G, U_A)
            block = (basis * squares.flatten(1)[:, None]) @ basis.mT
        else:
            block = _kronecker_product(G, A)
        _place(result, networks.tensors[name], block)
    return result


def _kronecker_product(left: Tensor, right: Tensor) -> Tensor:
    size = left.shape[1] * right.shape[1]
    return torch.einsum("sab,scd->sacbd", left, right).reshape(len(left), size, size)


def _place(matrix: Tensor, where: Tensor, block: Tensor) -> None:
    matrix[:, where[0] : where[-1] + 1, where[0] : where[-1] + 1] = block


def flattened(matrix: Tensor, *, energy: float | None = None, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """The spectral override: the leading eigenvectors V all with the largest eigenvalue, `lambda_max V Vᵀ`, and V itself.

    As a penalty it bounds the quadratic from above within the span of V, with equality along the first eigenvector only
    (q2reg, `spectral_override`).

    Args:
        matrix: `[S, P, P]`, positive semi-definite.
        energy: keep so many eigenvectors that hold this share of the trace.
        rank: or this number.
    """
    values, vectors = leading_directions(matrix, energy=energy, rank=rank)
    scaled = vectors * values[:, None, :1].sqrt()
    return scaled @ scaled.mT, vectors
