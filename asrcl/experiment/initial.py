"""The initial model of a seed: where it lies, how it is trained on the first domain, and whether weights fit the model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from asrcl.adapt import Cache, Domain, Scenario, Tracking, TrackingConfig, TrainConfig, load_weights, save_recorded, train_initial
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.files import hash_file

logger = logging.getLogger(__name__)

TRAIN_STAGE: Final = "the train stage (asrcl train)"


def initial_path(config: Config, seed: int) -> Path:
    """Where the initial model of a seed lies."""
    return config.runs / "initial" / str(seed) / "model.safetensors"


def tracking(config: Config) -> Tracking:
    """The dashboards that a configuration names.

    Raises:
        InputError: one that is not known or not installed.
    """
    return Tracking(config.settings(TrackingConfig, "tracking"), config.home)


def train_first(config: Config, scenario: Scenario, seed: int, domain: Domain | None = None) -> None:
    """Train the initial model of a seed from fresh weights, with the settings `train.initial`, and write it to `initial_path`.

    Args:
        config: the experiment.
        scenario: builds the model and has the task.
        seed: of the weights and of all randomness.
        domain: what to train on; by default the first of the scenario.
    """
    settings, cache = config.settings(TrainConfig, "train", "initial"), Cache(config.home / "cache")
    path = initial_path(config, seed)
    state = train_initial(scenario, settings, cache, seed, path, config.device, tracking(config), domain)
    log_initial(state, seed, path)


def take_initial(config: Config, state: dict[str, Tensor], seed: int, facts: Mapping[str, Any]) -> None:
    """Write weights that were not trained here to `initial_path`, with facts about where they come from."""
    path = initial_path(config, seed)
    save_recorded(state, path, {"seed": seed, **facts})
    log_initial(state, seed, path)


def take_checkpoint(config: Config, scenario: Scenario, seed: int, path: Path) -> None:
    """Take the weights of a checkpoint file as the initial model of a seed; where it lies and its hash are recorded.

    Raises:
        InputError: a missing or damaged file, or one of another model.
    """
    state = load_weights(path)
    check_fits(scenario.build_model(), state, path)
    take_initial(config, state, seed, {"source": str(path), "hash": hash_file(path)})


def log_initial(state: Mapping[str, Tensor], seed: int, path: Path) -> None:
    """A line about an initial model that is there now."""
    count = sum(value.numel() for value in state.values())
    logger.info("initial model of seed %d: %.2f M parameters, %s", seed, count / 1e6, path)


def check_fits(model: nn.Module, state: Mapping[str, Tensor], where: str | Path) -> None:
    """Make sure that weights have the names and shapes of a model's.

    Raises:
        InputError: they do not; the message names `where` and the first tensor that differs.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if differing := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        raise InputError(
            f"{where}: not a checkpoint of this model ({len(differing)} tensors differ, e.g. {differing[0]}); "
            "give the model settings it was trained with, or run the train stage (asrcl train) again"
        )
