"""SVR: singular value-based rehearsal: how much of each direction of an update is taken, learned from one item per old domain.

Vander Eeckt and Van hamme (arXiv 2601.18266). A domain is learned in two parts: plain fine-tuning, and then, for the change D =
U S Vᵀ of every weight, gates on its singular values,

    W = W_old + U diag(sigmoid(a) * s) Vᵀ

of which a alone is trained, from `start` on, where the gates are all but closed, on the new domain's loss and on the memory's,

    loss(new items) + (t - 1) [ loss(memory items) / 2 + KL(old model || model) of the memory items / 2 ].

Biases, normalisations (their statistics, too) and what else has no gates end as the mean of old and new (`rest`), a domain's
own head as it was learned. The authors' gates are of linear layers alone; here of all weights of two or more axes that `targets`
choose. W is computed from the other end, W_new - U diag((1 - sigmoid(a)) s) Vᵀ, so that open gates give fine-tuning's weights to
the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from asrcl.contract.method import register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.frozen import hold_statistics
from asrcl.methods.increments import Factors, perturbed
from asrcl.methods.per_domain import parametrized, unwrapped
from asrcl.methods.references import FineTuning
from asrcl.methods.replay import ExperienceReplay
from asrcl.state import StateDict


class GatedUpdate(nn.Module):
    """A weight after an update without what gates on the singular values of the update hold back.

    Args:
        update: what was learned, of the weight's shape.
        start: the gates' logits.
    """

    left: Tensor
    right: Tensor

    def __init__(self, update: Tensor, start: float) -> None:
        super().__init__()
        U, S, Vh = torch.linalg.svd(update.flatten(1).double(), full_matrices=False)
        self.register_buffer("left", (U * S).to(update.dtype), persistent=False)
        self.register_buffer("right", Vh.to(update.dtype), persistent=False)
        self.logits = nn.Parameter(torch.full_like(S, start, dtype=update.dtype))

    def factors(self) -> Factors:
        """What is held back as a product, negative."""
        return Factors(self.left * (self.logits.sigmoid() - 1), self.right)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as the gates let it be, of the same shape."""
        return perturbed(weight, self.factors())


@register("svr")
class SingularValueRehearsal(ExperienceReplay):
    """Fine-tuning whose update is taken direction by direction, as learned from a few items of earlier domains.

    Args:
        budget: training items that the memory holds of every domain.
        epochs: passes over the new domain's training data that the gates are trained for.
        learning_rate: of the gates.
        start: the gates' logits before; inf: all of them open for good, which with rest=1 is plain fine-tuning to the bit.
        rest: how much is taken of the change of what has no gates.
        weight, distillation: of the memory's loss and of the distillation on it, before the factor (t - 1).
        targets: globs of the weights whose updates have gates; neither embeddings nor what is tied to them.
    """

    label = "SVR"

    def __init__(
        self,
        budget: int = 1,
        epochs: int = 3,
        learning_rate: float = 0.01,
        start: float = -10.0,
        rest: float = 0.5,
        weight: float = 0.5,
        distillation: float = 0.5,
        targets: Sequence[str] = ("*",),
    ) -> None:
        super().__init__(budget, weight=weight, distillation=distillation)
        if epochs < 1 or not 0 < learning_rate < float("inf"):
            raise InputError(f"method.epochs={epochs}, learning_rate={learning_rate}: at least 1, and positive")
        if not 0 <= rest <= 1:
            raise InputError(f"method.rest={rest}: from 0, the old values, to 1, the new ones")
        self.epochs, self.learning_rate, self.start, self.rest = epochs, learning_rate, start, rest
        self.targets = tuple(targets)
        self._old: Weights | None = None

    def training_state(self) -> StateDict:
        """With the hash of the weights that updates are counted from; the gates begin with what was made of them."""
        origin = {} if self._old is None else {"origin.hash": torch.tensor(list(self._old.hash.encode()), dtype=torch.uint8)}
        return {**self.state_dict(), **origin}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        super().load_state_dict({name: value for name, value in state.items() if name != "origin.hash"})

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        tuned = learner.fine_tune(old, domain, FineTuning())
        if not self.remembers:
            return tuned
        self._old = old
        new = learner.fine_tune(tuned, domain, self, self.epochs, self.learning_rate)
        self._old = None
        return new

    def wrap(self, learner: Learner, model: nn.Module) -> nn.Module:
        assert self._old is not None
        before, own = self._old, learner.private(learner.domains[-1])

        def gated(name: str, weight: Tensor) -> GatedUpdate:
            return GatedUpdate(weight.detach() - before[name].to(weight), self.start)

        model = parametrized(learner, model, self.targets, gated)
        with torch.no_grad():
            for name, value in (*model.named_parameters(), *model.named_buffers()):
                if name in before and name not in own and value.is_floating_point():  # what has gates is under another name now
                    value.copy_(torch.lerp(before[name].to(value), value, self.rest))
        for name, value in model.named_parameters():
            value.requires_grad_(name.endswith(".logits"))  # a domain's own head was learned in the first part
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                hold_statistics(module)
        return model

    def unwrap(self, learner: Learner, model: nn.Module) -> StateDict:
        return {name: value.detach().cpu().clone() for name, value in unwrapped(model)[0].items()}

    def _of_memory(self, learner: Learner, model: nn.Module, memory: Batch) -> Tensor:
        return (learner.stage - 1) * super()._of_memory(learner, model, memory)

    def _share_out(self) -> None:
        """So many items of every domain, and not of all together."""
        self._positions = {name: held[: self.budget].clone() for name, held in self._positions.items()}
