"""Sets of counts made ready for a comparison: in one order, pooled over domains, added up over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from asrcl.exceptions import InputError
from asrcl.scoring.counting.errors import Errors, ItemErrors, name_some


def pool(parts: Sequence[Errors], labels: Sequence[str] | None = None) -> Errors:
    """Concatenate sets whose ids may coincide (seeds, domains): each id gets its part's label in front.

    Groups keep their names, so intervals over the pool resample a speaker jointly across all parts.

    Args:
        parts: sets of one unit.
        labels: one per part; "seed0", "seed1", … if not given.

    Raises:
        InputError: no parts, labels that do not fit, or different units.
    """
    names = [f"seed{index}" for index in range(len(parts))] if labels is None else list(labels)
    if not parts or len(names) != len(parts) or len(set(names)) != len(names):
        raise InputError(f"cannot pool {len(parts)} sets under labels {names}; give each set its own label")
    first, *others = (_relabel(part, name) for part, name in zip(parts, names, strict=True))
    return first.merge(*others)


def sum_seeds(parts: Sequence[Errors]) -> Errors:
    """Add the counts of several seeds item by item, so that every item occurs once.

    The rate is that of the pooled seeds; unlike with `pool`, items stay as independent as they were.
    Texts are dropped.

    Raises:
        InputError: no parts, or parts with different items or units.
    """
    if not parts:
        raise InputError("no seeds to add; give at least one set of error counts")
    columns = [aligned(part, parts[0]).items for part in parts]
    return Errors([_sum_items(items) for items in zip(*columns, strict=True)], parts[0].unit)


def aligned(errors: Errors, to: Errors) -> Errors:
    """The same items in the order of `to`.

    Raises:
        InputError: the units or the items differ.
    """
    if errors.unit != to.unit:
        raise InputError(f"cannot compare counts of {errors.unit}s with {to.unit}s; score both alike")
    by_id = {item.id: item for item in errors.items}
    apart = by_id.keys() ^ set(to.ids)
    if apart:
        raise InputError(f"items in only one of two sets: {name_some(apart)}; score both on the same items")
    return Errors([by_id[key] for key in to.ids], errors.unit)


def _relabel(part: Errors, label: str) -> Errors:
    return Errors([replace(item, id=f"{label}/{item.id}") for item in part.items], part.unit)


def _sum_items(items: Iterable[ItemErrors]) -> ItemErrors:
    items = list(items)
    return ItemErrors(
        items[0].id,
        items[0].group,
        substitutions=sum(item.substitutions for item in items),
        deletions=sum(item.deletions for item in items),
        insertions=sum(item.insertions for item in items),
        length=sum(item.length for item in items),
        character_errors=sum(item.character_errors for item in items),
        character_length=sum(item.character_length for item in items),
    )
