"""Made-up runs of any number, with texts, losses, layers, curvature and a sweep: what a report has to cope with."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from asrcl.scoring.counting.errors import ItemErrors, count_errors

METHODS = ("initial", "ft", "fta", "ewc", "ihr", "lwf", "replay", "separate")
DOMAINS = ("US", "ENG", "CAR", "SCO", "WMI")
WORDS = tuple("play the next song in my kitchen please and call tom at nine then add milk to that list".split())  # noqa: SIM905
FIRST = (4.0, 22.0, 27.0, 24.0, 30.0)
# Points of forgetting per later stage, and the share of the initial model's errors that is left after learning.
HABITS = {
    "initial": (0.0, 1.0), "ft": (4.0, 0.4), "fta": (0.5, 0.8), "ewc": (2.0, 0.6), "ihr": (1.0, 0.45), "lwf": (2.5, 0.55),
    "replay": (1.2, 0.42), "separate": (0.0, 0.4),
}  # fmt: skip


def write_runs(
    folder: Path,
    methods: tuple[str, ...] = METHODS,
    seeds: int = 7,
    utterances: int = 40,
    *,
    scenario: str = "accents",
    domains: tuple[str, ...] = DOMAINS,
    records: bool = True,
) -> Path:
    """Write `<folder>/<scenario>/<method>/<seed>/results.json` with everything beside it; returns the scenario's folder."""
    for method in methods:
        for seed in range(1, seeds + 1):
            _write_run(folder / scenario / method / str(seed), scenario, method, seed, utterances, domains, records)
    if records:
        rates = [(tau, 6 + 3 * tau, 30 / tau) for tau in (0.5, 1, 1.5, 2, 3)]
        rows = [{"tau": tau, "old": old, "new": new, "average": (old + new) / 2} for tau, old, new in rates]
        _dump(folder / scenario / "tuning" / "ihr.json", {"method": "ihr", "seeds": [1], "rows": rows})
    return folder / scenario


def _write_run(
    home: Path, scenario: str, method: str, seed: int, utterances: int, domains: tuple[str, ...], records: bool
) -> None:
    size = len(domains)
    counts, files, lengths = [], [], [0] * size
    for i in range(size):
        counts.append([])
        files.append([])
        for j, domain in enumerate(domains):
            items = _decode(method, seed, i, j, domain, utterances)
            name = f"stage{i + 1}/{domain}/utterances.jsonl"
            header = {"format": "asrcl-errors/1", "unit": "word", "items": len(items)}
            _write(home / name, "".join(json.dumps(row) + "\n" for row in [header, *map(asdict, items)]))
            counts[i].append((sum(item.errors for item in items), sum(item.character_errors for item in items)))
            files[i].append(name)
            lengths[j] = sum(item.length for item in items)
            characters = sum(item.character_length for item in items)
    result = {
        "format": "asrcl-results/1", "scenario": scenario, "method": method, "seed": seed, "unit": "word",
        "domains": list(domains),
        "errors": [[pair[0] for pair in row] for row in counts], "lengths": lengths,
        "character_errors": [[pair[1] for pair in row] for row in counts], "character_lengths": [characters] * size,
        "item_files": files, "command": f"asrcl decode --methods {method} --seeds {seed} scenario={scenario}",
        "config": {"train": {"epochs": 8, "rate": 3e-4 if method != "ewc" else 1e-4}, "method": {"name": method}, "seed": seed},
        "environment": {"python": "3.11", "torch": "2.11.0", "git": "abc1234" if seed < 3 else "abc1234+"},
        "stages": [_record(method, seed, domains, i) for i in range(size)] if records else [],
    }  # fmt: skip
    _dump(home / "results.json", result)
    _dump(home / "costs.json", [{"train_seconds": 10.0, "errors_seconds": 2.5, "peak_memory_bytes": 1000}] * size)


def _decode(method: str, seed: int, stage: int, domain: int, name: str, utterances: int) -> list[ItemErrors]:
    """Utterances of eight speakers; words are replaced, dropped and doubled at about the rate that R should show."""
    forgetting, left = HABITS.get(method, (1.0, 0.5))
    learned = FIRST[domain % 5] * left + forgetting * (stage - domain)
    rate = (learned if stage >= domain and stage else FIRST[domain % 5]) / 100
    texts = np.random.default_rng(domain)
    noise = np.random.default_rng([seed, stage, domain, len(method)])
    said, heard, speakers = {}, {}, {}
    for index in range(utterances):
        key, speaker = f"{name}-test-{index:05d}", f"{name.lower()}-{index % 8}"
        words = [WORDS[k] for k in texts.integers(0, len(WORDS), texts.integers(4, 11))]
        guess = []
        for word, draw in zip(words, noise.random(len(words)), strict=True):
            guess += [word] if draw > rate else [[WORDS[int(draw * 997) % 19]], [], [word, "uh"]][int(draw / rate * 3) % 3]
        said[key], heard[key], speakers[key] = " ".join(words), " ".join(guess), speaker
    return count_errors(said, heard, speakers).items


def _record(method: str, seed: int, domains: tuple[str, ...], stage: int) -> dict[str, Any]:
    model = {"model": f"{method}{seed}{domains[stage]}"}
    if method == "initial" or not stage:
        return model
    epochs = [{"train_loss": 60 * math.exp(-e / 4) + 5 + seed / 9, "dev_loss": 40 * math.exp(-e / 3) + 9} for e in range(8)]
    layers = [
        {"name": f"encoder.layers.{k // 4}.block{k % 4}.linear", "update_norm": 1 / (1 + k / 9),
         "merged_update_norm": 0.7 / (1 + k / 7), "predicted_increase": 0.02 / (60 - k),
         "merged_predicted_increase": 0.004 / (60 - k)}
        for k in range(60)
    ]  # fmt: skip
    blocks = [
        {"name": f"encoder.layers.{k}.linear", "kind": "kronecker", "weights": 4096, "share": 0.5**k, "mean": 1e-3 * 0.7**k,
         "largest": 0.7**k, "effective_rank": 30 + k, "spectrum": [0.7**k * 0.8**r for r in range(40)]}
        for k in range(30)
    ]  # fmt: skip
    card = {"blocks": blocks, "facts": {"structure": "diagonal" if method == "ewc" else "kron"}, "covered": 3, "weights": 4}
    record: dict[str, Any] = {**model, "training": epochs, "update_norm": 9.0, "merged_update_norm": 6.5}
    told = {"layers": layers, "curvature": card, "predicted_on": domains[stage - 1], "measured_increase": 0.5,
            "merged_measured_increase": 0.125}  # fmt: skip
    return {**record, **told} if method in ("ihr", "ewc") else record


def _dump(path: Path, value: Any) -> None:
    _write(path, json.dumps(value))


def _write(path: Path, text: str) -> None:
    """Without the flush to disk that real runs have: a thousand small files should not take a minute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
