"""RegMean++: block after block, with the inputs that the merged blocks below make."""

import pytest
import torch
from doc_cases import example
from merge_cases import bits
from torch import nn

from asrcl.curvature import EstimateOptions, estimate
from asrcl.exceptions import InputError
from asrcl.merge import merge, regmean_plus_plus
from asrcl.merge.layerwise import blocks_in_order

torch.set_num_threads(1)
DOUBLE = torch.float64
EXACT = {"offdiagonal": 1.0, "damping": 0.0}


def loss(model, batch):
    inputs, labels = batch
    return (model(inputs) - labels).square().sum(1).mean()


def net(seed, *parts):
    torch.manual_seed(seed)
    return nn.Sequential(*(parts or (nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)))).double()


def data(seed, count=40, features=4):
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(features, features, generator=g, dtype=DOUBLE)
    inputs = torch.randn(count, features, generator=g, dtype=DOUBLE) @ mixing + 0.5
    return [(part, torch.ones(len(part), 3, dtype=DOUBLE)) for part in inputs.split(16)]


def inputs_of(batches):
    return torch.cat([inputs for inputs, _ in batches])


def least_squares(inputs, weights):
    """The map whose outputs are nearest to those of every model on its own inputs, every model weighing the same."""
    seen = torch.cat([x / len(x) ** 0.5 for x in inputs])
    wanted = torch.cat([x @ w.T / len(x) ** 0.5 for x, w in zip(inputs, weights, strict=True)])
    return torch.linalg.lstsq(seen, wanted).solution.T


@pytest.mark.parametrize("count", [1, 2])
def test_a_layer_is_fitted_on_what_the_merged_layers_below_make(count):
    models, batches = [net(seed) for seed in range(1 + count)], [data(10 + seed) for seed in range(1 + count)]
    merged = regmean_plus_plus(net(9), models[0], models[1:], loss, batches, **EXACT)
    first = least_squares([inputs_of(b) for b in batches], [m[0].weight.detach() for m in models])
    torch.testing.assert_close(merged["0.weight"], first)
    hidden = [torch.tanh(inputs_of(b) @ first.T) for b in batches]
    torch.testing.assert_close(merged["2.weight"], least_squares(hidden, [m[2].weight.detach() for m in models]))
    torch.testing.assert_close(merged["2.bias"], sum(m[2].bias.detach() for m in models) / (1 + count))
    plain = [estimate(m, loss, b, layers="linear") for m, b in zip(models, batches, strict=True)]
    regmean = merge(models[0], models[1:], "regmean", curvature=plain[:1], new_curvature=plain[1:], **EXACT)
    assert torch.equal(merged["0.weight"], regmean["0.weight"]) and not torch.allclose(merged["2.weight"], regmean["2.weight"])


def test_the_first_layers_of_unlike_sizes_of_data_weigh_alike():
    models = [net(1), net(2)]
    few, many = (regmean_plus_plus(net(9), *models, loss, [data(10), data(11) * times], **EXACT) for times in (1, 5))
    torch.testing.assert_close(few, many)


@pytest.mark.parametrize("strength", [0.5, 0.0])
def test_a_model_with_itself_and_no_strength_change_no_bit(strength):
    old, new = net(1), net(1 if strength else 2)
    merged = regmean_plus_plus(net(9), old, new, loss, [data(10), data(11)], strength=strength, rest=strength)
    assert bits(merged) == bits(old.state_dict())


class Branching(nn.Module):
    """Registered in another order than it runs; the output layer is the input layer's, and one part is no module's call."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4, bias=False)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.gain = nn.Parameter(torch.ones(5))
        self.front = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.back = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.front(x)) * self.gain
        for layer in reversed(self.layers):
            x = torch.relu(nn.functional.linear(x, layer.weight, layer.bias)) + layer(x)
        return self.back(self.head(x))


def changed(seed, by=0.1):
    torch.manual_seed(0)
    model = Branching().double()
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += by * torch.rand_like(tensor)
    return model


def test_blocks_come_in_the_order_in_which_the_model_runs():
    model = changed(1)
    names = sorted(model.state_dict())  # a file has no other order
    states = [{name: changed(seed).state_dict()[name] for name in names} for seed in (1, 2)]
    blocks = blocks_in_order(model, states, loss, data(3))
    assert [block[0].rpartition(".")[0] for block in blocks] == ["", "front", "norm", "layers.1", "layers.0", "head", "back"]
    assert blocks[0] == ["gain"] and sorted(name for block in blocks for name in block) == names
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_of_many_kinds_is_merged_and_keeps_its_own_weights():
    model, old, new = changed(5), changed(1), changed(2)
    before = bits(model.state_dict())
    options = EstimateOptions(layers="linear", max_items=20)
    merged = regmean_plus_plus(model, old, new, loss, [data(3), data(4)], estimation=options)
    assert bits(model.state_dict()) == before and list(merged) == list(old.state_dict())
    average = merge(old, new, "average")
    for name, tensor in merged.items():
        matrix = tensor.dim() == 2
        assert torch.isfinite(tensor).all() and torch.allclose(tensor, average[name]) != matrix, name


def test_tied_layers_stay_tied_and_go_with_the_first_use():
    def tied(seed):
        model = net(seed, nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
        model[2].weight = model[0].weight
        return model

    old, new = tied(1), tied(2)
    states = [model.state_dict() for model in (old, new)]
    assert blocks_in_order(tied(3), states, loss, data(3)) == [["0.weight", "2.weight"], ["3.weight", "3.bias"]]
    merged = regmean_plus_plus(tied(3), old, new, loss, [data(3), data(4)])
    assert torch.equal(merged["0.weight"], merged["2.weight"])


def test_the_example_of_the_page():
    old, new = net(1), net(2)
    names = {"model": net(9), "loss_fn": loss, "old_batches": data(1), "new_batches": data(2)}
    names |= {"old_state": old.state_dict(), "new_state": new.state_dict()}
    exec(example("layerwise", "merge.md"), names)
    assert names["merged"].keys() == names["old_state"].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": [data(1)]}, "holds the data of 1 models, the old one's first; there are 2"),
        ({"batches": [[], data(1)]}, "no data of the old model"),
        ({"model": net(1, nn.Linear(4, 3))}, r"0\.bias is not in both the model and the weights"),
        ({"base": net(1)}, "base= is not for regmean_plus_plus"),
        ({"damping": -1.0}, "damping must be at least 0"),
        ({"offdiag": 1.0}, "no option offdiag"),
    ],
)
def test_what_cannot_be_merged_is_refused(options, message):
    given = {"model": net(9), "old": net(1), "new": net(2), "loss_fn": loss, "batches": [data(1), data(2)]} | options
    with pytest.raises(InputError, match=message):
        regmean_plus_plus(**given)
