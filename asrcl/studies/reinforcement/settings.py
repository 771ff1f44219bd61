"""How an agent learns, and what may keep it able to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from asrcl.exceptions import InputError


@dataclass(frozen=True)
class Learning:
    """Settings of proximal policy optimisation (PPO, Schulman et al. 2017, arXiv 1707.06347) on a sequence of tasks.

    Attributes:
        tasks: how many.
        steps: of the environments together in a task.
        late: the last part of a task, over whose episodes returns are averaged.
        episode: steps after which an episode is cut off; None is the world's own.
        environments: stepped side by side, all with the physics of the task.
        rollout: steps of each environment between two updates.
        batch: steps of a mini-batch.
        epochs: passes over a rollout.
        hidden: widths of the hidden layers, of the policy's network and of the value's.
        rate: learning rate of Adam.
        betas: of Adam.
        discount: of rewards, gamma.
        trace: of generalised advantage estimation, lambda.
        entropy, value: weights of the policy's entropy and of the value's squared error in the loss.
        clip: of the ratio of probabilities.
        gradient_norm: to which gradients are clipped.
    """

    tasks: int = 12
    steps: int = 8192
    late: float = 0.25
    episode: int | None = None
    environments: int = 8
    rollout: int = 64
    batch: int = 128
    epochs: int = 10
    hidden: tuple[int, ...] = (32, 32)
    rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.999)
    discount: float = 0.98
    trace: float = 0.95
    entropy: float = 0.0
    value: float = 0.5
    clip: float = 0.2
    gradient_norm: float = 0.5


@dataclass(frozen=True)
class Regulariser:
    """What happens besides PPO.

    Attributes:
        decay: of all parameters, an L2 penalty whose gradient `decay * w` goes through Adam with the loss's, as in the code of
            arXiv 2509.22335; what Adam makes of it depends on the size of the loss's gradients.
        er_rate: learning rate of a step on the mean effective rank of the hidden layers, once in every epoch.
        fresh: whether every task is learned by an agent of its own.
    """

    decay: float = 0.0
    er_rate: float = 0.0
    fresh: bool = False


REGULARISERS: Final[dict[str, Regulariser]] = {
    "bp": Regulariser(),
    "l2": Regulariser(decay=1e-5),
    "er": Regulariser(er_rate=1e-2),
    "l2_er": Regulariser(decay=1e-5, er_rate=1e-2),
    "reset": Regulariser(fresh=True),
}
"""Name -> regulariser; names and labels are those of `asrcl.studies.plasticity.regularisers`."""


def regulariser(name: str, options: Mapping[str, Any]) -> Regulariser:
    """A regulariser by name with some of its options.

    Raises:
        InputError: an unknown name or option; the message lists what there is.
    """
    if name not in REGULARISERS:
        raise InputError(f"regularisers: {name} is unknown; choose from {', '.join(REGULARISERS)}")
    known = [item.name for item in fields(Regulariser)]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"options.{name}: {unknown[0]} is unknown; it has {', '.join(known)}")
    return Regulariser(**{**vars(REGULARISERS[name]), **options})
