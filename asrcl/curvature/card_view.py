"""The card of a curvature as text."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from asrcl.curvature.card import BlockCard, Card, Damped
from asrcl.visible import cell, visible

NARROWEST, WIDE = 90, 140
"""Columns: below the first lines are left to wrap, from the second on there is room for more columns."""
LISTED = 5
"""How many parameters without a block are listed per reason."""


def card_text(card: Card, *, blocks: int = 20, width: int | None = None) -> str:
    """The card as tables.

    Args:
        card: what to print.
        blocks: how many blocks at most, those with the largest share of the trace.
        width: in columns; that of the terminal if not given.
    """
    width = max(width or shutil.get_terminal_size((100, 24)).columns, NARROWEST)
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(_facts(card))
    console.print(_block_table(card, blocks, width))
    more = len(card.blocks) - blocks
    if more > 0:
        rest = sum(block.share for block in card.blocks[blocks:])
        console.print(f"and {more} more with {_percent(rest)} of the trace (--blocks {len(card.blocks)} shows all)")
    console.print("\n" + _legend(card))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")


def _facts(card: Card) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(card):
        table.add_row(name, cell(value))
    return table


def _lines(card: Card) -> Iterable[tuple[str, str]]:
    facts = card.facts
    yield "curvature", f"{facts.get('structure', 'structure unknown')}, {facts.get('fisher', 'unknown')} Fisher"
    counts = [f"{facts[name]:,} {name}" for name in ("items", "batches") if name in facts]
    if counts:
        yield "estimated from", " in ".join(counts) + _converged(facts)
    for name in ("loss", "losses", "options", "model_hash", "data_hash", "scale", "compression", "checks", "versions"):
        if name in facts:
            yield name.replace("_", " "), _plain(_new(facts[name], facts))
    ratio = "" if card.ratio is None else f", {card.ratio:.2f} x the model's {_bytes(card.model_bytes)} in float32"
    yield "size", _bytes(card.file_bytes) + ratio
    yield (
        "coverage",
        f"{card.covered:,} of {card.weights:,} weights ({_percent(card.covered / card.weights if card.weights else 0)})",
    )
    for kind, count in card.kinds.items():
        yield f"  {kind}", f"{_count(count.blocks, 'block')}, {count.weights:,} weights, {count.stored_numbers:,} numbers"
    yield from _uncovered(card)


def _uncovered(card: Card) -> Iterable[tuple[str, str]]:
    reasons: dict[str, list[str]] = {}
    for name, why in card.uncovered.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        yield "  none", f"{_count(len(names), 'parameter')}: {why} ({', '.join(names[:LISTED])}{more})"


def _converged(facts: dict[str, Any]) -> str:
    return ", converged" if facts.get("converged") else ""


def _new(value: Any, known: dict[str, Any]) -> Any:
    """Without the entries that repeat a line of their own."""
    return {name: entry for name, entry in value.items() if name not in known} if isinstance(value, dict) else value


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items() if entry is not None)
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _block_table(card: Card, count: int, width: int) -> Table:
    wide = width >= WIDE
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, title=" ")
    table.add_column("block", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    numbers = ["size", "share", "largest", *(["mean"] if wide else []), "cond.", "rank"]
    for name in [*numbers, *(["damping adds"] if wide else []), "over damping"]:
        table.add_column(name, justify="right", no_wrap=True)
    for block in card.blocks[:count]:
        table.add_row(cell(_folded(visible(block.name), 44 if wide else width - 70)), *map(cell, _row(block, wide)))
    return table


def _row(block: BlockCard, wide: bool) -> list[str]:
    mean = [_number(block.mean)] if wide else []
    condition = "-" if block.condition is None else _number(block.condition)
    numbers = [_percent(block.share), _number(block.largest), *mean, condition, _number(block.effective_rank)]
    adds = [" ".join(f"{part.of} {_number(part.added):>6}" for part in block.damping)] if wide else []
    above = " ".join(f"{part.of} {_above(part, wide)}" for part in block.damping)
    return [block.kind, block.size.replace(" x ", "x"), *numbers, *adds, above]


def _folded(name: str, room: int) -> str:
    """A long name over several lines, broken after dots."""
    lines = [""]
    for part in re.findall(r"[^.]*\.?", name):
        if len(lines[-1]) + len(part) > room and lines[-1]:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def _above(part: Damped, wide: bool) -> str:
    return f"{part.above}/{part.size}".rjust(9) if wide else f"{100 * part.above / part.size:3.0f}%"


def _legend(card: Card) -> str:
    sentences = (
        f"share: of the trace ({card.trace:.3g}).",
        "largest, mean: eigenvalue.",
        "cond.: largest / median eigenvalue above rounding.",
        "rank: effective, (Σλ)² / Σλ².",
        f"damping: {card.relative_damping:g} of the mean eigenvalue of each factor (G, A) or block (F);",
        "eigenvalues below it drown.",
    )
    return " ".join(sentences)


def _number(value: float) -> str:
    """Two or three digits, short: 0.13, 718, 8.9e2, 2.4e-7."""
    if value == 0 or 0.01 <= value < 1000:
        return f"{value:.3g}" if value >= 1 else f"{value:.2g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
