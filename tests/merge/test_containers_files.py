"""Checkpoints of one file: what is read of them, and that writing them again changes nothing."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from container_cases import FILES, TORCH, bits, content, icefall, lightning, odd_state, rewrite, safetensors
from safetensors.torch import load_file, save_file
from torch import nn

from asrcl.exceptions import InputError
from asrcl.merge.containers import Outline, load_state, open_checkpoint
from asrcl.merge.containers.tensor_files import DTYPES


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_gives_the_model_that_was_saved(tmp_path, layout):
    path = layout(tmp_path)
    found = dict(content(path))
    assert found == {name: bits(tensor) for name, tensor in odd_state().items()}
    assert {name: bits(tensor) for name, tensor in load_state(path).items()} == found
    if layout is not safetensors:  # save_file sorts
        assert list(found) == list(odd_state())


@pytest.mark.parametrize("layout", FILES)
def test_writing_all_tensors_again_changes_nothing(tmp_path, layout):
    source = layout(tmp_path)
    out = rewrite(source, tmp_path / "new" / f"again{source.suffix}")
    assert content(out) == content(source)
    with open_checkpoint(source) as first, open_checkpoint(out) as second:
        before, after = ((o.kind, o.extras, o.wrapper, o.prefix) for o in (first.describe(), second.describe()))
    assert before == after


@pytest.mark.parametrize("layout", TORCH)
def test_what_is_around_the_state_dict_is_put_back(tmp_path, layout):
    source = layout(tmp_path)
    out = rewrite(source, tmp_path / f"out{source.suffix}")
    before, after = (torch.load(path, weights_only=False) for path in (source, out))
    assert type(before) is type(after)
    assert list(after) == [key for key in before if key != "model_avg"]
    for key, value in after.items():
        if key not in ("model", "state_dict", "model_state_dict", "optimizer") and not isinstance(value, torch.Tensor):
            assert value == before[key] and type(value) is type(before[key])


def test_the_running_average_of_icefall_is_left_out_with_a_note(tmp_path):
    source = icefall(tmp_path)
    with open_checkpoint(source) as checkpoint:
        origin = checkpoint.describe()
    assert any("model_avg" in note for note in origin.notes)
    assert "model_avg" not in origin.extras and "exp_dir" in origin.extras
    again = torch.load(rewrite(source, tmp_path / "out.pt"), weights_only=False)
    assert "model_avg" not in again and again["exp_dir"] == Path("exp")
    assert torch.equal(again["optimizer"]["state"][0], torch.ones(2))


def test_prefixes_are_taken_off_and_put_back(tmp_path):
    source = lightning(tmp_path)
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.describe().prefix == "model." and "encoder.weight" in checkpoint.outlines
    out = rewrite(source, tmp_path / "out.ckpt")
    assert all(name.startswith("model.") for name in torch.load(out, weights_only=False)["state_dict"])
    nested = {f"model.model.{name}": tensor for name, tensor in odd_state().items()}
    torch.save({"state_dict": nested, "pytorch-lightning_version": "2.4.0"}, tmp_path / "nested.ckpt")
    assert list(load_state(tmp_path / "nested.ckpt")) == [f"model.{name}" for name in odd_state()]
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in odd_state().items()}
    torch.save(compiled, tmp_path / "compiled.pt")
    assert list(load_state(tmp_path / "compiled.pt")) == list(odd_state())


@pytest.mark.parametrize("names", [["module.a", "b"], ["model.a", "model.b"], ["modules.a", "modules.b"]])
def test_other_prefixes_belong_to_the_model(tmp_path, names):
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "m.pt")
    assert list(load_state(tmp_path / "m.pt")) == names


def test_safetensors_of_a_wrapped_model_keep_prefix_and_metadata(tmp_path):
    source = tmp_path / "m.safetensors"
    state = {"module.b": torch.ones(2), "module.a": torch.zeros(3, dtype=torch.int64)}
    save_file(state, source, metadata={"format": "pt", "x": "y"})
    out = rewrite(source, tmp_path / "out.safetensors")
    assert load_file(out).keys() == {"module.a", "module.b"}
    header = json.loads(out.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert header["__metadata__"] == {"format": "pt", "x": "y"}


@pytest.mark.parametrize("layout", FILES)
def test_every_layout_can_become_safetensors(tmp_path, layout):
    source = layout(tmp_path)
    out = rewrite(source, tmp_path / "new.safetensors", container="safetensors")
    assert content(out) == content(source)
    found = load_file(out)
    assert {name: bits(tensor) for name, tensor in found.items()} == {name: bits(t) for name, t in odd_state().items()}
    if layout is not safetensors:
        assert content(rewrite(source, tmp_path / "by_name.safetensors")) == content(source)


def test_tensors_start_at_multiples_of_their_width(tmp_path):
    state = {"flag": torch.tensor(True), "x": torch.ones(3), "half": torch.ones(3).half(), "n": torch.tensor(1)}
    torch.save(state, tmp_path / "m.pt")
    out = rewrite(tmp_path / "m.pt", tmp_path / "m.safetensors")
    data = out.read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert size % 8 == 0
    for entry in json.loads(data[8 : 8 + size]).values():
        if "dtype" in entry:
            width = {"BOOL": 1, "F32": 4, "F16": 2, "I64": 8}[entry["dtype"]]
            assert entry["data_offsets"][0] % width == 0


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 30)
        self.out = nn.Linear(30, 40)
        self.out.weight = self.embed.weight


def test_tied_tensors_have_data_of_their_own_in_safetensors(tmp_path):
    torch.save(Tied().state_dict(), tmp_path / "m.pt")
    out = rewrite(tmp_path / "m.pt", tmp_path / "m.safetensors")
    found = load_file(out)
    assert torch.equal(found["embed.weight"], found["out.weight"])
    changed = rewrite(tmp_path / "m.pt", tmp_path / "c.safetensors", lambda name, t: t + 1 if name == "out.weight" else t)
    found = load_file(changed)
    assert torch.equal(found["embed.weight"] + 1, found["out.weight"])


def test_tied_tensors_stay_tied_in_torch_files_while_equal(tmp_path):
    torch.save(Tied().state_dict(), tmp_path / "m.pt")
    same = torch.load(rewrite(tmp_path / "m.pt", tmp_path / "same.pt", lambda name, t: t * 2))
    assert same["embed.weight"].data_ptr() == same["out.weight"].data_ptr()
    assert hasattr(same, "_metadata") and "embed" in same._metadata
    other = torch.load(rewrite(tmp_path / "m.pt", tmp_path / "other.pt", lambda name, t: t + 1 if name == "out.weight" else t))
    assert torch.equal(other["embed.weight"] + 1, other["out.weight"])


def test_a_view_is_written_without_the_rest_of_its_memory(tmp_path):
    torch.save({"a": torch.ones(10)}, tmp_path / "m.pt")
    rewrite(tmp_path / "m.pt", tmp_path / "out.pt", lambda name, t: torch.ones(1_000_000)[:10])
    assert (tmp_path / "out.pt").stat().st_size < 10_000


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_shapes_can_change_where_outlines_say_so(tmp_path, suffix):
    torch.save(OrderedDict(odd_state()), tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        outlines = {"new": Outline((2,), torch.float16)} | checkpoint.outlines | {"encoder.weight": torch.ones(6, 3)}
        del outlines["last"]
        with checkpoint.writer(tmp_path / f"out{suffix}", outlines=outlines) as writer:
            writer.write("new", torch.ones(2).half())
            for name, outline in checkpoint.outlines.items():
                if name != "last":
                    writer.write(name, torch.ones(6, 3) if name == "encoder.weight" else checkpoint.read(name))
                assert outline == checkpoint.outlines[name]
    found = load_state(tmp_path / f"out{suffix}")
    assert list(found) == list(outlines) and found["encoder.weight"].shape == (6, 3)


def test_a_written_tensor_may_be_changed_afterwards(tmp_path):
    torch.save({"a": torch.ones(3), "b": torch.ones(3)}, tmp_path / "m.pt")
    buffer = torch.zeros(3)
    with open_checkpoint(tmp_path / "m.pt") as checkpoint, checkpoint.writer(tmp_path / "out.pt") as writer:
        for value, name in enumerate("ab"):
            writer.write(name, buffer.fill_(value))
    assert load_state(tmp_path / "out.pt")["a"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_can_be_written_over_itself(tmp_path, suffix):
    torch.save({"a": torch.ones(3)}, tmp_path / "m.pt")
    path = rewrite(tmp_path / "m.pt", tmp_path / f"n{suffix}")
    state = load_state(path)
    rewrite(path, path, lambda name, t: t * 5)
    assert load_state(path)["a"].tolist() == [5, 5, 5] and state["a"].tolist() == [1, 1, 1]


def test_loaded_tensors_do_not_depend_on_the_file(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"a": torch.arange(100_000.0)}, path)
    state = load_state(path)
    path.write_bytes(b"")
    assert state["a"].sum() == torch.arange(100_000.0).sum()


def test_reading_never_changes_the_file(tmp_path):
    path = safetensors(tmp_path)
    before = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("encoder.weight").zero_()
    assert path.read_bytes() == before


def test_the_digest_is_that_of_sha256sum(tmp_path):
    path = safetensors(tmp_path)
    with open_checkpoint(path) as checkpoint:
        listed = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
        assert checkpoint.describe().sha256 == listed.split()[0]


MEMORY = """
import sys, torch
from pathlib import Path
from asrcl.merge.containers import open_checkpoint
torch.set_num_threads(1)
folder = Path(sys.argv[1])
def resident(what):
    return int(next(l for l in open("/proc/self/status") if l.startswith(what)).split()[1]) / 1024
for suffix in (".safetensors", ".pt"):
    path = folder / f"big{suffix}"
    if suffix == ".safetensors":
        outlines = {f"t{i}": torch.empty(2_500_000, device="meta") for i in range(30)}
        base = resident("VmHWM")
        with open_checkpoint(folder / "small.pt") as c, c.writer(path, outlines=outlines) as w:
            for i in reversed(range(30)):
                w.write(f"t{i}", torch.full((2_500_000,), float(i)))
        assert resident("VmHWM") - base < 20, ("writing", resident("VmHWM") - base)
    else:
        torch.save({f"t{i}": torch.ones(2_500_000) for i in range(30)}, path)
    assert path.stat().st_size >= 300_000_000
    base = resident("VmRSS")
    with open_checkpoint(path) as c:
        assert resident("VmRSS") - base < 5, ("opening", suffix)
        total = c.read("t7").sum().item()
        grown = resident("VmRSS") - base
    assert grown < 20, ("reading", suffix, grown)
    assert total == (2_500_000 if suffix == ".pt" else 7 * 2_500_000)
    path.unlink()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_300_megabytes_are_read_and_written_tensor_by_tensor(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "small.pt")
    freed_at_once = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # else glibc keeps several freed tensors
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, env=freed_at_once)
    assert done.returncode == 0, done.stderr


def test_there_is_no_plan_for_tensors_that_safetensors_cannot_hold(tmp_path):
    torch.save({"z": torch.ones(2, dtype=torch.complex128)}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"m\.safetensors: z .*complex128.* cannot be written"):
        rewrite(tmp_path / "m.pt", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("shape", [(3, 2), (), (0, 2)], ids=["matrix", "scalar", "empty"])
def test_every_type_is_written_bit_for_bit(tmp_path, dtype, shape):
    count = torch.Size(shape).numel() * dtype.itemsize
    data = torch.arange(count, dtype=torch.uint8).remainder(2)
    tensor = torch.frombuffer(bytearray(data.tolist()), dtype=dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    torch.save({"x": tensor, "flag": torch.tensor(True)}, tmp_path / "m.pt")
    for name in ("out.safetensors", "out.pt"):
        assert content(rewrite(tmp_path / "m.pt", tmp_path / name)) == content(tmp_path / "m.pt")
    assert bits(load_file(tmp_path / "out.safetensors")["x"]) == bits(tensor)


def test_a_view_of_conjugates_and_a_parameter_are_written_as_they_read(tmp_path):
    torch.save({"z": torch.tensor([1 + 2j, 3 - 1j]), "p": nn.Parameter(torch.ones(2))}, tmp_path / "m.pt")
    out = rewrite(tmp_path / "m.pt", tmp_path / "m.safetensors", lambda name, t: t.conj() if name == "z" else nn.Parameter(t))
    assert load_file(out)["z"].tolist() == [1 - 2j, 3 + 1j] and load_file(out)["p"].tolist() == [1, 1]
