"""The curvature of a loss: blocks, what is known about them, and what can be done with them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asrcl.curvature import storage
from asrcl.curvature.blocks import Block, BlockKey, add_blocks, move_blocks
from asrcl.curvature.kron import DampingKind
from asrcl.curvature.parameters import hash_parameters
from asrcl.exceptions import InputError

_WRITTEN_BY_ESTIMATE = ("fisher", "structure", "items", "batches", "model_hash", "versions")
_TABLES = ("parameters", "uncovered", "aliases", "unmasked")
RESERVED_METADATA = frozenset((*_WRITTEN_BY_ESTIMATE, *_TABLES, "sources", "scale"))


class ReportRow(NamedTuple):
    """One line of a report: a block, or a parameter without one.

    Attributes:
        name: the parameter, with its rows if the block covers a part.
        shape: shape of the whole parameter, empty when it is unknown.
        kind: "kronecker", "diagonal" or "none".
        stored: numbers stored for it.
        note: positions and items behind a block, or why there is none.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    stored: int
    note: str


@dataclass(frozen=True)
class Curvature:
    """A positive semi-definite quadratic model F of a loss around one set of weights.

    Attributes:
        blocks: `BlockKey(name, row_start, row_stop)` -> Kronecker or diagonal block.
        metadata: JSON values; the keys are listed in docs/curvature_format.md.
    """

    blocks: Mapping[BlockKey, Block]
    metadata: dict[str, Any] = field(default_factory=dict)

    def canonical_name(self, name: str) -> str:
        """The name under which a (tied) parameter is kept here."""
        return self.metadata.get("aliases", {}).get(name, name)

    def blocks_of(self, name: str) -> dict[BlockKey, Block]:
        """The blocks of one parameter by any of its names, in the order of their rows."""
        name = self.canonical_name(name)
        return {key: self.blocks[key] for key in sorted(self.blocks) if key.name == name}

    def names(self) -> list[str]:
        """The parameters that have a block, each once."""
        return list(dict.fromkeys(key.name for key in self.blocks))

    def quadratic(self, delta: Mapping[str, Tensor]) -> Tensor:
        """`½ deltaᵀ F delta`: the predicted increase of the mean item loss; a differentiable scalar.

        Args:
            delta: change of the weights by parameter name. Parameters without a block, second names of tied
                parameters and parameters that are not given contribute nothing.

        Raises:
            InputError: a change has another shape than its block.
        """
        parts = [block.quadratic(rows) for _, block, rows in self._pairs(delta)]
        if parts:
            return torch.stack(parts).sum()
        return torch.zeros(()) if not delta else next(iter(delta.values())).new_zeros(())

    def solve(
        self, delta: Mapping[str, Tensor], damping: float, damping_kind: DampingKind = "relative"
    ) -> dict[str, Tensor]:
        """The damped inverse times `delta`, block by block in float64, returned in the type of `delta`.

        Kronecker factors are damped each by itself. Only parameters with a block are returned; their
        uncovered rows are zero.

        Raises:
            InputError: a change has another shape than its block, or a damped block is singular.
        """
        result: dict[str, Tensor] = {}
        for key, block, rows in self._pairs(delta):
            whole = result.setdefault(key.name, torch.zeros_like(delta[key.name]))
            try:
                key.rows_of(whole).copy_(block.solve(rows.detach(), damping, damping_kind))
            except InputError as error:
                raise InputError(f"{key}: {error}") from error
        return result

    def _pairs(self, delta: Mapping[str, Tensor]) -> list[tuple[BlockKey, Block, Tensor]]:
        pairs = []
        for key, block in self.blocks.items():
            if key.name in delta:
                rows = key.rows_of(delta[key.name])
                if not block.fits(rows):
                    shape = list(delta[key.name].shape)
                    raise InputError(f"{key}: a tensor of shape {shape} does not fit its curvature block")
                pairs.append((key, block, rows))
        return pairs

    def diagonals(self) -> dict[str, Tensor]:
        """The diagonal of F by parameter, in the parameter's shape; rows without a block are zero."""
        result: dict[str, Tensor] = {}
        for key, block in self.blocks.items():
            diagonal = block.diagonal
            shape = self.metadata.get("parameters", {}).get(key.name)
            if shape is None:
                last = max(other.row_stop for other in self.blocks if other.name == key.name)
                shape = (last, *diagonal.shape[1:])
            whole = result.setdefault(key.name, diagonal.new_zeros(shape))
            rows = key.rows_of(whole)
            rows.copy_(diagonal.reshape(rows.shape))
        return result

    def scale(self, factor: float) -> Curvature:
        """The curvature times `factor` (>= 0).

        Raises:
            InputError: the factor is negative or not finite.
        """
        if not 0 <= factor < float("inf"):
            raise InputError(f"a curvature can be scaled by a finite number >= 0, not {factor}")
        blocks = {key: block.scale(factor) for key, block in self.blocks.items()}
        return Curvature(blocks, self.metadata | {"scale": self.metadata.get("scale", 1.0) * factor})

    def __add__(self, other: Curvature) -> Curvature:
        """Pool two curvatures: raw sums and counts add up.

        For two parts of one data set at the same weights this is exact, as if estimated together. For two
        domains it is the running-average approximation: one pair of factors, each averaged over all items,
        instead of a sum of Kronecker products (pass a sequence of curvatures to a merge to keep them apart).

        Raises:
            InputError: the two cover a parameter in different ways.
        """
        return Curvature(add_blocks(self.blocks, other.blocks), _join_metadata(self.metadata, other.metadata))

    def fill(self, other: Curvature) -> Curvature:
        """Add the blocks of `other` for parameters without one here (say a diagonal for biases and norms)."""
        mine = set(self.names())
        extra = {
            key: block for key, block in other.blocks.items() if self.canonical_name(key.name) not in mine
        }
        covered = {key.name for key in extra}
        gaps = {n: why for n, why in self.metadata.get("uncovered", {}).items() if n not in covered}
        sources = _join_metadata(self.metadata, other.metadata)["sources"]
        metadata = self.metadata | {"uncovered": gaps, "sources": sources}
        return Curvature({**self.blocks, **extra}, metadata)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Curvature:
        """The same curvature on another device or in another floating type."""
        return Curvature(move_blocks(self.blocks, device, dtype), self.metadata)

    def check(self, model_or_state: nn.Module | Mapping[str, Tensor]) -> None:
        """Make sure that every block fits a model.

        Raises:
            InputError: lists the tensors that are missing or have another shape.
        """
        state = _tensors_of(model_or_state)
        faults = []
        for key, block in self.blocks.items():
            tensor = self._find(state, key.name)
            if tensor is None:
                faults.append(f"{key.name} is missing")
            elif not block.fits(key.rows_of(tensor)) or (tensor.dim() and key.row_stop > tensor.shape[0]):
                faults.append(f"{key} does not fit shape {list(tensor.shape)}")
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            listed = "; ".join(faults[:5]) + more
            raise InputError(f"the curvature belongs to another model: {listed}; estimate it for this one")

    def _find(self, state: Mapping[str, Tensor], name: str) -> Tensor | None:
        others = (alias for alias, target in self.metadata.get("aliases", {}).items() if target == name)
        return next((state[n] for n in (name, *others) if n in state), None)

    def taken_at(self, model_or_state: nn.Module | Mapping[str, Tensor]) -> bool:
        """Whether the parameters are, to the bit, those at which the curvature was estimated."""
        state = _tensors_of(model_or_state)
        found = {name: self._find(state, name) for name in self.metadata.get("parameters", {})}
        tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
        return len(tensors) == len(found) and hash_parameters(tensors) == self.metadata.get("model_hash")

    def report(self) -> list[ReportRow]:
        """Every block, and every parameter of the model without one and why."""
        shapes = {name: tuple(shape) for name, shape in self.metadata.get("parameters", {}).items()}
        rows = []
        for key, block in self.blocks.items():
            shape = shapes.get(key.name, ())
            whole = not shape or (key.row_start, key.row_stop) == (0, shape[0])
            positions = getattr(block, "positions", None)
            note = (
                f"{block.items:g} items"
                if positions is None
                else f"{positions:g} positions, {block.items:g} items"
            )
            rows.append(ReportRow(key.name if whole else str(key), shape, block.kind, block.stored, note))
        for name, why in self.metadata.get("uncovered", {}).items():
            rows.append(ReportRow(name, shapes.get(name, ()), "none", 0, why))
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `curvature.safetensors` atomically; the format is docs/curvature_format.md.

        Raises:
            InputError: the folder cannot be written, or the metadata is not JSON.
        """
        storage.write(path, self.blocks, self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Curvature:
        """Read a curvature file.

        Raises:
            InputError: the file is missing, damaged, or of another format.
        """
        return cls(*storage.read(path, device))


def _tensors_of(model_or_state: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state


def _join_metadata(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """What both agree on, counts added, and both records in full under `sources`."""
    joined = {key: value for key, value in first.items() if key in second and second[key] == value}
    for count in ("items", "batches"):
        joined[count] = first.get(count, 0) + second.get(count, 0)
    for table in ("parameters", "aliases"):
        joined[table] = {**first.get(table, {}), **second.get(table, {})}
    other_gaps = second.get("uncovered", {})
    joined["uncovered"] = {
        name: why for name, why in first.get("uncovered", {}).items() if name in other_gaps
    }
    joined["sources"] = [_brief(part) for whole in (first, second) for part in whole.get("sources", [whole])]
    return joined


def _brief(metadata: dict[str, Any]) -> dict[str, Any]:
    dropped = (*_TABLES, "sources")
    return {key: value for key, value in metadata.items() if key not in dropped}
