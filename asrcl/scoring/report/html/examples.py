"""Decode examples: which utterances a report shows, and how each hypothesis aligns with its reference.

Per domain, in turns: the utterances with the most errors over all methods, those where methods differ most, and an even
sample of the rest, so that the page shows what is typical beside what is worst. One seed is shown, the first that all
methods have. Alignments are those behind the error counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final

from asrcl.scoring.counting.align import align_words
from asrcl.scoring.counting.errors import Errors, ItemErrors
from asrcl.scoring.report.summary import ScenarioSummary

MAX_PER_DOMAIN: Final = 40
MAX_CHARACTERS: Final = 1_000_000


def decode_examples(summary: ScenarioSummary, budget: int = MAX_CHARACTERS) -> dict[str, Any] | None:
    """What the page's script needs; None where no texts were kept.

    Args:
        summary: with the items of its runs.
        budget: characters of text in all, shared by the domains.

    Returns:
        `seed`, `methods` (id and label), `domains`, `total` (utterances in the test sets) and `items`, each with d (index
        of its domain), s (speaker), i (id), r (reference) and h: per method [hypothesis, operations, errors] or None.
        The operations are one letter per step of the alignment: C, S, D, I.
    """
    seed, sets = _common_seed(summary)
    if not sets:
        return None
    share, items, total = budget // len(summary.domains), [], 0
    for domain in range(len(summary.domains)):
        parts = {method: found[domain] for method, found in sets.items()}
        columns = _by_id(parts)
        total += len(columns)
        spent = 0
        for key in _choose(columns):
            spent += sum(len(item.reference) + len(item.hypothesis) for item in columns[key] if item)
            if spent > share:
                break
            items.append(_example(columns[key], domain))
    if not items:
        return None
    labels = {method.method: method.label for method in summary.methods}
    methods = [{"id": method, "label": labels[method]} for method in sets]
    return {"seed": seed, "methods": methods, "domains": summary.domains, "total": total, "items": items}


def operations(reference: str, hypothesis: str) -> str:
    """One letter per step: C correct, S substituted, D deleted, I inserted; of words between white space."""
    return "".join(step[0] for step in align_words(reference.split(), hypothesis.split()))


def _common_seed(summary: ScenarioSummary) -> tuple[int, dict[str, list[Errors]]]:
    """The first seed that most methods have with texts, and their items by method, in the order of tables."""
    seeds = sorted({seed for _, seed in summary.items})
    found = {seed: _with_texts(summary, seed) for seed in seeds}
    best = max(seeds, key=lambda seed: (len(found[seed]), -seed), default=0)
    return best, found.get(best, {})


def _with_texts(summary: ScenarioSummary, seed: int) -> dict[str, list[Errors]]:
    sets = {method.method: summary.items.get((method.method, seed)) for method in summary.methods}
    return {
        method: parts
        for method, parts in sets.items()
        if parts and any(item.reference or item.hypothesis for part in parts for item in part.items)
    }


def _by_id(parts: dict[str, Errors]) -> dict[str, list[ItemErrors | None]]:
    """Per utterance, its item under every method."""
    tables = [{item.id: item for item in part.items} for part in parts.values()]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: [table.get(name) for table in tables] for name in names}


def _choose(columns: dict[str, list[ItemErrors | None]]) -> list[str]:
    """Ids of the utterances to show, at most `MAX_PER_DOMAIN`."""
    counts = {name: [item.errors for item in items if item] for name, items in columns.items()}
    worst = sorted(counts, key=lambda name: (-sum(counts[name]), name))
    apart = sorted(counts, key=lambda name: (min(counts[name]) - max(counts[name]), name))
    names = list(counts)
    even = names[:: max(1, len(names) // MAX_PER_DOMAIN)]
    return list(_in_turns(worst, apart, even))[:MAX_PER_DOMAIN]


def _in_turns(*lists: Sequence[str]) -> Iterator[str]:
    """One of each list after the other, nothing twice."""
    seen: set[str] = set()
    for group in zip_longest(*lists):
        for name in group:
            if name is not None and name not in seen:
                seen.add(name)
                yield name


def _example(items: Sequence[ItemErrors | None], domain: int) -> dict[str, Any]:
    first = next(item for item in items if item)
    recognised = [
        [item.hypothesis, operations(item.reference, item.hypothesis), item.errors] if item else None for item in items
    ]
    return {"d": domain, "s": first.group, "i": first.id, "r": first.reference, "h": recognised}
