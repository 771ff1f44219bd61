"""Low-rank adapters as PEFT saves them: merged as what they add to the weights, not as the two factors they are stored in.

A linear map gets `s B A x` on top, with `s = lora_alpha / r` (`/ √r` for rank-stabilised adapters). The mean of two products is
not the product of the means, and two adapters of one shape may have other scales. So an adapter folder opens as the products
`s B A` in double precision, any method merges those, and the result is factorised again to the rank that it has: at most the sum
of the ranks for averages. Where nothing moved, the old factors are written as they were.

    base_model.model.q_proj.lora_A.weight, .lora_B.weight   ->  base_model.model.q_proj.weight
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.settings import Surroundings, flattened
from asrcl.merge.containers.weights import Sink, Weights

CONFIG = "adapter_config.json"
LINEAR = ("IA3", "LN_TUNING", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
"""Kinds whose parameters enter the model linearly, each by itself."""
SCALES = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""Settings that the products hold already."""
ACCURACY = 1e-9
"""Relative (Frobenius) error of a factorisation."""
_FACTOR = re.compile(r"(.*)\.lora_(embedding_)?A(\.weight)?")


class Pair(NamedTuple):
    """Two factors by their names in the file, and the scale of their product."""

    A: str
    B: str
    scale: float


class Adapter(Weights):
    """The weights of an adapter folder, each pair of factors as one product.

    Args:
        folder: with `adapter_config.json`.
        inner: the file of factors.

    Raises:
        InputError: the configuration is missing, or of a kind that does not add products.
    """

    def __init__(self, folder: Path, inner: Weights) -> None:
        self._inner, self._path = inner, folder / CONFIG
        self.files, self.index = inner.files, inner.index
        self.config = read_json(self._path)
        kind = str(self.config.get("peft_type", "")).upper() if isinstance(self.config, dict) else ""
        if kind not in ("LORA", *LINEAR) or self.config.get("use_dora") or self.config.get("lora_bias"):
            what = "with use_dora or lora_bias" if kind == "LORA" else f"of the kind {kind or 'unknown'}"
            remedy = "fold both into their base model (merge_and_unload of PEFT) and merge the models"
            raise InputError(f"{self._path}: an adapter {what} is no sum of products and cannot be merged; {remedy}")
        self.pairs = {stem: pair for name in inner.outlines for stem, pair in self._pair(name)}
        factors = {factor: stem for stem, pair in self.pairs.items() for factor in (pair.A, pair.B)}
        names = dict.fromkeys(factors.get(name, name) for name in inner.outlines)
        self.outlines = {name: self._product_outline(name) if name in self.pairs else inner.outlines[name] for name in names}
        if self.pairs:
            self.notes = (f"{len(self.pairs)} pairs of adapter factors are merged as their products, with a rank and scale anew",)

    def _pair(self, name: str) -> list[tuple[str, Pair]]:
        found = _FACTOR.fullmatch(name)
        other = name.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")
        if found is None or other not in self._inner.outlines:
            return []
        module = found[1].removeprefix("base_model.model.")
        rank = self._setting("r", "rank_pattern", module)
        shapes = [self._inner.outlines[factor].shape for factor in (name, other)]
        if rank != shapes[0][0] or shapes[1][1:] != (rank, *(1 for _ in shapes[1][2:])):
            held = f"{name} is {list(shapes[0])} and its other factor {list(shapes[1])}"
            raise InputError(f"{self._path}: r is {rank}, but {held}; copy the configuration and the weights again")
        alpha = self._setting("lora_alpha", "alpha_pattern", module)
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return [(f"{found[1]}.weight", Pair(name, other, scale))]

    def _setting(self, name: str, patterns: str, module: str) -> float:
        """A number for one module; patterns are the ends of names or regular expressions, as PEFT reads them."""
        value = self.config.get(name)
        for pattern, own in (self.config.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                value = own
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{self._path}: {name} is {value!r}, not a number above 0; save the adapter again")
        return value

    def _product_outline(self, name: str) -> Outline:
        pair = self.pairs[name]
        rows, columns = self._inner.outlines[pair.B].shape[0], self._inner.outlines[pair.A].shape[1:]
        return Outline((rows, *columns), torch.float64)

    def read(self, name: str) -> Tensor:  # noqa: D102
        if name not in self.pairs:
            return self._inner.read(name)
        pair = self.pairs[name]
        A, B = (self._inner.read(factor).double() for factor in pair[:2])
        return (pair.scale * B.flatten(1) @ A.flatten(1)).reshape(self.outlines[name].shape)

    def sample(self, name: str, count: int) -> Tensor:  # noqa: D102
        return self._inner.sample(self.pairs[name].A if name in self.pairs else name, count)

    def surroundings(self) -> Surroundings:
        """The configuration without what the products hold, and with the base model, which adapters must share."""
        plain = {key: value for key, value in self.config.items() if key not in SCALES or not self.pairs}
        return Surroundings({**flattened(plain), "base model": self.config.get("base_model_name_or_path")})

    def sink(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:  # noqa: D102
        return _Factorised(self, folder, outlines)

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """The stored factors of a product, `[r, ...]` and `[rows, r, ...]`, as they are."""
        pair = self.pairs[name]
        return self._inner.read(pair.A), self._inner.read(pair.B)

    def inner_sink(self, folder: Path, outlines: Mapping[str, Outline]) -> Sink:
        """A sink for the file of factors."""
        return self._inner.sink(folder, outlines)


class _Factorised:
    """Takes products and writes factors, all of the rank that the widest product needs."""

    def __init__(self, adapter: Adapter, folder: Path, outlines: Mapping[str, Outline]) -> None:
        self._adapter, self._folder, self._names = adapter, folder, list(outlines)
        self._plain: dict[str, Tensor] = {}
        self._made: dict[str, tuple[Tensor, Tensor]] = {}

    def write(self, name: str, tensor: Tensor) -> None:
        if name not in self._adapter.pairs:
            self._plain[name] = tensor.detach().cpu().clone()
        elif not torch.equal(tensor.cpu(), self._adapter.read(name)):
            self._made[name] = factorised(tensor.detach().cpu().double().flatten(1))

    def finish(self) -> None:
        tensors: dict[str, Tensor] = {}
        widest = max((len(A) for A, _ in self._made.values()), default=0)
        for name in self._adapter.pairs.keys() - self._made.keys() if self._made else ():
            if len(self._adapter.factors(name)[0]) > widest:  # kept as it is, it would widen all others
                self._made[name] = factorised(self._adapter.read(name).flatten(1))
        widest = max((len(A) for A, _ in self._made.values()), default=0)
        for name in self._names:
            if name not in self._adapter.pairs:
                tensors[name] = self._plain[name]
                continue
            pair, (A, B) = self._adapter.pairs[name], self._adapter.factors(name)
            if self._made:
                made = self._made.get(name, (A.double().flatten(1), pair.scale * B.double().flatten(1)))
                A = _padded(made[0], widest).reshape(widest, *A.shape[1:]).to(A.dtype)
                B = _padded(made[1].mT, widest).mT.reshape(len(B), widest, *B.shape[2:]).to(B.dtype)
            tensors |= {pair.A: A.contiguous(), pair.B: B.contiguous()}
        sink = self._adapter.inner_sink(self._folder, {name: Outline.of(tensor) for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            sink.write(name, tensor)
        sink.finish()
        scales = {"r": widest, "lora_alpha": widest, "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False}
        write_json(self._folder / CONFIG, self._adapter.config | (scales if self._made else {}))


def factorised(matrix_OI: Tensor) -> tuple[Tensor, Tensor]:
    """`A [R, I]` and `B [O, R]` whose product is a matrix but for `ACCURACY`; R is its rank. Largest singular values first.

    The range is found by products with random vectors, twice as many as long as they do not reach it (Halko, Martinsson & Tropp
    2011, arXiv 0909.4061, algorithm 4.2), so that a wide layer with a narrow adapter needs no decomposition of its size.
    """
    norm, smallest, count = float(matrix_OI.norm()), min(matrix_OI.shape), 16
    generator = torch.Generator().manual_seed(0)
    basis_OK = torch.eye(len(matrix_OI), dtype=matrix_OI.dtype)
    while 2 * count < smallest:
        sketch_OK = matrix_OI @ torch.randn(matrix_OI.shape[1], count, generator=generator, dtype=matrix_OI.dtype)
        Q_OK, _ = torch.linalg.qr(sketch_OK)
        if float((matrix_OI - Q_OK @ (Q_OK.mT @ matrix_OI)).norm()) <= ACCURACY * norm / 2:
            basis_OK = Q_OK
            break
        count *= 2
    U_KR, s_R, V_RI = torch.linalg.svd(basis_OK.mT @ matrix_OI, full_matrices=False)
    tail_R = s_R.square().flip(0).cumsum(0).flip(0).sqrt()  # what is lost by stopping before each
    rank = max(1, int((tail_R > ACCURACY * norm / 2).sum()))
    root_R = s_R[:rank].sqrt()
    return root_R[:, None] * V_RI[:rank], basis_OK @ U_KR[:, :rank] * root_R


def _padded(matrix_KN: Tensor, size: int) -> Tensor:
    return torch.cat([matrix_KN, matrix_KN.new_zeros(size - len(matrix_KN), matrix_KN.shape[1])])
