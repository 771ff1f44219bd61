"""Curvatures in several files: layout, crashes, replacement, missing parts."""

import json
import re

import pytest
import torch
from block_cases import assert_same, everything
from safetensors.torch import load_file

from asrcl.curvature import Curvature
from asrcl.curvature.storage import shards
from asrcl.exceptions import InputError


def test_the_index_is_as_the_format_page_says(tmp_path):
    index = everything().save(tmp_path / "c.safetensors", max_shard_bytes=1000)
    assert index.name == "c.safetensors.index.json"
    content = json.loads(index.read_text())
    files = sorted(set(content["weight_map"].values()))
    assert {path.name for path in tmp_path.iterdir()} == {*files, index.name}
    assert all(re.fullmatch(rf"c-[0-9a-f]{{8}}-\d{{5}}-of-{len(files):05d}\.safetensors", name) for name in files)
    tensors = {name: tensor for file in files for name, tensor in load_file(tmp_path / file).items()}
    assert set(tensors) == set(content["weight_map"])
    assert content["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert all(name in load_file(tmp_path / file) for name, file in content["weight_map"].items())
    assert max(sum(t.numel() * t.element_size() for t in load_file(tmp_path / file).values()) for file in files) <= 1000


def test_saving_again_leaves_only_the_new_files(tmp_path):
    def names():
        return {path.name for path in tmp_path.iterdir()}

    (tmp_path / "c-notes.safetensors").write_text("not ours")
    index = everything().save(tmp_path / "c.safetensors", max_shard_bytes=700)
    first = names()
    everything().scale(2.0).to(dtype=torch.float32).save(index, max_shard_bytes=700)
    assert_same(Curvature.load(index), everything().scale(2.0).to(dtype=torch.float32))
    assert not (names() & first) - {index.name, "c-notes.safetensors"}
    everything().save(tmp_path / "c.safetensors")
    assert names() == {"c.safetensors", "c-notes.safetensors"}
    everything().save(tmp_path / "c.safetensors", max_shard_bytes=700)
    assert not (tmp_path / "c.safetensors").exists() and names() == first


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_crash_between_shards_leaves_the_old_curvature(after, tmp_path, monkeypatch):
    old = everything()
    index = old.save(tmp_path / "c.safetensors", max_shard_bytes=700)
    original, calls = shards._write, []

    def dies(*arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        original(*arguments)

    monkeypatch.setattr(shards, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        everything(torch.float32).save(tmp_path / "c.safetensors", max_shard_bytes=300)
    assert_same(Curvature.load(index, lazy=False), old)
    monkeypatch.undo()
    everything(torch.float32).save(tmp_path / "c.safetensors", max_shard_bytes=300)
    assert_same(Curvature.load(tmp_path), everything(torch.float32))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {index.name, *json.loads(index.read_text())["weight_map"].values()}


def test_a_crash_before_the_index_leaves_the_old_curvature(tmp_path, monkeypatch):
    index = everything().save(tmp_path / "c.safetensors", max_shard_bytes=700)
    monkeypatch.setattr(shards, "write_text", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space"):
        everything().scale(3.0).to(dtype=torch.float32).save(index, max_shard_bytes=700)
    assert_same(Curvature.load(index, lazy=False), everything())


def test_a_missing_or_foreign_shard_is_named(tmp_path):
    index = everything().save(tmp_path / "c.safetensors", max_shard_bytes=700)
    shard = sorted(set(json.loads(index.read_text())["weight_map"].values()))[1]
    with pytest.raises(InputError, match="one shard"):
        Curvature.load(tmp_path / shard)
    (tmp_path / shard).write_bytes((tmp_path / shard).read_bytes()[:-9])
    with pytest.raises(InputError, match=r"index\.json: .*\(a shard is damaged"):
        Curvature.load(index)
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match=f"its shard {shard} is missing"):
        Curvature.load(index)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"metadata": {}}', '{"metadata": 3, "weight_map": {}}', '{"metadata": {}, "weight_map": {"a": 1}}']
)
def test_a_damaged_index_is_refused(text, tmp_path):
    index = everything().save(tmp_path / "c.safetensors", max_shard_bytes=700)
    index.write_text(text)
    with pytest.raises(InputError, match=r"c\.safetensors\.index\.json") as caught:
        Curvature.load(index)
    assert "\n" not in str(caught.value)


def test_folders(tmp_path):
    everything().save(tmp_path)
    assert (tmp_path / "curvature.safetensors").is_file()
    assert_same(Curvature.load(tmp_path), everything())
    (tmp_path / "curvature.safetensors").rename(tmp_path / "a.safetensors")
    assert_same(Curvature.load(tmp_path), everything())
    (tmp_path / "b.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 files .*name the file"):
        Curvature.load(tmp_path)


def test_names_without_a_suffix(tmp_path):
    for _ in range(2):
        index = everything().save(tmp_path / "c", max_shard_bytes=700)
        assert_same(Curvature.load(index), everything())
    assert everything().save(index) == tmp_path / "c"
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
