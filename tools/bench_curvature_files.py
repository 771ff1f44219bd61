"""What the checksums of a curvature file cost, beside writing and reading it.

    python tools/bench_curvature_files.py

The blocks are those of a Transformer of about 47 M parameters: 15 layers of width 512 with inner width 2048, every map a
Kronecker block, random sums. Shown is the median of the rounds; the files lie in memory as long as the system keeps them there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from asrcl.curvature import BlockKey, Curvature, KroneckerBlock
from asrcl.curvature.storage import files, lazy
from asrcl.curvature.storage.packing import checksum, raw

MAPS = ((512, 512),) * 4 + ((512, 2048), (2048, 512))
"""Inputs and outputs of the maps of a layer."""


def curvature(layers: int) -> Curvature:
    """Blocks with random sums; the first three maps of a layer read one input."""
    blocks = {}
    for layer in range(layers):
        factors = [_spd(inputs) for inputs, _ in MAPS]
        for place, (_, outputs) in enumerate(MAPS):
            key = BlockKey(f"layers.{layer}.{place}.weight", 0, outputs)
            blocks[key] = KroneckerBlock.of(factors[0 if place < 3 else place], _spd(outputs), 1000, 10)
    return Curvature(blocks)


def _spd(size: int) -> torch.Tensor:
    rows = torch.randn(64, size)
    return rows.T @ rows


@contextmanager
def unchecked() -> Iterator[None]:
    """Checksums that cost nothing and always agree."""
    same = mock.Mock(side_effect=lambda *_: "0" * 8)
    with mock.patch.object(files, "checksum", same), mock.patch.object(lazy, "checksum", same):
        yield


def median(rounds: int, work: Callable[[], object]) -> float:
    """Seconds."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Print one line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    found = curvature(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        path = found.save(Path(folder) / "curvature.safetensors")
        loaded = Curvature.load(path, lazy=False)
        tensors = {id(t): t for block in loaded.blocks.values() for t in block.tensors().values()}
        size = path.stat().st_size
        print(f"{sum(block.weights for block in found.blocks.values()) / 1e6:.1f} M weights, {size / 1e6:.0f} MB on disk")
        data = torch.cat([tensor.flatten()[: tensor.numel() // 2] for tensor in tensors.values()])
        print(f"CRC-32 of {data.nbytes / 1e6:.0f} MB: {median(options.rounds, lambda: checksum(raw(data))):.3f} s")
        print(f"save: {median(options.rounds, lambda: found.save(path)):.3f} s")
        print(f"load: {median(options.rounds, lambda: Curvature.load(path, lazy=False)):.3f} s")
        with unchecked():
            print(f"save without checksums: {median(options.rounds, lambda: found.save(path)):.3f} s")
            print(f"load without checksums: {median(options.rounds, lambda: Curvature.load(path, lazy=False)):.3f} s")


if __name__ == "__main__":
    main()
