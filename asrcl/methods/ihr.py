"""Merging with curvature after fine-tuning: inverse-Hessian regularisation (arXiv 2601.14751) and its Laplace form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge import merge
from asrcl.merge.steps.ihr import IHR_DAMPING, LAPLACE_DAMPING
from asrcl.methods.base import Learner, Method, StateDict, register


class _CurvatureMerge(Method):
    """Merge every update with the curvature of earlier domains; `merging` and `knobs` say how."""

    merging: str
    knobs: dict[str, Any]

    def __init__(self, curvature: Literal["last", "sum"]) -> None:
        if curvature not in ("last", "sum"):
            raise InputError(f"method.curvature={curvature}: choose last or sum")
        self.curvature = curvature
        self._terms: list[Curvature] = []

    def end_domain(self, learner: Learner, domain: Any, old: StateDict | None, new: StateDict) -> StateDict:
        if old is not None:
            curvature = self._terms[0] if len(self._terms) == 1 else self._terms
            new = merge(old, new, self.merging, curvature=curvature, task=learner.stage, **self.knobs)
        if not learner.last:
            term = learner.estimate_curvature(new, domain, "kron")
            earlier = self._terms if self.curvature == "sum" and old is not None else []
            self._terms = [*earlier, term]
        return new


@register("ihr")
class InverseHessianRegularization(_CurvatureMerge):
    """After fine-tuning: old + tau * rescaled (G + damping)^-1 (new - old) (A + damping)^-1 in every linear map.

    Args:
        curvature: "last" keeps the previous domain's curvature (the paper's method), "sum" that of all earlier domains.
        tau, damping, damping_kind, rescale, power: see `asrcl.merge.steps.ihr`.
        rest, layers: see `asrcl.merge.merge`.
    """

    merging = "ihr"

    def __init__(
        self,
        curvature: Literal["last", "sum"] = "last",
        tau: float = 1.0,
        damping: float = IHR_DAMPING,
        damping_kind: Literal["relative", "absolute", "pi", "product", "product_absolute"] = "relative",
        rescale: Literal["layer", "global", "none"] = "layer",
        power: float = 1.0,
        rest: float | Literal["1/t", "keep", "new", "fisher"] = "1/t",
        layers: Sequence[str] = ("*",),
    ) -> None:
        super().__init__(curvature)
        self.knobs = {
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
    """

    merging = "laplace"

    def __init__(
        self,
        curvature: Literal["last", "sum"] = "last",
        strength: float = 1.0,
        damping: float = LAPLACE_DAMPING,
        damping_kind: Literal["relative", "absolute"] = "relative",
        rest: float | Literal["1/t", "keep", "new", "fisher"] = "1/t",
        layers: Sequence[str] = ("*",),
    ) -> None:
        super().__init__(curvature)
        self.knobs = {
            "strength": strength,
            "damping": damping,
            "damping_kind": damping_kind,
            "rest": rest,
            "layers": tuple(layers),
        }
