"""CSSVD: domains are learned by rotating the tail right singular vectors of every weight, and rotations are averaged.

After Vander Eeckt and Van hamme (arXiv 2606.09342, with SSVD, the structured SVD of arXiv 2509.02830). With the singular values
of the first domain's weight W `[O, I]`, W = U S Vᵀ, the k smallest of which are its tail,

    W_t = U_h S_h V_hᵀ + U_k S_k G V_kᵀ,      k = int(share * min(O, I))

    first_order   G = I - 2 K                              as the authors train it
    cayley        G = (I - K) (I + K)⁻¹                    the rotation of which that is the first order

K is skew-symmetric, the k (k - 1) / 2 numbers below its diagonal are trained, and begin with 0. All else is frozen: the head of
every weight, its singular values, biases and normalisations. After the first adaptation rotations are averaged, that of domain
t with weight 1 / (t - 1); since W_t is linear in G, so are the weights. The tail is that of the first domain's weights in every
stage, so that their head is never touched; rotations of a stage are added to what earlier stages made of the tail. Where our
reading may differ from the authors': they adapt attention, feed-forward and convolutional projections alone (`targets`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, joined_state, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.merge import merge
from asrcl.methods.increments import Factors, perturbed
from asrcl.methods.per_domain import matrices, parametrized, unwrapped
from asrcl.methods.references import FineTuning
from asrcl.state import StateDict


class TailRotation(nn.Module):
    """A weight plus what a rotation of its tail right singular vectors changes.

    Args:
        left: U_k S_k `[O, k]`.
        right: V_k `[I, k]`.
        rotation: "first_order" or "cayley".
    """

    left: Tensor
    right: Tensor
    below: Tensor

    def __init__(self, left: Tensor, right: Tensor, rotation: str) -> None:
        super().__init__()
        size, self.rotation = left.shape[1], rotation
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.register_buffer("below", torch.tril_indices(size, size, -1, device=left.device), persistent=False)
        self.angles = nn.Parameter(left.new_zeros(size * (size - 1) // 2))

    def change(self) -> Tensor:
        """G - I `[k, k]`."""
        size = self.left.shape[1]
        lower = self.left.new_zeros(size, size).index_put(tuple(self.below), self.angles)
        skew = lower - lower.mT
        if self.rotation == "first_order":
            return -2 * skew
        return torch.linalg.solve(torch.eye(size, dtype=skew.dtype, device=skew.device) + skew, -2 * skew)

    def factors(self) -> Factors:
        """The change of the weight as a product."""
        return Factors(self.left @ self.change(), self.right.mT)

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, of the same shape."""
        return perturbed(weight, self.factors())


@register("cssvd")
class TailSubspaceTuning(Method):
    """Fine-tuning of rotations of the tail singular vectors alone, averaged over domains.

    Args:
        share: of the directions of every weight that are its tail.
        rotation: "first_order" or "cayley" (see the module).
        strength: of the merge with the weights before, a constant in place of 1 / (t - 1).
        targets: globs of the weights that are changed; only those of two or more axes are, and neither embeddings nor what is
            tied to them.
    """

    label = "CSSVD"

    def __init__(
        self,
        share: float = 0.4,
        rotation: Literal["first_order", "cayley"] = "first_order",
        strength: float | None = None,
        targets: Sequence[str] = ("*",),
    ) -> None:
        if not 0 < share <= 1:
            raise InputError(f"method.share={share}: a share of the directions, above 0 and at most 1")
        if rotation not in ("first_order", "cayley"):
            raise InputError(f"method.rotation={rotation}: choose first_order or cayley")
        if strength is not None and not 0 <= strength <= 1:
            raise InputError(f"method.strength={strength}: from 0 to 1, or null for 1 / (t - 1)")
        self.share, self.rotation, self.strength, self.targets = share, rotation, strength, tuple(targets)
        self._left: StateDict = {}
        self._right: StateDict = {}

    def state_dict(self) -> StateDict:
        return joined_state({"left": self._left, "right": self._right})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._left, self._right = parted_state(self, state, "left", "right")

    def start_run(self, learner: Learner) -> None:
        self._left, self._right = {}, {}

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        return learner.fine_tune(old, domain, self if self._left else FineTuning())

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        def rotation(name: str, weight: Tensor) -> TailRotation:
            left, right = self._left[name].to(weight), self._right[name].to(weight)
            if (len(left), len(right)) != (weight.shape[0], weight[0].numel()):
                raise InputError(f"method cssvd: its tail of {name} is of {len(left)} x {len(right)} weights, not of the model's")
            return TailRotation(left, right, self.rotation)

        return parametrized(learner, model, list(self._left), rotation)

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        return {name: value.detach().cpu().clone() for name, value in unwrapped(model)[0].items()}

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        if self.strength is None:
            return Weights(merge(old.state, new.state, "average", task=max(1, learner.stage - 1)))
        return Weights(merge(old.state, new.state, "interpolate", strength=self.strength))

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if not self._left and not learner.last:
            model, without = learner.frozen(new), (*learner.private(domain), *learner.foreign(domain))
            for _, _, name in matrices(model, self.targets, without):
                weight = new[name].flatten(1)
                size = int(self.share * min(weight.shape))
                if size > 1:  # one direction cannot be rotated
                    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
                    self._left[name] = (U[:, -size:] * S[-size:]).to(weight.dtype)
                    self._right[name] = Vh[-size:].mT.contiguous().to(weight.dtype)
            if not self._left:
                raise InputError(f"method.share={self.share}: no weight that method.targets choose has two such directions")
        return new
