"""Whatever goes wrong outside of the code ends in one line and exit code 2."""

import errno
import os
import subprocess
import sys

import pytest

from asrcl.boundary import in_one_line
from asrcl.exceptions import InputError

FULL = "No space left on device"


@pytest.mark.parametrize("error, line", [
    (InputError("a.txt: no such file"), "asrcl: a.txt: no such file"),
    (OSError(errno.ENOSPC, FULL, "/x/y"), f"asrcl: /x/y: {FULL}; make room there"),
    (OSError(errno.ENOSPC, FULL), f"asrcl: standard output, or another file: {FULL}; make room there"),
    (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "asrcl: /x/y: Permission denied"),
    (OSError("40 requested and 3 written"), "asrcl: 40 requested and 3 written"),
    (MemoryError(), "asrcl: not enough memory"),
])  # fmt: skip
def test_errors_that_are_not_ours(capsys, error, line):
    with pytest.raises(SystemExit) as stop, in_one_line():
        raise error
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(line) and said.count("\n") == 1


def test_errors_of_ours_stay_visible():
    with pytest.raises(KeyError), in_one_line():
        raise KeyError("x")


PROGRAM = """
import logging, sys, threading
from asrcl.boundary import in_one_line
logging.basicConfig(level=logging.INFO)
def thread():
    raise OSError(28, "No space left on device")
with in_one_line():
    logging.info("begun")
    worker = threading.Thread(target=thread)
    worker.start()
    worker.join()
    print("x" * 100_000)
"""


def run(**options):
    return subprocess.run([sys.executable, "-c", PROGRAM], text=True, check=False, timeout=60, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_to_a_full_disk():
    with open("/dev/full", "w") as full:
        done = run(stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].endswith("begun")
    assert lines[1].startswith("asrcl: standard output, or another file: No space left on device")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_log_on_a_full_disk():
    with open("/dev/full", "w") as full:
        done = run(stdout=subprocess.PIPE, stderr=full)
    assert done.returncode == 0 and done.stdout == "x" * 100_000 + "\n"


def test_a_reader_that_has_seen_enough():
    command = f"{sys.executable} -c '{PROGRAM}' | head -c 3"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "xxx" and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
