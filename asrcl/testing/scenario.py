"""A scenario that fits into a test: blobs, an MLP, an initial model trained in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from asrcl.adapt import Cache, CurvatureConfig, DomainLearner, Scenario, StateDict, Task, TrainConfig, state_of
from asrcl.testing.domains import VectorDomain, blob_domain
from asrcl.testing.task import ClassificationTask

TINY_TRAINING: Final = TrainConfig(epochs=6, learning_rate=0.03, average_best=2)


def build_mlp(features: int = 8, classes: int = 4, hidden: int = 16, dropout: float = 0.0) -> nn.Sequential:
    """A multi-layer perceptron `[B, features]` -> `[B, classes]` with one hidden layer and fresh weights."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, classes))


def tiny_scenario(
    domains: int = 3,
    rotation: float = 1.0,
    *,
    seed: int = 0,
    trained: bool = True,
    dropout: float = 0.0,
    task: Task | None = None,
    **blobs: Any,
) -> Scenario:
    """A scenario of rotated blobs with an initial model.

    Args:
        domains: how many; the first is not rotated.
        rotation: of the later ones, each in a plane of its own; see `blob_domain`.
        seed: of the data and of the initial weights.
        trained: whether the initial model is trained on the first domain or has fresh weights.
        dropout: of the model, in training.
        task: in place of `ClassificationTask()`.
        **blobs: further arguments of `blob_domain`.
    """
    chosen = [blob_domain(f"blobs{k}", 1000 * seed + k, rotation if k else 0.0, **blobs) for k in range(domains)]
    shape = {key: blobs[key] for key in ("features", "classes") if key in blobs}
    build = partial(build_mlp, dropout=dropout, **shape)
    initial = _initial(build, chosen[0], seed, 16 if trained else 0)
    config = {"domains": domains, "rotation": rotation, "seed": seed}
    return Scenario("tiny", chosen, task or ClassificationTask(), build, initial, config, {"dropout": dropout})


def _initial(build: partial[nn.Sequential], domain: VectorDomain, seed: int, epochs: int) -> StateDict:
    """Weights after `epochs` passes over the training data; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, task = build(), ClassificationTask()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for epoch in range(epochs):
            for batch in domain.batches("train", shuffle=True, seed=epoch):
                optimizer.zero_grad()
                task.loss(model, batch).backward()
                optimizer.step()
    return state_of(model)


def tiny_learner(
    folder: str | Path, scenario: Scenario | None = None, train: TrainConfig = TINY_TRAINING, seed: int = 0
) -> DomainLearner:
    """A learner for a tiny scenario that keeps its work under `folder`/cache."""
    return DomainLearner(scenario or tiny_scenario(), Cache(Path(folder) / "cache"), train, CurvatureConfig(), seed)
