"""EK-FAC: eigenvalues are mean squares of whole items' gradients in the eigenbasis of the Kronecker factors."""

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import Items, TwoLayer, batches_of, make_items, masks, seeded, sequence_loss
from fisher_cases import assert_same_blocks, cross_entropy, dense_of, item_gradients, labelled, matrix_of, mlp, singles
from torch import nn

from asrcl.curvature import BlockKey, Curvature, correct, estimate
from asrcl.exceptions import InputError

LENGTHS = (4, 2, 3, 1, 4)
D = 4


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, D))

    def forward(self, x):
        return F.linear(torch.tanh(F.linear(x, self.weight)), self.weight)


class Attention(nn.Module):
    """Packed projections: in one piece for self-attention, query apart from key and value for a memory."""

    def __init__(self, memory):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.memory = memory

    def forward(self, x):
        source = torch.tanh(x.flip(-1)) if self.memory else x
        return self.attention(x, source, source, need_weights=False)[0]


class Chunked(nn.Module):
    """A raw packed weight used in chunks; the first of them twice."""

    def __init__(self):
        super().__init__()
        self.packed = nn.Parameter(torch.randn(3 * D, D))

    def forward(self, x):
        q, k, v = self.packed.chunk(3)
        return F.linear(x, q) * F.linear(x, k) + F.linear(torch.tanh(F.linear(x, q)), v)


class Convolved(nn.Module):
    """Convolutions over the real frames alone: of kernel 3, of kernel 1, in groups."""

    def __init__(self, kernel, groups=1):
        super().__init__()
        self.conv = nn.Conv1d(D, 6, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x):
        return torch.tanh(self.conv(x.mT).mT)


class Transposed(nn.Module):
    """Weights that lie transposed: a plain product, and GPT-2's addmm."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(D, 3)), nn.Parameter(torch.randn(3, 2))
        self.shift = nn.Parameter(torch.randn(2))

    def forward(self, x):
        h = torch.tanh(x @ self.first)
        return torch.addmm(self.shift, h.flatten(0, 1), self.last).unflatten(0, h.shape[:2])


class Looked(nn.Module):
    """A table looked up by the signs of the first two features, so that items ask for rows several times."""

    def __init__(self, padding=None):
        super().__init__()
        self.table = nn.Embedding(5, 3, padding_idx=padding)
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        ids = (x[..., 0] > 0).long() + 2 * (x[..., 1] > 0)
        return self.last(torch.tanh(self.table(ids)))


CASES = {
    "linear": (TwoLayer, 3, ["first.weight[0:4]", "last.weight[0:2]"]),
    "tied": (Tied, D, ["weight[0:4]"]),
    "self attention": (lambda: Attention(False), D, ["attention.in_proj_weight[0:12]", "attention.out_proj.weight[0:4]"]),
    "memory": (
        lambda: Attention(True),
        D,
        ["attention.in_proj_weight[0:4]", "attention.in_proj_weight[4:12]", "attention.out_proj.weight[0:4]"],
    ),
    "chunks": (Chunked, D, ["packed[0:4]", "packed[4:8]", "packed[8:12]"]),
    "convolution": (lambda: Convolved(3), D, ["conv.weight[0:6]"]),
    "pointwise": (lambda: Convolved(1), D, ["conv.weight[0:6]"]),
    "groups": (lambda: Convolved(3, 2), D, ["conv.weight[0:3]", "conv.weight[3:6]"]),
    "transposed": (Transposed, D, ["first[0:4]", "last[0:3]"]),
    "table": (Looked, 3, ["table.weight[0:5]", "last.weight[0:2]"]),
    "padded table": (lambda: Looked(1), 3, ["table.weight[0:5]", "last.weight[0:2]"]),
}


@pytest.fixture(params=CASES)
def case(request):
    build, features, blocks = CASES[request.param]
    return request.param, seeded(build), make_items(LENGTHS, features, seed=4), blocks


def batches_for(name, items):
    """Attention and wide kernels look at frames beyond an item's end: batches of equal lengths."""
    alone = list(items.items())
    mixing = name in ("self attention", "memory", "convolution", "groups")
    longest = Items(torch.cat([alone[0].x, alone[4].x]), items.lengths[[0, 4]])
    return [longest, *alone[1:4]] if mixing else batches_of(items, 2)


def by_hand(block, key, gradients):
    """Mean over items of the squared gradient of the block's rows in its basis."""
    turned = gradients[:, key.row_start : key.row_stop].flatten(2)
    if block.row_vectors is not None:
        turned = block.row_vectors.T @ turned
    if block.column_vectors is not None:
        turned = turned @ block.column_vectors
    return turned.square().mean(0)


def test_eigenvalues_are_mean_squares_in_the_eigenbasis(case):
    name, model, items, blocks = case
    batches = batches_for(name, items)
    plain = estimate(model, sequence_loss, batches, padding=masks)
    found = estimate(model, sequence_loss, batches, padding=masks, structure="ekfac")
    gradients = item_gradients(model, sequence_loss, list(items.items()))
    corrected = {key: block for key, block in found.blocks.items() if block.kind == "eigen"}
    assert [str(key) for key in corrected] == blocks
    for key, block in corrected.items():
        assert block.items == len(LENGTHS)
        torch.testing.assert_close(block.spectrum, by_hand(block, key, gradients[key.name]), atol=1e-12, rtol=1e-9)
        assert_is_eigenbasis(block, plain.blocks[key])
    others = {key: block for key, block in found.blocks.items() if key not in corrected}
    assert all(torch.equal(block.diagonal, plain.blocks[key].diagonal) for key, block in others.items())


def assert_is_eigenbasis(block, kronecker):
    for vectors, factor in ((block.row_vectors, kronecker.row_factor), (block.column_vectors, kronecker.column_factor)):
        if vectors is None:
            assert factor.kind == "diagonal"
            continue
        turned = vectors.T @ factor.dense().to(vectors) @ vectors
        torch.testing.assert_close(turned, torch.diag(turned.diagonal()), atol=1e-10, rtol=0)
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(len(vectors), dtype=vectors.dtype), atol=1e-10, rtol=0)


def test_the_trace_is_that_of_the_squared_gradients(case):
    name, model, items, blocks = case
    batches = batches_for(name, items)
    found = estimate(model, sequence_loss, batches, padding=masks, structure="ekfac")
    squares = estimate(model, sequence_loss, batches, padding=masks, structure="diagonal")
    for name in {block.partition("[")[0] for block in blocks}:
        traces = [sum(block.trace() for block in one.blocks_of(name).values()) for one in (found, squares)]
        assert traces[0] == pytest.approx(traces[1], rel=1e-9)


def test_correcting_afterwards_is_the_same(case):
    name, model, items, _ = case
    batches = batches_for(name, items)
    once = estimate(model, sequence_loss, batches, padding=masks, structure="ekfac")
    plain = estimate(model, sequence_loss, batches, padding=masks)
    later = correct(plain, model, sequence_loss, batches)
    assert once.blocks.keys() == later.blocks.keys()
    for key, block in once.blocks.items():
        assert all(torch.equal(t, later.blocks[key].tensors()[role]) for role, t in block.tensors().items())
    assert later.metadata["structure"] == once.metadata["structure"] == "ekfac"


@pytest.mark.parametrize("lazy", [True, False])
def test_correcting_from_a_file(tmp_path, lazy):
    model = seeded(lambda: nn.Sequential(*[layer for _ in range(5) for layer in (nn.Linear(D, D), nn.Tanh())]))
    data = labelled(8, D, D)
    plain = estimate(model, cross_entropy, [data])
    loaded = Curvature.load(plain.save(tmp_path / "c.safetensors"), lazy=lazy)
    assert_same_blocks(correct(loaded, model, cross_entropy, [data]), correct(plain, model, cross_entropy, [data]))


@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_both_passes_see_the_same_labels(fisher):
    """With one weight per output nothing is approximated: the corrected matrix is the diagonal of the dense one."""
    model, data = seeded(mlp), labelled()
    options = {"fisher": fisher, "seed": 3}
    found = estimate(model, cross_entropy, [data], structure="ekfac", **options)
    squares = estimate(model, cross_entropy, [data], structure="diagonal", **options)
    for name in ("0.weight", "2.weight"):
        assert found.blocks_of(name).popitem()[1].trace() == pytest.approx(squares.blocks_of(name).popitem()[1].trace(), rel=1e-9)


def test_other_data_correct_the_same_basis():
    model, first, second = seeded(mlp), labelled(6), labelled(9, seed=8)
    plain = estimate(model, cross_entropy, [first])
    found = correct(plain, model, cross_entropy, [second])
    gradients = item_gradients(model, cross_entropy, singles(second))
    for key, block in found.blocks.items():
        if block.kind == "eigen":
            assert block.items == 9 and plain.blocks[key].items == 6
            torch.testing.assert_close(block.spectrum, by_hand(block, key, gradients[key.name]))
            assert_is_eigenbasis(block, plain.blocks[key])


def test_max_items_and_progress_of_the_second_pass():
    model, data, seen = seeded(mlp), labelled(6), []
    plain = estimate(model, cross_entropy, [data])
    pairs = [tuple(part[i : i + 2] for part in data) for i in (0, 2, 4)]
    found = correct(plain, model, cross_entropy, pairs, max_items=4, progress=seen.append)
    assert {block.items for block in found.blocks.values() if block.kind == "eigen"} == {4} and seen == [2, 4]


def test_operations_agree_with_the_matrix():
    model, items = seeded(TwoLayer), make_items(LENGTHS)
    found = estimate(model, sequence_loss, batches_of(items, 2), padding=masks, structure="ekfac")
    generator = torch.Generator().manual_seed(0)
    delta = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    dense = dense_of(found)
    expected = sum(0.5 * d.flatten() @ dense[n] @ d.flatten() for n, d in delta.items())
    torch.testing.assert_close(found.quadratic(delta), expected)
    for kind, shift in (("absolute", 0.3), ("product_absolute", 0.3), ("pi", 0.3), ("relative", 0.1), ("product", 0.1)):
        solved = found.solve(delta, shift, kind)
        for n, d in delta.items():
            term = shift * float(dense[n].diagonal().mean()) if kind in ("relative", "product") else shift
            damped = dense[n] + term * torch.eye(len(dense[n]), dtype=d.dtype)
            torch.testing.assert_close(solved[n].flatten(), torch.linalg.solve(damped, d.flatten()))
    (block,) = found.blocks_of("first.weight").values()
    torch.testing.assert_close(block.diagonal.flatten(), matrix_of(block).diagonal())
    torch.testing.assert_close(block.eigenvalues(), torch.linalg.eigvalsh(matrix_of(block)).flip(0), atol=1e-10, rtol=1e-8)


class Positions(nn.Module):
    """A table of positions that all items share, in the ways that models write it; `P` rows are used."""

    def __init__(self, how):
        super().__init__()
        self.position, self.last, self.how = nn.Embedding(8, 3), nn.Linear(3, 2), how

    def forward(self, x):
        numbers = torch.arange(x.shape[1])
        ids = {"flat": numbers, "row": numbers[None], "shifted": numbers + 2, "each": numbers.expand(x.shape[:2])}[self.how]
        return self.last(torch.tanh(x + self.position(ids)))


@pytest.mark.parametrize("items", [2, 3, 4])
@pytest.mark.parametrize("how", ["flat", "row", "shifted", "each"])
def test_a_shared_table_of_positions_is_noted_and_stays_as_it_was(how, items):
    """Also where by chance it has as many positions as there are items, or a multiple."""
    model, data = seeded(lambda: Positions(how)), make_items([4] * items)
    found = estimate(model, sequence_loss, [data], structure="ekfac")
    kinds = {key.name: block.kind for key, block in found.blocks.items()}
    assert kinds["last.weight"] == "eigen"
    squares = item_gradients(model, sequence_loss, list(data.items()))["position.weight"].square().mean(0)
    if how == "each":
        assert kinds["position.weight"] == "eigen" and "position.weight" not in found.metadata["notes"]
    else:
        assert kinds["position.weight"] == "kronecker"
        assert "shared by all items" in found.metadata["notes"]["position.weight"]
    exact = estimate(model, sequence_loss, [data], structure="diagonal")
    torch.testing.assert_close(exact.diagonals()["position.weight"], squares)


class Relative(nn.Module):
    """A projected table [1, P, D] of relative positions."""

    def __init__(self, positions):
        super().__init__()
        self.query, self.position = nn.Linear(3, 3), nn.Linear(3, 3)
        self.register_buffer("table", torch.randn(1, positions, 3))

    def forward(self, x):
        return self.query(x) * self.position(self.table).mean(1, keepdim=True)


@pytest.mark.parametrize("positions", [2, 3, 5])
def test_a_projected_table_is_noted_and_its_squares_are_exact(positions):
    model, data = seeded(lambda: Relative(positions)), make_items([2, 2, 2])
    found = estimate(model, sequence_loss, [data], structure="ekfac")
    (block,) = found.blocks_of("position.weight").values()
    assert block.kind == "kronecker" and "not corrected" in found.metadata["notes"]["position.weight"]
    exact = estimate(model, sequence_loss, [data], structure="diagonal").diagonals()
    for name, gradients in item_gradients(model, sequence_loss, list(data.items())).items():
        torch.testing.assert_close(exact[name], gradients.square().mean(0))


class InAndOut(nn.Module):
    """A table that is also the output layer, as language models tie them."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, ids):
        return F.linear(torch.tanh(self.table(ids)), self.table.weight)


def test_a_table_that_is_also_an_output_layer_has_its_exact_diagonal():
    model = seeded(InAndOut)
    ids, y = torch.tensor([0, 1, 1, 4]), torch.tensor([2, 0, 3, 1])
    plain, corrected, exact = (estimate(model, cross_entropy, [(ids, y)], structure=s) for s in ("kron", "ekfac", "diagonal"))
    assert [block.kind for block in corrected.blocks.values()] == ["diagonal"]
    torch.testing.assert_close(corrected.diagonals(), plain.diagonals())
    gradients = item_gradients(model, cross_entropy, singles((ids, y)))["table.weight"]
    for found in (plain, exact):
        torch.testing.assert_close(found.diagonals()["table.weight"], gradients.square().mean(0))


def test_bad_input_is_refused():
    model, data = seeded(mlp), labelled()
    with pytest.raises(InputError, match=r"ekfac.*iterator"):
        estimate(model, cross_entropy, iter([data]), structure="ekfac")
    plain = estimate(model, cross_entropy, [data])
    with pytest.raises(InputError, match="no data"):
        correct(plain, model, cross_entropy, [])
    with torch.no_grad():
        model[0].bias[0] += 1
    with pytest.raises(InputError, match="other weights"):
        correct(plain, model, cross_entropy, [data])
    nothing = Curvature({k: b for k, b in plain.blocks.items() if b.kind == "kronecker"}, {})
    with pytest.raises(InputError):
        correct(nothing, model, cross_entropy, [data])


def test_everything_is_restored_afterwards():
    model, data = seeded(mlp), labelled()
    model.train()
    model[0].bias.requires_grad_(False)
    correct(estimate(model, cross_entropy, [data]), model, cross_entropy, [data])
    assert model.training and not model[0].bias.requires_grad and model[0].weight.requires_grad


def test_rows_that_never_came_are_named():
    """A second pass over data that use a part of the model alone leaves the other blocks as they were."""

    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.left(x) if x[0, 0, 0] > 0 else self.right(x)

    model = seeded(Either)
    x = torch.ones(2, 2, 3, dtype=torch.float64)
    lengths = torch.tensor([2, 2])
    plain = estimate(model, sequence_loss, [Items(x, lengths), Items(-x, lengths)])
    found = correct(plain, model, sequence_loss, [Items(x, lengths)])
    kinds = {str(key): block.kind for key, block in found.blocks.items() if block.kind != "diagonal"}
    assert kinds == {"left.weight[0:2]": "eigen", "right.weight[0:2]": "kronecker"}
    assert found.metadata["notes"]["right.weight"] == "eigenvalues not corrected: not seen"
    assert found.blocks[BlockKey("right.weight", 0, 2)] is plain.blocks[BlockKey("right.weight", 0, 2)]
