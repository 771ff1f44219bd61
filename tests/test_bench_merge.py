"""The benchmark of merges runs on a tiny model, and its model is the one it speaks of."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench_merge.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "merge.json"
    done = bench("--size=tiny", "--rounds=1", "--cases=reference,layers", f"--out={out}")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_merge_data

    return bench_merge_data


def test_first_merges_have_their_fields_and_errors(measured: Path, data: ModuleType) -> None:
    inputs = {each.source for each in data.maps(data.SIZES["tiny"])}
    result = json.loads(measured.read_text())
    assert {"environment", "times", "memory", "skipped"} <= set(result) and not result["skipped"]
    (found,) = result["times"]
    assert [row["damping"] for row in found["first"]] == [10, 0.001]
    for row in found["first"]:
        assert row["maps"] == 31 and row["ratio"]["min"] > 0 and row["further_tau"] > 0
        assert row["error_ours"] <= 1e-6 and row["error_reference"] > 0
        assert row["work"]["checked"] + row["work"]["refined"] == 31
        assert row["work"]["factorised"] == 31 + len(inputs) < 2 * 31, "inputs that maps share are factorised once"


def test_sweeps_cover_every_shape_once(measured: Path) -> None:
    rows = json.loads(measured.read_text())["times"][0]["sweeps"]
    assert sum(row["count"] for row in rows) == 31 and len(rows) == 5
    for row in rows:
        seconds = row["seconds"]
        assert {"reference", "solve", "stored", "stored_numbers", "tridiagonal", "tridiagonal_once", "eigen"} <= set(seconds)
        assert row["stored_error"] < 1e-5 and seconds["tridiagonal_error"] < 1e-6 and seconds["eigen_error"] < 1e-6


def test_a_stored_result_gives_the_tables(measured: Path, data: ModuleType) -> None:
    import bench_merge

    tables = bench_merge.markdown(json.loads(measured.read_text()))
    assert "| 10 |" in tables and "| 24 x 120 | 1 |" in tables
    assert "| layers |" in tables and "| reference |" in tables


@pytest.mark.parametrize("option", ["--parts=frist", "--cases=refernce"])
def test_an_unknown_part_is_refused_with_the_list(option: str, data: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    import bench_merge

    with pytest.raises(SystemExit, match="2"):
        bench_merge.parse([option])
    error = capsys.readouterr().err
    assert "there is no" in error and "first, sweeps, memory" in error


def test_the_full_model_is_the_published_one(data: ModuleType) -> None:
    found = data.maps(data.SIZES["full"])
    assert len(found) == len({each.name for each in found}) == 171
    assert sum(each.outputs * each.inputs for each in found) == pytest.approx(42.3e6, rel=0.01), "weights of the linear maps"
    assert 4 * sum(each.outputs**2 + each.inputs**2 for each in found) == pytest.approx(1311 * 2**20, rel=0.01), (
        "factors unshared"
    )
    shared = Counter(each.source for each in found)
    assert (shared["positions"], shared["memory"], shared["encoder.0.attention"]) == (12, 1 + 6 * 2, 3)


def test_dense_and_decomposed_curvatures_are_the_same(data: ModuleType) -> None:
    size = data.SIZES["tiny"]
    dense, decomposed = data.curvature(size), data.curvature(size, decomposed=True)
    for key, block in dense.blocks.items():
        for role in ("A_II", "G_OO"):
            torch.testing.assert_close(getattr(block, role), getattr(decomposed.blocks[key], role), atol=1e-4, rtol=1e-4)
        assert block.A.mean() == pytest.approx(1, rel=1e-4)
