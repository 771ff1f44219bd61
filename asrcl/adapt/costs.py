"""What a piece of work costs: seconds, and the peaks of memory while it runs, not those of the process since its start."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import torch

_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")


@contextmanager
def measured(device: str) -> Iterator[dict[str, float]]:
    """Measures a block; afterwards the dict that it gives has the numbers.

    `seconds`; `peak_memory_bytes`, the largest resident memory while the block ran, where the system tells it (on Linux;
    elsewhere since the process began, or 0); on a GPU also `gpu_peak_memory_bytes`, the largest sum of torch's tensors there.

    Args:
        device: where the block computes.
    """
    found: dict[str, float] = {}
    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    with suppress(OSError):
        _RESET.write_text("5")  # see proc(5): the peak begins anew
    if on_gpu:
        torch.cuda.init()  # resetting asks for it
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    yield found
    if on_gpu:
        torch.cuda.synchronize(device)
        found["gpu_peak_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    found["seconds"] = time.perf_counter() - started
    found["peak_memory_bytes"] = peak_memory()


def peak_memory() -> int:
    """Largest resident memory of this process in bytes since it was last reset, or since it began; 0 where nobody tells it."""
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
