"""GPM: gradient projection memory (Saha, Garg and Roy, ICLR 2021, arXiv 2103.09762): steps orthogonal to old domains' inputs.

A linear map y = W a does not change its outputs for old inputs where every row of its update is orthogonal to them. When a domain
has been learned, the space of a layer's inputs is the span of the leading eigenvectors M of the mean of a aᵀ, the input factor A
of the Kronecker curvature (convolutions: of unfolded inputs), as many as hold a share `energy` of its trace; what the basis of
earlier domains holds already counts, and only directions orthogonal to it are added (section 5 of the paper). Then

    gradient   the gradient loses its part in the space, g - (g M) Mᵀ, before the optimiser sees it, as published. Exact for
               gradient descent; Adam rescales every coordinate and leaves the space again
    step       what the optimiser has done loses that part, as in Adam-NSCL (Wang et al., CVPR 2021, arXiv 2103.07113). Exact for
               every optimiser, weight decay included; without momentum and decay of SGD the two are the same

`step` is the default because recipes train with Adam. Parameters that have no such space (biases, norms, depthwise kernels; GPM's
networks have none) are trained with the first domain and frozen from then on, statistics of batch normalisation included, or
trained without protection (`rest`). A domain's own head is always free.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.methods.projection import Rest, StepProjection
from asrcl.methods.spaces import Place, Spaces, extended, outside, spaces_of_state, spaces_state
from asrcl.state import StateDict


@register("gpm")
class GradientProjectionMemory(StepProjection):
    """Fine-tuning in the null space of what earlier domains put into each layer.

    Args:
        energy: share of the trace of A that a space holds, epsilon of the paper (0.95 to 0.99); 1 for all of it.
        project: the "step" or the "gradient" (see the module).
        rest: "freeze" or "train" parameters without a space.
    """

    label = "GPM"

    def __init__(
        self,
        energy: float = 0.97,
        project: Literal["step", "gradient"] = "step",
        rest: Rest = "freeze",
    ) -> None:
        super().__init__(rest)
        if not 0 < energy <= 1:
            raise InputError(f"method.energy={energy}: a share, above 0 and at most 1")
        if project not in ("step", "gradient"):
            raise InputError(f"method.project={project}: choose step or gradient")
        self.energy, self.project = energy, project
        self._spaces: Spaces = {}

    def state_dict(self) -> StateDict:
        return spaces_state(self._spaces)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._spaces = spaces_of_state(state)

    def start_run(self, learner: Learner) -> None:
        super().start_run(learner)
        self._spaces = {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        super().start_domain(learner, domain)
        self._spaces = {place: basis.to(learner.device) for place, basis in self._spaces.items()}
        for place, basis in self._spaces.items():
            name = place.key.name
            if name not in learner.weights or place.inputs(learner.weights[name]) != len(basis):
                raise InputError(f"method gpm: its space of {place.key} has {len(basis)} dimensions; it is another model's")

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if not learner.last:
            own = learner.private(domain)
            for key, block in learner.estimate_curvature(new, domain, "kron").blocks.items():
                if isinstance(block, KroneckerBlock) and key.name not in own:
                    place = Place(key, block.transposed)
                    known = self._spaces[place].cpu() if place in self._spaces else None
                    self._spaces[place] = extended(known, block.A.smallest(), self.energy)
        return new

    def covered(self) -> Set[str]:
        return {place.key.name for place in self._spaces}

    def left_of(self, name: str, change: Tensor) -> Tensor:
        spaces = {place: basis for place, basis in self._spaces.items() if place.key.name == name}
        return outside(change, spaces, self._uncovered)

    @torch.no_grad()
    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        super().after_backward(learner, model)
        if self.project == "gradient":
            self._before = {}
            for name, parameter, is_covered in self._held(model):
                if is_covered and parameter.grad is not None:
                    parameter.grad.copy_(self.left_of(name, parameter.grad))
