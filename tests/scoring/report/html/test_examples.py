from collections import Counter
from dataclasses import replace

import pytest

from asrcl.scoring.report.html import examples
from asrcl.scoring.report.html.examples import decode_examples, operations
from asrcl.scoring.report.summary import ScenarioSummary


@pytest.mark.parametrize(
    ("reference", "hypothesis", "steps"),
    [
        ("a b c", "a b c", "CCC"), ("a b c", "a x c", "CSC"), ("a b c", "a c", "CDC"), ("a c", "a b c", "CIC"),
        ("", "a", "I"), ("a", "", "D"),
    ],
)  # fmt: skip
def test_operations(reference: str, hypothesis: str, steps: str) -> None:
    assert operations(reference, hypothesis) == steps


def test_every_alignment_has_the_stored_counts(summary: ScenarioSummary) -> None:
    found = decode_examples(summary)
    assert found and found["seed"] == 1 and [method["id"] for method in found["methods"]] == ["initial", "ft", "ihr"]
    assert found["total"] == len(found["items"]) == 60
    for item in found["items"]:
        for method, (hypothesis, steps, errors) in zip(found["methods"], item["h"], strict=True):
            stored = next(i for i in summary.items[method["id"], 1][item["d"]].items if i.id == item["i"])
            count = Counter(steps)
            assert (count["S"], count["D"], count["I"]) == (stored.substitutions, stored.deletions, stored.insertions)
            assert errors == stored.errors and hypothesis == stored.hypothesis and item["s"] == stored.group


def test_the_worst_come_first_and_the_number_is_limited(summary: ScenarioSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MAX_PER_DOMAIN", 3)
    found = decode_examples(summary)
    assert found and len(found["items"]) == 15
    worst = [max(sum(h[2] for h in item["h"]) for item in decode_examples(summary)["items"] if item["d"] == d) for d in range(5)]
    assert [sum(h[2] for h in found["items"][3 * d]["h"]) for d in range(5)] == worst


def test_the_budget_is_shared_by_the_domains(summary: ScenarioSummary) -> None:
    found = decode_examples(summary, budget=3000)
    assert found and set(Counter(item["d"] for item in found["items"])) == set(range(5))
    assert sum(len(item["r"]) + sum(len(h[0]) for h in item["h"]) for item in found["items"]) <= 3000


def test_without_texts_there_are_none(summary: ScenarioSummary) -> None:
    assert decode_examples(replace(summary, items={})) is None
    silent = {
        key: [replace(part, items=[replace(item, reference="", hypothesis="") for item in part.items]) for part in parts]
        for key, parts in summary.items.items()
    }
    assert decode_examples(replace(summary, items=silent)) is None


def test_a_method_without_items_is_left_out(summary: ScenarioSummary) -> None:
    items = {key: None if key[0] == "ft" else parts for key, parts in summary.items.items()}
    found = decode_examples(replace(summary, items=items))
    assert found and [method["id"] for method in found["methods"]] == ["initial", "ihr"]
