"""Experience replay (ER): a small memory of earlier domains' training items is trained on beside the new ones.

The form for speech recognition is that of Chang et al. (Interspeech 2021) and Vander Eeckt and Van hamme (arXiv 2210.15282):
every batch of the new domain comes with a batch from the memory, whose loss has a weight of its own. The memory holds `budget`
items, as equally many of each domain as can be; when a domain joins, each of the others gives up some of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from asrcl.contract.method import Method, joined_state, parted_state, register
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.distributed import processes
from asrcl.exceptions import InputError
from asrcl.state import StateDict


@register("er")
class ExperienceReplay(Method):
    """Fine-tuning on the loss of the new items plus `weight` times that of items from the memory.

    Args:
        budget: training items that the memory holds over all domains.
        weight: of the memory's loss.
        items: memory items per batch; None for as many as the batch has.
    """

    label = "ER"

    def __init__(self, budget: int = 100, weight: float = 1.0, items: int | None = None) -> None:
        if budget < 1:
            raise InputError(f"method.budget={budget}: a memory holds at least 1 item; without memory use the method ft")
        if weight < 0 or (items is not None and items < 1):
            raise InputError(f"method.weight={weight}, items={items}: weight must not be negative, items at least 1 (or null)")
        self.budget, self.weight, self.items = budget, weight, items
        self._positions: StateDict = {}  # per domain int64 [items], into its training split
        self._data: StateDict = {}  # per domain the letters of its content hash, so that other data are another state
        self._draws = 0
        self._held: dict[tuple[str, int], Batch] = {}

    def state_dict(self) -> StateDict:
        """Which items the memory holds, and how often was drawn from it; the items themselves come from their domains."""
        held = joined_state({"positions": self._positions, "data": self._data})
        return {**held, "draws.count": torch.tensor(self._draws)} if held else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._positions, self._data, draws = parted_state(self, state, "positions", "data", "draws")
        self._draws = int(draws.get("count", torch.tensor(0)))

    def start_run(self, learner: Learner) -> None:
        self._positions, self._data, self._draws, self._held = {}, {}, 0, {}

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        """Draw items of the domain for the memory, and let the domains before give up theirs that are too many now."""
        if not learner.last:
            order = torch.randperm(domain.size("train"), generator=_generator(learner.seed, learner.stage, 0))
            self._positions[domain.name] = order
            self._data[domain.name] = torch.tensor(list(domain.fingerprint("train").encode()), dtype=torch.uint8)
            self._share_out()
        return new

    def _share_out(self) -> None:
        """Keep within the budget; what a domain with few items leaves over goes to the others."""
        left, names = self.budget, sorted(self._positions, key=lambda name: len(self._positions[name]))
        for number, name in enumerate(names):
            share = -(-left // (len(names) - number))
            self._positions[name] = self._positions[name][:share].clone()
            left -= len(self._positions[name])

    def loss(self, learner: Learner, model: nn.Module, batch: Batch) -> Tensor:
        loss = learner.task.loss(model, batch)
        if not any(map(len, self._positions.values())) or not self.weight:
            return loss
        drawn = [memory.to(learner.device) for memory in self._drawn(learner, self.items or len(batch))]
        losses = [learner.task.loss(model, memory) * (len(memory) / sum(map(len, drawn))) for memory in drawn]
        return loss + self.weight * sum(losses[1:], losses[0])

    def _drawn(self, learner: Learner, count: int) -> list[Batch]:
        """So many different items from the memory, or all where it has fewer, as one batch or as one for each domain.

        Where domains have batches of their own, one that would have a single item gets a second.
        """
        names, sizes = list(self._positions), [len(positions) for positions in self._positions.values()]
        together = processes()  # each draws items of its own
        draw = 1 + self._draws * together.count + together.rank
        chosen = torch.randperm(sum(sizes), generator=_generator(learner.seed, learner.stage, draw))[:count].tolist()
        self._draws += 1
        ends = list(accumulate(sizes))
        drawn: dict[str, list[int]] = {}
        for place in chosen:
            number = next(n for n, end in enumerate(ends) if place < end)
            drawn.setdefault(names[number], []).append(place - ends[number] + sizes[number])
        apart = not self._held_item(learner, *next((name, indices[0]) for name, indices in drawn.items())).mixable
        for name, indices in drawn.items():
            if apart and len(indices) == 1 and len(self._positions[name]) > 1:  # normalisation cannot average over one
                indices.append((indices[0] + 1) % len(self._positions[name]))
        parts = {name: [self._held_item(learner, name, index) for index in indices] for name, indices in drawn.items()}
        groups = [parts[name] for name in sorted(parts)] if apart else [[part for group in parts.values() for part in group]]
        return [type(group[0]).collate(group) for group in groups]

    def _held_item(self, learner: Learner, name: str, index: int) -> Batch:
        """The item of a domain that has this place in the memory."""
        return self._item(learner, name, int(self._positions[name][index]))

    def _item(self, learner: Learner, name: str, position: int) -> Batch:
        if (name, position) not in self._held:
            domain = next((domain for domain in learner.domains if domain.name == name), None)
            if domain is None or position >= domain.size("train"):
                raise InputError(f"method {self.name}: its memory holds item {position} of domain {name}, which this run lacks")
            self._held[name, position] = domain.item("train", position)
        return self._held[name, position]


def _generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on a few numbers alone, so that a run that goes on draws what an undisturbed one draws."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)
