"""Arithmetic with updates, against worked examples and expectations."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.merge.registry import MergeMethod, find_method
from asrcl.merge.steps.task_vectors import (
    dare,
    depth_scale,
    lines,
    lines_of,
    magmax,
    model_stock,
    task_arithmetic,
    ties,
    trimmed,
)

torch.set_num_threads(1)
DOUBLE = torch.float64


def tensor(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def deltas():
    g = generator(5)
    return [torch.randn(6, 7, generator=g, dtype=DOUBLE) for _ in range(3)]


def every(deltas, **knobs):
    yield task_arithmetic(deltas, **knobs)
    yield ties(deltas, **knobs)
    yield dare(deltas, generator=generator(), **knobs)
    yield dare(deltas, generator=generator(), elect=True, **knobs)
    yield magmax(deltas, **knobs)
    yield model_stock(deltas, **knobs)
    yield lines(deltas[0], depth=0.3, **knobs)


def test_task_arithmetic_adds_and_unlearns(deltas):
    torch.testing.assert_close(task_arithmetic(deltas, strength=0.3), 0.3 * (deltas[0] + deltas[1] + deltas[2]))
    torch.testing.assert_close(task_arithmetic(deltas[:1], strength=-1.0), -deltas[0])


def test_ties_on_an_example_worked_by_hand():
    """Density 0.6 keeps 3 of 5 entries; the sums then elect +, −, +, 0 and −."""
    first = tensor(5.0, -1.0, 0.5, 4.0, -3.0)  # keeps 5, 4, −3
    second = tensor(-2.0, -6.0, 0.1, -4.0, 0.2)  # keeps −2, −6, −4
    third = tensor(1.0, 2.0, 3.0, 0.1, -5.0)  # keeps 2, 3, −5
    merged = ties([first, second, third], density=0.6)
    assert merged.tolist() == [5.0, -6.0, 3.0, 0.0, -4.0]
    assert ties([first, second, third], density=0.6, strength=0.5).tolist() == [2.5, -3.0, 1.5, 0.0, -2.0]


def test_ties_without_trimming_averages_what_agrees(deltas):
    merged = ties(deltas, density=1.0)
    for place in range(42):
        column = torch.stack([d.flatten()[place] for d in deltas])
        chosen = column[column.sign() == column.sum().sign()]
        assert float(merged.flatten()[place]) == pytest.approx(float(chosen.mean()))


def test_one_model_is_only_trimmed(deltas):
    kept = ties(deltas[:1], density=0.5)
    assert int((kept != 0).sum()) == 21
    assert deltas[0].abs()[kept == 0].max() < kept.abs()[kept != 0].min()
    assert torch.equal(kept[kept != 0], deltas[0][kept != 0])


@pytest.mark.parametrize("density, expected", [(0.2, [0, 0, 0, -4, 4]), (0.01, [0, 0, 0, -4, 4]), (0.6, [0, 2, 0, -4, 4])])
def test_trimming_keeps_equal_entries_together_and_at_least_one(density, expected):
    delta = tensor(0.0, 2.0, 1.0, -4.0, 4.0)
    assert trimmed(delta, density).tolist() == expected
    assert torch.equal(trimmed(tensor(3.0)[0], 0.2), tensor(3.0)[0])


def test_dare_keeps_the_update_in_expectation(deltas):
    draws = torch.stack([dare(deltas[:1], generator=generator(n), drop=0.7) for n in range(4000)])
    error = (draws.mean(0) - deltas[0]).abs() / deltas[0].abs()
    assert error.max() < 5 * (0.7 / 0.3 / 4000) ** 0.5
    assert float((draws == 0).double().mean()) == pytest.approx(0.7, abs=0.005)


def test_dare_drops_and_rescales_entry_by_entry(deltas):
    step = dare(deltas[:1], generator=generator(1), drop=0.75, strength=0.5)
    kept = step != 0
    torch.testing.assert_close(step[kept], deltas[0][kept] * 2)
    torch.testing.assert_close(dare(deltas[:1], generator=generator(1), drop=0.75, rescale=False)[kept], deltas[0][kept])
    torch.testing.assert_close(dare(deltas, generator=generator(), drop=0.0), sum(deltas))


def test_dare_draws_the_same_for_every_type_and_anew_for_every_model(deltas):
    wide = dare(deltas[:1], generator=generator(3), drop=0.5)
    single = dare([deltas[0].float()], generator=generator(3), drop=0.5)
    assert torch.equal(wide != 0, single != 0)
    assert not torch.equal(wide, dare(deltas[:1], generator=generator(4), drop=0.5))
    twice = dare([deltas[0]] * 2, generator=generator(3), drop=0.5) / deltas[0]
    assert {round(float(v), 6) for v in twice.unique()} == {0.0, 2.0, 4.0}


def test_dare_with_election_is_ties_after_dropping(deltas):
    thinned = []
    g = generator(2)
    for delta in deltas:
        thinned.append(torch.where(torch.rand(delta.shape, generator=g) >= 0.5, delta, 0.0) * 2)
    merged = dare(deltas, generator=generator(2), drop=0.5, elect=True)
    torch.testing.assert_close(merged, ties(thinned, density=1.0))


def test_magmax_takes_the_largest():
    first, second, third = tensor(1, -5, 2, 0), tensor(-3, 4, 2, 0), tensor(2, 1, -2, 0)
    assert magmax([first, second, third], strength=1.0).tolist() == [-3, -5, 2, 0]
    assert magmax([third, first], strength=0.5).tolist() == [1, -2.5, -1, 0]


def test_lines_runs_linearly_over_the_layers(deltas):
    layers = 5
    scales = [float((lines(deltas[0], depth=n / (layers - 1), first=0.2, last=0.8) / deltas[0]).mean()) for n in range(layers)]
    assert scales == pytest.approx([0.2 + 0.6 * (n / 4) for n in range(5)])
    assert depth_scale(0.25, 1.0, 1.0) == 1.0


def test_lines_around_a_method_scales_its_step_and_passes_everything_on(deltas):
    outer = lines_of(find_method("ties"))
    assert (outer.name, outer.several, outer.elementwise) == ("lines+ties", True, False)
    assert outer.knobs == {"density": 0.2, "strength": 1.0, "first": 0.5, "last": 1.0}
    step = outer.run(deltas, depth=0.5, first=0.0, last=0.6, density=0.5)
    torch.testing.assert_close(step, 0.3 * ties(deltas, density=0.5))
    assert "LiNeS" in outer.source and "Yadav" in outer.source and outer.summary.endswith("scaled linearly with depth.")


def test_lines_keeps_the_context_of_the_inner_method(deltas):
    outer = lines_of(find_method("dare"))
    assert outer.context == {"generator", "depth"}
    step = outer.run(deltas, depth=1.0, generator=generator(3), last=2.0)
    torch.testing.assert_close(step, 2 * dare(deltas, generator=generator(3)))
    twice = lines_of(MergeMethod("deep", lambda delta, *, depth: delta * depth, "a test", {}, frozenset({"depth"})))
    torch.testing.assert_close(twice.run(deltas[0], depth=0.5, first=0.5, last=0.5), 0.25 * deltas[0])


def test_lines_hands_the_first_pass_its_own_options_alone():
    seen = {}

    def prepare(rows, **options):
        seen.update(options)
        return rows

    method = MergeMethod("mine", lambda d: d, "a test", {"tau": 1.0}, frozenset({"shared"}), prepare=prepare)
    assert lines_of(method).prepare("rows", first=0.1, tau=2.0) == "rows"
    assert seen == {"tau": 2.0}
    with pytest.raises(InputError, match=r"mine, .*option first"):
        lines_of(MergeMethod("mine", lambda d: d, "a test", {"first": 1}, frozenset()))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("off", [0.2, 1.0, 4.0])
def test_model_stock_is_the_nearest_point_to_the_centre_that_its_models_scatter_around(count, off):
    """A centre, and around it models at one distance in orthogonal directions, `off` times as far from it as the start is."""
    basis, _ = torch.linalg.qr(torch.randn(12, count + 1, generator=generator(count), dtype=DOUBLE))
    centre = 3.0 * basis[:, 0]
    deltas = [centre + 3.0 * off * basis[:, n] for n in range(1, count + 1)]
    coefficients = torch.linalg.lstsq(torch.stack(deltas, 1), centre).solution
    torch.testing.assert_close(model_stock(deltas), torch.stack(deltas, 1) @ coefficients)


def test_model_stock_of_two_is_the_ratio_of_the_paper(deltas):
    first, second = deltas[0], deltas[0] + 0.5 * deltas[1]
    cosine = float((first * second).sum() / first.norm() / second.norm())
    torch.testing.assert_close(model_stock([first, second]), 2 * cosine / (1 + cosine) * (first + second) / 2)


def test_model_stock_of_orthogonal_or_opposed_updates_stays_and_of_equal_ones_goes_all_the_way():
    first, second = tensor(1.0, 2.0, 0.0), tensor(-2.0, 1.0, 0.0)
    assert float(model_stock([first, second, tensor(0.0, 0.0, 5.0)]).abs().max()) < 1e-15
    assert not model_stock([first, -first]).any() and not model_stock([first, -0.5 * first + 0.1 * second]).any()
    torch.testing.assert_close(model_stock([first, first, first]), first)


def test_model_stock_does_not_count_updates_of_zero_and_takes_one_alone_whole():
    first, second = tensor(1.0, 2.0), tensor(2.0, 1.0)
    assert torch.equal(model_stock([torch.zeros_like(first), first]), first)
    assert torch.equal(model_stock([first, torch.zeros_like(first), second]), model_stock([first, second]))


def test_nothing_new_and_no_strength_are_no_step(deltas):
    for step in (*every([torch.zeros(3, 2)] * 2), *every(deltas, strength=0.0)):
        assert not step.any()


@pytest.mark.parametrize("kind", [torch.float32, DOUBLE])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2, 2)])
def test_shapes_types_and_inputs_are_kept(kind, shape):
    deltas = [torch.randn(shape, generator=generator(n), dtype=DOUBLE).to(kind) for n in range(2)]
    before = [delta.clone() for delta in deltas]
    for step in every(deltas, strength=0.7):
        assert step.shape == shape and step.dtype == kind
    assert all(torch.equal(delta, old) for delta, old in zip(deltas, before, strict=True))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: ties(d, density=0.0), "density must lie above 0"),
        (lambda d: ties(d, density=1.1), "density must lie above 0"),
        (lambda d: dare(d, generator=generator(), drop=1.0), "drop must be at least 0 and below 1"),
        (lambda d: dare(d, generator=generator(), drop=-0.1), "drop must be"),
        (lambda d: dare(d, generator=generator(), seed=1.5), r"seed .*whole number"),
        (lambda d: magmax(d, strength=None), r"strength .*finite"),
        (lambda d: task_arithmetic(d, strength="1"), r"strength .*finite"),
        (lambda d: model_stock(d, strength=float("nan")), r"strength .*finite"),
        (lambda d: lines(d[0], depth=0.0, first="a"), r"first .*finite"),
    ],
)
def test_bad_options_are_refused(deltas, call, message):
    with pytest.raises(InputError, match=message):
        call(deltas)
