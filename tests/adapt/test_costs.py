"""What work costs: peaks of the work itself."""

import json
import mmap
import sys

import pytest
import torch
from adapt_cases import QUICK

from asrcl.adapt.costs import measured, peak_memory
from asrcl.testing import tiny_learner, tiny_scenario

MIB = 2**20
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a part of a process's life")


@on_linux
def test_the_peak_is_that_of_the_block_not_of_the_process():
    with measured("cpu") as large, mmap.mmap(-1, 64 * MIB) as fresh:  # an array may get memory that an earlier test gave back
        fresh[:: mmap.PAGESIZE] = bytes(64 * MIB // mmap.PAGESIZE)
    with measured("cpu") as small:
        pass
    assert large["peak_memory_bytes"] > small["peak_memory_bytes"] + 48 * MIB
    assert small["peak_memory_bytes"] > MIB and large["seconds"] > small["seconds"] >= 0


def test_without_proc_it_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr("asrcl.adapt.costs._STATUS", tmp_path / "none")
    monkeypatch.setattr("asrcl.adapt.costs._RESET", tmp_path / "none" / "none")
    with measured("cpu") as found:
        pass
    assert found["peak_memory_bytes"] == peak_memory() > MIB


def test_costs_of_a_stage(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2), QUICK)
    learner.evaluate(learner.initial, learner.scenario.domains[0])
    first = dict(learner.costs)
    assert set(first) == {"errors_seconds", "peak_memory_bytes"} and first["peak_memory_bytes"] > MIB
    learner.enter(1)
    learner.evaluate(learner.initial, learner.scenario.domains[0])  # from the cache: it cost what it cost
    assert learner.costs == first
    assert json.loads(next(tmp_path.glob("cache/errors/*/cost.json")).read_text())["seconds"] == first["errors_seconds"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_s_own_peak(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2), QUICK)
    learner.device = "cuda"
    learner.fine_tune(learner.initial, learner.scenario.domains[1], __import__("asrcl.methods").methods.FineTuning())
    assert 0 < learner.costs["gpu_peak_memory_bytes"] < 2**30
