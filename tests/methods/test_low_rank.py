"""Fits, singular directions, allocation and pruning against their formulas, with numbers that can be checked by hand."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.methods.increments import Factors, perturbed
from asrcl.methods.low_rank import allocate, decompose, fit_scales, prune_to_bound


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scores(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_scales_are_the_least_squares_sweeps():
    shared, learned = normal(5, 4), normal(5, 4, seed=1)
    R, S = fit_scales(shared, learned)
    for row in range(5):
        fit = torch.linalg.lstsq(shared[row, :, None].double(), learned[row, :, None].double())[0]
        assert R[row] == pytest.approx(float(fit))
    scaled = R[:, None] * shared.double()
    for column in range(4):
        fit = torch.linalg.lstsq(scaled[:, column, None], learned[:, column, None].double())[0]
        assert S[column] == pytest.approx(float(fit))


def test_scales_of_a_scaled_weight_are_found_and_leave_nothing():
    shared = normal(6, 3, seed=2)
    rows = torch.tensor([2.0, -1.0, 0.5, 3.0, 1.0, -2.0])
    found = decompose(shared, rows[:, None] * shared)
    torch.testing.assert_close(found.R, rows.double())
    torch.testing.assert_close(found.S, torch.ones(3, dtype=torch.float64))
    assert float(found.values.max()) < 1e-6


def test_rows_of_zeros_have_no_scale_and_no_division_by_zero():
    shared = normal(3, 4)
    shared[1] = 0
    R, S = fit_scales(shared, normal(3, 4, seed=1))
    assert R[1] == 0 and torch.isfinite(S).all()


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_with_all_directions_the_first_weight_is_that_of_the_free_copy(shape):
    shared, learned = normal(*shape), normal(*shape, seed=1)
    factors = decompose(shared, learned).factors(min(shape), torch.float32)
    torch.testing.assert_close(perturbed(shared, factors), learned, rtol=0, atol=1e-6)


def test_a_convolution_is_perturbed_alike_at_all_positions_of_its_kernel():
    shared, learned = normal(6, 4, 3, 3), normal(6, 4, 3, 3, seed=1)
    found = decompose(shared, learned)
    weight = perturbed(shared.double(), found.factors(4, torch.float64))
    scaled = found.R.view(-1, 1, 1, 1) * shared.double() * found.S.view(1, -1, 1, 1)
    change = weight - scaled
    torch.testing.assert_close(change, change[:, :, :1, :1].expand_as(change))
    torch.testing.assert_close(change[:, :, 0, 0], (learned.double() - scaled).mean((2, 3)))
    inputs = normal(2, 4, 8, 8, seed=3).double()
    U, V = found.factors(4, torch.float64).U, found.factors(4, torch.float64).V
    pooled = torch.nn.functional.avg_pool2d(torch.einsum("kc,bcxy->bkxy", V, inputs), 3, 1, 1) * 9  # as the authors compute it
    apart = torch.nn.functional.conv2d(inputs, scaled, padding=1) + torch.einsum("ok,bkxy->boxy", U, pooled)
    torch.testing.assert_close(torch.nn.functional.conv2d(inputs, weight, padding=1), apart)


def test_the_scales_of_a_convolution_are_fitted_over_its_kernel():
    shared = normal(4, 3, 5)
    columns = torch.tensor([1.0, 2.0, -1.0])
    R, S = fit_scales(shared, columns[None, :, None] * shared)
    fitted = R.view(-1, 1, 1) * shared.double() * S.view(1, -1, 1)
    exact = columns.double()[None, :, None] * shared.double()
    assert float((fitted - exact).norm()) < float((R.view(-1, 1, 1) * shared.double() - exact).norm())
    for row in range(4):
        flat, wanted = shared[row].double().flatten(), exact[row].flatten()
        assert R[row] == pytest.approx(float(flat @ wanted / (flat @ flat)))


def test_scores_count_the_positions_of_a_kernel():
    matrix, kernel = decompose(normal(4, 3), normal(4, 3, seed=1)), decompose(normal(4, 3, 3, 3), normal(4, 3, 3, 3, seed=1))
    torch.testing.assert_close(matrix.scores(0.5), matrix.values.square() * 0.5)
    torch.testing.assert_close(kernel.scores(2.0), 9 * kernel.values.square() * 2.0)


def test_directions_are_kept_until_the_share_is_exceeded_and_the_crossing_one_is_kept():
    found = scores(a=[50.0, 20.0, 1.0], b=[20.0, 9.0])  # descending: 50, 70, 90, 99, 100 of 100
    assert allocate(found, 0.69, 100) == {"a": 2, "b": 1}  # 70 % exceed 69 %; of b one in any case
    assert allocate(found, 0.75, 100) == {"a": 2, "b": 1}
    assert allocate(found, 0.95, 100) == {"a": 2, "b": 2}
    assert allocate(found, 0.995, 100) == {"a": 3, "b": 2}


def test_what_is_dropped_is_what_the_share_says():
    found = {name: normal(9, seed=number).square().sort(descending=True).values for number, name in enumerate("abcd")}
    total = float(sum(value.double().sum() for value in found.values()))
    for share in (0.5, 0.9, 0.97):
        counts = allocate(found, share, 100)
        least = min(float(found[name][count - 1]) for name, count in counts.items() if count > 1)
        kept = sum(float(found[name][:count].double().sum()) for name, count in counts.items())
        assert kept > share * total  # the dropped sum is below (1 - share) of all
        forced = sum(float(found[name][0]) for name, count in counts.items() if count == 1)
        assert kept - least - forced <= share * total  # one less would not do


def test_a_share_of_one_keeps_all_directions():
    found = scores(a=[1.0, 1e-12], b=[1e-30, 0.0])
    assert allocate(found, 1.0, 100) == {"a": 2, "b": 2}


def test_every_weight_keeps_at_least_one_direction_and_at_most_the_cap():
    found = scores(a=[4.0, 3.0, 2.0, 1.0], b=[1e-9, 1e-10])
    assert allocate(found, 0.99, 2) == {"a": 2, "b": 1}
    assert allocate(scores(a=[0.0, 0.0], b=[0.0]), 0.9, 100) == {"a": 1, "b": 1}


def test_sums_are_taken_in_double_precision():
    """In float32 a thousand scores of 1e-8 beside one of 1 add up to nothing."""
    found = {"a": torch.tensor([1.0, *[1e-8] * 1000])}
    assert allocate(found, 1 - 1e-7, 10_000)["a"] > 800


def test_more_of_the_share_keeps_more():
    found = {name: normal(20, seed=number).square().sort(descending=True).values for number, name in enumerate("ab")}
    counts = [sum(allocate(found, share, 100).values()) for share in (0.3, 0.6, 0.8, 0.9, 0.99, 1.0)]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 40


def pruned(bound, dense=1.0, least=1e-5):
    factors = [Factors(normal(30, 4), normal(4, 20, seed=1)), Factors(0.1 * normal(10, 2, seed=2), normal(2, 10, seed=3))]
    found = prune_to_bound(factors, dense, bound, least)
    return factors, found


def test_the_smallest_entries_of_all_weights_together_go():
    before, after = pruned(0.25, dense=1.0)
    old = torch.cat([part.flatten() for item in before for part in (item.U, item.V)])
    new = torch.cat([part.flatten() for item in after for part in (item.U, item.V)])
    assert float((new != 0).double().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(old[new == 0].abs().max()) < float(new[new != 0].abs().min())
    assert torch.equal(new[new != 0], old[new != 0])
    assert float((after[1].U != 0).double().mean()) < 0.1  # its entries are small beside the others


def test_below_the_bound_nothing_is_pruned():
    before, after = pruned(0.6, dense=0.59)
    assert all(torch.equal(one.U, other.U) and torch.equal(one.V, other.V) for one, other in zip(before, after, strict=True))


def test_entries_below_the_limit_go_where_anything_does():
    before, after = pruned(0.999, dense=1.0, least=0.05)
    assert all(bool(((one.U.abs() > 0.05) == (other.U != 0)).all()) for one, other in zip(before, after, strict=True))


def test_a_bound_that_is_not_positive():
    with pytest.raises(InputError, match="must be positive"):
        pruned(0.0)
