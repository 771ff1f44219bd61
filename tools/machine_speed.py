"""Say how fast this machine is, to stand beside measured times: the rate of a matrix product, by number of threads.

tools/machine_speed.py
AMD EPYC, 2 cores: a product of 1024 x 1024 float32 matrices at 92 GFLOP/s on 1 thread, 182 on 2
"""

from __future__ import annotations

import os
import time

import torch

from asrcl.adapt.environment import environment

SIZE = 1024
REPEATS = 10


def gigaflops(threads: int) -> float:
    """The best of a few matrix products, in 1e9 floating-point operations per second."""
    torch.set_num_threads(threads)
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return 2 * SIZE**3 / min(seconds) / 1e9


def main() -> None:
    """Print one line."""
    cores = os.cpu_count() or 1
    where = environment("cpu")["processor"].partition(" (")[0]
    rates = f"{gigaflops(1):.0f} GFLOP/s on 1 thread" + (f", {gigaflops(cores):.0f} on {cores}" if cores > 1 else "")
    print(f"{where}, {cores} cores: a product of {SIZE} x {SIZE} float32 matrices at {rates}")


if __name__ == "__main__":
    main()
