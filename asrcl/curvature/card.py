"""The card of a curvature: what a user should know before using it. `card_view` prints what is collected here.

Eigenvalues are computed block by block, so that memory stays small. Definitions, λ the N eigenvalues of a block:

    share             its trace over the trace of all blocks
    condition         largest λ / median of the λ above rounding (N · ε · largest; in a Kronecker block each factor's own N): the
                      smallest is noise
    effective rank    (Σ λ)² / Σ λ², between 1 and N
    damping           what relative damping adds: the damping times the mean eigenvalue, of each Kronecker factor (G, then A) or
                      of the block; `above` counts the eigen-directions of that factor or block that exceed it, the others drown
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.blocks import Block, BlockKey, KroneckerBlock
from asrcl.curvature.curvature import Curvature, ReportRow
from asrcl.curvature.factors import DiagonalFactor, Factor
from asrcl.curvature.fidelity import stored_bytes
from asrcl.curvature.storage.lazy import outlines_of
from asrcl.exceptions import InputError

DAMPING = 1e-3
FACTS = (
    "fisher", "structure", "items", "batches", "loss", "losses", "options", "converged", "model_hash", "data_hash", "scale",
    "compression", "checks", "versions",
)  # fmt: skip


@dataclass(frozen=True)
class Damped:
    """One spectrum under relative damping.

    Attributes:
        of: "G", "A", or "F" for a block that has no factors.
        size: eigenvalues.
        added: to every one of them.
        above: how many are larger than that.
    """

    of: str
    size: int
    added: float
    above: int


@dataclass(frozen=True)
class BlockCard:
    """One block; the terms are defined at the head of this file.

    Attributes:
        name: the parameter, with its rows where the block covers a part.
        kind: of block.
        size: the sizes behind the kind, such as "256 x 1024".
        weights: weights covered, N.
        share: of the whole trace, 0 to 1.
        trace: sum of the eigenvalues.
        largest: eigenvalue.
        mean: eigenvalue.
        condition: None for a block of zeros.
        effective_rank: 0 for a block of zeros.
        damping: by factor.
        spectrum: eigenvalues at equal steps of rank, largest first; empty if not asked for.
    """

    name: str
    kind: str
    size: str
    weights: int
    share: float
    trace: float
    largest: float
    mean: float
    condition: float | None
    effective_rank: float
    damping: list[Damped]
    spectrum: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class KindCount:
    """What the blocks of one kind hold."""

    blocks: int
    weights: int
    stored_numbers: int


@dataclass(frozen=True)
class Card:
    """A whole curvature.

    Attributes:
        facts: what the metadata says of its origin, as far as it does (see docs/curvature_format.md).
        file_bytes: size of the file or files.
        model_bytes: of the model's parameters in single precision, 0 where unknown.
        weights: of the model; those covered where the model is unknown.
        covered: weights with a block.
        kinds: by kind of block.
        uncovered: name -> why it has no block.
        relative_damping: behind the `damping` of the blocks.
        trace: of all blocks.
        blocks: by falling share of the trace.
    """

    facts: dict[str, Any]
    file_bytes: int
    model_bytes: int
    weights: int
    covered: int
    kinds: dict[str, KindCount]
    uncovered: dict[str, str]
    relative_damping: float
    trace: float
    blocks: list[BlockCard]

    @property
    def ratio(self) -> float | None:
        """The size of the file divided by the size of the model."""
        return self.file_bytes / self.model_bytes if self.model_bytes else None

    def as_json(self) -> dict[str, Any]:
        """JSON values under the names of the attributes, and `ratio`."""
        return asdict(self) | {"ratio": self.ratio}


def card(
    curvature: Curvature, *, file_bytes: int | None = None, damping: float = DAMPING, spectrum_points: int = 0
) -> Card:
    """Collect a card; reads every block once.

    Args:
        curvature: what to describe.
        file_bytes: its size on disk; otherwise the size it would have as one file.
        damping: relative, for the effect of damping.
        spectrum_points: how many eigenvalues of each block to keep at most, four digits of each.

    Raises:
        InputError: the damping is negative, or a block is damaged.
    """
    metadata, outlines = curvature.metadata, outlines_of(curvature.blocks)
    rows = [row for row in curvature.report() if row.kind != "none"]
    spectra = _Spectra()
    blocks = [
        _block(row, *spectra.of(outlines[key], curvature.blocks[key]), damping, spectrum_points)
        for row, key in zip(rows, outlines, strict=True)
    ]
    trace = sum(block["trace"] for block in blocks)
    cards = [BlockCard(**block, share=block["trace"] / trace if trace else 0.0) for block in blocks]
    covered = sum(block.weights for block in outlines.values())
    return Card(
        facts={name: metadata[name] for name in FACTS if metadata.get(name) not in (None, [], {})},
        file_bytes=stored_bytes(curvature) if file_bytes is None else file_bytes,
        model_bytes=curvature.model_bytes,
        weights=curvature.model_bytes // 4 or covered,
        covered=covered,
        kinds=_kinds(outlines),
        uncovered=dict(metadata.get("uncovered", {})),
        relative_damping=damping,
        trace=trace,
        blocks=sorted(cards, key=lambda block: -block.share),
    )


def _kinds(outlines: Mapping[BlockKey, Block]) -> dict[str, KindCount]:
    counts = Counter(block.kind for block in outlines.values())
    return {
        kind: KindCount(
            count,
            sum(block.weights for block in outlines.values() if block.kind == kind),
            sum(block.stored for block in outlines.values() if block.kind == kind),
        )
        for kind, count in counts.most_common()
    }


def _block(
    row: ReportRow, kind_spectra: dict[str, Tensor], eigenvalues: Tensor, damping: float, points: int
) -> dict[str, Any]:
    """The fields of a `BlockCard` but its share, from the spectra of its factors (or "F") and all its eigenvalues."""
    trace, squares = float(eigenvalues.sum()), float(eigenvalues.square().sum())
    return {
        "name": row.name,
        "kind": row.kind,
        "size": row.size,
        "weights": len(eigenvalues),
        "trace": trace,
        "largest": float(eigenvalues.max()),
        "mean": float(eigenvalues.mean()),
        "condition": _condition(kind_spectra),
        "effective_rank": trace * trace / squares if squares else 0.0,
        "damping": [_damped(of, values, damping) for of, values in kind_spectra.items()],
        "spectrum": _sampled(eigenvalues, points) if points else [],
    }


def _sampled(eigenvalues: Tensor, points: int) -> list[float]:
    """At most so many of the eigenvalues, at equal steps of rank from the largest to the smallest."""
    ranks = torch.linspace(0, len(eigenvalues) - 1, min(points, len(eigenvalues)), dtype=torch.float64).round().long()
    return [float(f"{value:.4g}") for value in eigenvalues.sort(descending=True).values[ranks].tolist()]


def _damped(of: str, values: Tensor, damping: float) -> Damped:
    added = kron.damping_term(float(values.mean()), damping, "relative")
    return Damped(of, len(values), added, int((values > added).sum()))


def _condition(spectra: Mapping[str, Tensor]) -> float | None:
    """Largest over median of the products of eigenvalues above rounding."""
    products = torch.ones(1, dtype=torch.float64)
    for values in spectra.values():
        if not values.any():
            return None
        values = values / values.max()
        products = torch.outer(products, values[values > len(values) * torch.finfo(torch.float32).eps]).flatten()
    return 1 / float(products.median())


class _Spectra:
    """Spectra of blocks; those of factors that several blocks share are computed once."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}

    def of(self, outline: Block, block: Block) -> tuple[dict[str, Tensor], Tensor]:
        """The spectra of G and A, or of F; and all eigenvalues."""
        if isinstance(block, KroneckerBlock) and isinstance(outline, KroneckerBlock):
            G = self._factor(outline.output, block.output) / block.items
            A = self._factor(outline.input, block.input) / block.positions
            return {"G": G, "A": A}, torch.outer(G, A).flatten()
        values = block.eigenvalues().clamp_min(0)
        return {"F": values}, values

    def _factor(self, outline: Factor, factor: Factor) -> Tensor:
        identity = id(next(iter(outline.tensors().values())))
        if identity not in self._known:
            self._known[identity] = _eigenvalues(factor) / (factor.unit or 1.0)
        return self._known[identity] * factor.unit


def _eigenvalues(factor: Factor) -> Tensor:
    if isinstance(factor, DiagonalFactor):
        return factor.diagonal().double().cpu()
    try:
        return torch.linalg.eigvalsh(kron.symmetrise(factor.dense().double())).clamp_min(0).cpu()
    except torch.linalg.LinAlgError as error:
        raise InputError("a curvature factor has no eigenvalues that can be found; estimate it again") from error
