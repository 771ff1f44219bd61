"""The benchmark of scoring runs, and the figure of the significance simulations can be made again."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize("options", [["--suffix=trn", "--out"], ["--suffix=jsonl", "--normaliser=basic"]])
def test_the_benchmark_keeps_its_budget_on_a_few_utterances(options: list[str]) -> None:
    command = [sys.executable, str(TOOLS / "bench_score.py"), "--utterances=1000", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "1000 utterances" in done.stdout and "ratio" in done.stdout


def test_simulations_are_tabled_and_drawn(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "simulate_significance.py"), "--simulations=2", "--power-simulations=1"]
    done = subprocess.run([*command, f"--out={tmp_path}"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["power.svg", "significance.json"]
