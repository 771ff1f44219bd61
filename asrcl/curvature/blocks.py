"""The blocks of a curvature: immutable sums over the data, each with its count.

A block covers a range of rows of one parameter, seen as a matrix `[R, C]` (trailing axes flattened). See docs/curvature_format.md
for what is averaged over what.

    KroneckerBlock   A ⊗ G             linear maps, convolutions, embeddings
    EigenBlock       V diag(S) Vᵀ      the same with eigenvalues measured in the Kronecker eigenbasis (EK-FAC)
    DenseBlock       exact, row by row depthwise kernels; or one matrix for a whole small parameter
    DiagonalBlock    exact diagonal    biases, norms, everything else
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from asrcl.curvature import kron
from asrcl.curvature.factors import Factor, as_factor
from asrcl.curvature.kron import DampingKind

Move = Callable[[Tensor], Tensor]


class BlockKey(NamedTuple):
    """Rows `[row_start, row_stop)` of the parameter `name`."""

    name: str
    row_start: int
    row_stop: int

    def __str__(self) -> str:
        return f"{self.name}[{self.row_start}:{self.row_stop}]"

    def rows_of(self, tensor: Tensor) -> Tensor:
        """The covered rows of the parameter, as a view (a tensor without axes is its own single row)."""
        return tensor.reshape(1) if tensor.dim() == 0 else tensor[self.row_start : self.row_stop]


class Block:
    """What every kind of block can do. `rows` is always a change of the covered rows, in the parameter's own shape."""

    kind: ClassVar[str]
    items: float

    @property
    def rows(self) -> int:
        """The number of rows of the parameter that the block covers."""
        raise NotImplementedError

    @property
    def weights(self) -> int:
        """Weights covered, which is also the number of eigenvalues."""
        raise NotImplementedError

    @property
    def stored(self) -> int:
        """How many numbers a file stores for it."""
        return sum(tensor.numel() for tensor in self.tensors().values())

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, as a matrix `[R, C]` (a diagonal block: in the shape of its rows)."""
        raise NotImplementedError

    def trace(self) -> float:
        """The sum of all eigenvalues."""
        return float(self.diagonal.double().sum())

    def eigenvalues(self) -> Tensor:
        """All eigenvalues in float64, descending."""
        raise NotImplementedError

    def fits(self, rows: Tensor) -> bool:
        """Whether rows of a parameter have the shape of this block."""
        raise NotImplementedError

    def multiply(self, rows: Tensor) -> Tensor:
        """`F delta` in the shape and type of `rows`."""
        raise NotImplementedError

    def quadratic(self, rows: Tensor) -> Tensor:
        """`½ deltaᵀ F delta`, a scalar, differentiable."""
        return 0.5 * (rows * self.multiply(rows)).sum()

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind, power: float = 1.0) -> Tensor:
        """`(F + damping)^-power delta` in float64, in the shape of `rows`; `damping_kind` is explained in `asrcl.curvature.kron`.

        Raises:
            InputError: the damped block is singular.
        """
        raise NotImplementedError

    def scale(self, factor: float) -> Self:
        """Return the curvature multiplied by `factor`."""
        raise NotImplementedError

    def map(self, move: Move) -> Self:
        """The same block with every tensor replaced by `move` of it."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by role."""
        raise NotImplementedError


@dataclass(frozen=True)
class KroneckerBlock(Block):
    """Curvature `A ⊗ G` of a map `y = W a` as raw sums.

    Attributes:
        input: sum over items and real positions of a aᵀ.
        output: sum over items and positions of g gᵀ, g the gradient of the item's own loss.
        positions: how many positions were summed in `input`.
        items: how many items were seen.
        transposed: the parameter holds Wᵀ, so that its rows are the inputs (embeddings, GPT-2's Conv1D).
    """

    input: Factor
    output: Factor
    positions: float
    items: float
    transposed: bool = False

    kind = "kronecker"

    @classmethod
    def of(cls, input_sum: Tensor, output_sum: Tensor, positions: float, items: float, transposed: bool = False) -> Self:
        """From raw sums, `[D, D]` or diagonals `[D]`."""
        return cls(as_factor(input_sum), as_factor(output_sum), positions, items, transposed)

    @property
    def A(self) -> Factor:  # noqa: N802 (the field's own name)
        """Mean over positions of a aᵀ, as a factor."""
        return self.input.scale(1 / self.positions)

    @property
    def G(self) -> Factor:  # noqa: N802 (the field's own name)
        """Sum over positions, mean over items, of g gᵀ, as a factor."""
        return self.output.scale(1 / self.items)

    @property
    def A_II(self) -> Tensor:  # noqa: N802 (the field's own name)
        """The input factor: the mean over positions of a aᵀ, `[I, I]`."""
        return self.A.dense()

    @property
    def G_OO(self) -> Tensor:  # noqa: N802 (the field's own name)
        """Sum over positions, mean over items, of g gᵀ."""
        return self.G.dense()

    @property
    def row_factor(self) -> Factor:
        """The factor that acts on the rows of the parameter: G, or A where transposed."""
        return self.A if self.transposed else self.G

    @property
    def column_factor(self) -> Factor:
        """The factor that acts on the columns of the parameter: A, or G where transposed."""
        return self.G if self.transposed else self.A

    @property
    def diagonal(self) -> Tensor:
        """The diagonal of `A ⊗ G` as a matrix `[R, C]`."""
        return torch.outer(self.row_factor.diagonal(), self.column_factor.diagonal())

    @property
    def rows(self) -> int:
        """The number of rows of the parameter that the block covers."""
        return self.row_factor.size

    @property
    def weights(self) -> int:
        """The number of weights that the block covers."""
        return self.input.size * self.output.size

    @property
    def stored(self) -> int:
        """Numbers stored; of symmetric matrices one triangle."""
        return self.input.stored + self.output.stored

    def trace(self) -> float:
        """The sum of all eigenvalues."""
        return self.A.trace() * self.G.trace()

    def eigenvalues(self) -> Tensor:
        """All products of an eigenvalue of A and one of G, float64, descending."""
        products = torch.outer(self.G.eigen()[0], self.A.eigen()[0])
        return products.flatten().sort(descending=True).values

    def fits(self, rows: Tensor) -> bool:
        """Whether these rows of a parameter have the shape of this block (trailing axes are flattened)."""
        matrix = (self.row_factor.size, self.column_factor.size)
        return rows.dim() >= 2 and tuple(rows.flatten(1).shape) == matrix

    def multiply(self, rows: Tensor) -> Tensor:
        """Return the product `G delta A`, in the shape of `delta`."""
        left = self.row_factor.multiply(rows.flatten(1))
        return self.column_factor.multiply(left.mT).mT.reshape(rows.shape)

    def quadratic(self, rows: Tensor) -> Tensor:
        """Return the quadratic form `½ <delta, G delta A>`."""
        delta_RC = rows.flatten(1)
        left, right = self.row_factor.multiply(delta_RC), self.column_factor.multiply(delta_RC.mT).mT
        return 0.5 * (left * right).sum()

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind, power: float = 1.0) -> Tensor:
        """`(G + ε_G)^-power delta (A + ε_A)^-power`; or with the damping on the products, `damping_kind="product..."`."""
        delta_RC = rows.flatten(1).double()
        if damping_kind in ("product", "product_absolute"):
            return self._solve_product(delta_RC, damping, damping_kind, power).reshape(rows.shape)
        epsilon_G, epsilon_A = kron.split_damping(self.G.mean(), self.A.mean(), damping, damping_kind)
        epsilon_R, epsilon_C = (epsilon_A, epsilon_G) if self.transposed else (epsilon_G, epsilon_A)
        if power == 1:
            left = self.row_factor.solve(delta_RC, epsilon_R)
            return self.column_factor.solve(left.mT, epsilon_C).mT.reshape(rows.shape)
        left = _power(self.row_factor, delta_RC, epsilon_R, power)
        return _power(self.column_factor, left.mT, epsilon_C, power).mT.reshape(rows.shape)

    def _solve_product(self, delta_RC: Tensor, damping: float, kind: DampingKind, power: float) -> Tensor:
        (values_R, V_RR), (values_C, V_CC) = (
            _on(factor.eigen(), delta_RC.device) for factor in (self.row_factor, self.column_factor)
        )
        spectrum_RC = torch.outer(values_R, values_C)
        spectrum_RC += kron.damping_term(float(spectrum_RC.mean()), damping, kind)
        scaled_RC = kron.rotate(V_RR, delta_RC, V_CC) * kron.positive(spectrum_RC) ** -power
        return kron.rotate_back(V_RR, scaled_RC, V_CC)

    def scale(self, factor: float) -> Self:
        """Return the curvature multiplied by `factor`."""
        return replace(self, output=self.output.scale(factor))

    def map(self, move: Move) -> Self:
        """The same block with every tensor replaced by `move` of it."""
        return replace(self, input=self.input.map(move), output=self.output.map(move))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by role."""
        sides = {"input": self.input, "output": self.output}
        return {f"{side}.{role}": t for side, factor in sides.items() for role, t in factor.tensors().items()}


@dataclass(frozen=True)
class EigenBlock(Block):
    """Curvature that is diagonal in the eigenbasis of a Kronecker product (EK-FAC; George et al. 2018, arXiv 1806.03884).

    Attributes:
        row_vectors: eigenvectors `[R, R]` (columns) of the factor that acts on the rows; None for the identity.
        column_vectors: eigenvectors `[C, C]` of the factor that acts on the columns; None for the identity.
        square_sum: sum over items of the squared gradient of the item's own loss in that basis, `[R, C]`.
        items: how many items were seen.
    """

    row_vectors: Tensor | None
    column_vectors: Tensor | None
    square_sum: Tensor
    items: float

    kind = "eigen"

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues where they act, `[R, C]`, at least in single precision."""
        return _single(self.square_sum) / self.items

    @property
    def diagonal(self) -> Tensor:
        """The diagonal as a matrix `[R, C]`."""
        squared = [None if V is None else _single(V).square().mT for V in (self.row_vectors, self.column_vectors)]
        return kron.rotate(squared[0], self.spectrum, squared[1])

    @property
    def rows(self) -> int:
        """The number of rows of the parameter that the block covers."""
        return self.square_sum.shape[0]

    @property
    def weights(self) -> int:
        """The number of weights that the block covers."""
        return self.square_sum.numel()

    def trace(self) -> float:
        """The sum of all eigenvalues."""
        return float(self.spectrum.double().sum())

    def eigenvalues(self) -> Tensor:
        """All eigenvalues, float64, descending."""
        return self.spectrum.double().flatten().sort(descending=True).values

    def fits(self, rows: Tensor) -> bool:
        """Whether these rows of a parameter have the shape of this block (trailing axes are flattened)."""
        return rows.dim() >= 2 and rows.flatten(1).shape == self.square_sum.shape

    def multiply(self, rows: Tensor) -> Tensor:
        """Return the product `F delta`, in the shape of `delta`."""
        return self._act(rows, self.spectrum.to(rows))

    def quadratic(self, rows: Tensor) -> Tensor:
        """Return the quadratic form `½ deltaᵀ F delta`."""
        V_RR, V_CC = _like(rows, self.row_vectors, self.column_vectors)
        return 0.5 * (self.spectrum.to(rows) * kron.rotate(V_RR, rows.flatten(1), V_CC).square()).sum()

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind, power: float = 1.0) -> Tensor:
        """`(F + damping)^-power delta`; every kind of damping acts on the eigenvalues of the block."""
        spectrum = self.spectrum.to(device=rows.device, dtype=torch.float64)
        damped = kron.positive(spectrum + kron.damping_term(float(spectrum.mean()), damping, _plain(damping_kind)))
        return self._act(rows.double(), damped**-power)

    def _act(self, rows: Tensor, spectrum_RC: Tensor) -> Tensor:
        V_RR, V_CC = _like(rows, self.row_vectors, self.column_vectors)
        scaled_RC = kron.rotate(V_RR, rows.flatten(1), V_CC) * spectrum_RC
        return kron.rotate_back(V_RR, scaled_RC, V_CC).reshape(rows.shape)

    def scale(self, factor: float) -> Self:
        """Return the curvature multiplied by `factor`."""
        return replace(self, square_sum=self.square_sum * factor)

    def map(self, move: Move) -> Self:
        """The same block with every tensor replaced by `move` of it."""
        rows, columns = (None if V is None else move(V) for V in (self.row_vectors, self.column_vectors))
        return replace(self, row_vectors=rows, column_vectors=columns, square_sum=move(self.square_sum))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by role."""
        roles = ("row_vectors", "column_vectors", "square_sum")
        return {role: getattr(self, role) for role in roles if getattr(self, role) is not None}


@dataclass(frozen=True)
class DenseBlock(Block):
    """Exact curvature within each of B groups of K weights, none between groups.

    The covered weights in their order are the matrix `[B, K]`: a row for each group of a depthwise kernel, or B = 1 for a whole
    parameter.

    Attributes:
        matrix_sum: sum over items of the outer product of the gradient of the item's own loss, `[B, K, K]`.
        items: how many items were seen.
        rows: rows of the parameter covered.
    """

    matrix_sum: Tensor
    items: float
    rows: int = 1

    kind = "dense"

    @property
    def matrix(self) -> Tensor:
        """Mean over items, `[B, K, K]`, at least in single precision."""
        return _single(self.matrix_sum) / self.items

    @property
    def diagonal(self) -> Tensor:
        """The diagonal as a matrix `[R, C]`."""
        return self.matrix.diagonal(dim1=1, dim2=2).reshape(self.rows, -1)

    @property
    def weights(self) -> int:
        """The number of weights that the block covers."""
        return self.matrix_sum.shape[0] * self.matrix_sum.shape[1]

    @property
    def stored(self) -> int:
        """How many numbers a file stores for it: the triangles."""
        groups, size, _ = self.matrix_sum.shape
        return groups * size * (size + 1) // 2

    def eigenvalues(self) -> Tensor:
        """All eigenvalues, float64, descending."""
        return kron.eigenbasis(self.matrix)[0].flatten().sort(descending=True).values

    def fits(self, rows: Tensor) -> bool:
        """Whether these rows of a parameter have the shape of this block."""
        return rows.numel() == self.weights and (rows.shape[0] if rows.dim() else 1) == self.rows

    def multiply(self, rows: Tensor) -> Tensor:
        """Return the product `F delta`, in the shape of `delta`."""
        matrix_BKK = self.matrix.to(rows)
        return (matrix_BKK @ rows.reshape(*matrix_BKK.shape[:2], 1)).reshape(rows.shape)

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind, power: float = 1.0) -> Tensor:
        """`(F + damping)^-power delta`; every kind of damping acts on the eigenvalues of the block."""
        values_BK, V_BKK = kron.eigenbasis(self.matrix.to(rows.device))
        term = kron.damping_term(float(values_BK.mean()), damping, _plain(damping_kind))
        turned_BK1 = V_BKK.mT @ rows.double().reshape(*values_BK.shape, 1)
        scaled_BK1 = turned_BK1 * kron.positive(values_BK + term)[..., None] ** -power
        return (V_BKK @ scaled_BK1).reshape(rows.shape)

    def scale(self, factor: float) -> Self:
        """Return the curvature multiplied by `factor`."""
        return replace(self, matrix_sum=self.matrix_sum * factor)

    def map(self, move: Move) -> Self:
        """The same block with every tensor replaced by `move` of it."""
        return replace(self, matrix_sum=move(self.matrix_sum))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by role."""
        return {"matrix_sum": self.matrix_sum}


@dataclass(frozen=True)
class DiagonalBlock(Block):
    """Diagonal curvature of any parameter as a raw sum.

    Attributes:
        square_sum: sum over items of the squared gradient of the item's own loss, shaped as the rows.
        items: how many items were seen.
    """

    square_sum: Tensor
    items: float

    kind = "diagonal"

    @property
    def diagonal(self) -> Tensor:
        """Mean over items of the squared gradient, in the shape of the rows, at least in single precision."""
        return _single(self.square_sum) / self.items

    @property
    def rows(self) -> int:
        """The number of rows of the parameter that the block covers."""
        return self.square_sum.shape[0]

    @property
    def weights(self) -> int:
        """The number of weights that the block covers."""
        return self.square_sum.numel()

    def eigenvalues(self) -> Tensor:
        """All eigenvalues, float64, descending."""
        return self.diagonal.double().flatten().sort(descending=True).values

    def fits(self, rows: Tensor) -> bool:
        """Whether these rows of a parameter have the shape of this block."""
        return rows.shape == self.square_sum.shape

    def multiply(self, rows: Tensor) -> Tensor:
        """Return the product `F delta`, in the shape of `delta`."""
        return self.diagonal.to(rows) * rows

    def solve(self, rows: Tensor, damping: float, damping_kind: DampingKind, power: float = 1.0) -> Tensor:
        """`delta / (F + damping)^power`; every kind of damping acts on the entries."""
        diagonal = self.diagonal.to(device=rows.device, dtype=torch.float64)
        damped = diagonal + kron.damping_term(float(diagonal.mean()), damping, _plain(damping_kind))
        return rows.double() * kron.positive(damped) ** -power

    def scale(self, factor: float) -> Self:
        """Return the curvature multiplied by `factor`."""
        return replace(self, square_sum=self.square_sum * factor)

    def map(self, move: Move) -> Self:
        """The same block with every tensor replaced by `move` of it."""
        return replace(self, square_sum=move(self.square_sum))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that a file stores, by role."""
        return {"square_sum": self.square_sum}


def _single(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _like(rows: Tensor, *vectors: Tensor | None) -> list[Tensor | None]:
    return [None if V is None else V.to(rows) for V in vectors]


def _on(basis: tuple[Tensor, Tensor | None], device: torch.device) -> tuple[Tensor, Tensor | None]:
    values, vectors = basis
    return values.to(device), None if vectors is None else vectors.to(device)


def _plain(kind: DampingKind) -> DampingKind:
    """A block without factors has one spectrum: an absolute damping is added to it whole."""
    return "absolute" if kind == "pi" else kind


def _power(factor: Factor, X_DN: Tensor, shift: float, power: float) -> Tensor:
    """`(M + shift)^-power X` in float64."""
    values_D, V_DD = _on(factor.eigen(), X_DN.device)
    scaled_DN = kron.positive(values_D + shift)[:, None] ** -power * kron.rotate(V_DD, X_DN.double(), None)
    return kron.rotate_back(V_DD, scaled_DN, None)
