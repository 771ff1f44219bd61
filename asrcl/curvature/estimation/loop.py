"""The loop of an estimation: forward, backward, sums; item by item where a parameter needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asrcl.curvature.blocks import Block, BlockKey
from asrcl.curvature.estimation.batching import Reader
from asrcl.curvature.estimation.capture import Capture, Sink
from asrcl.curvature.estimation.holding import LossCheck, same_draws
from asrcl.curvature.estimation.losses import LossWatch
from asrcl.curvature.estimation.masks import ItemAxes, PaddingMasks
from asrcl.curvature.estimation.missed import missed_uses
from asrcl.curvature.estimation.peritem import FallbackSums, parameter_gradients
from asrcl.curvature.estimation.running import Saved
from asrcl.curvature.estimation.uses import Use
from asrcl.curvature.parameters import ParameterIndex
from asrcl.curvature.torch_internals import run_backward
from asrcl.exceptions import InputError

LossFunction = Callable[[Any, Any], Tensor]
PaddingFunction = Callable[[Any], Sequence[Tensor]]


class Sums(Sink, Protocol):
    """A sink that is told where a batch and a backward pass begin and end, and that can be saved on the way."""

    def start_batch(self, number: int, items: int, masks: PaddingMasks) -> None: ...  # noqa: D102
    def start_draw(self, weight: float) -> None: ...  # noqa: D102
    def end_draw(self) -> None: ...  # noqa: D102
    def end_batch(self) -> None: ...  # noqa: D102
    def tie(self, names: set[str]) -> None: ...  # noqa: D102
    def names(self) -> set[str]: ...  # noqa: D102
    def saved(self) -> Saved: ...  # noqa: D102
    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None: ...  # noqa: D102
    def diagonals(self, items: float) -> dict[str, Tensor]: ...  # noqa: D102


class Estimation:
    """Adds up one batch after another; open `evaluated(model)` around it.

    Before the first batch is added, the capture is held against autograd on it (`missed`), and every new make of batch is held
    against its single items (`holding`).

    Args:
        model: in eval mode, its parameters frozen.
        loss_fn: the mean loss of a batch's items.
        index: the parameters.
        sums: what takes the uses of parameters.
        losses: which Fisher information.
        padding: masks of a batch.
        fallback: takes per-item gradients of parameters without a layer adapter; None to leave these out.
        capture: False where every parameter goes item by item.
        lenient: accept batches whose loss reaches no parameter that is wanted.
        looks: a watch for the loss of the check for missed uses; None where that was made before.
        axes: what an earlier pass learnt of the axes of items.
        reader: of an earlier pass.

    Attributes:
        reader: sees the items of batches.
        hidden: parameters with a use that the capture does not see.
        partly: weight of a linear map -> its other use, where only linear maps are covered.
        items: items seen so far.
        batches: batches seen so far.
        unreached: why parameters were given up.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        index: ParameterIndex,
        sums: Sums,
        losses: LossWatch,
        padding: PaddingFunction | None = None,
        fallback: FallbackSums | None = None,
        *,
        linear_only: bool = False,
        capture: bool = True,
        lenient: bool = False,
        looks: LossWatch | None = None,
        axes: ItemAxes | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.items = self.batches = 0
        self._model, self._loss_fn, self._index, self._padding = model, loss_fn, index, padding
        self._sums, self._losses, self._fallback, self._captures = sums, losses, fallback, capture
        self._axes = axes or ItemAxes()
        self._capture = Capture(index, sums, linear_only, self._axes)
        self._lenient, self._linear_only, self._looks = lenient or fallback is not None, linear_only, looks
        self._device = next(iter(index.parameters.values())).device
        self.reader = reader or Reader(LossCheck(model, loss_fn, self._device))
        self.hidden: set[str] = set()
        self.partly: dict[str, str] = {}
        self._checks = {} if capture else {"uses": "not needed: every gradient is autograd's"}
        self._earlier: set[str] = set()
        self.unreached: dict[str, str] = {}
        self._reached: set[str] = set()
        self._unseen: set[str] = set()

    def add(self, number: int, size: int, batch: Any) -> None:
        """Add batch `number` of `size` items.

        Raises:
            InputError: the loss is not finite or reaches no parameter; masks or losses that do not fit.
        """
        if self._captures and self._looks is not None:
            self._look(size, batch, self._looks)
            self._looks = None
        if self._captures:
            self._together(number, size, batch)
        if self._fallback is not None:
            self._one_by_one(number, size, batch)
        self.items += size
        self.batches += 1

    def _look(self, size: int, batch: Any, losses: LossWatch) -> None:
        """Learn from the first batch where single items have their axis, and which parameters have a use that is not seen."""
        silent = _Silent()
        with suppress(Exception), same_draws(self._device):  # what fails here fails again where it matters
            for item in islice(self.reader.split(batch), 2):
                with Capture(self._index.fresh(), silent, axes=self._axes) as capture:
                    capture.start_batch(1)
                    self._loss_fn(self._model, item)
        found = missed_uses(self._model, self._loss_fn, batch, size, self._index, losses)
        self.hidden |= found.reasons.keys()
        self._index.foreign.update(found.reasons)
        self.partly = found.partly if self._linear_only else {}
        self._checks["uses"] = str(found)
        self._sums.tie(found.tied)

    def _together(self, number: int, size: int, batch: Any) -> None:
        masks = PaddingMasks(self._padding(batch) if self._padding else (), size)
        self._sums.start_batch(number, size, masks)
        self._capture.start_batch(size)
        self._losses.start_batch(number)
        with self._capture:
            with self._losses:
                loss = finite(self._loss_fn(self._model, batch), number)
            if not loss.requires_grad and self._lenient:
                return
            check_reached(loss)
            self._losses.check(loss)
            self._capture.start_backward()
            passes = self._losses.count()
            for done, weight in enumerate(self._losses.draws(), 1):
                self._sums.start_draw(weight)
                # The mean over the items times their number: every g is then the gradient of its own item's loss.
                run_backward(loss * size, retain=done < passes)
                self._sums.end_draw()
        self._sums.end_batch()

    def _one_by_one(self, number: int, size: int, batch: Any) -> None:
        assert self._fallback is not None
        wanted = {name: self._index.parameters[name] for name in self.fallback_names()}
        self._fallback.count(self._unseen - set(wanted), size)  # for their branch may yet come
        if not wanted:
            return
        try:
            parts = list(self.reader.split(batch))
        except InputError as error:
            if not self._captures:
                raise
            foreign = self._index.foreign
            self.unreached |= {n: f"{foreign.get(n, 'never seen in a known layer')}; {error}" for n in wanted}
            return
        self._fallback.count(wanted, size)
        # Reentrant checkpointing has no gradients behind an input that needs none.
        open_ones = dict(self._index.parameters) if self._capture.reentrant else wanted
        for parameter in open_ones.values():
            parameter.requires_grad_(parameter.is_floating_point())
        try:
            for place, item in enumerate(parts):
                self._losses.start_batch(-1 - number * 1_000_003 - place)
                self._add_item(number, item, wanted, open_ones)
        finally:
            for parameter in open_ones.values():
                parameter.requires_grad_(False)
        silent = set(wanted) - self._reached
        self.unreached = {name: why for name, why in self.unreached.items() if name not in self._reached}
        self.unreached |= dict.fromkeys(silent, "the loss does not depend on it")
        self._unseen = (self._unseen | silent) - set(self._index.foreign)

    def _add_item(
        self, number: int, item: Any, wanted: Mapping[str, nn.Parameter], open_ones: Mapping[str, nn.Parameter]
    ) -> None:
        assert self._fallback is not None
        with self._losses:
            loss = self._loss_fn(self._model, item)
        if finite(loss, number).requires_grad:
            self._losses.check(loss)
            passes = self._losses.count()
            for done, weight in enumerate(self._losses.draws(), 1):
                every = parameter_gradients(loss, open_ones, retain=done < passes)
                gradients = [(name, gradient) for name, gradient in every if name in wanted]
                self._reached |= {name for name, _ in gradients}
                self._fallback.add(gradients, weight)

    def fallback_names(self) -> list[str]:
        """Parameters that no layer adapter covers, and that the loss may depend on.

        One that the loss did not reach is given up, until an operation without adapter uses it for the first time.
        """
        foreign = set(self._index.foreign)
        left = self._index.selected - (self._sums.names() - foreign)
        given_up = set(self.unreached) - (self._unseen & foreign) if self._captures else set[str]()
        return [n for n in self._index.parameters if n in left and n not in given_up]

    @property
    def watched(self) -> frozenset[str]:
        """Parameters whose outputs were watched for a gradient."""
        return frozenset(self._capture.watched)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the model, by name."""
        return self._index.parameters

    def saved(self) -> Saved:
        """What `restore` goes on from: all sums and what was learnt."""
        (sums, facts), (items, item_facts) = self._sums.saved(), self._fallback.saved() if self._fallback else ({}, {})
        own = {
            "items": self.items,
            "batches_done": self.batches,
            "reached": sorted(self._reached),
            "unreached": self.unreached,
            "unseen": sorted(self._unseen),
            "foreign": self._index.foreign,
            "reasons": self._index.reasons,
            "losses": sorted(self._losses.seen),
            "hidden": sorted(self.hidden),
            "partly": self.partly,
            "checks": self.findings(),
        }
        return sums | items, facts | item_facts | own

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state that `saved` returned."""
        self._sums.restore(tensors, facts)
        if self._fallback:
            self._fallback.restore(tensors, facts)
        self.items, self.batches = facts["items"], facts["batches_done"]
        self._reached, self.unreached, self._unseen = set(facts["reached"]), dict(facts["unreached"]), set(facts["unseen"])
        self._index.foreign.update(facts["foreign"])
        self._index.reasons.update(facts["reasons"])
        self._losses.seen.update(facts["losses"])
        self.hidden, self.partly, self._checks = set(facts["hidden"]), dict(facts["partly"]), dict(facts["checks"])
        self._earlier = set(filter(None, [self._checks.pop("loss", "")]))

    def findings(self) -> dict[str, str]:
        """What was checked before anything was added -> what came of it."""
        held = sorted({*self.reader.verdicts.values(), *self._earlier})
        return {"uses": "not checked", **self._checks, "loss": "; ".join(held) or "not checked: no batch of several items"}

    def diagonals(self) -> dict[str, Tensor]:
        """Return the diagonals of all sums, normalised, by name."""
        found = self._sums.diagonals(max(self.items, 1))
        return found | self._fallback.diagonals() if self._fallback else found


class _Silent:
    """A sink that wants nothing."""

    def begin(self, use: Use, late: bool) -> None:
        """Ask for no gradient."""


@contextmanager
def cudnn_gradients(model: nn.Module, device: str = "cuda") -> Iterator[None]:
    """Hold the recurrent layers of a GPU in training mode, without their dropout: in eval mode cuDNN gives no gradients."""
    layers = [m for m in model.modules() if isinstance(m, nn.RNNBase) and next(m.parameters()).device.type == device]
    before = [(layer.training, layer.dropout) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.dropout = True, 0.0
        yield
    finally:
        for layer, (training, dropout) in zip(layers, before, strict=True):
            layer.training, layer.dropout = training, dropout


def finite(loss: Any, number: int) -> Tensor:
    """A loss as a scalar.

    Raises:
        InputError: it is not a number, or not finite.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("loss_fn must return one number, the mean loss of the batch's items")
    if not torch.isfinite(loss).all():
        raise InputError(f"the loss is {loss.item()} in batch {number} (of 0, 1, ...); remove that data or mend the model")
    return loss.reshape(())


def check_reached(loss: Tensor) -> None:
    """Make sure that a loss depends on a parameter.

    Raises:
        InputError: it does not.
    """
    if not loss.requires_grad:
        raise InputError("the loss depends on no parameter to be covered; widen include or look at loss_fn")


def check_blocks(blocks: Mapping[BlockKey, Block]) -> None:
    """Make sure that there is something and that it is finite.

    Raises:
        InputError: names the block.
    """
    if not blocks:
        raise InputError("the loss depends on no parameter to be covered; widen include or look at loss_fn")
    for key, block in blocks.items():
        if not all(torch.isfinite(tensor).all() for tensor in block.tensors().values()):
            raise InputError(f"{key}: an input or gradient is not finite although the loss is; look at the masking")
