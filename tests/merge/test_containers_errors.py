"""What cannot be read or written is refused in one line that names the file; nothing half-written is left."""

import errno
import json
import os
import resource
import shutil
import subprocess
import tarfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from container_cases import FILES, content, icefall, nemo, odd_state, plain_state, rewrite, safetensors
from safetensors.torch import save_file
from torch import nn

from asrcl.exceptions import InputError
from asrcl.merge.containers import load_state, open_checkpoint

STATE = {"a": torch.arange(3000.0), "b": torch.ones(2, 2), "c": torch.tensor(1)}


def sharded(folder):
    """A folder of three shards."""
    folder = folder / "sharded"
    folder.mkdir()
    names = {name: f"model-{i:05d}-of-00003.safetensors" for i, name in enumerate(STATE, 1)}
    for name, shard in names.items():
        save_file({name: STATE[name]}, folder / shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in STATE.values())}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def speechbrain(folder):
    folder = folder / "CKPT+a"
    folder.mkdir()
    torch.save(STATE, folder / "model.ckpt")
    (folder / "CKPT.yaml").write_text("WER: 3")
    return folder


def refused(message, call):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# ---- reading


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.8])
def test_truncated_files_are_refused(tmp_path, layout, keep):
    path = layout(tmp_path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: int(keep if keep >= 1 else keep * size)] if keep else b"")
    refused(path.name.replace(".", r"\."), lambda: load_state(path))


def change_index(folder, change):
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = index["weight_map"] | change if change else None
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ghost": "model-00001-of-00003.safetensors"}, "tensor ghost is not in its shard model-00001"),
        ({"a": "model-00002-of-00003.safetensors"}, "tensor a is not in its shard model-00002"),
        ({"a": "../secret.safetensors"}, "names a shard outside of its folder"),
        ({"a": "/etc/passwd"}, "names a shard outside of its folder"),
        ({"a": "model-00004.safetensors"}, r"its shard model-00004\.safetensors is missing; copy it"),
        ({"a": 3}, "not the index of a checkpoint"),
        (None, "not the index of a checkpoint"),
    ],
)
def test_indices_that_do_not_fit_are_refused(tmp_path, change, message):
    folder = sharded(tmp_path)
    change_index(folder, change)
    refused(rf"model\.safetensors\.index\.json: .*{message}", lambda: open_checkpoint(folder))


def test_tensors_that_an_index_does_not_list_are_not_dropped_silently(tmp_path):
    folder = sharded(tmp_path)
    save_file({"c": STATE["c"], "more": torch.ones(1)}, folder / "model-00003-of-00003.safetensors")
    refused("does not list tensor more of the shard model-00003", lambda: open_checkpoint(folder))


def test_missing_and_damaged_shards_are_named(tmp_path):
    folder = sharded(tmp_path)
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    refused(r"00002-of-00003\.safetensors: damaged safetensors file .*copy or save it", lambda: open_checkpoint(folder))
    shard.unlink()
    refused(r"index\.json: its shard model-00002-of-00003\.safetensors is missing", lambda: open_checkpoint(folder))
    (folder / "model.safetensors.index.json").write_text("{")
    refused(r"index\.json: not a JSON file", lambda: open_checkpoint(folder))


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.target)],)


def test_code_is_never_run(tmp_path):
    target = tmp_path / "was-run"
    torch.save({"model": STATE, "sampler": Harmful(target)}, tmp_path / "m.pt")
    refused(r"m\.pt: holds more than tensors \(\w+\.call\).*save its state", lambda: open_checkpoint(tmp_path / "m.pt"))
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    refused(r"whole\.pt: holds more than tensors \(torch\.nn", lambda: open_checkpoint(tmp_path / "whole.pt"))
    bad = nemo(tmp_path, members={"model_weights.ckpt": (tmp_path / "m.pt").read_bytes()})
    refused(r"model\.nemo: model_weights\.ckpt: holds more than tensors", lambda: open_checkpoint(bad))
    assert not target.exists()


class Scalar:
    """A numpy number that is none: the readers of such pickles take any object."""

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (np.dtype(object), "x")


def test_numpy_numbers_are_read_and_other_numpy_objects_refused(tmp_path):
    torch.save({"model": STATE, "loss": Scalar()}, tmp_path / "bad.pt")
    refused(r"bad\.pt: holds more than tensors", lambda: open_checkpoint(tmp_path / "bad.pt"))
    numbers = {"a": np.float32(1.5), "b": np.int64(-3), "c": np.bool_(True)}
    torch.save({"model": STATE, **numbers}, tmp_path / "good.pt")
    again = torch.load(rewrite(tmp_path / "good.pt", tmp_path / "again.pt"), weights_only=False)
    assert all(again[key] == value and type(again[key]) is type(value) for key, value in numbers.items())


@pytest.mark.filterwarnings("ignore:.*TorchScript.*", "ignore:.*torch.jit.script.*")
def test_torchscript_is_named(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "final.pt")
    refused(r"final\.pt: a TorchScript export; give the training checkpoint", lambda: open_checkpoint(tmp_path / "final.pt"))


@pytest.mark.parametrize(
    "value, message",
    [
        ({"a": 3}, "a is no tensor"),
        ({"optimizer": {"x": 1}}, "optimizer is no tensor"),
        ([torch.ones(2)], "holds a list without tensors"),
        ({}, "holds a dict without tensors"),
        ({"model": {}}, "holds a dict without tensors"),
        ({3: torch.ones(1)}, "3 is no name of a tensor"),
        ({"s": torch.eye(3).to_sparse()}, "s is sparse"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_torch_files_without_a_state_dict_are_refused(tmp_path, value, message):
    torch.save(value, tmp_path / "m.pt")
    refused(rf"m\.pt: .*{message}", lambda: open_checkpoint(tmp_path / "m.pt"))


def test_empty_safetensors_are_refused(tmp_path):
    save_file({}, tmp_path / "m.safetensors")
    refused(r"m\.safetensors: holds no tensors", lambda: open_checkpoint(tmp_path / "m.safetensors"))


def test_paths_without_a_checkpoint_say_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.json").write_text("{}")
    looked = r"empty: no checkpoint in this folder; looked for model\.safetensors, .*pytorch_model\.bin.*CKPT\.yaml"
    refused(looked, lambda: open_checkpoint(tmp_path / "empty"))
    refused(r"x\.json: unknown kind of checkpoint; read are \.safetensors, \.pt", lambda: open_checkpoint(tmp_path / "x.json"))
    refused("ghost: no such file or folder", lambda: open_checkpoint(tmp_path / "ghost"))
    with open_checkpoint(plain_state(tmp_path)) as checkpoint:
        refused("holds no tensor ghost", lambda: checkpoint.read("ghost"))
    refused(r"several things in it \(valid\.acc\.ave\.pth\); give the path of one", lambda: open_checkpoint(tmp_path))


# ---- writing


def sources(tmp_path):
    return [layout(tmp_path) for layout in (safetensors, plain_state, icefall, nemo, sharded, speechbrain)]


@pytest.mark.parametrize("which", range(6))
def test_an_error_of_the_caller_leaves_nothing(tmp_path, which):
    source = sources(tmp_path)[which]
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new" / "folder" / f"out{source.suffix}"
    with pytest.raises(RuntimeError, match="mine"), open_checkpoint(source) as checkpoint, checkpoint.writer(out) as writer:
        name = next(iter(checkpoint.outlines))
        writer.write(name, checkpoint.read(name))
        assert not out.exists()
        raise RuntimeError("mine")
    assert sorted(tmp_path.rglob("*")) == before


def copy_all(checkpoint, out):
    with checkpoint.writer(out) as writer:
        for name in checkpoint.outlines:
            writer.write(name, checkpoint.read(name))


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("which", range(6))
@pytest.mark.parametrize("step", ["fsync", "publish", "data"])
def test_a_full_disk_leaves_nothing(tmp_path, which, step, monkeypatch):
    source = sources(tmp_path)[which]
    old = tmp_path / f"out{source.suffix}"
    if source.is_file():
        shutil.copy(source, old)
    before, held = sorted(tmp_path.rglob("*")), old.read_bytes() if old.is_file() else None
    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif step == "publish":
        monkeypatch.setattr(os, "replace" if source.is_file() else "rename", full)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    reason = "File too large" if step == "data" else "No space left on device"
    with open_checkpoint(source) as checkpoint:
        try:
            if step == "data":
                resource.setrlimit(resource.RLIMIT_FSIZE, (600, limit[1]))
            refused(rf"{old.name}: cannot be written \(.*{reason}.*\); make room", lambda: copy_all(checkpoint, old))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(tmp_path.rglob("*")) == before
    assert held is None or old.read_bytes() == held


@pytest.mark.parametrize("layout, module, name", [(sharded, shutil, "copy2"), (nemo, tarfile, "copyfileobj")])
def test_a_full_disk_while_copying_what_is_around_leaves_nothing(tmp_path, layout, module, name, monkeypatch):
    source = layout(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with open_checkpoint(source) as checkpoint, pytest.raises(InputError, match="No space left"):
        monkeypatch.setattr(module, name, full)
        with checkpoint.writer(tmp_path / f"out{source.suffix}") as writer:
            for tensor in checkpoint.outlines:
                writer.write(tensor, checkpoint.read(tensor))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("which", range(6))
def test_incomplete_and_wrong_writing_is_refused(tmp_path, which):
    source = sources(tmp_path)[which]
    out = tmp_path / f"out{source.suffix}"
    with open_checkpoint(source) as checkpoint:
        first, *rest = checkpoint.outlines

        def write(*tensors):
            with checkpoint.writer(out) as writer:
                for name, tensor in tensors:
                    writer.write(name, tensor)

        good = checkpoint.read(first)
        refused(rf"out.*: {len(rest)} tensors were not written, {rest[0]} first", lambda: write((first, good)))
        refused(f"{first} was written already", lambda: write((first, good), (first, good)))
        refused("there is no tensor ghost in the plan", lambda: write(("ghost", good)))
        refused(rf"{first} is \[9\].* but .* was planned", lambda: write((first, torch.ones(9, dtype=good.dtype))))
        refused(f"{first} is .*int16, but .* was planned", lambda: write((first, good.to(torch.int16))))
        refused("write tensors within `with", lambda: checkpoint.writer(out).write(first, good))
    assert not out.exists() and content(source)


def test_places_that_do_not_fit_are_refused(tmp_path):
    tensors, pickled, _, _, folder, _ = sources(tmp_path)
    (tmp_path / "there").mkdir()
    with open_checkpoint(pickled) as checkpoint:
        refused(r"x\.nemo: a torch checkpoint .* \.pt, .*or to \.safetensors", lambda: checkpoint.writer(tmp_path / "x.nemo"))
        refused(r"there: is a folder, .*such as .*there/merged\.pt", lambda: checkpoint.writer(tmp_path / "there"))
        refused("no container 'onnx'", lambda: checkpoint.writer(tmp_path / "m.pt", container="onnx"))
        refused(r"m\.pt: a safetensors checkpoint is", lambda: checkpoint.writer(tmp_path / "m.pt", container="safetensors"))
        refused(r"no/x\.pt: cannot be written", lambda: checkpoint.writer(pickled / "no" / "x.pt").__enter__())
    with open_checkpoint(tensors) as checkpoint:
        refused(r"m\.pt: a safetensors checkpoint .* \.safetensors; rename", lambda: checkpoint.writer(tmp_path / "m.pt"))
    with open_checkpoint(folder) as checkpoint:
        refused(r"m\.pt: a file, but this checkpoint is written as a folder", lambda: checkpoint.writer(tmp_path / "m.pt"))
        refused("a file, but this", lambda: checkpoint.writer(folder / "config.json"))


def test_a_plain_state_keeps_its_kind_of_mapping(tmp_path):
    torch.save(OrderedDict(odd_state()), tmp_path / "m.pt")
    assert isinstance(torch.load(rewrite(tmp_path / "m.pt", tmp_path / "n.pt")), OrderedDict)
