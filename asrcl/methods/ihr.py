"""IHR: fine-tuning, then the update multiplied by the old domain's inverse curvature (arXiv 2601.14751)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge import merge
from asrcl.methods.base import Learner, Method, StateDict, register


@register("ihr")
class InverseHessianRegularization(Method):
    """After fine-tuning: old + tau * rescaled (G + damping)^-1 (new - old) (A + damping)^-1 in every linear map.

    Args:
        curvature: "last" keeps the previous domain's curvature (the paper's method), "sum" that of all earlier domains.
        tau, damping, damping_kind, rescale, rest, layers: see `asrcl.merge.ihr`.
    """

    def __init__(
        self,
        curvature: Literal["last", "sum"] = "last",
        tau: float = 1.0,
        damping: float = 10.0,
        damping_kind: Literal["relative", "absolute"] = "relative",
        rescale: Literal["layer", "global", "none", "laplace"] = "layer",
        rest: float | Literal["1/t"] = "1/t",
        layers: Sequence[str] = ("*",),
    ) -> None:
        if curvature not in ("last", "sum"):
            raise InputError(f"method.curvature={curvature}: choose last or sum")
        self.curvature = curvature
        self.knobs = {
            "tau": tau,
            "damping": damping,
            "damping_kind": damping_kind,
            "rescale": rescale,
            "rest": rest,
            "layers": tuple(layers),
        }
        self._terms: list[Curvature] = []

    def end_domain(self, learner: Learner, domain: Any, old: StateDict | None, new: StateDict) -> StateDict:
        if old is not None:
            curvature = self._terms[0] if len(self._terms) == 1 else self._terms
            new = merge(old, new, "ihr", curvature=curvature, task=learner.stage, **self.knobs)
        if not learner.last:
            term = learner.estimate_curvature(new, domain, "kron")
            earlier = self._terms if self.curvature == "sum" and old is not None else []
            self._terms = [*earlier, term]
        return new
