"""Sums of rowsᵀ rows by every path, and what the sums of an estimate make of them."""

import pytest
import torch
from curvature_cases import TwoLayer, make_items, masks, seeded, sequence_loss
from fisher_cases import cross_entropy, labelled, mlp
from torch import nn

from asrcl.curvature import estimate
from asrcl.curvature.estimation import gram
from asrcl.curvature.estimation.gram import add_gram, blas_threads, mirror, mirror_, product_precision
from asrcl.curvature.estimation.running import FactorSum, SumOptions, new_sum
from asrcl.curvature.factors import DiagonalFactor
from asrcl.exceptions import InputError

# Around the size below which a plain product is taken, and around the edges of the blocks of columns.
SIZES = [1, 2, 95, 96, 97, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025]


@pytest.fixture(params=["blas", "columns"])
def path(request, monkeypatch):
    """Both ways to compute one triangle."""
    if request.param == "columns":
        monkeypatch.setattr(gram, "_symmetric_updates", lambda: None)
    elif gram._symmetric_updates() is None:
        pytest.skip("scipy or threadpoolctl is missing here")
    return request.param


def rows_of(positions, size, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(positions, size, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", SIZES)
def test_the_upper_triangle_is_the_product(path, size):
    rows = rows_of(7, size)
    total = torch.full((size, size), 3.0, dtype=torch.float64)
    add_gram(total, rows, 0.25)
    torch.testing.assert_close(mirror(total), 3 + 0.25 * rows.T @ rows)


@pytest.mark.parametrize("size", [5, 96, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sums", [torch.float64, torch.float32])
def test_rows_of_every_type_are_multiplied_in_the_type_of_the_sum(path, sums, dtype, size):
    rows = rows_of(11, size, dtype)
    total = torch.zeros(size, size, dtype=sums)
    add_gram(total, rows)
    truth = rows.double().T @ rows.double()
    error = (mirror(total).double() - truth).abs().max()
    assert error < 50 * torch.finfo(sums).eps * truth.abs().max()
    assert rows.dtype == dtype and mirror(total).dtype == sums


LAYOUTS = {
    "transposed": lambda rows: rows.T.contiguous().T,
    "every other row": lambda rows: rows.repeat_interleave(2, 0)[::2],
    "part of the columns": lambda rows: torch.cat([rows, rows], 1)[:, : rows.shape[1]],
    "expanded": lambda rows: rows[:1].expand(len(rows), -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_anyhow_in_memory(path, layout):
    rows = LAYOUTS[layout](rows_of(9, 100))
    assert not rows.is_contiguous()
    total = torch.zeros(100, 100, dtype=torch.float64)
    add_gram(total, rows)
    torch.testing.assert_close(mirror(total), rows.T @ rows)


def test_a_total_that_is_not_contiguous_is_not_lost(path):
    rows = rows_of(9, 100)
    for total in (torch.zeros(100, 100, dtype=torch.float64).T[::1], torch.zeros(100, 200, dtype=torch.float64)[:, ::2]):
        add_gram(total, rows)
        torch.testing.assert_close(mirror(total), rows.T @ rows)


@pytest.mark.parametrize("size", [3, 96, 200])
def test_no_rows_add_nothing(path, size):
    total = mirror(rows_of(size, size))
    before = total.clone()
    add_gram(total, torch.zeros(0, size, dtype=torch.float64))
    add_gram(total, rows_of(4, size), 0.0)
    torch.testing.assert_close(mirror(total), before, atol=0, rtol=0)


@pytest.mark.parametrize("size", [7, 150])
def test_many_additions_make_one_sum(path, size):
    parts = [rows_of(3, size, seed=i) for i in range(40)]
    total = torch.zeros(size, size, dtype=torch.float64)
    for number, rows in enumerate(parts):
        add_gram(total, rows, 1 + number)
    weighted = torch.cat([rows * (1 + number) ** 0.5 for number, rows in enumerate(parts)])
    torch.testing.assert_close(mirror(total), weighted.T @ weighted)


def test_the_paths_agree_to_rounding(monkeypatch):
    rows, found = rows_of(300, 200, torch.float32), []
    for updates in (gram._symmetric_updates(), None):
        monkeypatch.setattr(gram, "_symmetric_updates", lambda updates=updates: updates)
        total = torch.zeros(200, 200)
        add_gram(total, rows)
        found.append(mirror(total))
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("size, block", [(1, 4), (4, 4), (5, 4), (8, 4), (11, 4), (300, 256)])
def test_mirroring_in_place(size, block):
    garbage = rows_of(size, size)
    wanted = mirror(garbage)
    assert mirror_(garbage, block) is garbage and torch.equal(garbage, wanted)


def test_mirror_needs_the_upper_triangle_alone():
    upper = rows_of(6, 6)
    garbage = upper.triu() + torch.full((6, 6), float("nan"), dtype=torch.float64).tril(-1).nan_to_num(nan=9.0)
    assert torch.equal(mirror(garbage), upper.triu() + upper.triu(1).T)


@pytest.mark.parametrize("size", [40, 150])
def test_rounded_products_err_by_the_rounding_of_the_rows(path, size):
    """Each entry by twice the rounding of bfloat16 (2⁻⁹) of its inputs and once of the result, relative to √(M_ii M_jj)."""
    rows = rows_of(500, size, torch.float32)
    total = torch.zeros(size, size)
    add_gram(total, rows, 2.0, "bfloat16")
    truth = 2 * rows.double().T @ rows.double()
    scale = torch.outer(truth.diagonal(), truth.diagonal()).sqrt()
    error = ((mirror(total) - truth).abs() / scale).max()
    assert 1e-6 < error < 4 * 2**-9


def test_products_of_an_estimate():
    model, items = seeded(TwoLayer).float(), make_items((5, 3), dtype=torch.float32)
    exact, rounded, same = (
        estimate(model, sequence_loss, [items], padding=masks, products=p) for p in ("float32", "bfloat16", "tf32")
    )
    for key, block in exact.blocks.items():
        if block.kind == "kronecker":
            for name in ("A_II", "G_OO"):
                gap = (getattr(rounded.blocks[key], name) - getattr(block, name)).norm() / getattr(block, name).norm()
                assert 1e-6 < gap < 0.02
                assert torch.equal(getattr(same.blocks[key], name), getattr(block, name)), "a CPU has no TensorFloat-32"
    assert rounded.metadata["options"]["products"] == "bfloat16"
    with pytest.raises(InputError, match="there are float32, tf32, bfloat16"):
        estimate(model, sequence_loss, [items], products="float16")


def threads():
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("fail", [False, True])
def test_threads_of_blas_follow_torch_and_are_restored(fail):
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    import scipy.linalg.blas  # noqa: F401 (loads the library)

    with limits(2, "blas"):
        before = threads()
        assert before and max(before) == 2 and torch.get_num_threads() == 1
        try:
            with blas_threads():
                assert set(threads()) == {1}
                if fail:
                    raise RuntimeError("in the middle")
        except RuntimeError:
            assert fail
        assert threads() == before


def test_without_threadpoolctl_the_triangle_goes_by_columns(monkeypatch):
    gram._symmetric_updates.cache_clear()
    monkeypatch.setattr(gram, "_threadpool_limits", lambda: None)
    try:
        assert gram._symmetric_updates() is None
        with blas_threads():
            total = torch.zeros(100, 100, dtype=torch.float64)
            add_gram(total, rows_of(5, 100))
        torch.testing.assert_close(mirror(total), rows_of(5, 100).T @ rows_of(5, 100))
    finally:
        gram._symmetric_updates.cache_clear()


@pytest.mark.parametrize("products, allowed", [("tf32", True), ("float32", False), ("bfloat16", False)])
def test_the_precision_of_gpu_products_is_set_and_restored(products, allowed):
    before = torch.backends.cuda.matmul.allow_tf32
    for setting in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = setting
        with pytest.raises(RuntimeError), product_precision(products):
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            raise RuntimeError("in the middle")
        assert torch.backends.cuda.matmul.allow_tf32 is setting
    torch.backends.cuda.matmul.allow_tf32 = before


def test_sums_apart_from_the_rows_are_added_by_copy():
    """Off-loaded sums lie on another device; a sum of another type goes the same way and can be tested anywhere."""
    rows = rows_of(50, 120, torch.bfloat16)
    total = torch.zeros(120, 120, dtype=torch.float32)
    add_gram(total, rows, 0.5, "bfloat16")
    torch.testing.assert_close(total, total.T, atol=0, rtol=0)
    torch.testing.assert_close(total, 0.5 * rows.float().T @ rows.float(), atol=0.3, rtol=2**-7)


def test_offloading_on_a_cpu_changes_nothing():
    model, data = seeded(mlp), labelled()
    for structure in ("kron", "ekfac", "diagonal", "dense"):
        first, second = (estimate(model, cross_entropy, [data], structure=structure, offload=o) for o in (False, True))
        for key, block in first.blocks.items():
            assert all(torch.equal(t, second.blocks[key].tensors()[role]) for role, t in block.tensors().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "dense"])
def test_offloaded_sums_of_a_gpu_are_the_same(structure):
    model, data = seeded(mlp).cuda(), tuple(part.cuda() for part in labelled())
    here, there = (estimate(model, cross_entropy, [data], structure=structure, offload=o) for o in (False, True))
    plain = estimate(model.cpu(), cross_entropy, [labelled()], structure=structure)
    for key, block in plain.blocks.items():
        for found in (here.blocks[key].diagonal, there.blocks[key].diagonal):
            torch.testing.assert_close(found.cpu(), block.diagonal, atol=1e-10, rtol=1e-7)


def test_a_large_factor_keeps_its_diagonal_alone():
    model, data = seeded(lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4))), labelled()
    full, cut = (estimate(model, cross_entropy, [data, data], largest_factor=size) for size in (8192, 4))
    delta = {name: rows_of(*p.shape, seed=3) for name, p in model.named_parameters() if p.dim() == 2}
    expected = 0.0
    for name, rows in delta.items():
        (dense,), (block,) = full.blocks_of(name).values(), cut.blocks_of(name).values()
        sides = (dense.row_factor, dense.column_factor)
        kept = [torch.diag(side.diagonal()) if side.size > 4 else side.dense() for side in sides]
        for mine, truth in zip((block.row_factor, block.column_factor), kept, strict=True):
            assert isinstance(mine, DiagonalFactor) == (mine.size > 4)
            torch.testing.assert_close(mine.dense(), truth)
        expected += 0.5 * float(torch.trace(rows.T @ kept[0] @ rows @ kept[1]))
    assert float(cut.quadratic(delta)) == pytest.approx(expected)
    corrected = estimate(model, cross_entropy, [data], structure="ekfac", largest_factor=4)
    (first,), (last,) = corrected.blocks_of("0.weight").values(), corrected.blocks_of("2.weight").values()
    assert first.row_vectors is None and first.column_vectors is not None
    assert last.row_vectors is not None and last.column_vectors is None
    exact = estimate(model, cross_entropy, [data], structure="diagonal").diagonals()
    assert corrected.blocks_of("0.weight").popitem()[1].trace() == pytest.approx(float(exact["0.weight"].sum()))


@pytest.mark.parametrize("size, largest", [(5, 8), (5, 4), (120, 200)])
def test_a_factor_sum_goes_on_from_what_it_gave(size, largest):
    options = SumOptions(largest_factor=largest)
    rows = [rows_of(6, size, seed=seed) for seed in range(3)]
    side = FactorSum(size, rows[0], options)
    side.add(rows[0], 2.0)
    for part in rows[1:]:
        side = FactorSum.of(side.finished().clone(), options)
        side.add(part, 2.0)
    truth = 2 * sum(part.T @ part for part in rows)
    assert side.diagonal == (size > largest)
    torch.testing.assert_close(side.finished(), truth.diagonal() if side.diagonal else truth)
    alone, product = side.gram(rows[0]), rows[0].T @ rows[0]
    torch.testing.assert_close(alone if side.diagonal else mirror(alone), product.diagonal() if side.diagonal else product)


def test_sums_are_at_least_single_precision():
    assert new_sum((2,), torch.zeros(1, dtype=torch.bfloat16), False).dtype == torch.float32
    assert new_sum((2,), torch.zeros(1, dtype=torch.float64), True).dtype == torch.float64
    many = FactorSum(1, torch.zeros(1, dtype=torch.bfloat16), SumOptions())
    for _ in range(3000):
        many.add(torch.ones(1, 1, dtype=torch.bfloat16))
    assert float(many.finished()) == 3000, "in half precision the sum would stop at 256"
