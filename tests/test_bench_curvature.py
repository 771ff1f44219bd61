"""The benchmark of the curvature runs, and what it compares covers the same maps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[1] / "tools"
ROW_FIELDS = {"model", "threads", "device", "case", "title", "rounds", "linear_maps", "largest_activation_bytes", "plain_seconds"}
ROW_FIELDS |= {"plain_items_per_second", "items_per_second", "ratio_cpu", "ratio_wall", "seconds", "fixed_seconds"}
ROW_FIELDS |= {"floor", "memory", "factor_bytes"}


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "bench_curvature.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "curvature.json"
    options = ["--size=tiny", "--rounds=1", "--batches=2", "--models=toy", "--cases=kron,ihr", "--accuracy", f"--out={out}"]
    done = bench(*options)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


@pytest.fixture
def models(tools: None) -> ModuleType:
    import bench_models

    return bench_models


def test_every_row_has_its_fields(measured: Path) -> None:
    result = json.loads(measured.read_text())
    assert {"environment", "rows", "skipped", "accuracy"} <= set(result)
    assert [row["case"] for row in result["rows"]] == ["activations", "kron", "ihr"], result["skipped"]
    for row in result["rows"]:
        assert set(row) >= ROW_FIELDS
        assert row["linear_maps"] == 62
        above = [row[of]["peak"] - row[of]["before"] for of in ("resident", "resident_plain")]
        assert row["memory"] == above[0] - above[1]
    factors = {row["case"]: row["factor_bytes"] for row in result["rows"]}
    assert factors["activations"] == 0 < factors["kron"] <= factors["ihr"], "shared inputs are stored once"


def test_the_accuracy_stands_beside_the_sampling_noise(measured: Path) -> None:
    noise, *variants = json.loads(measured.read_text())["accuracy"]
    assert noise["A_max"] == 0 < noise["G_median"] <= noise["G_max"]
    assert len(variants) == 3 and all("skipped" in row or row["A_max"] >= row["A_median"] for row in variants)


def test_a_stored_result_gives_the_tables(measured: Path) -> None:
    done = bench(f"--read={measured}", "--markdown")
    assert done.returncode == 0, done.stderr
    assert "| kron linear maps | 1 |" in done.stdout and "62 linear maps" in done.stdout
    assert "| another sample (Monte Carlo noise) | 0.000 |" in done.stdout


def test_an_unknown_case_is_refused_with_the_list() -> None:
    done = bench("--cases=kronn")
    assert done.returncode == 2 and "there is no kronn" in done.stderr and "kron-all" in done.stderr


def test_the_large_model_needs_an_accelerator_or_force(tmp_path: Path) -> None:
    out = tmp_path / "paper.json"
    assert bench("--models=paper", f"--out={out}").returncode == 0
    (skipped,) = json.loads(out.read_text())["skipped"]
    assert skipped["model"] == "paper" and "--force" in skipped["reason"]


def test_the_toy_has_the_maps_and_products_of_its_sizes(models: ModuleType) -> None:
    work = models.build("toy")
    assert sum(isinstance(module, torch.nn.Linear) for module in work.model.modules()) == 62
    small = models.build("toy", "tiny")
    products = models.products_of(small)
    assert len(products.weights) == len(products.shapes) == 62
    maps = [module for module in small.model.modules() if isinstance(module, torch.nn.Linear)]
    frames = small.batch.classes.numel()
    assert products.pass_flops == sum(6.0 * frames * m.in_features * m.out_features for m in maps)
    squares = sum(m.in_features**2 + m.out_features**2 for m in maps)
    repeated = 6 * 2 * 16**2  # in each of 6 blocks key and value read what query reads, 16 wide
    assert products.factor_flops == frames * (squares - repeated)


@pytest.mark.parametrize("peer", ["ihr_reference", "curvlinops", "kronfluence"])
def test_a_peer_computes_the_factors_that_ours_are(models: ModuleType, peer: str) -> None:
    import bench_cases
    import bench_peers

    work = models.build("toy", "tiny")
    try:
        found = getattr(bench_peers, peer)(work)(2)
    except bench_peers.UnavailableError as error:
        pytest.skip(str(error))
    maps = [module for module in work.model.modules() if isinstance(module, torch.nn.Linear)]
    inputs, outputs = (found[::2], found[1::2]) if peer == "ihr_reference" else (found[:62], found[62:])
    curvature = bench_cases.estimate(work, 2, layers="linear")
    ours = {key.name: block for key, block in curvature.blocks.items()}
    names = {id(module): name for name, module in work.model.named_modules()}
    for module, input_factor, output_factor in zip(maps, inputs, outputs, strict=True):
        block, width = ours[f"{names[id(module)]}.weight"], module.in_features
        for theirs, mine in ((input_factor[:width, :width], block.A_II), (output_factor, block.G_OO)):
            torch.testing.assert_close(theirs / theirs.norm(), mine / mine.norm(), rtol=1e-4, atol=1e-6)


def test_a_peer_that_is_absent_says_how_to_get_it(tools: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    import bench_models
    import bench_peers

    def absent(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(bench_peers.UnavailableError, match=r"pip install kronfluence==1\.0\.1"):
        bench_peers.kronfluence(bench_models.build("toy", "tiny"))
