"""Configurations of image scenarios for tests."""

from __future__ import annotations

from pathlib import Path

from asrcl.experiment.config import load_config


def configured(folder: Path, scenario: str = "permuted_digits", *more: str):
    """A small and quick scenario of digits."""
    quick = ["tuned=none", "train.initial.epochs=3", "train.adapt.epochs=2", "launcher.threads=1", "device=cpu"]
    return load_config([f"scenario={scenario}", f"exp={folder}", *quick, "tracking.backends=[]", *more])


PAIRS = "scenario.domains=[{name: '01', classes: [0, 1]}, {name: '23', classes: [2, 3]}, {name: '45', classes: [4, 5]}]"
