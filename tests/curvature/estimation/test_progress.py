"""Estimates on their way: broken off and gone on with, stopped early, watched, off-loaded; and what they hold meanwhile."""

import functools
import gc
import sys
import weakref

import curvature_processes as work
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asrcl.curvature import BlockKey, EigenBlock, KroneckerBlock, estimate, storage
from asrcl.curvature.estimation.loop import cudnn_gradients
from asrcl.curvature.estimation.progress import Watcher
from asrcl.curvature.estimation.sharing import Group
from asrcl.exceptions import InputError
from asrcl.testing import run_in_processes

ESTIMATE = sys.modules[estimate.__module__]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def assert_identical(found, expected):
    (blocks, metadata), (expected_blocks, expected_metadata) = work.plain(found), work.plain(expected)
    assert metadata == expected_metadata
    assert list(blocks) == list(expected_blocks)
    for key, (kind, counts, tensors) in blocks.items():
        expected_kind, expected_counts, expected_tensors = expected_blocks[key]
        assert (kind, counts, tensors.keys()) == (expected_kind, expected_counts, expected_tensors.keys())
        for role, tensor in tensors.items():
            assert tensor.dtype == expected_tensors[role].dtype and torch.equal(tensor, expected_tensors[role]), (key, role)


# ---- going on


@functools.cache
def undisturbed(name):
    return work.run_resumed(name, None, work.TroubledLoss())


def break_off(name, path, batches):
    """Break an estimate off in the batch after so many."""
    single = name.startswith("dense")  # which asks for single items only, here three a batch
    with pytest.raises(ArithmeticError, match="in the middle"):
        work.run_resumed(name, str(path), work.TroubledLoss(3 * batches + 2 if single else batches + 1, "raise", single))


@pytest.mark.parametrize("done", [0, 1, 3])
@pytest.mark.parametrize("name", work.RESUMED)
def test_an_estimate_broken_off_goes_on_to_the_bit(tmp_path, name, done):
    path, again = tmp_path / "sums", work.TroubledLoss(single=name.startswith("dense"))
    break_off(name, path, done)
    assert [file.name for file in tmp_path.iterdir()] == ["sums"] * (done > 0)
    assert_identical(work.run_resumed(name, str(path), again), undisturbed(name))
    assert not list(tmp_path.iterdir()), "neither the checkpoint nor a temporary file is left"
    count = work.RESUMED[name][0]
    expected = {"cut batch": 4 - done, "dense mc": 3 * (count - done), "ekfac": count - done + count}
    assert again.calls == expected.get(name, count - done), "only the batches left are run"


def test_ekfac_broken_off_in_its_second_pass(tmp_path):
    break_off("ekfac", tmp_path / "sums", 4 + 2)
    again = work.TroubledLoss()
    assert_identical(work.run_resumed("ekfac", str(tmp_path / "sums"), again), undisturbed("ekfac"))
    assert again.calls == 4, "the first pass was done"


@pytest.mark.parametrize("name", ["kron", "mc", "diagonal"])
def test_a_killed_estimate_goes_on_to_the_bit(tmp_path, name):
    path = str(tmp_path / "sums")
    with pytest.raises(RuntimeError, match="exit code -9"):
        run_in_processes(work.killed, 1, name, path, 4, start="forkserver")
    assert [file.name for file in tmp_path.iterdir()] == ["sums"]
    again = work.TroubledLoss()
    assert_identical(work.run_resumed(name, path, again), undisturbed(name))
    assert again.calls == 2 and not list(tmp_path.iterdir())


def test_killed_while_a_checkpoint_is_written(tmp_path):
    path = str(tmp_path / "sums")
    with pytest.raises(RuntimeError, match="exit code -9"):
        run_in_processes(work.killed_in_rename, 1, "kron", path, 3, start="forkserver")
    assert len(list(tmp_path.glob(".sums.*.part"))) == 1
    again = work.TroubledLoss()
    assert_identical(work.run_resumed("kron", path, again), undisturbed("kron"))
    assert again.calls == 3 and not list(tmp_path.iterdir()), "what the killed write left is gone too"


def test_equal_inputs_go_on_being_shared(tmp_path):
    break_off("kron", tmp_path / "sums", 2)
    resumed = work.run_resumed("kron", str(tmp_path / "sums"), work.TroubledLoss())
    inputs = {id(resumed.blocks[BlockKey(f"{name}.weight", 0, 4)].input.matrix) for name in ("query", "key", "value")}
    assert len(inputs) == 1


def test_checkpoints_come_at_their_time(tmp_path):
    path, seen = tmp_path / "deep" / "sums", []
    options = {"checkpoint": path, "progress": lambda items: seen.append(path.exists())}
    estimate(work.zoo(), work.zoo_loss, work.zoo_batches(3), checkpoint_seconds=3600, **options)
    assert seen == [False] * 3
    estimate(work.zoo(), work.zoo_loss, work.zoo_batches(3), checkpoint_seconds=0, **options)
    assert seen[3:] == [False, True, True] and not path.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"fisher": "mc"}, {"structure": "diagonal"}, {"stride": 2}, {"layers": "linear"}, {"exclude": ["out.*"]},
        {"max_items": 8}, {"largest_factor": 3}, {"label_smoothing": True}, {"parts": ["cross_entropy"]},
    ],
)  # fmt: skip
def test_the_checkpoint_of_other_options_is_refused(tmp_path, change):
    path = tmp_path / "sums"
    break_off("kron", path, 2)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"sums: .*another estimate") as caught:
        work.run_resumed("kron", str(path), work.TroubledLoss(), **change)
    assert "\n" not in str(caught.value) and "delete it" in str(caught.value)
    assert path.read_bytes() == before


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    path = tmp_path / "sums"
    break_off("kron", path, 2)
    model = work.zoo()
    with torch.no_grad():
        model.out.bias[0] += 1
    with pytest.raises(InputError, match="another estimate"):
        estimate(model, work.zoo_loss, work.zoo_batches(5), padding=work.zoo_masks, checkpoint=path)


def test_a_curvature_in_the_place_of_the_checkpoint_is_kept(tmp_path):
    path = tmp_path / "curvature.safetensors"
    undisturbed("kron").save(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="another estimate"):
        work.run_resumed("kron", str(path), work.TroubledLoss())
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", ["middle", "cut", "empty"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "sums"
    break_off("kron", path, 2)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"middle": content, "cut": content[:-50], "empty": b""}[damage])
    with pytest.raises(InputError, match="sums: a damaged checkpoint") as caught:
        work.run_resumed("kron", str(path), work.TroubledLoss())
    assert "\n" not in str(caught.value) and "delete it to start over" in str(caught.value)


@pytest.mark.parametrize("batches", [work.zoo_batches(5, size=2), work.zoo_batches(1)])
def test_other_batches_than_those_of_the_checkpoint_are_refused(tmp_path, batches):
    path = tmp_path / "sums"
    break_off("kron", path, 2)
    with pytest.raises(InputError, match=r"batches differ .*checkpoint.*6 items"):
        estimate(work.zoo(), work.zoo_loss, batches, padding=work.zoo_masks, checkpoint=path)


def test_a_large_checkpoint_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_SHARD_BYTES", 100)
    break_off("diagonal", tmp_path / "sums", 2)
    assert [file.name for file in tmp_path.iterdir()] == ["sums"]


class LateGradient(nn.Module):
    """A map that runs in every batch; only from the third batch on does the loss depend on what comes out."""

    def __init__(self):
        super().__init__()
        self.early, self.late = nn.Linear(3, 3), nn.Linear(3, 3)

    def loss(self, _, batch):
        late = self.late(batch)
        return (self.early(batch) + (late if batch[0, 0] > 0 else late.detach())).square().sum(1).mean()


def test_inputs_whose_gradient_comes_later_are_kept(tmp_path):
    torch.manual_seed(0)
    model, batches = LateGradient().double(), [torch.rand(2, 3).double() * sign for sign in (-1, -1, 1)]
    whole = estimate(model, model.loss, batches)
    path = tmp_path / "sums"

    def broken(model, batch):
        if batch[0, 0] > 0:
            raise ArithmeticError
        return model.loss(model, batch)

    with pytest.raises(ArithmeticError):
        estimate(model, broken, batches, checkpoint=path, checkpoint_seconds=0)
    assert_identical(estimate(model, model.loss, batches, checkpoint=path), whole)
    assert whole.blocks[BlockKey("late.weight", 0, 3)].positions == 6


# ---- stopping early


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.input = nn.Linear(3, 4), nn.LayerNorm(4), nn.Parameter(torch.randn(4))

    def forward(self, x):
        return self.norm(torch.tanh(self.first(x))) * self.input


def plain_loss(model, x):
    return (model(x) - 1).square().sum(1).mean()


def rows(count, size=8, drift=0.0):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, generator=generator) * (1 + drift * n) for n in range(count)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Plain()


@pytest.mark.parametrize("structure", ["kron", "diagonal", "dense", "ekfac"])
def test_tolerance_stops_early(model, structure):
    batches = rows(100)
    stopped = estimate(model, plain_loss, batches, structure=structure, tolerance=0.1)
    used = stopped.metadata["batches"]
    assert stopped.metadata["converged"] is True and 4 < used < 100
    first = estimate(model, plain_loss, batches, structure=structure, max_items=stopped.metadata["items"])
    assert first.metadata["converged"] is False and first.metadata["batches"] == used
    del stopped.metadata["converged"], first.metadata["converged"]
    assert_identical(stopped, first)
    assert estimate(model, plain_loss, batches, structure=structure, tolerance=0.03).metadata["batches"] > used


@pytest.mark.parametrize("tolerance, batches", [(1e-9, rows(40)), (0.05, rows(40, drift=1.0))])
def test_no_early_stop(model, tolerance, batches):
    curvature = estimate(model, plain_loss, batches, tolerance=tolerance)
    assert (curvature.metadata["batches"], curvature.metadata["converged"]) == (40, False)


def test_even_constant_data_needs_five_batches(model):
    assert estimate(model, plain_loss, rows(1) * 20, tolerance=0.5).metadata["batches"] == 5
    assert estimate(model, plain_loss, rows(1) * 4, tolerance=0.5).metadata["converged"] is False


def test_parameters_without_adapter_are_watched_too(model):
    names = []

    class Spy(Watcher):
        def converged(self, work):
            names.append(set(work.diagonals()))
            return super().converged(work)

    model.mixed = nn.Parameter(torch.randn(4, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ESTIMATE, "Watcher", Spy)
        loss = lambda m, x: torch.einsum("ni,oi->no", m(x), m.mixed).square().sum(1).mean()  # noqa: E731
        estimate(model, loss, rows(2), tolerance=1e-9)
    assert {"mixed.fallback", "input.square", "norm.weight.square"} <= names[-1]
    assert any(name.startswith("first.weight") and name.endswith(".input") for name in names[-1])


@pytest.mark.parametrize("done", [3, 4, 7])
def test_a_watched_estimate_broken_off_stops_where_it_would_have(model, tmp_path, done):
    batches, path = rows(100), tmp_path / "sums"
    with work.unchecked():
        whole = estimate(model, plain_loss, batches, tolerance=0.06)
    assert whole.metadata["batches"] > 8
    calls = []

    def broken(model, batch):
        calls.append(1)
        if len(calls) > done:
            raise ArithmeticError
        return plain_loss(model, batch)

    with work.unchecked(), pytest.raises(ArithmeticError):
        estimate(model, broken, batches, tolerance=0.06, checkpoint=path, checkpoint_seconds=0)
    with work.unchecked():
        assert_identical(estimate(model, plain_loss, batches, tolerance=0.06, checkpoint=path), whole)


def test_a_watched_estimate_killed_after_its_stop_stays_stopped(model, tmp_path, monkeypatch):
    batches, path = rows(100), tmp_path / "sums"
    whole = estimate(model, plain_loss, batches, tolerance=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(ESTIMATE, "check_blocks", lambda blocks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            estimate(model, plain_loss, batches, tolerance=0.1, checkpoint=path, checkpoint_seconds=0)
    assert path.exists()
    assert_identical(estimate(model, plain_loss, batches, tolerance=0.1, checkpoint=path), whole)


def test_tolerance_is_for_one_process():
    with pytest.raises(InputError, match="max_items"):
        Watcher(0.1, Group(0, 2))
    assert Watcher(None, Group(0, 2)).stopped is False


# ---- progress, precision, memory


@pytest.mark.parametrize("structure, expected", [("kron", [8, 16, 20]), ("ekfac", [8, 16, 20] * 2), ("dense", [8, 16, 20])])
def test_progress_counts_items(model, structure, expected):
    seen = []
    estimate(model, plain_loss, [*rows(2), *rows(1, size=4)], structure=structure, progress=seen.append)
    assert seen == expected


@pytest.mark.parametrize("structure", ["kron", "diagonal", "ekfac"])
def test_autocast_sums_in_single_precision(structure):
    model, batches = work.zoo(torch.float32), work.zoo_batches(4)

    def cast(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return work.zoo_loss(lambda b: model(b).float(), batch)

    options = {"padding": work.zoo_masks, "structure": structure}
    exact, half = (estimate(model, loss, batches, **options) for loss in (work.zoo_loss, cast))
    assert list(half.blocks) == list(exact.blocks)
    torch.manual_seed(1)
    for key, block in half.blocks.items():
        assert {tensor.dtype for tensor in block.tensors().values()} == {torch.float32}, key
        truth = exact.blocks[key]
        error = (block.diagonal - truth.diagonal).norm() / truth.diagonal.norm()
        assert error < 0.03 and (error > 0 or key.name == "table.weight"), (key, error)


@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "dense"])
def test_offload_on_a_cpu_changes_nothing(structure):
    plain, moved = (
        estimate(work.zoo(), work.zoo_loss, work.zoo_batches(3), structure=structure, offload=offload)
        for offload in (False, True)
    )
    assert_identical(moved, plain)


def live_bytes():
    """Of all dense tensors that Python knows (other tests may keep sparse ones, which have no storage)."""
    tensors = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    storages = [o.untyped_storage() for o in tensors if o.layout == torch.strided and o.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("structure, fisher", [("kron", "empirical"), ("kron", "mc"), ("ekfac", "mc"), ("diagonal", "mc")])
def test_sums_are_all_that_stays(structure, fisher):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 100), nn.Tanh(), nn.Linear(100, 5), nn.LayerNorm(5))
    activations, during = [], []
    for layer in model:
        layer.register_forward_hook(lambda _, inputs, output: activations.append(weakref.ref(output)))

    def loss(model, batch):
        assert not any(ref() is not None for ref in activations), "the activations of the batch before are still there"
        activations.clear()
        during.append(live_bytes())
        return F.cross_entropy(model(batch["x"]), batch["y"])

    batches = [{"x": torch.randn(64, 300), "y": torch.randint(5, (64,))} for _ in range(4)]
    gc.collect()
    before = live_bytes()
    curvature = estimate(model, loss, batches, structure=structure, fisher=fisher)
    assert not any(ref() is not None for ref in activations) and len(activations) == 4
    assert len(set(during[1:4])) == 1, "nothing grows from batch to batch"
    kept = {id(t): t for block in curvature.blocks.values() for t in block.tensors().values()}
    assert abs(live_bytes() - before - sum(t.nbytes for t in kept.values())) < 4096
    if structure != "ekfac":
        sums = sum(t.nbytes for t in kept.values())
        assert during[1] - before < sums + batches[0]["x"].nbytes, "the sums are all that grows"


# ---- on a GPU


def test_recurrent_layers_are_in_training_mode_but_for_their_dropout():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LSTM(3, 4, num_layers=2, dropout=0.5), nn.GRU(3, 4), nn.Dropout(0.5)).eval(), torch.randn(5, 2, 3)
    expected = model[0](x)[0]
    with pytest.raises(ZeroDivisionError), cudnn_gradients(model, "cpu"):
        assert model[0].training and model[1].training and not model[2].training
        assert torch.equal(model[0](x)[0], expected)
        raise ZeroDivisionError
    assert not model[0].training and model[0].dropout == 0.5
    with cudnn_gradients(model):
        assert not model[0].training, "only a GPU needs it"


def on_gpu(batches):
    return [batch.to(torch.device("cuda")) for batch in batches]


@needs_cuda
@pytest.mark.parametrize("structure", ["kron", "ekfac", "diagonal", "dense"])
def test_gpu_equals_cpu_and_keeps_its_sums_there(structure):
    options = {"structure": structure, "padding": work.zoo_masks}
    cpu = estimate(work.zoo(), work.zoo_loss, work.zoo_batches(3), **options)
    gpu = estimate(work.zoo().cuda(), work.zoo_loss, work.zoo_batches(3), **options)
    assert list(gpu.blocks) == list(cpu.blocks)
    for key, block in gpu.blocks.items():
        assert {tensor.device.type for tensor in block.tensors().values()} == {"cuda"}
        if not isinstance(block, EigenBlock):
            torch.testing.assert_close(block.diagonal.cpu(), cpu.blocks[key].diagonal, rtol=1e-9, atol=1e-12)


@needs_cuda
@pytest.mark.parametrize("structure", ["kron", "diagonal", "dense"])
def test_offloaded_sums_are_pinned(structure, tmp_path):
    seen = []

    class Spy(Watcher):
        def converged(self, work):
            seen.extend(t for t in work.saved()[0].values() if t.numel())
            return super().converged(work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ESTIMATE, "Watcher", Spy)
        moved = estimate(work.zoo().cuda(), work.zoo_loss, work.zoo_batches(3), structure=structure, offload=True)
    assert seen and all(tensor.device.type == "cpu" and tensor.is_pinned() for tensor in seen)
    plain = estimate(work.zoo().cuda(), work.zoo_loss, work.zoo_batches(3), structure=structure)
    for key, block in moved.blocks.items():
        assert {tensor.device.type for tensor in block.tensors().values()} == {"cpu"}
        torch.testing.assert_close(block.diagonal, plain.blocks[key].diagonal.cpu(), rtol=1e-9, atol=1e-12)


@needs_cuda
@pytest.mark.parametrize("offload", [False, True])
def test_a_gpu_estimate_goes_on(tmp_path, offload):
    path, model, batches = tmp_path / "sums", work.zoo().cuda(), work.zoo_batches(4)
    options = {"padding": work.zoo_masks, "checkpoint": path, "checkpoint_seconds": 0, "offload": offload}
    with pytest.raises(ArithmeticError):
        estimate(model, work.TroubledLoss(3, "raise"), batches, **options)
    resumed = estimate(model, work.zoo_loss, batches, **options)
    whole = estimate(model, work.zoo_loss, batches, padding=work.zoo_masks, offload=offload)
    for key, block in resumed.blocks.items():
        for role, tensor in block.tensors().items():
            expected = whole.blocks[key].tensors()[role]
            assert tensor.device == expected.device
            torch.testing.assert_close(tensor, expected, rtol=1e-9, atol=1e-12)


@needs_cuda
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("products", ["float32", "tf32", "bfloat16"])
def test_the_tf32_flag_is_restored(model, before, products):
    flag, inside = torch.backends.cuda.matmul.allow_tf32, []

    def loss(model, batch):
        inside.append(torch.backends.cuda.matmul.allow_tf32)
        return plain_loss(model, batch)

    torch.backends.cuda.matmul.allow_tf32 = before
    try:
        curvature = estimate(model.cuda(), loss, on_gpu(rows(2)), products=products)
        assert torch.backends.cuda.matmul.allow_tf32 is before and set(inside) == {products == "tf32"}
        with pytest.raises(ArithmeticError):
            estimate(model, work.TroubledLoss(1, "raise"), work.zoo_batches(1), products=products)
        assert torch.backends.cuda.matmul.allow_tf32 is before
    finally:
        torch.backends.cuda.matmul.allow_tf32 = flag
    exact = estimate(model, plain_loss, on_gpu(rows(2)))
    for key, block in curvature.blocks.items():
        assert isinstance(block, KroneckerBlock) or block.kind == "diagonal"
        torch.testing.assert_close(block.diagonal, exact.blocks[key].diagonal, rtol=0.02, atol=1e-4)
