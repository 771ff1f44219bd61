"""What a domain adds to a model that all domains share: factors of low rank for some weights, and a few tensors of its own.

A weight W `[out, in, ...]` of the shared model becomes, for one domain,

    W_t = diag(R) W diag(S) + U V        R [out], S [in], U [out, k], V [k, in] or [k, in x the rest]

(Li et al., HALRP, IEEE TKDE 36(11), 2024, arXiv 2311.15161; without R and S it is LoRA, Hu et al., arXiv 2106.09685). Of a weight
with more than two axes, as of a convolution, R scales output and S input channels; U V is the same at all positions of the
kernel where V has as many columns as there are input channels, and else has the shape `[out, rest]` of the weight. In a file
`<weight>.R`, `.S`, `.U`, `.V` are the factors, and other names are tensors that take the place of the shared ones. A matrix
that pruning left mostly zero is stored as its values and their positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from asrcl.contract.adapters import is_of_adapter
from asrcl.contract.weights import fingerprint, load_weights, save_weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict

ZERO: Final = 1e-8
"""What is no larger counts as pruned, as in HALRP's own count."""
FACTORS: Final = ("R", "S", "U", "V")
_SPARSE: Final = ("values", "positions", "shape")


@dataclass(frozen=True)
class Factors:
    """How one weight differs from the shared one; without R and S it is not scaled.

    Attributes:
        U: `[out, k]`.
        V: `[k, in]`, or `[k, rest]`.
        R: `[out]`, or None.
        S: `[in]`, or None.
    """

    U: Tensor
    V: Tensor
    R: Tensor | None = None
    S: Tensor | None = None

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The factors that there are, by name."""
        for name in FACTORS:
            if (value := getattr(self, name)) is not None:
                yield name, value


def perturbed(weight: Tensor, factors: Factors) -> Tensor:
    """W_t `[out, in, ...]` of the shared weight (see the module); differentiable in all factors."""
    ones = (1,) * (weight.ndim - 2)
    if factors.R is not None and factors.S is not None:
        weight = factors.R.view(-1, 1, *ones) * weight * factors.S.view(1, -1, *ones)
    product = factors.U @ factors.V
    whole = product.shape[1] == weight[0].numel()
    return weight + (product.view(weight.shape) if whole else product.view(*product.shape, *ones))


@dataclass(frozen=True)
class Increment:
    """What one domain adds to the shared model.

    Attributes:
        factors: by the name of a weight.
        own: tensors that take the place of the shared ones (biases, normalisations, a head), or are added (adapters), by name.
        base: `asrcl.contract.weights.fingerprint` of the shared tensors that the factors belong to, of all where there are no
            factors; "" where it is not known.
    """

    factors: dict[str, Factors]
    own: StateDict = field(default_factory=dict)
    base: str = ""

    def weights(self, shared: Mapping[str, Tensor]) -> StateDict:
        """The domain's whole model: the shared weights with this increment.

        Raises:
            InputError: the shared weights lack a tensor, or are not those that the increment was made for.
        """
        added = {name: value for name, value in self.own.items() if is_of_adapter(name)}
        if missing := [name for name in (*self.factors, *self.own) if name not in shared and name not in added]:
            raise InputError(f"increment: the model has no tensor {missing[0]}; it was made for another model")
        if self.base and self.base != (found := fingerprint({name: shared[name] for name in self.factors or shared})):
            raise InputError(f"increment: made for shared weights {self.base}, these are {found}; take the model it was made for")
        changed = {name: perturbed(shared[name], factors) for name, factors in self.factors.items()}
        return {name: changed.get(name, self.own.get(name, value)) for name, value in shared.items()} | added

    def numbers(self, biases: bool = True, dense: bool = False) -> int:
        """How many numbers this is: entries of U and V that are not zero, R, S, and the domain's own floating tensors.

        Args:
            biases: whether the domain's own biases count; the authors of HALRP do not count them.
            dense: count the zeros in U and V, too.
        """
        low_rank = [
            int((value.abs() > ZERO).sum()) if name in "UV" and not dense else value.numel()
            for factors in self.factors.values()
            for name, value in factors.items()
        ]
        own = [value.numel() for name, value in self.own.items() if value.is_floating_point() and (biases or "bias" not in name)]
        return sum(low_rank) + sum(own)

    def state(self) -> StateDict:
        """As one state dict."""
        parts = {f"{name}.{part}": value for name, factors in self.factors.items() for part, value in factors.items()}
        return {**parts, **self.own}

    @classmethod
    def of(cls, state: Mapping[str, Tensor], base: str = "") -> Self:
        """What `state` gave.

        Raises:
            InputError: a U without its V, or the other way round.
        """
        names = {name.removesuffix(".U") for name in state if name.endswith(".U")}
        names |= {name.removesuffix(".V") for name in state if name.endswith(".V")}
        factors = {}
        for name in sorted(names):
            found = {part: state[f"{name}.{part}"] for part in FACTORS if f"{name}.{part}" in state}
            if not {"U", "V"} <= set(found) or found["U"].shape[1] != found["V"].shape[0]:
                raise InputError(f"increment: no fitting pair of U and V of {name}; the file is damaged or of another kind")
            factors[name] = Factors(**found)
        taken = {f"{name}.{part}" for name in factors for part in FACTORS}
        return cls(factors, {name: value for name, value in state.items() if name not in taken}, base)

    def save(self, path: str | Path) -> None:
        """Write it as safetensors, atomically; matrices that are mostly zero take little room."""
        packed: StateDict = {}
        for name, value in self.state().items():
            packed |= _sparse(name, value) if name.endswith((".U", ".V")) else {name: value}
        save_weights(packed, path, {"kind": "asrcl increment", "base": self.base})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: a missing or damaged file, or one of another kind.
        """
        packed = load_weights(path)
        try:
            with safe_open(str(path), "pt") as file:
                facts = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        if facts.get("kind") != "asrcl increment":
            raise InputError(f"{path}: not an increment of a domain; name a file below increments/ of a run")
        try:
            return cls.of(_dense(packed), facts.get("base", ""))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _sparse(name: str, value: Tensor) -> StateDict:
    """A matrix as values and positions where that is smaller."""
    flat = value.detach().flatten()
    positions = (flat.abs() > ZERO).nonzero().flatten()
    if len(positions) * (value.element_size() + 4) >= value.nbytes:
        return {name: value}
    parts = (flat[positions], positions.to(torch.int32), torch.tensor(value.shape))
    return {f"{name}/{part}": tensor for part, tensor in zip(_SPARSE, parts, strict=True)}


def _dense(packed: Mapping[str, Tensor]) -> StateDict:
    state = {name: value for name, value in packed.items() if "/" not in name}
    for name in sorted({name.partition("/")[0] for name in packed if "/" in name}):
        try:
            values, positions, shape = (packed[f"{name}/{part}"] for part in _SPARSE)
            matrix = torch.zeros(tuple(shape.tolist()), dtype=values.dtype)
            matrix.view(-1)[positions.long()] = values
        except (KeyError, IndexError, RuntimeError) as error:
            raise InputError(f"values and positions of {name} do not fit ({error}); the file is damaged") from error
        state[name] = matrix
    return state
