"""Tiny pretrained models with random weights, in the layout that `save_pretrained` of Transformers writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asrcl.files import read_json, write_json

transformers = pytest.importorskip("transformers")
LANGUAGES = ["<|en|>", "<|de|>"]
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", *LANGUAGES, "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
SPECIAL += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
WAV2VEC2 = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8, 8, 8),
    "conv_stride": (5, 8, 8), "conv_kernel": (10, 8, 8), "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2, "pad_token_id": 0, "vocab_size": 31, "mask_time_prob": 0.0, "initializer_range": 0.3,
}  # fmt: skip


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


def write_characters(folder):
    words = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)


def write_model(kind, folder):
    torch.manual_seed(0)
    if kind == "moonshine":
        return write_moonshine(folder)
    write_characters(folder)
    norm = {"feat_extract_norm": "layer", "do_stable_layer_norm": True} if kind.endswith("large") else {}
    if kind == "hubert":
        model = transformers.HubertForCTC(transformers.HubertConfig(**WAV2VEC2))
    else:
        model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**{**WAV2VEC2, **norm}))
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=bool(norm)).save_pretrained(folder)
    return folder


def write_moonshine(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz ,."]
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({letter: n for n, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
    config = transformers.MoonshineConfig(
        vocab_size=len(letters), hidden_size=16, intermediate_size=24, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, max_position_embeddings=40, decoder_start_token_id=1,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    transformers.MoonshineForConditionalGeneration(config).save_pretrained(folder)
    return folder
