"""CGaLore: steps of training held to the directions in which old domains' loss is flat, by Kronecker-factored curvature.

Vander Eeckt and Van hamme (arXiv 2609.21336) train in directions that the curvature of the old model says to be harmless;
neither data nor old weights are kept. Here, where a map W `[O, I]` has the curvature A ⊗ G of `asrcl.curvature`, A = V_A
diag(a) V_Aᵀ and G = V_G diag(g) V_Gᵀ, the change D that an optimiser step made becomes

    V_G [ (V_Gᵀ D V_A) * k ] V_Aᵀ      k_ij = keep / (keep + g_i a_j)                       soft
                                       k_ij = 1 for the share `keep` of directions with the least g_i a_j, else 0      hard

with g_i = 1 where the input side alone is used. What is projected is the step (`asrcl.methods.projection`), so that this holds
for Adam and weight decay as well; the authors project the gradient, run Adam in a space of fixed rank, and find that space anew
as training goes on. `soft` is our form: a Laplace merge (`asrcl.merge.steps.ihr`) of every step in place of one at the end.

Factors are carried from domain to domain as one running set, Q <- (1 - rate) Q + rate Q~ (the authors' rate is 1/4). A domain's
own are divided by their mean eigenvalue before, so that g_i a_j is in units of the mean curvature of the layer or of all layers
(`unit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import joined_state, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import Block, BlockKey, DiagonalBlock
from asrcl.exceptions import InputError
from asrcl.methods.kronecker import Filter, Kept, blended, block_state, blocks_of_state, spectral
from asrcl.methods.projection import Rest, StepProjection
from asrcl.state import StateDict


@register("cgalore")
class CurvatureGuidedProjection(StepProjection):
    """Fine-tuning with every step projected on the low-curvature directions of the domains before.

    Args:
        keep: soft: the curvature at which half of a step is kept, in units of the mean (`unit`), inf for all; hard: the share of
            directions that are kept.
        form: "soft" or "hard" (see the module).
        sides: "both" factors, or the "input" side alone.
        rate: a of the running factors; 1 is the last domain's, 0 the first domain's.
        unit: mean curvature of each "layer", or of the whole "model", so that curvature decides between layers, too.
        rest: "freeze" (as the authors do) or "train" parameters without factors.
    """

    label = "CGaLore"

    def __init__(
        self,
        keep: float = 0.3,
        form: Literal["soft", "hard"] = "soft",
        sides: Literal["both", "input"] = "both",
        rate: float = 0.25,
        unit: Literal["layer", "model"] = "layer",
        rest: Rest = "freeze",
    ) -> None:
        super().__init__(rest)
        for option, value, known in (("form", form, ("soft", "hard")), ("sides", sides, ("both", "input"))):
            if value not in known:
                raise InputError(f"method.{option}={value}: choose {known[0]} or {known[1]}")
        if unit not in ("layer", "model"):
            raise InputError(f"method.unit={unit}: choose layer or model")
        if not keep > 0 or (form == "hard" and keep > 1):
            raise InputError(f"method.keep={keep}: must be positive, and at most 1 with form=hard, where it is a share")
        if not 0 <= rate <= 1:
            raise InputError(f"method.rate={rate}: must be from 0 to 1")
        self.keep, self.form, self.sides, self.rate, self.unit = keep, form, sides, rate, unit
        self._factors: Kept = {}
        self._filters: dict[str, dict[BlockKey, Filter]] = {}

    def state_dict(self) -> StateDict:
        return joined_state({"factors": block_state(self._factors)})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        [factors] = parted_state(self, state, "factors")
        self._factors = blocks_of_state(factors)

    def start_run(self, learner: Learner) -> None:
        super().start_run(learner)
        self._factors, self._filters = {}, {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        super().start_domain(learner, domain)
        for key, block in self._factors.items():
            rows = key.rows_of(learner.weights[key.name]) if key.name in learner.weights else torch.empty(0)
            if not block.fits(rows):
                raise InputError(f"method cgalore: its factors of {key} fit no such rows of the model; they are another model's")

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        """Eigenvectors are found here, once for a fine-tune, and not at all where it is in the cache."""
        self._filters = {}
        for key, block in self._factors.items():
            self._filters.setdefault(key.name, {})[key] = self._filter(block.map(lambda t: t.to(learner.device)))
        return super().wrap(learner, model)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if not learner.last:
            own = learner.private(domain)
            blocks = learner.estimate_curvature(new, domain, "kron").blocks
            found = {k: b for k, b in blocks.items() if k.name not in own and not isinstance(b, DiagonalBlock)}
            mean = sum(block.trace() for block in found.values()) / max(1, sum(block.weights for block in found.values()))
            for key, block in found.items():
                unit = mean if self.unit == "model" else block.trace() / block.weights
                self._factors[key] = blended(self._factors.get(key), block, self.rate, unit)
        return new

    def covered(self) -> Set[str]:
        return self._filters.keys()

    def left_of(self, name: str, change: Tensor) -> Tensor:
        if self.keep == math.inf:
            return change
        result = change * self._uncovered
        for key, part in self._filters[name].items():
            key.rows_of(result).copy_(part(key.rows_of(change)))
        return result

    def _filter(self, block: Block) -> Filter:
        rows, columns, values = spectral(block, self.sides == "input")
        if self.form == "soft":
            gains = self.keep / (self.keep + values)
        else:
            count = math.ceil(self.keep * values.numel())
            gains = (values <= values.flatten().kthvalue(count).values).double()
        rows, columns = (None if vectors is None else vectors.float() for vectors in (rows, columns))
        return Filter(rows, columns, gains.float())
