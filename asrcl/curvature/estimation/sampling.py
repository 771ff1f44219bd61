"""Labels drawn from a model's own predictions, and the gradients whose outer products are its Fisher information.

Let `l(z, y)` be the negative log-likelihood of a label `y` given the outputs `z` of a model. Its Fisher information is

    F(z) = E[g gᵀ],  g = ∂l(z, y)/∂z,  y drawn from the model at z

(Kunstner et al. 2019, arXiv 1905.12558, eq. 3 and section 3; the labels of the data give the empirical Fisher, which is
something else). A loss `v l` has the Hessian `v ∂²l`, hence the information `v F`, so that every gradient here carries the factor
`√v`. Two ways to get `v F`:

    sample(z, v, generator)           a random gradient s with E[s sᵀ] = v F and E[s] = 0
    column(z, v, index, generator)    one of `columns(z)` gradients c with Σ c cᵀ = v F at every position

A position is what has a label of its own: a row of logits, an element of a regression, an utterance under CTC. `column` gives
each position an independent random sign, so that products across positions, which appear where a layer mixes positions, vanish
on average (as in Hutchinson's trace estimator); within a position the sign drops out.

Legend: T frames, N utterances, C classes, S labels, P any axes of positions. All is computed in single precision at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from asrcl.exceptions import InputError

# How far from 1 the probabilities of a position may sum; logarithms in bfloat16 stay within it.
SUM_TOLERANCE = 0.1


def widened(tensor: Tensor) -> Tensor:
    """The values, detached, in single precision at least."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def sample_categorical(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Classes `[...]` drawn from the softmax of logits `[..., C]`.

    The largest of the logits plus independent Gumbel noise is such a draw (Maddison et al. 2014, arXiv 1411.0030, section 2):
    no normalisation, no synchronisation with the device, and a logit of -inf is never drawn.
    """
    scores = widened(logits)
    noise = torch.empty_like(scores).exponential_(generator=generator).log_()
    return (scores - noise).argmax(-1)


def sample_ctc_labels(
    log_probs: Tensor, lengths: Tensor, blank: int = 0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Label sequences drawn from the distribution that CTC defines.

    A frame path is drawn, frame by frame; its repeats are merged, then its blanks dropped (Graves et al. 2006, section 3.1 and
    eq. 3: a label sequence has the summed probability of all paths that collapse to it).

    Args:
        log_probs: `[T, N, C]`, logarithms of the frames' class probabilities.
        lengths: `[N]`, frames of each utterance.
        blank: class of the blank.
        generator: on the device of `log_probs`.

    Returns:
        The labels `[N, S]`, padded with blanks to the longest sequence (S may be 0), and their numbers `[N]`.
    """
    path_NT = sample_categorical(log_probs, generator).mT
    frames_T = torch.arange(path_NT.shape[1], device=path_NT.device)
    keep_NT = (path_NT != blank) & (frames_T < lengths.to(path_NT.device)[:, None])
    keep_NT[:, 1:] &= path_NT[:, 1:] != path_NT[:, :-1]
    counts_N = keep_NT.sum(1)
    order_NT = torch.argsort((~keep_NT).byte(), dim=1, stable=True)
    labels_NT = path_NT.gather(1, order_NT).where(frames_T < counts_N[:, None], blank)
    return labels_NT[:, : int(counts_N.max())], counts_N


class Likelihood(Protocol):
    """What a loss assumes about its labels; `v`, not negative, broadcasts against the positions of the outputs `z`."""

    def columns(self, z: Tensor) -> int:
        """How many columns make up the exact Fisher information."""
        ...

    def sample(self, z: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        """`√v` times the gradient at labels drawn from the model, in the shape of `z`."""
        ...

    def column(self, z: Tensor, v: Tensor, index: int, generator: torch.Generator) -> Tensor:
        """One column of the square root of `v F`, in the shape of `z`, with a random sign per position."""
        ...

    def check(self, z: Tensor, v: Tensor) -> None:
        """Raise InputError where `z` is not what the likelihood needs."""
        ...


@dataclass(frozen=True)
class Categorical:
    """One of C classes per position: cross entropy of logits, or negative log-likelihood of log-probabilities.

    With `p` the probabilities and `e_c` the unit vector of class c, the gradient with respect to logits is `p - e_c`, and
    `F = diag(p) - p pᵀ = Σ_c p_c (p - e_c)(p - e_c)ᵀ`. With respect to log-probabilities the gradient is `-e_c`, which the
    log-softmax in front of it turns into `p - e_c`.

    Attributes:
        axis: where the classes are in `z`.
        normalised: `z` are log-probabilities.
    """

    axis: int
    normalised: bool = False

    def columns(self, z: Tensor) -> int:
        """Return one column per class."""
        return z.shape[self.axis]

    def sample(self, z: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        """`√v (p - e_c)` or `-√v e_c`, c drawn from the softmax; `v` has the shape of `z` without the classes."""
        z_PC = widened(z).movedim(self.axis, -1)
        classes_P1 = sample_categorical(z_PC, generator)[..., None]
        g_PC = self._base(z_PC).scatter_add_(-1, classes_P1, -torch.ones_like(z_PC[..., :1]))
        return _scaled(g_PC, v[..., None].sqrt()).movedim(-1, self.axis)

    def column(self, z: Tensor, v: Tensor, index: int, generator: torch.Generator) -> Tensor:
        """`±√(v p_c) (p - e_c)` or `±√(v p_c) e_c` for the class c = index."""
        z_PC = widened(z).movedim(self.axis, -1)
        root_P = _scaled(z_PC.softmax(-1)[..., index], v).sqrt() * _signs(v, generator)
        g_PC = self._base(z_PC)
        g_PC[..., index] -= 1
        return _scaled(g_PC, root_P[..., None]).movedim(-1, self.axis)

    def check(self, z: Tensor, v: Tensor) -> None:
        """Log-probabilities must be normalised wherever they count."""
        if not self.normalised:
            return
        off = (widened(z).logsumexp(self.axis).exp() - 1).abs() > SUM_TOLERANCE
        if bool((off & (v > 0)).any()):
            raise InputError(f"no log-probabilities: exp(input) must sum to 1 over axis {self.axis}; use log_softmax there")

    def _base(self, z_PC: Tensor) -> Tensor:
        return torch.zeros_like(z_PC) if self.normalised else z_PC.softmax(-1)


class _Elementwise:
    """Every element has a label of its own; a column per index of the last axis (a single one where that axis is all)."""

    def columns(self, z: Tensor) -> int:
        """The size of the last axis; 1 where there is no other axis."""
        return z.shape[-1] if z.dim() > 1 else 1

    def column(self, z: Tensor, v: Tensor, index: int, generator: torch.Generator) -> Tensor:
        """`±√(v F)` on one index of the last axis, zero elsewhere."""
        column = torch.zeros_like(widened(z))
        here = (..., index) if z.dim() > 1 else ...
        information = _scaled(self._information(widened(z)), v)[here]
        column[here] = information.sqrt() * _signs(information, generator)
        return column

    def check(self, z: Tensor, v: Tensor) -> None:
        """Accept any output."""

    def _information(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class Gaussian(_Elementwise):
    """Squared error `v (z - y)²`: a normal distribution of variance `1 / 2v`, with `F = 2v`."""

    def sample(self, z: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        """`√(2v) ε` with ε standard normal."""
        return torch.empty_like(widened(z)).normal_(generator=generator) * (2 * v).sqrt()

    def _information(self, z: Tensor) -> Tensor:
        return torch.full_like(z, 2.0)


class Bernoulli(_Elementwise):
    """Yes or no per element, from logits: with p the sigmoid, the gradient is `p - y` and `F = p (1 - p)`."""

    def sample(self, z: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        """`√v (p - y)`, y drawn with probability p."""
        p = widened(z).sigmoid()
        labels = torch.empty_like(p).uniform_(generator=generator) < p
        return _scaled(p - labels.to(p.dtype), v.sqrt())

    def _information(self, z: Tensor) -> Tensor:
        return z.sigmoid() * (-z).sigmoid()


@dataclass(frozen=True)
class Alignments:
    """Label sequences under CTC, from log-probabilities `[T, N, C]`; there are too many of them for `column`.

    The gradient that torch returns for CTC is that with respect to the logits before the log-softmax, `p - posterior`, which the
    log-softmax leaves unchanged because it sums to zero over the classes.

    Attributes:
        lengths: `[N]`, frames of each utterance.
        blank: class of the blank.
    """

    lengths: Tensor
    blank: int

    def columns(self, z: Tensor) -> int:
        """Refuse: this loss has no such columns."""
        raise InputError("fisher='exact' of ctc_loss would enumerate all label sequences; use fisher='mc'")

    def sample(self, z: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
        """`√v` times the gradient of the CTC loss at drawn label sequences; `v` is `[N]`."""
        labels_NS, counts_N = sample_ctc_labels(z, self.lengths, self.blank, generator)
        with torch.enable_grad():
            leaf_TNC = widened(z).requires_grad_()
            losses_N = F.ctc_loss(leaf_TNC, labels_NS, self.lengths, counts_N, self.blank, reduction="none")
            (g_TNC,) = torch.autograd.grad(losses_N.sum(), leaf_TNC)
        return _scaled(g_TNC, v.sqrt()[:, None])

    def column(self, z: Tensor, v: Tensor, index: int, generator: torch.Generator) -> Tensor:
        """Refuse: this loss has no such columns."""
        raise InputError("fisher='exact' of ctc_loss would enumerate all label sequences; use fisher='mc'")

    def check(self, z: Tensor, v: Tensor) -> None:
        """Frames of counted utterances must be normalised up to their lengths."""
        frames_T1 = torch.arange(z.shape[0], device=z.device)[:, None]
        counted_TN = (frames_T1 < self.lengths.to(z.device)) & (v > 0)
        Categorical(-1, normalised=True).check(z, counted_TN.to(v.dtype))


def _scaled(values: Tensor, factor: Tensor) -> Tensor:
    """The product; zero where the factor is, whatever garbage a padded position holds."""
    return torch.where(factor != 0, values * factor, 0)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal probability."""
    return torch.empty_like(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
