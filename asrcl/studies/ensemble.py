"""Many copies of one small network, trained side by side: all operations of all copies at once.

    networks = Ensemble.of(lambda seed: mlp(seed), seeds=range(30))
    optimizer = torch.optim.SGD(networks.parameters.values(), lr=0.1)       # elementwise optimisers work as they are
    losses = networks.backward(torch.nn.functional.cross_entropy, inputs, labels)
    optimizer.step()

Shapes: S copies, B examples, P parameters of one copy. A copy learns what it would learn alone (tests/test_ensemble.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from asrcl.exceptions import InputError


class Ensemble:
    """S copies of one architecture with stacked parameters (`torch.func.stack_module_state`).

    Attributes:
        parameters: name -> `[S, ...]`, leaves that require gradients.
    """

    def __init__(self, skeleton: nn.Module, parameters: dict[str, Tensor]) -> None:
        self.skeleton, self.parameters = skeleton, parameters

    @classmethod
    def of(cls, make: Callable[[int], nn.Module], seeds: Iterable[int]) -> Ensemble:
        """One copy for each seed; `make(seed)` draws its initial weights.

        Raises:
            InputError: the networks have buffers (running statistics), which copies cannot keep apart, or there are no seeds.
        """
        modules = [make(seed) for seed in seeds]
        if not modules:
            raise InputError("an ensemble needs one seed at least")
        parameters, buffers = stack_module_state(modules)
        if buffers:
            raise InputError(f"{next(iter(buffers))}: an ensemble has no buffers; use a network without running statistics")
        return cls(copy.deepcopy(modules[0]).to("meta"), parameters)

    @property
    def size(self) -> int:
        """S."""
        return len(next(iter(self.parameters.values())))

    def __call__(self, inputs: Tensor, *, shared: bool = False) -> Tensor:
        """Outputs `[S, B, ...]` for inputs `[S, B, ...]`, or for `[B, ...]` that all copies see (`shared`)."""
        return vmap(self.one, in_dims=(0, None if shared else 0))(self.parameters, inputs)

    def one(self, parameters: dict[str, Tensor], inputs: Tensor) -> Any:
        """The outputs of one copy with given parameters: what `torch.func` transforms."""
        return functional_call(self.skeleton, parameters, (inputs,))

    def backward(self, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Losses `[S]` of inputs `[S, B, ...]` and targets `[S, B]`; the gradients of each copy's own loss replace `.grad`."""
        losses = vmap(loss)(self(inputs), targets)
        found = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        for parameter, gradient in zip(self.parameters.values(), found, strict=True):
            parameter.grad = gradient
        return losses.detach()

    def flat(self) -> Tensor:
        """The parameters of each copy as one vector, `[S, P]`, in the order of the module."""
        return torch.cat([parameter.detach().flatten(1) for parameter in self.parameters.values()], dim=1)

    def load_flat(self, vectors: Tensor) -> None:
        """Set all parameters from vectors `[S, P]`, in place."""
        with torch.no_grad():
            for part, parameter in zip(self.split(vectors), self.parameters.values(), strict=True):
                parameter.copy_(part)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """Vectors `[S, P]` in the shapes of the parameters."""
        sizes = [parameter[0].numel() for parameter in self.parameters.values()]
        parts = vectors.split(sizes, dim=1)
        return [part.reshape(p.shape) for part, p in zip(parts, self.parameters.values(), strict=True)]

    def member(self, index: int) -> nn.Module:
        """A copy as a module of its own, its parameters copied."""
        module = copy.deepcopy(self.skeleton).to_empty(device="cpu")
        module.load_state_dict({name: parameter[index].detach().cpu() for name, parameter in self.parameters.items()})
        return module
