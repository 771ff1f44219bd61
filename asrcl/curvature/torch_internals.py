"""The private parts of PyTorch that asrcl uses, in one place; a new version of PyTorch may change them.

Every function says what to look at when a new version breaks it. Nothing else in curvature, merge and methods may reach below the
public interface; before adding to this list, look for a public way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed


def run_backward(loss: Tensor, wanted: Sequence[Tensor] = (), *, retain: bool = False, accumulate: bool = True) -> Any:
    """A backward pass that an open function mode goes on watching, as the repeated forward passes of checkpointing need.

    `Tensor.backward` and `torch.autograd.backward` are operations themselves, inside which a mode would be off; this is what both
    of them call (`torch.autograd.graph._engine_run_backward`).

    Args:
        loss: a scalar.
        wanted: tensors whose gradients are returned; without any, gradients are accumulated in the leaves.
        retain: keep the graph.
        accumulate: add to `.grad` of the leaves.
    """
    engine = torch.autograd.Variable._execution_engine
    one = torch.ones_like(loss)
    return engine.run_backward((loss,), (one,), retain, False, tuple(wanted), allow_unreachable=True, accumulate_grad=accumulate)


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another as autograd sees it (`Tensor._is_view`): writing into it replaces its graph node."""
    return tensor._is_view()


@contextmanager
def linear_replaced(replacement: Callable[..., Tensor]) -> Iterator[None]:
    """Have `torch.nn.functional.linear` be another function.

    `nn.MultiheadAttention` calls it where no function mode can see (`torch.nn.functional.multi_head_attention_forward`).
    """
    plain = F.linear
    setattr(F, "linear", replacement)  # noqa: B010 (mypy refuses a plain assignment)
    try:
        yield
    finally:
        setattr(F, "linear", plain)  # noqa: B010


def default_store() -> distributed.Store:
    """The key-value store that the processes of `torch.distributed` met at (`distributed_c10d._get_default_store`).

    Through it a process says that it failed while the others do not wait for it in a collective.
    """
    store: distributed.Store = distributed.distributed_c10d._get_default_store()
    return store
