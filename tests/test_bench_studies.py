"""The benchmark of studies runs, and its ways learn the same."""

import json
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_the_benchmark_of_studies(tmp_path):
    small = ["--seeds", "3", "--steps", "30", "--rounds", "2", "--markdown", "--out", str(tmp_path / "out.json")]
    command = [sys.executable, str(TOOLS / "bench_studies.py"), *small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert rows[0]["ratio"][0] == 1.0 and len(rows) == 3
    assert all(f"| {row['way']} |" in done.stdout for row in rows)
    # Modules trained one after the other take a multiple of the time even of three copies.
    assert rows[2]["ratio"][0] > 1.5
