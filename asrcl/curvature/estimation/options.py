"""The options of an estimate."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from asrcl.curvature.estimation.gram import PRODUCTS, Products
from asrcl.curvature.estimation.losses import LossWatch
from asrcl.exceptions import InputError

Fisher = Literal["empirical", "mc", "exact"]
Structure = Literal["kron", "ekfac", "diagonal", "dense"]
STRUCTURES = ("kron", "ekfac", "diagonal", "dense")
NOT_RECORDED = ("include", "exclude", "max_items", "tolerance", "offload")
"""Options that are not stored with a curvature: what came of them is (the parameters covered, the items, "converged")."""


@dataclass(frozen=True)
class EstimateOptions:
    """The options of `asrcl.curvature.estimate` that can be written down, all with their defaults.

    Attributes:
        fisher: "empirical", gradients at the given labels; "mc", labels drawn from the model (cross entropy, CTC, MSE, binary
            cross entropy, as `estimation.losses` finds them in the loss); "exact", the generalised Gauss-Newton matrix (not for
            CTC; one backward pass per class). Of an item with several labels, products across its positions vanish on average
            only: they are in `dense`, `diagonal`, biases and EK-FAC, not in Kronecker factors of position-wise models.
        structure: "kron", a Kronecker block for every map and table and a small exact block for the rest; "ekfac", the same with
            eigenvalues measured in a second pass over the batches; "diagonal", squared gradients of every item; "dense", one
            exact matrix per parameter, for small models.
        layers: "all", or "linear" for the weights of linear maps alone.
        weight_sharing: "expand" or "reduce", see `asrcl.curvature.estimate`.
        stride: use one position in so many, with an offset that rotates over batches; G is scaled so that its mean over offsets
            is that of all positions.
        samples: draws per batch with "mc".
        seed: of the draws.
        parts: loss functions to keep, such as ("ctc_loss",); other losses then contribute nothing.
        label_smoothing: keep label smoothing in `cross_entropy`; it is left out otherwise.
        products: "float32"; "tf32" (GPU) or "bfloat16" multiply faster and less exactly. Sums are in single precision at least.
        largest_factor: of a factor larger than this only the diagonal is kept (the outputs of a large vocabulary).
        include: glob patterns of parameter names to cover.
        exclude: glob patterns of parameter names to leave out.
        max_items: stop after so many items.
        tolerance: stop when the diagonals of all sums have changed by less than this, relatively, over the last fifth of the
            batches.
        offload: keep the sums in pinned memory of the CPU while the model is on a GPU.
    """

    fisher: Fisher = "empirical"
    structure: Structure = "kron"
    layers: Literal["all", "linear"] = "all"
    weight_sharing: Literal["expand", "reduce"] = "expand"
    stride: int = 1
    samples: int = 1
    seed: int = 0
    parts: tuple[str, ...] | None = None
    label_smoothing: bool = False
    products: Products = "float32"
    largest_factor: int = 8192
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    max_items: int | None = None
    tolerance: float | None = None
    offload: bool = False

    def changed(self, options: Mapping[str, Any]) -> EstimateOptions:
        """The same with some options changed, by name.

        Raises:
            InputError: an option does not exist.
        """
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise InputError(f"estimate has no option {name}" + (f"; did you mean {near[0]}?" if near else ""))
        lists = {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        return replace(self, **{**options, **lists})

    def check(self) -> None:
        """Refuse values that do not exist.

        Raises:
            InputError: names the option.
        """
        for name, known in (
            ("structure", STRUCTURES),
            ("layers", ("all", "linear")),
            ("weight_sharing", ("expand", "reduce")),
            ("products", PRODUCTS),
        ):
            if (value := getattr(self, name)) not in known:
                raise InputError(f"{name}={value!r} does not exist; there are {', '.join(known)}")
        if self.stride < 1 or self.largest_factor < 1:
            raise InputError(f"stride={self.stride}, largest_factor={self.largest_factor}: both must be at least 1")
        if self.weight_sharing == "reduce" and self.stride > 1:
            raise InputError("stride picks positions and weight_sharing='reduce' has none left; leave stride at 1")
        if self.max_items is not None and self.max_items < 1:
            raise InputError(f"max_items must be at least 1, not {self.max_items}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError(f"tolerance must be above 0, not {self.tolerance}")

    def record(self) -> dict[str, Any]:
        """What changes the numbers, for the metadata of a curvature and for checkpoints."""
        chosen = {name: value for name, value in asdict(self).items() if name not in NOT_RECORDED}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}

    def empirical(self) -> LossWatch:
        """What watches the loss with the labels of the data."""
        return LossWatch("empirical", parts=self.parts, label_smoothing=self.label_smoothing)

    def losses(self) -> LossWatch:
        """What watches the loss."""
        return LossWatch(
            self.fisher, samples=self.samples, seed=self.seed, parts=self.parts, label_smoothing=self.label_smoothing
        )
