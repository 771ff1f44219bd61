"""What is known of a checkpoint before its tensors are read: their outlines, and where everything came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from asrcl.exceptions import InputError
from asrcl.merge.sources import Sized, kind_of

WRAPPING = ("module.", "_orig_mod.")
"""Prefixes that DataParallel, DDP and `torch.compile` put before every name; they never belong to the model."""


@dataclass(frozen=True)
class Outline:
    """Shape and type of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, like: Sized) -> Outline:
        """The outline of a tensor, or of anything with a shape and a type."""
        return cls(tuple(like.shape), like.dtype)

    @property
    def numel(self) -> int:
        """The number of entries."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """The number of bytes of the data."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{list(self.shape)} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Origin:
    """Where a model lies and what lies around it.

    Attributes:
        kind: "safetensors", "torch", "hf folder", "speechbrain", "nemo" or "nemo folder".
        path: what was opened.
        files: the files that hold the weights.
        extras: what is carried over unchanged: files of a folder, members of an archive, keys beside the state dict.
        wrapper: the keys around the state dict, joined by dots; empty where there are none.
        prefix: what was before every name in the file, such as "module.".
        notes: what a writer of this checkpoint leaves out or does not touch, one sentence each.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    extras: tuple[str, ...] = ()
    wrapper: str = ""
    prefix: str = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 in hexadecimal of the weight file; of several, of the listing that `sha256sum` makes of them."""
        digests = [_sha256(file) for file in self.files]
        if len(digests) == 1:
            return digests[0]
        listing = "".join(f"{digest}  {file.name}\n" for digest, file in zip(digests, self.files, strict=True))
        return hashlib.sha256(listing.encode()).hexdigest()


def common_prefix(names: Iterable[str], lightning: bool = False) -> str:
    """What wrapped modules put before every name.

    A Lightning module that holds its network as `self.model` puts `model.` first; elsewhere `model.` is a part of the model, as
    in Whisper, and stays.
    """
    rest = list(names)
    prefix = ""
    candidates = [*WRAPPING, "model."] if lightning else list(WRAPPING)
    while rest and (found := next((c for c in candidates if all(n.startswith(c) and n != c for n in rest)), None)):
        prefix += found
        rest = [name.removeprefix(found) for name in rest]
        if found == "model.":
            candidates.remove(found)
    return prefix


def check_outline(where: str, name: str, like: Sized, outlines: Mapping[str, Outline]) -> None:
    """Refuse a tensor that the plan of a file does not expect.

    Raises:
        InputError: names the file, the tensor and both outlines.
    """
    if name not in outlines:
        raise InputError(f"{where}: there is no tensor {name} in the plan of this checkpoint; give its outline in outlines=")
    found = Outline.of(like)
    if found != outlines[name]:
        raise InputError(f"{where}: {name} is {found}, but {outlines[name]} was planned; convert it or give outlines=")


def check_whole(where: str, outlines: Mapping[str, Sized]) -> None:
    """Refuse a part of a model that was partitioned over processes: placeholders without numbers, flattened shards.

    Raises:
        InputError: names the file, a tensor and how to gather the model.
    """
    flat = next((name for name in outlines if "_flat_param" in name), None)
    if flat is not None:
        remedy = "save the whole model with StateDictType.FULL_STATE_DICT"
        raise InputError(f"{where}: {flat} is a flattened shard of FSDP, not a weight of the model; {remedy}")
    floats = {name: tuple(outline.shape) for name, outline in outlines.items() if kind_of(outline.dtype) != "whole"}
    empty = [name for name, shape in floats.items() if shape == (0,)]
    named = [name for name in empty if name.rpartition(".")[2] in ("weight", "bias")]
    if named or 2 * len(empty) > max(len(floats), 2):
        first = (named or empty)[0]
        remedy = "gather the model first (DeepSpeed's zero_to_fp32.py, or save with stage3_gather_16bit_weights_on_model_save)"
        raise InputError(f"{where}: {first} is an empty placeholder, as ZeRO-3 leaves where weights are partitioned; {remedy}")


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); copy it again") from error
