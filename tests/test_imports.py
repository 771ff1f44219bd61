"""Which rooms may pull in what: looked up in `sys.modules` of a fresh interpreter."""

import subprocess
import sys

import pytest

RECIPE_WORLD = (
    "speechbrain", "torchaudio", "datasets", "hydra", "omegaconf", "sentencepiece", "soundfile",
    "transformers", "matplotlib", "tensorboard", "espeakng_loader", "typer", "curvlinops",
)  # fmt: skip
ROOMS = ("methods", "adapt", "speech", "images", "studies", "testing", "cli")
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


POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios")


@pytest.mark.parametrize("module", ["asrcl.curvature", "asrcl.merge", "asrcl.scoring", "asrcl.adapt", "asrcl.methods"])
def test_a_room_loads_without_what_windows_lacks(module):
    """In `sys.modules`, None makes an import raise ImportError."""
    hidden = f"sys.modules.update(dict.fromkeys({POSIX_ONLY}))"
    hidden += "; [delattr(os, name) for name in ('fork', 'getppid', 'O_DIRECTORY', 'O_NOFOLLOW', 'geteuid')]"
    program = f"import os, sys; {hidden}; import {module}"
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
