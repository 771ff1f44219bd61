"""A small memory of earlier domains' training items: what experience replay, DER++ and A-GEM share.

The memory holds `budget` items over all domains and is filled when a domain has been learned, in one of two ways:

    balanced    as equally many of each domain as can be; when a domain joins, each of the others gives up some of its own
    reservoir   reservoir sampling (Vitter, ACM TOMS 1985, algorithm R) over the training items of all domains in turn: every item
                seen so far is held with the same probability, so that a large domain has more of them

Only training items are ever drawn. The state says which items are held; the items themselves come from their domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from asrcl.contract.method import Method, joined_state, parted_state
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.distributed import processes
from asrcl.exceptions import InputError
from asrcl.state import StateDict

Filling = Literal["balanced", "reservoir"]


class WithMemory(Method):
    """A method that keeps some training items of every domain and draws batches of them.

    Args:
        budget: training items that the memory holds over all domains.
        items: memory items per draw; None where the method has another number for it.
        filling: "balanced" or "reservoir" (see the module).

    Raises:
        InputError: a number or word out of range.
    """

    def __init__(self, budget: int, items: int | None, filling: Filling) -> None:
        if budget < 1:
            raise InputError(f"method.budget={budget}: a memory holds at least 1 item; without memory use the method ft")
        if items is not None and items < 1:
            raise InputError(f"method.items={items}: must be at least 1 (or null)")
        if filling not in ("balanced", "reservoir"):
            raise InputError(f"method.filling={filling}: choose balanced or reservoir")
        self.budget, self.items, self.filling = budget, items, filling
        self._positions: StateDict = {}  # per domain int64 [items], into its training split
        self._data: StateDict = {}  # per domain the letters of its content hash, so that other data are another state
        self._draws = 0
        self._held: dict[tuple[str, int], Batch] = {}

    # --- state

    def state_dict(self) -> StateDict:
        """Which items the memory holds, and how often was drawn from it."""
        held = joined_state({"positions": self._positions, "data": self._data})
        return {**held, "draws.count": torch.tensor(self._draws)} if held else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._positions, self._data, draws = parted_state(self, state, "positions", "data", "draws")
        self._draws = int(draws.get("count", torch.tensor(0)))

    def start_run(self, learner: Learner) -> None:
        self._positions, self._data, self._draws, self._held = {}, {}, 0, {}

    @property
    def remembers(self) -> bool:
        """Whether there is an item to draw."""
        return any(map(len, self._positions.values()))

    def kept_bytes(self, learner: Learner) -> int:
        """The items as the model gets them, and which they are."""
        total = super().kept_bytes(learner)
        for domain in learner.domains:
            for place in self._positions.get(domain.name, torch.empty(0)):
                item = domain.item("train", int(place))
                total += sum(value.nbytes for value in getattr(item, "__dict__", {}).values() if isinstance(value, Tensor))
        return total

    # --- filling

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        """Draw items of the domain for the memory, and let the domains before give up theirs that are too many now."""
        if not learner.last:
            order = torch.randperm(domain.size("train"), generator=_generator(learner.seed, learner.stage, 0))
            self._data[domain.name] = torch.tensor(list(domain.fingerprint("train").encode()), dtype=torch.uint8)
            if self.filling == "balanced":
                self._positions[domain.name] = order
                self._share_out()
            else:
                seen = sum(other.size("train") for other in learner.domains if other.name != domain.name)
                self._sample(domain.name, order, seen, _generator(learner.seed, learner.stage, -1))
        return new

    def _share_out(self) -> None:
        """Keep within the budget; what a domain with few items leaves over goes to the others."""
        left, names = self.budget, sorted(self._positions, key=lambda name: len(self._positions[name]))
        for number, name in enumerate(names):
            share = -(-left // (len(names) - number))
            self._positions[name] = self._positions[name][:share].clone()
            left -= len(self._positions[name])

    def _sample(self, name: str, order: Tensor, seen: int, generator: torch.Generator) -> None:
        """Algorithm R: the n-th item takes a random one of n places, and is forgotten where that is beyond the budget."""
        slots = [(known, int(position)) for known, positions in self._positions.items() for position in positions]
        numbers = seen + torch.arange(1, len(order) + 1)
        places = (torch.rand(len(order), generator=generator, dtype=torch.float64) * numbers).long()
        for position, place in zip(order.tolist(), places.tolist(), strict=True):
            if len(slots) < self.budget:
                slots.append((name, position))
            elif place < self.budget:
                slots[place] = (name, position)
        names = [*self._positions, name]
        self._positions = {key: torch.tensor([p for known, p in slots if known == key], dtype=torch.int64) for key in names}

    # --- drawing

    def drawn(self, learner: Learner, count: int) -> list[Batch]:
        """So many different items from the memory, or all where it has fewer, as one batch or as one for each domain.

        Where domains have batches of their own, one that would have a single item gets a second.
        """
        groups = self.drawn_places(learner, count)
        return [type(parts[0]).collate(parts) for parts in ([self._item(learner, *place) for place in group] for group in groups)]

    def drawn_places(self, learner: Learner, count: int) -> list[list[tuple[str, int]]]:
        """What `drawn` draws as domains and positions in their training splits, a list for each batch; it counts as a draw."""
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
        apart = not self._item(learner, *next(self._place(name, indices[0]) for name, indices in drawn.items())).mixable
        for name, indices in drawn.items():
            if apart and len(indices) == 1 and len(self._positions[name]) > 1:  # normalisation cannot average over one
                indices.append((indices[0] + 1) % len(self._positions[name]))
        parts = {name: [self._place(name, index) for index in indices] for name, indices in drawn.items()}
        return [parts[name] for name in sorted(parts)] if apart else [[place for group in parts.values() for place in group]]

    def _place(self, name: str, index: int) -> tuple[str, int]:
        """The domain and position of the item of a domain that has this place in the memory."""
        return name, int(self._positions[name][index])

    def _item(self, learner: Learner, name: str, position: int) -> Batch:
        if (name, position) not in self._held:
            domain = next((domain for domain in learner.domains if domain.name == name), None)
            if domain is None or position >= domain.size("train"):
                raise InputError(f"method {self.name}: its memory holds item {position} of domain {name}, which this run lacks")
            self._held[name, position] = domain.item("train", position)
        return self._held[name, position]


def mean_over_items(values: list[Tensor], batches: list[Batch]) -> Tensor:
    """The mean over the items of several batches, given the means of each."""
    total = sum(map(len, batches))
    weighted = [value * (len(batch) / total) for value, batch in zip(values, batches, strict=True)]
    return sum(weighted[1:], weighted[0])


def _generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on a few numbers alone, so that a run that goes on draws what an undisturbed one draws."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(seed)
