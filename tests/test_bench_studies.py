"""The benchmark of studies runs, and its ways learn the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


@pytest.mark.parametrize("case, ways", [("plasticity", 3), ("quadratic", 2)])
def test_the_benchmark_of_studies(case, ways, tmp_path):
    small = ["--case", case, "--seeds", "3", "--steps", "30", "--rounds", "2", "--markdown", "--out", str(tmp_path / "out.json")]
    command = [sys.executable, str(TOOLS / "bench_studies.py"), *small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows[0]["ratio"][0] == 1.0 and len(rows) == ways
    assert all(f"| {row['way']} |" in done.stdout for row in rows)
    assert all(row["seconds"] > 0 and row["ratio"][1] <= row["ratio"][0] <= row["ratio"][2] for row in rows)
