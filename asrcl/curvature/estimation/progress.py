"""Checkpoints of an estimate, from which a killed run continues, and the test of whether its sums have converged."""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature import storage
from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, DiagonalBlock
from asrcl.curvature.estimation.loop import Estimation
from asrcl.curvature.estimation.running import Saved
from asrcl.curvature.estimation.sharing import Group
from asrcl.curvature.storage.boundary import readable
from asrcl.exceptions import InputError

CHECK_EVERY = 1.25
"""Convergence is looked at whenever the number of batches has grown by this factor."""
FIRST_CHECK = 4
"""Batches before the first look."""


class Watcher:
    """Tells when the sums have converged.

    Args:
        tolerance: relative change below which to stop, None for never.
        group: of one process.

    Attributes:
        stopped: whether it said so.
    """

    def __init__(self, tolerance: float | None, group: Group) -> None:
        if tolerance is not None and group.count > 1:
            raise InputError("tolerance stops one process; with several leave it out and use max_items")
        self.stopped = False
        self._tolerance = tolerance
        self._next, self._before = float(FIRST_CHECK), dict[str, Tensor]()

    def converged(self, work: Estimation) -> bool:
        """Whether the root mean square, over all sums, of the relative change of their diagonals is below the tolerance."""
        if self._tolerance is None or work.batches < self._next:
            return self.stopped
        now = work.diagonals()
        known = bool(now) and now.keys() == self._before.keys()
        changes = [_change(self._before[name], value) for name, value in now.items()] if known else []
        self._next, self._before = work.batches * CHECK_EVERY, {name: value.clone() for name, value in now.items()}
        self.stopped = known and math.sqrt(sum(c * c for c in changes) / len(changes)) < self._tolerance
        return self.stopped

    def saved(self) -> Saved:
        """Return the state that `restore` continues from: tensors, and facts as JSON."""
        tensors = {f"before{n}": value for n, value in enumerate(self._before.values())}
        return tensors, {"watched": list(self._before), "next": self._next, "stopped": self.stopped}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        self._before = {name: tensors[f"before{n}"] for n, name in enumerate(facts["watched"])}
        self._next, self.stopped = facts["next"], facts["stopped"]


def _change(before: Tensor, now: Tensor) -> float:
    size = float(now.norm())
    return float((now - before).norm()) / size if size > 0 else 0.0


class Partial:
    """The checkpoint of an estimate; of several processes each has its own, named `<path>.<rank>-of-<count>`.

    The file has the form of a curvature file; its blocks are the tensors of the sums by name.

    Args:
        path: of the file.
        seconds: least time between two writes.
        group: the processes.
        fingerprint: what must agree with the run that wrote it.
    """

    def __init__(self, path: str | os.PathLike[str], seconds: float, group: Group, fingerprint: dict[str, Any]) -> None:
        base = Path(path)
        self.path = base if group.count == 1 else base.with_name(f"{base.name}.{group.rank}-of-{group.count}")
        self._seconds, self._fingerprint = seconds, fingerprint
        self._last = time.monotonic()

    def restore(self, work: Estimation, watcher: Watcher) -> int:
        """Fill the sums from the file; the number of batches (of all processes) that are done.

        Raises:
            InputError: the file is damaged or belongs to another estimate.
        """
        if not self.path.exists():
            return 0
        try:
            blocks, metadata = storage.read(self.path)
            mine = metadata.get("fingerprint") == self._fingerprint
            tensors = _tensors(blocks, next(iter(work.parameters.values())).device) if mine else {}
        except InputError as error:
            raise InputError(f"{self.path}: a damaged checkpoint ({error}); delete it to start over") from error
        if not mine:
            reason = "the checkpoint of another estimate (model, options or parameters)"
            raise InputError(f"{self.path}: {reason}; delete it, or name another checkpoint")
        with readable(self.path):
            work.restore(tensors, metadata)
            watcher.restore(tensors, metadata)
            return int(metadata["done"])

    def save_if_due(self, done: int, work: Estimation, watcher: Watcher) -> None:
        """Write the file if enough time has passed."""
        if time.monotonic() - self._last < self._seconds:
            return
        (sums, facts), (watched, watcher_facts) = work.saved(), watcher.saved()
        metadata = {"fingerprint": self._fingerprint, "done": done, **facts, **watcher_facts}
        storage.write(self.path, _blocks(sums | watched), metadata, max_shard_bytes=sys.maxsize)
        self._last = time.monotonic()

    def remove(self) -> None:
        """The estimate is done; what writes left that were killed goes too."""
        self.path.unlink(missing_ok=True)
        pattern = re.compile(rf"\.{re.escape(self.path.name)}\.[^.]+\.part")
        for file in self.path.parent.glob(".*.part"):
            if pattern.fullmatch(file.name):
                file.unlink(missing_ok=True)


def _blocks(tensors: Mapping[str, Tensor]) -> dict[BlockKey, Block]:
    """Tensors as blocks, symmetric matrices so that one triangle is stored; empty ones are left out."""
    found: dict[BlockKey, Block] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and torch.equal(tensor, tensor.mT):
            found[BlockKey(name, 0, len(tensor))] = DenseBlock(tensor[None], 1, len(tensor))
        elif tensor.numel():
            found[BlockKey(name, 0, 1)] = DiagonalBlock(tensor[None], 1)
    return found


def _tensors(blocks: Mapping[BlockKey, Block], device: torch.device) -> dict[str, Tensor]:
    """What `_blocks` was given."""
    return {key.name: next(iter(block.tensors().values()))[0].to(device) for key, block in blocks.items()}
