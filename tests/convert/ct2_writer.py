"""A tiny Whisper of Transformers, and a writer of CTranslate2's layout, against which the converter is held."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

SPECIAL = [
    *("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|es|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"),
    *("<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"),
]
TIMES = [f"<|{0.02 * number:.2f}|>" for number in range(51)]
PIECES = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe"]
MERGES = ["Ġ t", "Ġt h", "Ġth e"]
NAMES = [*PIECES, *SPECIAL, *TIMES]
CODES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4, torch.bfloat16: 5}


def tiny_whisper(seed: int = 0, **changes: int) -> WhisperForConditionalGeneration:
    """Two layers, other heads and widths in the encoder than in the decoder; every tensor random, norms and biases too."""
    torch.manual_seed(seed)
    settings = dict(
        vocab_size=len(NAMES), num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=40, max_source_positions=50, max_target_positions=24,
        pad_token_id=NAMES.index("<|endoftext|>"), bos_token_id=NAMES.index("<|endoftext|>"),
        eos_token_id=NAMES.index("<|endoftext|>"), decoder_start_token_id=NAMES.index("<|startoftranscript|>"),
    )  # fmt: skip
    model = WhisperForConditionalGeneration(WhisperConfig(**{**settings, **changes})).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape) / 4)
    return model


def variables(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    """The variables that CTranslate2's converter of Whisper makes, by name."""
    config, found = model.config, {}

    def put(name: str, *modules: torch.nn.Module) -> None:
        norm = isinstance(modules[0], torch.nn.LayerNorm)
        found[f"{name}/{'gamma' if norm else 'weight'}"] = torch.cat([module.weight.data for module in modules])
        biases = [torch.zeros(len(module.weight)) if module.bias is None else module.bias.data for module in modules]
        found[f"{name}/{'beta' if norm else 'bias'}"] = torch.cat(biases)

    for side, heads in (("encoder", config.encoder_attention_heads), ("decoder", config.decoder_attention_heads)):
        part = getattr(model.model, side)
        found[f"{side}/num_heads"] = torch.tensor(heads, dtype=torch.int16)
        found[f"{side}/position_encodings/encodings"] = part.embed_positions.weight.data
        put(f"{side}/layer_norm", part.layer_norm)
        for number, layer in enumerate(part.layers):
            here, own = f"{side}/layer_{number}", layer.self_attn
            put(f"{here}/self_attention/linear_0", own.q_proj, own.k_proj, own.v_proj)
            put(f"{here}/self_attention/linear_1", own.out_proj)
            put(f"{here}/self_attention/layer_norm", layer.self_attn_layer_norm)
            if side == "decoder":
                put(f"{here}/attention/linear_0", layer.encoder_attn.q_proj)
                put(f"{here}/attention/linear_1", layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)
                put(f"{here}/attention/linear_2", layer.encoder_attn.out_proj)
                put(f"{here}/attention/layer_norm", layer.encoder_attn_layer_norm)
            put(f"{here}/ffn/linear_0", layer.fc1)
            put(f"{here}/ffn/linear_1", layer.fc2)
            put(f"{here}/ffn/layer_norm", layer.final_layer_norm)
    for name in ("conv1", "conv2"):
        put(f"encoder/{name}", getattr(model.model.encoder, name))
    found["decoder/embeddings/weight"] = model.model.decoder.embed_tokens.weight.data
    plain = {"activation": 3, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0, "alibi": 0}
    found |= {f"decoder/{name}": torch.tensor(value, dtype=torch.int8) for name, value in plain.items()}
    whole = {"alignment_layer": -1, "alignment_heads": 1}
    return found | {f"decoder/{name}": torch.tensor(value, dtype=torch.int16) for name, value in whole.items()}


def string(text: str) -> bytes:
    return struct.pack("<H", len(text.encode()) + 1) + text.encode() + b"\0"


def packed(
    found: dict[str, Tensor], aliases: dict[str, str], version: int = 6, specification: str = "WhisperSpec", revision: int = 3
) -> bytes:
    """`model.bin`, variables in the order of their names."""
    out = struct.pack("<I", version) + string(specification) + struct.pack("<II", revision, len(found))
    for name, tensor in sorted(found.items()):
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        out += string(name) + struct.pack("<B", tensor.dim()) + struct.pack(f"<{tensor.dim()}I", *tensor.shape)
        out += struct.pack("<BI", CODES[tensor.dtype], len(content)) + content
    return out + struct.pack("<I", len(aliases)) + b"".join(string(a) + string(b) for a, b in aliases.items())


PROJECTION = {"decoder/projection/weight": "decoder/embeddings/weight"}


def write_folder(folder: Path, found: dict[str, Tensor], dtype: torch.dtype = torch.float32, times: bool = False) -> Path:
    """A folder as `ct2-transformers-converter --copy_files tokenizer.json` leaves it.

    Args:
        folder: to be made.
        found: the variables.
        dtype: of the weights in the file.
        times: whether the tokenizer has the time stamps, as newer ones do.
    """
    folder.mkdir()
    stored = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in found.items()}
    (folder / "model.bin").write_bytes(packed(stored, PROJECTION))
    numbers = {name: NAMES.index(name) for name in NAMES}
    settings = {
        "suppress_ids": [1, 2, numbers["<|startoflm|>"]],
        "suppress_ids_begin": [numbers["Ġ"], numbers["<|endoftext|>"]],
        "alignment_heads": [[0, 1], [0, 3]],
        "lang_ids": [numbers["<|en|>"], numbers["<|es|>"]],
    }
    (folder / "config.json").write_text(json.dumps(settings))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": numbers[name], "content": name, **flags, "special": True} for name in SPECIAL]
    added += [{"id": numbers[name], "content": name, **flags, "special": False} for name in TIMES if times]
    pairs = [{"SpecialToken": {"id": "<|startoftranscript|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    start = {"id": SPECIAL[1], "ids": [numbers[SPECIAL[1]]], "tokens": [SPECIAL[1]]}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "TemplateProcessing", "single": pairs, "special_tokens": {SPECIAL[1]: start},
                           "pair": [*pairs, {"Sequence": {"id": "B", "type_id": 1}}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                  "fuse_unk": False, "vocab": {name: numbers[name] for name in PIECES}, "merges": MERGES},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "vocabulary.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return folder
