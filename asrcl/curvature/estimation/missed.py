"""Uses of a parameter that the capture cannot see: custom autograd functions, scripted functions, fused kernels.

The gradient that the seen uses of a parameter add up to is held against the one of autograd, which knows all uses. It takes one
forward and one backward pass with the gradients of all parameters, over one batch.

Shapes: O outputs, I inputs, R rows and C columns of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from asrcl.curvature.estimation.capture import Capture
from asrcl.curvature.estimation.holding import same_draws
from asrcl.curvature.estimation.losses import LossWatch
from asrcl.curvature.estimation.running import Receiver
from asrcl.curvature.estimation.uses import GroupUse, ItemUse, MapUse, TableUse, Use
from asrcl.curvature.parameters import ParameterIndex
from asrcl.curvature.torch_internals import run_backward

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Rounding:
    """What two ways of computing one gradient may differ by.

    Attributes:
        relative: to the gradient.
        terms: relative to what is added up to it, which may cancel.
    """

    relative: float
    terms: float


DOUBLE, SINGLE, TENSOR_CORES, HALF = Rounding(1e-6, 1e-11), Rounding(1e-3, 1e-5), Rounding(1e-2, 1e-4), Rounding(5e-2, 1e-4)


COARSE = 1000
"""Kernels of norms add up in half precision, where products of matrices do not: so much larger is their rounding."""
MAPS = {"a map", "a transposed map"}


def _way(use: Use) -> str:
    if isinstance(use, MapUse):
        return "a transposed map" if use.transposed else "a map"
    return "a table" if isinstance(use, TableUse) else "a shift, scale or kernel"


@dataclass
class _Seen:
    """The gradient of the seen uses of one parameter, `[R, C]` or its own shape."""

    total: Tensor
    terms: float = 0.0
    ways: set[str] = field(default_factory=set)
    half: bool = False
    whole: bool = True


class SeenGradients:
    """A sink for `Capture` that adds up whole gradients."""

    def __init__(self, index: ParameterIndex) -> None:
        self.seen: dict[str, _Seen] = {}
        self._index = index

    def begin(self, use: Use, late: bool) -> Receiver:
        """What takes the output gradient of a use."""
        source = use.source if isinstance(use, MapUse) else None
        version = source._version if source is not None else 0

        def receive(gradient: Tensor) -> None:
            name = use.view.name if isinstance(use, ItemUse) else use.key.name
            seen = self._of(name, gradient)
            seen.half |= gradient.dtype.itemsize < 4
            seen.ways.add(_way(use))
            if source is not None and source._version != version:
                seen.whole = False  # its input is gone
                return
            seen.terms += _add(seen.total, use, gradient)

        return receive

    def _of(self, name: str, gradient: Tensor) -> _Seen:
        if name not in self.seen:
            parameter = self._index.parameters[name]
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            self.seen[name] = _Seen(torch.zeros(parameter.shape, dtype=dtype, device=gradient.device))
        return self.seen[name]


def _add(total: Tensor, use: Use, gradient: Tensor) -> float:
    """Add the gradient of one use; returns a bound of the size of its terms."""
    if isinstance(use, ItemUse):
        items = use.gradients(gradient).to(total.dtype)
        use.view.of(total).add_(items.sum(0))
        spread = gradient.numel() / max(1, items[0].numel())
        size = float(items.abs().sum(0).norm()) + float(gradient.to(total.dtype).norm()) * spread**0.5
        return size * (COARSE if gradient.dtype.itemsize < 4 else 1)
    rows = use.key.rows_of(total)
    if isinstance(use, GroupUse):
        items = use.gradients(gradient).to(total.dtype)
        rows.add_(items.sum(0).reshape(rows.shape))
        return float(items.abs().sum(0).norm())
    moved = use.layout(gradient)
    moved = moved.reshape(-1, moved.shape[-1]).to(total.dtype)
    if isinstance(use, TableUse):
        ids = use.ids.reshape(-1)
        moved = moved if use.padding is None else moved.masked_fill((ids == use.padding)[:, None], 0)
        rows.index_add_(0, ids, moved)
        return float(moved.abs().sum())
    values = use.values()
    inputs = values.reshape(-1, values.shape[-1]).to(total.dtype)
    found = inputs.T @ moved if use.transposed else moved.T @ inputs
    rows.add_(found.reshape(rows.shape))
    return float(moved.norm()) * float(inputs.norm())


@dataclass(frozen=True)
class Missed:
    """What the check of one batch found.

    Attributes:
        reasons: parameter -> which uses of it are not seen.
        partly: weight of a linear map -> its other use, which is seen but of another kind.
        tied: weights that are straight in one place and transposed or a table in another.
        checked: how many parameters were looked at.
        skipped: parameter -> why it could not be looked at; "" stands for all.
    """

    reasons: dict[str, str]
    partly: dict[str, str]
    tied: set[str]
    checked: int
    skipped: dict[str, str]

    def __str__(self) -> str:
        if "" in self.skipped:
            return f"not checked: {self.skipped['']}"
        rest = f"; not checked: {', '.join(sorted(self.skipped))}" if self.skipped else ""
        return f"the gradients of {self.checked} parameters are those of autograd, of {len(self.reasons)} they are not{rest}"


def missed_uses(
    model: nn.Module, loss_fn: LossFunction, batch: Any, size: int, index: ParameterIndex, losses: LossWatch
) -> Missed:
    """Hold the gradients that a capture sees against those of autograd.

    Args:
        model: in eval mode, its parameters frozen.
        loss_fn: of the estimate.
        batch: of `size` items.
        size: how many.
        index: the parameters; it is left as it is.
        losses: empirical, with the parts of the estimate.
    """
    index = index.fresh()
    open_ones = {name: index.parameters[name] for name in sorted(index.selected)}
    try:
        sink, gradients = _both(model, loss_fn, batch, size, index, losses, open_ones)
    except RuntimeError as error:  # a model whose activations are changed in place cannot be differentiated by its weights
        return Missed({}, {}, set(), 0, {"": f"no gradients of the parameters ({' '.join(str(error).split())[:150]})"})
    reasons, skipped, partly = {}, {}, {}
    seen = {name: s for name, s in sink.seen.items() if name not in index.foreign}
    for name, found in seen.items():
        truth = gradients.get(name)
        if not found.whole:
            skipped[name] = "its input is changed in place"
        elif why := _difference(found, truth, index.parameters[name]):
            reasons[name] = why
        if others := found.ways - MAPS:
            partly[name] = f"its use as {' and '.join(sorted(others))}"
    maps = {name for name, found in sink.seen.items() if found.ways & MAPS}
    partly |= {name: f"where it is {why}" for name, why in index.foreign.items()}
    partly = {name: why for name, why in partly.items() if name in maps}
    tied = {name for name, found in seen.items() if "a map" in found.ways and found.ways & {"a transposed map", "a table"}}
    return Missed(reasons, partly, tied, len(seen) - len(skipped) - len(reasons), skipped)


def _both(
    model: nn.Module,
    loss_fn: LossFunction,
    batch: Any,
    size: int,
    index: ParameterIndex,
    losses: LossWatch,
    open_ones: Mapping[str, nn.Parameter],
) -> tuple[SeenGradients, dict[str, Tensor]]:
    """Seen gradients and autograd's, from the same backward pass."""
    device = next(iter(open_ones.values())).device
    for whole in (False, True):  # reentrant checkpointing knows no gradients of chosen tensors, but a whole pass runs their hooks
        sink = SeenGradients(index)
        capture = Capture(index, sink)
        kept = {name: parameter.grad for name, parameter in open_ones.items()}
        try:
            for parameter in open_ones.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            with same_draws(device), capture:
                capture.start_batch(size)
                with losses:
                    loss = loss_fn(model, batch)
                if not loss.requires_grad:
                    return sink, {}
                capture.start_backward()
                wanted = () if whole else tuple(open_ones.values())
                found = run_backward(loss, wanted, accumulate=whole)
            every = [parameter.grad for parameter in open_ones.values()] if whole else found
            return sink, {name: g.detach() for name, g in zip(open_ones, every, strict=True) if g is not None}
        except RuntimeError as error:
            if whole or "checkpoint" not in str(error):
                raise
        finally:
            for name, parameter in open_ones.items():
                parameter.requires_grad_(False)
                parameter.grad = kept[name]
    raise AssertionError("unreachable")


def _difference(seen: _Seen, truth: Tensor | None, parameter: Tensor) -> str:
    """How the gradient of the seen uses falls short; "" where it does not."""
    rounding = _rounding(seen, parameter)
    whole = torch.zeros_like(seen.total) if truth is None else truth.to(seen.total).reshape(seen.total.shape)
    error, size = float((seen.total - whole).norm()), float(whole.norm())
    if not error > max(rounding.relative * size, rounding.terms * seen.terms):
        return ""
    share = f"{100 * error / size:.3g} % of its gradient" if size > 0 else "its gradient"
    what = "an operation that cannot be seen (a custom autograd function, a script or a fused kernel)"
    return f"used by {what}: {share} is not seen"


def _rounding(seen: _Seen, parameter: Tensor) -> Rounding:
    if seen.half or parameter.dtype.itemsize < 4 or torch.is_autocast_enabled(parameter.device.type):
        return HALF
    if parameter.dtype == torch.float64:
        return DOUBLE
    return TENSOR_CORES if parameter.is_cuda else SINGLE
