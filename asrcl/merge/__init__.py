"""Merge a fine-tuned model with the one it started from.

    from asrcl.merge import merge
    merged = merge(old, new, method="ihr", curvature=curvature)

Needs torch, safetensors and filelock only; nothing that it imports is for POSIX systems alone.
"""

from asrcl.merge import steps  # noqa: F401 (registers the methods)
from asrcl.merge.api import merge, plan
from asrcl.merge.containers import load_state
from asrcl.merge.files import Preview, merge_files, preview_files
from asrcl.merge.layerwise import regmean_plus_plus
from asrcl.merge.plans import Plan, PlanRow
from asrcl.merge.registry import MergeMethod, merge_method, methods
from asrcl.merge.spec import MergeSpec
from asrcl.state import StateDict

__all__ = [  # noqa: RUF022 (grouped for the reader)
    # Merging
    "MergeSpec",
    "merge",
    "plan",
    "Plan",
    "PlanRow",
    "regmean_plus_plus",
    # Merging files
    "merge_files",
    "preview_files",
    "Preview",
    # Reading checkpoints
    "load_state",
    "StateDict",
    # Methods, and adding one
    "methods",
    "merge_method",
    "MergeMethod",
]
