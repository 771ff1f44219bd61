"""Tables for the terminal: what a merge does to every tensor, and the results of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asrcl.merge.files import Preview
from asrcl.visible import cell, visible

if TYPE_CHECKING:
    from rich.table import Table

    from asrcl.merge.card import MergeRecord
    from asrcl.merge.containers import Checkpoint
    from asrcl.merge.registry import MergeMethod


def preview_table(previews: Sequence[Preview], limit: int | None = None) -> Table:
    """Tensor by tensor: rule, shape, norm of the step relative to the update, predicted increase of the old loss, reason.

    Args:
        previews: of all tensors.
        limit: how many to show, the largest predicted increase first; None for all, in the order of the model.
    """
    left, right = "left", "right"
    table = _table(
        ("tensor", left), ("shape", right), ("rule", left), ("moved", right), ("predicted", right), ("why", left)
    )
    ranked = sorted(previews, key=lambda p: -((p.effect and p.effect.predicted) or 0.0))
    chosen = previews if limit is None else ranked[:limit]
    for preview in chosen:
        row, effect = preview
        shape = "x".join(map(str, row.shape)) or "scalar"
        moved = effect.step / effect.update if effect is not None and effect.update else None
        values = (row.name, shape, row.rule, number(moved), number(effect.predicted if effect else None), row.why)
        table.add_row(*map(cell, values))
    return table


def preview_summary(previews: Sequence[Preview], scale: float = 1.0) -> str:
    """Counts by rule, the whole step, the predicted increase of the old loss."""
    counts = ", ".join(f"{count} x {rule}" for rule, count in Counter(p.row.rule for p in previews).items())
    effects = [preview.effect for preview in previews if preview.effect is not None]
    step, update = (sum(getattr(effect, which) ** 2 for effect in effects) ** 0.5 for which in ("step", "update"))
    known = [effect.predicted for effect in effects if effect.predicted is not None]
    parts = [counts]
    if update:
        parts.append(f"moves {step / update:.3g} of the update's length")
    if known:
        parts.append(f"old loss predicted to grow by {sum(known):.3g}")
    if scale != 1:
        parts.append(f"scaled by {scale:.3g} to keep the budget")
    return "; ".join(parts)


def rows_table(rows: Iterable[dict[str, Any]]) -> Table:
    """Flat dicts as a table, in the order of the first one's keys."""
    listed = list(rows)
    names = list(dict.fromkeys(name for row in listed for name in row))
    table = _table(*((name, "right") for name in names))
    for row in listed:
        table.add_row(*(cell(number(row.get(name))) for name in names))
    return table


def checkpoint_text(checkpoint: Checkpoint) -> str:
    """What a checkpoint is: container, wrapper, tensors by type, what is carried over."""
    origin, outlines = checkpoint.describe(), checkpoint.outlines
    types = Counter(str(outline.dtype).removeprefix("torch.") for outline in outlines.values())
    weights = sum(outline.numel for outline in outlines.values())
    size = sum(outline.nbytes for outline in outlines.values())
    kinds = ", ".join(f"{count} {kind}" for kind, count in types.items())
    facts = {
        "tensors": f"{len(outlines)} ({kinds}), {weights:,} numbers, {size / 1e6:,.1f} MB",
        "wrapper": origin.wrapper,
        "prefix": origin.prefix,
        "beside": ", ".join(origin.extras),
        "note": "; ".join(origin.notes),
    }
    lines = [f"{origin.path}: {origin.kind}", *(f"{name:<9} {value}" for name, value in facts.items() if value)]
    return "\n".join(map(visible, lines))


def record_summary(record: MergeRecord) -> str:
    """One line about a merge that was done, and one for each note on its card."""
    counts = ", ".join(f"{count} x {rule}" for rule, count in record.counts.items())
    parts = [counts]
    if record.totals.relative is not None:
        parts.append(f"moves {record.totals.relative:.3g} of the update's length")
    if record.totals.predicted is not None:
        parts.append(f"old loss predicted to grow by {record.totals.predicted:.3g}")
    if record.budget is not None:
        parts.append(f"scaled by {record.budget.scale:.3g} to keep the budget")
    if record.trade is not None:
        count = len(record.trade["tried"])
        parts.append(f"strength {record.trade['strength']:.3g} keeps every named domain ({count} evaluations)")
    return "\n".join(["; ".join(parts), *(f"note: {note}" for note in record.notes)])


def methods_table(methods: Mapping[str, MergeMethod]) -> Table:
    """Every merge method with its options and source."""
    table = _table(("method", "left"), ("models", "left"), ("needs", "left"), ("options", "left"), ("what it does", "left"))
    for name, method in sorted(methods.items()):
        needs = {"blocks": "curvature", "new_blocks": "new curvature"}
        wanted = ", ".join(text for key, text in needs.items() if key in method.context)
        options = " ".join(f"{knob}={value}" for knob, value in method.knobs.items())
        values = (name, "several" if method.several else "one", wanted, options, f"{method.summary} ({method.source})")
        table.add_row(*map(cell, values))
    return table


def number(value: Any) -> str:
    """A number for people; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(*columns: tuple[str, Any]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, side in columns:
        table.add_column(cell(name), justify=side, overflow="fold")
    return table
