"""Spectral methods against plain NumPy written from the papers' formulas, with full matrices where the code has thin ones."""

import math

import numpy as np
import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.merge.registry import find_method
from asrcl.merge.steps.spectral import iso_c, nearest_orthogonal, opcm, tsv_m, without_shared

torch.set_num_threads(1)
DOUBLE = torch.float64
SHAPES = pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 9)])


def random(shape, count=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=DOUBLE) for _ in range(count)]


def numpy_tsv_m(deltas):
    share = min(deltas[0].shape) // len(deltas)
    U, s, V = [], [], []
    for delta in deltas:
        u, values, vt = np.linalg.svd(delta, full_matrices=False)
        U.append(u[:, :share])
        s.append(values[:share])
        V.append(vt[:share].T)

    def whitened(X):
        values, Q = np.linalg.eigh(X.T @ X)
        return X @ Q @ np.diag(values**-0.5) @ Q.T

    return whitened(np.hstack(U)) @ np.diag(np.hstack(s)) @ whitened(np.hstack(V)).T


def numpy_projection(delta, merged, threshold):
    U, s, Vt = np.linalg.svd(merged)  # with all columns of both sides
    coefficients = U.T @ delta @ Vt.T
    np.fill_diagonal(coefficients, 0)
    closed = 0
    while closed < len(s) and s[: closed + 1].sum() <= threshold * s.sum() + 1e-12:
        closed += 1
    coefficients[:closed, :closed] = 0
    return U @ coefficients @ Vt


@SHAPES
@pytest.mark.parametrize("count", [1, 2, 4])
def test_tsv_m_is_the_papers_algorithm(shape, count):
    deltas = random(shape, count)
    expected = numpy_tsv_m([delta.numpy() for delta in deltas])
    torch.testing.assert_close(tsv_m(deltas, strength=0.7), 0.7 * torch.from_numpy(expected))


@SHAPES
def test_tsv_m_of_one_model_is_its_update(shape):
    (delta,) = random(shape)
    torch.testing.assert_close(tsv_m([delta]), delta)


def test_tsv_m_adds_updates_that_do_not_meet():
    basis, _ = torch.linalg.qr(random((6, 6))[0])
    first, second = basis[:, :3] @ basis[:, :3].T, 2 * basis[:, 3:] @ basis[:, 3:].T
    torch.testing.assert_close(tsv_m([first, second]), first + second)


def test_tsv_m_with_more_models_than_ranks_and_with_one_that_learned_nothing():
    deltas = random((3, 2), 5)
    step = tsv_m(deltas)
    assert torch.isfinite(step).all() and torch.linalg.matrix_rank(step) == 2
    rank = random((6, 1), 2)
    low = rank[0] @ rank[1].T
    torch.testing.assert_close(tsv_m([low, torch.zeros_like(low)]), low)


def test_the_nearest_orthogonal_matrix():
    (X,) = random((5, 3))
    nearest = nearest_orthogonal(X)
    torch.testing.assert_close(nearest.T @ nearest, torch.eye(3, dtype=DOUBLE))
    torch.testing.assert_close(nearest_orthogonal(X.T), nearest.T)
    for change in random((3, 3), 20, seed=1):
        turn = torch.linalg.matrix_exp(0.1 * (change - change.T))
        assert (X - nearest).norm() < (X - nearest @ turn).norm()


@SHAPES
def test_iso_c_flattens_the_spectrum_of_the_sum(shape):
    deltas = random(shape, 3)
    U, s, Vt = np.linalg.svd(sum(delta.numpy() for delta in deltas), full_matrices=False)
    torch.testing.assert_close(iso_c(deltas, strength=1.5), torch.from_numpy(1.5 * s.mean() * U @ Vt))


def test_iso_c_of_a_low_rank_update_stays_in_its_rank():
    left, right = random((6, 2), 2)
    step = iso_c([left @ right.T])
    s = torch.linalg.svdvals(left @ right.T)
    torch.testing.assert_close(torch.linalg.svdvals(step), torch.cat([s[:2].mean().expand(2), torch.zeros(4, dtype=DOUBLE)]))
    torch.testing.assert_close(iso_c([torch.diag(torch.tensor([3.0, 1.0, 0.0]))]), torch.diag(torch.tensor([2.0, 2.0, 0.0])))


@SHAPES
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_opcm_projects_as_the_full_basis_does(shape, threshold):
    delta, merged = random(shape, 2)
    expected = numpy_projection(delta.numpy(), merged.numpy(), threshold)
    projected = without_shared(delta, merged, threshold)
    torch.testing.assert_close(projected, torch.from_numpy(expected))
    U, _, Vt = torch.linalg.svd(merged, full_matrices=False)
    torch.testing.assert_close((U.T @ projected @ Vt.T).diagonal(), torch.zeros(min(shape), dtype=DOUBLE))
    assert abs(float((projected * merged).sum())) < 1e-12, "the paper's orthogonality"


@pytest.mark.parametrize("task", [3, 6])
def test_opcm_takes_one_model_after_the_other(task):
    merged, *news = random((6, 4), 3)
    expected = merged.numpy()
    for t, delta in zip((task - 1, task), news, strict=True):
        raw = math.sqrt(t - 1) * expected + numpy_projection(delta.numpy(), expected, 0.5)
        length = ((t - 1) * np.linalg.norm(expected) + float(delta.norm())) / t
        expected = raw * length / np.linalg.norm(raw)
    torch.testing.assert_close(opcm([merged, *news], task=task, strength=0.8), 0.8 * torch.from_numpy(expected))


def test_opcm_learns_nothing_from_what_is_merged_already():
    (merged,) = random((5, 4))
    torch.testing.assert_close(opcm([merged, merged], task=2), merged)
    torch.testing.assert_close(opcm([merged, torch.zeros_like(merged)], task=2), merged / 2)
    torch.testing.assert_close(opcm([torch.zeros_like(merged), merged], task=2), merged / 2)


def test_opcm_adds_updates_that_do_not_meet_with_equal_weight():
    basis, _ = torch.linalg.qr(random((6, 6))[0])
    parts = [basis[:, n : n + 2] @ basis[:, n : n + 2].T for n in (0, 2, 4)]
    torch.testing.assert_close(opcm(parts, task=3, threshold=1.0), sum(parts) / math.sqrt(3))


def test_opcm_in_single_precision_leaves_directions_alone_that_are_rounding():
    left, right, delta = *random((6, 2), 2), random((6, 6), seed=3)[0]
    low = left @ right.T
    projected = without_shared(delta.float(), low.float().double(), 1.0)
    torch.testing.assert_close(projected, without_shared(delta, low, 1.0), atol=1e-5, rtol=0)


def every(deltas, **knobs):
    yield tsv_m(deltas, **knobs)
    yield iso_c(deltas, **knobs)
    yield opcm(deltas, **knobs)


def test_nothing_new_and_no_strength_are_no_step():
    for step in (*every([torch.zeros(3, 2)] * 2), *every(random((3, 2), 2), strength=0.0)):
        assert not step.any()


@pytest.mark.parametrize("kind", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (1, 5)])
def test_shapes_types_and_inputs_are_kept(kind, shape):
    deltas = [delta.to(kind) for delta in random(shape, 2)]
    before = [delta.clone() for delta in deltas]
    for step in every(deltas):
        assert step.shape == shape and step.dtype == kind and torch.isfinite(step).all()
    assert all(torch.equal(delta, old) for delta, old in zip(deltas, before, strict=True))


def test_all_are_for_matrices_and_for_several_models():
    for name in ("tsv_m", "iso_c", "opcm"):
        assert find_method(name).matrices and find_method(name).several and not find_method(name).curved


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: tsv_m(d, strength=None), r"strength .*finite"),
        (lambda d: iso_c(d, strength=float("inf")), r"strength .*finite"),
        (lambda d: opcm(d, threshold=1.5), "threshold must lie between 0 and 1"),
        (lambda d: opcm(d, threshold=-0.1), "threshold must lie between 0 and 1"),
        (lambda d: opcm(d, task=1), "task=1 domains cannot come from 2 models"),
    ],
)
def test_bad_options_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(random((3, 2), 2))
