"""The loss around the ends of tasks: Hessians, how curvature drifts, and how far a quadratic model can be trusted.

Shapes: S copies, T tasks, N samples, P parameters, D distances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from asrcl.curvature.projection import common_basis, leading_directions, project_out
from asrcl.studies.quadratic.curvature import Kind, SecondOrder, hessian, second_order
from asrcl.studies.quadratic.networks import Perceptrons, Samples
from asrcl.studies.quadratic.training import Trajectory

RANK_TOLERANCE = 1e-6
"""Eigenvalues above this part of the largest count (q2reg)."""
OVERLAP_DIRECTIONS = 50
"""k of the subspace overlap (q2reg)."""


def sharpness(networks: Perceptrons, weights: Tensor, samples: Samples) -> dict[str, Tensor]:
    """Of the Hessian of the samples' mean loss: `sharpness` (largest eigenvalue), `trace` and numerical `rank`, each `[S]`."""
    matrix = hessian(networks, weights, samples, networks.derivatives(weights, samples)) / samples.count
    values = torch.linalg.eigvalsh(matrix)
    largest = values[:, -1]
    rank = (values.abs() > RANK_TOLERANCE * largest[:, None]).sum(1).double()
    return {"sharpness": largest, "trace": values.sum(1), "rank": rank}


def drift(old: Tensor, new: Tensor) -> dict[str, Tensor]:
    """How the curvature `[S, P, P]` of the same samples changed between two anchors, each `[S]`.

    `trace_ratio` is new over old; `overlap` is `‖V_oldᵀ V_new‖_F² / k` of the k leading eigenvectors, 1 for the same space.
    Where the matrices have fewer than 50 directions (20 samples of two classes have a Fisher information of rank 20), k is their
    number: directions of eigenvalue zero are arbitrary.
    """
    values, before = leading_directions(old, rank=OVERLAP_DIRECTIONS)
    after = leading_directions(new, rank=OVERLAP_DIRECTIONS)[1]
    real = (values > 1e-10 * values[:, :1]).to(old)
    shared = (before.mT @ after * real[:, :, None] * real[:, None]).square().sum((1, 2)) / real.sum(1)
    return {"trace_ratio": _trace(new) / _trace(old), "overlap": shared}


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def ends_of_tasks(networks: Perceptrons, training: list[Samples], run: Trajectory) -> dict[str, Tensor]:
    """`sharpness` on each task's training set at its end, `[T, S]`, and `drift` of the stored samples' curvature, `[T - 2, S]`.

    Args:
        networks: of the run.
        training: the training set of each task.
        run: a finished trajectory, of whose kind the drifting curvature is.
    """
    found = [sharpness(networks, weights, own) for weights, own in zip(run.anchors[1:], training, strict=True)]
    drifts = []
    for task in range(1, len(training) - 1):
        old = model_of_met(networks, run, task, run.anchors[task])
        drifts.append(drift(old.matrix, second_order(networks, run.anchors[task + 1], old.samples, run.plan.kind).matrix))
    return {name: torch.stack([one[name] for one in part]) for part in (found, drifts) for name in part[0]}


def model_of_met(networks: Perceptrons, run: Trajectory, task: int, weights: Tensor, kind: Kind | None = None) -> SecondOrder:
    """A full model, around given weights, of the stored samples of the first `task` tasks of a run."""
    count = task * (run.stored.count // (len(run.anchors) - 2))
    met = Samples(run.stored.inputs[:, :count], run.stored.labels[:, :count])
    return second_order(networks, weights, met, kind or run.plan.kind)


@dataclass(frozen=True)
class TrustRegion:
    """Loss of old tasks along the straight line that the next task's training took, mean over tasks.

    Attributes:
        distances: from the end of a task, `[D]`.
        actual: increase of the mean loss of the stored samples of all tasks met, `[D, S]`.
        predicted: name of the model -> `[D, S]`.
        steps: how far the next task really went, `[S]`.
    """

    distances: Tensor
    actual: Tensor
    predicted: Mapping[str, Tensor]
    steps: Tensor

    def radius(self, name: str, factor: float = 2.0) -> Tensor:
        """The largest distance up to which a prediction is within a factor of the truth, `[S]`; 0 where it never is."""
        ratio = self.predicted[name] / self.actual
        good = ((ratio >= 1 / factor) & (ratio <= factor)).long().cumprod(0).sum(0)
        return torch.cat([torch.zeros(1, dtype=self.distances.dtype), self.distances])[good]


MODELS: dict[str, tuple[Kind, bool]] = {
    "Fisher": ("fisher", False),
    "gradient + Fisher": ("fisher", True),
    "gradient + Hessian": ("hessian", True),
}
"""Name of a prediction -> kind of curvature, whether the gradient at the anchor counts."""


def trust_region(networks: Perceptrons, run: Trajectory, distances: Tensor) -> TrustRegion:
    """Actual and predicted losses along the directions in which a run left the end of each task.

    Args:
        networks: of the run.
        run: a finished trajectory.
        distances: `[D]`, increasing.
    """
    actual, steps = [], []
    predicted: dict[str, list[Tensor]] = {name: [] for name in MODELS}
    for task in range(1, len(run.anchors) - 1):
        anchor, step = run.anchors[task], run.anchors[task + 1] - run.anchors[task]
        steps.append(step.norm(dim=1))
        direction = step / steps[-1][:, None]
        for name, (kind, first_order) in MODELS.items():
            model = model_of_met(networks, run, task, anchor, kind)
            curvature = (direction * (model.matrix @ direction[..., None])[..., 0]).sum(1) / model.samples.count
            slope = (direction * model.gradients.mean(1)).sum(1) if first_order else torch.zeros_like(curvature)
            predicted[name].append(distances[:, None] * slope + distances[:, None] ** 2 / 2 * curvature)
        there = [networks.losses(anchor + far * direction, model.samples).mean(1) for far in distances]
        actual.append(torch.stack(there) - model.losses.mean(1))
    means = {name: torch.stack(found).mean(0) for name, found in predicted.items()}
    return TrustRegion(distances, torch.stack(actual).mean(0), means, torch.stack(steps).mean(0))


def leakage(directions: list[Tensor], steps: Tensor) -> dict[str, Tensor]:
    """What is left of steps `[S, P]` in the first anchor's directions after projection, relative to the step; each `[S]`.

    Args:
        directions: of each anchor, orthonormal columns `[S, P, K]`.
        steps: any.

    Returns:
        `in_turn`: projected off one anchor's directions after the other's; `common`: off one basis of all.
    """
    turned = steps
    for one in directions:
        turned = project_out(turned, one)
    at_once = project_out(steps, common_basis(torch.cat(directions, -1)))
    return {
        name: (directions[0].mT @ left[..., None]).flatten(1).norm(dim=1) / steps.norm(dim=1)
        for name, left in (("in_turn", turned), ("common", at_once))
    }
