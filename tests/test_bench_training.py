"""The benchmark of the training loop runs, and compares loops that do the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_the_benchmark_of_training(tmp_path):
    pytest.importorskip("speechbrain")
    command = [sys.executable, str(TOOLS / "bench_training.py"), "--batches", "2", "--rounds", "1", "--markdown"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.json")], capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["loop"] for row in found["rows"]] == ["bare PyTorch", "Trainer, ft", "ewc", "si"]
    assert all(0.2 < row["ratios"][0] < 20 for row in found["rows"]) and found["rows"][0]["ratios"] == [1.0]
    assert 0 < found["floor_ms_per_step"] < found["rows"][0]["ms_per_step"]
    assert "| Trainer, ft |" in done.stdout
