"""Epsilon-rank and effective rank from quadratures against all eigenvalues."""

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from asrcl.curvature.spectral_mass import epsilon_rank, spectral_quadrature
from asrcl.curvature.spectrum import effective_rank, spectral_density
from asrcl.exceptions import InputError

EPSILONS = [0.01, 0.1, 1.0]


def rotated(values, seed=0):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))
    return basis * values @ basis.T


def clusters():
    """Eigenvalues of both signs in four places, 300 in all: 40 above 1, 100 above 0.1, 180 above 0.01."""
    return np.repeat([2.0, -0.5, 0.05, 0.001], [40, 60, 80, 120])


def test_all_eigenvalues_of_a_small_operator_are_exact():
    values = clusters()
    spectrum = spectral_quadrature(rotated(values), steps=20, exact_below=300)
    np.testing.assert_allclose(np.sort(spectrum.nodes[0]), np.sort(values), atol=1e-6)
    np.testing.assert_allclose(epsilon_rank(spectrum, EPSILONS), [[180 / 300, 100 / 300, 40 / 300]], atol=1e-12)
    assert spectrum.effective_rank == pytest.approx(effective_rank(values), rel=1e-6)
    assert spectrum.trace == pytest.approx(values.sum(), abs=1e-6)


def test_a_quadrature_gives_the_mass_of_a_vector_exactly_where_steps_suffice():
    # Four different eigenvalues: the Krylov space of any vector ends after four steps, and beta is zero but for rounding.
    values = clusters()
    matrix = rotated(values)
    spectrum = spectral_quadrature(matrix, steps=30, repeats=4, seed=3)
    shares = epsilon_rank(spectrum, EPSILONS)
    assert np.isfinite(shares).all() and len(shares) == 4
    # Of one vector the mass is a random share, with a relative deviation of sqrt(2 / count); draws differ for that reason alone.
    expected = np.array([180, 100, 40]) / 300
    assert np.abs(shares - expected).max() < 5 * np.sqrt(2 * expected * (1 - expected) / 300).max()
    assert shares.std(0).max() > 1e-3
    many = spectral_quadrature(matrix, steps=30, repeats=60)
    np.testing.assert_allclose(epsilon_rank(many, EPSILONS).mean(0), expected, atol=0.015)
    assert many.effective_rank == pytest.approx(effective_rank(values), rel=0.03)


def test_a_krylov_space_that_ends_at_once_gives_no_nan():
    # Trap 4 of the note: beta is exactly zero for a collapsed model, and whoever divides by it has NaN from there on.
    for matrix in (np.zeros((50, 50)), 3 * np.eye(50), np.diag([5.0] + [0.0] * 49)):
        spectrum = spectral_quadrature(matrix, steps=10)
        assert np.isfinite(epsilon_rank(spectrum, [0.1])).all() and np.isfinite(spectrum.effective_rank)
    assert epsilon_rank(spectral_quadrature(3 * np.eye(50), steps=10), [1.0, 4.0]).tolist() == [[1.0, 0.0]] * 3
    assert spectral_quadrature(np.zeros((50, 50)), steps=10).effective_rank == 0.0


def test_mass_is_taken_at_nodes_and_not_from_a_smoothed_density():
    # Trap 2: every eigenvalue is below epsilon but ten; a density with bumps of its own width puts most of them above.
    values = np.r_[np.zeros(390), np.full(10, 5.0)]
    matrix = rotated(values)
    grid, density = spectral_density(matrix, steps=32, points=400)
    leaked = np.trapezoid(np.where(np.abs(grid) > 0.01, density, 0), grid)
    shares = epsilon_rank(spectral_quadrature(matrix, steps=32, repeats=20), [0.01]).mean()
    assert leaked > 0.5
    assert shares == pytest.approx(10 / 400, rel=0.25)


def test_mass_is_no_count_of_ritz_values():
    # Trap 1: of 1,000 eigenvalues 900 exceed epsilon; 20 steps have 20 Ritz values, and their effective rank is below 20.
    values = np.r_[np.linspace(1, 2, 900), np.zeros(100)]
    operator = aslinearoperator(np.diag(values))
    spectrum = spectral_quadrature(operator, steps=20, repeats=8)
    assert epsilon_rank(spectrum, [0.5]).mean() == pytest.approx(0.9, abs=0.03)
    assert spectrum.effective_rank == pytest.approx(effective_rank(values), rel=0.05)
    assert effective_rank(spectrum.nodes[0]) < 20


def test_too_few_steps_show_in_no_spread():
    # Why the study's Hessian takes many steps: with eigenvalues near zero on one node, all draws agree on a wrong share.
    values = 5 * np.linspace(0, 1, 600) ** 8 * np.where(np.arange(600) % 3, 1, -1)
    matrix, expected = np.diag(values), np.mean(np.abs(values) > 0.01)
    coarse, fine = (epsilon_rank(spectral_quadrature(matrix, steps=steps, repeats=6), [0.01]) for steps in (12, 200))
    assert abs(fine.mean() - expected) < 0.03
    assert abs(coarse.mean() - expected) > max(0.1, 3 * coarse.std())


@pytest.mark.parametrize("epsilons", [[-0.1], [np.nan], [np.inf]])
def test_an_epsilon_that_is_no_limit_is_refused(epsilons):
    with pytest.raises(InputError, match="epsilons="):
        epsilon_rank(spectral_quadrature(np.eye(3)), epsilons)


def test_numbers_of_steps_and_draws_are_checked():
    with pytest.raises(InputError, match="steps=1, repeats=3"):
        spectral_quadrature(np.eye(3), steps=1)
