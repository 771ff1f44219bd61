"""Trajectories through all tasks: sequential, regularised, replay, with penalties, projections and a monitor along each.

Shapes: S copies, T tasks, P parameters, E evaluations along a trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler

from asrcl.curvature.projection import common_basis, leading_directions, project_out
from asrcl.exceptions import InputError
from asrcl.studies.quadratic.curvature import Kind, Structure
from asrcl.studies.quadratic.monitor import Keeping, Penalty, ShadowMonitor, penalty_of
from asrcl.studies.quadratic.networks import Perceptrons, Samples
from asrcl.studies.quadratic.tasks import Tasks, batches

Mode = Literal["sequential", "regularised", "replay"]


@dataclass(frozen=True)
class Optimisation:
    """How the weights are trained, and how strong a penalty is.

    Attributes:
        optimizer: "adam" or "sgd".
        rate: learning rate.
        momentum: of SGD.
        weight_decay: added to the gradient by the optimiser, outside of the penalty: what training ends in is no minimum of
            the loss alone.
        steps: of each task.
        batch: samples in a step.
        cosine: the learning rate falls to 1e-5 within `steps`, and then rises again, see `renewed`.
        renewed: a new optimiser and schedule for each task. Where they are made once, as in the published setting, Adam
            carries its averages over and the cosine, which is periodic, rises through every second task.
        clip: largest norm of a copy's gradient; 0 for none.
        strength: alpha, the factor before the penalty.
    """

    optimizer: Literal["adam", "sgd"] = "adam"
    rate: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 1e-3
    steps: int = 100
    batch: int = 32
    cosine: bool = True
    renewed: bool = False
    clip: float = 0.0
    strength: float = 1.0

    def make(self, weights: Tensor) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """An optimiser of weights `[S, P]` and its schedule, to be stepped together.

        Raises:
            InputError: an unknown optimiser.
        """
        optimizer: torch.optim.Optimizer
        if self.optimizer == "adam":
            optimizer = torch.optim.Adam([weights], lr=self.rate, weight_decay=self.weight_decay)
        elif self.optimizer == "sgd":
            optimizer = torch.optim.SGD([weights], lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay)
        else:
            raise InputError(f"optimizer={self.optimizer}: choose adam or sgd")
        if self.cosine:
            return optimizer, CosineAnnealingLR(optimizer, T_max=self.steps, eta_min=1e-5)
        return optimizer, ConstantLR(optimizer, factor=1.0)


PUBLISHED = Optimisation()
"""Of the log's Table 1 (January 2026)."""
TUNED = Optimisation(
    "sgd", rate=8e-4, momentum=0.9, steps=300, cosine=False, renewed=True, clip=1.0, strength=0.05
)  # fmt: skip
"""The best of the log's later sweep over strengths and learning rates."""


@dataclass(frozen=True)
class Plan:
    """What holds the old tasks, if anything.

    Attributes:
        mode: "sequential" (nothing), "regularised" (a quadratic penalty), or "replay" (the stored samples join the training set).
        keeping: the approximation whose penalty, or whose directions, are used.
        kind, structure: of the curvature, which the monitor measures in every mode.
        mean: the penalty is a mean over samples instead of the published sum.
        first_order: the models keep the gradients at their anchors.
        flattened: the penalty is the spectral override.
        projected: every step is projected off the leading directions, whatever the mode.
        energy: share of the trace that directions hold.
        rank: or their number at each anchor; above 0 it replaces `energy` for the projection.
    """

    mode: Mode = "sequential"
    keeping: Keeping = "refresh"
    kind: Kind = "fisher"
    structure: Structure = "full"
    mean: bool = False
    first_order: bool = False
    flattened: bool = False
    projected: bool = False
    energy: float = 0.99999
    rank: int = 0

    def penalty(self, monitor: ShadowMonitor) -> Penalty:
        """The penalty at the start of a task."""
        energy = self.energy if self.flattened else None
        return penalty_of(monitor.models[self.keeping], mean=self.mean, first_order=self.first_order, energy=energy)

    def directions(self, monitor: ShadowMonitor) -> list[Tensor]:
        """The leading directions at each anchor, `[S, P, K]`."""
        rank, energy = (self.rank, None) if self.rank else (None, self.energy)
        return [leading_directions(model.matrix, rank=rank, energy=energy)[1] for model in monitor.models[self.keeping]]


@dataclass(frozen=True)
class Trajectory:
    """What was measured along a run.

    Attributes:
        plan: what held the old tasks.
        steps: number of steps taken at each evaluation, `[E]`.
        measures: name -> `[E, S]`: `all`, `past`, `current` (accuracy on test sets of tasks met), `stored` (on stored
            samples), `distance` (from the last anchor), and `accumulate.kappa`, `refresh.gamma` and so on.
        anchors: the weights at the start and after each task, `T + 1` times `[S, P]`.
        stored: the stored samples of all tasks but the last, in the order of the tasks.
        monitor: as it was in the last task; None where its matrices, most of a run's memory, were let go.
    """

    plan: Plan
    stored: Samples
    steps: list[int]
    measures: dict[str, Tensor]
    anchors: list[Tensor]
    monitor: ShadowMonitor | None

    def final(self, name: str) -> Tensor:
        """A measure at the last step, `[S]`."""
        return self.measures[name][-1]

    def average(self, name: str) -> Tensor:
        """A measure's mean over the evaluations, from the second task on, `[S]`."""
        return self.measures[name].mean(0)


def train(
    tasks: Tasks,
    networks: Perceptrons,
    seeds: Sequence[int],
    how: Optimisation,
    plan: Plan,
    *,
    stored_share: float = 0.1,
    checks: int = 10,
) -> Trajectory:
    """Train all copies on one task after the other and measure both approximations on the way.

    Args:
        tasks: the data of all seeds.
        networks: one copy for each seed.
        seeds: draw the order of batches.
        how: optimiser and strength.
        plan: what holds the old tasks.
        stored_share: part of each training set that is stored.
        checks: evaluations in each task after the first.

    Raises:
        InputError: an unknown mode, or a share that stores no sample.
    """
    if plan.mode not in ("sequential", "regularised", "replay"):
        raise InputError(f"mode={plan.mode}: choose sequential, regularised or replay")
    size = tasks.labels.shape[2]
    count = round(stored_share * size)
    if not 0 < count <= size:
        raise InputError(f"stored_share={stored_share}: stores {count} of {size} samples of a task")
    weights = networks.start.clone().requires_grad_()
    monitor = ShadowMonitor(networks, plan.kind, plan.structure)
    anchors, steps = [networks.start.clone()], []
    found: list[dict[str, Tensor]] = []
    optimizer, schedule = how.make(weights)
    for task in range(tasks.count):
        # The training sets are in random order, so that their first samples are a random part.
        own = Samples(tasks.inputs[:, task], tasks.labels[:, task])
        stored = Samples(own.inputs[:, :count], own.labels[:, :count])
        trained = own if monitor.stored is None or plan.mode != "replay" else own.joined(monitor.stored)
        penalty = plan.penalty(monitor) if task and plan.mode == "regularised" else None
        basis = common_basis(torch.cat(plan.directions(monitor), -1)) if task and plan.projected else None
        if how.renewed:
            optimizer, schedule = how.make(weights)
        order = batches(seeds, task, trained.count, how.batch, how.steps)
        for step, rows in enumerate(order, 1):
            _step(networks, weights, trained, rows, how, penalty, basis, optimizer)
            schedule.step()
            if task and step * checks // how.steps > (step - 1) * checks // how.steps:
                steps.append(task * how.steps + step)
                found.append(_measured(tasks, networks, weights.detach(), task, monitor, plan))
        anchors.append(weights.detach().clone())
        if task + 1 < tasks.count:
            monitor.end_task(weights.detach(), stored)
    measures = {name: torch.stack([one[name] for one in found]) for name in found[0]}
    assert monitor.stored is not None
    return Trajectory(plan, monitor.stored, steps, measures, anchors, monitor)


def _step(
    networks: Perceptrons,
    weights: Tensor,
    samples: Samples,
    rows: Tensor,
    how: Optimisation,
    penalty: Penalty | None,
    basis: Tensor | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    copies = torch.arange(len(rows))[:, None]
    loss = networks.losses(weights, Samples(samples.inputs[copies, rows], samples.labels[copies, rows])).mean(1).sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    before = weights.detach().clone()
    if penalty is not None:
        gradient = gradient + how.strength * penalty.gradient(before)
    if how.clip:
        gradient = gradient * (how.clip / gradient.norm(dim=1, keepdim=True)).clamp(max=1)
    weights.grad = gradient
    optimizer.step()
    if basis is not None:
        with torch.no_grad():
            weights.copy_(before + project_out(weights - before, basis))


def _measured(
    tasks: Tasks, networks: Perceptrons, weights: Tensor, task: int, monitor: ShadowMonitor, plan: Plan
) -> dict[str, Tensor]:
    assert monitor.stored is not None
    test = Samples(tasks.test_inputs[:, : task + 1].flatten(1, 2), tasks.test_labels[:, : task + 1].flatten(1))
    right = networks.accuracy(weights, test).unflatten(1, (task + 1, -1)).mean(2)
    found = {
        "all": right.mean(1),
        "past": right[:, :task].mean(1),
        "current": right[:, task],
        "stored": networks.accuracy(weights, monitor.stored).mean(1),
        "distance": (weights - monitor.models["refresh"][0].anchor).norm(dim=1),
    }
    for keeping, measures in monitor.measure(weights, first_order=plan.first_order).items():
        found |= {f"{keeping}.{name}": value for name, value in measures.items()}
    return found
