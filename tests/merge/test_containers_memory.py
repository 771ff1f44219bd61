"""Models larger than memory: a process never holds more than a tensor or two, and a full disk is noticed before the work."""

import hashlib
import resource
import subprocess
import sys
import time

import pytest
import torch
from container_cases import bits, nemo, odd_state, rewrite
from safetensors.torch import save_file

from asrcl.exceptions import InputError
from asrcl.merge.containers import load_state, open_checkpoint, pickled

WHOLE = """
import sys, torch
from pathlib import Path
from asrcl.merge.containers import load_state, open_checkpoint
torch.set_num_threads(1)
source, out = Path(sys.argv[1]), Path(sys.argv[2])

def resident(what):
    return int(next(l for l in open("/proc/self/status") if l.startswith(what)).split()[1]) / 1024

load_state(source.with_name("small" + source.suffix))  # what torch loads on first use
with open_checkpoint(source.with_name("small" + source.suffix)) as c, c.writer(out) as w:
    w.write("a", c.read("a"))
start = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
with open_checkpoint(source) as c, c.writer(out) as w:
    for name in c.outlines:
        w.write(name, c.read(name) + 1)
print(resident("VmHWM") - start)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("suffix, limit", [(".pt", 200), (".safetensors", 80)])
def test_a_whole_model_passes_through_little_memory(tmp_path, suffix, limit):
    state = {f"t{number}": torch.full((2_500_000,), float(number)) for number in range(16)}  # 160 MB
    for name, content in (("small", {"a": torch.ones(1)}), ("big", state)):
        (save_file if suffix == ".safetensors" else torch.save)(content, tmp_path / f"{name}{suffix}")
    command = [sys.executable, "-c", WHOLE, tmp_path / f"big{suffix}", tmp_path / f"out{suffix}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < limit
    with open_checkpoint(tmp_path / f"out{suffix}") as checkpoint:
        assert all(checkpoint.read(name)[-1].item() == int(name[1:]) + 1 for name in checkpoint.outlines)
    for file in tmp_path.iterdir():
        file.unlink()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_tensor_that_was_read_may_be_changed(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)({"a": torch.zeros(3)}, path)
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("a").add_(1)
        assert checkpoint.read("a").tolist() == [0, 0, 0]
        rewrite(path, tmp_path / f"out{suffix}")
    assert load_state(tmp_path / f"out{suffix}")["a"].tolist() == [0, 0, 0]


def test_a_mapped_file_is_mapped_anew_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "REMAP_BYTES", 40)
    torch.save(odd_state(), tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as checkpoint:
        for _ in range(3):
            assert all(bits(checkpoint.read(name)) == bits(tensor) for name, tensor in odd_state().items())
    out = rewrite(tmp_path / "m.pt", tmp_path / "out.pt")
    assert {name: bits(tensor) for name, tensor in load_state(out).items()} == {n: bits(t) for n, t in odd_state().items()}


def test_another_file_under_the_name_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(pickled, "REMAP_BYTES", 8)
    path = tmp_path / "m.pt"
    torch.save({"a": torch.zeros(30), "b": torch.zeros(3)}, path)
    with open_checkpoint(path) as checkpoint:
        checkpoint.read("a")
        path.unlink()
        torch.save({"a": torch.ones(30), "b": torch.ones(4)}, path)
        with pytest.raises(InputError, match=r"m\.pt: changed"):
            checkpoint.read("b")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_full_disk_is_noticed_before_the_first_tensor(tmp_path, suffix):
    """The kernel's limit on the size of files stands in for a full disk."""
    torch.save({"a": torch.ones(10_000)}, tmp_path / "m.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with (
            pytest.raises(InputError, match=rf"out{suffix}: cannot be written \(File too large\)"),
            open_checkpoint(tmp_path / "m.pt") as checkpoint,
            checkpoint.writer(tmp_path / f"out{suffix}"),
        ):
            pytest.fail("the work began")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["m.pt"]


def test_a_pointer_of_git_lfs_is_called_one(tmp_path):
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"m{suffix}"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12345\n")
        with pytest.raises(InputError, match=r"git lfs pull"):
            open_checkpoint(path)


def test_deepspeed_and_extra_states_of_modules(tmp_path):
    state = {"a": torch.ones(2), "layer._extra_state": None, "b": torch.zeros(1)}
    torch.save({"module": state, "ds_version": "0.15"}, tmp_path / "m.pt")
    assert list(load_state(tmp_path / "m.pt")) == ["a", "b"]
    again = torch.load(rewrite(tmp_path / "m.pt", tmp_path / "out.pt"))
    assert again["ds_version"] == "0.15" and again["module"].keys() == state.keys()
    assert again["module"]["layer._extra_state"] is None


def test_compressed_archives_come_out_the_same_whenever_written(tmp_path, monkeypatch):
    source = nemo(tmp_path, "w:gz")
    first = rewrite(source, tmp_path / "first.nemo").read_bytes()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    second = rewrite(source, tmp_path / "second.nemo").read_bytes()
    assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()


def test_the_language_model_beside_a_recogniser_is_carried_over(tmp_path):
    """Wav2Vec2ProcessorWithLM keeps KenLM's `5gram.bin` in a folder: a `.bin`, but no weights of the network."""
    source = tmp_path / "source"
    (source / "language_model").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "language_model" / "5gram.bin").write_bytes(b"kenlm")
    (source / "checkpoint-20").mkdir()
    (source / "checkpoint-20" / "trainer_state.json").write_text("{}")
    save_file({"a": torch.ones(1)}, source / "model.safetensors")
    out = rewrite(source, tmp_path / "out")
    assert (out / "language_model" / "5gram.bin").read_bytes() == b"kenlm" and not (out / "checkpoint-20").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_files_of_ones_own_appear_with_the_folder(tmp_path, fails):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, source / "model.safetensors")
    with open_checkpoint(source) as checkpoint:
        try:
            with checkpoint.writer(tmp_path / "out") as writer:
                writer.write("a", checkpoint.read("a"))
                (writer.folder / "README.md").write_text("# merged")
                (writer.folder / "config.json").write_text('{"vocab_size": 9}')
                if fails:
                    raise KeyError
        except KeyError:
            assert [folder.name for folder in tmp_path.iterdir()] == ["source"]
            return
        assert writer.folder is None
    assert (tmp_path / "out" / "README.md").read_text() == "# merged"
    assert (tmp_path / "out" / "config.json").read_text() == '{"vocab_size": 9}'
    with open_checkpoint(tmp_path / "out" / "model.safetensors") as checkpoint:
        assert checkpoint.writer(tmp_path / "m.safetensors").folder is None
