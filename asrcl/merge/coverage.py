"""Which rows of which tensors have curvature, for one or several old domains and the new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from asrcl.curvature import Block, BlockKey, Curvature
from asrcl.curvature.parameters import matches
from asrcl.curvature.storage.lazy import outlines_of
from asrcl.exceptions import InputError
from asrcl.merge.sources import Sized, placeholders


@dataclass(frozen=True)
class Cover:
    """Rows that every curvature has one block for.

    Attributes:
        rows: of the tensor, by the model's own name.
        kind: of the blocks.
        size: how many weights.
        keys: (number of the curvature, where it keeps its block) of the old domains that know the tensor.
        new_keys: the same of the new models; empty, or one for each.
    """

    rows: BlockKey
    kind: str
    size: int
    keys: tuple[tuple[int, BlockKey], ...]
    new_keys: tuple[tuple[int, BlockKey], ...]


class Coverage:
    """The curvatures of a merge, checked against the models.

    Args:
        curvatures: of the old domains' losses at the old weights.
        new_curvatures: of the new models' losses, one per model, or none.
        outlines: of the old model's tensors.

    Raises:
        InputError: a curvature belongs to another model, or two cover a tensor differently.
    """

    def __init__(
        self, curvatures: Sequence[Curvature], new_curvatures: Sequence[Curvature], outlines: Mapping[str, Sized]
    ) -> None:
        self._all = (*curvatures, *new_curvatures)
        self._old = len(curvatures)
        state = placeholders(outlines) if self._all else {}
        for curvature in self._all:
            curvature.check(state)
        self._keys = [_keys_by_name(curvature) for curvature in self._all]
        self._covers = {name: found for name in outlines if (found := self._find(name))} if self._all else {}

    def __bool__(self) -> bool:
        return self._old > 0

    @property
    def new(self) -> tuple[Curvature, ...]:
        """The curvatures of the new models."""
        return self._all[self._old :]

    def of(self, name: str, layers: Sequence[str] = ("*",)) -> list[Cover]:
        """What covers a tensor; nothing where it does not fit the patterns `layers`."""
        return self._covers.get(name, []) if matches(name, layers) else []

    def read(self, cover: Cover) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
        """The blocks of some rows: of the old domains, and of the new models."""
        old, new = (tuple(self._all[n].blocks[key] for n, key in keys) for keys in (cover.keys, cover.new_keys))
        return old, new

    def reason(self, name: str) -> str:
        """Why a tensor has no cover."""
        reasons = (c.metadata.get("uncovered", {}).get(c.canonical_name(name)) for c in self._all)
        return next(filter(None, reasons), "no curvature block")

    def predicted(self, name: str, change: Tensor) -> float | None:
        """`½ changeᵀ F change` of one tensor, summed over the old domains; None where no block covers it."""
        covers = self._covers.get(name)
        if not covers:
            return None
        blocks = ((cover.rows.rows_of(change), block) for cover in covers for block in self.read(cover)[0])
        return sum(float(block.quadratic(rows)) for rows, block in blocks)

    def _find(self, name: str) -> list[Cover]:
        held = {n: keys for n in range(len(self._all)) if (keys := self._keys[n].get(self._all[n].canonical_name(name)))}
        if not any(n < self._old for n in held):
            return []
        first = next(iter(held.values()))
        if any([key[1:] for key in keys] != [key[1:] for key in first] for keys in held.values()):
            raise InputError(f"{name}: the curvatures cover different rows of it; estimate them alike")
        missing = [n for n in range(self._old, len(self._all)) if n not in held]
        if missing:
            number = missing[0] - self._old + 1
            raise InputError(f"{name}: the curvature of new model {number} does not cover it; estimate them alike")
        return [self._cover(name, dict(zip(held, keys, strict=True))) for keys in zip(*held.values(), strict=True)]

    def _cover(self, name: str, keys: Mapping[int, BlockKey]) -> Cover:
        outlines = [outlines_of(self._all[n].blocks)[key] for n, key in keys.items()]
        if len({block.kind for block in outlines}) > 1:
            raise InputError(f"{name}: the curvatures have blocks of different kinds; estimate them alike")
        old, new = (tuple(pair for pair in keys.items() if (pair[0] < self._old) == wanted) for wanted in (True, False))
        rows = next(iter(keys.values()))._replace(name=name)
        return Cover(rows, outlines[0].kind, outlines[0].weights, old, new)


def _keys_by_name(curvature: Curvature) -> dict[str, list[BlockKey]]:
    found: dict[str, list[BlockKey]] = {}
    for key in sorted(curvature.blocks):
        found.setdefault(key.name, []).append(key)
    return found
