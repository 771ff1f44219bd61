"""Tiny pretrained models with random weights, in the layout that `save_pretrained` of Transformers writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from asrcl.files import read_json, write_json

transformers = pytest.importorskip("transformers")
LANGUAGES = ["<|en|>", "<|de|>"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", *LANGUAGES, "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
SPECIAL += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]


def write_tokenizer(folder: Path) -> int:
    """Whisper's kind of tokeniser with a token per byte, its special tokens, and times after them; returns its size."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = transformers.WhisperTokenizer(vocab={letter: n for n, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.add_tokens([f"<|{step * 0.02:.2f}|>" for step in range(101)], special_tokens=False)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_whisper(folder: Path, multilingual: bool = False, seconds: int = 2, **settings: object) -> Path:
    """A Whisper of two layers that sees two seconds."""
    size = write_tokenizer(folder)
    tokenizer = transformers.WhisperTokenizer.from_pretrained(folder)
    index = tokenizer.convert_tokens_to_ids
    sizes = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=size, num_mel_bins=8, max_source_positions=50 * seconds, max_target_positions=60, encoder_ffn_dim=24,
        decoder_ffn_dim=24, decoder_start_token_id=index("<|startoftranscript|>"), eos_token_id=index("<|endoftext|>"),
        pad_token_id=index("<|endoftext|>"), bos_token_id=index("<|endoftext|>"), init_std=0.3, **{**sizes, **settings},
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    generation = {"is_multilingual": multilingual, "no_timestamps_token_id": index("<|notimestamps|>")}
    generation |= {"suppress_tokens": [3, 5], "begin_suppress_tokens": [7, index("<|endoftext|>")]}
    if multilingual:
        generation["lang_to_id"] = {name: index(name) for name in LANGUAGES}
        generation["task_to_id"] = {name: index(f"<|{name}|>") for name in ("transcribe", "translate")}
    file = folder / "generation_config.json"
    known = {name: value for name, value in read_json(file).items() if name != "_from_model_config"}  # else the rest is ignored
    write_json(file, {**known, **generation})
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=seconds).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper for English."""
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def multilingual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper for English and German."""
    return write_whisper(tmp_path_factory.mktemp("whisper_languages"), multilingual=True)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny Whisper that may then be spoiled: (**settings of `write_whisper`)."""
    return lambda **settings: write_whisper(tmp_path / "whisper", **settings)
