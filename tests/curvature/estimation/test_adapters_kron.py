"""Kronecker factors of every kind of map and table, against inputs and output gradients of one item at a time.

A = mean over positions of a aᵀ, G = sum over positions, mean over items, of g gᵀ. Inputs of a convolution are its patches, here
made by convolving with the identity.
"""

import adapter_maps
import pytest
import torch
import torch.nn.functional as F
from adapter_cases import ITEMS, assert_near, batches, build, loss_of
from adapter_layers import LAYERS
from torch import nn

from asrcl.curvature import BlockKey, estimate

CASES = LAYERS | adapter_maps.MAPS
KINDS = nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def traced(model, item):
    """Calls of maps and tables on one item: (name, part, input, gradient of the output)."""
    calls = []

    def hook(name):
        return lambda part, inputs, output: calls.append((name, part, inputs[0].detach(), output))

    hooks = [part.register_forward_hook(hook(name)) for name, part in model.named_modules() if isinstance(part, KINDS)]
    calls_and_gradients = with_gradients(loss_of(model, item), calls)
    for each in hooks:
        each.remove()
    return calls_and_gradients


def with_gradients(loss, calls):
    outputs = [call[-1] for call in calls if call[-1].requires_grad]
    gradients = iter(torch.autograd.grad(loss, outputs, allow_unused=True)) if outputs else None
    found = [(*call[:-1], next(gradients) if call[-1].requires_grad else None) for call in calls]
    return [call for call in found if call[-1] is not None]


def patches(conv, input, group):
    """[positions, channels of the group * kernel]."""
    axes, width = conv.weight.dim() - 2, conv.in_channels // conv.groups
    values = input if input.dim() == axes + 2 else input[None]
    values, padding = values[:, group * width : (group + 1) * width], conv.padding
    if conv.padding_mode != "zeros":
        values, padding = F.pad(values, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
    size = conv.weight[0].numel()
    identity = torch.eye(size, dtype=values.dtype).reshape(size, *conv.weight.shape[1:])
    return CONV[axes](values, identity, None, conv.stride, padding, conv.dilation).movedim(1, -1).flatten(0, -2)


def rows(part, input, gradient):
    """Key rows -> (inputs [P, I], gradients [P, O]) of one call."""
    if isinstance(part, nn.Linear):
        return {(0, part.out_features): (input.reshape(-1, part.in_features), gradient.reshape(-1, part.out_features))}
    if isinstance(part, nn.Embedding):
        real = torch.ones_like(input, dtype=torch.bool) if part.padding_idx is None else input != part.padding_idx
        inputs = F.one_hot(input[real], part.num_embeddings).to(gradient)
        return {(0, part.num_embeddings): (inputs, (gradient * real[..., None]).flatten(0, -2))}
    axes, height = part.weight.dim() - 2, part.out_channels // part.groups
    gradient = (gradient if gradient.dim() == axes + 2 else gradient[None]).movedim(1, -1).flatten(0, -2)
    spans = [(group * height, (group + 1) * height) for group in range(part.groups)]
    return {span: (patches(part, input, g), gradient[:, slice(*span)]) for g, span in enumerate(spans)}


def truth_of(model, case):
    """Key -> (A, G, positions) of everything that is a module."""
    sums = {}
    for item in batches(case, 1):
        for name, part, input, gradient in traced(model, item):
            for span, (a, g) in rows(part, input, gradient).items():
                add(sums, BlockKey(f"{name}.weight", *span), a, g)
    return {key: (A / count, G, count) for key, (A, G, count) in sums.items()}


def add(sums, key, a, g):
    A, G, count = sums.get(key, (0, 0, 0))
    sums[key] = A + a.mT @ a, G + g.mT @ g / ITEMS, count + len(a)


def assert_truth(blocks, truth, case):
    for key, (A, G, count) in truth.items():
        assert blocks[key].positions == count
        assert_near(blocks[key].A_II, A, case, f"A of {key}")
        assert_near(blocks[key].G_OO, G, case, f"G of {key}")


EXACT = {"unbatched conv of a shared table", "tied output"}
"""Cases that have an exact or a diagonal block where the truth here has factors."""
MODULES = [
    (name, size)
    for name, case in CASES.items()
    if any(isinstance(part, KINDS) for part in case.build().modules()) and name not in EXACT
    for size in case.sizes
    if size == 1 or "positions," not in name
]


@pytest.mark.parametrize("name, size", MODULES)
def test_factors_of_modules(name, size, monkeypatch):
    case = CASES[name]
    model = build(case).eval()
    curvature = estimate(model, loss_of, batches(case, size))
    monkeypatch.setattr(adapter_maps, "checkpoint", lambda run, x, use_reentrant: run(x))
    truth = truth_of(model, case)
    kinds = {key: block.kind for key, block in curvature.blocks.items()}
    assert set(kinds.values()) <= {"kronecker", "dense", "diagonal"}
    item_by_item, depthwise = curvature.metadata["notes"], {key.name for key, kind in kinds.items() if kind == "dense"}
    known = dict(model.named_parameters()).keys() - depthwise - set(item_by_item)
    truth = {key: value for key, value in truth.items() if key.name in known}
    assert_truth(curvature.blocks, truth, case)


@pytest.mark.parametrize("name, size", [(n, s) for n, case in CASES.items() if n.startswith("attention") for s in case.sizes])
def test_factors_of_attention(name, size, monkeypatch):
    """The maps inside of nn.MultiheadAttention are found by what is handed to F.linear."""
    case = CASES[name]
    model = build(case).eval()
    blocks = estimate(model, loss_of, batches(case, size)).blocks
    calls, sums, plain = [], {}, F.linear

    def watched(input, weight, bias=None):
        calls.append((weight, input.detach(), plain(input, weight, bias)))
        return calls[-1][-1]

    monkeypatch.setattr(F, "linear", watched)
    for item in batches(case, 1):
        calls.clear()
        for weight, input, gradient in with_gradients(loss_of(model, item), calls):
            owner = weight if weight._base is None else weight._base
            (parameter,) = (n for n, p in model.named_parameters() if p is owner)
            start = weight.storage_offset() // weight.shape[1]
            add(sums, BlockKey(parameter, start, start + len(weight)), input.flatten(0, -2), gradient.flatten(0, -2))
    truth = {key: (A / count, G, count) for key, (A, G, count) in sums.items()}
    assert set(truth) == {key for key, block in blocks.items() if block.kind == "kronecker"}
    assert_truth(blocks, truth, case)
