"""Reading and writing curvature files; the format is defined in docs/curvature_format.md."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asrcl.curvature.blocks import Block, BlockKey, DiagonalBlock, KroneckerBlock
from asrcl.exceptions import InputError
from asrcl.files import atomic_path

FORMAT = "asrcl-curvature"
VERSION = "1"


def write(
    path: str | os.PathLike[str], blocks: Mapping[BlockKey, Block], metadata: Mapping[str, Any]
) -> None:
    """Write blocks and metadata atomically.

    Raises:
        InputError: the folder cannot be written, or the metadata is not JSON.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}
    entries = []
    for number, (key, block) in enumerate(blocks.items()):
        entry: dict[str, Any] = {"kind": block.kind, "parameter": key.name, "rows": list(key[1:])}
        entry["items"] = block.items
        if isinstance(block, KroneckerBlock):
            entry["positions"] = block.positions
        for role, tensor in block.tensors().items():
            name = names.setdefault(id(tensor), f"{role}.{number}")
            tensors[name] = tensor.detach().contiguous()
            entry[role] = name
        entries.append(entry)
    try:
        described = {"blocks": json.dumps(entries), "metadata": json.dumps(dict(metadata))}
    except (TypeError, ValueError) as error:
        remedy = "keep to strings, numbers, lists and dicts"
        raise InputError(f"{path}: the metadata is not JSON ({error}); {remedy}") from error
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "version": VERSION, **described})


def read(
    path: str | os.PathLike[str], device: torch.device | str
) -> tuple[dict[BlockKey, Block], dict[str, Any]]:
    """Read blocks and metadata; blocks that share a tensor in the file share it in memory.

    Raises:
        InputError: the file is missing, damaged, or of another format.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; estimate the curvature first")
    try:
        with safe_open(path, framework="pt", device=str(device)) as stream:
            header = stream.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path}: a safetensors file, but no curvature (no format={FORMAT} in it)")
            if header.get("version") != VERSION:
                version = header.get("version")
                raise InputError(f"{path}: curvature format version {version}; this asrcl reads {VERSION}")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 (not a dict)
        blocks = dict(_block(entry, tensors) for entry in json.loads(header["blocks"]))
        return blocks, json.loads(header["metadata"])
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = f"not a readable curvature file ({error})"
        raise InputError(f"{path}: {reason}; estimate the curvature again") from error


def _block(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> tuple[BlockKey, Block]:
    key = BlockKey(entry["parameter"], *entry["rows"])
    height = key.row_stop - key.row_start
    block: Block
    if entry["kind"] == "kronecker":
        sums = tensors[entry["input"]], tensors[entry["output"]]
        block = KroneckerBlock(*sums, entry["positions"], entry["items"])
        square = all(t.dim() == 2 and t.shape[0] == t.shape[1] for t in block.tensors().values())
        sound = square and block.positions > 0
    elif entry["kind"] == "diagonal":
        block = DiagonalBlock(tensors[entry["diagonal"]], entry["items"])
        sound = block.square_sum.dim() > 0
    else:
        raise ValueError(f"{key} has the unknown kind {entry['kind']}")
    if not (sound and block.rows == height and block.items > 0):
        raise ValueError(f"{key} has tensors of the wrong shape or no counts")
    if not all(torch.isfinite(tensor).all() for tensor in block.tensors().values()):
        raise ValueError(f"{key} is not finite")
    return key, block
