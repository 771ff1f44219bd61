"""Atomic writes leave the old file or the whole new one; hashes tell content apart and nothing else."""

import json
import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from asrcl import files
from asrcl.exceptions import InputError
from asrcl.files import (
    atomic_path,
    copy_file,
    file_lock,
    hash_file,
    hash_json,
    owned_prefix,
    read_json,
    write_json,
    write_parts,
    write_text,
    writing,
)


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
    with pytest.raises(InputError, match=r"odd\.json: .*JSON") as refusal:
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
    with pytest.raises(InputError, match=r"note\.txt: is a folder, .*give another name"):
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


# --- full disks


WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(300_000)),
    "numpy": lambda path: np.save(path.open("wb"), np.zeros(40_000)),
    "numpy tofile": lambda path: np.zeros(40_000).tofile(path),
    "torch": lambda path: torch.save(torch.zeros(80_000), path),
    "safetensors": lambda path: save_file({"x": torch.zeros(80_000)}, path),
}


@pytest.fixture
def small_files():
    """No file may be larger than 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [None, 300_000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_the_disk_refuses(tmp_path, small_files, writer, size):
    """Whichever library writes, and however it complains: one line, and the old file is still there."""
    target = tmp_path / "result.bin"
    target.write_text("old")
    with pytest.raises(InputError) as caught, atomic_path(target, size) as temporary:
        WRITERS[writer](temporary)
    message = str(caught.value)
    assert message.startswith(f"{target}: cannot write it: File too large; ") and "\n" not in message
    assert ("300.0 kB are needed" if size else "more than") in message or writer == "safetensors"  # it leaves nothing to measure
    assert f"are free in {tmp_path}; raise the limit" in message
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["result.bin"]


@pytest.mark.parametrize("error", [ValueError("bad"), RuntimeError("odd"), FileNotFoundError(2, "none"), OSError("odd")])
def test_errors_of_something_else_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
        raise error
    assert caught.value is error and not os.listdir(tmp_path)


@pytest.mark.parametrize("number", files.DISK)
def test_every_fault_of_the_disk_has_a_remedy(tmp_path, number):
    with pytest.raises(InputError) as caught, writing(tmp_path / "result"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"{tmp_path / 'result'}: cannot write it: {os.strerror(number)}; ")
    assert str(caught.value).endswith(f"; {files.DISK[number]}, and run the command again")


def test_folders_that_do_not_fit(tmp_path):
    (tmp_path / "data" / "inner").mkdir(parents=True)
    (tmp_path / "data" / "inner" / "rows").write_bytes(bytes(1_500_000))
    wanted = r"data: cannot write it: No space left on device; more than 1\.5 MB are needed, .* free in"
    with pytest.raises(InputError, match=wanted), writing(tmp_path / "data"):
        raise OSError(28, "No space left on device")


# --- what kills leave


KILLED = """
import os, sys
from asrcl.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    {wait}
    os.kill(os.getpid(), 9)
"""


def start(folder: Path, wait: str = "") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", KILLED.format(wait=wait), folder / "note.txt"], stdin=subprocess.PIPE)


def write_elsewhere(folder: Path) -> None:
    """As a new process would: it has looked into no folder yet."""
    files._swept.clear()
    write_text(folder / "other.txt", "text")


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    start(tmp_path).wait()
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    write_elsewhere(tmp_path)
    assert os.listdir(tmp_path) == ["other.txt"]


def test_what_a_live_process_writes_is_left_alone(tmp_path):
    process = start(tmp_path, "input()")
    while not (found := [path for path in tmp_path.iterdir() if path.stat().st_size]):
        time.sleep(0.01)
    write_elsewhere(tmp_path)
    assert found[0].read_text() == "half"
    process.communicate(b"\n")
    write_elsewhere(tmp_path)
    assert os.listdir(tmp_path) == ["other.txt"]


def test_own_writes_are_left_alone(tmp_path):
    with atomic_path(tmp_path / "note.txt") as temporary:
        temporary.write_text("all")
        write_elsewhere(tmp_path)
    assert (tmp_path / "note.txt").read_text() == "all"


DEAD = owned_prefix("model").replace(f".{os.getpid()}-", ".999999999-")


def old(path: Path, days: float) -> Path:
    path.write_text("")
    os.utime(path, (time.time() - days * 86400,) * 2)
    return path


@pytest.mark.parametrize("name, days, stays", [
    (".model.safetensors.ab12cd_4.part", 9, True),  # nobody knows whose
    (".model.999999999-abcdef-ab12cd_4.part", 0, True),  # of another machine
    (".model.999999999-abcdef-ab12cd_4.part", 2, False),
    (DEAD + "ab12cd_4.part", 0, False),
    pytest.param(owned_prefix("model") + "ab12cd_4.part", 2, False, id="own number"),  # of an earlier process of the same number
    ("model.part", 9, True), (".model.part", 9, True), (".model.download.part", 9, True), (".model.ab12cd_4.old", 0, True),
])  # fmt: skip
def test_whose_a_file_is(tmp_path, name, days, stays):
    old(tmp_path / name, days)
    write_elsewhere(tmp_path)
    assert (tmp_path / name).exists() == stays


def test_folders_that_were_killed(tmp_path):
    """Half-written ones go; what was moved aside is put back where nothing came in its place, and goes where something did."""
    for name, inner in ((".out.999-host.part", "model"), (DEAD + "ab12cd34.part", "model")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inner).write_text("half")
    for number, place in ((1, "replaced"), (2, "gone")):
        aside = tmp_path / (DEAD + f"ab12cd3{number}.old")
        (aside / place).mkdir(parents=True)
        (aside / place / "weights").write_text("before")
    (tmp_path / "replaced").mkdir()
    write_elsewhere(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".out.999-host.part", "gone", "other.txt", "replaced"]
    assert (tmp_path / "gone" / "weights").read_text() == "before" and not os.listdir(tmp_path / "replaced")


@pytest.mark.parametrize("name", ["x" * 240, "ä" * 120, "a b,c=[1]'\"$", "-"])
def test_long_and_odd_names(tmp_path, name):
    write_text(tmp_path / name, "text")
    assert os.listdir(tmp_path) == [name]


def test_a_folder_where_a_file_or_a_lock_goes(tmp_path):
    (tmp_path / "place").mkdir()
    with pytest.raises(InputError, match=r"place: is a folder.*remove it"):
        write_text(tmp_path / "place", "text")
    with pytest.raises(InputError, match=r"place: is a folder.*remove it"), file_lock(tmp_path / "place"):
        pass


# --- locks


HOLDS = """
import sys
from asrcl.files import file_lock
with file_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_waited_for_and_ends_with_its_process(tmp_path):
    """Two processes wait for a third; nobody blocks after the holder was killed, nor after an orderly end."""
    command = [sys.executable, "-c", HOLDS, tmp_path / "new" / ".lock"]
    start = lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: E731
    killed = start()
    assert killed.stdout.readline() == b"held\n"
    waiting = [start(), start()]
    time.sleep(1.0)
    killed.kill()
    killed.communicate()
    for process in waiting:
        process.stdin.close()
    assert [(process.stdout.read(), process.wait()) for process in waiting] == [(b"held\n", 0)] * 2


def test_one_process_at_a_time_holds_a_lock(tmp_path):
    program = """
import sys
from pathlib import Path
from asrcl.files import file_lock
count = Path(sys.argv[1])
for _ in range(20):
    with file_lock(count.with_suffix(".lock")):
        count.write_text(str(int(count.read_text()) + 1))
"""
    (tmp_path / "count").write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", program, tmp_path / "count"]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "60"


def test_a_lock_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/folder: cannot write here"), file_lock(tmp_path / "file" / "folder" / ".lock"):
        pass


def test_an_error_under_a_lock_passes_and_gives_it_up(tmp_path):
    with pytest.raises(OSError, match="odd"), file_lock(tmp_path / ".lock"):
        raise OSError("odd")
    with file_lock(tmp_path / ".lock"):
        pass


# --- Windows


def test_windows_flushes_files_and_leaves_folders_and_processes_alone(tmp_path, monkeypatch):
    """There a folder cannot be flushed, and a process cannot be asked whether it lives: files of today count as owned."""
    old(tmp_path / (DEAD + "ab12cd_4.part"), 0)
    old(tmp_path / (DEAD + "ab12cd_5.part"), 2)
    monkeypatch.setattr(files, "WINDOWS", True)
    monkeypatch.setattr("asrcl.files.os.kill", lambda *_: pytest.fail("would end the process"))
    files._swept.clear()
    files.sweep(tmp_path)
    files.fsync_folder(tmp_path / "there is none")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [DEAD + "ab12cd_4.part"]
