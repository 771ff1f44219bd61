"""Where the initial model of a seed comes from: it is trained, came trained with the recipe, or is taken from elsewhere.

`scenario.initial.checkpoint` names a file of weights (.safetensors). A pretrained model (`model=pretrained`) is the initial model
as it is, or trained further first where `scenario.initial` says on what (`corpus`) or how (`train`). Where the initial model was
not trained on the first domain, `learn_first: true` in the scenario makes that a domain to learn like the others.

`scenario.initial.models` names a folder of trained initial models, relative to the repository: `seed<N>.safetensors` (in half
precision), the tokeniser `pieces.model` they need, and `models.json`, which says how they were made and holds their hashes.
`scenario.initial.models=null` trains, on `scenario.initial.corpus` or, where that is missing, on the first domain;
`scenario.initial.train` has options in place of those of `train.initial`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from asrcl.adapt import load_weights
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config, config_folder
from asrcl.files import hash_file, read_json
from asrcl.speech.recogniser import CONFORMER, model_class

logger = logging.getLogger(__name__)

OF_TRAINING = ("train.initial", "scenario.initial.corpus", "scenario.initial.train")
TRAIN_AGAIN = "train the initial model yourself: run.sh --train-initial (scenario.initial.models=null)"


def tokenizer_path(config: Config) -> Path:
    """Where the scenario's tokeniser lies."""
    return config.home / "tokens" / "pieces.model"


def training_settings(config: Config) -> Config:
    """The configuration with the options of `scenario.initial.train` in `train.initial`, but for what the user has typed."""
    own = config.tree["scenario"]["initial"].get("train") or {}
    return config.changed({"train": {"initial": own}}, "scenario.initial.train", keep_typed=True)


def what_it_depends_on(config: Config) -> dict[str, Any]:
    """The features, transcripts, tokens and model settings of an initial model; a run takes only what was made with its own."""
    scenario, settings = config.tree["scenario"], config.tree["model"]
    model_class(settings)  # an unknown kind is refused with those there are
    left_out = ("dropout", "kind") if settings.get("kind") == CONFORMER else ("dropout",)
    model = {key: value for key, value in settings.items() if key not in left_out}
    return {**{f"scenario.{key}": scenario[key] for key in ("features", "text", "tokens")}, "model": model}


def shipped_models(config: Config) -> Path | None:
    """The folder of trained initial models; None where the scenario has none, or where they were not installed with the package.

    Raises:
        InputError: they were made with other settings, the user asks for a training that is not going to be, or the
            tokeniser there is not the one they were trained with.
    """
    wanted = config.tree["scenario"]["initial"].get("models")
    if not wanted:
        return None
    folder = config_folder().parent / wanted
    if not (folder / "models.json").is_file():
        logger.warning("%s: no trained initial models there; training one", folder)
        return None
    if without_effect := [name for name in sorted(config.typed) if name.startswith(OF_TRAINING)]:
        raise InputError(f"{without_effect[0]}: has no effect on the trained initial models in {folder}; {TRAIN_AGAIN}")
    made = _flat(_record(folder)["settings"])
    here = _flat(what_it_depends_on(config))
    if differing := [name for name in {**made, **here} if made.get(name) != here.get(name)]:
        name = differing[0]
        raise InputError(
            f"{name}={here.get(name)}: the trained initial models in {folder} were made with {made.get(name)}; {TRAIN_AGAIN}"
        )
    _check(folder, "pieces.model")
    return folder


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {name: tree}
    return {key: value for part, below in tree.items() for key, value in _flat(below, f"{name}.{part}".lstrip(".")).items()}


def shipped_model(config: Config, seed: int) -> dict[str, torch.Tensor] | None:
    """The trained initial model of a seed in single precision; None if there is none.

    Raises:
        InputError: its file is not the one that `models.json` describes, or the run's tokeniser is not the one it needs.
    """
    folder, name = shipped_models(config), f"seed{seed}.safetensors"
    if folder is None or name not in _record(folder)["files"]:
        return None
    _check(folder, name)
    pieces = tokenizer_path(config)
    if not pieces.is_file() or hash_file(pieces) != hash_file(folder / "pieces.model"):
        raise InputError(f"{pieces}: not the tokeniser of {folder / name}; run the tokens stage (asrcl prepare --stage tokens)")
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in load_weights(folder / name).items()}


def _record(folder: Path) -> dict[str, dict[str, Any]]:
    """What `models.json` says of the models beside it."""
    record = read_json(folder / "models.json")
    if not isinstance(record, dict) or not all(isinstance(record.get(part), dict) for part in ("settings", "files")):
        raise InputError(f"{folder / 'models.json'}: lacks the settings or the files of the models; restore it, or {TRAIN_AGAIN}")
    return record


def _check(folder: Path, name: str) -> None:
    file = _record(folder)["files"].get(name)
    wanted = file.get("hash") if isinstance(file, dict) else None
    if not (folder / name).is_file() or hash_file(folder / name) != wanted:
        raise InputError(f"{folder / name}: missing, or not what models.json describes; restore it, or {TRAIN_AGAIN}")
