"""Whisper in CTranslate2's layout: sizes from the shapes of the variables, and which tensor of Transformers each of them is.

Names and their meaning after `TransformerDecoderSpec`, `MultiHeadAttentionSpec` and `WhisperSpec` in python/ctranslate2/specs of
OpenNMT/CTranslate2: `self_attention/linear_0` stacks queries, keys and values, `attention/linear_1` keys and values. Transformers
has them as `q_proj`, `k_proj` (without bias) and `v_proj`, each by itself.

Shapes: D width, F width within the feed-forward network, V tokens, M Mel bands, S and T positions of encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from asrcl.convert.binary import ModelFile
from asrcl.exceptions import InputError
from asrcl.merge.containers.outline import Outline

SPECIFICATION, REVISION = "WhisperSpec", 3
HEAD_WIDTH = 64
"""Of every published Whisper; for files that do not tell the number of heads."""
SETTINGS = {
    "activation": 3,  # GELU, as `Activation` in common_spec.py counts
    "pre_norm": 1,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
    "multi_query_attention": 0,
    "alibi": 0,
}
"""Of the decoder, with the only value that Whisper has."""
IGNORED = ("alignment_heads", "alignment_layer", "alibi_use_positive_positions", "scale_alibi", "keep_in_float32", "num_heads")
"""Scalars that say nothing about the model itself, or that are read elsewhere."""
PROJECTION, EMBEDDING = "decoder/projection/weight", "decoder/embeddings/weight"


class Stack(NamedTuple):
    """A variable's shape, and the tensors of which it is the stack along its first axis; None where Transformers has zeros."""

    shape: tuple[int, ...]
    names: tuple[str | None, ...]


@dataclass(frozen=True)
class Side:
    """Sizes of the encoder or the decoder."""

    layers: int
    heads: int
    ffn: int
    positions: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a Whisper."""

    width: int
    mels: int
    vocabulary: int
    encoder: Side
    decoder: Side


def sizes(file: ModelFile) -> Sizes:
    """The sizes of the model in a file.

    Raises:
        InputError: it is no Whisper, a variable is missing, quantised, or there is something that Whisper does not have.
    """
    if (file.specification, file.revision) != (SPECIFICATION, REVISION):
        held = f"a {file.specification} of revision {file.revision}"
        remedy = "give a Whisper that CTranslate2 converted"
        raise InputError(f"{file.path}: {held}, not a {SPECIFICATION} of revision {REVISION}; {remedy}")
    for name, (outline, _) in file.variables.items():
        if outline.shape and not outline.dtype.is_floating_point:
            remedy = "convert the original with --quantization float16, or give it itself"
            raise InputError(f"{file.path}: {name} is quantised ({outline}) and cannot be had back exactly; {remedy}")
    for name, value in SETTINGS.items():
        if (found := _scalar(file, f"decoder/{name}", value)) != value:
            raise InputError(f"{file.path}: decoder/{name} is {found}, but {value} in every Whisper; it cannot be converted")
    width, mels, _ = _shape(file, "encoder/conv1/weight", 3)
    vocabulary, _ = _shape(file, EMBEDDING, 2)
    return Sizes(width, mels, vocabulary, _side(file, "encoder", width), _side(file, "decoder", width))


def layout(model: Sizes) -> dict[str, Stack]:
    """Every variable of a Whisper, but the scalars and the projection, with the tensors of Transformers in it."""
    D, M = model.width, model.mels
    return dict(
        [
            *_linear("encoder/conv1", "model.encoder.conv1", D, M, 3),
            *_linear("encoder/conv2", "model.encoder.conv2", D, D, 3),
            (EMBEDDING, Stack((model.vocabulary, D), ("model.decoder.embed_tokens.weight",))),
            *_side_rows("encoder", model.encoder, D),
            *_side_rows("decoder", model.decoder, D),
        ]
    )


def check(file: ModelFile, stacks: dict[str, Stack]) -> None:
    """Hold a file against a layout.

    Raises:
        InputError: names a variable that is missing, has another shape, or does not belong there.
    """
    for name, stack in stacks.items():
        if (found := _shape(file, name, len(stack.shape))) != stack.shape:
            raise InputError(f"{file.path}: {name} is {list(found)}, but {list(stack.shape)} belongs there; copy the file again")
    scalars = (*SETTINGS, *IGNORED)
    for name, (outline, start) in file.variables.items():
        if name == PROJECTION and start == file.variables[EMBEDDING].start:
            continue
        if name not in stacks and (outline.shape or name.rpartition("/")[2] not in scalars):
            what = "not that of the embedding" if name == PROJECTION else "no part of a Whisper"
            raise InputError(f"{file.path}: {name} ({outline}) is {what}; this model cannot be converted")


def _scalar(file: ModelFile, name: str, otherwise: int) -> int:
    """A whole number; bytes where a model has more than one."""
    if name not in file.variables:
        return otherwise
    outline = file.variables[name].outline
    if outline.shape or outline.dtype not in (torch.int8, torch.int16, torch.int32):
        raise InputError(f"{file.path}: {name} is {outline}, not a whole number; copy the file again")
    return int(file.read(name))


def _shape(file: ModelFile, name: str, rank: int) -> tuple[int, ...]:
    if name not in file.variables:
        raise InputError(f"{file.path}: {name} is missing; give a Whisper that CTranslate2 converted")
    outline: Outline = file.variables[name].outline
    if len(outline.shape) != rank or not outline.numel:
        raise InputError(f"{file.path}: {name} is {outline}, but has {rank} axes in a Whisper; copy the file again")
    return outline.shape


def _side(file: ModelFile, side: str, width: int) -> Side:
    layers = 0
    while f"{side}/layer_{layers}/ffn/linear_0/weight" in file.variables:
        layers += 1
    heads = _scalar(file, f"{side}/num_heads", width // HEAD_WIDTH)
    if heads < 1 or width % heads:
        held = f"{side}/num_heads is {heads}, which does not divide the width {width}"
        raise InputError(f"{file.path}: {held}; copy the file again")
    ffn, _ = _shape(file, f"{side}/layer_0/ffn/linear_0/weight", 2)
    positions, _ = _shape(file, f"{side}/position_encodings/encodings", 2)
    return Side(layers, heads, ffn, positions)


def _side_rows(side: str, sizes: Side, width: int) -> Iterator[tuple[str, Stack]]:
    D, F = width, sizes.ffn
    yield f"{side}/position_encodings/encodings", Stack((sizes.positions, D), (f"model.{side}.embed_positions.weight",))
    yield from _norm(f"{side}/layer_norm", f"model.{side}.layer_norm", D)
    for number in range(sizes.layers):
        source, target = f"{side}/layer_{number}", f"model.{side}.layers.{number}"
        yield from _projections(f"{source}/self_attention/linear_0", f"{target}.self_attn", D, "qkv")
        yield from _linear(f"{source}/self_attention/linear_1", f"{target}.self_attn.out_proj", D, D)
        yield from _norm(f"{source}/self_attention/layer_norm", f"{target}.self_attn_layer_norm", D)
        if side == "decoder":
            yield from _projections(f"{source}/attention/linear_0", f"{target}.encoder_attn", D, "q")
            yield from _projections(f"{source}/attention/linear_1", f"{target}.encoder_attn", D, "kv")
            yield from _linear(f"{source}/attention/linear_2", f"{target}.encoder_attn.out_proj", D, D)
            yield from _norm(f"{source}/attention/layer_norm", f"{target}.encoder_attn_layer_norm", D)
        yield from _linear(f"{source}/ffn/linear_0", f"{target}.fc1", F, D)
        yield from _linear(f"{source}/ffn/linear_1", f"{target}.fc2", D, F)
        yield from _norm(f"{source}/ffn/layer_norm", f"{target}.final_layer_norm", D)


def _linear(source: str, target: str, *shape: int) -> Iterator[tuple[str, Stack]]:
    yield f"{source}/weight", Stack(shape, (f"{target}.weight",))
    yield f"{source}/bias", Stack(shape[:1], (f"{target}.bias",))


def _projections(source: str, target: str, width: int, kinds: str) -> Iterator[tuple[str, Stack]]:
    rows = width * len(kinds)
    yield f"{source}/weight", Stack((rows, width), tuple(f"{target}.{kind}_proj.weight" for kind in kinds))
    yield f"{source}/bias", Stack((rows,), tuple(None if kind == "k" else f"{target}.{kind}_proj.bias" for kind in kinds))


def _norm(source: str, target: str, width: int) -> Iterator[tuple[str, Stack]]:
    yield f"{source}/gamma", Stack((width,), (f"{target}.weight",))
    yield f"{source}/beta", Stack((width,), (f"{target}.bias",))
