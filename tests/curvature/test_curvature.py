import dataclasses

import pytest
import torch
from curvature_cases import TwoLayer, batches_of, make_items, masks, seeded, sequence_loss
from torch import nn

from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, KroneckerBlock, estimate
from asrcl.curvature.factors import DenseFactor, DiagonalFactor
from asrcl.exceptions import InputError


def kron_block(rows, columns, seed=0, positions=7, items=3):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(positions, columns, generator=generator, dtype=torch.float64)
    g = torch.randn(positions, rows, generator=generator, dtype=torch.float64)
    return KroneckerBlock.of(a.T @ a, g.T @ g, positions, items)


@pytest.fixture
def mixed():
    """A whole matrix, a range of rows, a diagonal and a scalar."""
    return Curvature(
        {
            BlockKey("w", 0, 2): kron_block(2, 3),
            BlockKey("packed", 1, 3): kron_block(2, 4, 1),
            BlockKey("bias", 0, 2): DiagonalBlock(torch.tensor([3.0, 6.0], dtype=torch.float64), 3),
            BlockKey("gain", 0, 1): DiagonalBlock(torch.tensor([9.0], dtype=torch.float64), 3),
        }
    )


@pytest.fixture
def delta():
    generator = torch.Generator().manual_seed(5)
    shapes = {"w": (2, 3), "packed": (4, 4, 1), "bias": (2,), "gain": (), "other": (5,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }


def dense_quadratic(curvature, delta):
    w, packed = curvature.blocks[BlockKey("w", 0, 2)], curvature.blocks[BlockKey("packed", 1, 3)]
    v, p = delta["w"].flatten(), delta["packed"][1:3, :, 0].flatten()
    total = v @ torch.kron(w.G_OO, w.A_II) @ v + p @ torch.kron(packed.G_OO, packed.A_II) @ p
    return 0.5 * (total + (torch.tensor([1.0, 2.0]) * delta["bias"] ** 2).sum() + 3.0 * delta["gain"] ** 2)


def test_quadratic_equals_the_dense_form(mixed, delta):
    torch.testing.assert_close(mixed.quadratic(delta), dense_quadratic(mixed, delta))


def test_quadratic_is_differentiable(mixed, delta):
    leaves = {name: value.requires_grad_() for name, value in delta.items()}
    assert torch.autograd.gradcheck(
        lambda *v: mixed.quadratic(dict(zip(leaves, v, strict=True))), tuple(leaves.values())
    )


def test_quadratic_ignores_what_it_does_not_know(mixed, delta):
    assert mixed.quadratic({"other": delta["other"]}) == 0
    only = mixed.quadratic({"gain": delta["gain"]})
    torch.testing.assert_close(only, 1.5 * delta["gain"] ** 2)
    assert mixed.quadratic({}) == 0


def test_quadratic_predicts_the_loss_increase_of_a_linear_model_at_its_own_noise():
    """For y ~ N(Wx, I) the empirical Fisher of many samples is the Hessian: the increase is predicted."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False).double()
    x = torch.randn(4000, 3, dtype=torch.float64)
    y = (model(x) + torch.randn(4000, 2, dtype=torch.float64)).detach()

    class Batch:
        def __len__(self):
            return len(x)

    def loss(model, _):
        return 0.5 * (model(x) - y).square().sum(1).mean()

    curvature = estimate(model, loss, [Batch()])
    change = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        before, slope = (
            float(loss(model, None)),
            torch.autograd.functional.jacobian(
                lambda w: 0.5 * (x @ w.T - y).square().sum(1).mean(), model.weight
            ),
        )
        model.weight += change
        increase = float(loss(model, None)) - before - float((slope * change).sum())
    assert float(curvature.quadratic({"weight": change})) == pytest.approx(increase, rel=0.1)


def test_solve_equals_the_dense_inverse(mixed, delta):
    solved = mixed.solve(delta, 0.5)
    assert set(solved) == {"w", "packed", "bias", "gain"}
    block = mixed.blocks[BlockKey("packed", 1, 3)]
    G = block.G_OO + 0.5 * block.G_OO.trace() / 2 * torch.eye(2)
    A = block.A_II + 0.5 * block.A_II.trace() / 4 * torch.eye(4)
    expected = torch.linalg.solve(torch.kron(G, A), delta["packed"][1:3].flatten())
    torch.testing.assert_close(solved["packed"][1:3].flatten(), expected)
    assert not solved["packed"][[0, 3]].any()
    torch.testing.assert_close(solved["bias"], delta["bias"] / (torch.tensor([1.0, 2.0]) + 0.75))
    torch.testing.assert_close(solved["gain"], delta["gain"] / 4.5)
    absolute = mixed.solve({"gain": delta["gain"].float()}, 1.0, "absolute")["gain"]
    assert absolute.dtype == torch.float32 and absolute == pytest.approx(float(delta["gain"]) / 4)


def test_solve_undoes_multiplication(mixed, delta):
    w = mixed.blocks[BlockKey("w", 0, 2)]
    torch.testing.assert_close(mixed.solve({"w": w.G_OO @ delta["w"] @ w.A_II}, 0.0)["w"], delta["w"])


def test_a_singular_solve_names_the_tensor():
    flat = Curvature({BlockKey("w", 0, 2): KroneckerBlock.of(torch.zeros(3, 3), torch.eye(2), 1, 1)})
    with pytest.raises(InputError, match=r"w\[0:2\].*damping"):
        flat.solve({"w": torch.ones(2, 3)}, 0.0)
    zeros = Curvature({BlockKey("b", 0, 2): DiagonalBlock(torch.tensor([0.0, 1.0]), 1)})
    with pytest.raises(InputError, match=r"b\[0:2\].*damping"):
        zeros.solve({"b": torch.ones(2)}, 0.0)


def test_scale_multiplies_the_quadratic(mixed, delta):
    scaled = mixed.scale(0.25).scale(2.0)
    torch.testing.assert_close(scaled.quadratic(delta), 0.5 * mixed.quadratic(delta))
    assert scaled.metadata["scale"] == 0.5
    with pytest.raises(InputError, match="-1"):
        mixed.scale(-1)


def test_adding_parts_is_exact():
    model, items = seeded(TwoLayer), make_items((5, 2, 4, 1, 3))
    batches = batches_of(items, 2)
    whole = estimate(model, sequence_loss, batches, padding=masks)
    parts = [
        estimate(model, sequence_loss, part, padding=masks, metadata={"domain": d})
        for part, d in ((batches[:1], "a"), (batches[1:], "b"))
    ]
    total = parts[0] + parts[1]
    assert set(total.blocks) == set(whole.blocks) and {block.kind for block in whole.blocks.values()} >= {"kronecker"}
    for key, block in whole.blocks.items():
        other = total.blocks[key]
        assert other.items == block.items and getattr(other, "positions", 0) == getattr(block, "positions", 0)
        for role, tensor in block.tensors().items():
            torch.testing.assert_close(other.tensors()[role], tensor)
    assert total.metadata["items"] == 5 and total.metadata["batches"] == 3
    assert total.metadata["model_hash"] == whole.metadata["model_hash"] and "domain" not in total.metadata
    assert [source["domain"] for source in (total + parts[0]).metadata["sources"]] == ["a", "b", "a"]


@pytest.mark.parametrize("units", [(1.0, 1.0), (2.0, 0.5)])
def test_diagonal_factors_stay_diagonals_in_a_sum(units):
    key = BlockKey("out.weight", 0, 3)
    values = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 0.0, 1.0])]
    factors = [DiagonalFactor(*pair) for pair in zip(values, units, strict=True)]
    parts = [KroneckerBlock(DenseFactor(torch.eye(2)), factor, 2, 3) for factor in factors]
    total = (Curvature({key: parts[0]}) + Curvature({key: parts[1]})).blocks[key]
    assert isinstance(total.output, DiagonalFactor)
    torch.testing.assert_close(total.output.diagonal(), units[0] * values[0] + units[1] * values[1])


def test_adding_keeps_blocks_that_one_side_lacks_and_refuses_other_kinds(mixed):
    one = Curvature({BlockKey("w", 0, 2): kron_block(2, 3, 8)})
    total = one + mixed
    assert set(total.blocks) == set(mixed.blocks)
    assert total.blocks[BlockKey("w", 0, 2)].items == 6
    for key, block in (
        (BlockKey("w", 0, 2), DiagonalBlock(torch.ones(2, 3), 1)),
        (BlockKey("w", 0, 2), kron_block(2, 4)),
        (BlockKey("w", 0, 1), kron_block(1, 3)),
    ):
        with pytest.raises(InputError, match="w"):
            mixed + Curvature({key: block})


def test_fill_adds_only_what_is_missing():
    model, items = seeded(TwoLayer), make_items((3, 2))
    kron = estimate(model, sequence_loss, [items], padding=masks)
    both = kron.fill(estimate(model, sequence_loss, [items], structure="diagonal"))
    kinds = {key.name: block.kind for key, block in both.blocks.items()}
    assert kinds == {
        "first.weight": "kronecker",
        "first.bias": "diagonal",
        "last.weight": "kronecker",
        "last.bias": "diagonal",
    }
    assert both.metadata["uncovered"] == {} and both.metadata["items"] == 2
    assert {row.kind for row in both.report()} == {"kronecker", "diagonal"}


def test_diagonals_of_all_kinds(mixed):
    diagonals = mixed.diagonals()
    w, packed = mixed.blocks[BlockKey("w", 0, 2)], mixed.blocks[BlockKey("packed", 1, 3)]
    torch.testing.assert_close(diagonals["w"].flatten(), torch.kron(w.G_OO, w.A_II).diagonal())
    torch.testing.assert_close(
        diagonals["packed"][1:].flatten(), torch.kron(packed.G_OO, packed.A_II).diagonal()
    )
    assert not diagonals["packed"][0].any()
    assert diagonals["bias"].tolist() == [1.0, 2.0]


def test_to_keeps_sharing(mixed):
    shared = kron_block(2, 3)
    twin = dataclasses.replace(kron_block(2, 3, 4), input=shared.input)
    moved = Curvature({BlockKey("q", 0, 2): shared, BlockKey("k", 0, 2): twin}).to("cpu", torch.float32)
    first, second = moved.blocks.values()
    assert first.input.matrix is second.input.matrix and first.output.matrix.dtype == torch.float32


def test_check_names_what_does_not_fit(mixed):
    good = {"w": torch.ones(2, 3), "packed": torch.ones(4, 4), "bias": torch.ones(2), "gain": torch.ones(())}
    mixed.check(good)
    for change, message in (
        ({"w": torch.ones(3, 3)}, None),
        ({"w": torch.ones(2, 4)}, r"w\[0:2\] does not fit shape \[2, 4\]"),
        ({"packed": torch.ones(2, 4)}, r"packed\[1:3\] does not fit"),
        ({"bias": None}, "bias is missing"),
    ):
        state = {name: tensor for name, tensor in (good | change).items() if tensor is not None}
        if message:
            with pytest.raises(InputError, match=message):
                mixed.check(state)
    with pytest.raises(InputError, match="w"):
        mixed.quadratic({"w": torch.ones(2, 4)})


def test_decomposed_curvature_is_the_same_one(tmp_path):
    block = kron_block(4, 3, positions=9)
    curvature = Curvature({BlockKey("w", 0, 4): block, BlockKey("b", 0, 4): DiagonalBlock(torch.ones(4), 3)})
    delta = {"w": torch.randn(4, 3, dtype=torch.float64), "b": torch.ones(4)}
    curvature.decompose().save(tmp_path / "c.safetensors")
    stored = Curvature.load(tmp_path / "c.safetensors")
    torch.testing.assert_close(stored.quadratic(delta), curvature.quadratic(delta), rtol=1e-5, atol=0)
    for name, tensor in curvature.solve(delta, 0.1).items():
        torch.testing.assert_close(stored.solve(delta, 0.1)[name], tensor, rtol=1e-4, atol=1e-6)
