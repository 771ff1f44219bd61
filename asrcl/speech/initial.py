"""Where the first model of a seed comes from: it is trained, or it came trained with the recipe.

`scenario.initial.models` names a folder of trained first models, relative to the repository: `seed<N>.safetensors` (in half
precision), the tokeniser `pieces.model` they need, and `models.json`, which says how they were made and holds their hashes.
`scenario.initial.models=null` trains, on `scenario.initial.corpus` or, where that is missing, on the first domain;
`scenario.initial.train` has options in place of those of `train.initial`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from asrcl.adapt import load_state
from asrcl.exceptions import InputError
from asrcl.files import hash_file, read_json
from asrcl.speech.config import Config, config_folder

logger = logging.getLogger(__name__)

TRAIN_AGAIN = "train the first model yourself: scenario.initial.models=null (run.sh --train-initial)"


def initial_path(config: Config, seed: int) -> Path:
    """Where the initial model of a seed lies."""
    return config.home / "initial" / str(seed) / "model.safetensors"


def shipped_models(config: Config) -> Path | None:
    """The folder of trained first models; None where the scenario has none, or where they were not installed with the package.

    Raises:
        InputError: the tokeniser there is not the one that the models were trained with.
    """
    wanted = config.tree["scenario"]["initial"].get("models")
    if not wanted:
        return None
    folder = config_folder().parent / wanted
    if not (folder / "models.json").is_file():
        logger.warning("%s: no trained first models there; training one", folder)
        return None
    _check(folder, "pieces.model")
    return folder


def shipped_model(config: Config, seed: int) -> dict[str, torch.Tensor] | None:
    """The trained first model of a seed in single precision; None if there is none.

    Raises:
        InputError: its file is not the one that `models.json` describes.
    """
    folder = shipped_models(config)
    name = f"seed{seed}.safetensors"
    if folder is None or name not in read_json(folder / "models.json")["files"]:
        return None
    _check(folder, name)
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in load_state(folder / name).items()}


def _check(folder: Path, name: str) -> None:
    wanted = read_json(folder / "models.json")["files"].get(name, {}).get("hash")
    if not (folder / name).is_file() or hash_file(folder / name) != wanted:
        raise InputError(f"{folder / name}: missing, or not what models.json describes; restore it, or {TRAIN_AGAIN}")
