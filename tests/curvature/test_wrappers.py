"""Models in wrappers, and checkpoints with what wrappers put into names."""

import pytest
import torch
import torch.nn.functional as F
from fisher_cases import assert_same_blocks
from torch import nn
from torch.optim.swa_utils import AveragedModel

from asrcl.curvature import BlockKey, Curvature, DiagonalBlock, estimate
from asrcl.curvature.spectrum import hessian_operator
from asrcl.curvature.wrappers import ByName, check_distinct, matched, plain_names, unwrapped
from asrcl.exceptions import InputError

torch.set_num_threads(1)


class Net(nn.Module):
    """Two parts; one is called as wrappers call what they hold."""

    def __init__(self):
        super().__init__()
        self.encoder, self.module = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Linear(6, 3)

    def forward(self, x):
        return self.module(self.encoder(x))


def net():
    torch.manual_seed(0)
    return Net()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 4, generator=generator), torch.randint(0, 3, (5,), generator=generator)


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def compiled(module):
    return torch.compile(module, backend="eager")


def inner(wrap):
    def build():
        model = net()
        model.encoder = wrap(model.encoder)
        return model

    return build


def in_place():
    model = net()
    model.encoder.compile(backend="eager")
    return model


WRAPPED = {
    "DataParallel": lambda: nn.DataParallel(net()),
    "averaged": lambda: AveragedModel(net()),
    "compiled": lambda: compiled(net()),
    "compiled in DataParallel": lambda: nn.DataParallel(compiled(net())),
    "DataParallel, compiled": lambda: compiled(nn.DataParallel(net())),
    "twice": lambda: nn.DataParallel(nn.DataParallel(net())),
    "inner compiled": inner(compiled),
    "inner DataParallel": inner(nn.DataParallel),
    "inner both": inner(lambda part: nn.DataParallel(compiled(part))),
    "compiled in place": in_place,
}


@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "dense"])
@pytest.mark.parametrize("name", WRAPPED)
def test_the_curvature_is_that_of_the_model_itself(name, structure):
    plain, model = net(), WRAPPED[name]()
    truth, found = (estimate(m, loss_fn, [data()], structure=structure) for m in (plain, model))
    assert_same_blocks(found, truth)
    for key in ("parameters", "model_hash", "aliases", "uncovered"):
        assert found.metadata[key] == truth.metadata[key]
    for curvature in (found, truth):
        for held in (plain, model, plain.state_dict(), model.state_dict()):
            curvature.check(held)
            assert curvature.taken_at(held)
    assert "forward" not in model.__dict__ or name.endswith("ompiled")


@pytest.mark.parametrize("name", WRAPPED)
def test_changes_under_wrapped_names_count(name):
    curvature, model = estimate(net(), loss_fn, [data()]), WRAPPED[name]()
    delta = {key: torch.ones_like(value) for key, value in model.named_parameters()}
    plain = {key: torch.ones_like(value) for key, value in net().named_parameters()}
    torch.testing.assert_close(curvature.quadratic(delta), curvature.quadratic(plain))
    assert curvature.quadratic(delta) > 0
    for found, truth in (
        (curvature.multiply(delta), curvature.multiply(plain)),
        (curvature.solve(delta, 0.1), curvature.solve(plain, 0.1)),
    ):
        assert list(found) == list(delta)
        for (_, value), expected in zip(found.items(), truth.values(), strict=True):
            torch.testing.assert_close(value, expected)
    for key, value in model.named_parameters():
        assert curvature.canonical_name(key) in truth and curvature.diagonals()[key].shape == value.shape


def test_patterns_fit_both_names():
    model = nn.DataParallel(net())
    for pattern in ("encoder*", "module.encoder*"):
        assert estimate(model, loss_fn, [data()], include=[pattern]).names() == ["encoder.0.weight", "encoder.0.bias"]


def test_a_hessian_has_the_plain_names_too():
    model = inner(compiled)()
    operator = hessian_operator(model, lambda m, x: loss_fn(m, data()), [data()[0]])
    assert operator.shape == (51, 51) and operator.matvec(torch.ones(51).numpy()).any()


def test_what_is_called_module_keeps_its_name():
    assert set(map(plain_names(net()), ("module.weight", "encoder.0.weight"))) == {"module.weight", "encoder.0.weight"}
    assert plain_names(nn.DataParallel(net()))("module.module.weight") == "module.weight"


def block_of(*names):
    return Curvature({BlockKey(name, 0, 2): DiagonalBlock(torch.ones(2) * (place + 1), 1) for place, name in enumerate(names)})


def test_names_that_are_there_go_first():
    curvature = block_of("weight", "module.weight")
    delta = {"module.weight": torch.ones(2)}
    assert float(curvature.quadratic(delta)) == 2 and curvature.canonical_name("module.weight") == "module.weight"
    curvature.check({"weight": torch.ones(2), "module.weight": torch.ones(2)})


@pytest.mark.parametrize(
    "blocks, state, first, second",
    [
        (["weight"], ["module.weight", "_orig_mod.weight"], "module.weight", "_orig_mod.weight"),
        (["a.module.weight", "module.a.weight"], ["a.weight"], "a.module.weight", "module.a.weight"),
    ],
)
def test_two_names_that_become_one_are_both_named(blocks, state, first, second):
    curvature, held = block_of(*blocks), {name: torch.ones(2) for name in state}
    for call in (lambda: curvature.check(held), lambda: curvature.quadratic(held)):
        with pytest.raises(InputError, match=f"{first} and {second} are both .*weight but for"):
            call()
    with pytest.raises(InputError, match="are both weight but for"):
        check_distinct({"module.weight": "weight", "weight": "weight"})


def test_matching_names():
    assert matched(["a", "b"], {"module.a", "b", "c"}) == {"a": "module.a", "b": "b"}
    assert unwrapped("module._orig_mod.a.module.b") == "a.b" and unwrapped("module") == "module"
    found = ByName({"a": torch.ones(1)})
    assert "module.a" in found and found["_orig_mod.a"] is found["a"] and found.get("b") is None and "b" not in found
    with pytest.raises(KeyError):
        found["b"]


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
def test_torchscript_is_refused(wrap):
    with pytest.raises(InputError, match="TorchScript"):
        estimate(wrap(torch.jit.script(net())), loss_fn, [data()])


def test_an_inner_script_goes_item_by_item_and_is_named():
    model = net()
    model.encoder = torch.jit.script(model.encoder)
    found, exact = estimate(model, loss_fn, [data()]), estimate(net(), loss_fn, [data()], structure="diagonal")
    for name in ("encoder.0.weight", "encoder.0.bias"):
        assert "TorchScript module encoder" in found.metadata["notes"][name]
        torch.testing.assert_close(found.diagonals()[name], exact.diagonals()[name])
    assert "module.weight" not in found.metadata["notes"]
