"""Folders of pretrained models as `save_pretrained` of Transformers writes them: where they are, and whether they can be used."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.files import hash_json, read_json

CONFIG, GENERATION, FRONT_END = "config.json", "generation_config.json", "preprocessor_config.json"
WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
TOKENS: Final = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
_HUB_NAME: Final = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?")
_WANTED: Final = ("*.json", "*.txt", "*.model", "*.safetensors")


@cache
def locate(name: str) -> Path:
    """The folder of a pretrained model that is named by a folder or by its name on the Hugging Face hub, which is then fetched.

    Args:
        name: value of `model.pretrained`, e.g. a folder of `save_pretrained`, or `openai/whisper-tiny.en`.

    Raises:
        InputError: there is no such folder and the hub gives none; it holds no configuration, no weights as safetensors, no
            tokeniser; its weights are quantised.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name)
    for wanted, what in (((CONFIG,), "configuration"), (WEIGHTS, "weights"), (TOKENS, "tokenizer")):
        if not any((folder / file).is_file() for file in wanted):
            raise InputError(
                f"model.pretrained={name}: {folder} has no {what} ({' or '.join(wanted)}); give a folder that save_pretrained of "
                f"model and tokenizer wrote{_about_pickles(folder, what)}"
            )
    if "quantization_config" in configuration(folder):
        raise InputError(f"model.pretrained={name}: its weights are quantised and cannot be trained or merged; give the original")
    return folder


def _about_pickles(folder: Path, what: str) -> str:
    there = what == "weights" and (folder / "pytorch_model.bin").is_file()
    return ", with safe_serialization=True (pytorch_model.bin there is a pickle, and is not read)" if there else ""


def _fetched(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"model.pretrained={name}: no such folder, nor a name on the hub (owner/model); correct it")
    from huggingface_hub import snapshot_download

    with reading(f"model.pretrained={name}", "give the folder of a model that is here", "no such folder, and the hub gives none"):
        return Path(snapshot_download(name, allow_patterns=list(_WANTED)))


def configuration(folder: Path) -> dict[str, Any]:
    """What `config.json` of a folder says.

    Raises:
        InputError: as `read_table`.
    """
    return read_table(folder, CONFIG)


def read_table(folder: Path, name: str) -> dict[str, Any]:
    """The names and values of a JSON file in a folder; none where there is no such file.

    Raises:
        InputError: it is no JSON, or no table.
    """
    if not (folder / name).is_file():
        return {}
    found = read_json(folder / name)
    if not isinstance(found, dict):
        raise InputError(f"{folder / name}: holds no settings by name; write the folder again with save_pretrained")
    return found


def model_type(name: str) -> str:
    """Which kind of model a folder or hub name holds: whisper, wav2vec2, hubert, moonshine, ...

    Raises:
        InputError: as `locate`, or the configuration does not say.
    """
    folder = locate(name)
    kind = configuration(folder).get("model_type")
    if not isinstance(kind, str):
        raise InputError(f"{folder / CONFIG}: lacks model_type; write the folder again with save_pretrained")
    return kind


def folder_of(name: str, *kinds: str) -> Path:
    """The folder of a pretrained model, which must be of one of these kinds.

    Raises:
        InputError: as `model_type`, or it is of another kind.
    """
    if (kind := model_type(name)) not in kinds:
        wanted = " or ".join(kinds)
        raise InputError(f"model.pretrained={name}: is a model of type {kind}, not {wanted}; set model.kind=pretrained")
    return locate(name)


def load_model(architecture: Any, folder: Path) -> Any:
    """A model of Transformers with the weights of a folder, in single precision.

    Args:
        architecture: its class there.
        folder: as `locate` gives it.

    Raises:
        InputError: the weights are damaged, or are not this architecture's.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    with reading(folder, "write it again with save_pretrained", f"cannot be loaded by {architecture.__name__}"):
        return architecture.from_pretrained(str(folder), local_files_only=True, use_safetensors=True, dtype="float32")


def settings_hash(name: str) -> str:
    """Hash of all that the folder says beyond weights and tokens (heads, activations, tokens that are never written)."""
    folder = locate(name)
    return hash_json({file: read_table(folder, file) for file in (CONFIG, GENERATION, FRONT_END)})
