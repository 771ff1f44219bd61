"""How much of a spectrum lies where: ranks of a whole operator from quadratures, without its matrix.

    from asrcl.curvature.spectral_mass import epsilon_rank, spectral_quadrature
    spectrum = spectral_quadrature(hessian, steps=60, repeats=3)
    shares = epsilon_rank(spectrum, [0.01, 0.1]).mean(0)

Shapes: n rows of the operator, D random start vectors, M Lanczos steps, E values of epsilon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from asrcl.curvature.spectrum import quadratures, sized
from asrcl.exceptions import InputError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@dataclass(frozen=True)
class Quadratures:
    """Gauss quadratures of the spectral distribution, one for each start vector: `sum_k w_k f(theta_k) ~ trace f(A) / n`.

    Attributes:
        nodes: per draw the Ritz values `[M]`; fewer where the Krylov space ended early.
        weights: per draw `[M]`, the squared first components of the eigenvectors of the Lanczos matrix; sum 1.
        size: n.
    """

    nodes: tuple[np.ndarray, ...]
    weights: tuple[np.ndarray, ...]
    size: int

    @property
    def trace(self) -> float:
        """The trace of the operator (Hutchinson's estimate, mean over draws)."""
        pairs = zip(self.nodes, self.weights, strict=True)
        return self.size * float(np.mean([nodes @ weights for nodes, weights in pairs]))

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of |eigenvalue| / sum of all |eigenvalues|, all n of them; 0 for a zero spectrum.

        Not that of the Ritz values themselves, which cannot exceed their number M.
        """
        found = []
        for nodes, weights in zip(self.nodes, self.weights, strict=True):
            total = self.size * float(np.abs(nodes) @ weights)
            shares = np.abs(nodes) / total if total else np.zeros_like(nodes)
            logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
            found.append(float(np.exp(-self.size * (weights * shares) @ logs)) if total else 0.0)
        return float(np.mean(found))


def spectral_quadrature(
    operator: LinearOperator | np.ndarray, *, steps: int = 64, repeats: int = 3, seed: int = 0, exact_below: int = 0
) -> Quadratures:
    """Stochastic Lanczos quadrature of a symmetric operator, in float64 (Golub & Welsch 1969; curvlinops does the iterations).

    It costs `repeats * steps` products. Where a Krylov space ends early, as that of a matrix of low rank does, its quadrature is
    exact. The iterations are not re-orthogonalised: what repeats an eigenvalue shares its weight, so sums of weights stay right,
    while the number of nodes says nothing. Operators of at most `steps`, or `exact_below`, rows are decomposed: the nodes are
    then all eigenvalues.

    Args:
        operator: symmetric, of size n.
        steps: Lanczos steps M.
        repeats: random start vectors D. One is not enough to judge the spread.
        seed: draws the start vectors; PyTorch's global generator is left as it was.
        exact_below: largest size that is decomposed even though it exceeds `steps`.

    Raises:
        InputError: curvlinops is missing, numbers below 1, or a product is not finite.
    """
    if steps < 2 or repeats < 1:
        raise InputError(f"steps={steps}, repeats={repeats}: at least 2 and at least 1 are needed")
    operator, size = sized(operator)
    runs = quadratures(operator, max(steps, size if size <= exact_below else 0), repeats, seed)
    pairs = [(nodes.numpy(), roots.square().numpy()) for nodes, roots in runs]
    return Quadratures(tuple(nodes for nodes, _ in pairs), tuple(weights / weights.sum() for _, weights in pairs), size)


def epsilon_rank(spectrum: Quadratures, epsilons: Sequence[float]) -> np.ndarray:
    """The share of all eigenvalues whose magnitude exceeds epsilon, `[D, E]`, from 0 to 1: `sum_k w_k 1[|theta_k| > epsilon]`.

    The sum is taken at the nodes themselves: integrals of a smoothed density leak over small epsilons, and counts of Ritz values
    cannot exceed their number. A quadrature places mass exactly only up to the weight of the node at epsilon, so that few Lanczos
    steps are coarse.

    Source: arXiv 2509.22335, section on epsilon-rank (there of a smoothed density).

    Raises:
        InputError: an epsilon that is negative or not finite.
    """
    limits = np.asarray(list(epsilons), dtype=np.float64)
    if not np.isfinite(limits).all() or (limits < 0).any():
        raise InputError(f"epsilons={list(epsilons)}: each must be a finite number from 0 on")
    pairs = zip(spectrum.nodes, spectrum.weights, strict=True)
    return np.stack([(np.abs(nodes)[None] > limits[:, None]) @ weights for nodes, weights in pairs])
