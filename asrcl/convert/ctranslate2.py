"""From CTranslate2's Whisper to a folder that `transformers.WhisperForConditionalGeneration.from_pretrained` loads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from asrcl.convert.binary import ModelFile
from asrcl.convert.tokens import END, NO_TIMES, PREVIOUS, START, TASKS, Tokens
from asrcl.convert.whisper import Sizes, Stack, check, layout, sizes
from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.staging import disk, make_staging, publish_folder, remove
from asrcl.merge.containers.tensor_files import TensorSink

SAMPLES, HOP, FFT = 16000, 160, 400
"""Per second, per frame and per transform in Whisper's features (arXiv 2212.04356, section 2.2: 25 ms and 10 ms at 16 kHz)."""
LATEST_START = 50  # positions of 20 ms: a first time stamp is at most 1 s (`max_initial_timestamp` in whisper/decoding.py)


def convert_ctranslate2(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Turn a Whisper that CTranslate2 converted into a folder of Hugging Face.

    Weights in half precision become float32, which holds them exactly; the projection is tied to the embedding, as in every
    Whisper. Sizes come from the shapes; suppressed tokens and alignment heads from `config.json`, languages and tasks from the
    tokenizer. No more than one variable is in memory at a time. `out` appears whole or not at all.

    Args:
        folder: with `model.bin` (binary version 6), `config.json`, `tokenizer.json` and `vocabulary.json` or `vocabulary.txt`.
        out: the folder to make: `model.safetensors`, the configurations of model, generation and features, the tokenizer.

    Raises:
        InputError: `out` holds something already; a file is missing, truncated, of another version or kind; a variable is
            missing, quantised, of another shape, or no part of a Whisper; tokens and model do not go together; the disk.
    """
    home, target = Path(folder), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists already; choose another folder")
    file = ModelFile(home / "model.bin")
    model = sizes(file)
    stacks = layout(model)
    check(file, stacks)
    tokens = Tokens.read(home, model.vocabulary)
    settings = _settings(home / "config.json", model)
    with disk(target):
        staging = make_staging(target)
        try:
            _write_weights(file, stacks, staging)
            write_json(staging / "config.json", _model(model, tokens, settings))
            write_json(staging / "generation_config.json", _generation(model, tokens, settings))
            write_json(staging / "preprocessor_config.json", _features(model))
            tokens.write(staging)
            publish_folder(staging, target)
        finally:
            remove(staging)


def _write_weights(file: ModelFile, stacks: dict[str, Stack], folder: Path) -> None:
    outlines: dict[str, Outline] = {}
    for stack in stacks.values():
        rows = stack.shape[0] // len(stack.names)
        outlines |= {name: Outline((rows, *stack.shape[1:]), torch.float32) for name in stack.names if name is not None}
    name = "model.safetensors"
    sink = TensorSink(folder, outlines, {name: list(outlines)}, {name: {"format": "pt"}})
    for variable, stack in stacks.items():
        _write_parts(file, variable, stack, sink)
    sink.finish()


def _write_parts(file: ModelFile, variable: str, stack: Stack, sink: TensorSink) -> None:
    """In a function of its own, so that a variable is let go before the next is read."""
    parts = file.read(variable).float().chunk(len(stack.names))
    for target, part in zip(stack.names, parts, strict=True):
        if target is not None:
            sink.write(target, part)
        elif part.any():
            raise InputError(f"{file.path}: {variable} has a bias of the keys, which no Whisper has; it cannot be converted")


def _settings(path: Path, model: Sizes) -> dict[str, Any]:
    """Suppressed tokens and alignment heads of CTranslate2's `config.json`, as far as it has them."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is no JSON object; copy the folder again")
    found = {name: content.get(name) or [] for name in ("suppress_ids", "suppress_ids_begin", "alignment_heads")}
    for name, values in found.items():
        limits = (model.decoder.layers, model.decoder.heads) if name == "alignment_heads" else (model.vocabulary,)
        rows = [value if isinstance(value, list) else [value] for value in values] if isinstance(values, list) else [[]]
        if not all(len(row) == len(limits) and all(_below(v, top) for v, top in zip(row, limits, strict=True)) for row in rows):
            raise InputError(f"{path}: {name} does not go with the model; copy the folder again")
    return found


def _below(value: Any, top: int) -> bool:
    return type(value) is int and 0 <= value < top


def _special(tokens: Tokens) -> dict[str, Any]:
    end = tokens.numbers[END]
    return {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokens.numbers[START],
    }


def _model(model: Sizes, tokens: Tokens, settings: dict[str, Any]) -> dict[str, Any]:
    sides: dict[str, int] = {}
    for name, side in (("encoder", model.encoder), ("decoder", model.decoder)):
        sides |= {f"{name}_layers": side.layers, f"{name}_attention_heads": side.heads, f"{name}_ffn_dim": side.ffn}
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "d_model": model.width,
        "num_mel_bins": model.mels,
        "vocab_size": model.vocabulary,
        "max_source_positions": model.encoder.positions,
        "max_target_positions": model.decoder.positions,
        **sides,
        **_special(tokens),
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "dtype": "float32",
    }


def _generation(model: Sizes, tokens: Tokens, settings: dict[str, Any]) -> dict[str, Any]:
    content = {
        **_special(tokens),
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "is_multilingual": tokens.multilingual,
        "max_initial_timestamp_index": LATEST_START,
        "max_length": model.decoder.positions,
        "no_timestamps_token_id": tokens.numbers[NO_TIMES],
        "prev_sot_token_id": tokens.numbers[PREVIOUS],
        "return_timestamps": False,
    }
    if settings["alignment_heads"]:
        content["alignment_heads"] = settings["alignment_heads"]
    if tokens.multilingual:
        content["lang_to_id"] = tokens.languages
        content["task_to_id"] = {task: tokens.numbers[name] for task, name in TASKS.items()}
        content["task"] = "transcribe"  # without it a model that is told no language is told no task either
    return content


def _features(model: Sizes) -> dict[str, Any]:
    samples = 2 * model.encoder.positions * HOP  # the second convolution halves the number of frames
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": model.mels,
        "sampling_rate": SAMPLES,
        "hop_length": HOP,
        "n_fft": FFT,
        "chunk_length": samples // SAMPLES,
        "n_samples": samples,
        "nb_max_frames": samples // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
