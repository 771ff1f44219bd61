"""Watching every linear map of a model at the functional level, and summing its Kronecker factors as it runs.

`torch.nn.functional.linear` and pointwise `conv1d` are replaced while a `LinearWatch` is open, so raw
parameters used through `F.linear`, packed attention weights and their chunks, tied weights and plain
`nn.Linear` are all seen alike. One layout serves them all: inputs `[..., I]`, output gradients `[..., O]`; a
convolution's channel axis is moved to the end.

Parameters are frozen meanwhile: gradients flow along activations only, which spares the weight gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asrcl.curvature.blocks import BlockKey, KroneckerBlock
from asrcl.curvature.masks import PaddingMasks, choose, real_positions
from asrcl.curvature.parameters import ParameterIndex
from asrcl.exceptions import InputError


@contextmanager
def frozen(model: nn.Module, but: frozenset[str] = frozenset()) -> Any:
    """Hold the model in eval mode with all parameters frozen except `but`; restore everything on leaving."""
    modes = {module: module.training for module in model.modules()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in but)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])


@dataclass
class _Sums:
    """Running sums of one block."""

    input_sum: Tensor
    output_sum: Tensor
    positions: int = 0


@dataclass
class _Waiting:
    """An input whose mask can only be told from its output gradient."""

    values: Tensor
    version: int
    candidates: Sequence[Tensor]


@dataclass
class _Last:
    """The newest Gram matrix, kept while its input lives: query, key and value often read the same tensor."""

    source: weakref.ref[Tensor]
    version: int
    gram: Tensor
    key: BlockKey


class LinearWatch:
    """Sums Kronecker factors while open (`with watch: ...`); call `start_batch` before every forward pass.

    Attributes:
        items: items seen so far.
        unmasked: parameters whose batched inputs fitted none of the masks given, so that all positions
            counted.
    """

    def __init__(self, index: ParameterIndex) -> None:
        self.items = 0
        self.unmasked: set[str] = set()
        self._index = index
        self._sums: dict[BlockKey, _Sums] = {}
        self._shared: set[BlockKey] = set()
        self._last: _Last | None = None
        self._batches = 0
        self._batch_items = 0
        self._masks = PaddingMasks((), 0)
        self._open = False
        self._stack = ExitStack()

    def __enter__(self) -> LinearWatch:
        linear, conv1d = F.linear, F.conv1d
        fast_path = torch.backends.mha.get_fastpath_enabled()
        self._stack.callback(setattr, F, "linear", linear)
        self._stack.callback(setattr, F, "conv1d", conv1d)
        self._stack.callback(torch.backends.mha.set_fastpath_enabled, fast_path)
        # The fused attention of eval mode would bypass F.linear once nothing requires gradients.
        torch.backends.mha.set_fastpath_enabled(False)
        setattr(F, "linear", self._wrap_linear(linear))  # noqa: B010 (mypy refuses a plain assignment)
        setattr(F, "conv1d", self._wrap_conv1d(conv1d))  # noqa: B010
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._last = None
        self._stack.close()

    def start_batch(self, items: int, masks: Sequence[Tensor]) -> None:
        """Announce a batch of `items` items with its padding masks."""
        self._masks = PaddingMasks(masks, items)
        self._batch_items = items
        self._last = None
        self._batches += 1
        self.items += items

    def blocks(self) -> dict[BlockKey, KroneckerBlock]:
        """What was summed; maps that never ran on a real position have no block."""
        return {
            key: KroneckerBlock(sums.input_sum, sums.output_sum, sums.positions, self.items)
            for key, sums in self._sums.items()
            if sums.positions
        }

    def _wrap_linear(self, linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            output = linear(input, weight, bias)
            key = self._index.locate(weight) if weight.dim() == 2 else None
            return output if key is None else self._record(key, input, input, output, lambda g: g)

        return watched

    def _wrap_conv1d(self, conv1d: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(
            input: Tensor,
            weight: Tensor,
            bias: Tensor | None = None,
            stride: Any = 1,
            padding: Any = 0,
            dilation: Any = 1,
            groups: int = 1,
        ) -> Tensor:
            output = conv1d(input, weight, bias, stride, padding, dilation, groups)
            if weight.shape[-1] != 1 or groups != 1:
                kind = f"a convolution of kernel {weight.shape[-1]} in {groups} group(s)"
                self._index.note(weight, f"{kind}; only pointwise ones are linear maps")
                return output
            key = self._index.locate(weight)
            if key is None:
                return output
            seen = _strided(input, stride, padding).movedim(-2, -1)
            return self._record(key, seen, seen, output, lambda g: g.movedim(-2, -1))

        return watched

    def _record(
        self,
        key: BlockKey,
        source: Tensor,
        values: Tensor,
        output: Tensor,
        layout: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Sum the input now (later, if only the gradient can tell its mask), the gradient when it comes."""
        if not (self._open and torch.is_grad_enabled()):
            return output
        if not output.requires_grad:
            # A gradient must reach this output though no parameter asks for one; the sum keeps in-place use
            # downstream legal.
            output = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        settle = self._take(key, source, values.detach())

        def on_gradient(gradient: Tensor) -> None:
            if self._open:
                moved = layout(gradient.detach())
                self._add_gradient(key, real_positions(moved, settle(moved)))

        output.register_hook(on_gradient)
        return output

    def _take(self, key: BlockKey, source: Tensor, values: Tensor) -> Callable[[Tensor], Tensor | None]:
        """Sum an input, and return what tells its mask from the output gradient."""
        candidates = self._masks.candidates(values.shape[:-1])
        if len(candidates) > 1:
            return partial(self._settle, key, _Waiting(values, values._version, candidates))
        mask = candidates[0] if candidates else None
        if self._masks and mask is None and values.dim() > 2 and values.shape[0] > 1:
            self.unmasked.add(key.name)
        self._add_input(key, source, values, mask)
        return lambda _: mask

    def _settle(self, key: BlockKey, waiting: _Waiting, gradient: Tensor) -> Tensor:
        if waiting.values._version != waiting.version:
            remedy = "estimate with batches of one item and padding=None"
            raise InputError(f"{key}: its input is changed in place before the backward pass; {remedy}")
        mask = choose(waiting.candidates, gradient)
        rows = real_positions(waiting.values, mask)
        sums = self._sums_of(key, rows)
        rows = _accumulable(rows, sums.input_sum)
        sums.input_sum.addmm_(rows.mT, rows)
        sums.positions += rows.shape[0]
        return mask

    def _add_input(self, key: BlockKey, source: Tensor, values: Tensor, mask: Tensor | None) -> None:
        rows = real_positions(values, mask)
        sums = self._sums_of(key, rows)
        weight = self._repeats(values, mask)
        sums.positions += rows.shape[0] * weight
        last = self._last
        if last and last.source() is source and last.version == source._version:
            self._shared |= {key, last.key}
            sums.input_sum.add_(last.gram, alpha=weight)
        elif self._batches > 1 and key not in self._shared:
            rows = _accumulable(rows, sums.input_sum)
            sums.input_sum.addmm_(rows.mT, rows, alpha=weight)
        else:
            rows = _accumulable(rows, sums.input_sum)
            gram_II = rows.mT @ rows
            sums.input_sum.add_(gram_II, alpha=weight)
            self._last = _Last(weakref.ref(source), source._version, gram_II, key)

    def _repeats(self, values: Tensor, mask: Tensor | None) -> int:
        """How often an input counts: a table `[1, positions, I]` shared by the batch serves every item."""
        shared_table = mask is None and values.dim() > 2 and values.shape[0] == 1
        return self._batch_items if shared_table else 1

    def _add_gradient(self, key: BlockKey, rows: Tensor) -> None:
        sum_OO = self._sums[key].output_sum
        rows = _accumulable(rows, sum_OO)
        sum_OO.addmm_(rows.mT, rows)

    def _sums_of(self, key: BlockKey, rows: Tensor) -> _Sums:
        if key not in self._sums:
            # Half-precision sums would lose small gradients; single precision is the least we add in.
            like = rows.new_empty(0, dtype=torch.promote_types(rows.dtype, torch.float32))
            width, height = rows.shape[-1], key.row_stop - key.row_start
            self._sums[key] = _Sums(like.new_zeros(width, width), like.new_zeros(height, height))
        return self._sums[key]


def _accumulable(rows: Tensor, total: Tensor) -> Tensor:
    return rows.to(total.dtype)


def _strided(input: Tensor, stride: Any, padding: Any) -> Tensor:
    """The positions `[..., I, P]` that a pointwise convolution really reads."""
    step = stride if isinstance(stride, int) else stride[0]
    pad = 0 if isinstance(padding, str) else padding if isinstance(padding, int) else padding[0]
    padded = F.pad(input, (pad, pad)) if pad else input
    return padded[..., ::step]
