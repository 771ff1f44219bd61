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


@pytest.mark.parametrize(
    ("case", "loops"),
    [("images", ["bare PyTorch", "Trainer, ft"]), ("together", ["2 models, one after another", "2 models by vmap"])],
)
def test_the_benchmarks_of_small_models(case, loops, tmp_path):
    pytest.importorskip("speechbrain")  # the speech case imports it
    small = ["--epochs", "2", "--models", "2", "--rounds", "1", "--markdown", "--out", str(tmp_path / "out.json")]
    command = [sys.executable, str(TOOLS / "bench_training.py"), "--case", case, *small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["loop"] for row in rows] == loops and all(f"| {name} |" in done.stdout for name in loops)
    assert rows[0]["ratios"] == [1.0] and 0.1 < rows[1]["ratios"][0] < 10
