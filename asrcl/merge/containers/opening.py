"""Opening what the user gives, a path, a module or a state dict, as a checkpoint or a state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from asrcl.exceptions import InputError
from asrcl.merge.containers import folders, nemo, pickled, tensor_files
from asrcl.merge.containers.checkpoint import Checkpoint
from asrcl.merge.containers.outline import check_whole
from asrcl.merge.containers.single import SingleFile
from asrcl.merge.containers.state_dicts import find_state
from asrcl.merge.containers.weights import INDEX_SUFFIX

Source = Mapping[str, Tensor] | nn.Module | str | os.PathLike[str]
SUFFIXES = (tensor_files.SUFFIX, *pickled.SUFFIXES, nemo.SUFFIX)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint of any known container; no tensor is read yet, and no code in it ever runs.

    Args:
        path: a `.safetensors`, `.pt`, `.pth`, `.ckpt`, `.bin` or `.nemo` file; a Hugging Face folder or the index of its shards;
            a SpeechBrain `CKPT+...` folder.

    Raises:
        InputError: it is missing, damaged, unsafe or unknown.
    """
    path = Path(path)
    if path.is_dir():
        return folders.open_folder(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.name.endswith(INDEX_SUFFIX):
        return folders.open_index(path)
    if path.suffix.lower() == nemo.SUFFIX:
        return nemo.NemoArchive(path)
    if path.suffix.lower() in (tensor_files.SUFFIX, *pickled.SUFFIXES):
        return SingleFile(path)
    known = ", ".join((*SUFFIXES, f"*{INDEX_SUFFIX}"))
    raise InputError(f"{path}: unknown kind of checkpoint; read are {known}, and folders of Hugging Face and SpeechBrain")


def load_state(source: Source, role: str = "checkpoint") -> dict[str, Tensor]:
    """The whole state dict of a module, a (wrapped) dict of tensors, or a checkpoint, of which `open_checkpoint` says the kinds.

    Tensors of modules and dicts stay where they lie, under their names; those of files come to the CPU and do not depend on the
    file any more.

    Args:
        source: where the weights are.
        role: how messages call a source without a path ("old", "new").

    Raises:
        InputError: the file is missing, damaged or unsafe, or there is no state dict.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if isinstance(source, Mapping):
        state = dict(find_state(source, role)[1])
        check_whole(role, state)
        return state
    if not isinstance(source, str | os.PathLike):
        raise InputError(f"{role}: a {type(source).__name__} is no model; give a state dict, a module or a path")
    with open_checkpoint(source) as checkpoint:
        if checkpoint.kind == "peft folder":
            remedy = "merge_files (asrcl merge) writes the result as an adapter folder"
            raise InputError(f"{source}: an adapter is merged as products, which are no state dict of its own; {remedy}")
        return {name: checkpoint.read(name) for name in checkpoint.outlines}
