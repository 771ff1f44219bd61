"""A run on a disk that is too small ends in one line; with room, the same run goes on to the same results."""

import subprocess
from pathlib import Path

import pytest
from adapt_cases import adapt_once, outcome
from adapt_processes import adapt_on_a_small_disk

from asrcl.testing import run_in_processes

LIMITS = (1, 300, 600, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 9_000)  # bytes of a file
ROOMS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 320)  # kB of the whole disk


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a run leaves that has room."""
    folder = tmp_path_factory.mktemp("room")
    run_in_processes(adapt_once, 1, str(folder), "ihr", 2, start="forkserver")
    return outcome(folder)


def attempt(folder: Path, limit: int = 0) -> str:
    """Run once; what it said if it was refused, "" if it came to its end."""
    [(code, said)] = run_in_processes(adapt_on_a_small_disk, 1, str(folder), limit, start="forkserver")
    assert code in ("0", "2"), said
    told = [line for line in said.splitlines() if line.startswith("asrcl: ")]
    assert "Traceback" not in said and len(told) == (code == "2"), said
    return told[0] if told else ""


def test_limits_on_the_size_of_a_file(tmp_path, expected):
    refused = 0
    for limit in LIMITS:
        folder = tmp_path / str(limit)
        if message := attempt(folder, limit):
            refused += 1
            assert "File too large" in message and "needed" in message and str(folder) in message
            assert not (folder / "run" / "results.json").exists()
        assert attempt(folder) == ""
        assert outcome(folder) == expected
        assert not list(folder.rglob(".*.part"))
    assert refused >= 5


@pytest.fixture
def disk(tmp_path):
    """Makes a small disk of its own, and makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def resize(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not resize("size=16k"):
        pytest.skip("this user may not mount a disk")
    yield place, resize
    subprocess.run(["umount", "-l", str(place)], check=False)


def test_sizes_of_a_disk(disk, expected):
    place, resize = disk
    refused = 0
    for room in ROOMS:
        folder = place / str(room)
        used = sum(file.stat().st_blocks * 512 for file in place.rglob("*")) // 1024
        assert resize(f"remount,size={used + room}k")
        if message := attempt(folder):
            refused += 1
            assert "No space left on device" in message and str(folder) in message
            left = outcome(folder)
            assert left.get("results.json", expected["results.json"]) == expected["results.json"]
        assert resize("remount,size=64m")
        assert attempt(folder) == ""
        assert outcome(folder) == expected
        assert not list(folder.rglob(".*.part"))
    assert refused >= 5
