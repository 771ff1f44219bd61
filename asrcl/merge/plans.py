"""What a merge will do, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class PlanRow(NamedTuple):
    """What will happen to one tensor.

    Attributes:
        name: key in the state dict.
        rule: what is done, short enough to count ("ihr", "average 1/2", "new").
        shape: shape of the tensor.
        why: the reason.
    """

    name: str
    rule: str
    shape: tuple[int, ...]
    why: str


class Plan(NamedTuple):
    """A whole merge, before it is computed.

    Attributes:
        method: the merge method.
        rows: one per tensor, in the order of the old model.
    """

    method: str
    rows: tuple[PlanRow, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of tensors by rule."""
        return dict(Counter(row.rule for row in self.rows))

    def table(self) -> str:
        """The plan as aligned text, with a line of totals."""
        cells = [("tensor", "shape", "rule", "why")]
        cells += [
            (row.name, "x".join(map(str, row.shape)) or "scalar", row.rule, row.why) for row in self.rows
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        lines = [
            "  ".join([*(c.ljust(w) for c, w in zip(line, widths, strict=False)), line[3]]) for line in cells
        ]
        totals = ", ".join(f"{count} x {rule}" for rule, count in self.counts().items())
        return "\n".join([*(line.rstrip() for line in lines), f"{self.method}: {totals}"])
