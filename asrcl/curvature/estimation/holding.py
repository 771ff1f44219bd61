"""Comparing the loss of a batch with the losses of its items one by one, before anything is summed.

The gradients of items are taken to be those of the batch's loss times the number of items, which is so for a mean over items and
for nothing else. A mean that weighs the items (over tokens or frames of all items) is let pass and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from asrcl.curvature.estimation.batching import OWN_ITEMS, Reading, Verdict, split_items, take, to_device
from asrcl.exceptions import InputError

MOST_ITEMS = 16
"""Of a larger batch of tensors so many items are looked at."""
CLOSE = 1e-2
"""Relative difference of two losses that are the same but for rounding."""
CLOSE_HALF = 5e-2
"""The same for models in half precision."""
SAME = 1e-4
"""Relative difference of a loss and a sum of losses that is no coincidence."""
PADDED = 0.25
"""How far, relatively, losses move when items are cut out of a padded batch."""
SUM_REMEDY = "divide it by the number of items (in transformers: ctc_loss_reduction='mean')"


class LossCheck:
    """Says of a batch in a reading whether its loss is a mean over its items.

    Args:
        model: in eval mode.
        loss_fn: of the estimate.
        device: where batches are moved.
    """

    def __init__(self, model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], device: torch.device) -> None:
        self._model, self._loss_fn, self._device = model, loss_fn, device
        halves = any(p.is_floating_point() and p.dtype.itemsize < 4 for p in model.parameters())
        self._close = CLOSE_HALF if halves else CLOSE

    def __call__(self, batch: Any, reading: Reading) -> Verdict:
        """What came of it."""
        if reading.size < 2:
            return Verdict(None, "one item")
        with same_draws(self._device):
            return self._judged(to_device(batch, self._device), reading)

    def _judged(self, batch: Any, reading: Reading) -> Verdict:
        own = reading.places == OWN_ITEMS
        if own and not hasattr(batch, "items"):
            return Verdict(True, f"not checked: {type(batch).__name__} has no items()")
        count = reading.size if own else min(reading.size, MOST_ITEMS)
        several = batch if count == reading.size else take(batch, reading, range(count))
        whole = self._loss(several)
        if not _finite(whole):
            return Verdict(None, "a loss that is not finite")
        losses: list[float] = []
        try:
            parts = split_items(several) if own else (take(several, reading, [item]) for item in range(count))
            losses.extend(self._loss(part) for part in parts)
        except Exception as error:  # it is the user's, and a batch that is cut wrongly may fail in any way
            why = f"item {len(losses)} by itself fails with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if own:
                return Verdict(True, f"not checked: {why}")
            where = ", ".join(place or "the batch itself" for place in sorted(reading.places))
            return Verdict(False, f"the {reading.size} items of a batch (in {where}) do not work alone: {why}")
        return self._compared(several, reading, whole, losses)

    def _compared(self, batch: Any, reading: Reading, whole: float, losses: Sequence[float]) -> Verdict:
        finite = [item for item, loss in enumerate(losses) if _finite(loss)]
        if len(finite) < 2 or not (whole or any(losses[item] for item in finite)):
            return Verdict(None, "items without a loss of their own")
        own, kept = reading.places == OWN_ITEMS, [losses[item] for item in finite]
        if len(finite) < len(losses) and not own:
            whole = self._loss(take(batch, reading, finite))
        mean, most = sum(kept) / len(kept), max(map(abs, kept))
        if (len(finite) == len(losses) or not own) and abs(whole - mean) <= self._close * most:
            return Verdict(True, f"the mean over items (held against {len(kept)} single items)", plain=True)
        may_weigh = _between(whole, kept, PADDED) and not _sums(whole, kept, SAME)
        if may_weigh if own else self._weighs(batch, reading, losses, finite):
            return Verdict(True, f"a mean that weighs the items ({whole:.4g}; of {len(kept)} single items {mean:.4g})")
        if not own and abs(self._loss(batch) - self._loss(batch)) > self._close * most and _between(whole, kept, 2 * PADDED):
            return Verdict(True, "not checked: the loss of one batch is not the same twice")
        if not self._depends(batch):
            return Verdict(None, "a loss that depends on no parameter")
        found = f"the loss of {len(kept)} items is {whole:.4g}, of the items by themselves {min(kept):.4g} to {max(kept):.4g}"
        if _sums(whole, kept, self._close):
            return Verdict(False, f"{found}: a sum over the items where their mean is needed; {SUM_REMEDY}")
        mixing = "look for a sum, and for what mixes items, such as batch statistics or contrasts"
        return Verdict(False, f"{found}: no mean over the items; {mixing}")

    def _weighs(self, batch: Any, reading: Reading, losses: Sequence[float], finite: Sequence[int]) -> bool:
        """Whether several copies of an item have the loss of one, as under every mean."""
        chosen = {finite[0], max(finite, key=lambda item: abs(losses[item]))}
        twice = {item: self._loss(take(batch, reading, [item, item])) for item in chosen}
        return all(abs(loss - losses[item]) <= self._close * abs(losses[item]) for item, loss in twice.items())

    def _depends(self, batch: Any) -> bool:
        """Whether the loss of a batch depends on a parameter at all, without which there are better things to say."""
        parameters = [p for p in self._model.parameters() if p.is_floating_point()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            return self._loss_fn(self._model, batch).requires_grad
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def _loss(self, batch: Any) -> float:
        loss = self._loss_fn(self._model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise InputError("loss_fn must return one number, the mean loss of the batch's items")
        return float(loss.detach())


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Leave the random numbers of torch as they were, so that a look ahead changes nothing."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _sums(value: float, losses: Sequence[float], close: float) -> bool:
    return abs(value - sum(losses)) <= close * abs(sum(losses))


def _between(value: float, losses: Sequence[float], slack: float) -> bool:
    room = slack * max(map(abs, losses))
    return min(losses) - room <= value <= max(losses) + room
