"""Hybrid update: a domain that differs from the one before trains more blocks (He, Bai and Yang, arXiv 2602.20796, algorithm 1).

When a domain comes, the direction g_t of its loss is held against that of the domain before, s_t = cos(g_t, g_{t-1}). Related
domains (s_t >= threshold) train few blocks, `small`; others many, `large`. A threshold of -1 is frozen training, one of 1
initialised training, plain fine-tuning, unless a domain repeats the one before. Each fine-tune is that of `frozen` or `ft`,
shared with them.

What g is decides whether s_t says anything, and the paper leaves it open. `reference`:

    fixed    both gradients at one point, with one head for all domains: the weights `point`, which no later domain has moved. The
             one that tells similar from dissimilar domains apart (docs/update_magnitude.md has the numbers), hence the default
    start    each at the weights that its own domain starts from: algorithm 1 to the letter
    end      g_t at the start of the domain, g_{t-1} at the end of its own, where it is next to nothing
    update   not gradients but the updates of one epoch of plain fine-tuning from the start of each domain

Gradients are of the loss without label smoothing, augmentation or dropout, the model in evaluation mode (batch normalisation uses
its statistics), the mean over `batches`. Heads do not count. Where every domain has its own, the gradients behind them are those
of random maps; with `head: first`, items of every domain go through the head of the first. Each tensor's gradient may be brought
to unit length (`per_layer`), so that no layer speaks for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, check_fits, joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.frozen import HEADS, FrozenTraining, check_count, heads_of
from asrcl.methods.references import FineTuning
from asrcl.state import StateDict

Similarity = Literal["cosine", "sign"]
Reference = Literal["fixed", "start", "end", "update"]
Point = Literal["fresh", "initial"]
Head = Literal["first", "own"]


@register("hybrid")
class HybridUpdate(Method):
    """Frozen training for domains that are like the one before, of more blocks or all of them for the others.

    What was decided stands in the stage's record: `similarity` (s_t) and `trained_blocks`.

    Args:
        threshold: tau, from -1 to 1.
        small: blocks that a similar domain trains, beside the head.
        large: blocks that another one trains; None for all.
        similarity: "cosine", or "sign": of the signs of all coordinates.
        reference: what is compared (see the module).
        point: of reference "fixed": "fresh" weights, which nothing has trained, or those of the "initial" model.
        head: of the gradients, where every domain has its own: that of the "first" domain for all, or the domain's "own".
        per_layer: whether every tensor's gradient is brought to unit length before they are compared.
        batches: over how many batches a gradient is averaged; None for all of the training data.
        groups: blocks of one's own, as for `frozen`.
        heads: globs of what counts as a head, as for `frozen`.
    """

    label = "Hybrid"

    def __init__(
        self,
        threshold: float = 0.3,
        small: int = 1,
        large: int | None = None,
        similarity: Similarity = "cosine",
        reference: Reference = "fixed",
        point: Point = "fresh",
        head: Head = "first",
        per_layer: bool = False,
        batches: int | None = None,
        groups: Sequence[str] | None = None,
        heads: Sequence[str] = HEADS,
    ) -> None:
        if not -1 <= threshold <= 1:
            raise InputError(f"method.threshold={threshold}: a cosine, from -1 (always small) to 1 (always large)")
        check_count("small", small)
        check_count("large", large)
        if large is not None and large < small:
            raise InputError(f"method.large={large}: fewer than method.small={small}; domains that differ train as many at least")
        if batches is not None and batches < 1:
            raise InputError(f"method.batches={batches}: must be at least 1 (null: all of the training data)")
        choices = {"similarity": (similarity, Similarity), "reference": (reference, Reference), "point": (point, Point)}
        for option, (value, kind) in {**choices, "head": (head, Head)}.items():
            if value not in get_args(kind):
                raise InputError(f"method.{option}={value}: choose {' or '.join(get_args(kind))}")
        self.threshold, self.small, self.large, self.similarity = threshold, small, large, similarity
        self.reference, self.point, self.head, self.per_layer, self.batches = reference, point, head, per_layer, batches
        self.groups, self.heads = groups, heads
        self._direction: StateDict = {}  # of the domain before

    def state_dict(self) -> StateDict:
        return joined_state({"direction": self._direction})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        (self._direction,) = parted_state(self, state, "direction")

    def start_run(self, learner: Learner) -> None:
        self._direction = {}

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        check_fits(self, "direction", self._direction, learner.weights)

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights:
        new = self._direction_of(learner, domain, old)
        before, self._direction = self._direction, new
        if not before:
            return learner.fine_tune(old, domain, FineTuning())
        similarity = agreement(new, before, self.similarity, self.per_layer)
        blocks = self.small if similarity >= self.threshold else self.large
        learner.record["similarity"], learner.record["trained_blocks"] = float(f"{similarity:.6g}"), blocks
        return learner.fine_tune(old, domain, self.training(blocks))

    def training(self, blocks: int | None) -> Method:
        """How a domain that trains so many blocks is learned."""
        plain = blocks is None and self.groups is None
        return FineTuning() if plain else FrozenTraining(blocks, self.groups, self.heads)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        if learner.last:
            return new
        if self.reference == "end":
            self._direction = self._gradient(learner, domain, new)
        elif old is None:  # the initial model began with fresh weights
            self._direction = self._direction_of(learner, domain, learner.fresh)
        return new

    def _direction_of(self, learner: Learner, domain: Domain, start: Weights) -> StateDict:
        """What is compared of a domain that begins with some weights."""
        if self.reference == "update":
            updated = learner.fine_tune(start, domain, FineTuning(), 1)
            return {name: start[name] - updated[name] for name in self._trunk(learner, learner.frozen(updated))}
        if self.reference == "fixed":
            start = learner.fresh if self.point == "fresh" else learner.initial
        return self._gradient(learner, domain, start)

    def _gradient(self, learner: Learner, domain: Domain, weights: Weights) -> StateDict:
        """The mean gradient of the trunk's parameters over training items, on the CPU; zeros where the loss does not use one."""
        model = learner.frozen(weights)
        trunk = {name: model.get_parameter(name).requires_grad_(True) for name in self._trunk(learner, model)}
        total = [torch.zeros_like(parameter) for parameter in trunk.values()]
        items = 0
        for batch in islice(domain.batches("train", shuffle=True, seed=learner.seed), self.batches):
            loss = self._loss(learner, model, batch.to(learner.device))
            found = torch.autograd.grad(loss * len(batch), list(trunk.values()), allow_unused=True)
            total = [sum_ if part is None else sum_ + part for sum_, part in zip(total, found, strict=True)]
            items += len(batch)
        return {name: (sum_ / items).cpu() for name, sum_ in zip(trunk, total, strict=True)}

    def _loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        if self.head == "own":
            return learner.task.curvature_loss(model, batch)
        first = learner.domains[0].name
        try:
            return learner.task.curvature_loss(model, batch.as_of(first))
        except IndexError as error:  # a class that the head lacks
            raise InputError(
                f"method.head=first: the head of {first} cannot take the labels of {batch.domain} ({error}); choose own"
            ) from error

    def _trunk(self, learner: Learner, model: nn.Module) -> list[str]:
        """Names of the parameters that are compared: all but heads, of whatever domain."""
        domain = learner.domains[-1]
        heads = heads_of(model, self.heads, learner.private(domain) | learner.foreign(domain))
        return [name for name, _ in model.named_parameters() if name not in heads]


def agreement(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], kind: Similarity = "cosine", per_layer: bool = False
) -> float:
    """How far two directions agree, from -1 to 1; 0 where one of them is zero.

    Args:
        first: tensors by name.
        second: tensors of the same names and shapes.
        kind: "cosine" of all coordinates, or "sign": of their signs.
        per_layer: whether every tensor is brought to unit length first; with "cosine" the result is then the mean cosine
            of the tensors, if none is zero.
    """
    product = squares = others = 0.0
    for name in first:
        one, other = (value.double().flatten() for value in (first[name], second[name]))
        if kind == "sign":
            one, other = one.sign(), other.sign()
        if per_layer:
            one, other = (nn.functional.normalize(value, dim=0, eps=torch.finfo(value.dtype).tiny) for value in (one, other))
        product += float(one @ other)
        squares, others = squares + float(one @ one), others + float(other @ other)
    if not squares or not others:
        return 0.0
    return max(-1.0, min(1.0, product / math.sqrt(squares * others)))
