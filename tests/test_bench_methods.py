"""The benchmark of methods runs, and times what it says."""

import json
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_the_benchmark_of_methods(tmp_path, monkeypatch, capsys):
    pytest.importorskip("speechbrain")
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_methods

    sam = "+methods.sam={name: ft, run: {train: {adapt: {sam: 0.05}}}}"
    small = ["--batches", "1", "--rounds", "1", "--methods", "sam lora_per_domain"]
    monkeypatch.setattr(sys, "argv", ["bench_methods.py", *small, sam, "--markdown", "--out", str(tmp_path / "out.json")])
    bench_methods.main()
    found = json.loads((tmp_path / "out.json").read_text())
    sam, lora = sorted(found["rows"], key=lambda row: row["method"], reverse=True)
    assert (sam["method"], lora["method"]) == ("sam", "lora_per_domain")
    assert sam["floor"] == pytest.approx(2.0) and 1.3 < sam["ratios"][0] < 3 and sam["stored_bytes"] == 0
    assert 0.5 < lora["floor"] < 1.2 and lora["stored_bytes"] > found["model_bytes"]
    assert "| `sam` |" in capsys.readouterr().out and 0 < found["ms_per_step"] < 60_000
