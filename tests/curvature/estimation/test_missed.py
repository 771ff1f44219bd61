"""Uses that no capture can see: a parameter with one goes item by item, and is named."""

import pytest
import torch
import torch.nn.functional as F
from curvature_cases import Items, make_items, seeded
from fisher_cases import assert_same_blocks
from torch import nn
from torch.utils.checkpoint import checkpoint

from asrcl.curvature import correct, estimate
from asrcl.curvature.estimation import missed

torch.set_num_threads(1)
N, WIDTH, WORDS = 5, 4, 7


class Opaque(torch.autograd.Function):
    """A linear map that no operation shows."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


class Shift(torch.autograd.Function):
    """An addition that no operation shows."""

    @staticmethod
    def forward(ctx, x, bias):
        return x + bias

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient.flatten(0, -2).sum(0)


@torch.jit.script
def scripted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight.t()


class Net(nn.Module):
    """An embedding, a square map and an output; `use` is what else is done with them."""

    def __init__(self, use):
        super().__init__()
        self.table, self.map, self.norm = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.conv, self.use = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), use

    def forward(self, ids):
        hidden = self.norm(torch.tanh(self.map(self.table(ids))))
        return self.use(self, self.conv(hidden.mT).mT)


def words(count=N):
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, WORDS, (count, 3), generator=generator), torch.randint(0, WORDS, (count,), generator=generator)


def loss_fn(net, batch):
    return F.cross_entropy(net(batch[0]).mean(1), batch[1])


def truth_of(net, loss_fn, batch):
    squares = {}
    for item in range(len(batch[0])):
        net.zero_grad()
        loss_fn(net, (batch[0][item : item + 1], batch[1][item : item + 1])).backward()
        for name, parameter in net.named_parameters():
            squares[name] = squares.get(name, 0) + parameter.grad.square() / len(batch[0])
    net.zero_grad()
    return squares


USES = {
    "tied output": (lambda n, h: Opaque.apply(h, n.table.weight), {"table.weight"}),
    "map again": (lambda n, h: F.linear(Opaque.apply(h, n.map.weight), n.table.weight), {"map.weight"}),
    "shift": (lambda n, h: Shift.apply(h, n.map.bias) @ n.table.weight.T, {"map.bias"}),
    "norm": (lambda n, h: Shift.apply(h, n.norm.weight) @ n.table.weight.T, {"norm.weight"}),
    "kernel": (lambda n, h: Shift.apply(h, n.conv.weight.flatten()[:WIDTH]) @ n.table.weight.T, {"conv.weight"}),
    "a part": (
        lambda n, h: torch.cat([Opaque.apply(h, n.map.weight[:2]), h], -1) @ n.table.weight.T.repeat(2, 1)[:6], {"map.weight"}
    ),
    "script": (lambda n, h: scripted(h, n.table.weight), {"table.weight"}),
    "in a checkpoint": (
        lambda n, h: checkpoint(lambda x: Opaque.apply(x, n.table.weight), h, use_reentrant=False), {"table.weight"}
    ),
    "in a reentrant checkpoint": (
        lambda n, h: checkpoint(lambda x: Opaque.apply(x, n.table.weight), h, use_reentrant=True), {"table.weight"}
    ),
    "nothing": (lambda n, h: h @ n.table.weight.T, set()),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "dense"])
@pytest.mark.parametrize("name", USES)
def test_a_missed_use_makes_a_parameter_go_item_by_item(name, structure, dtype):
    use, hidden = USES[name]
    net, batch = seeded(lambda: Net(use)).to(dtype), words()
    truth = truth_of(net, loss_fn, batch)
    found = estimate(net, loss_fn, [batch], structure=structure)
    notes = {n for n, why in found.metadata["notes"].items() if "cannot be seen" in why}
    foreign = {n for n, why in found.metadata["notes"].items() if "item by item" in why}
    if structure != "dense":
        assert hidden <= foreign and notes <= hidden
        assert {row.name.split("[")[0] for row in found.report() if "item by item" in row.note} == foreign
    diagonals = found.diagonals()
    small = {"map.bias", "norm.weight", "norm.bias", "table.weight"}
    for parameter in truth if structure in ("diagonal", "dense") else hidden | small:
        if (parameter == "table.weight" and name in ("nothing", "tied output", "script")) or parameter != "table.weight":
            torch.testing.assert_close(diagonals[parameter], truth[parameter], rtol=1e-3, atol=1e-7, msg=parameter)


def test_layers_linear_leaves_the_parameter_out_and_says_why():
    net, batch = seeded(lambda: Net(USES["map again"][0])), words()
    found = estimate(net, loss_fn, [batch], layers="linear")
    assert "map.weight" not in found.names() and "cannot be seen" in found.metadata["uncovered"]["map.weight"]
    assert "its use as a table" in found.metadata["notes"]["table.weight"]


def test_a_correction_looks_too(monkeypatch):
    net, batch = seeded(lambda: Net(USES["map again"][0])), words()
    with monkeypatch.context() as patch:
        patch.setattr(missed, "_difference", lambda *_: "")
        wrong = estimate(net, loss_fn, [batch])
    assert {row.name: row.kind for row in wrong.report()}["map.weight"] == "kronecker"
    corrected = correct(wrong, net, loss_fn, [batch])
    assert "eigenvalues not corrected: used by an operation that cannot be seen" in corrected.metadata["notes"]["map.weight"]


@pytest.mark.parametrize("fisher", ["mc", "exact"])
def test_drawn_labels_are_looked_at_with_those_of_the_data(fisher):
    net, batch = seeded(lambda: Net(USES["map again"][0])), words()
    found = estimate(net, loss_fn, [batch], fisher=fisher)
    assert "cannot be seen" in found.metadata["notes"]["map.weight"]
    assert "of 1 they are not" in found.metadata["checks"]["uses"]


def test_batches_that_cannot_be_split_leave_the_parameter_out():
    class Whole:
        def __init__(self, ids, labels):
            self.pair = ids, labels

        def __len__(self):
            return len(self.pair[0])

    net = seeded(lambda: Net(USES["map again"][0]))
    found = estimate(net, lambda n, b: loss_fn(n, b.pair), [Whole(*words())])
    assert "map.weight" not in found.names()
    why = found.metadata["uncovered"]["map.weight"]
    assert "cannot be seen" in why and "no items()" in why


class Attention(nn.Module):
    """Gradients that cancel: the keys' bias has none, and what comes before a mean over the batch has little."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=dtype)
        self.last = nn.Linear(8, 3, dtype=dtype)

    def forward(self, x):
        return self.last(self.layer(x.to(self.last.weight.dtype))).mean(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("positions", [6, 300])
def test_rounding_is_no_missed_use(dtype, positions):
    torch.manual_seed(0)
    net, x = Attention(dtype), torch.randn(4, positions, 8)
    found = estimate(net, lambda n, b: F.cross_entropy(n(b[0]).float(), b[1]), [(x, torch.tensor([0, 1, 2, 0]))])
    assert not found.metadata["notes"] and "of 0 they are not" in found.metadata["checks"]["uses"]


def test_autocast_is_no_missed_use():
    torch.manual_seed(0)
    net, x = Attention(torch.float32), torch.randn(4, 50, 8)

    def autocast(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(batch[0]).float(), batch[1])

    assert not estimate(net, autocast, [(x, torch.tensor([0, 1, 2, 0]))]).metadata["notes"]


def test_gradients_and_hooks_of_the_user_are_left_alone():
    net, batch = seeded(lambda: Net(USES["nothing"][0])), words()
    loss_fn(net, batch).backward()
    before, called = {name: p.grad for name, p in net.named_parameters()}, []
    copies = {name: p.grad.clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: called.append(p))
    estimate(net, loss_fn, [batch])
    assert not called
    for name, parameter in net.named_parameters():
        assert parameter.grad is before[name] and torch.equal(parameter.grad, copies[name]) and parameter.requires_grad


def test_a_model_that_cannot_be_differentiated_by_its_weights_says_so():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            hidden = self.first(x)
            output = self.last(hidden)
            hidden.add_(1)
            return output

    items = make_items((2, 2))
    found = estimate(seeded(InPlace), lambda n, b: n(b.x).square().mean(), [Items(items.x, items.lengths)])
    assert found.metadata["checks"]["uses"].startswith("not checked: no gradients of the parameters")
    assert {row.kind for row in found.report()} == {"kronecker", "diagonal"}


def test_a_tied_table_is_exact_whatever_the_batches():
    net, batch = seeded(lambda: Net(USES["nothing"][0])), words()
    singles = [(batch[0][k : k + 1], batch[1][k : k + 1]) for k in range(N)]
    one, all_ = estimate(net, loss_fn, singles), estimate(net, loss_fn, [batch])
    assert_same_blocks(all_, one)
    torch.testing.assert_close(all_.diagonals()["table.weight"], truth_of(net, loss_fn, batch)["table.weight"])
    drawn = [estimate(net, loss_fn, [batch], fisher="mc", samples=samples, seed=5) for samples in (1, 4)]
    assert all(kind == "diagonal" for c in drawn for name, _, kind, *_ in c.report() if name == "table.weight")
