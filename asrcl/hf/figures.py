"""What was measured before training, after it, and after the merge; shown as one short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asrcl.visible import cell

COSTS = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "jit_compilation_time")
"""What `Trainer.evaluate` gives beside metrics."""


class Figures(dict[str, dict[tuple[str, str], float]]):
    """Stage -> (domain, metric) -> number."""

    def __init__(self, stages: Sequence[str]) -> None:
        """No numbers yet.

        Args:
            stages: in the order of the columns.
        """
        super().__init__({stage: {} for stage in stages})

    def add(self, stage: str, found: Mapping[tuple[str, str], float]) -> None:
        """More numbers of a stage."""
        self[stage].update(found)

    def rows(self) -> list[tuple[str, str]]:
        """Domains and metrics, in the order in which they were first measured."""
        return list(dict.fromkeys(row for found in self.values() for row in found))

    def show(self, title: str) -> None:
        """Print the table; nothing where nothing was measured."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        if not self.rows():
            return
        table = Table(title=cell(title), box=box.SIMPLE_HEAD)
        for column in ("domain", "metric"):
            table.add_column(column, overflow="fold")
        for stage in self:
            table.add_column(cell(stage), justify="right")
        for row in self.rows():
            numbers = (found.get(row) for found in self.values())
            table.add_row(*map(cell, row), *(cell("–" if number is None else f"{number:.4g}") for number in numbers))
        Console().print(table)


def metrics_of(found: Mapping[str, float], prefix: str) -> dict[str, float]:
    """The metrics among what `Trainer.evaluate` gives, without the prefix of their names."""
    plain = {name.removeprefix(f"{prefix}_"): value for name, value in found.items() if name.startswith(f"{prefix}_")}
    return {name: value for name, value in plain.items() if name not in COSTS and not name.startswith("mem_")}
