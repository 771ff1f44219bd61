"""How deep in the model a tensor lies, read from the numbers in its name."""

from __future__ import annotations

from collections.abc import Iterable


def depths(names: Iterable[str]) -> dict[str, float]:
    """Name -> 0 for the first layer to 1 for the last.

    A layer is what shares its name up to the first number (`encoder.layers.3`), in the order of the model. What has no number
    takes the depth of the layer before it, and 0 before the first.
    """
    ranks: dict[str, int] = {}
    found: dict[str, int] = {}
    last = 0
    for name in names:
        parts = name.split(".")
        place = next((n for n, part in enumerate(parts) if part.isdigit()), None)
        if place is not None:
            last = ranks.setdefault(".".join(parts[: place + 1]), len(ranks))
        found[name] = last
    deepest = max(len(ranks) - 1, 1)
    return {name: rank / deepest for name, rank in found.items()}
