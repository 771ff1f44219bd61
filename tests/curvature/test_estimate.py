import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import Items, TwoLayer, batches_of, make_items, masks, seeded, sequence_loss, taps_truth
from torch import nn

from asrcl import curvature as room
from asrcl.curvature import BlockKey, DiagonalBlock, EstimateOptions, KroneckerBlock
from asrcl.exceptions import InputError

estimate = functools.partial(room.estimate, layers="linear")
everything = room.estimate

LENGTHS = (5, 2, 4, 1, 3)


@pytest.fixture
def model():
    return seeded(TwoLayer)


@pytest.fixture
def items():
    return make_items(LENGTHS)


def assert_factors(block, truth):
    A_II, G_OO = truth
    torch.testing.assert_close(block.A_II, A_II)
    torch.testing.assert_close(block.G_OO, G_OO)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_padded_batches_give_the_factors_of_single_utterances(model, items, size):
    truth = taps_truth(model.taps, items)
    curvature = estimate(model, sequence_loss, batches_of(items, size), padding=masks)
    assert set(curvature.blocks) == {BlockKey("first.weight", 0, 4), BlockKey("last.weight", 0, 2)}
    for key, block in curvature.blocks.items():
        assert_factors(block, truth[key.name])
        assert (block.positions, block.items) == (sum(LENGTHS), len(LENGTHS))


def test_without_a_mask_every_position_counts(model, items):
    block = estimate(model, sequence_loss, [items]).blocks[BlockKey("first.weight", 0, 4)]
    rows = items.x.reshape(-1, 3)
    assert block.positions == len(rows)
    torch.testing.assert_close(block.A_II, rows.T @ rows / len(rows))


def test_maps_that_fit_no_mask_are_named(model, items):
    wrong = estimate(model, sequence_loss, [items], padding=lambda batch: [batch.mask[:, :-1]])
    assert wrong.metadata["unmasked"] == ["first.weight", "last.weight"]
    assert estimate(model, sequence_loss, [items], padding=masks).metadata["unmasked"] == []


def test_one_item_with_one_position_is_the_exact_fisher_block():
    model, item = seeded(TwoLayer), make_items([1])
    curvature = estimate(model, sequence_loss, [item])
    gradients = torch.autograd.grad(sequence_loss(model.eval(), item), list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
        for block in curvature.blocks_of(name).values():
            exact = torch.outer(gradient.flatten(), gradient.flatten())
            torch.testing.assert_close(torch.kron(block.G_OO, block.A_II), exact)


def test_diagonal_equals_the_per_item_jacobian(model, items):
    curvature = everything(model, sequence_loss, batches_of(items, 2), structure="diagonal")
    model.eval()
    names = [name for name, _ in model.named_parameters()]
    values = tuple(p.detach() for p in model.parameters())

    def item_losses(*values):
        def call(x):
            return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

        return torch.stack([sequence_loss(call, item) for item in items.items()])

    jacobians = torch.autograd.functional.jacobian(item_losses, values)
    for name, jacobian in zip(names, jacobians, strict=True):
        block = curvature.blocks[BlockKey(name, 0, len(dict(model.named_parameters())[name]))]
        assert isinstance(block, DiagonalBlock)
        torch.testing.assert_close(block.diagonal, jacobian.square().mean(0))
    torch.testing.assert_close(curvature.diagonals()["last.bias"], jacobians[-1].square().mean(0))


def test_input_without_positions_counts_one_per_item():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    x = make_items([1] * 6).x[:, 0]
    batch = Items(x, torch.ones(6, dtype=torch.long))

    def loss(model, batch):
        return model(batch.x.reshape(-1, 3)).square().sum(-1).mean()

    blocks = estimate(model, loss, [batch]).blocks
    assert {block.positions for block in blocks.values()} == {6}
    split = estimate(model, loss, list(batch_singles(x))).blocks
    for key, block in blocks.items():
        torch.testing.assert_close(block.G_OO, split[key].G_OO)


def batch_singles(x):
    return [Items(row[None], torch.ones(1, dtype=torch.long)) for row in x]


def test_max_items_cuts_inside_a_batch(model, items):
    seen = []
    curvature = estimate(model, sequence_loss, [items], padding=masks, max_items=3, progress=seen.append)
    first = estimate(model, sequence_loss, list(items.items())[:3])
    assert curvature.metadata["items"] == 3 and seen == [1, 2, 3]
    for key, block in curvature.blocks.items():
        assert_factors(block, (first.blocks[key].A_II, first.blocks[key].G_OO))


def test_include_and_exclude_and_reasons(model, items):
    curvature = estimate(model, sequence_loss, [items], include=["*.weight"], exclude=["last*"])
    assert curvature.names() == ["first.weight"]
    rows = {row.name: row for row in curvature.report()}
    assert rows["last.weight"].note == "left out by include/exclude"
    assert rows["first.weight"].kind == "kronecker" and rows["first.weight"].stored == 6 + 10
    full = {row.name: row.note for row in estimate(model, sequence_loss, [items]).report()}
    assert full["first.bias"] == "layers='linear' covers the weights of linear maps alone"


def state_of(model):
    return {name: (p.requires_grad, p.grad, p.clone()) for name, p in model.named_parameters()}


@pytest.mark.parametrize("structure", ["kron", "diagonal"])
@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_restored_even_after_an_exception(model, items, structure, fail):
    model.train()
    model.dropout.eval()
    model.first.bias.requires_grad_(False)
    before, patched = state_of(model), (F.linear, torch.get_default_device(), torch.backends.mha.get_fastpath_enabled())
    calls = []

    def loss(model, batch):
        calls.append(1)
        assert not model.training
        if fail and len(calls) >= 2:
            raise RuntimeError("in the middle")
        return sequence_loss(model, batch)

    if fail:
        with pytest.raises(RuntimeError, match="in the middle"):
            estimate(model, loss, batches_of(items, 2), structure=structure)
    else:
        estimate(model, loss, batches_of(items, 2), structure=structure)
    assert (F.linear, torch.get_default_device(), torch.backends.mha.get_fastpath_enabled()) == patched
    assert model.training and model.first.training and not model.dropout.training
    for name, (flag, grad, value) in state_of(model).items():
        assert flag == before[name][0] and grad is before[name][1] and torch.equal(value, before[name][2])
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_weight_gradients_are_computed_once_to_look_for_missed_uses(model, items):
    seen = []

    def loss(model, batch):
        seen.append([p.requires_grad for p in model.parameters()])
        return sequence_loss(model, batch)

    estimate(model, loss, [items] * 3)
    assert [all(flags) for flags in seen if any(flags)] == [True]


def test_training_after_an_estimate_does_not_reach_its_sums(model, items):
    kept = []

    def loss(model, batch):
        value = sequence_loss(model, batch)
        kept.append(value * 2)
        return value

    curvature = estimate(model, loss, batches_of(items, 5))
    before = {key: block.output.matrix.clone() for key, block in curvature.blocks.items()}
    with pytest.raises(RuntimeError):
        kept[0].backward()
    sequence_loss(model, items).backward()
    assert all(torch.equal(block.output.matrix, before[key]) for key, block in curvature.blocks.items())


def test_in_place_use_of_outputs_is_survived():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)))
    plain = copy.deepcopy(model)
    plain[1] = nn.ReLU()
    items = make_items(LENGTHS)
    mine, truth = (estimate(m, sequence_loss, [items], padding=masks) for m in (model, plain))
    for key, block in mine.blocks.items():
        assert_factors(block, (truth.blocks[key].A_II, truth.blocks[key].G_OO))


def test_half_precision_models_are_summed_in_single_precision(items):
    model = seeded(TwoLayer).to(torch.bfloat16)
    items.x = items.x.to(torch.bfloat16)
    block = next(iter(estimate(model, sequence_loss, [items], padding=masks).blocks.values()))
    assert block.input.matrix.dtype == block.output.matrix.dtype == torch.float32


def test_metadata_tells_what_was_estimated(model, items):
    curvature = estimate(
        model, sequence_loss, batches_of(items, 2), metadata={"loss": "squares", "data_hash": "ab"}
    )
    metadata = curvature.metadata
    assert (metadata["items"], metadata["batches"]) == (5, 3)
    assert (metadata["fisher"], metadata["structure"]) == ("empirical", "kron")
    assert (metadata["loss"], metadata["data_hash"]) == ("squares", "ab")
    assert metadata["parameters"]["first.weight"] == [4, 3]
    assert curvature.taken_at(model)
    with torch.no_grad():
        model.first.bias[0] += 1
    assert not curvature.taken_at(model)


def nan_loss(model, batch):
    return sequence_loss(model, batch) * float("nan")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"fisher": "magic"}, "there are empirical, mc, exact"),
        ({"structure": "magic"}, "there are kron, ekfac, diagonal, dense"),
        ({"max_items": 0}, "at least 1"),
        ({"include": ["nothing"]}, "no floating parameter"),
        ({"metadata": {"items": 3}}, "may not set items"),
        ({"loss_fn": nan_loss}, "the loss is nan"),
        ({"loss_fn": lambda model, batch: model(batch.x)}, "one number"),
        ({"loss_fn": lambda model, batch: batch.x.sum()}, "depends on no parameter"),
        ({"batches": []}, "no data"),
        ({"include": ["*.bias"]}, "depends on no parameter"),
        ({"padding": lambda batch: [batch.mask.double()]}, "boolean masks"),
        ({"padding": lambda batch: [batch.mask[:2]]}, "boolean masks"),
        (
            {"loss_fn": lambda m, b: m.last(m.first(b.x).detach().sub(m.first(b.x)).abs().sqrt()).sum() / len(b)},
            "not finite",
        ),
    ],
)
def test_bad_input_is_refused_with_a_reason(model, items, options, message):
    arguments = {"loss_fn": sequence_loss, "batches": [items]} | options
    with pytest.raises(InputError, match=message) as caught:
        estimate(model, **arguments)
    assert "\n" not in str(caught.value)
    assert "asrcl" not in str(F.linear)


def test_kinds_of_blocks(model, items):
    kron = estimate(model, sequence_loss, [items])
    assert all(isinstance(block, KroneckerBlock) for block in kron.blocks.values())


def test_a_map_whose_output_does_not_matter_is_named():
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x):
            self.first(x)
            return self.last(x)

    curvature = estimate(seeded(Detached), sequence_loss, [make_items(LENGTHS)], padding=masks)
    assert curvature.metadata["uncovered"]["first.weight"] == "no gradient reached its output"


def test_options_are_given_by_name_or_as_one_object():
    """Both ways give the same numbers; the curvature records what changes them."""
    model, batches = nn.Linear(3, 2), [torch.randn(4, 3)]
    loss_fn = lambda model, batch: model(batch).square().mean(-1).mean()  # noqa: E731
    named = estimate(model, loss_fn, batches, fisher="empirical", stride=2, include=["weight"])
    options = EstimateOptions(layers="linear", stride=4, include=("weight",))
    given = everything(model, loss_fn, batches, options, stride=2)
    for key, block in named.blocks.items():
        assert torch.equal(block.A_II, given.blocks[key].A_II) and torch.equal(block.G_OO, given.blocks[key].G_OO)
    assert named.metadata["options"] == given.metadata["options"] and given.metadata["options"]["stride"] == 2
    assert "include" not in given.metadata["options"]
    with pytest.raises(InputError, match=r"strid; did you mean stride"):
        estimate(model, loss_fn, batches, strid=2)
