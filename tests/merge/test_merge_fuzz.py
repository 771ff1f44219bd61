"""Readers of this room answer hostile files with a result or one line; `ASRCL_FUZZ=20` tries twenty times more."""

import os

import pytest
from fuzz_readers import readers
from fuzzing import attack

MANY = int(os.environ.get("ASRCL_FUZZ", "1"))


@pytest.mark.filterwarnings("ignore")
def test_good_files_are_read(tmp_path):
    for name, file, good, read in readers(tmp_path):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / file).write_bytes(good)
        assert read(tmp_path / "x" / file) is not None, name


@pytest.mark.filterwarnings("ignore")
def test_hostile_files_are_read_or_refused_in_one_line(tmp_path):
    (tmp_path / "x").mkdir()
    faults = [
        attack(name, tmp_path / "x" / file, read, good, seed)
        for name, file, good, read in readers(tmp_path)
        for seed in range(60 * MANY)
    ]
    assert not [fault for fault in faults if fault]
