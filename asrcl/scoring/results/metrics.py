"""Metrics of continual learning, computed from the matrix R; each with its formula, sign and source.

R is a float array [T, T]: `R[i, j]` is the error rate in percent on domain j after stage i, nan where not
measured. Formulas count stages and domains from 1, the array from 0. A metric is nan when one of its
ingredients is nan, or when it is not defined (BWT of one domain).

Every function takes error rates. Of accuracies, make R = 100 − A with `rates_from_accuracies` first: AVG becomes
100 − ACC, and BWT, FWT, COV, forgetting and intransigence keep their values and signs; `Metric.accuracy_formula`
writes each of them in A. AOPD and MOPD are the same for both.
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
        accuracy_formula: the same number written with accuracies A = 100 − R.
        entries: which entries of R must be measured; where one is missing, the metric is nan.
        references: which other runs it needs.
    """

    name: str
    symbol: str
    formula: str
    better: str
    source: str
    unit: str
    accuracy_formula: str
    entries: str
    references: str = "none"


METRICS: Final[dict[str, Metric]] = {
    "avg": Metric(
        "average error rate over domains", "AVG", "mean_j R[T,j]", "lower", _IHR, "%", "100 − mean_j A[T,j]", "row T"
    ),
    "word_weighted_avg": Metric(
        "error rate of all test sets together",
        "AVG_w",
        "Σ_j n_j R[T,j] / Σ_j n_j, n_j = reference length",
        "lower",
        "common practice: total errors over total reference length",
        "%",
        "100 − Σ_j n_j A[T,j] / Σ_j n_j",
        "row T",
    ),
    "bwt": Metric(
        "backward transfer (negative: forgetting)",
        "BWT",
        "mean_{j<T} (R[j,j] − R[T,j])",
        "higher",
        f"{_IHR}; Lopez-Paz & Ranzato, NeurIPS 2017, arXiv 1706.08840, for accuracies",
        "points",
        "mean_{j<T} (A[T,j] − A[j,j])",
        "row T, diagonal",
    ),
    "fwt": Metric(
        "gain over the initial model on new domains (plasticity; not zero-shot transfer)",
        "FWT",
        "mean_{k≥2} (R[1,k] − R[k,k])",
        "higher",
        _IHR,
        "points",
        "mean_{k≥2} (A[k,k] − A[1,k])",
        "row 1, diagonal",
        "the initial model of the same seed, where the run has not measured R[1,k]",
    ),
    "cov": Metric(
        "gap between fine-tuning and separate models that is closed",
        "COV",
        "100 · (AVG_FT − AVG) / (AVG_FT − AVG_sep)",
        "higher",
        f"{_IHR}; not clipped at 0 here",
        "%",
        "100 · (ACC − ACC_FT) / (ACC_sep − ACC_FT)",
        "row T",
        "fine-tuning and separate models of the same seed",
    ),
    "forgetting": Metric(
        "loss against the best stage so far",
        "F",
        "mean_{j<T} (R[T,j] − min_{j≤i<T} R[i,j])",
        "lower",
        f"{_RWALK}; only stages from j on, where domain j has been seen",
        "points",
        "mean_{j<T} (max_{j≤i<T} A[i,j] − A[T,j])",
        "diagonal and all below it",
    ),
    "intransigence": Metric(
        "gap to joint training when a domain has just been learned",
        "I",
        "mean_k (R[k,k] − J[k]), J = joint model",
        "lower",
        f"{_RWALK}; J is trained on all T domains, not on the first k",
        "points",
        "mean_k (A_J[k] − A[k,k])",
        "diagonal",
        "joint training of the same seed",
    ),
    "accuracy": Metric(
        "average accuracy over domains", "ACC", "100 − mean_j R[T,j]", "higher", _RWALK, "%", "mean_j A[T,j]", "row T"
    ),
    "aopd": Metric(
        "average order-normalised performance disparity",
        "AOPD",
        "mean_j (max_o P[o,j] − min_o P[o,j]) over orders o",
        "lower",
        f"{_ORDER}; there of accuracies, which gives the same number",
        "points",
        "the same with accuracies",
        "row T",
        "the method in two orders of the same domains at least; P is a mean over seeds",
    ),
    "mopd": Metric(
        "maximum order-normalised performance disparity",
        "MOPD",
        "max_j (max_o P[o,j] − min_o P[o,j]) over orders o",
        "lower",
        f"{_ORDER}; there of accuracies, which gives the same number",
        "points",
        "the same with accuracies",
        "row T",
        "the method in two orders of the same domains at least; P is a mean over seeds",
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


def rates_from_accuracies(accuracies: ArrayLike) -> Matrix:
    """R = 100 − A for a matrix of accuracies in percent, [T, T]; nan (or None) stays nan.

    Raises:
        InputError: not square, or a value outside 0 to 100 (shares instead of percent pass unseen).
    """
    matrix = as_matrix(accuracies)
    known = matrix[~np.isnan(matrix)]
    if np.any((known < 0) | (known > 100)):
        raise InputError(f"accuracies must lie between 0 and 100 percent; found {known.min():g} to {known.max():g}")
    return 100.0 - matrix


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

    The gain over the initial model on each domain when it has just been learned (Vander Eeckt & Van hamme
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


def old_and_new(matrix: ArrayLike, stage: int = -1) -> Matrix:
    """Mean error rate on the domains before stage `stage`, and the rate on that stage's own domain: two percentages.

    Args:
        matrix: R.
        stage: index from 0; -1 is the last. Of the first stage, the old rate is nan: nothing is old.
    """
    rates = as_matrix(matrix)
    index = range(len(rates))[stage]
    return np.array([np.mean(rates[index, :index]) if index else np.nan, rates[index, index]])


def pareto_front(points: Sequence[ArrayLike]) -> list[tuple[float, float]]:
    """The points (old rate, new rate) that no other point beats or equals on both, by rising old rate; nan is left out."""
    known = sorted({(float(x), float(y)) for x, y in (np.asarray(point) for point in points) if not np.isnan([x, y]).any()})
    front: list[tuple[float, float]] = []
    for x, y in known:
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def order_disparity(final: ArrayLike) -> Matrix:
    """OPD[j] = max_o P[o,j] − min_o P[o,j], [T], in points (Yoon et al. 2020).

    Args:
        final: P, [orders, T]: error rate (or accuracy) on domain j after the last stage, one row per domain
            order, columns always in the same order of domains.

    Raises:
        InputError: not a table, or fewer than two orders.
    """
    rates = np.asarray(final, dtype=np.float64)
    if rates.ndim != 2 or len(rates) < 2 or not rates.shape[1]:
        raise InputError(f"order disparity of a table of shape {rates.shape}; give [orders, T], two orders at least")
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
