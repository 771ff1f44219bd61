"""Small networks: frozen, initialised and hybrid training on sequences of digit tasks that are more or less alike.

Task t shows scikit-learn's 8 x 8 digits, their pixels in an order of its own, has `train_images` of its own to learn from, and a
head of its own. Every run is one of the toolkit's loop with the toolkit's methods, kept in a folder for as long as a sequence
takes, so that the hybrid update shares fine-tunes with the two it chooses from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final

import numpy as np
import torch
from torch import Tensor

from asrcl.adapt import (
    Cache,
    CurvatureConfig,
    DomainLearner,
    EvaluationPolicy,
    Scenario,
    Tracking,
    TrackingConfig,
    TrainConfig,
    run_stages,
    train_initial,
)
from asrcl.images.data import Images
from asrcl.images.domain import ImageDomain
from asrcl.images.models import build_classifier
from asrcl.images.sources.arrays import digits
from asrcl.images.task import ImageTask
from asrcl.methods import build_method

logger = logging.getLogger(__name__)

PIXELS: Final = 64
BATCH: Final = 32
DEV: Final = 100
MIXED: Final = "mixed"
REFERENCES: Final[dict[str, dict[str, Any]]] = {
    "start of each task, its own head (algorithm 1)": {"reference": "start", "head": "own"},
    "start of each task, one head": {"reference": "start"},
    "start of the task, end of the one before, one head": {"reference": "end"},
    "updates of one epoch": {"reference": "update"},
    "fixed: fresh weights, own heads": {"head": "own"},
    "fixed: fresh weights, one head (default)": {},
    "fixed: fresh weights, one head, per layer": {"per_layer": True},
    "fixed: fresh weights, one head, 2 batches": {"batches": 2},
    "fixed: initial model, one head": {"point": "initial"},
}
"""What can be compared of two tasks, as options of the method `hybrid`."""


@dataclass(frozen=True)
class Sizes:
    """A sequence and how it is learned.

    Attributes:
        tasks: in a sequence.
        train_images: of every task, drawn for it.
        widths: of the hidden layers, a block each.
        train: how every task is learned.
    """

    tasks: int
    train_images: int
    widths: tuple[int, ...]
    train: TrainConfig


@dataclass(frozen=True)
class PixelOrder:
    """Pixels in another order: pixel `order[i]` of an image stands at place i."""

    order: tuple[int, ...]
    costly: ClassVar[bool] = False

    def __call__(self, pixels: Tensor) -> Tensor:
        """Reordered images, `[B, 1, 8, 8]`."""
        return pixels.flatten(1)[:, list(self.order)].view(pixels.shape)


def orders(kind: str, tasks: int, seed: int) -> list[PixelOrder]:
    """The order of pixels of every task of a sequence; the first sees the digits as they are.

    Args:
        kind: a number k: every later task permutes k pixels of its own, 64 of which are all; or "mixed": pairs of tasks, the
            second of a pair with 4 pixels of the first permuted, pairs having nothing to do with each other.
        tasks: how many.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    found = [torch.arange(PIXELS)]
    for number in range(1, tasks):
        if kind != MIXED:
            found.append(_permuted(torch.arange(PIXELS), int(kind), generator))
        else:
            found.append(_permuted(found[-1], 4 if number % 2 else PIXELS, generator))
    return [PixelOrder(tuple(order.tolist())) for order in found]


def _permuted(order: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """An order in which so many places, drawn, have changed among themselves, each with the next drawn one."""
    places = torch.randperm(PIXELS, generator=generator)[:count]
    changed = order.clone()
    changed[places] = order[places.roll(1)]
    return changed


def scenario_of(kind: str, sizes: Sizes, seed: int) -> Scenario:
    """The sequence of a kind; permutations, training images and initial weights all depend on the seed."""
    source = digits()
    domains = []
    for number, order in enumerate(orders(kind, sizes.tasks, seed)):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        chosen = torch.randperm(len(source["train"]), generator=generator)[: sizes.train_images]
        splits: Mapping[str, Images] = {
            "train": source["train"].take(chosen),
            "dev": source["dev"].take(torch.arange(DEV)),
            "test": source["test"],
        }
        changed = {split: images.changed(order) for split, images in splits.items()}
        domains.append(ImageDomain(f"task{number + 1}", changed, BATCH, mixable=False))
    heads = {domain.name: len(domain.classes) for domain in domains}
    settings, shape = {"kind": "mlp", "widths": list(sizes.widths)}, domains[0].shape
    task = ImageTask({domain.name: domain.classes for domain in domains})
    example = build_classifier(settings, shape, heads)
    return Scenario(
        f"digits_{kind}", domains, task, lambda: build_classifier(settings, shape, heads),
        model_config={"model": settings}, private=example.private, evaluation=EvaluationPolicy("seen"),
    )  # fmt: skip


def run_sequence(
    kind: str, sizes: Sizes, seed: int, methods: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Every method on a sequence with one seed.

    Args:
        kind: see `orders`.
        sizes: of tasks and network.
        seed: of everything.
        methods: name -> (the method's id, its options).

    Returns:
        A record for every method: `accuracy` `[stage][task]` in per cent on test images, of the tasks until then, and what hybrid
        updates said of every stage after the first, `similarity` and `trained_blocks` (None: all).
    """
    scenario, records = scenario_of(kind, sizes, seed), []
    with TemporaryDirectory() as folder, _without_progress():
        cache, tracking = Cache(Path(folder) / "cache"), Tracking(TrackingConfig(backends=()), folder)
        path = Path(folder) / "initial.safetensors"
        scenario.initial = train_initial(scenario, sizes.train, cache, seed, path, tracking=tracking)
        for name, (method, options) in methods.items():
            learner = DomainLearner(
                scenario, cache, sizes.train, CurvatureConfig(), seed, label=name, diagnostics="none", tracking=tracking
            )
            stages = list(run_stages(learner, build_method(method, **options), "test"))
            accuracy = [[100 - errors.rate for errors in stage.errors if errors is not None] for stage in stages]
            said = {
                key: [stage.record.get(key) for stage in stages[1:]]
                for key in ("similarity", "trained_blocks")
                if any(key in stage.record for stage in stages)
            }
            records.append({"sequence": kind, "method": name, "seed": seed, "accuracy": accuracy, **said})
    logger.info("sequence %s, seed %d: %d runs", kind, seed, len(records))
    return records


@contextmanager
def _without_progress() -> Iterator[None]:
    """Hundreds of runs of a second each say nothing; what goes wrong is still said."""
    runs = logging.getLogger("asrcl.adapt")
    level = runs.level
    runs.setLevel(logging.WARNING)
    try:
        yield
    finally:
        runs.setLevel(level)


def measures(accuracy: Sequence[Sequence[float]]) -> dict[str, float]:
    """The paper's measures in per cent, from accuracies a[t][k] after stage t on task k, M tasks.

    `average` = 1/M Σ_k a[M][k]; `task` = 1/M Σ_k a[k][k]; `forgetting` = 1/(M-1) Σ_{k<M} (a[k][k] - a[M][k]), as the paper
    defines it; `forgetting_max` the same with max_{k <= j < M} a[j][k] for a[k][k] (Chaudhry et al., 2018). The paper's tables do
    not fit the plain one, with which task - average would be (M-1)/M times forgetting.
    """
    last, own = np.array(accuracy[-1]), np.array([row[task] for task, row in enumerate(accuracy)])
    best = np.array([max(row[task] for row in accuracy[task:-1]) for task in range(len(accuracy) - 1)])
    return {
        "average": float(last.mean()),
        "task": float(own.mean()),
        "forgetting": float((own - last)[:-1].mean()),
        "forgetting_max": float((best - last[:-1]).mean()),
    }
