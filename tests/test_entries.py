"""Sealed folders: whatever changes on disk after writing is found, named, and never taken for what was written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from damage import flip, half_zeroed, to_folder, truncated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrcl import entries
from asrcl.entries import DamagedEntry, read_record, remove_entry, seal, unseal
from asrcl.files import read_json, write_json

FACTS = {"settings": {"rate": 16000, "speeds": [0.9, 1.0]}, "hash": "3fa4", "none": None, "loss": 0.1 + 0.2}


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "entry" / "inner").mkdir(parents=True)
    (tmp_path / "entry" / "data.bin").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "entry" / "inner" / "rows.txt").write_text("a\nb\n")
    seal(tmp_path / "entry", "meta.json", FACTS)
    return tmp_path / "entry"


DAMAGE = {
    "bit": lambda path: flip(path, 5),
    "half zeroed": half_zeroed,
    "truncated": truncated,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: os.truncate(path, 0),
    "deleted": Path.unlink,
    "folder": to_folder,
}


def test_facts_come_back(folder):
    assert unseal(folder, "meta.json") == FACTS
    assert sorted(read_json(folder / "meta.json")["files"]) == ["data.bin", "inner/rows.txt"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["data.bin", "inner/rows.txt", "meta.json"])
def test_damage_is_found_and_named(folder, name, damage):
    DAMAGE[damage](folder / name)
    with pytest.raises(DamagedEntry, match=name) as caught:
        unseal(folder, "meta.json")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), name=st.sampled_from(["data.bin", "meta.json"]))
def test_no_bit_may_flip(folder, data, name):
    """Whichever bit: of the data it is always found; of the record unless it changes nothing that is read (a blank)."""
    path = folder / name
    before = path.read_bytes()
    flip(path, data.draw(st.integers(0, 8 * len(before) - 1)))
    try:
        assert unseal(folder, "meta.json") == FACTS and name == "meta.json"
    except DamagedEntry:
        pass
    finally:
        path.write_bytes(before)
    assert unseal(folder, "meta.json") == FACTS


@pytest.mark.parametrize("change", [{"hash": "3fa5"}, {"files": {}}, {"more": 1}, {"loss": 0.3}])
def test_changed_record(folder, change):
    write_json(folder / "meta.json", {**read_json(folder / "meta.json"), **change})
    with pytest.raises(DamagedEntry, match=r"meta\.json was changed"):
        unseal(folder, "meta.json")


@pytest.mark.parametrize("name", ["seal", "files"])
def test_record_whose_hashes_lost_their_name(folder, name):
    content = read_json(folder / "meta.json")
    write_json(folder / "meta.json", {**content, "x": content.pop(name)})
    with pytest.raises(DamagedEntry, match=r"meta\.json was changed"):
        unseal(folder, "meta.json")


def test_record_of_an_older_version(folder):
    write_json(folder / "meta.json", FACTS)
    with pytest.raises(DamagedEntry, match="no hashes"):
        unseal(folder, "meta.json")
    assert read_record(folder / "meta.json") == FACTS


def test_other_files_may_come_and_go(folder):
    (folder / "later.json").write_text("{}")
    (folder / ".hidden").write_text("")
    (folder / "x.lock").write_text("")
    assert unseal(folder, "meta.json") == FACTS
    seal(folder, "meta.json", FACTS)
    assert sorted(read_json(folder / "meta.json")["files"]) == ["data.bin", "inner/rows.txt", "later.json"]
    seal(folder, "meta.json", FACTS, ["data.bin"])
    DAMAGE["bit"](folder / "later.json")
    assert unseal(folder, "meta.json") == FACTS


def test_moved_folder(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert unseal(tmp_path / "elsewhere", "meta.json") == FACTS


def test_facts_that_json_changes(tmp_path):
    """Tuples become lists and numbers that are keys become texts, and the seal still holds."""
    seal(tmp_path, "meta.json", {"pair": (1, 2), "by": {10: "a", 9: "b"}, "odd": "ü\u2028\\"})
    assert unseal(tmp_path, "meta.json") == {"pair": [1, 2], "by": {"10": "a", "9": "b"}, "odd": "ü\u2028\\"}


def test_files_are_hashed_once_unless_touched(folder, monkeypatch):
    monkeypatch.setattr(entries, "YOUNG", -1.0)  # as if they had been written long ago
    assert unseal(folder, "meta.json") == FACTS
    opened = []
    original = open
    monkeypatch.setattr("builtins.open", lambda *a, **k: (opened.append(str(a[0])), original(*a, **k))[1])
    assert unseal(folder, "meta.json") == FACTS
    assert not [name for name in opened if name.endswith(("data.bin", "rows.txt"))]
    stat = os.stat(folder / "data.bin")
    flip(folder / "data.bin", 5)
    os.utime(folder / "data.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # hides the time of change, but not all of it
    with pytest.raises(DamagedEntry, match=r"data\.bin was changed"):
        unseal(folder, "meta.json")


def test_record_is_written_last(folder, monkeypatch):
    """Data is on the disk before the record that vouches for it: a file that cannot be flushed leaves the old record."""
    before = (folder / "meta.json").read_bytes()
    (folder / "data.bin").write_bytes(b"new")
    monkeypatch.setattr(entries, "fsync_file", lambda path: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError):
        seal(folder, "meta.json", FACTS)
    assert (folder / "meta.json").read_bytes() == before
    with pytest.raises(DamagedEntry, match=r"data\.bin has 3 bytes"):
        unseal(folder, "meta.json")


def test_removing_an_entry_leaves_what_a_link_points_to(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    remove_entry(tmp_path / "link")
    assert unseal(folder, "meta.json") == FACTS and not (tmp_path / "link").exists()
    remove_entry(folder / "data.bin")
    remove_entry(folder / "data.bin")
    remove_entry(folder)
    assert not folder.exists()


def test_record_is_json_that_others_can_read(folder):
    content = json.loads((folder / "meta.json").read_text())
    assert content["files"]["data.bin"]["bytes"] == 2048 and len(content["files"]["data.bin"]["sha256"]) == 64
