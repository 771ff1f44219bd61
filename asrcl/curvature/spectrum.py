"""Spectra of a loss: Hessians and block curvatures as operators, their largest eigenvalues, density and ranks.

    from asrcl.curvature.spectrum import hessian_operator, spectral_density, top_eigenvalues
    hessian = hessian_operator(model, loss_fn, batches, parameters=("encoder.*",))
    values, vectors = top_eigenvalues(hessian, k=5)
    grid, density = spectral_density(hessian)

Shapes: n numbers in all chosen parameters, k eigenpairs, P points of a grid, M Lanczos steps.

An operator is a `scipy.sparse.linalg.LinearOperator` on flat float64 vectors `[n]`; its attribute `layout` (a `Layout`) turns
such a vector into named tensors and back. Eigenvalue tools take any symmetric operator or matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from asrcl.curvature.curvature import Curvature
from asrcl.curvature.modes import evaluated
from asrcl.curvature.parameters import matches
from asrcl.curvature.wrappers import plain_names, plainly_called
from asrcl.exceptions import InputError

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

LossFunction = Callable[[Any, Any], Tensor]
Tensors = dict[str, Tensor]

MARGIN = 0.05
"""Least margin of a density's grid on either side, as a part of the spectrum's width (Papyan 2020, section D.2)."""
BUMP_REACH = 5.0
"""Standard deviations of a bump that the grid must hold beyond the outermost eigenvalues."""


# Flat vectors


@dataclass(frozen=True)
class Layout:
    """Where named tensors lie in a flat vector: one after the other, last axis fastest.

    Attributes:
        shapes: name -> shape, in the order of the vector.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Length n of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def flatten(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        """The tensors of this layout as one float64 vector `[n]`; further names are left out.

        Raises:
            InputError: a tensor is missing or has another shape.
        """
        for name, shape in self.shapes.items():
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != shape:
                what = "missing" if found is None else f"of shape {list(found)}"
                raise InputError(f"{name} is {what}; a tensor of shape {list(shape)} belongs there")
        return torch.cat([tensors[name].detach().double().cpu().reshape(-1) for name in self.shapes]).numpy()

    def unflatten(self, vector: np.ndarray) -> Tensors:
        """A vector `[n]` as named float64 tensors on the CPU.

        Raises:
            InputError: the vector has another length.
        """
        flat = torch.tensor(np.asarray(vector), dtype=torch.float64).reshape(-1)
        if len(flat) != self.size:
            raise InputError(f"a vector of {len(flat)} numbers does not fit parameters of {self.size} numbers")
        parts = flat.split([math.prod(shape) for shape in self.shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def symmetric_operator(layout: Layout, product: Callable[[Tensors], Mapping[str, Tensor]]) -> LinearOperator:
    """An operator on flat vectors of a layout from a product of named tensors."""
    from scipy.sparse.linalg import LinearOperator

    def multiply(vector: np.ndarray) -> np.ndarray:
        return layout.flatten(product(layout.unflatten(vector)))

    operator = LinearOperator((layout.size, layout.size), matvec=multiply, rmatvec=multiply, dtype=np.float64)
    operator.layout = layout
    return operator


# The Hessian


def hessian_operator(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    parameters: Sequence[str] = ("*",),
    finite_difference: bool = False,
) -> LinearOperator:
    """The Hessian of the mean item loss at the model's present weights, as an operator on flat vectors.

    Every product walks all batches, with the model in eval mode and other parameters frozen; modes and flags are restored
    whatever happens. Products run in the type and on the device of the model and are summed in float64.

    Args:
        model: any module; the weights it has at the time of a product count.
        loss_fn: `loss_fn(model, batch)` -> scalar, the mean over the batch's `len(batch)` items.
        batches: the data, which must be the same on every walk; an iterator is kept as a list.
        parameters: glob patterns of parameter names; a tied parameter counts once.
        finite_difference: False, double backward (Pearlmutter 1994), exact; True, the central difference of gradients, two
            backward passes whose relative error is about `eps^(2/3)` (float64: 1e-10, float32: 1e-4), for losses that PyTorch
            differentiates only once, such as `ctc_loss`. The weights move meanwhile and return to the bit.

    Raises:
        InputError: no parameter fits, there is no data, or (at a product) the loss is not finite or cannot be differentiated
            twice.
    """
    chosen = chosen_parameters(model, parameters)
    data = list(batches) if isinstance(batches, Iterator) else batches
    if not any(len(batch) for batch in data):
        raise InputError("there is no data to compute a Hessian from: batches gave no item")
    layout = Layout({name: tuple(parameter.shape) for name, parameter in chosen.items()})

    def loss_of(batch: Any) -> Tensor:
        device = next(iter(chosen.values())).device
        return checked_loss(loss_fn(model, batch.to(device) if hasattr(batch, "to") else batch))

    def product(vector: Tensors) -> Tensors:
        direction = {name: vector[name].to(parameter) for name, parameter in chosen.items()}
        with differentiable(model, chosen):
            if finite_difference:
                return _difference(chosen, direction, lambda: item_mean(data, chosen, lambda b: _gradient(loss_of(b), chosen)))
            return item_mean(data, chosen, lambda batch: _second_order(loss_of(batch), chosen, direction))

    return symmetric_operator(layout, product)


def chosen_parameters(model: nn.Module, patterns: Sequence[str]) -> dict[str, nn.Parameter]:
    """Floating parameters of which any name fits, under their first name, in the order of the model."""
    plain, every = plain_names(model), model.named_parameters(remove_duplicate=False)
    fitting = {id(p) for name, p in every if matches(name, patterns) or matches(plain(name), patterns)}
    chosen = {plain(name): p for name, p in model.named_parameters() if id(p) in fitting and p.is_floating_point()}
    if not chosen:
        raise InputError(f"no floating parameter of the model fits parameters={list(patterns)}")
    return chosen


def checked_loss(loss: Tensor) -> Tensor:
    """A loss as a scalar; one that is none, is not finite or has no gradient is refused."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise InputError("loss_fn must return one number, the mean loss of the batch's items")
    if not torch.isfinite(loss).all():
        raise InputError(f"the loss of a batch is {loss.item()}; remove that data or mend the model")
    if not loss.requires_grad:
        raise InputError("the loss depends on none of the chosen parameters; widen parameters= or look at loss_fn")
    return loss.reshape(())


@contextmanager
def differentiable(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Eval mode, gradients for the chosen parameters alone, and attention that can be differentiated twice."""
    with evaluated(model, chosen.values()), plainly_called(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def item_mean(batches: Iterable[Any], chosen: Mapping[str, Tensor], term: Callable[[Any], Sequence[Tensor | None]]) -> Tensors:
    """The mean over all items of a term that is a mean over the items of a batch; None stands for zeros."""
    total = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in chosen.items()}
    items = 0
    for batch in batches:
        if len(batch):
            items += len(batch)
            for name, part in zip(total, term(batch), strict=True):
                if part is not None:
                    total[name].add_(part.detach().double(), alpha=len(batch))
    return {name: tensor / items for name, tensor in total.items()}


def _gradient(loss: Tensor, chosen: Mapping[str, nn.Parameter]) -> Sequence[Tensor | None]:
    return torch.autograd.grad(loss, list(chosen.values()), allow_unused=True)


def _second_order(loss: Tensor, chosen: Mapping[str, nn.Parameter], direction: Tensors) -> Sequence[Tensor | None]:
    """The gradient of `<gradient, direction>`."""
    weights = list(chosen.values())
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    pairs = zip(gradients, direction.values(), strict=True)
    slopes = [(gradient * along).sum() for gradient, along in pairs if gradient is not None and gradient.requires_grad]
    if not slopes:
        return [None] * len(weights)
    try:
        return torch.autograd.grad(torch.stack([slope.double().cpu() for slope in slopes]).sum(), weights, allow_unused=True)
    except RuntimeError as error:
        if "not implemented" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"the loss cannot be differentiated twice ({reason}); use finite_difference=True") from error


def _difference(chosen: Mapping[str, nn.Parameter], direction: Tensors, gradient: Callable[[], Tensors]) -> Tensors:
    """`(gradient(w + h v) − gradient(w − h v)) / 2h`, h balancing rounding and truncation at the length of w."""
    length = _norm(direction.values())
    if length == 0:
        return {name: torch.zeros_like(parameter) for name, parameter in chosen.items()}
    precision = max(torch.finfo(parameter.dtype).eps for parameter in chosen.values())
    h = precision ** (1 / 3) * (1 + _norm(chosen.values())) / length
    before = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    sides = []
    try:
        for step in (h, -h):
            for name, parameter in chosen.items():
                parameter.data.copy_(before[name] + step * direction[name])
            sides.append(gradient())
    finally:
        for name, parameter in chosen.items():
            parameter.data.copy_(before[name])
    return {name: (sides[0][name] - sides[1][name]) / (2 * h) for name in chosen}


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(tensor.detach().double().norm()) for tensor in tensors))


# The block curvature


def curvature_operator(curvature: Curvature, parameters: Sequence[str] = ("*",)) -> LinearOperator:
    """The block curvature itself as an operator on the flat vector of its covered parameters.

    Args:
        curvature: the blocks; `metadata["parameters"]` gives the shapes.
        parameters: glob patterns of parameter names, tied ones by any name. Rows without a block count in the vector and have
            the eigenvalue zero.

    Raises:
        InputError: no covered parameter fits, or the shape of one is unknown.
    """
    names = [name for name in curvature.names() if any(matches(n, parameters) for n in _names_of(curvature, name))]
    if not names:
        raise InputError(f"no parameter with a curvature block fits parameters={list(parameters)}")
    shapes = curvature.metadata.get("parameters", {})
    unknown = [name for name in names if name not in shapes]
    if unknown:
        raise InputError(f"{unknown[0]}: its shape is not in the curvature's metadata['parameters']; estimate it again")
    return symmetric_operator(Layout({name: tuple(shapes[name]) for name in names}), curvature.multiply)


def _names_of(curvature: Curvature, name: str) -> list[str]:
    return [name, *(alias for alias, target in curvature.metadata.get("aliases", {}).items() if target == name)]


# Eigenvalues


def top_eigenvalues(
    operator: LinearOperator | np.ndarray, k: int = 5, *, tolerance: float = 1e-4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The k algebraically largest eigenvalues `[k]`, descending, and their eigenvectors `[n, k]`.

    Args:
        operator: symmetric, of size n.
        k: how many; from n − 1 on, the dense matrix is decomposed.
        tolerance: relative accuracy of the values (ARPACK).
        seed: draws the first vector.

    Raises:
        InputError: k lies outside 1..n, or the iteration does not converge.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh

    operator, n = sized(operator)
    if not 1 <= k <= n:
        raise InputError(f"k={k} eigenvalues were asked of an operator of size {n}; k lies between 1 and {n}")
    if k >= n - 1:
        values, vectors = np.linalg.eigh(_dense(operator))
    else:
        start = np.random.default_rng(seed).standard_normal(n)
        try:
            values, vectors = eigsh(operator, k=k, which="LA", tol=tolerance, v0=start)
        except ArpackNoConvergence as error:
            found = f"{len(error.eigenvalues)} of {k} eigenvalues converged"
            raise InputError(f"only {found}; use a larger k or a tolerance above {tolerance:g}") from error
        except ArpackError:
            # ARPACK cannot start where every product is zero; a random vector meets that in the zero operator alone.
            if operator.matvec(start).any():
                raise
            values, vectors = np.zeros(k), np.eye(n, k)
    order = np.argsort(values)[::-1][:k]
    return values[order], vectors[:, order]


def sized(operator: LinearOperator | np.ndarray) -> tuple[LinearOperator, int]:
    """The operator with checked products, and its size."""
    from scipy.sparse.linalg import LinearOperator, aslinearoperator

    rows, columns = operator.shape
    if rows != columns or not rows:
        raise InputError(f"a symmetric operator is square and not empty, this one has the shape {[rows, columns]}")
    plain = aslinearoperator(operator)

    def checked(vector: np.ndarray) -> np.ndarray:
        product = np.asarray(plain.matvec(vector), dtype=np.float64)
        if not np.isfinite(product).all():
            raise InputError("a product with the operator is not finite; look for overflow in the model or the loss")
        return product

    return LinearOperator((rows, rows), matvec=checked, dtype=np.float64), rows


def _dense(operator: LinearOperator) -> np.ndarray:
    matrix = operator @ np.eye(operator.shape[0])
    return (matrix + matrix.T) / 2


# Density


def spectral_density(
    operator: LinearOperator | np.ndarray,
    *,
    points: int = 200,
    steps: int = 64,
    repeats: int = 4,
    kappa: float = 3.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The density of the eigenvalues: a grid `[P]` and values `[P]` whose trapezoid integral over it is 1.

    Stochastic Lanczos quadrature with Gaussian bumps in place of eigenvalues: Papyan 2020 (JMLR 21-933, algorithm 2, run by
    curvlinops) and Ghorbani et al. 2019 (arXiv 1901.10159). It costs `repeats * steps` products. Operators of at most `steps`
    rows are decomposed exactly, with as many products as rows.

    Args:
        operator: symmetric, of size n.
        points: size P of the grid, which reaches a little beyond the outermost eigenvalues.
        steps: Lanczos steps M; more resolve finer.
        repeats: random start vectors averaged.
        kappa: sharpness above 1: a bump falls to `1/kappa` half-way between two of M evenly spaced eigenvalues.
        seed: draws the start vectors; PyTorch's global generator is left as it was.

    Raises:
        InputError: curvlinops is missing, the knobs do not resolve a bump, or a product is not finite.
    """
    width = _bump_width(points, steps, repeats, kappa)
    smooth = _curvlinops().lanczos_approximate_spectrum_from_iter
    operator, _ = sized(operator)
    runs = [_padded(*run, steps) for run in quadratures(operator, steps, repeats, seed)]
    reach = BUMP_REACH * width
    margin = max(MARGIN, reach / (1 - reach) / 2)
    curves = [smooth((nodes, roots[None]), _edges(runs), points, kappa, margin) for nodes, roots in runs]
    grid, density = curves[0][0], torch.stack([curve for _, curve in curves]).mean(0)
    return grid.numpy(), (density / torch.trapezoid(density, grid)).numpy()


def _curvlinops() -> Any:
    """The module of curvlinops for Lanczos spectra."""
    try:
        from curvlinops.papyan2020traces import spectrum
    except ImportError as error:
        remedy = "pip install 'curvlinops-for-pytorch>=3'"
        raise InputError(f"spectral_density needs curvlinops, which is not installed; {remedy}") from error
    return spectrum


def _bump_width(points: int, steps: int, repeats: int, kappa: float) -> float:
    """Standard deviation of a bump where the grid spans [-1, 1]; knobs that blur or miss the bumps are refused."""
    if repeats < 1 or steps < 2 or not 1 < kappa < math.inf:
        raise InputError(f"repeats={repeats}, steps={steps}, kappa={kappa}: at least 1, at least 2 and above 1 are needed")
    width = 2 / (steps - 1) / math.sqrt(8 * math.log(kappa))
    if width > 0.5 / BUMP_REACH:
        raise InputError(f"steps={steps} with kappa={kappa:g} blurs the whole spectrum; raise steps or kappa")
    needed = math.ceil(1 / width) + 1
    if points < needed:
        raise InputError(f"points={points} is too coarse for the bumps of steps={steps}; use at least {needed}")
    return width


Quadrature = tuple[Tensor, Tensor]
"""(nodes [M], square roots of their weights [M]), float64"""


def quadratures(operator: LinearOperator, steps: int, repeats: int, seed: int) -> list[Quadrature]:
    """One quadrature for each random start vector; of at most `steps` rows one with all eigenvalues."""
    n = operator.shape[0]
    if n <= steps:
        values = torch.from_numpy(np.linalg.eigvalsh(_dense(operator)))
        return [(values, torch.full((n,), n**-0.5, dtype=torch.float64))]
    return [_lanczos(operator, steps, int(s)) for s in np.random.SeedSequence(seed).generate_state(repeats)]


def _lanczos(operator: LinearOperator, steps: int, seed: int) -> Quadrature:
    """One run from a random vector; where the Krylov space ends early, its exact quadrature."""
    products = _Products(operator)
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            nodes, vectors = _curvlinops().fast_lanczos(products, steps)
        except _KrylovEndError:
            shorter = products.done
            torch.manual_seed(seed)
            nodes, vectors = _curvlinops().fast_lanczos(products, shorter)
    return nodes, vectors[0]


class _KrylovEndError(Exception):
    """The last Lanczos step left exactly nothing, which curvlinops divides by."""


class _Products:
    """A SciPy operator with what curvlinops' Lanczos asks of its own: shape, type, device and products."""

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, operator: LinearOperator) -> None:
        self.shape = operator.shape
        self.done = 0
        self._operator = operator

    def __matmul__(self, vector: Tensor) -> Tensor:
        if not torch.isfinite(vector).all():
            raise _KrylovEndError
        self.done += 1
        # A copy: Lanczos goes on in place, and the identity returns the vector itself.
        return torch.tensor(self._operator.matvec(vector.numpy()))


def _padded(nodes: Tensor, roots: Tensor, steps: int) -> Quadrature:
    """The same quadrature with weightless nodes added: curvlinops takes the width of a bump from their number."""
    missing = steps - len(nodes)
    return torch.cat([nodes, nodes[:1].expand(missing)]), torch.cat([roots, roots.new_zeros(missing)])


def _edges(runs: Sequence[Quadrature]) -> tuple[float, float]:
    """The outermost nodes, drawn apart where all coincide."""
    nodes = torch.cat([nodes for nodes, _ in runs])
    low, high = float(nodes.min()), float(nodes.max())
    least = 1e-3 * max(abs(low), abs(high)) or 1e-3
    centre, half = (low + high) / 2, max(high - low, least) / 2
    return centre - half, centre + half


# Ranks


def effective_rank(values: Sequence[float] | np.ndarray | Tensor) -> float:
    """Exponential of the entropy of the normalised spectrum: n equal values give n, a single one gives 1.

    Source: Roy & Vetterli 2007, "The effective rank", definition 1, on singular values; of eigenvalues the magnitude counts. A
        zero spectrum has rank 0.

    Raises:
        InputError: there is no value, or one is not finite.
    """
    magnitudes = _magnitudes(values)
    if not magnitudes.any():
        return 0.0
    shares = magnitudes / magnitudes.sum()
    return math.exp(float(torch.special.entr(shares).sum()))


def stable_rank(values: Sequence[float] | np.ndarray | Tensor) -> float:
    """Sum of squares over the largest square, `‖M‖_F² / ‖M‖₂²` of the matrix M with these eigen- or singular values.

    Source: Rudelson & Vershynin 2007 (arXiv math/0503442). A zero spectrum has rank 0.

    Raises:
        InputError: there is no value, or one is not finite.
    """
    magnitudes = _magnitudes(values)
    return float(magnitudes.square().sum()) if magnitudes.any() else 0.0


def _magnitudes(values: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """Absolute values as a float64 vector, the largest scaled to 1."""
    magnitudes = torch.as_tensor(values, dtype=torch.float64).detach().cpu().reshape(-1).abs()
    if not len(magnitudes) or not torch.isfinite(magnitudes).all():
        raise InputError("a rank needs at least one value, and finite ones")
    return magnitudes / (magnitudes.max() if magnitudes.any() else 1.0)
