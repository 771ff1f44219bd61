"""What each method computes, against its formula."""

import dataclasses

import pytest
import torch
from merge_cases import identity_like, kron, make_curvature, make_state
from torch import nn

from asrcl.curvature import BlockKey, Curvature, DenseFactor, DiagonalBlock, KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.merge import merge, plan

DOUBLE = torch.float64


@pytest.fixture
def models():
    return make_state(1, DOUBLE), make_state(2, DOUBLE)


def matrix(tensor):
    return tensor.flatten(1)


@pytest.mark.parametrize("task", [1, 2, 5])
def test_average_is_the_running_mean(models, task):
    old, new = models
    merged = merge(old, new, "average", task=task)
    torch.testing.assert_close(merged["packed"], old["packed"] * (1 - 1 / task) + new["packed"] / task)
    torch.testing.assert_close(
        merged["norm.running_mean"], merge(old, new, "interpolate", strength=1 / task)["norm.running_mean"]
    )


def test_strength_one_is_the_new_model(models):
    old, new = models
    for method in ("average", "interpolate"):
        assert all(torch.equal(t, new[n]) for n, t in merge(old, new, method, strength=1.0).items())


def damped(M, damping=10.0, kind="relative"):
    return M + damping * (M.trace() / len(M) if kind == "relative" else 1) * torch.eye(len(M), dtype=DOUBLE)


@pytest.mark.parametrize("kind, damping", [("relative", 10.0), ("relative", 0.1), ("absolute", 1e-3)])
def test_ihr_is_the_paper_formula_layer_by_layer(models, kind, damping):
    old, new = models
    curvature = make_curvature()
    merged = merge(old, new, curvature=curvature, tau=1.5, damping=damping, damping_kind=kind, task=4)
    for name, start, stop in (
        ("encoder.weight", 0, 4),
        ("packed", 0, 2),
        ("packed", 4, 6),
        ("conv.weight", 0, 2),
    ):
        block = curvature.blocks[BlockKey(name, start, stop)]
        delta = matrix(new[name] - old[name])[start:stop]
        U = (
            torch.linalg.inv(damped(block.G_OO, damping, kind))
            @ delta
            @ torch.linalg.inv(damped(block.A_II, damping, kind))
        )
        step = matrix(merged[name] - old[name])[start:stop]
        torch.testing.assert_close(step, 1.5 * U * delta.norm() / U.norm())
    for name, part in (("packed", slice(2, 4)), ("norm.running_mean", slice(None))):
        torch.testing.assert_close(merged[name][part], (0.75 * old[name] + 0.25 * new[name])[part])
    torch.testing.assert_close(merged["gain"], 0.75 * old["gain"] + 0.25 * new["gain"])


def test_ihr_moves_less_where_the_old_loss_is_sensitive():
    A = torch.diag(torch.tensor([100.0, 1.0, 1.0]))
    curvature = Curvature({BlockKey("w", 0, 2): KroneckerBlock.of(A, torch.eye(2), 1, 1)})
    old, new = {"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3)}
    step = merge(old, new, curvature=curvature, damping=0.1)["w"]
    assert step[0, 0] < 0.1 < 1 < step[0, 1]
    assert step.norm() == pytest.approx(6**0.5)


def test_rest_and_layers(models):
    old, new = models
    merged = merge(old, new, curvature=make_curvature(), rest=0.0, layers=("packed", "*.bias"))
    for name in ("encoder.weight", "conv.weight", "gain", "norm.running_mean"):
        assert torch.equal(merged[name], old[name])
    assert torch.equal(merged["packed"][2:4], old["packed"][2:4])
    assert not torch.equal(merged["packed"][:2], old["packed"][:2])
    rules = {
        row.name: row
        for row in plan(old, new, curvature=make_curvature(), rest=0.0, layers=("packed", "*.bias")).rows
    }
    assert rules["encoder.weight"].why == "left out by layers"
    assert "0 for 2 rows" in rules["packed"].rule and "0:2, 4:6" in rules["packed"].why


def test_rescale_global_keeps_the_whole_length_and_lets_layers_differ(models):
    old, new = models
    curvature = make_curvature()
    layers = ("encoder.weight", "conv.weight")
    steps = {}
    for rescale in ("global", "none"):
        merged = merge(old, new, curvature=curvature, rescale=rescale, layers=layers, damping=10.0)
        steps[rescale] = torch.cat([(merged[n] - old[n]).flatten() for n in layers])
    deltas = torch.cat([(new[n] - old[n]).flatten() for n in layers])
    assert float(steps["global"].norm()) == pytest.approx(float(deltas.norm()))
    torch.testing.assert_close(steps["global"] / steps["global"].norm(), steps["none"] / steps["none"].norm())
    block = curvature.blocks[BlockKey("encoder.weight", 0, 4)]
    U = torch.linalg.solve(
        damped(block.G_OO), new["encoder.weight"] - old["encoder.weight"]
    ) @ torch.linalg.inv(damped(block.A_II))
    torch.testing.assert_close(steps["none"][: U.numel()], U.flatten())


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_laplace_shrinks_in_the_eigenbasis_of_all_layers(models, kind):
    old, new = models
    curvature = make_curvature()
    damping = 10.0 if kind == "relative" else 1e-6
    merged = merge(
        old, new, "laplace", curvature=curvature, damping=damping, damping_kind=kind, strength=0.5
    )
    spectra = [
        torch.linalg.eigvalsh(torch.kron(b.G_OO, b.A_II)) if b.kind == "kronecker" else b.diagonal
        for b in curvature.blocks.values()
    ]
    gamma = damping * float(torch.cat(spectra).mean()) if kind == "relative" else damping
    for key, block in curvature.blocks.items():
        delta = key.rows_of(new[key.name] - old[key.name])
        F = torch.kron(block.G_OO, block.A_II) if block.kind == "kronecker" else torch.diag(block.diagonal)
        expected = gamma * torch.linalg.solve(F + gamma * torch.eye(len(F), dtype=DOUBLE), delta.flatten())
        torch.testing.assert_close(key.rows_of(merged[key.name] - old[key.name]).flatten(), 0.5 * expected)


@pytest.mark.parametrize("damping", [1e12, 1e-20])
def test_laplace_runs_from_nothing_to_fine_tuning(models, damping):
    old, new = models
    merged = merge(old, new, "laplace", curvature=make_curvature(), damping=damping, rest=1.0)
    if damping > 1:
        torch.testing.assert_close(merged["packed"], new["packed"])
    else:
        torch.testing.assert_close(merged["encoder.weight"], old["encoder.weight"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("method", ["ihr", "laplace"])
def test_several_curvatures_are_summed_exactly(models, count, method):
    old, new = models
    curvatures = [make_curvature(10 * k) for k in range(count)]
    merged = merge(old, new, method, curvature=curvatures, damping=0.5, **({"rescale": "none"} if method == "ihr" else {}))
    key = BlockKey("encoder.weight", 0, 4)
    delta = (new[key.name] - old[key.name]).flatten()
    step = (merged[key.name] - old[key.name]).flatten()
    blocks = [c.blocks[key] for c in curvatures]
    if method == "ihr":
        F = sum(torch.kron(damped(b.G_OO, 0.5), damped(b.A_II, 0.5)) for b in blocks)
        torch.testing.assert_close(step, torch.linalg.solve(F, delta))
    else:
        F = sum(torch.kron(b.G_OO, b.A_II) for b in blocks)
        weights = sum(b.weights for b in curvatures[0].blocks.values())
        gamma = 0.5 * sum(b.trace() for c in curvatures for b in c.blocks.values()) / weights
        torch.testing.assert_close(
            step, gamma * torch.linalg.solve(F + gamma * torch.eye(12, dtype=DOUBLE), delta)
        )
    bias = [c.blocks[BlockKey("encoder.bias", 0, 4)].diagonal for c in curvatures]
    if method == "ihr":
        expected = (new["encoder.bias"] - old["encoder.bias"]) / sum(d + 0.5 * d.mean() for d in bias)
        torch.testing.assert_close(merged["encoder.bias"] - old["encoder.bias"], expected)


def test_a_repeated_curvature_points_where_one_does(models):
    old, new = models
    once, thrice = (merge(old, new, curvature=[make_curvature()] * n) for n in (1, 3))
    torch.testing.assert_close(once["packed"], thrice["packed"])


@pytest.mark.parametrize(
    "method, knobs", [*(("ihr", {"rescale": rescale}) for rescale in ("layer", "global", "none")), ("laplace", {})]
)
def test_layers_without_update_or_without_curvature_are_guarded(models, method, knobs):
    old, new = models
    new = new | {"conv.weight": old["conv.weight"].clone()}
    curvature = make_curvature()
    key = BlockKey("encoder.weight", 0, 4)
    flat = dataclasses.replace(curvature.blocks[key], output=DenseFactor(torch.zeros(4, 4)))
    merged = merge(old, new, method, curvature=Curvature({**curvature.blocks, key: flat}), **knobs)
    assert all(torch.isfinite(t).all() for t in merged.values() if t.is_floating_point())
    assert torch.equal(merged["conv.weight"], old["conv.weight"])
    torch.testing.assert_close(merged[key.name], new[key.name])


def test_tied_names_are_treated_alike(models):
    old, new = ({"in": s["encoder.weight"], "out": s["encoder.weight"].clone()} for s in models)
    curvature = Curvature({BlockKey("in", 0, 4): kron(4, 3)}, {"aliases": {"out": "in"}})
    merged = merge(old, new, curvature=curvature)
    assert torch.equal(merged["in"], merged["out"])
    alone = merge({"out": old["out"]}, {"out": new["out"]}, curvature=curvature)
    assert torch.equal(alone["out"], merged["out"])


def test_the_released_damping_erases_the_output_side(models):
    """Absolute 1e-3 on gradients of 1e-6 acts as if G were the identity."""
    old, new = models
    block = kron(4, 3)
    keep = {"layers": "encoder.weight"}
    no_G = dataclasses.replace(block, output=DenseFactor(torch.eye(4, dtype=DOUBLE) * 5e-6))
    key = BlockKey("encoder.weight", 0, 4)

    def step(block, **knobs):
        return merge(old, new, curvature=Curvature({key: block}), **keep, **knobs)[key.name] - old[key.name]

    def cosine(**knobs):
        first, second = step(block, **knobs), step(no_G, **knobs)
        return float((first * second).sum() / first.norm() / second.norm())

    assert cosine(damping=1e-3, damping_kind="absolute") > 0.99999
    assert cosine(damping=1e-3) < 0.9


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"curvature": None}, "needs curvature"),
        ({"curvature": []}, "needs curvature"),
        ({"rescale": "row"}, "layer, global, none"),
        ({"damping": -1.0}, "damping must be"),
        ({"damping": "much"}, "damping must be"),
        ({"damping_kind": "half"}, "choose relative, absolute"),
        ({"tau": float("inf")}, "tau must be"),
        ({"rest": "some"}, "rest='some' does not exist"),
        ({"task": 0}, "task must be"),
        ({"layers": ("nothing*",)}, "nothing would be treated"),
        ({"method": "laplace", "damping": 0.0}, "above 0"),
        ({"power": 1.5}, "between 0 and 1"),
        ({"statistics": "mean"}, "pool, old, new"),
        ({"budget": 0.0}, "above 0"),
        ({"curvature": Curvature({BlockKey("gone", 0, 2): kron(2, 3)})}, "gone is missing"),
        ({"curvature": Curvature({BlockKey("packed", 0, 2): kron(2, 4)})}, "packed"),
    ],
)
def test_bad_options_are_refused(models, knobs, message):
    with pytest.raises(InputError, match=message) as caught:
        merge(*models, **({"curvature": make_curvature()} | knobs))
    assert "\n" not in str(caught.value)


def test_curvatures_that_do_not_go_together_are_refused(models):
    rows = Curvature({BlockKey("packed", 0, 6): kron(6, 3)})
    with pytest.raises(InputError, match=r"packed: .*different rows"):
        merge(*models, curvature=[make_curvature(), rows])
    diagonal = Curvature({BlockKey("encoder.weight", 0, 4): DiagonalBlock(torch.ones(4, 3), 1)})
    with pytest.raises(InputError, match=r"encoder\.weight: .*different kinds"):
        merge(*models, curvature=[make_curvature(), diagonal])


def test_a_singular_layer_is_named(models):
    singular = dataclasses.replace(kron(4, 3), input=DenseFactor(torch.diag(torch.tensor([1.0, 0.0, 0.0]))))
    with pytest.raises(InputError, match=r"encoder\.weight.*singular"):
        merge(*models, curvature=Curvature({BlockKey("encoder.weight", 0, 4): singular}), damping=0.0)


def test_identity_curvature_with_rest_one_is_fine_tuning(models):
    old, new = models
    merged = merge(old, new, curvature=identity_like(make_curvature()), rest=1.0)
    for name in ("packed", "conv.weight", "gain", "encoder.bias"):
        torch.testing.assert_close(merged[name], new[name])


def test_a_module_with_batch_norm_can_be_merged_and_loaded_again():
    build = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # noqa: E731
    old, new = build(), build()
    new(torch.randn(5, 3))
    merged = merge(old, new, "average")
    old.load_state_dict(merged)
    assert merged["1.num_batches_tracked"] == 1
    torch.testing.assert_close(old[1].running_mean, new[1].running_mean / 2)
