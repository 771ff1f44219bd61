"""The same domains in several orders: named ones of the scenario, and ones that are drawn and always the same.

    orders: {A: [0, 1, 2], B: [2, 0, 1]}      # of a scenario: numbers of its domains, from 0
    order: B                                  # this one; or [2, 0, 1]; or 3, the third that is drawn

Of the orders that are drawn the first is the one in which the domains are listed. What is asked for (`--orders`) is a number of
drawn orders ("5"), or names ("A B"), of which A-E are those from A to E.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from asrcl.exceptions import InputError
from asrcl.experiment.names import check_name, file_stem

FOLDER = "order_"
"""How the folder of an order begins, which holds its initial models and its runs."""
Permutation = tuple[int, ...]


def order_folder(name: str) -> str:
    """The folder of an order below that of its scenario."""
    return f"{FOLDER}{file_stem(name)}"


def check_orders(scenario: Mapping[str, Any]) -> None:
    """Refuse `orders` that are no permutations under names.

    Raises:
        InputError: names the order and what is wrong with it.
    """
    orders = scenario.get("orders") or {}
    if not isinstance(orders, dict):
        raise InputError("scenario.orders: write names and numbers of domains, e.g. {A: [0, 1, 2], B: [2, 0, 1]}")
    for name in orders:
        check_name(name, "scenario.orders: order")
        if name.isdecimal() or len(name.replace(",", " ").split()) > 1:
            raise InputError(f"scenario.orders.{name}: a number or several words; name an order with one word, e.g. A")


def named_order(scenario: Mapping[str, Any], order: Any) -> tuple[str, Permutation]:
    """The name and the permutation of one order: a name of `orders`, a list of numbers, or the number of a drawn order.

    Args:
        scenario: has `domains`, and perhaps `orders`.
        order: as `scenario.order` gives it.

    Raises:
        InputError: an unknown order, or one that is no permutation of the domains.
    """
    size, known = len(scenario["domains"]), scenario.get("orders") or {}
    if isinstance(order, list):
        return "-".join(map(str, order)), _permutation(order, size, f"scenario.order={order}")
    if isinstance(order, int) and not isinstance(order, bool):
        return str(order), draw_orders(order, size)[-1]
    if not isinstance(order, str) or order not in known:
        names = f"; its orders are {', '.join(known)}" if known else ", which names no orders"
        raise InputError(f"order {order}: not one of the scenario{names}; or give a number of orders to draw, or [2, 0, 1, ...]")
    return str(order), _permutation(known[order], size, f"scenario.orders.{order}={known[order]}")


def wanted_orders(scenario: Mapping[str, Any], wanted: str) -> dict[str, Permutation]:
    """The orders that `--orders` asks for, by name.

    Args:
        scenario: has `domains`, and perhaps `orders`.
        wanted: "5", "A B C" or "A-C", with spaces or commas.

    Raises:
        InputError: nothing, an unknown order, or one that is no permutation of the domains.
    """
    words = wanted.replace(",", " ").split()
    if len(words) == 1 and words[0].isdecimal():
        drawn = draw_orders(int(words[0]), len(scenario["domains"]))
        return {str(number): order for number, order in enumerate(drawn, 1)}
    names = [name for word in words for name in _range(word, list(scenario.get("orders") or {}))]
    if not names:
        raise InputError(f"--orders {wanted!r}: names no order; give their number (5), or names (A B, A-E)")
    return dict(named_order(scenario, name) for name in names)


def draw_orders(count: int, size: int) -> list[Permutation]:
    """Different orders of `size` domains: as listed, then drawn ones; fewer are the beginning of more.

    Raises:
        InputError: a count below 1, or more than there are orders.
    """
    if not 1 <= count <= math.factorial(size):
        raise InputError(f"{count} orders of {size} domains: there are {math.factorial(size)}; ask for at least 1 and no more")
    generator, found = random.Random(0), {tuple(range(size)): None}
    while len(found) < count:
        # By keys of our own: Python keeps the numbers of random() from version to version, but not those of shuffle().
        keys = [generator.random() for _ in range(size)]
        found[tuple(sorted(range(size), key=keys.__getitem__))] = None
    return list(found)


def in_order(scenario: Mapping[str, Any], name: str, order: Sequence[int]) -> dict[str, Any]:
    """A scenario with its domains in another order, under `order` its name, and under `listed` how they were listed."""
    domains = scenario["domains"]
    rest = {key: value for key, value in scenario.items() if key != "orders"}
    return {**rest, "domains": [domains[n] for n in order], "order": name, "listed": [domain["name"] for domain in domains]}


def as_listed(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario with its domains as they were listed: what all orders share (corpora, tokens) is made of these."""
    names = scenario.get("listed") or [domain["name"] for domain in scenario["domains"]]
    return {**scenario, "domains": sorted(scenario["domains"], key=lambda domain: names.index(domain["name"]))}


def _range(word: str, known: list[str]) -> list[str]:
    """The names from the first to the last of "A-E"; a word that is a name, or no range, as it is."""
    first, dash, last = word.partition("-")
    if word in known or not dash or first not in known or last not in known:
        return [word]
    chosen = known[known.index(first) : known.index(last) + 1]
    if not chosen:
        raise InputError(f"--orders {word}: {last} comes before {first} among the scenario's orders; write {last}-{first}")
    return chosen


def _permutation(order: Any, size: int, where: str) -> Permutation:
    numbers = order if isinstance(order, list) else []
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if not whole or sorted(numbers) != list(range(size)):
        raise InputError(f"{where}: no permutation of the {size} domains; give each number from 0 to {size - 1} once")
    return tuple(numbers)
