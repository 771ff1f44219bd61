"""Update magnitude: how much of a model should move for a new task (He, Bai and Yang, arXiv 2602.20796); docs/update_magnitude.md."""

from asrcl.studies.update_magnitude.settings import UpdateMagnitude

__all__ = ["UpdateMagnitude"]
