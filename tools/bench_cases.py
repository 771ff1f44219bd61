"""The cases of tools/bench_curvature.py: what is timed, and what products it cannot do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import bench_peers
import torch
from bench_models import Products, Work
from bench_peers import Run

import asrcl.curvature


def plain(work: Work) -> Run:
    """A training pass without its update."""

    def run(batches: int) -> list[torch.Tensor]:
        for _ in range(batches):
            work.model.zero_grad(set_to_none=True)
            work.loss(work.model, work.batch).backward()
        return []

    return run


def activations(work: Work) -> Run:
    """Forward, and backward along the activations: parameters are frozen."""
    passes, parameters = plain(work), dict(work.model.named_parameters())

    def run(batches: int) -> list[torch.Tensor]:
        try:
            for name, parameter in parameters.items():
                parameter.requires_grad_(name == work.first_bias)
            return passes(batches)
        finally:
            work.model.requires_grad_(True)

    return run


def ours(**options: Any) -> Callable[[Work], Run]:
    """`asrcl.curvature.estimate` with some options."""

    def prepare(work: Work) -> Run:
        def run(batches: int) -> list[torch.Tensor]:
            return _tensors(estimate(work, batches, **options))

        return run

    return prepare


def correction(work: Work) -> Run:
    """The second pass of EK-FAC, over a Kronecker curvature that is there already."""
    first = estimate(work, 1, layers="linear")

    def run(batches: int) -> list[torch.Tensor]:
        return _tensors(asrcl.curvature.correct(first, work.model, work.loss, [work.batch] * batches))

    return run


def estimate(work: Work, batches: int, **options: Any) -> asrcl.curvature.Curvature:
    """Our curvature over equal batches."""
    return asrcl.curvature.estimate(work.model, work.loss, [work.batch] * batches, padding=work.padding, **options)


def _tensors(curvature: asrcl.curvature.Curvature) -> list[torch.Tensor]:
    return [tensor for block in curvature.blocks.values() for tensor in block.tensors().values()]


def factor_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the memory behind some tensors, memory that several share counted once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _symmetric(products: Products) -> float:
    return products.factor_flops / products.pass_flops


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        title: its row in the table.
        prepare: gets ready outside the clock and returns what is timed, which yields the factors.
        products: products beyond the pass along the activations, relative to those of a plain pass; None for no floor.
    """

    title: str
    prepare: Callable[[Work], Run]
    products: Callable[[Products], float] | None = _symmetric


CASES = {
    "activations": Case("activation gradients only", activations, lambda _: 0.0),
    "kron": Case("kron linear maps", ours(layers="linear")),
    "kron-all": Case("kron everything", ours(layers="all")),
    "mc": Case("kron linear maps, one sample per item", ours(layers="linear", fisher="mc")),
    "stride4": Case("kron linear maps, every 4th frame", ours(layers="linear", stride=4), lambda p: _symmetric(p) / 4),
    "reduce": Case("kron linear maps, reduce", ours(layers="linear", weight_sharing="reduce"), lambda _: 0.0),
    "ekfac": Case("EK-FAC second pass", correction, lambda p: p.correction_flops / p.pass_flops),
    "diagonal": Case("diagonal, item by item", ours(structure="diagonal"), None),
    "curvlinops": Case(f"curvlinops {bench_peers.CURVLINOPS}", bench_peers.curvlinops),
    "kronfluence": Case(f"kronfluence {bench_peers.KRONFLUENCE}", bench_peers.kronfluence),
    "ihr": Case("IHR reference, re-created", bench_peers.ihr_reference),
}
