"""Merging with curvature after fine-tuning: inverse-Hessian regularisation (arXiv 2601.14751) and its Laplace form."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from asrcl.contract.method import Method, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge
from asrcl.merge.path import STRAIGHT, PathKind, check_path, damped
from asrcl.merge.steps.ihr import IHR_DAMPING, LAPLACE_DAMPING
from asrcl.state import StateDict

Carried = Literal["last", "sum", "running", "first"]
"""Which curvature a stage is merged with: of the previous domain, the sum of all earlier domains' (Kronecker products apart), one
pair of factors per layer over the items of all of them, or the first domain's."""
_KNOWN: Final = get_args(Carried)


class _CurvatureMerge(Method):
    """Merge every update with the curvature of earlier domains; `merging` and `options` say how. Its state is that curvature.

    Less than the whole merge, where named domains are to be kept, lies on a straight line from the old weights or, with
    `path="damping"`, on the curve that a smaller damping leads along (`asrcl.merge.path`).
    """

    merging: str
    options: dict[str, Any]
    shares_fine_tuning = True

    def __init__(self, curvature: Carried, path: PathKind, rest: Any) -> None:
        if curvature not in _KNOWN:
            raise InputError(f"method.curvature={curvature}: choose {', '.join(_KNOWN[:-1])} or {_KNOWN[-1]}")
        check_path(path, self.merging, rest, "method.path")
        self.curvature, self.path = curvature, path
        self._terms: list[Curvature] = []

    def start_run(self, learner: Learner) -> None:
        self._terms = []

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        return Weights(merge(old.state, new.state, self._spec(learner))) if self._terms else new

    def at_strength(
        self, learner: Learner, domain: Domain, old: Weights, new: Weights, merged: Weights, strength: float
    ) -> Weights:
        if self.path == STRAIGHT or not self._terms:
            return super().at_strength(learner, domain, old, new, merged, strength)
        return Weights(merge(old.state, new.state, damped(self._spec(learner), strength)))

    def _spec(self, learner: Learner) -> MergeSpec:
        return MergeSpec(self.merging, curvature=self._terms, task=learner.stage).changed(self.options)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if learner.last or (self._terms and self.curvature == "first"):
            return new
        term = learner.estimate_curvature(new, domain, "kron")
        if self.curvature == "sum":
            self._terms = [*self._terms, term]
        else:
            self._terms = [self._terms[0] + term] if self._terms and self.curvature == "running" else [term]
        return new

    def state_dict(self) -> StateDict:
        return {f"terms.{number}": _packed(term) for number, term in enumerate(self._terms)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [terms] = parted_state(self, state, "terms")
        self._terms = [_unpacked(terms[str(number)]) for number in range(len(terms))]


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


@register("ihr")
class InverseHessianRegularization(_CurvatureMerge):
    """After fine-tuning: old + tau * rescaled (G + damping)^-1 (new - old) (A + damping)^-1 in every linear map.

    Args:
        curvature: "last" keeps the previous domain's curvature (the paper's method), "sum" one of every earlier domain, "running"
            one pair of factors per layer over the items of all earlier domains, "first" the first domain's alone.
        tau, damping, damping_kind, rescale, power: see `asrcl.merge.steps.ihr`.
        rest, layers: see `asrcl.merge.merge`.
        path: "straight" or "damping": how less of the merge is taken where named domains are to be kept.
    """

    label, merging = "IHR", "ihr"

    def __init__(
        self,
        curvature: Carried = "last",
        tau: float = 1.0,
        damping: float = IHR_DAMPING,
        damping_kind: Literal["relative", "absolute", "pi", "product", "product_absolute"] = "relative",
        rescale: Literal["layer", "global", "none"] = "layer",
        power: float = 1.0,
        rest: float | Literal["1/t", "keep", "new", "fisher"] = "1/t",
        layers: Sequence[str] = ("*",),
        path: PathKind = "straight",
    ) -> None:
        super().__init__(curvature, path, rest)
        self.options = {
            "tau": tau,
            "damping": damping,
            "damping_kind": damping_kind,
            "rescale": rescale,
            "power": power,
            "rest": rest,
            "layers": tuple(layers),
        }


@register("laplace")
class LaplaceMerge(_CurvatureMerge):
    """After fine-tuning: every eigen-direction of the update shrinks by gamma / (curvature + gamma).

    Args:
        curvature: "last" or "sum", as for IHR.
        strength, damping, damping_kind: see `asrcl.merge.steps.ihr`; `damping` is gamma.
        rest, layers: see `asrcl.merge.merge`.
        path: as for IHR.
    """

    label, merging = "Laplace merge", "laplace"

    def __init__(
        self,
        curvature: Carried = "last",
        strength: float = 1.0,
        damping: float = LAPLACE_DAMPING,
        damping_kind: Literal["relative", "absolute"] = "relative",
        rest: float | Literal["1/t", "keep", "new", "fisher"] = "1/t",
        layers: Sequence[str] = ("*",),
        path: PathKind = "straight",
    ) -> None:
        super().__init__(curvature, path, rest)
        self.options = {
            "strength": strength,
            "damping": damping,
            "damping_kind": damping_kind,
            "rest": rest,
            "layers": tuple(layers),
        }
