"""Which rooms may pull in what: looked up in `sys.modules` of a fresh interpreter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE_WORLD = (
    "speechbrain", "torchaudio", "datasets", "hydra", "omegaconf", "sentencepiece", "soundfile",
    "transformers", "matplotlib", "tensorboard", "espeakng_loader", "typer", "curvlinops",
)  # fmt: skip
ROOMS = (
    *("contract", "convert", "hf", "methods", "adapt", "experiment", "speech", "images", "studies", "testing", "commands", "cli"),
)
OTHER_ROOMS = tuple(f"asrcl.{room}" for room in ROOMS)


def loaded_by(module: str) -> set[str]:
    program = f"import sys, {module}; print('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


@pytest.mark.parametrize(
    "module, forbidden",
    [
        ("asrcl.curvature", (*RECIPE_WORLD, *OTHER_ROOMS, "asrcl.merge", "asrcl.scoring", "jiwer")),
        ("asrcl.merge", (*RECIPE_WORLD, *OTHER_ROOMS, "asrcl.scoring", "jiwer")),
        ("asrcl.convert", (*RECIPE_WORLD, "asrcl.contract", "asrcl.hf", "asrcl.scoring", "jiwer")),
        ("asrcl.hf", ("speechbrain", "hydra", *(f"asrcl.{room}" for room in ROOMS if room != "hf"), "asrcl.scoring")),
        (
            "asrcl.scoring",
            (*RECIPE_WORLD, *OTHER_ROOMS, "asrcl.merge", "asrcl.curvature", "torch", "safetensors"),
        ),
    ],
)
def test_a_room_pulls_in_nothing_beyond_its_own(module, forbidden):
    loaded = loaded_by(module)
    assert module in loaded
    assert sorted(name for name in forbidden if name in loaded) == []


ROOMS_OF_LIBRARIES = ["asrcl.curvature", "asrcl.merge", "asrcl.convert", "asrcl.scoring", "asrcl.adapt", "asrcl.methods"]
POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")


@pytest.mark.parametrize("module", ROOMS_OF_LIBRARIES)
def test_a_room_loads_without_what_windows_lacks(module):
    """In `sys.modules`, None makes an import raise ImportError."""
    hidden = f"sys.modules.update(dict.fromkeys({POSIX_ONLY}))"
    hidden += "; [delattr(os, name) for name in ('fork', 'getppid', 'O_DIRECTORY', 'O_NOFOLLOW', 'geteuid')]"
    program = f"import os, sys; {hidden}; import {module}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_rooms_import_downwards():
    """The order is in pyproject.toml, under tool.importlinter; what breaks it is printed import by import."""
    root = Path(__file__).parents[1]
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


def test_a_wall_that_is_broken_is_found(tmp_path):
    """The order of pyproject.toml is looked at: merge importing adapt would be named."""
    root = Path(__file__).parents[1]
    shutil.copytree(root / "asrcl", tmp_path / "asrcl")
    shutil.copy(root / "pyproject.toml", tmp_path)
    with (tmp_path / "asrcl" / "merge" / "numbers.py").open("a") as file:
        file.write("\nfrom asrcl.adapt import Cache  # noqa: F401\n")
    lint = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "asrcl.merge.numbers -> asrcl.adapt" in done.stdout
