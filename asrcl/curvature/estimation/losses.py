"""The true Fisher information of any loss function that is written with torch's losses.

While a `LossWatch` is open (`with watch: loss = loss_fn(model, batch)`), a call of a known loss returns the value it always
returns, but its gradient is that of labels drawn from the model (`fisher="mc"`) or one column of the exact Fisher information
(`fisher="exact"`). What the user does with the value (weights, masks, sums over several losses) needs no change:

    value = Σ_i r_i l_i             the call reduces its elementwise losses l_i (a mean: r_i = 1/n)
    loss  = f(value)                the user's own arithmetic
    v_i   = r_i ∂loss/∂value        arrives in the backward pass; the Hessian of the loss is Σ v_i ∂²l_i

so that a pass returns `√v_i` times a gradient of l_i (see `sampling`), never `v_i` times one. A class weight
belongs to r_i, at the class of the data's label: with class weights no likelihood remains, and drawn labels ignore them.
Labels that depend on the model get no gradient, except in `mse_loss`, where both sides count alike.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from asrcl.curvature.estimation.sampling import Alignments, Bernoulli, Categorical, Gaussian, Likelihood, widened
from asrcl.exceptions import InputError

FISHERS = ("empirical", "mc", "exact")
LOSSES = ("binary_cross_entropy_with_logits", "cross_entropy", "ctc_loss", "kl_div", "mse_loss", "nll_loss")
# No labels can be drawn for these: they are no log-likelihoods of the outputs, or of another kind than we know.
UNSUPPORTED = (
    "binary_cross_entropy",
    "cosine_embedding_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "l1_loss",
    "margin_ranking_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
)
_REMEDY = "write the loss with those, or draw labels by asrcl.curvature.estimation.sampling in loss_fn and use fisher='empirical'"


@dataclass(frozen=True)
class _Term:
    """A call of a loss: its outputs, what it assumes of their labels, and how v follows from the gradient of its value."""

    outputs: Tensor
    likelihood: Likelihood
    weigh: Callable[[Tensor], Tensor]


@dataclass
class _Pass:
    """The backward pass under way in a batch: its number, and with `fisher="exact"` which column of which call."""

    draw: int | None = None
    call: int = 0
    column: int | None = None


class _Call:
    """A call with its place in the batch, which answers the backward passes."""

    def __init__(self, name: str, term: _Term, now: _Pass, seeds: tuple[int, int], index: int) -> None:
        self.columns = partial(term.likelihood.columns, term.outputs)
        self._name, self._term, self._now = name, term, now
        self._seeds, self._index = seeds, index
        self._checked = False

    def gradient(self, z: Tensor, arriving: Tensor) -> Tensor:
        """The pseudo-gradient in the shape and type of `z`, given the gradient of the call's value."""
        draw, column = self._now.draw, self._now.column
        if draw is None:
            raise RuntimeError("a backward pass through a watched loss belongs inside the loop over LossWatch.draws()")
        if column is not None and self._now.call != self._index:
            return torch.zeros_like(z)
        likelihood, v = self._term.likelihood, self._term.weigh(widened(arriving))
        if not self._checked:
            self._check(z, v)
        generator = torch.Generator(z.device).manual_seed(_seed(*self._seeds, draw, self._index))
        if column is None:
            return likelihood.sample(z, v, generator).to(z.dtype)
        return likelihood.column(z, v, column, generator).to(z.dtype)

    def _check(self, z: Tensor, v: Tensor) -> None:
        if bool((v < 0).any()):
            raise InputError(f"{self._name} has a weight below 0 in the loss: what is subtracted has no Fisher information")
        try:
            self._term.likelihood.check(z, v)
        except InputError as error:
            raise InputError(f"{self._name}: {error}") from error
        self._checked = True


class _PseudoGradient(torch.autograd.Function):
    """Passes a value on, and answers its gradient by `_Call.gradient`."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Tensor, call: _Call) -> Tensor:
        ctx.save_for_backward(z)
        ctx.call = call
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, arriving: Tensor) -> tuple[Tensor, None, None]:
        return ctx.call.gradient(*ctx.saved_tensors, arriving), None, None


class LossWatch(TorchFunctionMode):
    """Makes the gradients of a loss those of a Fisher information.

        with watch:
            loss = loss_fn(model, batch)
        for weight in watch.draws():
            (loss * items).backward(retain_graph=True)      # add weight * g gᵀ

    The information is that of the batch, items times the mean loss. Calls that no gradient can reach (constants, no_grad) are
    left alone. The calls of a batch may be many: their drawn labels are independent, their columns come one after another.

    Args:
        fisher: "empirical", the gradients of the data's labels; "mc", of labels drawn from the model; "exact", all columns.
        samples: draws per batch with "mc".
        seed: of the draws, which depend on it, the batch's number, the draw and the place of the call alone.
        parts: losses to keep (of `LOSSES`); no gradient passes any other known loss.
        label_smoothing: keep the argument of this name of `cross_entropy`, which is else taken as 0: smoothing is a regulariser,
            not part of the likelihood. With "mc" and "exact" it changes the value alone, no gradient. Smoothing by `kl_div` stays
            in the value, and with "empirical" in the gradient.

    Attributes:
        seen: names of the known losses met so far in the graph of a loss.

    Raises:
        InputError: an unknown option; while open, a loss that has no Fisher information of the kind asked.
    """

    def __init__(
        self,
        fisher: str,
        *,
        samples: int = 1,
        seed: int = 0,
        parts: Sequence[str] | None = None,
        label_smoothing: bool = False,
    ) -> None:
        super().__init__()
        _check_options(fisher, samples, parts)
        self.seen: set[str] = set()
        self._fisher, self._samples, self._seed = fisher, samples, seed
        self._parts = None if parts is None else frozenset(parts)
        self._smooth = label_smoothing
        self.start_batch(0)

    def start_batch(self, number: int) -> None:
        """Forget the calls of the previous batch; `number` is what the draws of this one depend on."""
        self._number = number
        self._met: set[str] = set()
        self._now = _Pass()
        self._calls: list[_Call] = []
        self._nodes: list[Any] = []

    def count(self) -> int:
        """How many backward passes `draws` asks for."""
        if self._fisher == "empirical":
            return 1
        return self._samples if self._fisher == "mc" else sum(call.columns() for call in self._calls)

    def draws(self) -> Iterator[float]:
        """The weights of the backward passes to be made, one pass for each, after the forward pass and outside the mode.

        Raises:
            InputError: no known loss, or not a wanted one, was met.
        """
        self._check_met()
        return self._passes()

    def check(self, loss: Tensor) -> None:
        """Refuse a loss part of which reaches the model past the calls that count: its gradient would be added unchanged.

        Raises:
            InputError: there is such a path in the graph of the loss, or what `draws` raises.
        """
        self._check_met()
        if self._fisher == "empirical" and self._parts is None:
            return
        waiting, visited = [loss.grad_fn], set(self._nodes)
        while waiting:
            node = waiting.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            if not node.next_functions:
                past = f"part of the loss reaches the model past its calls of {', '.join(sorted(self._met))}"
                raise InputError(f"{past} (a term written by hand?); leave it out, or write it with {', '.join(LOSSES)}")
            waiting.extend(before for before, _ in node.next_functions)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer a call of a known loss; let everything else pass."""
        kwargs = kwargs or {}
        name = _NAMES.get(func)
        if name is None or not _differentiable([*args, *kwargs.values()]):
            return func(*args, **kwargs)
        self.seen.add(name)
        self._met.add(name)
        wanted = self._parts is None or name in self._parts
        if not wanted:
            return func(*args, **kwargs).detach()
        if func is F.cross_entropy and not self._smooth:
            args, kwargs = _unsmoothed(args, kwargs)
        result = func(*args, **kwargs) if self._fisher == "empirical" else self._replaced(name, func, args, kwargs)
        self._nodes.append(result.grad_fn)
        return result

    def _replaced(self, name: str, func: Callable[..., Tensor], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        if name not in LOSSES:
            raise InputError(f"{name} has no fisher={self._fisher!r}, only {', '.join(LOSSES)}: {_REMEDY}")
        with torch.no_grad():
            value = func(*args, **kwargs)
        term = _TERMS[func](*args, **kwargs)
        call = _Call(name, term, self._now, (self._seed, self._number), len(self._calls))
        if self._fisher == "exact":
            call.columns()
        self._calls.append(call)
        return _PseudoGradient.apply(term.outputs, value, call)

    def _check_met(self) -> None:
        missing = sorted((self._parts or frozenset()) - self._met)
        if missing:
            found = ", ".join(sorted(self._met)) or "none of the known losses"
            raise InputError(f"parts asks for {', '.join(missing)}, but the loss called {found}; mend parts or loss_fn")
        if self._fisher != "empirical" and not self._calls:
            raise InputError(f"fisher={self._fisher!r} met none of the losses {', '.join(LOSSES)}: {_REMEDY}")

    def _passes(self) -> Iterator[float]:
        now = self._now
        if self._fisher == "empirical":
            yield 1.0
        elif self._fisher == "mc":
            for draw in range(self._samples):
                now.draw = draw
                yield 1 / self._samples
        else:
            columns = [(index, column) for index, call in enumerate(self._calls) for column in range(call.columns())]
            for draw, (index, column) in enumerate(columns):
                now.draw, now.call, now.column = draw, index, column
                yield 1.0
        now.draw = now.column = None


def _check_options(fisher: str, samples: int, parts: Sequence[str] | None) -> None:
    if fisher not in FISHERS:
        raise InputError(f"fisher={fisher!r} does not exist; there are {', '.join(FISHERS)}")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1 or (samples > 1 and fisher != "mc"):
        raise InputError(f"samples={samples} with fisher={fisher!r}: it must be at least 1, and 1 unless fisher='mc'")
    unknown = sorted(set(parts or ()) - set(LOSSES))
    if unknown or (parts is not None and not parts):
        wrong = ", ".join(map(repr, unknown)) or "nothing"
        raise InputError(f"parts names {wrong}; it can name {', '.join(LOSSES)}")


def _differentiable(arguments: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def _unsmoothed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of `cross_entropy` without label smoothing."""
    bound = inspect.signature(F.cross_entropy).bind(*args, **kwargs)
    bound.arguments["label_smoothing"] = 0.0
    return bound.args, bound.kwargs


def _seed(*numbers: int) -> int:
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str | int) -> str:
    """The name of a reduction, also from torch's deprecated flags and its internal numbers."""
    if size_average is not None or reduce is not None:
        reduction = 0 if reduce is False else 2 if size_average is False else 1
    return ("none", "mean", "sum")[reduction] if isinstance(reduction, int) else reduction


# One function per loss, with torch's own signature so that Python sorts out how the arguments came.


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    normalised: bool = False,
) -> _Term:
    """Logits `[C]` or `[N, C, ...]`; a label per position, or a probability of every class."""
    axis = min(1, input.dim() - 1)
    weight_C = widened(input.new_ones(input.shape[axis]) if weight is None else weight)
    if target.is_floating_point():
        share_P = widened(target).movedim(axis, -1) @ weight_C
        total: Tensor | int = share_P.numel()
    else:
        kept_P = target != ignore_index
        share_P = weight_C[target.where(kept_P, 0)] * kept_P
        total = share_P.sum()
    if _reduction(size_average, reduce, reduction) == "mean":
        share_P = share_P / total
    return _Term(input, Categorical(axis, normalised), partial(torch.mul, share_P))


def _nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> _Term:
    """Log-probabilities in the place of logits."""
    return _cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, normalised=True)


def _kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str | int = "mean",
    log_target: bool = False,
) -> _Term:
    """Log-probabilities `[..., C]`, as in cross entropy with soft labels (label smoothing, distillation).

    A position is `-Σ_c u_c log p_c` plus a constant, with `u_c` the target times the weight it arrives with; its Hessian is
    that of the cross entropy times `Σ_c u_c`, which holds for masked and unnormalised targets too.
    """
    how = _reduction(size_average, reduce, reduction)
    if input.shape != target.shape or input.dim() == 0:
        raise InputError(f"kl_div: input {list(input.shape)} and target {list(target.shape)} must have one shape, classes last")
    q_PC = widened(target).exp() if log_target else widened(target)
    parts = {"mean": input.numel(), "batchmean": len(input)}.get(how, 1)
    return _Term(input, Categorical(input.dim() - 1, normalised=True), lambda g: (g * q_PC).sum(-1) / parts)


def _torch_kl_div(input: Tensor, target: Tensor, reduction: int = 1, *, log_target: bool = False) -> _Term:
    return _kl_div(input, target, reduction=reduction, log_target=log_target)


def _mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> _Term:
    """The difference is the output: both sides, whichever the model made, and their broadcasting then come out right."""
    difference = input - target
    share = torch.ones_like(widened(difference)) if weight is None else widened(weight)
    if _reduction(size_average, reduce, reduction) == "mean":
        share = share / share.sum()
    return _Term(difference, Gaussian(), partial(torch.mul, share))


def _binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str | int = "mean",
    pos_weight: Tensor | None = None,
) -> _Term:
    if pos_weight is not None:
        raise InputError("binary_cross_entropy_with_logits with pos_weight is no likelihood; leave pos_weight out")
    share = torch.ones_like(widened(input))
    if weight is not None:
        share = share * widened(weight)
    if _reduction(size_average, reduce, reduction) == "mean":
        share = share / share.numel()
    return _Term(input, Bernoulli(), partial(torch.mul, share))


def _torch_binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> _Term:
    return _binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)


def _ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str | int = "mean",
    zero_infinity: bool = False,
) -> _Term:
    """Log-probabilities `[T, N, C]` or `[T, C]`; an infinite loss that is zeroed does not count."""
    share_N = torch.ones_like(widened(log_probs[0, ..., 0])).reshape(-1)
    if _reduction(None, None, reduction) == "mean":
        share_N = share_N / _per_utterance(target_lengths, share_N).clamp_min(1) / len(share_N)
    if zero_infinity:
        losses_N = F.ctc_loss(log_probs.detach(), targets, input_lengths, target_lengths, blank, reduction="none")
        share_N = share_N * losses_N.reshape(-1).isfinite()
    outputs_TNC = log_probs if log_probs.dim() == 3 else log_probs[:, None]
    lengths_N = _per_utterance(input_lengths, share_N)
    return _Term(outputs_TNC, Alignments(lengths_N, blank), partial(torch.mul, share_N))


def _per_utterance(lengths: Any, like_N: Tensor) -> Tensor:
    """Lengths, given in whatever form torch takes, as `[N]` integers."""
    return torch.as_tensor(lengths, device=like_N.device).reshape(-1).long()


_TERMS: dict[Callable[..., Any], Callable[..., _Term]] = {
    F.binary_cross_entropy_with_logits: _binary_cross_entropy_with_logits,
    F.cross_entropy: _cross_entropy,
    F.ctc_loss: _ctc_loss,
    F.kl_div: _kl_div,
    F.mse_loss: _mse_loss,
    F.nll_loss: _nll_loss,
    torch.binary_cross_entropy_with_logits: _torch_binary_cross_entropy_with_logits,
    torch.ctc_loss: _ctc_loss,
    torch.kl_div: _torch_kl_div,
}
_KNOWN = [(home, name) for home in (F, torch) for name in (*LOSSES, *UNSUPPORTED) if hasattr(home, name)]
_NAMES: dict[Any, str] = {getattr(home, name): name for home, name in _KNOWN}
