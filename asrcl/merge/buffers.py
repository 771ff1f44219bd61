"""Running statistics of normalisation layers, which are not weights: the statistics of two data sets do not average.

Of data that come with weight 1 − w from one set and w from the other, the mean is `(1−w) m₁ + w m₂`, but the variance is
`(1−w) v₁ + w v₂ + w (1−w) (m₁ − m₂)²` (law of total variance).
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.tensors import moved

Statistics = Literal["pool", "old", "new"]
MEAN, VARIANCE = "running_mean", "running_var"


def is_statistic(name: str) -> bool:
    """Whether a tensor holds running means or variances."""
    return name.rpartition(".")[2] in (MEAN, VARIANCE)


def mean_of(name: str) -> str | None:
    """The name of the means that belong to variances; None for other tensors."""
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}{MEAN}" if last == VARIANCE else None


def check_statistics(rule: str) -> None:
    """Refuse a rule that does not exist.

    Raises:
        InputError: lists those that do.
    """
    if rule not in get_args(Statistics):
        raise InputError(f"statistics={rule!r} does not exist; there are {', '.join(get_args(Statistics))}")


def pooled(start: Tensor, models: list[Tensor], weight: float, means: tuple[Tensor, list[Tensor]] | None = None) -> Tensor:
    """Statistics of pooled data, of which all models together saw the share `weight`.

    Args:
        start: of the old model.
        models: of the new models.
        weight: from 0 to 1.
        means: of all models, where the tensors are variances.
    """
    share = min(max(weight, 0.0), 1.0) / len(models)
    step = sum(share * (model.double() - start.double()) for model in models)
    if means is not None:
        first, others = means[0].double(), [mean.double() - means[0].double() for mean in means[1]]
        shift = sum(share * other for other in others)
        step = step + sum(share * other.square() for other in others) - shift * shift + 0 * first
    assert isinstance(step, Tensor)
    return moved(start, step)
