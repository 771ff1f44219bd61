"""Update magnitude: how much of a model should move for a new task (docs/update_magnitude.md)."""

from asrcl.studies.update_magnitude.settings import UpdateMagnitude

__all__ = ["UpdateMagnitude"]
