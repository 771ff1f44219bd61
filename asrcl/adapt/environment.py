"""Where a number came from: versions, machine, state of the source tree."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("asrcl", "torch", "torchaudio", "speechbrain", "jiwer", "sentencepiece", "datasets", "numpy")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def environment(device: str = "cpu") -> dict[str, str]:
    """Python, packages, processor, accelerator, git commit (with + when the tree has uncommitted changes)."""
    commit = _git("rev-parse", "--short", "HEAD")
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "processor": f"{_processor()} ({os.cpu_count()} cores, {torch.get_num_threads()} threads)",
        "accelerator": torch.cuda.get_device_name()
        if device.startswith("cuda") and torch.cuda.is_available()
        else "none",
        "git": commit + ("+" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""),
    }
