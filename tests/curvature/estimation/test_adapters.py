"""Laws that hold for every way of using a parameter (adapter_cases.py), against autograd on one item at a time.

The strongest: the diagonal of an estimate is the mean over items of the squared gradient, for every parameter, however the items
are batched.
"""

import pytest
import torch
from adapter_cases import ITEMS, assert_near, batches, build, loss_of
from adapter_layers import LAYERS
from adapter_maps import MAPS

from asrcl.curvature import DenseBlock, DiagonalBlock, KroneckerBlock, estimate
from asrcl.curvature.estimation.capture import Capture

CASES = LAYERS | MAPS


def item_gradients(model, case):
    """Name -> [items, *shape], of the parameters that the loss depends on."""
    model.eval()
    rows = {}
    for item in batches(case, 1):
        model.zero_grad()
        loss_of(model, item).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                rows.setdefault(name, []).append(parameter.grad.clone())
    model.zero_grad()
    return {name: torch.stack(parts) for name, parts in rows.items()}


@pytest.mark.parametrize("name, size", [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_diagonal_is_the_mean_squared_gradient_of_an_item(name, size):
    case = CASES[name]
    model = build(case)
    truth = {key: rows.square().mean(0) for key, rows in item_gradients(model, case).items()}
    curvature = estimate(model, loss_of, batches(case, size), structure="diagonal")
    diagonals = curvature.diagonals()
    assert set(diagonals) == set(truth)
    for key, found in diagonals.items():
        assert_near(found.reshape(truth[key].shape), truth[key], case, key)


@pytest.mark.parametrize("name", CASES)
def test_models_may_write_into_the_outputs(name, monkeypatch):
    """As `masked_fill_` does; where the output is a view, this replaces its node in the graph."""
    case, watch = CASES[name], Capture.watch

    def written(*args):
        output = watch(*args)
        return output.masked_fill_(torch.zeros_like(output, dtype=torch.bool), 0)

    before = estimate(build(case), loss_of, batches(case, max(case.sizes)))
    monkeypatch.setattr(Capture, "watch", written)
    after = estimate(build(case), loss_of, batches(case, max(case.sizes)))
    assert after.blocks.keys() == before.blocks.keys()
    for key, block in after.blocks.items():
        for role, tensor in block.tensors().items():
            torch.testing.assert_close(tensor, before.blocks[key].tensors()[role], rtol=1e-6, atol=1e-20)


@pytest.mark.parametrize("name", CASES)
def test_what_goes_item_by_item_is_named(name):
    case = CASES[name]
    notes = estimate(build(case), loss_of, batches(case, max(case.sizes)), structure="diagonal").metadata["notes"]
    assert set(notes) == set(case.by_item)
    assert all(part in notes[key] for key, part in case.by_item.items()), notes


@pytest.mark.parametrize("name", CASES)
def test_dense_is_the_mean_outer_product_of_an_item(name):
    case = CASES[name]
    model = build(case)
    blocks = estimate(model, loss_of, batches(case, max(case.sizes)), structure="dense").blocks
    truth = item_gradients(model, case)
    assert {key.name for key in blocks} == set(truth)
    for key, block in blocks.items():
        rows = truth[key.name].reshape(ITEMS, -1)
        assert_near(block.matrix_sum[0] / block.items, rows.mT @ rows / ITEMS, case, key.name)


APPROXIMATE = {"tied output", "W and W.T"}
"""Used straight and transposed: the sum of the diagonals of both Kronecker products."""


@pytest.mark.parametrize("name", sorted(CASES.keys() - APPROXIMATE))
def test_what_is_no_kronecker_block_is_exact(name):
    case = CASES[name]
    model = build(case)
    truth = item_gradients(model, case)
    curvature = estimate(model, loss_of, batches(case, max(case.sizes)))
    assert set(curvature.names()) == set(truth)
    diagonals = curvature.diagonals()
    for key, block in curvature.blocks.items():
        gradients = truth[key.name]
        if isinstance(block, DenseBlock):
            assert (key.row_start, key.row_stop) == (0, gradients.shape[1])
            products = torch.einsum("nbi,nbj->bij", gradients.flatten(2), gradients.flatten(2)) / ITEMS
            assert_near(block.matrix_sum / block.items, products, case, key.name)
        elif isinstance(block, DiagonalBlock):
            assert_near(diagonals[key.name].reshape(gradients.shape[1:]), gradients.square().mean(0), case, key.name)


SHARED_INPUT = {"positions, one row of numbers", "positions, as many as items", "unbatched conv of a shared table"}
"""With given labels, gradients of items add up where all share one input, and their products depend on the batch."""


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if len(case.sizes) > 1 and name not in SHARED_INPUT])
def test_kronecker_blocks_do_not_depend_on_the_batches(name):
    case = CASES[name]
    model = build(case)
    one, two, all_ = (estimate(model, loss_of, batches(case, size)).blocks for size in (1, 2, max(case.sizes)))
    assert set(one) == set(two) == set(all_)
    for key, block in one.items():
        for other in (two[key], all_[key]):
            assert type(other) is type(block) and other.items == block.items == ITEMS
            if isinstance(block, KroneckerBlock):
                assert other.positions == block.positions
                assert_near(other.A_II, block.A_II.double(), case, f"A of {key}")
                assert_near(other.G_OO, block.G_OO.double(), case, f"G of {key}")
