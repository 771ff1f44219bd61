"""The curvature of a loss: blocks, what is known about them, and what can be done with them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asrcl.curvature import storage
from asrcl.curvature.blocks import Block, BlockKey, DenseBlock, KroneckerBlock
from asrcl.curvature.combine import add_blocks, map_blocks
from asrcl.curvature.compress import Choice, Tail, compress_blocks
from asrcl.curvature.kron import DampingKind
from asrcl.curvature.parameters import hash_parameters
from asrcl.curvature.solver.bases import decompose_blocks
from asrcl.curvature.storage.lazy import LazyBlocks, outlines_of
from asrcl.curvature.wrappers import ByName, matched
from asrcl.exceptions import InputError

_WRITTEN_BY_ESTIMATE = (
    "fisher", "structure", "items", "batches", "model_hash", "versions", "options", "losses", "converged", "checks"
)  # fmt: skip
_TABLES = ("parameters", "uncovered", "aliases", "unmasked", "notes")
RESERVED_METADATA = frozenset((*_WRITTEN_BY_ESTIMATE, *_TABLES, "sources", "scale", "compression"))


class ReportRow(NamedTuple):
    """One line of a report: a block, or a parameter without one.

    Attributes:
        name: the parameter, with its rows if the block covers a part.
        shape: shape of the whole parameter, empty when it is unknown.
        kind: "kronecker", "eigen", "dense", "diagonal" or "none".
        size: the sizes behind the kind, such as "256 x 1024" (of the output and the input factor).
        stored: numbers stored for it.
        note: positions and items behind a block and why it is of this kind, or why there is none.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    size: str
    stored: int
    note: str


@dataclass(frozen=True)
class Curvature:
    """A positive semi-definite quadratic model F of a loss around one set of weights.

    Attributes:
        blocks: `BlockKey(name, row_start, row_stop)` -> block; of a loaded curvature a mapping that reads a block when it is
            asked for and does not keep it.
        metadata: JSON values; the keys are listed in docs/curvature_format.md.
    """

    blocks: Mapping[BlockKey, Block]
    metadata: dict[str, Any] = field(default_factory=dict)

    def canonical_name(self, name: str) -> str:
        """The name under which a parameter is kept here, given by a tied name, or with or without what wrappers put in.

        Raises:
            InputError: the name is not known as it is, and without wrappers it may be two.
        """
        known = self._known_names
        return known[name] if name in known else known.get(matched([name], known).get(name, name), name)

    @cached_property
    def _known_names(self) -> dict[str, str]:
        """Every name of a parameter -> the one it is kept under."""
        own = {**dict.fromkeys(self.metadata.get("parameters", {})), **dict.fromkeys(key.name for key in self.blocks)}
        return {name: name for name in own} | self.metadata.get("aliases", {})

    def blocks_of(self, name: str) -> dict[BlockKey, Block]:
        """The blocks of one parameter by any of its names, in the order of their rows."""
        name = self.canonical_name(name)
        return {key: self.blocks[key] for key in sorted(self.blocks) if key.name == name}

    def names(self) -> list[str]:
        """The parameters that have a block, each once."""
        return list(dict.fromkeys(key.name for key in self.blocks))

    @property
    def model_bytes(self) -> int:
        """Bytes of the model's parameters in single precision; 0 where their shapes are not known."""
        return 4 * sum(math.prod(shape) for shape in self.metadata.get("parameters", {}).values())

    def quadratic(self, delta: Mapping[str, Tensor]) -> Tensor:
        """`½ deltaᵀ F delta`: the predicted increase of the mean item loss; a differentiable scalar.

        Args:
            delta: change of the weights by parameter name. Parameters without a block, second names of tied
                parameters and parameters that are not given contribute nothing.

        Raises:
            InputError: a change has another shape than its block.
        """
        parts = [block.quadratic(rows) for _, block, rows in self.pairs(delta)]
        if parts:
            return torch.stack(parts).sum()
        return torch.zeros(()) if not delta else next(iter(delta.values())).new_zeros(())

    def multiply(self, delta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`F delta` of the parameters that have a block, in the shape and type of `delta`; their uncovered rows are zero.

        Raises:
            InputError: a change has another shape than its block.
        """
        result: dict[str, Tensor] = {}
        for given, key, block, rows in self._pairs(delta):
            whole = result.setdefault(given, torch.zeros_like(delta[given]))
            key.rows_of(whole).copy_(block.multiply(rows.detach()))
        return result

    def solve(
        self, delta: Mapping[str, Tensor], damping: float, damping_kind: DampingKind = "relative", *, power: float = 1.0
    ) -> dict[str, Tensor]:
        """The damped inverse (to a power) times `delta`, block by block in float64, returned in the type of `delta`.

        Only parameters with a block are returned; their uncovered rows are zero.

        Args:
            delta: change of the weights by parameter name.
            damping: how much is added to the eigenvalues.
            damping_kind: "relative" (to the mean eigenvalue; of each Kronecker factor by itself), "absolute" (as it is, on each
                factor by itself), "pi" (absolute, split between the factors as Martens & Grosse 2015), "product" (relative to the
                mean eigenvalue of the whole block, added to the products of eigenvalues) or "product_absolute".
            power: of the inverse: 1 solves, 0.5 multiplies with the inverse square root, 0 leaves `delta` as it is.

        Raises:
            InputError: a change has another shape than its block, a damped block is singular, or an option is out of range.
        """
        if not 0 <= power < float("inf"):
            raise InputError(f"power must be a finite number >= 0, not {power}")
        result: dict[str, Tensor] = {}
        for given, key, block, rows in self._pairs(delta):
            whole = result.setdefault(given, torch.zeros_like(delta[given]))
            try:
                key.rows_of(whole).copy_(block.solve(rows.detach(), damping, damping_kind, power))
            except InputError as error:
                raise InputError(f"{key}: {error}") from error
        return result

    def trace(self) -> float:
        """Sum of the eigenvalues of all blocks."""
        return sum(block.trace() for block in self.blocks.values())

    def eigenvalues(self, name: str) -> Tensor:
        """Eigenvalues of the blocks of one parameter (by any of its names), float64, descending.

        Raises:
            InputError: the parameter has no block.
        """
        blocks = self.blocks_of(name)
        if not blocks:
            why = self.metadata.get("uncovered", {}).get(self.canonical_name(name), "no such parameter")
            raise InputError(f"{name} has no curvature block: {why}")
        return torch.cat([block.eigenvalues() for block in blocks.values()]).sort(descending=True).values

    def pairs(self, delta: Mapping[str, Tensor]) -> Iterator[tuple[BlockKey, Block, Tensor]]:
        """Blocks with the rows of `delta` they cover, one in memory at a time.

        Raises:
            InputError: a change has another shape than its block.
        """
        for _, key, block, rows in self._pairs(delta):
            yield key, block, rows

    def _pairs(self, delta: Mapping[str, Tensor]) -> Iterator[tuple[str, BlockKey, Block, Tensor]]:
        """The same with the name that `delta` has for the parameter."""
        given = self._names_in(delta)
        for key, outline in outlines_of(self.blocks).items():
            if key.name in given:
                change = delta[given[key.name]]
                rows = key.rows_of(change)
                if not outline.fits(rows):
                    raise InputError(f"{key}: a tensor of shape {list(change.shape)} does not fit its curvature block")
                yield given[key.name], key, self.blocks[key], rows

    def _names_in(self, delta: Mapping[str, Tensor]) -> dict[str, str]:
        """Names of blocks -> those that a change has for them; second names of tied parameters are none."""
        strange = [name for name in delta if name not in self._known_names]
        found = {name: name for name in self.names() if name in delta}
        return found | matched([name for name in self.names() if name not in found], strange)

    def diagonals(self) -> dict[str, Tensor]:
        """The diagonal of F by parameter, in the parameter's shape; rows without a block are zero. Wrapped names find theirs."""
        result = ByName()
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

    def without(self, names: Iterable[str]) -> Curvature:
        """The same without the blocks of some parameters, given by any of their names; nothing is read."""
        gone, blocks = {self.canonical_name(name) for name in names}, self.blocks
        kept = blocks.without(gone) if isinstance(blocks, LazyBlocks) else {k: b for k, b in blocks.items() if k.name not in gone}
        return Curvature(kept, self.metadata)

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
        return Curvature(map_blocks(self.blocks, lambda t: t.to(device=device, dtype=dtype)), self.metadata)

    def check(self, model_or_state: nn.Module | Mapping[str, Tensor]) -> None:
        """Make sure that every block fits a model.

        Raises:
            InputError: lists the tensors that are missing or have another shape.
        """
        state = _tensors_of(model_or_state)
        faults = []
        found = self._find(state, self.names())
        for key, block in outlines_of(self.blocks).items():
            tensor = found.get(key.name)
            if tensor is None:
                faults.append(f"{key.name} is missing")
            elif not block.fits(key.rows_of(tensor)) or (tensor.dim() and key.row_stop > tensor.shape[0]):
                faults.append(f"{key} does not fit shape {list(tensor.shape)}")
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            listed = "; ".join(faults[:5]) + more
            raise InputError(f"the curvature belongs to another model: {listed}; estimate it for this one")

    def _find(self, state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of parameters by their names here: under these, those of tied parameters, or wrapped in other ways."""
        aliases: dict[str, list[str]] = {}
        for alias, target in self.metadata.get("aliases", {}).items():
            aliases.setdefault(target, []).append(alias)
        ways = {name: [name, *aliases.get(name, ())] for name in names}
        exact = {name: held for name, every in ways.items() if (held := next((n for n in every if n in state), None))}
        if len(exact) < len(ways):
            strange = [name for name in state if name not in self._known_names]
            wrapped = matched((n for name, every in ways.items() if name not in exact for n in every), strange)
            held_by = {name: next((wrapped[n] for n in every if n in wrapped), None) for name, every in ways.items()}
            exact = {name: held for name, held in held_by.items() if held} | exact
        return {name: state[held] for name, held in exact.items()}

    def taken_at(self, model_or_state: nn.Module | Mapping[str, Tensor]) -> bool:
        """Whether the parameters are, to the bit, those at which the curvature was estimated."""
        state = _tensors_of(model_or_state)
        parameters = self.metadata.get("parameters", {})
        tensors = self._find(state, parameters)
        return len(tensors) == len(parameters) and hash_parameters(tensors) == self.metadata.get("model_hash")

    def report(self) -> list[ReportRow]:
        """Every block, and every parameter of the model without one and why."""
        shapes = {name: tuple(shape) for name, shape in self.metadata.get("parameters", {}).items()}
        notes = self.metadata.get("notes", {})
        rows = []
        for key, block in outlines_of(self.blocks).items():
            shape = shapes.get(key.name, ())
            whole = not shape or (key.row_start, key.row_stop) == (0, shape[0])
            counts = [f"{block.positions:g} positions"] if isinstance(block, KroneckerBlock) else []
            note = ", ".join([*counts, f"{block.items:g} items", *filter(None, [notes.get(key.name)])])
            rows.append(ReportRow(key.name if whole else str(key), shape, block.kind, _size(block), block.stored, note))
        for name, why in self.metadata.get("uncovered", {}).items():
            rows.append(ReportRow(name, shapes.get(name, ()), "none", "", 0, why))
        return rows

    def compress(
        self,
        *,
        keep: float | None = None,
        rank: int | None = None,
        dtype: torch.dtype | None = None,
        tail: Tail = "isotropic",
        budget: int | None = None,
    ) -> Curvature:
        """The same curvature in fewer bytes; `compression_error` says what that costs.

        A dense factor keeps its largest eigen-directions where that is smaller, and a tail with the rest of the trace; see
        `asrcl.curvature.compress`. Every factor stays positive semi-definite.

        Args:
            keep: fraction of each factor's trace that the kept directions carry.
            rank: how many directions to keep at most, instead of `keep`.
            dtype: `torch.float16` or `torch.bfloat16` for matrices and vectors; eigenvalues and tails stay as they are.
            tail: "isotropic", one number for all directions that are not kept, or "diagonal", which keeps the factor's diagonal.
            budget: bytes of the file; of all factors the directions that carry most of their trace per byte are kept.

        Raises:
            InputError: an option is out of range, two of keep, rank and budget are given, or nothing fits the budget.
        """
        choice = Choice(keep, rank, dtype, tail, budget)
        return Curvature(*compress_blocks(self.blocks, self.metadata, choice))

    def decompose(self) -> Curvature:
        """The same curvature with its dense factors as eigenbases, twice as large in a file.

        `asrcl.curvature.solver.Sweep` then tries dampings without decomposing anything.
        """
        return Curvature(decompose_blocks(self.blocks), self.metadata)

    def save(self, path: str | os.PathLike[str], *, max_shard_bytes: int = storage.MAX_SHARD_BYTES) -> Path:
        """Write `curvature.safetensors` atomically; the format is docs/curvature_format.md.

        Args:
            path: the file, or an existing folder.
            max_shard_bytes: above it the tensors are spread over several files with an index.

        Returns:
            What to load: the file, or the index of several.

        Raises:
            InputError: the folder cannot be written, the metadata is not JSON, or a number is not finite.
        """
        return storage.write(path, self.blocks, self.metadata, max_shard_bytes)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", *, lazy: bool = True) -> Curvature:
        """Open a curvature file, the index of several, or the folder that holds either.

        Args:
            path: what to open.
            device: where the tensors go.
            lazy: read headers now, and the tensors of a block whenever it is asked for; otherwise everything now.

        Raises:
            InputError: the file is missing, damaged, or of another format. With `lazy`, damage to a tensor is found when its
                block is read.
        """
        return cls(*storage.read(path, device, lazy))


def _size(block: Block) -> str:
    if isinstance(block, KroneckerBlock):
        return f"{block.output.size} x {block.input.size}"
    if isinstance(block, DenseBlock):
        return " x ".join(str(size) for size in block.matrix_sum.shape)
    return str(block.weights)


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
