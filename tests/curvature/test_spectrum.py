"""Operators against dense float64 matrices, densities against exact eigenvalues."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from curvature_cases import Items, TwoLayer, batches_of, make_items, seeded, sequence_loss
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn
from torch.func import functional_call

from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, KroneckerBlock
from asrcl.curvature.spectrum import (
    Layout,
    curvature_operator,
    effective_rank,
    hessian_operator,
    spectral_density,
    stable_rank,
    top_eigenvalues,
)
from asrcl.exceptions import InputError


class Tied(nn.Module):
    """One matrix used twice under two names, a parameter that is never used, attention, and a linear output."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3, bias=False)
        self.again.weight = self.first.weight
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        h = self.again(torch.tanh(self.first(x)))[:, None]
        return nn.functional.scaled_dot_product_attention(h, h, h)[:, 0]


def matrix_of(operator):
    return operator @ np.eye(operator.shape[0])


def dense_hessian(model, loss_fn, batch, names):
    layout = Layout({name: tuple(model.get_parameter(name).shape) for name in names})
    sizes = [model.get_parameter(name).numel() for name in names]

    def loss(flat):
        parts = flat.split(sizes)
        weights = {n: p.reshape(s) for (n, s), p in zip(layout.shapes.items(), parts, strict=True)}
        return loss_fn(lambda x: functional_call(model, weights, (x,)), batch)

    flat = torch.from_numpy(layout.flatten(dict(model.named_parameters())))
    model.eval()
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat).numpy()


def ctc(model, batch):
    scores = model(batch.x).log_softmax(-1).transpose(0, 1)
    targets, lengths = torch.ones(len(batch), 1, dtype=torch.long), torch.ones(len(batch), dtype=torch.long)
    return nn.functional.ctc_loss(scores, targets, batch.lengths, lengths, reduction="sum") / len(batch)


@pytest.fixture
def items():
    return make_items([4, 2, 3, 5, 1])


@pytest.fixture
def model():
    return seeded(TwoLayer)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("finite_difference", [False, True])
@pytest.mark.parametrize("build, lengths", [(TwoLayer, [4, 2, 3, 5, 1]), (Tied, [3] * 5)])
def test_hessian_equals_the_dense_one_however_items_are_batched(size, finite_difference, build, lengths):
    model, items = seeded(build), make_items(lengths)
    operator = hessian_operator(model, sequence_loss, batches_of(items, size), finite_difference=finite_difference)
    names = [name for name, _ in model.named_parameters()]
    assert operator.dtype == np.float64 and list(operator.layout.shapes) == names
    expected = dense_hessian(model, sequence_loss, items, names)
    np.testing.assert_allclose(matrix_of(operator), expected, atol=1e-7 if finite_difference else 1e-12)


def test_hessian_of_chosen_parameters_is_a_block_of_the_whole(model, items):
    operator = hessian_operator(model, sequence_loss, [items], parameters=("last.*", "first.bias"))
    names = ["first.bias", "last.weight", "last.bias"]
    assert list(operator.layout.shapes) == names
    np.testing.assert_allclose(matrix_of(operator), dense_hessian(model, sequence_loss, items, names), atol=1e-12)


def test_a_tied_parameter_is_found_by_its_second_name(items):
    operator = hessian_operator(seeded(Tied), sequence_loss, [items], parameters=("again.*",))
    assert list(operator.layout.shapes) == ["first.weight"]


def test_a_loss_linear_in_the_parameters_has_a_zero_hessian(items):
    model = nn.Linear(3, 1).double()
    operator = hessian_operator(model, lambda model, batch: model(batch.x).mean(), [items])
    assert not matrix_of(operator).any()


def test_single_precision_finite_differences_keep_three_digits(items):
    exact = matrix_of(hessian_operator(seeded(TwoLayer), sequence_loss, [items]))
    single = Items(items.x.float(), items.lengths)
    close = matrix_of(hessian_operator(seeded(TwoLayer).float(), sequence_loss, [single], finite_difference=True))
    assert np.abs(close - exact).max() < 1e-3 * np.abs(exact).max()


def test_ctc_cannot_be_differentiated_twice_and_the_message_names_the_remedy(model, items):
    operator = hessian_operator(model, ctc, [items])
    with pytest.raises(InputError, match=r"differentiated twice .*; use finite_difference=True$") as caught:
        operator @ np.ones(operator.shape[0])
    assert "\n" not in str(caught.value)


def test_finite_differences_of_ctc_agree_with_its_losses(items):
    model = seeded(TwoLayer).eval()
    operator = hessian_operator(model, ctc, batches_of(items, 2), finite_difference=True)
    matrix = matrix_of(operator)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-7)
    direction = np.random.default_rng(0).standard_normal(len(matrix))
    move, h = operator.layout.unflatten(direction), 1e-3

    def loss(step):
        weights = {name: p.detach() + step * move[name] for name, p in model.named_parameters()}
        return ctc(lambda x: functional_call(model, weights, (x,)), items).item()

    assert direction @ matrix @ direction == pytest.approx((loss(h) - 2 * loss(0) + loss(-h)) / h**2, rel=1e-4)


@pytest.mark.parametrize("finite_difference", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(items, finite_difference, fails):
    model = seeded(TwoLayer)
    model.dropout.eval()
    model.first.weight.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen, calls = [], []

    def loss(model, batch):
        seen.append((model.training, model.last.weight.requires_grad, model.last.bias.requires_grad))
        calls.append(1)
        return sequence_loss(model, batch) * (float("nan") if fails and len(calls) > 1 else 1.0)

    operator = hessian_operator(model, loss, batches_of(items, 2), parameters=("*weight",), finite_difference=finite_difference)
    if fails:
        with pytest.raises(InputError, match=r"loss .*is nan"):
            operator @ np.ones(operator.shape[0])
    else:
        operator @ np.ones(operator.shape[0])
    assert set(seen) == {(False, True, False)}
    assert model.training and not model.dropout.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_an_iterator_of_batches_serves_every_product(model, items):
    operator = hessian_operator(model, sequence_loss, iter(batches_of(items, 2)))
    vector = np.ones(operator.shape[0])
    assert np.array_equal(operator @ vector, operator @ vector) and (operator @ vector).any()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"parameters": ("decoder.*",)}, r"no floating parameter .*parameters=\['decoder.\*'\]"),
        ({"batches": []}, "batches gave no item"),
    ],
)
def test_what_a_hessian_cannot_be_made_of(model, items, change, message):
    with pytest.raises(InputError, match=message):
        hessian_operator(model, sequence_loss, **({"batches": [items]} | change))


@pytest.mark.parametrize(
    "loss, message",
    [
        (lambda model, batch: model(batch.x), "must return one number"),
        (lambda model, batch: batch.x.sum(), "none of the chosen parameters"),
    ],
)
def test_losses_that_are_refused(model, items, loss, message):
    operator = hessian_operator(model, loss, [items])
    with pytest.raises(InputError, match=message):
        operator @ np.ones(operator.shape[0])


def kron_block(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(7, columns, generator=generator, dtype=torch.float64)
    g = torch.randn(7, rows, generator=generator, dtype=torch.float64)
    return KroneckerBlock.of(a.T @ a, g.T @ g, 7, 3)


@pytest.fixture
def curvature():
    blocks = {
        BlockKey("w", 0, 2): kron_block(2, 3, 0),
        BlockKey("packed", 1, 3): kron_block(2, 4, 1),
        BlockKey("gain", 0, 1): DiagonalBlock(torch.tensor([9.0], dtype=torch.float64), 3),
    }
    shapes = {"w": [2, 3], "packed": [4, 4, 1], "gain": [], "other": [5]}
    return Curvature(blocks, {"parameters": shapes, "aliases": {"tied": "w"}})


def test_curvature_operator_equals_the_dense_blocks(curvature):
    expected = np.zeros((23, 23))
    w, packed = curvature.blocks[BlockKey("w", 0, 2)], curvature.blocks[BlockKey("packed", 1, 3)]
    expected[:6, :6] = torch.kron(w.G_OO, w.A_II)
    expected[10:18, 10:18] = torch.kron(packed.G_OO, packed.A_II)
    expected[22, 22] = 3.0
    operator = curvature_operator(curvature)
    np.testing.assert_allclose(matrix_of(operator), expected, atol=1e-12)
    np.testing.assert_allclose(top_eigenvalues(operator, 4)[0], np.linalg.eigvalsh(expected)[::-1][:4], rtol=1e-4)
    np.testing.assert_allclose(matrix_of(curvature_operator(curvature, ["tied"])), expected[:6, :6], atol=1e-12)


def test_curvature_operator_refuses_what_it_cannot_lay_out(curvature):
    with pytest.raises(InputError, match=r"parameters=\['other'\]"):
        curvature_operator(curvature, ["other"])
    with pytest.raises(InputError, match=r"w: its shape .*metadata"):
        curvature_operator(Curvature(curvature.blocks))


def test_layout_goes_both_ways_and_names_misfits():
    layout = Layout({"a": (2, 3), "b": ()})
    vector = np.arange(7.0)
    assert np.array_equal(layout.flatten(layout.unflatten(vector) | {"c": torch.ones(2)}), vector)
    with pytest.raises(InputError, match="b is missing"):
        layout.flatten({"a": torch.ones(2, 3)})
    with pytest.raises(InputError, match=r"a is .*\[3, 2\].*\[2, 3\]"):
        layout.flatten({"a": torch.ones(3, 2), "b": torch.ones(())})
    with pytest.raises(InputError, match=r"3 numbers .*parameters of 7"):
        layout.unflatten(np.ones(3))


def symmetric(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return (basis * np.asarray(values)) @ basis.T


@pytest.mark.parametrize("k", [1, 5, 49, 50])
def test_top_eigenvalues_of_an_indefinite_matrix(k):
    exact = np.sort(np.random.default_rng(1).standard_normal(50))[::-1]
    matrix = symmetric(exact)
    values, vectors = top_eigenvalues(aslinearoperator(matrix), k)
    np.testing.assert_allclose(values, exact[:k], atol=1e-4)
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-2)
    assert np.array_equal(values, top_eigenvalues(matrix, k)[0])


@pytest.mark.parametrize("values", [[0.0] * 50, [2.0] * 50, [3.0] + [0.0] * 49, [0.0] * 49 + [-3.0]])
@pytest.mark.parametrize("rotated", [False, True])
def test_top_eigenvalues_of_low_rank_and_equal_spectra(values, rotated):
    found, vectors = top_eigenvalues(symmetric(values) if rotated else np.diag(values), 3)
    np.testing.assert_allclose(found, sorted(values)[::-1][:3], atol=1e-9)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-9)


def test_top_eigenvalues_say_when_they_do_not_converge(monkeypatch):
    from scipy.sparse import linalg

    def stop(*_, **__):
        raise linalg.ArpackNoConvergence("no", np.ones(2), np.ones((50, 2)))

    monkeypatch.setattr(linalg, "eigsh", stop)
    with pytest.raises(InputError, match=r"2 of 3 eigenvalues .*tolerance above 0\.0001"):
        top_eigenvalues(np.eye(50), 3)


def test_top_eigenvalues_refusals():
    for k in (0, 4):
        with pytest.raises(InputError, match=rf"k={k} .*operator of size 3"):
            top_eigenvalues(np.eye(3), k)
    with pytest.raises(InputError, match="square and not empty"):
        top_eigenvalues(np.ones((2, 3)), 1)


def moment(grid, density, power):
    return torch.trapezoid(torch.from_numpy(density * grid**power), torch.from_numpy(grid)).item()


@pytest.fixture
def curvlinops():
    return pytest.importorskip("curvlinops", reason="the density runs on it (pip install asrcl[dev])")


def test_density_of_a_small_hessian_has_its_exact_mean(curvlinops, model, items):
    hessian = hessian_operator(model, sequence_loss, [items])
    exact = np.linalg.eigvalsh(matrix_of(hessian))
    grid, density = spectral_density(hessian)
    assert grid.shape == density.shape == (200,) and (density >= 0).all()
    assert grid[0] < exact[0] and grid[-1] > exact[-1]
    assert moment(grid, density, 0) == pytest.approx(1)
    assert moment(grid, density, 1) == pytest.approx(exact.mean(), rel=1e-6)


def test_density_by_lanczos_follows_the_exact_distribution(curvlinops):
    exact = np.concatenate([np.random.default_rng(0).uniform(0, 1, 297), [4.0, 6.0, 10.0]])
    grid, density = spectral_density(symmetric(exact), repeats=8)
    error_of_mean = np.sqrt(2 * exact.var() / len(exact) / 8)
    assert moment(grid, density, 0) == pytest.approx(1)
    assert abs(moment(grid, density, 1) - exact.mean()) < 3 * error_of_mean
    reached = np.cumsum(density) * (grid[1] - grid[0])
    for edge in (0.25, 0.5, 0.75, 2.0, 5.0, 8.0):
        blur = 0.12
        low, high = (exact < edge - blur).mean(), (exact < edge + blur).mean()
        assert low - 0.03 < np.interp(edge, grid, reached) < high + 0.03


def test_density_repeats_to_the_bit_and_leaves_the_global_generator(curvlinops):
    matrix = symmetric(np.linspace(0, 1, 100))
    before = torch.get_rng_state()
    first, again, other = (spectral_density(matrix, steps=20, seed=seed)[1] for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("values", [[0.0] * 100, [2.0] * 100, [1.0] * 3 + [0.0] * 97, [-1.0] * 50 + [3.0] * 50])
@pytest.mark.parametrize("rotated", [False, True])
def test_density_survives_spectra_of_few_values(curvlinops, values, rotated):
    """The Krylov space ends after as many steps as there are values, to rounding or exactly."""
    matrix = symmetric(values) if rotated else np.diag(values)
    grid, density = spectral_density(matrix, steps=30, repeats=16)
    assert np.isfinite(density).all() and moment(grid, density, 0) == pytest.approx(1)
    assert moment(grid, density, 1) == pytest.approx(np.mean(values), abs=3 * np.sqrt(2 * np.var(values) / 1600) + 1e-3)
    peaks = np.unique(values)
    near = np.abs(grid[:, None] - peaks).min(1) < 0.15 * max(np.ptp(values), 1e-2)
    assert density[~near].max(initial=0.0) < 1e-6 * density.max()


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_density_scales_with_the_operator(curvlinops, scale):
    matrix = symmetric(np.linspace(-1, 2, 80))
    grid, density = spectral_density(matrix, steps=20)
    scaled_grid, scaled_density = spectral_density(matrix * scale, steps=20)
    np.testing.assert_allclose(scaled_grid, grid * scale, rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(scaled_density, density / scale, rtol=1e-5, atol=1e-5 / scale)


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"steps": 1}, "repeats=4, steps=1, kappa=3.0: at least 1, at least 2 and above 1"),
        ({"repeats": 0}, "repeats=0"),
        ({"kappa": 1.0}, "kappa=1.0"),
        ({"steps": 4}, "steps=4 with kappa=3 blurs the whole spectrum; raise steps or kappa"),
        ({"points": 50}, r"points=50 .*steps=64.*95"),
    ],
)
def test_knobs_that_cannot_resolve_a_density(knobs, message):
    with pytest.raises(InputError, match=message):
        spectral_density(np.eye(100), **knobs)


@pytest.mark.parametrize("steps", [20, 128])
def test_a_product_that_is_not_finite_is_refused(curvlinops, steps):
    broken = LinearOperator((100, 100), matvec=lambda v: np.full(100, np.nan), dtype=np.float64)
    for tool in (lambda: spectral_density(broken, steps=steps), lambda: top_eigenvalues(broken, steps % 100)):
        with pytest.raises(InputError, match=r"product .*not finite"):
            tool()


def test_a_missing_curvlinops_is_named_with_the_command(monkeypatch):
    for name in ("curvlinops", "curvlinops.papyan2020traces"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install 'curvlinops-for-pytorch"):
        spectral_density(np.eye(3))


def test_importing_the_module_loads_neither_scipy_nor_curvlinops():
    program = "import sys, asrcl.curvature.spectrum; print({'scipy', 'curvlinops'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_ranks_of_known_spectra():
    assert effective_rank([2.0] * 7) == pytest.approx(7)
    assert stable_rank(np.full(7, -2.0)) == pytest.approx(7)
    assert effective_rank([0.0, 3.0, 0.0]) == stable_rank([0.0, 3.0, 0.0]) == 1.0
    assert effective_rank(torch.zeros(4)) == stable_rank(torch.zeros(4)) == 0.0
    shares = np.array([0.5, 0.25, 0.25])
    assert effective_rank(1e-300 * shares) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert stable_rank(1e200 * shares) == pytest.approx(0.375 / 0.25)
    matrix = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norms = matrix.norm() ** 2 / torch.linalg.matrix_norm(matrix, 2) ** 2
    assert stable_rank(torch.linalg.svdvals(matrix)) == pytest.approx(norms.item())
    assert stable_rank([1.0, 2.0, 3.0]) <= effective_rank([1.0, 2.0, 3.0]) <= 3


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
@pytest.mark.parametrize("rank", [effective_rank, stable_rank])
def test_ranks_refuse_empty_and_non_finite_spectra(rank, values):
    with pytest.raises(InputError, match=r"one value, .*finite"):
        rank(values)


def test_the_examples_of_the_page_run(curvlinops, capsys):
    page = Path(__file__).resolve().parents[2] / "docs" / "spectrum.md"
    for example in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(example, {})
        assert capsys.readouterr().out.startswith("[")
