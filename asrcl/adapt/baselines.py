"""The card of a model's baselines: its error rates on dev and test sets, with the items behind them, from which budgets count.

    card = BaselineCard("general.safetensors", weights.hash, "mine", {"probe": {"dev": errors}})
    card.save("card.json")                  # card.json, card.md for reading, and card.items/<domain>.<split>.jsonl
    BaselineCard.load("card.json").dev

The items are kept so that a rise above a baseline has an interval: both are resampled together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from asrcl.entries import DamagedEntry, seal, unseal
from asrcl.exceptions import InputError
from asrcl.files import reading, write_text
from asrcl.scoring import Errors

FORMAT: Final = "asrcl baselines 1"
SPLITS: Final = ("dev", "test")


@dataclass(frozen=True)
class BaselineCard:
    """What a model can do before it is adapted.

    Attributes:
        model: what it is called.
        hash: of its weights.
        scenario: whose domains these are.
        errors: per domain or probe, and split ("dev", "test"), its errors item by item.
    """

    model: str
    hash: str
    scenario: str
    errors: Mapping[str, Mapping[str, Errors]]

    @property
    def dev(self) -> dict[str, Errors]:
        """Errors on the dev sets that there are."""
        return {name: splits["dev"] for name, splits in self.errors.items() if "dev" in splits}

    def rows(self) -> list[dict[str, Any]]:
        """One row per domain and split: error rate in percent with its 95 % interval, counts, and groups (speakers) resampled."""
        from asrcl.scoring.significance.bootstrap import bootstrap_ci  # here: reading a card needs no scipy

        rows = []
        for name, splits in self.errors.items():
            for split, errors in splits.items():
                interval = bootstrap_ci(errors)
                rates = {"rate": errors.rate, "low": interval.low, "high": interval.high}
                known = {key: value if math.isfinite(value) else None for key, value in rates.items()}
                counts = {"errors": errors.total, "length": errors.length, "unit": errors.unit, "items": len(errors)}
                rows.append({"domain": name, "split": split, **known, **counts, "groups": interval.blocks})
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the card, a table beside it to read (`.md`), and the items; hashes tell a changed file later.

        Raises:
            InputError: the place cannot be written.
        """
        place, files, rows = Path(path), [], self.rows()
        for name, splits in self.errors.items():
            for split, errors in splits.items():
                files.append(f"{place.stem}.items/{name}.{split}.jsonl")
                errors.save(place.parent / files[-1])
        write_text(place.with_suffix(".md"), self.text(rows))
        facts = {"format": FORMAT, "model": self.model, "hash": self.hash, "scenario": self.scenario, "rows": rows}
        seal(place.parent, place.name, facts, files)

    def text(self, rows: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The card for reading, in Markdown."""
        from asrcl.scoring.display.table import markdown, plain

        listed = self.rows() if rows is None else rows
        table = plain(list(listed[0]), [[_written(value) for value in row.values()] for row in listed])
        origin = f"Weights {self.hash}, scenario {self.scenario}. Error rates in % with 95 % intervals."
        return f"# Baselines of {self.model}\n\n{origin}\n\n{markdown(table)}"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, changed or another kind of file.
        """
        place = Path(path)
        with reading(place, "run asrcl check again"):
            try:
                facts = unseal(place.parent, place.name)
            except DamagedEntry as error:
                raise InputError(f"{error}; run asrcl check again") from error
            if facts.get("format") != FORMAT:
                raise InputError(f"{place}: is no card of baselines; name a file that asrcl check wrote")
            errors: dict[str, dict[str, Errors]] = {}
            for row in facts["rows"]:
                name, split = row["domain"], row["split"]
                errors.setdefault(name, {})[split] = Errors.load(place.parent / f"{place.stem}.items" / f"{name}.{split}.jsonl")
            return cls(facts["model"], facts["hash"], facts["scenario"], errors)


def _written(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
