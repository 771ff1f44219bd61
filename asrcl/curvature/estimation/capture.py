"""Watching a model at the functional level while it runs.

A `Capture` is a torch function mode: every operation of the model passes through it, however it was written, so raw parameters
used through `F.linear`, packed attention weights and their chunks, tied weights and plain `nn.Linear` are all seen alike. What an
operation does with a parameter is described by its adapter (`layers`); operations without one are noted, so that a parameter with
a use that no adapter describes is never given a block that misses it.

Parameters are frozen meanwhile: gradients flow along activations only, which spares the weight gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from asrcl.curvature.estimation.layers import ADAPTERS, Adapter
from asrcl.curvature.estimation.masks import ItemAxes, Merges
from asrcl.curvature.estimation.uses import ItemUse, Use
from asrcl.curvature.parameters import ParameterIndex
from asrcl.curvature.torch_internals import is_view

NO_USE = frozenset(
    ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "zeros_like", "ones_like", "empty_like", "full_like",
     "rand_like", "randn_like")
)  # fmt: skip
"""Operations that take a parameter for its type and shape alone."""
WRITES = {Tensor.__setitem__}
"""Operations that return nothing and write a parameter into something else."""


class Sink(Protocol):
    """What a capture hands its uses to."""

    def begin(self, use: Use, late: bool) -> Callable[[Tensor], None] | None:
        """Return the function that takes the output gradient of a use, or None where it is not needed."""
        ...


class _Root(torch.autograd.Function):
    """Lets a gradient reach an output though no parameter asks for one, and be seen though the output is a view.

    `F.linear` with a bias returns a view; when the model then writes into it (`masked_fill_`), autograd replaces the node of the
    view, and a hook on it would never be called.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        """Return the same values with a gradient path."""
        if is_view(output):
            return output.detach()
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        """On to what the output was computed from."""
        return gradients[0] if ctx.needs_input_grad[0] else None, None


# A function mode and not hooks on modules: hooks see module classes, and miss parameters that are used through `F.linear`,
# packed, chunked or tied, which is how attention layers of speech toolkits use theirs.
class Capture(TorchFunctionMode):
    """The mode; open it around the forward and the backward pass.

    Args:
        index: the parameters.
        sink: takes the uses.
        linear_only: describe the weights of linear maps alone.
        axes: what is known of the axes of items; it learns from every use.

    Attributes:
        items: items of the batch in flight.
        merges: the axes that the model has merged in this batch.
        watched: parameters whose outputs somebody waits for.
        reentrant: whether a part of the model was seen for the first time in the backward pass (reentrant checkpointing).
    """

    def __init__(self, index: ParameterIndex, sink: Sink, linear_only: bool = False, axes: ItemAxes | None = None) -> None:
        super().__init__()
        self.index, self.sink, self.linear_only = index, sink, linear_only
        self.axes = axes or ItemAxes()
        self.items, self.merges, self.reentrant = 0, Merges(), False
        self.watched: set[str] = set()
        self._late = False
        self._without_gradient: set[str] = set()
        self._recorded: set[str] = set()
        self._open = False  # hooks may outlive the capture, in graphs that somebody keeps; they must not add anything then
        self._anchor = torch.zeros((), requires_grad=True)

    def __enter__(self) -> Capture:
        self._open = True
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        # The fused attention of eval mode would hide its linear maps once nothing requires gradients.
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open = False
        torch.backends.mha.set_fastpath_enabled(self._fast_path)
        super().__exit__(*error)

    def start_batch(self, items: int) -> None:
        """Announce that a batch of `items` items begins."""
        self.items, self.merges, self._late = items, Merges(), False
        self._without_gradient, self._recorded = set(), set()

    def start_backward(self) -> None:
        """From here on operations are repetitions (gradient checkpointing): only those not seen before count."""
        self._late = True

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, with what it does with parameters described."""
        adapter: Adapter | None = ADAPTERS.get(func)
        if adapter is not None:
            return adapter(self, func, *args, **(kwargs or {}))
        return self.plain(func, *args, **(kwargs or {}))

    def plain(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run an operation without adapter, and note the parameters it takes."""
        output = func(*args, **kwargs)
        if self.linear_only or not torch.is_grad_enabled() or getattr(func, "__name__", "") in NO_USE:
            return output
        for tensor in _tensors((*args, *kwargs.values())):
            if self.index.owner(tensor) is not None and (func in WRITES or self._computes(output, tensor)):
                self.index.refuse(tensor, f"used by {getattr(func, '__name__', func)}")
        return output

    def _computes(self, output: Any, tensor: Tensor) -> bool:
        """Whether something floating came out that is no view of the parameter."""
        return any(
            out.is_floating_point() and out.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()
            for out in _tensors(output if isinstance(output, list | tuple) else (output,))
        )

    def watch(self, output: Tensor, uses: Sequence[Use]) -> Tensor:
        """Have the gradient of an output taken by everyone who wants it for one of the uses."""
        names = {use.view.name if isinstance(use, ItemUse) else use.key.name for use in uses}
        if not torch.is_grad_enabled():
            self._without_gradient |= names
            return output
        if self._late and not names <= self._without_gradient:
            # As in the first pass, or checkpointing would miss what later operations saved.
            return self._rooted(output) if names & self._recorded else output
        self.reentrant |= self._late and bool(names)
        # Reentrant checkpointing runs the forward pass first without gradients. A parameter that was seen both with and without
        # them would be counted once only, so that it goes item by item.
        if self._late and names & self._recorded:
            for name in names & self._recorded:
                self.index.foreign.setdefault(name, "used both inside and outside of reentrant gradient checkpointing")
            return output
        receivers = [receiver for use in uses if (receiver := self.sink.begin(use, self._late)) is not None]
        if not receivers:
            return output
        self.watched |= names
        if not self._late:
            self._recorded |= names
        output = self._rooted(output)

        def on_gradient(gradient: Tensor) -> None:
            if self._open:
                for receive in receivers:
                    receive(gradient.detach())

        output.register_hook(on_gradient)
        return output

    def _rooted(self, output: Tensor) -> Tensor:
        plain = output.requires_grad and not is_view(output)
        return output if plain else _Root.apply(output, self._anchor)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (part for part in value if isinstance(part, Tensor))
