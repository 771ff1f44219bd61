"""What a loss is sensitive to: estimate it, keep it in a file, ask it.

    from asrcl.curvature import estimate
    curvature = estimate(model, loss_fn, batches, padding=masks)
    curvature.save("curvature.safetensors")

Needs torch and safetensors only.
"""

from asrcl.curvature.blocks import Block, BlockKey, DiagonalBlock, KroneckerBlock
from asrcl.curvature.curvature import Curvature, ReportRow
from asrcl.curvature.estimate import estimate
from asrcl.curvature.kron import DampingKind, solve_sum
from asrcl.curvature.parameters import hash_parameters

__all__ = [  # noqa: RUF022 (grouped for the reader)
    # Estimating
    "estimate",
    # The result and its parts
    "Curvature",
    "BlockKey",
    "Block",
    "KroneckerBlock",
    "DiagonalBlock",
    "ReportRow",
    # Maths
    "solve_sum",
    "DampingKind",
    # Identity of a model
    "hash_parameters",
]
