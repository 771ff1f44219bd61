"""Merging by curvature on both sides, against the dense normal equations."""

import dataclasses

import pytest
import torch

from asrcl.curvature import DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.merge.registry import find_method
from asrcl.merge.steps.fisher import cofima, fisher, mats, regmean

torch.set_num_threads(1)
DOUBLE = torch.float64
BOTH = (fisher, mats, regmean)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def updates(shape, count=1, seed=0):
    g = generator(100 + seed)
    return [torch.randn(shape, generator=g, dtype=DOUBLE) for _ in range(count)]


def spread(size, seed, decay=3.0):
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator(seed), dtype=DOUBLE))
    return (basis * torch.logspace(0, -decay, size, dtype=DOUBLE)) @ basis.T


def kron(rows, columns, seed, decay=3.0):
    """A block of the sizes of real ones: inputs near 1, gradients of 1e-6."""
    return KroneckerBlock.of(spread(columns, seed, decay) * 20, spread(rows, seed + 1, decay) * 5e-6, 20, 5)


def krons(count, rows=4, columns=3, seed=0, decay=3.0):
    return [kron(rows, columns, seed + 10 * n, decay) for n in range(count)]


def damped(M, damping):
    return M + damping * M.trace() / len(M) * torch.eye(len(M), dtype=M.dtype)


def dense(block, damping=0.0):
    """The matrix that acts on a parameter read row by row."""
    return torch.kron(damped(block.row_factor.dense(), damping), damped(block.column_factor.dense(), damping))


def normal_equations(deltas, old, new, s):
    """`(Σ (1−s) F_k + Σ s F_i) x = Σ s F_i Δ_i`."""
    whole = (1 - s) * sum(old) + s * sum(new)
    pull = s * sum(F @ delta.flatten() for F, delta in zip(new, deltas, strict=True))
    return torch.linalg.solve(whole, pull).reshape(deltas[0].shape)


@pytest.mark.parametrize("old, new", [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("s", [0.5, 0.2])
@pytest.mark.parametrize("damping", [1e-3, 0.5])
def test_mats_solves_the_normal_equations(old, new, s, damping):
    deltas, blocks, fresh = updates((4, 3), new), krons(old), krons(new, seed=500)
    step = mats(deltas, blocks=blocks, new_blocks=fresh, strength=s, damping=damping)
    expected = normal_equations(deltas, [dense(b, damping) for b in blocks], [dense(b, damping) for b in fresh], s)
    torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_mats_of_two_models_is_the_two_sided_posterior_merge(damping):
    (delta,), (old,), (new,) = updates((4, 3)), krons(1, decay=1.0), krons(1, seed=500, decay=1.0)
    F_o, F_n = dense(old, damping), dense(new, damping)
    wanted = torch.linalg.inv(F_o + F_n) @ F_n @ delta.flatten()
    torch.testing.assert_close(mats([delta], blocks=[old], new_blocks=[new], damping=damping).flatten(), wanted)


def test_mats_is_the_minimum_of_both_quadratic_losses():
    (delta,), (old,), (new,) = updates((4, 3)), krons(1), krons(1, seed=500)
    step = mats([delta], blocks=[old], new_blocks=[new], damping=0.0).requires_grad_()
    (old.quadratic(step) + new.quadratic(step - delta)).backward()
    assert step.grad.norm() < 1e-10 * new.multiply(delta).norm()


@pytest.mark.parametrize("decay", [6.0, 8.0])
@pytest.mark.parametrize("old", [1, 2])
def test_mats_is_exact_for_badly_conditioned_factors(old, decay):
    (delta,), blocks, fresh = updates((6, 8)), krons(old, 6, 8, decay=decay), krons(1, 6, 8, seed=500, decay=decay)
    step = mats([delta], blocks=blocks, new_blocks=fresh, damping=1e-3)
    expected = normal_equations([delta], [dense(b, 1e-3) for b in blocks], [dense(fresh[0], 1e-3)], 0.5)
    torch.testing.assert_close(step, expected, rtol=1e-7, atol=1e-7)


def diagonal_rows(count, seed=0):
    """As for embeddings: one side of the product is a diagonal."""
    values = [torch.rand(5, generator=generator(seed + n), dtype=DOUBLE) + 0.1 for n in range(count)]
    return [KroneckerBlock.of(v, spread(3, seed + n), 1, 1, transposed=True) for n, v in enumerate(values)]


@pytest.mark.parametrize("old", [1, 2])
@pytest.mark.parametrize("side", ["rows", "columns", "both", "mixed"])
def test_mats_with_diagonal_factors(old, side):
    blocks, fresh = diagonal_rows(old), diagonal_rows(1, seed=50)
    shape = (5, 3)
    if side == "columns":
        blocks, fresh = ([dataclasses.replace(b, transposed=False) for b in part] for part in (blocks, fresh))
        shape = (3, 5)
    elif side == "both":
        values = torch.rand(3, generator=generator(9), dtype=DOUBLE) + 0.1
        blocks = [KroneckerBlock.of(b.input.diagonal(), values * (n + 1), 1, 1, transposed=True) for n, b in enumerate(blocks)]
        fresh = [KroneckerBlock.of(fresh[0].input.diagonal(), values.flip(0), 1, 1, transposed=True)]
    elif side == "mixed":
        fresh = [KroneckerBlock.of(spread(5, 77), spread(3, 78), 1, 1, transposed=True)]
    (delta,) = updates(shape)
    step = mats([delta], blocks=blocks, new_blocks=fresh, strength=0.3)
    expected = normal_equations([delta], [dense(b, 1e-3) for b in blocks], [dense(fresh[0], 1e-3)], 0.3)
    torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-8)


def test_long_diagonals_are_solved_a_part_at_a_time(monkeypatch):
    (delta,), blocks, fresh = updates((5, 3)), diagonal_rows(2), diagonal_rows(1, seed=50)
    at_once = mats([delta], blocks=blocks, new_blocks=fresh)
    monkeypatch.setattr("asrcl.curvature.kron.ROOM", 2 * 3 * 3)
    assert torch.equal(mats([delta], blocks=blocks, new_blocks=fresh), at_once)


def test_a_solve_that_does_not_converge_is_refused(monkeypatch):
    (delta,), blocks, fresh = updates((4, 3)), krons(2), krons(1, seed=500)
    monkeypatch.setattr("asrcl.merge.steps.fisher.solve_sum", lambda pairs, pull, damping: (pull / 2, 0.0))
    with pytest.raises(InputError, match=r"sum of 3 curvatures .*more damping"):
        mats([delta], blocks=blocks, new_blocks=fresh)


def test_an_update_that_its_own_loss_does_not_feel_is_dropped():
    (old,), delta = krons(1), torch.zeros(4, 3, dtype=DOUBLE)
    delta[1, 2] = 1.0
    blind = KroneckerBlock.of(torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=DOUBLE)), torch.eye(4, dtype=DOUBLE), 1, 1)
    assert not mats([delta], blocks=[old], new_blocks=[blind], damping=0.0).any()


def test_mats_on_dense_and_diagonal_blocks():
    deltas = updates((2, 3), 2)
    matrices = [torch.stack([spread(3, 10 * n), spread(3, 10 * n + 1)]) for n in range(3)]
    old, *new = [DenseBlock(matrix * 4, 4, rows=2) for matrix in matrices]
    step = mats(deltas, blocks=[old], new_blocks=new, damping=0.0, strength=0.4)
    for row in range(2):
        expected = normal_equations([d[row] for d in deltas], [matrices[0][row]], [m[row] for m in matrices[1:]], 0.4)
        torch.testing.assert_close(step[row], expected)
    diagonals = [DiagonalBlock(torch.rand(2, 3, generator=generator(n), dtype=DOUBLE), 7) for n in range(3)]
    assert torch.equal(
        mats(deltas, blocks=diagonals[:1], new_blocks=diagonals[1:], damping=1e-6),
        fisher(deltas, blocks=diagonals[:1], new_blocks=diagonals[1:]),
    )


def test_a_mean_over_groups_damps_dense_blocks():
    (delta,) = updates((2, 3))
    matrices = [torch.stack([spread(3, n), 5 * spread(3, n + 1)]) for n in (0, 20)]
    step = mats([delta], blocks=[DenseBlock(matrices[0], 1, 2)], new_blocks=[DenseBlock(matrices[1], 1, 2)], damping=0.7)
    whole = [m + 0.7 * m.diagonal(dim1=1, dim2=2).mean() * torch.eye(3, dtype=DOUBLE) for m in matrices]
    for row in range(2):
        torch.testing.assert_close(step[row], normal_equations([delta[row]], [whole[0][row]], [whole[1][row]], 0.5))


@pytest.mark.parametrize("method", [mats, regmean])
def test_much_damping_leads_to_an_average(method):
    (delta,), (old,), (new,) = updates((4, 3)), krons(1), krons(1, seed=500)
    new = new.scale(3.0)
    step = method([delta], blocks=[old], new_blocks=[new], damping=1e9)
    share = new.trace() / (old.trace() + new.trace()) if method is mats else 0.5
    torch.testing.assert_close(step, share * delta)


@pytest.mark.parametrize("old, new", [(1, 1), (2, 3)])
def test_fisher_weighs_entries_by_the_diagonals(old, new):
    deltas, blocks, fresh = updates((4, 3), new), krons(old), krons(new, seed=500)
    f = [torch.outer(b.G_OO.diagonal(), b.A_II.diagonal()) for b in (*blocks, *fresh)]
    weighted = sum(0.3 * f[old + n] * delta for n, delta in enumerate(deltas))
    expected = weighted / (0.7 * sum(f[:old]) + 0.3 * sum(f[old:]))
    step = fisher(deltas, blocks=blocks, new_blocks=fresh, strength=0.3, damping=0.0)
    torch.testing.assert_close(step, expected)


def test_fisher_takes_every_kind_of_block():
    (delta,) = updates((2, 3))
    eigen = [EigenBlock(spread(2, n), spread(3, n), torch.rand(2, 3, generator=generator(n), dtype=DOUBLE), 2) for n in range(2)]
    dense_blocks = [DenseBlock(torch.stack([spread(3, n), spread(3, n + 1)]), 1, rows=2) for n in range(2)]
    diagonals = [DiagonalBlock(torch.rand(2, 3, generator=generator(n), dtype=DOUBLE), 2) for n in range(2)]
    for old, new in (eigen, dense_blocks, diagonals, krons(2, 2, 3)):
        step = fisher([delta], blocks=[old], new_blocks=[new], damping=0.0)
        torch.testing.assert_close(step, delta * new.diagonal / (old.diagonal + new.diagonal))


def test_where_no_loss_is_sensitive_the_average_is_plain():
    deltas = updates((2, 2), 2)
    f = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=DOUBLE)
    blocks, nothing = [DiagonalBlock(f, 1)], [DiagonalBlock(torch.zeros_like(f), 1)]
    for damping in (0.0, 1e-9):
        step = fisher(deltas, blocks=blocks, new_blocks=blocks * 2, damping=damping, strength=0.4)
        torch.testing.assert_close(step, 0.4 * (deltas[0] + deltas[1]) / 1.4)
    torch.testing.assert_close(fisher(deltas, blocks=nothing, new_blocks=nothing * 2), 0.5 * (deltas[0] + deltas[1]) / 1.5)


def test_cofima_counts_the_last_old_domain_alone():
    (delta,), blocks, fresh = updates((4, 3)), krons(3), krons(1, seed=500)
    before, now = blocks[-1].diagonal, fresh[0].diagonal
    step = cofima(delta, blocks=blocks, new_blocks=fresh, damping=0.0)
    torch.testing.assert_close(step, 0.4 * now * delta / (0.6 * before + 0.4 * now))


def inputs(seed, count=50):
    scale = torch.tensor([3.0, 1.0, 0.3], dtype=DOUBLE)
    return torch.randn(count, 3, generator=generator(seed), dtype=DOUBLE) * scale + 0.5


def block_of(X, transposed=False):
    return KroneckerBlock.of(X.T @ X, torch.eye(4, dtype=DOUBLE), len(X), 1, transposed)


@pytest.mark.parametrize("transposed", [False, True])
def test_regmean_is_the_least_squares_fit_to_all_models_outputs(transposed):
    old_W, *news = updates((4, 3), 3)
    X = [inputs(n) for n in range(3)]
    seen, wanted = torch.cat(X), torch.cat([x @ W.T for x, W in zip(X, (old_W, *news), strict=True)])
    best = torch.linalg.lstsq(seen, wanted).solution.T
    deltas = [W - old_W for W in news]
    deltas = [d.T.contiguous() for d in deltas] if transposed else deltas
    old, *new = [block_of(x, transposed) for x in X]
    step = regmean(deltas, blocks=[old], new_blocks=new, offdiagonal=1.0, damping=0.0)
    torch.testing.assert_close(old_W + (step.T if transposed else step), best)


def test_regmean_shrinks_what_is_off_the_diagonal():
    (delta,) = updates((4, 3))
    A = [x.T @ x / len(x) for x in (inputs(1), inputs(2))]
    shrunk = [0.6 * a + 0.4 * torch.diag(a.diagonal()) for a in A]
    old, new = block_of(inputs(1)), block_of(inputs(2))
    step = regmean([delta], blocks=[old], new_blocks=[new], offdiagonal=0.6, damping=0.0, strength=0.3)
    expected = torch.linalg.solve(0.7 * shrunk[0] + 0.3 * shrunk[1], 0.3 * shrunk[1] @ delta.T).T
    torch.testing.assert_close(step, expected)


def test_regmean_counts_domains_alike_whatever_their_size():
    (delta,) = updates((4, 3))
    small = regmean([delta], blocks=[block_of(inputs(1))], new_blocks=[block_of(inputs(2))])
    twice = regmean([delta], blocks=[block_of(inputs(1).repeat(9, 1))], new_blocks=[block_of(inputs(2))])
    torch.testing.assert_close(small, twice)


def test_regmean_of_embeddings_weighs_tokens_by_their_counts():
    counts = torch.tensor([[3.0, 1.0, 0.0, 0.0], [1.0, 1.0, 2.0, 0.0]], dtype=DOUBLE)
    old, new = (KroneckerBlock.of(c, torch.eye(2, dtype=DOUBLE), 4, 1, transposed=True) for c in counts)
    (delta,) = updates((4, 2))
    step = regmean([delta], blocks=[old], new_blocks=[new], damping=1e-12)
    expected = torch.tensor([0.25, 0.5, 1.0, 0.5], dtype=DOUBLE)[:, None] * delta
    torch.testing.assert_close(step, expected)
    with pytest.raises(InputError, match="damping above 0"):
        regmean([delta], blocks=[old], new_blocks=[new], damping=0.0)


def test_regmean_averages_what_is_no_linear_map():
    deltas = updates((4,), 2)
    blocks = [DiagonalBlock(torch.rand(4, generator=generator(n), dtype=DOUBLE), 1) for n in range(3)]
    step = regmean(deltas, blocks=blocks[:1], new_blocks=blocks[1:], strength=0.4)
    torch.testing.assert_close(step, 0.4 * (deltas[0] + deltas[1]) / (0.6 + 0.8))


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("old, new", [(1, 1), (2, 3)])
def test_identity_curvature_is_a_plain_average(method, old, new):
    deltas = updates((4, 3), new)
    one = KroneckerBlock.of(torch.eye(3), torch.eye(4), 1, 1)
    step = method(deltas, blocks=[one] * old, new_blocks=[one] * new, strength=0.3)
    torch.testing.assert_close(step, 0.3 * sum(deltas) / (0.7 * old + 0.3 * new))


@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("scale", [1e-9, 7.0, 1e8])
@pytest.mark.parametrize("count", [1, 2])
def test_the_unit_of_the_curvature_does_not_matter(method, scale, count):
    deltas, blocks, fresh = updates((4, 3), count), krons(count), krons(count, seed=500)
    first = method(deltas, blocks=blocks, new_blocks=fresh)
    second = method(deltas, blocks=[b.scale(scale) for b in blocks], new_blocks=[b.scale(scale) for b in fresh])
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def all_methods(deltas, blocks, fresh, **knobs):
    for method in BOTH:
        yield method(deltas, blocks=blocks, new_blocks=fresh, **knobs)
    yield cofima(deltas[0], blocks=blocks, new_blocks=fresh[:1], **knobs)


def block_sets():
    yield (2, 3), [kron(2, 3, n) for n in range(3)]
    yield (2, 3), [DenseBlock(torch.stack([spread(3, n), spread(3, n + 1)]), 1, rows=2) for n in range(3)]
    yield (3,), [DiagonalBlock(torch.rand(3, generator=generator(n), dtype=DOUBLE), 1) for n in range(3)]
    yield (2, 3, 1), [kron(2, 3, n) for n in range(3)]


def test_nothing_new_and_no_strength_are_no_step():
    for shape, blocks in block_sets():
        zeros, deltas = [torch.zeros(shape)] * 2, updates(shape, 2)
        assert not any(step.any() for step in all_methods(zeros, blocks[:1], blocks[1:]))
        assert not any(step.any() for step in all_methods(deltas, blocks[:1], blocks[1:], strength=0))


@pytest.mark.parametrize("kind", [torch.float32, DOUBLE])
def test_shapes_types_and_inputs_are_kept(kind):
    for shape, blocks in block_sets():
        deltas = [delta.to(kind) for delta in updates(shape, 2)]
        stored = [t for block in blocks for t in block.tensors().values()]
        before = [t.clone() for t in (*deltas, *stored)]
        for step in all_methods(deltas, blocks[:1], blocks[1:]):
            assert step.shape == shape and step.dtype == kind
        assert all(torch.equal(t, old) for t, old in zip((*deltas, *stored), before, strict=True))


def test_full_strength_is_the_new_model():
    for shape, blocks in block_sets():
        deltas = updates(shape)
        for step in all_methods(deltas, blocks[:1], blocks[1:2], strength=1.0):
            torch.testing.assert_close(step, deltas[0])


@pytest.mark.parametrize("method", [mats, regmean])
def test_layers_that_a_domain_does_not_use(method):
    (delta,), (block,) = updates((4, 3)), krons(1)
    dead = KroneckerBlock.of(torch.zeros(3, 3), torch.zeros(4, 4), 1, 1)
    assert not method([delta], blocks=[block], new_blocks=[dead], damping=0.0).any()
    torch.testing.assert_close(method([delta], blocks=[dead], new_blocks=[block], damping=1e-9), delta)
    torch.testing.assert_close(method([delta], blocks=[dead], new_blocks=[dead]), delta / 2)


def test_what_does_not_go_together_is_refused():
    (delta,), (block,) = updates((4, 3)), krons(1)
    eigen = EigenBlock(None, None, torch.ones(4, 3), 1)
    with pytest.raises(InputError, match=r"kind eigen .*structure='kron'"):
        mats([delta], blocks=[eigen], new_blocks=[eigen])
    with pytest.raises(InputError, match="kind eigen and kronecker"):
        mats([delta], blocks=[eigen], new_blocks=[block])
    with pytest.raises(InputError, match=r"regmean .*input factors"):
        regmean([delta], blocks=[eigen], new_blocks=[eigen])
    flipped = KroneckerBlock.of(torch.eye(4), torch.eye(3), 1, 1, transposed=True)
    for method in (mats, regmean):
        with pytest.raises(InputError, match=r"transposed .*some"):
            method([delta], blocks=[block], new_blocks=[flipped])
    singular = KroneckerBlock.of(torch.diag(torch.tensor([1.0, 0.0, 0.0])), torch.eye(4), 1, 1)
    with pytest.raises(InputError, match="damping above 0"):
        mats([delta], blocks=[singular], new_blocks=[singular], damping=0.0)
    groups = DenseBlock(torch.zeros(4, 3, 3).index_fill(2, torch.tensor([0]), 1.0), 1, rows=4)
    with pytest.raises(InputError, match=r"singular.*damping above 0"):
        mats([delta], blocks=[groups], new_blocks=[groups], damping=0.0)


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"strength": 1.1}, "strength must lie between 0 and 1"),
        ({"strength": -0.1}, "strength must lie between 0 and 1"),
        ({"strength": "half"}, r"strength .*finite"),
        ({"damping": -1.0}, "damping must be at least 0"),
        ({"damping": float("nan")}, r"damping .*finite"),
    ],
)
def test_bad_options_are_refused(knobs, message):
    deltas, blocks = updates((4, 3)), krons(1)
    for method in BOTH:
        with pytest.raises(InputError, match=message):
            method(deltas, blocks=blocks, new_blocks=blocks, **knobs)


def test_options_and_counts_of_single_methods():
    deltas, blocks = updates((4, 3)), krons(1)
    with pytest.raises(InputError, match=r"offdiagonal .*0 and 1"):
        regmean(deltas, blocks=blocks, new_blocks=blocks, offdiagonal=2.0)
    with pytest.raises(InputError, match=r"1 new models .*not 2"):
        fisher(deltas, blocks=blocks, new_blocks=blocks * 2)
    assert [find_method(n).several for n in ("fisher", "mats", "regmean", "cofima")] == [True, True, True, False]
    assert all(find_method(n).curved for n in ("fisher", "mats", "regmean", "cofima"))
