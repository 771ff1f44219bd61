"""Metrics against the matrices published with IHR (arXiv 2601.14751, results.xlsx) and some made by hand.

The published rates have two decimals, so each is off by up to 0.005. Means of differences recomputed from
them agree with the printed values within 0.01; COV divides by AVG_FT − AVG_sep (2.9 and 7.2 points), which
magnifies what rounding leaves.
"""

import numpy as np
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring.results import metrics
from asrcl.scoring.results.metrics import METRICS

NAN = float("nan")

# First row: the initial model on all domains. Then the rows after stages 2 to 5 with the printed AVG and BWT.
FIRST = {1: [15.36, 12.66, 13.35, 21.38, 13.51], 2: [6.40, 19.38, 7.93, 18.79, 32.91]}
STAGES = {
    (1, "FT"): [
        ([17.04, 10.18], 13.61, -1.68),
        ([17.88, 10.79, 8.85], 12.51, -1.56),
        ([17.17, 12.37, 12.37, 15.95], 14.46, -2.51),
        ([18.18, 12.07, 12.40, 22.21, 10.49], 15.07, -3.63),
    ],
    (1, "FTA"): [
        ([15.40, 10.80], 13.10, -0.04),
        ([15.57, 10.41, 9.70], 11.89, 0.09),
        ([15.16, 10.62, 10.14, 19.86], 13.95, -0.02),
        ([15.87, 10.86, 10.73, 19.28, 11.83], 13.71, -0.26),
    ],
    (1, "UOE"): [
        ([17.23, 10.47], 13.85, -1.87),
        ([17.75, 11.07, 9.03], 12.62, -1.50),
        ([17.44, 12.79, 12.44, 16.31], 14.75, -2.60),
        ([18.48, 12.45, 12.78, 22.62, 10.48], 15.36, -3.79),
    ],
    (1, "CLRL-T"): [
        ([17.13, 10.96], 14.04, -1.77),
        ([17.97, 11.71, 9.56], 13.08, -1.68),
        ([17.34, 12.87, 13.06, 17.60], 15.22, -2.46),
        ([17.86, 12.22, 12.35, 22.34, 11.55], 15.26, -2.82),
    ],
    (1, "ER"): [
        ([16.37, 10.14], 13.26, -1.01),
        ([17.34, 10.87, 8.97], 12.39, -1.35),
        ([16.02, 11.21, 10.52, 15.95], 13.43, -1.09),
        ([17.03, 11.32, 11.77, 19.32, 10.41], 13.97, -2.26),
    ],
    (1, "IHR"): [
        ([15.07, 10.74], 12.91, 0.29),
        ([15.16, 10.40, 9.87], 11.81, 0.27),
        ([14.97, 10.38, 10.52, 18.51], 13.60, 0.03),
        ([15.03, 10.42, 10.68, 18.95, 11.50], 13.32, -0.15),
    ],
    (2, "FT"): [
        ([9.84, 4.67], 7.25, -3.44),
        ([6.20, 10.43, 5.90], 7.51, -2.78),
        ([11.75, 20.76, 11.81, 4.30], 12.16, -9.12),
        ([16.97, 19.61, 16.54, 4.13, 4.90], 12.43, -8.99),
    ],
    (2, "FTA"): [
        ([7.22, 7.30], 7.26, -0.82),
        ([6.36, 7.86, 6.98], 7.07, -0.26),
        ([6.93, 8.88, 7.61, 11.64], 8.77, -0.91),
        ([7.51, 8.55, 8.10, 8.49, 12.22], 8.97, -0.08),
    ],
    (2, "UOE"): [
        ([9.41, 5.10], 7.25, -3.01),
        ([6.22, 9.06, 6.36], 7.21, -1.89),
        ([11.01, 16.94, 12.70, 4.61], 11.32, -7.60),
        ([14.27, 19.36, 17.10, 4.42, 5.36], 12.10, -8.17),
    ],
    (2, "CLRL-T"): [
        ([8.44, 6.97], 7.71, -2.04),
        ([6.14, 10.30, 6.49], 7.64, -1.54),
        ([9.49, 14.47, 10.80, 5.95], 10.18, -4.97),
        ([11.68, 16.36, 14.35, 5.61, 7.12], 11.02, -5.55),
    ],
    (2, "ER"): [
        ([6.61, 5.10], 5.86, -0.21),
        ([6.36, 6.33, 6.17], 6.29, -0.60),
        ([7.61, 6.88, 7.51, 4.81], 6.70, -1.44),
        ([7.59, 6.78, 7.87, 4.52, 5.39], 6.43, -1.07),
    ],
    (2, "IHR"): [
        ([7.03, 5.70], 6.37, -0.63),
        ([6.53, 6.70, 6.93], 6.72, -0.56),
        ([7.02, 7.69, 7.78, 6.01], 7.12, -1.15),
        ([8.07, 8.83, 8.90, 4.98, 6.24], 7.40, -1.44),
    ],
}
# Printed (FWT, COV) after the last stage.
FINAL = {
    (1, "FT"): (3.86, 0.0),
    (1, "FTA"): (2.18, 46.7),
    (1, "UOE"): (3.65, -10.1),
    (1, "CLRL-T"): (2.81, -6.7),
    (1, "ER"): (3.86, 37.9),
    (1, "IHR"): (2.57, 60.4),
    (2, "FT"): (14.81, 0.0),
    (2, "FTA"): (10.22, 48.0),
    (2, "UOE"): (14.39, 4.6),
    (2, "CLRL-T"): (13.12, 19.5),
    (2, "ER"): (14.38, 83.4),
    (2, "IHR"): (13.53, 69.8),
}
COV_TOLERANCE = {1: 0.3, 2: 0.15}


def published(key: tuple[int, str]) -> np.ndarray:
    matrix = np.full((5, 5), NAN)
    matrix[0] = FIRST[key[0]]
    for stage, (row, _, _) in enumerate(STAGES[key], start=1):
        matrix[stage, : stage + 1] = row
    return matrix


def separate(experiment: int) -> np.ndarray:
    """The authors' oracle: each domain by the snapshot of fine-tuning that has just learned it."""
    tuned = published((experiment, "FT"))
    return np.tril(np.tile(np.diag(tuned), (5, 1)))


@pytest.mark.parametrize("key", STAGES)
def test_published_averages_and_backward_transfer_after_every_stage(key: tuple[int, str]) -> None:
    matrix = published(key)
    for stage, (_, average, backward) in enumerate(STAGES[key], start=1):
        part = matrix[: stage + 1, : stage + 1]
        assert metrics.avg(part) == pytest.approx(average, abs=0.0101)
        assert metrics.bwt(part) == pytest.approx(backward, abs=0.0101)
        assert metrics.stage_averages(matrix)[stage] == pytest.approx(average, abs=0.0101)


@pytest.mark.parametrize("key", FINAL)
def test_published_forward_transfer_and_coverage(key: tuple[int, str]) -> None:
    matrix, (forward, coverage) = published(key), FINAL[key]
    assert metrics.fwt(matrix) == pytest.approx(forward, abs=0.0101)
    found = metrics.cov(matrix, published((key[0], "FT")), separate(key[0]))
    assert found == pytest.approx(coverage, abs=COV_TOLERANCE[key[0]])


def test_published_oracle_and_initial_model() -> None:
    assert metrics.avg(separate(1)) == pytest.approx(12.17, abs=0.0101)
    assert metrics.avg(separate(2)) == pytest.approx(5.23, abs=0.0101)
    assert metrics.cov(separate(1), published((1, "FT")), separate(1)) == 100.0
    initial = np.tile(FIRST[1], (5, 1))
    assert metrics.avg(initial) == pytest.approx(15.25, abs=0.0101)
    assert metrics.cov(initial, published((1, "FT")), separate(1)) == pytest.approx(-6.3, abs=0.3)


HAND = [[10.0, 40.0, 60.0], [16.0, 20.0, NAN], [13.0, 26.0, 30.0]]


def test_a_matrix_made_by_hand() -> None:
    assert metrics.avg(HAND) == pytest.approx(23.0)
    assert metrics.accuracy(HAND) == pytest.approx(77.0)
    assert metrics.word_weighted_avg(HAND, [100, 100, 200]) == pytest.approx((13 + 26 + 60) / 4)
    assert metrics.bwt(HAND) == pytest.approx(((10 - 13) + (20 - 26)) / 2)
    assert metrics.fwt(HAND) == pytest.approx(((40 - 20) + (60 - 30)) / 2)
    assert metrics.forgetting(HAND) == pytest.approx(((13 - 10) + (26 - 20)) / 2)
    joint = [[NAN] * 3, [NAN] * 3, [9.0, 18.0, 27.0]]
    assert metrics.intransigence(HAND, joint) == pytest.approx((1 + 2 + 3) / 3)
    assert metrics.stage_averages(HAND) == pytest.approx([10.0, 18.0, 23.0])


def test_forgetting_looks_back_to_the_best_stage_and_bwt_to_the_diagonal() -> None:
    matrix = [[20.0, 50.0, 50.0], [12.0, 30.0, NAN], [15.0, 25.0, 40.0]]
    assert metrics.forgetting(matrix) == pytest.approx(((15 - 12) + (25 - 30)) / 2)
    assert metrics.bwt(matrix) == pytest.approx(((20 - 15) + (30 - 25)) / 2)


def test_accuracies_give_the_same_transfer_with_the_customary_sign() -> None:
    accuracy = 100 - np.array(HAND)
    customary = np.mean(accuracy[-1, :2] - np.diag(accuracy)[:2])
    assert metrics.bwt(HAND) == pytest.approx(customary)


@pytest.mark.parametrize("metric", [metrics.bwt, metrics.fwt, metrics.forgetting])
def test_one_domain_has_no_transfer(metric) -> None:
    assert np.isnan(metric([[12.0]]))
    assert metrics.avg([[12.0]]) == 12.0


def test_a_missing_ingredient_gives_nan_and_an_irrelevant_gap_does_not() -> None:
    only_last = [[None, None], [None, None], [1.0, 2.0]][1:]
    assert metrics.avg(only_last) == 1.5
    assert np.isnan([metrics.bwt(only_last), metrics.fwt(only_last), metrics.forgetting(only_last)]).all()
    assert np.isnan(metrics.intransigence(HAND, [[NAN] * 3] * 3))
    assert np.isnan(metrics.avg([[1.0, 2.0], [NAN, 2.0]]))
    assert np.isnan(metrics.cov(HAND, HAND, HAND))
    assert np.isnan(metrics.bwt([[np.inf, 1.0], [np.inf, 2.0]]))


def test_weights_ignore_a_domain_without_words() -> None:
    assert metrics.word_weighted_avg([[1.0, 2.0], [10.0, np.inf]], [50, 0]) == 10.0
    assert np.isnan(metrics.word_weighted_avg([[1.0]], [0]))
    with pytest.raises(InputError, match="3 lengths for 2 domains"):
        metrics.word_weighted_avg([[1.0, 2.0], [1.0, 2.0]], [1, 2, 3])


def test_order_disparity() -> None:
    final = [[10.0, 20.0], [14.0, 21.0], [12.0, 20.5]]
    assert metrics.order_disparity(final) == pytest.approx([4.0, 1.0])
    assert (metrics.aopd(final), metrics.mopd(final)) == (2.5, 4.0)


@pytest.mark.parametrize("final", [[[1.0, 2.0]], [], [1.0, 2.0], [[], []]])
def test_one_order_has_no_disparity(final: list) -> None:
    with pytest.raises(InputError, match="two orders at least"):
        metrics.aopd(final)


@pytest.mark.parametrize("key", FINAL)
def test_published_matrices_as_accuracies_give_the_same_metrics(key: tuple[int, str]) -> None:
    """Every metric written in A = 100 − R, as `accuracy_formula` says, against the functions of R."""
    matrix = published(key)
    a, separate_a, tuned_a = 100 - matrix, 100 - separate(key[0]), 100 - published((key[0], "FT"))
    learned = np.diag(a)
    assert metrics.rates_from_accuracies(a) == pytest.approx(matrix, nan_ok=True)
    assert metrics.accuracy(matrix) == pytest.approx(a[-1].mean())
    assert metrics.bwt(matrix) == pytest.approx((a[-1, :-1] - learned[:-1]).mean())
    assert metrics.fwt(matrix) == pytest.approx((learned[1:] - a[0, 1:]).mean())
    assert metrics.forgetting(matrix) == pytest.approx(np.mean([a[j:-1, j].max() - a[-1, j] for j in range(4)]))
    joint = np.vstack([np.full((4, 5), NAN), [9.0, 8.0, 7.0, 6.0, 5.0]])
    assert metrics.intransigence(matrix, joint) == pytest.approx(np.mean((100 - joint[-1]) - learned))
    gain, room = a[-1].mean() - tuned_a[-1].mean(), separate_a[-1].mean() - tuned_a[-1].mean()
    found = metrics.cov(matrix, published((key[0], "FT")), separate(key[0]))
    assert found == pytest.approx(100 * gain / room)
    orders = [[10.0, 20.0], [14.0, 21.0]]
    assert metrics.aopd(orders) == metrics.aopd(100 - np.array(orders))


def test_shares_above_a_hundred_are_no_accuracies() -> None:
    with pytest.raises(InputError, match="between 0 and 100 percent; found -1 to 101"):
        metrics.rates_from_accuracies([[101.0, 50.0], [NAN, -1.0]])


def test_old_and_new_domains() -> None:
    assert metrics.old_and_new(HAND) == pytest.approx([(13 + 26) / 2, 30])
    assert metrics.old_and_new(HAND, 1) == pytest.approx([16, 20])
    assert metrics.old_and_new(HAND, 0) == pytest.approx([NAN, 10], nan_ok=True)


def test_the_front_holds_what_nothing_beats_on_both() -> None:
    points = [[1, 9], [5, 5], [6, 6], [9, 1], [5, 7], [NAN, 0], [9, 1]]
    assert metrics.pareto_front(points) == [(1, 9), (5, 5), (9, 1)]
    assert metrics.pareto_front([]) == []


@pytest.mark.parametrize("matrix", [[[1.0, 2.0]], [], [1.0, 2.0]])
def test_matrices_that_are_not_square_are_refused(matrix: list) -> None:
    with pytest.raises(InputError, match=r"it must be \[T, T\]"):
        metrics.avg(matrix)


def test_the_registry_describes_every_function() -> None:
    for key, metric in METRICS.items():
        assert callable(getattr(metrics, key))
        assert metric.better in ("lower", "higher") and metric.unit in ("%", "points")
        assert metric.formula and metric.source and metric.name and metric.accuracy_formula and metric.references
        assert metric.symbol in (getattr(metrics, key).__doc__ or "")
    assert len({metric.symbol for metric in METRICS.values()}) == len(METRICS)
