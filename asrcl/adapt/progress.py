"""How far long work is, and how long the rest will take."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any


class Progress:
    """Counts the parts that are done over all processes.

    Args:
        total: number of parts.
        what: their name in messages, in the plural.
        count: shared between processes; None for one process alone.
    """

    def __init__(self, total: int, what: str, count: Any = None) -> None:
        self.total, self.what, self.started = total, what, time.time()
        self._count, self._alone = count, 0

    def step(self, parts: int = 1) -> str:
        """Count parts as done; returns "7 of 20 stages, about 3 min 10 s left"."""
        with self._count.get_lock() if self._count is not None else nullcontext():
            done = (self._count.value if self._count is not None else self._alone) + parts
            if self._count is not None:
                self._count.value = done
            self._alone = done
        left = (time.time() - self.started) / done * max(0, self.total - done)
        return f"{done} of {self.total} {self.what}" + (f", about {duration(left)} left" if done < self.total else "")


def duration(seconds: float) -> str:
    """"45 s", "3 min 10 s" or "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
