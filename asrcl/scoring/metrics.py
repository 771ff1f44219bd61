"""Metrics of continual learning, computed from the matrix R; each with its formula, sign and source.

R is a float array [T, T]: `R[i, j]` is the error rate in percent on domain j after stage i, nan where not
measured. Formulas count stages and domains from 1, the array from 0. A metric is nan when one of its
ingredients is nan, or when it is not defined (BWT of one domain).

Every function takes error rates. With accuracies A = 100 − R in place of R, AVG becomes 100 − AVG
(`accuracy`), and BWT, FWT, COV, forgetting and intransigence keep their values and signs as written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from asrcl.exceptions import InputError

Matrix = NDArray[np.float64]

_IHR: Final = "Vander Eeckt & Van hamme, Inverse-Hessian Regularization, ICASSP 2026, arXiv 2601.14751"
_RWALK: Final = "after Chaudhry et al., Riemannian Walk, ECCV 2018, arXiv 1801.10112"
_ORDER: Final = "Yoon et al., Additive Parameter Decomposition, ICLR 2020, arXiv 1902.09432"


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number in a report means.

    Attributes:
        name: the metric in words.
        symbol: its usual abbreviation.
        formula: definition, with stages and domains counted from 1.
        better: "lower" or "higher".
        source: where the definition comes from, and where it departs from it.
        unit: "%" or "points" (differences of percentages).
    """

    name: str
    symbol: str
    formula: str
    better: str
    source: str
    unit: str


METRICS: Final[dict[str, Metric]] = {
    "avg": Metric("average error rate over domains", "AVG", "mean_j R[T,j]", "lower", _IHR, "%"),
    "word_weighted_avg": Metric(
        "error rate of all test sets together",
        "AVG_w",
        "Σ_j n_j R[T,j] / Σ_j n_j, n_j = reference length",
        "lower",
        "common practice: total errors over total reference length",
        "%",
    ),
    "bwt": Metric(
        "backward transfer (negative: forgetting)",
        "BWT",
        "mean_{j<T} (R[j,j] − R[T,j])",
        "higher",
        f"{_IHR}; Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840, for accuracies",
        "points",
    ),
    "fwt": Metric(
        "gain over the first model on new domains (plasticity; not zero-shot transfer)",
        "FWT",
        "mean_{k≥2} (R[1,k] − R[k,k])",
        "higher",
        _IHR,
        "points",
    ),
    "cov": Metric(
        "gap between fine-tuning and separate models that is closed",
        "COV",
        "100 · (AVG_FT − AVG) / (AVG_FT − AVG_sep)",
        "higher",
        f"{_IHR}; not clipped at 0 here",
        "%",
    ),
    "forgetting": Metric(
        "loss against the best stage so far",
        "F",
        "mean_{j<T} (R[T,j] − min_{j≤i<T} R[i,j])",
        "lower",
        f"{_RWALK}; only stages from j on, where domain j has been seen",
        "points",
    ),
    "intransigence": Metric(
        "gap to joint training when a domain has just been learned",
        "I",
        "mean_k (R[k,k] − J[k]), J = joint model",
        "lower",
        f"{_RWALK}; J is trained on all T domains, not on the first k",
        "points",
    ),
    "accuracy": Metric("average accuracy over domains", "ACC", "100 − mean_j R[T,j]", "higher", _RWALK, "%"),
    "aopd": Metric(
        "average order-normalised performance disparity",
        "AOPD",
        "mean_j (max_o P[o,j] − min_o P[o,j]) over orders o",
        "lower",
        _ORDER,
        "points",
    ),
    "mopd": Metric(
        "maximum order-normalised performance disparity",
        "MOPD",
        "max_j (max_o P[o,j] − min_o P[o,j]) over orders o",
        "lower",
        _ORDER,
        "points",
    ),
}


def as_matrix(matrix: ArrayLike) -> Matrix:
    """The matrix R as float64 [T, T]; None becomes nan.

    Raises:
        InputError: not a square matrix with at least one row.
    """
    rates = np.asarray(matrix, dtype=np.float64)
    if rates.ndim != 2 or rates.shape[0] != rates.shape[1] or rates.size == 0:
        raise InputError(f"error matrix has shape {rates.shape}; it must be [T, T], one row per stage")
    return rates


def avg(matrix: ArrayLike) -> float:
    """AVG = mean_j R[T,j], in percent; lower is better.

    Source: Vander Eeckt & Van hamme (2026), "average WER": every domain counts the same.
    """
    return float(np.mean(as_matrix(matrix)[-1]))


def accuracy(matrix: ArrayLike) -> float:
    """ACC = 100 − AVG, in percent; higher is better (Chaudhry et al. 2018, average accuracy)."""
    return 100.0 - avg(matrix)


def word_weighted_avg(matrix: ArrayLike, lengths: Sequence[int]) -> float:
    """AVG_w = Σ_j n_j R[T,j] / Σ_j n_j, in percent; lower is better.

    Args:
        matrix: R.
        lengths: n_j, reference words (or images) of each domain's test set.

    Raises:
        InputError: not one length per domain.
    """
    final, weights = as_matrix(matrix)[-1], np.asarray(lengths, dtype=np.float64)
    if weights.shape != final.shape:
        raise InputError(
            f"{weights.size} lengths for {final.size} domains; give the reference length of each"
        )
    total = weights.sum()
    # A domain without a single reference word weighs nothing, even when its rate is infinite.
    return float(np.sum(final[weights > 0] * weights[weights > 0]) / total) if total else float("nan")


def bwt(matrix: ArrayLike) -> float:
    """BWT = mean_{j<T} (R[j,j] − R[T,j]), in points; negative is forgetting, higher is better.

    Source: Vander Eeckt & Van hamme (2026). nan for one domain.
    """
    rates = as_matrix(matrix)
    return _mean_difference(np.diag(rates)[:-1], rates[-1, :-1])


def fwt(matrix: ArrayLike) -> float:
    """FWT = mean_{k≥2} (R[1,k] − R[k,k]), in points; higher is better.

    The gain over the first model on each domain when it has just been learned (Vander Eeckt & Van hamme
    2026). Other sources give the name FWT to zero-shot transfer. nan for one domain.
    """
    rates = as_matrix(matrix)
    return _mean_difference(rates[0, 1:], np.diag(rates)[1:])


def cov(matrix: ArrayLike, finetuned: ArrayLike, separate: ArrayLike) -> float:
    """COV = 100 · (AVG_FT − AVG) / (AVG_FT − AVG_sep), in percent; higher is better.

    0 is plain fine-tuning, 100 a separate model per domain (Vander Eeckt & Van hamme 2026); negative when
    worse than fine-tuning. nan when the two references do not differ.

    Args:
        matrix: R of the method.
        finetuned: R of sequential fine-tuning.
        separate: R whose last row holds, for every domain, the error rate of that domain's own model.
    """
    high, low = avg(finetuned), avg(separate)
    return 100.0 * (high - avg(matrix)) / (high - low) if high != low else float("nan")


def forgetting(matrix: ArrayLike) -> float:
    """F = mean_{j<T} (R[T,j] − min_{j≤i<T} R[i,j]), in points; lower is better, negative is backward gain.

    Source: Chaudhry et al. (2018), for error rates. They take the best over all earlier stages; here only
    stages that have seen domain j count. nan for one domain.
    """
    rates = as_matrix(matrix)
    last = len(rates) - 1
    best = np.array([np.min(rates[j:last, j]) for j in range(last)])
    return _mean_difference(rates[last, :last], best)


def intransigence(matrix: ArrayLike, joint: ArrayLike) -> float:
    """I = mean_k (R[k,k] − J[k]), in points; lower is better, negative beats joint training.

    Source: Chaudhry et al. (2018). Their reference is trained on the first k domains; here, as in CL-MASR,
    one joint model trained on all T serves for all k.

    Args:
        matrix: R of the method.
        joint: R whose last row holds the joint model's error rates J.
    """
    return _mean_difference(np.diag(as_matrix(matrix)), as_matrix(joint)[-1])


def stage_averages(matrix: ArrayLike) -> Matrix:
    """Mean error rate over the domains seen so far, [T]: entry i is mean_{j≤i} R[i,j], in percent."""
    rates = as_matrix(matrix)
    return np.array([np.mean(row[: stage + 1]) for stage, row in enumerate(rates)])


def order_disparity(final: ArrayLike) -> Matrix:
    """OPD[j] = max_o P[o,j] − min_o P[o,j], [T], in points (Yoon et al. 2020).

    Args:
        final: P, [orders, T]: error rate (or accuracy) on domain j after the last stage, one row per domain
            order, columns always in the same order of domains.
    """
    rates = np.asarray(final, dtype=np.float64)
    return np.asarray(np.max(rates, axis=0) - np.min(rates, axis=0))


def aopd(final: ArrayLike) -> float:
    """AOPD = mean_j OPD[j], in points; lower is better. `final` as in `order_disparity`."""
    return float(np.mean(order_disparity(final)))


def mopd(final: ArrayLike) -> float:
    """MOPD = max_j OPD[j], in points; lower is better. `final` as in `order_disparity`."""
    return float(np.max(order_disparity(final)))


def _mean_difference(first: Matrix, second: Matrix) -> float:
    """Mean of first − second; nan, without numpy's warnings, of nothing and of differences of infinities."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(first - second)) if first.size else float("nan")
