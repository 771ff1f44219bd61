"""What checking stored work costs at the size of a model: hashes against writing, reading and each other.

    tools/bench_hashing.py                # 47 M parameters and Adam's moments, three rounds, one thread

Printed are seconds, the median of the rounds: for hashing the weights with the functions that are installed, for writing the
state after an epoch, and for checking it before training goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from asrcl import entries
from asrcl.adapt import save_weights, state_of
from asrcl.adapt.resume import save_progress, saved_progress
from asrcl.scoring.display.table import markdown, plain

CHUNK = 1 << 20


def model_of(millions: int) -> nn.Sequential:
    """Square maps of 1.05 M parameters each."""
    return nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(round(millions / 1.05))))


def seconds(action: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def hash_with(name: str, path: Path) -> None:
    """Hash a file with a function of hashlib, or of the package xxhash or blake3."""
    if name in ("xxh3_128", "blake3"):
        module = __import__("xxhash" if name == "xxh3_128" else "blake3")
        digest = getattr(module, name)()
        with open(path, "rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    else:
        with open(path, "rb") as stream:
            hashlib.file_digest(stream, name)


def one_round(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, float]:
    """Everything once."""
    weights = folder / f"epoch{epoch:03d}.safetensors"
    took = {"write the weights of an epoch": seconds(lambda: save_weights(state_of(model), weights))}
    for name in ("sha256", "blake2b", "xxh3_128", "blake3"):
        package = {"xxh3_128": "xxhash", "blake3": "blake3"}.get(name, "hashlib")
        if importlib.util.find_spec(package):
            took[f"hash them: {name}"] = seconds(lambda name=name: hash_with(name, weights))  # type: ignore[misc]
    hashing: list[float] = []
    original = entries.fingerprint_file

    def timed(path: str | Path) -> dict[str, object]:
        started = time.perf_counter()
        found = original(path)
        hashing.append(time.perf_counter() - started)
        return found

    entries.fingerprint_file = timed
    try:
        took["write the state of training, with its hashes"] = seconds(
            lambda: save_progress(folder, model, optimizer, {"epoch": epoch}, [weights.name])
        )
    finally:
        entries.fingerprint_file = original
    took["of which hashing"] = sum(hashing)
    took["check it before training goes on"] = seconds(lambda: saved_progress(folder))
    return took


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=47, help="parameters")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = model_of(options.millions)
    optimizer = torch.optim.Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [one_round(Path(folder), model, optimizer, epoch) for epoch in range(1, options.rounds + 1)]
    rows = [[name, f"{statistics.median(found[name] for found in rounds):.2f}"] for name in rounds[0]]
    print(markdown(plain(["what", "seconds"], rows)))


if __name__ == "__main__":
    main()
