"""The curvature of earlier domains that a merge is made with: which of them, and as a state."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.state import StateDict

Which = Literal["last", "sum", "running", "first"]
_KNOWN: Final = get_args(Which)


class Carried:
    """Kronecker-factored curvature of the domains so far.

    Args:
        which: "last", of the previous domain (the paper of IHR); "sum", of every earlier domain, their Kronecker products apart;
            "running", one pair of factors per layer over the items of all of them; "first", of the first domain alone.
        option: what to name in messages.

    Attributes:
        terms: what is carried now; empty before the first domain has been learned.

    Raises:
        InputError: another word.
    """

    def __init__(self, which: Which, option: str) -> None:
        if which not in _KNOWN:
            raise InputError(f"{option}={which}: choose {', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}")
        self.which = which
        self.terms: list[Curvature] = []

    def add(self, learner: Learner, domain: Domain, weights: Weights, known: Curvature | None = None) -> None:
        """Take in the curvature of a domain at the weights that a stage ends with, if a later stage will ask for it.

        `known` is that curvature where it has been estimated already.
        """
        if learner.last or (self.terms and self.which == "first"):
            return
        term = known or learner.estimate_curvature(weights, domain, "kron")
        if self.which == "sum":
            self.terms = [*self.terms, term]
        else:
            self.terms = [self.terms[0] + term] if self.terms and self.which == "running" else [term]

    def state_dict(self) -> StateDict:
        """The terms as the bytes of their files, by number."""
        return {str(number): _packed(term) for number, term in enumerate(self.terms)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` gave."""
        self.terms = [_unpacked(state[str(number)]) for number in range(len(state))]


def _packed(curvature: Curvature) -> Tensor:
    """A curvature as the bytes of its file, uint8 `[size]`."""
    with tempfile.TemporaryDirectory() as folder:
        written = curvature.save(Path(folder) / "curvature.safetensors", max_shard_bytes=2**62)
        return torch.from_numpy(np.fromfile(written, np.uint8))


def _unpacked(content: Tensor) -> Curvature:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curvature.safetensors"
        path.write_bytes(content.numpy().tobytes())
        return Curvature.load(path, lazy=False)
