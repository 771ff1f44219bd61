"""Domains as a scenario lists them: short forms written out, options checked.

Short forms:

{name: task, classes: 100, splits: 10}             ten domains task01, task02, ... with classes 0-9, 10-19, ...
{name: permuted, permutations: 9}                  permuted1 ... permuted9, with seeds 1 to 9
{name: rotated, rotations: [15, 30]}               rotated15, rotated30
{name: draw, copies: 10, random_labels: true}      draw01, draw02, ..., which differ in what is drawn by their names
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.images.variants import VARIANTS, check_variants

CHANGES: Final = ("name", "images", "permutation", "rotation", "classes", *VARIANTS)
_MOST: Final = 10_000  # domains; a slip of the finger is not to fill the memory


def written_out(entries: list[dict[str, Any]], scenario: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The domains one by one, each with the variants that the scenario has for all, unless it has its own.

    Args:
        entries: as the scenario lists them, each with a name.
        scenario: may have `label_noise`, `random_labels` and `fraction` (`asrcl.images.variants`).

    Raises:
        InputError: an option that no domain has, or a short form that cannot be written out.
    """
    shared = {name: scenario[name] for name in VARIANTS if scenario.get(name) is not None}
    check_variants(shared, "scenario")
    found = []
    for entry in entries:
        where = f"domain {entry['name']}"
        known = (*CHANGES, *_FORMS)
        if unknown := set(entry) - set(known):
            raise InputError(f"{where}: has {', '.join(sorted(map(str, unknown)))}; known are {', '.join(known)}")
        forms = [form for form in _FORMS if entry.get(form) is not None]
        if len(forms) > 1:
            raise InputError(f"{where}: has {' and '.join(forms)}; one entry takes one of them")
        plain = {**shared, **{name: value for name, value in entry.items() if name not in _FORMS}}
        if type(plain.get("classes")) is int:  # the first so many
            plain["classes"] = list(range(_count(plain["classes"], "classes", where)))
        found += _FORMS[forms[0]](plain, entry[forms[0]], where) if forms else [plain]
    for entry in found:
        _check(entry, f"domain {entry['name']}")
    return found


def _check(entry: Mapping[str, Any], where: str) -> None:
    """Refuse options of another type; whether there are such classes is found when the images are read."""
    check_variants(entry, where)
    if (seed := entry.get("permutation")) is not None and type(seed) is not int:
        raise InputError(f"{where}: permutation={seed}; give a whole number, the seed of the permutation")
    if (degrees := entry.get("rotation")) is not None and not _degrees(degrees):
        raise InputError(f"{where}: rotation={degrees}; give degrees, from -360 to 360")
    if (images := entry.get("images")) is not None and not isinstance(images, dict):
        raise InputError(f"{where}: images={images}; give a kind and its options, e.g. {{kind: digits}}")


def _degrees(value: Any) -> bool:
    return type(value) in (int, float) and -360 <= value <= 360


def _count(value: Any, form: str, where: str) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise InputError(f"{where}: {form}={value}; give a whole number from 1 to {_MOST}")
    return value


def _numbered(name: str, count: int) -> list[str]:
    """Names whose alphabetic order is that of their numbers, from 1."""
    return [f"{name}{number:0{len(str(count))}d}" for number in range(1, count + 1)]


def _splits(entry: Mapping[str, Any], value: Any, where: str) -> list[dict[str, Any]]:
    count, classes = _count(value, "splits", where), entry.get("classes")
    if not isinstance(classes, list) or len(classes) % count:
        number = len(classes) if isinstance(classes, list) else classes
        raise InputError(f"{where}: splits={count} of classes={number}; give a number of classes that {count} divides")
    size = len(classes) // count
    return [
        {**entry, "name": name, "classes": classes[size * place : size * (place + 1)]}
        for place, name in enumerate(_numbered(entry["name"], count))
    ]


def _permutations(entry: Mapping[str, Any], value: Any, where: str) -> list[dict[str, Any]]:
    names = _numbered(entry["name"], _count(value, "permutations", where))
    return [{**entry, "name": name, "permutation": seed} for seed, name in enumerate(names, 1)]


def _rotations(entry: Mapping[str, Any], value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value or not all(map(_degrees, value)):
        raise InputError(f"{where}: rotations={value}; give a list of degrees, from -360 to 360")
    return [{**entry, "name": f"{entry['name']}{degrees:g}", "rotation": degrees} for degrees in value]


def _copies(entry: Mapping[str, Any], value: Any, where: str) -> list[dict[str, Any]]:
    return [{**entry, "name": name} for name in _numbered(entry["name"], _count(value, "copies", where))]


_FORMS: Final[dict[str, Callable[[Mapping[str, Any], Any, str], list[dict[str, Any]]]]] = {
    "splits": _splits, "permutations": _permutations, "rotations": _rotations, "copies": _copies,
}  # fmt: skip
