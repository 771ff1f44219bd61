"""Merging with curvature after fine-tuning: inverse-Hessian regularisation (arXiv 2601.14751) and its Laplace form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from asrcl.contract.method import Method, joined_state, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.merge import MergeSpec, merge
from asrcl.merge.path import STRAIGHT, PathKind, check_path, damped
from asrcl.merge.steps.ihr import IHR_DAMPING, LAPLACE_DAMPING
from asrcl.methods.carried import Carried, Which
from asrcl.state import StateDict


class _CurvatureMerge(Method):
    """Merge every update with the curvature of earlier domains; `merging` and `options` say how. Its state is that curvature.

    Less than the whole merge, where named domains are to be kept, lies on a straight line from the old weights or, with
    `path="damping"`, on the curve that a smaller damping leads along (`asrcl.merge.path`).
    """

    merging: str
    options: dict[str, Any]
    shares_fine_tuning = True

    def __init__(self, curvature: Which, path: PathKind, rest: Any) -> None:
        check_path(path, self.merging, rest, "method.path")
        self.curvature, self.path = curvature, path
        self._carried = Carried(curvature, "method.curvature")

    def start_run(self, learner: Learner) -> None:
        self._carried.terms = []

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        return Weights(merge(old.state, new.state, self._spec(learner))) if self._carried.terms else new

    def at_strength(
        self, learner: Learner, domain: Domain, old: Weights, new: Weights, merged: Weights, strength: float
    ) -> Weights:
        if self.path == STRAIGHT or not self._carried.terms:
            return super().at_strength(learner, domain, old, new, merged, strength)
        return Weights(merge(old.state, new.state, damped(self._spec(learner), strength)))

    def _spec(self, learner: Learner) -> MergeSpec:
        return MergeSpec(self.merging, curvature=self._carried.terms, task=learner.stage).changed(self.options)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        self._carried.add(learner, domain, new)
        return new

    def state_dict(self) -> StateDict:
        return joined_state({"terms": self._carried.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [terms] = parted_state(self, state, "terms")
        self._carried.load_state_dict(terms)


@register("ihr")
class InverseHessianRegularization(_CurvatureMerge):
    """After fine-tuning: old + tau * rescaled (G + damping)^-1 (new - old) (A + damping)^-1 in every linear map.

    Args:
        curvature: "last" (the paper's method), "sum", "running" or "first": of which earlier domains (`asrcl.methods.carried`).
        tau, damping, damping_kind, rescale, power: see `asrcl.merge.steps.ihr`.
        rest, layers: see `asrcl.merge.merge`.
        path: "straight" or "damping": how less of the merge is taken where named domains are to be kept.
    """

    label, merging = "IHR", "ihr"

    def __init__(
        self,
        curvature: Which = "last",
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
        curvature: as for IHR.
        strength, damping, damping_kind: see `asrcl.merge.steps.ihr`; `damping` is gamma.
        rest, layers: see `asrcl.merge.merge`.
        path: as for IHR.
    """

    label, merging = "Laplace merge", "laplace"

    def __init__(
        self,
        curvature: Which = "last",
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
