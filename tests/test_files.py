"""Atomic writes leave the old file or the whole new one; hashes tell content apart and nothing else."""

import json
import os
import stat

import pytest

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, copy_file, hash_file, hash_json, read_json, write_json, write_parts, write_text


def test_a_write_replaces_the_file_and_makes_its_folder(tmp_path):
    target = tmp_path / "new" / "folder" / "note.txt"
    write_text(target, "first")
    write_text(target, "zweite – größer")
    assert target.read_text(encoding="utf-8") == "zweite – größer"
    assert os.listdir(target.parent) == ["note.txt"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_alone(error, tmp_path):
    target = tmp_path / "note.txt"
    write_text(target, "old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        assert target.read_text() == "old"
        raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["note.txt"]


def test_the_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "note.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("all of it")
        assert temporary.parent == target.parent and not target.exists()
    assert target.read_text() == "all of it"


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/folder: cannot write here"):
        write_text(tmp_path / "file" / "folder" / "note.txt", "text")


def test_json_comes_back(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ä": True}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert list(read_json(tmp_path / "value.json")) == ["b", "a"]


def test_a_missing_json_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"{half", b"", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_named(content, tmp_path):
    (tmp_path / "odd.json").write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.json: not a JSON file") as refusal:
        read_json(tmp_path / "odd.json")
    assert "\n" not in str(refusal.value)


def test_json_hashes_know_content_not_order():
    base = {"a": 1, "b": [1, 2]}
    assert hash_json(base) == hash_json({"b": [1, 2], "a": 1}) == hash_json(json.loads(json.dumps(base)))
    assert hash_json((1, 2)) == hash_json([1, 2])
    others = [{"a": 2, "b": [1, 2]}, {"a": 1, "b": [2, 1]}, {"a": 1}, {"a": "1", "b": [1, 2]}]
    assert len({hash_json(value) for value in [base, *others]}) == 5
    assert len(hash_json(base)) == 16


def test_hashes_are_the_same_everywhere(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea"  # the head of SHA-256("abc"), FIPS 180-2
    assert hash_json({"a": 1}) == "015abd7f5cc57a2d"


def test_a_folder_in_the_way_is_named_before_anything_is_made(tmp_path):
    (tmp_path / "note.txt").mkdir()
    with pytest.raises(InputError, match=r"note\.txt: is a folder; give the name of a file"):
        write_text(tmp_path / "note.txt", "text")
    with pytest.raises(InputError, match=r"late: cannot write it"), atomic_path(tmp_path / "late"):
        (tmp_path / "late").mkdir()
    assert sorted(os.listdir(tmp_path)) == ["late", "note.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, r"not a JSON file \(nested too deeply\)"),
        ('{"a": "\\ud800"}', r"\\ud800 is half of a surrogate pair, not a character"),
        ('{"\\uDfff": 1}', r"\\udfff is half of a surrogate pair"),
        ("1" * 5000, r"not a JSON file \(a number has too many digits\)"),
        ('{"a": 1,\n"b"', "not a JSON file .*line 2, column 4"),
    ],
)
def test_json_that_could_not_be_used_is_refused(content, message, tmp_path):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_json(tmp_path / "odd.json")


def test_whole_surrogate_pairs_are_characters(tmp_path):
    (tmp_path / "pair.json").write_text('["\\ud83d\\ude00", "\\\\ud800"]')
    assert read_json(tmp_path / "pair.json") == ["\U0001f600", "\\ud800"]


def test_a_folder_instead_of_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cannot read it \(Is a directory\)"):
        read_json(tmp_path)


def test_parts_are_written_one_by_one_and_all_or_nothing(tmp_path):
    path = tmp_path / "x.txt"
    write_parts(path, (f"é{n}\n" for n in range(3)))
    assert path.read_text(encoding="utf-8") == "é0\né1\né2\n"

    def failing():
        yield "new"
        raise ValueError

    with pytest.raises(ValueError):
        write_parts(path, failing())
    assert path.read_text(encoding="utf-8") == "é0\né1\né2\n" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_copy_replaces_the_file_and_makes_its_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    copy_file(tmp_path / "a", tmp_path / "b")
    copy_file(tmp_path / "a", tmp_path / "deep" / "c")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "deep" / "c").read_bytes() == b"new"
