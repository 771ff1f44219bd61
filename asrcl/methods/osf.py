"""OSF: orthogonal subspace fine-tuning: every step stays out of the leading singular subspaces of the weights.

Nayak et al. (arXiv 2504.07097), in the form of PEFT's OSF: of a weight W = U S Vᵀ `[O, I]` as it is when a domain begins, the
triples of the r largest singular values (U_h, S_h, V_h) are kept, and the rest is trained, orthogonal to them on both sides,

    step <- (1 - U_h U_hᵀ) step (1 - V_h V_hᵀ),      r = int(preserve * min(O, I)), or with `grow` that times (t - 1)

No data, gradient or basis is carried over: with every domain the subspaces are those of the weights that the last one left. PEFT
trains the factors of the rest and projects their gradients, which holds for gradient descent alone; here the step that the
optimiser made of the whole weight is projected (`asrcl.methods.projection`), which holds for every optimiser. Both reach the
same weights. The rank that PEFT allots by layer type, and the paper by how much a layer changes its inputs, is the same share
of every weight here.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.protocols import Learner
from asrcl.exceptions import InputError
from asrcl.methods.per_domain import matrices, no_target
from asrcl.methods.projection import Rest, StepProjection


@register("osf")
class OrthogonalSubspaceFineTuning(StepProjection):
    """Fine-tuning outside of the leading singular subspaces of the weights that a domain begins with.

    Args:
        preserve: share of the directions of every weight that are kept; 0: none, which with rest="train" is plain fine-tuning to
            the bit.
        grow: whether `preserve` is added once more with every domain, up to all (the schedule that PEFT advises has 1/T there).
        rest: "freeze" (as PEFT does) or "train" what has no singular values (biases, norms), and what no target chooses.
        targets: globs of the weights; only those of two or more axes count, and neither embeddings nor what is tied to them.
    """

    label = "OSF"

    def __init__(
        self, preserve: float = 0.5, grow: bool = False, rest: Rest = "freeze", targets: Sequence[str] = ("*",)
    ) -> None:
        super().__init__(rest)
        if not 0 <= preserve <= 1:
            raise InputError(f"method.preserve={preserve}: a share of the directions, from 0 to 1")
        self.preserve, self.grow, self.targets = preserve, grow, tuple(targets)
        self._kept: dict[str, tuple[Tensor, Tensor]] = {}  # U_h [O, r] and V_hᵀ [r, I]

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        """Singular vectors are found here, once for a fine-tune, and not at all where it is in the cache."""
        self._kept = {}
        if learner.stage > 1:
            domain = learner.domains[-1]
            share = min(1.0, self.preserve * (learner.stage - 1 if self.grow else 1))
            for module, inner, name in matrices(model, self.targets, (*learner.private(domain), *learner.foreign(domain))):
                weight = getattr(module, inner).detach()
                U, _, Vh = torch.linalg.svd(weight.flatten(1).double(), full_matrices=False)
                rank = int(share * len(Vh))
                self._kept[name] = U[:, :rank].to(weight.dtype), Vh[:rank].to(weight.dtype)
            if not self._kept:
                raise no_target("targets", self.targets, model)
        return super().wrap(learner, model)

    def covered(self) -> Set[str]:
        return self._kept.keys()

    def left_of(self, name: str, change: Tensor) -> Tensor:
        left, right = self._kept[name]
        if not len(right):
            return change
        matrix = change.flatten(1)
        matrix = matrix - left @ (left.mT @ matrix)
        return (matrix - (matrix @ right.mT) @ right).view_as(change)
