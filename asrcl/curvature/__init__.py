"""The curvature of a loss: estimate it, store it in a file, and compute with it after the data are gone.

    from asrcl.curvature import estimate
    curvature = estimate(model, loss_fn, batches)
    curvature.save("curvature.safetensors")

Needs torch and safetensors only.
"""

from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, DiagonalBlock, EigenBlock, KroneckerBlock
from asrcl.curvature.card import Card, card
from asrcl.curvature.curvature import Curvature, ReportRow
from asrcl.curvature.estimate import correct, estimate
from asrcl.curvature.estimation.options import EstimateOptions
from asrcl.curvature.factors import DenseFactor, DiagonalFactor, Factor, LowRankFactor
from asrcl.curvature.fidelity import CompressionError, compression_error, compression_table, stored_bytes
from asrcl.curvature.kron import DampingKind, solve_sum
from asrcl.curvature.parameters import hash_parameters

__all__ = [  # noqa: RUF022 (grouped for the reader)
    # Estimating
    "estimate",
    "EstimateOptions",
    "correct",
    # The result and its parts
    "Curvature",
    "ReportRow",
    "BlockKey",
    "Block",
    "KroneckerBlock",
    "EigenBlock",
    "DenseBlock",
    "DiagonalBlock",
    "Factor",
    "DenseFactor",
    "DiagonalFactor",
    "LowRankFactor",
    # Files and cards
    "stored_bytes",
    "compression_error",
    "compression_table",
    "CompressionError",
    "card",
    "Card",
    # Maths
    "solve_sum",
    "DampingKind",
    # Identity of a model
    "hash_parameters",
]
