"""PackNet (Mallya and Lazebnik, CVPR 2018, arXiv 1711.05769): every domain has some weights of its own in one network.

A domain trains all weights that no earlier domain owns, beside those of earlier domains, which stay as they are. Then, in every
layer, it keeps the share `keep` of what it trained, by magnitude, gives the rest back (as zeros), and trains what it kept for
`retrain` epochs more. A domain is decoded with its own weights and those of earlier domains, all others being zero: to the bit
the model that its stage ended with, whatever comes later. The domain of an item must be known, as in task-incremental learning.
The last domain of a run gives nothing back.

Shared in this way are weights of two or more axes, convolutions and attention without a layer of its own included. Embeddings,
biases, norms with their statistics, and a domain's head are kept for each domain apart (the paper freezes them after the first).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, check_fits, joined_state, parted_state, register
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.state import StateDict


@register("packnet")
class PackNet(Method):
    """Fine-tuning of the weights that no earlier domain owns, pruned to a share, with a model for each domain.

    Args:
        keep: share of the weights it trained that a domain keeps, 1 less the paper's pruning ratio (0.5 and 0.75).
        retrain: epochs after pruning; None for half of the run's, as in the paper.
    """

    label, decoded_by = "PackNet", "domain_model"

    def __init__(self, keep: float = 0.25, retrain: int | None = None) -> None:
        if not 0 < keep <= 1:
            raise InputError(f"method.keep={keep}: a share, above 0 and at most 1")
        if retrain is not None and retrain < 0:
            raise InputError(f"method.retrain={retrain}: must not be negative (null: half of the run's epochs)")
        self.keep, self.retrain = keep, retrain
        self._owner: StateDict = {}  # per shared weight, uint8: the number of the domain it belongs to, 0 for none
        self._apart: dict[int, StateDict] = {}  # what each domain has for itself
        self._mine: StateDict = {}  # what is trained, on the device
        self._before: StateDict = {}

    def state_dict(self) -> StateDict:
        return joined_state({"owner": self._owner, **{f"apart.{number}": held for number, held in self._apart.items()}})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._owner, apart = parted_state(self, state, "owner", "apart")
        numbers = sorted({name.partition(".")[0] for name in apart}, key=int)
        parts = parted_state(self, apart, *numbers)
        self._apart = {int(number): part for number, part in zip(numbers, parts, strict=True)}

    def start_run(self, learner: Learner) -> None:
        self._owner, self._apart = {}, {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        check_fits(self, "owner", self._owner, learner.weights)

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        self._claim(learner, domain)
        return self._pruned(learner, domain, self._trained(learner, domain, old, None))

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if old is None:
            self._claim(learner, domain)
            new = self._pruned(learner, domain, new)
        foreign = learner.foreign(domain)
        apart = {name for name in new if name not in self._owner and name not in foreign}
        self._apart[learner.stage] = {name: new[name].clone() for name in sorted(apart)}
        return new

    def _claim(self, learner: Learner, domain: Domain) -> None:
        """What is free belongs to the current domain until it gives some of it back."""
        if not self._owner:
            unshared = learner.foreign(domain) | learner.private(domain)
            names = matrices(learner.frozen(learner.weights)) - unshared
            self._owner = {name: torch.zeros(learner.weights[name].shape, dtype=torch.uint8) for name in sorted(names)}
        if learner.stage > torch.iinfo(torch.uint8).max:
            raise InputError(f"method packnet: domain {learner.stage} is one too many; a weight's owner is one of 255")
        self._owner = {name: torch.where(owner == 0, learner.stage, owner) for name, owner in self._owner.items()}

    def _trained(self, learner: Learner, domain: Domain, start: Weights, epochs: int | None) -> Weights:
        """Weights after training those of the current domain; the others are, to the bit, what they were."""
        mine = {name: owner == learner.stage for name, owner in self._owner.items()}
        self._mine = {name: mask.to(learner.device) for name, mask in mine.items()}
        new = learner.fine_tune(start, domain, self, epochs)
        return Weights({**new.state, **{name: torch.where(mask, new[name], start[name]) for name, mask in mine.items()}})

    def _pruned(self, learner: Learner, domain: Domain, trained: Weights) -> Weights:
        """Weights of which a share is kept and trained again, the rest given back."""
        if learner.last:
            return trained
        pruned = trained.state.copy()
        for name, owner in self._owner.items():
            self._owner[name] = kept(trained[name], owner, learner.stage, self.keep)
            pruned[name] = torch.where(self._owner[name] > 0, trained[name], 0.0)
        epochs = max(1, learner.epochs // 2) if self.retrain is None else self.retrain
        return self._trained(learner, domain, Weights(pruned), epochs) if epochs else Weights(pruned)

    @torch.no_grad()
    def after_backward(self, learner: Learner, model: nn.Module) -> None:
        self._before = {name: value.detach().clone() for name, value in model.named_parameters() if name in self._mine}
        for name, parameter in model.named_parameters():
            if name in self._mine and parameter.grad is not None:
                parameter.grad.mul_(self._mine[name])

    @torch.no_grad()
    def after_step(self, learner: Learner, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            if name in self._mine:  # momentum and weight decay move what has no gradient
                parameter.copy_(torch.where(self._mine[name], parameter, self._before[name]))

    def weights_for(self, learner: Learner, domain: Domain) -> Weights | None:
        """The model of a domain's own stage; the latest for one to come; None for a probe, which nothing says the model of."""
        number = next((n for n, known in enumerate(learner.domains, 1) if known.name == domain.name), 0)
        if number not in self._apart:
            return learner.weights if learner.to_come(domain) else None
        latest = learner.weights
        shared = {name: torch.where((owner > 0) & (owner <= number), latest[name], 0.0) for name, owner in self._owner.items()}
        foreign = {name: learner.initial[name] for name in learner.foreign(domain)}
        found = shared | self._apart[number] | foreign
        return Weights({name: found[name] for name in latest})

    def parameters(self, learner: Learner) -> int:
        """Shared weights once, what domains have apart, and the owners: log2(domains + 1) bits a weight, 32 bits a number."""
        apart = sum(v.numel() for held in self._apart.values() for v in held.values() if v.is_floating_point())
        shared = sum(owner.numel() for owner in self._owner.values())
        return apart + shared + math.ceil(shared * math.ceil(math.log2(len(self._apart) + 1)) / 32)


def matrices(model: nn.Module) -> set[str]:
    """Names of the weights of two or more axes, under all their names, without embeddings and what is tied to them."""
    embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, value in named if value.ndim > 1 and id(value) not in embedded}


def kept(weight: Tensor, owner: Tensor, number: int, share: float) -> Tensor:
    """Owners after domain `number` gave back all but a share of its weights, the largest (rounded up; of equals the first)."""
    mine = (owner == number).flatten()
    order = weight.abs().flatten().masked_fill(~mine, -1.0).argsort(descending=True, stable=True)
    given = order[math.ceil(share * int(mine.sum())) : int(mine.sum())]
    return owner.flatten().index_fill(0, given, 0).view_as(owner)
