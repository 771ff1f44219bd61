"""Low-rank adapters of PEFT: folded into their base model, or cut to another rank.

Folding computes `W + s B A`, with `s = lora_alpha / r` (`/ √r` if rank-stabilised).

Source: Hu et al. 2022, arXiv 2106.09685, section 4.1; `s` for rank-stabilised adapters: Kalajdzievski 2023, arXiv 2312.03732.
PEFT need not be installed. The folded model is one like any other: it can be fine-tuned, and merged by curvature.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePath
from typing import Literal

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.containers import Checkpoint, open_checkpoint
from asrcl.merge.containers.adapters import Adapter, factorised
from asrcl.merge.containers.folders import open_weights
from asrcl.merge.numbers import as_before

FILES = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base model."""


def fold_adapter(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    differences: Literal["refuse", "note"] = "refuse",
    overwrite: bool = False,
) -> int:
    """Write the base model with the products of an adapter added to its weights; returns how many tensors changed.

    Products and sums are computed in double precision and rounded to the type of the base once. Weights that the adapter holds
    whole (`modules_to_save`, biases) take the place of those of the base.

    Args:
        adapter: folder with `adapter_config.json` and `adapter_model.safetensors`, of the kind LORA.
        base: the model that the adapter was trained on, a checkpoint of any container.
        out: where the folded model goes, in the container of the base, with everything that lies around it.
        differences: "refuse" a base whose name is not the one in `adapter_config.json`, or "note" it (a copy under another name).
        overwrite: replace a folder that exists.

    Raises:
        InputError: no adapter, one that is no sum of products, or another base; a tensor that the base lacks or that has another
            shape there; a result beyond its type; what cannot be read or written.
    """
    home = Path(adapter)
    factors = _factors(home, "folded in")
    if factors.config.get("fan_in_fan_out"):
        what = "is of layers that keep their weights transposed (fan_in_fan_out)"
        raise InputError(f"{home}: {what}; fold it in with PEFT (merge_and_unload)")
    named = str(factors.config.get("base_model_name_or_path") or "")
    if differences == "refuse" and named and PurePath(named).name != Path(base).resolve().name:
        remedy = f"give that, or --differences note if {base} is the same under another name"
        raise InputError(f"{home}: the adapter of {named}, not of {base}; {remedy}")
    with open_checkpoint(base) as start:
        stored = _targets(home, factors, start)
        with start.writer(out, overwrite=overwrite) as writer, torch.no_grad():
            for name in start.outlines:
                weight = start.read(name)
                writer.write(name, _folded(factors, stored[name], weight) if name in stored else weight)
    return len(stored)


def cut_adapter(
    adapter: str | os.PathLike[str], out: str | os.PathLike[str], rank: int, *, overwrite: bool = False
) -> dict[str, float]:
    """Write an adapter whose products have at most a given rank, each the nearest to what it was (Eckart and Young, 1936).

    The products `s B A` are cut after their largest singular values, in double precision, and written with `r` and `lora_alpha`
    set to the rank that the widest of them needs; what the adapter holds besides stays. So an adapter of one rank fits where
    another is expected, and a merged one takes no more room than those it was made of.

    Args:
        adapter: folder with `adapter_config.json` and `adapter_model.safetensors`, of the kind LORA.
        out: the folder to make.
        rank: of the products, above 0.
        overwrite: replace a folder that exists.

    Returns:
        For every product the part of its Frobenius norm that is lost, from 0 (nothing) to 1.

    Raises:
        InputError: no adapter, one that is no sum of products, a rank below 1; what cannot be read or written.
    """
    if rank < 1:
        raise InputError(f"--rank {rank}: must be at least 1")
    pairs = _factors(Path(adapter), "cut to a rank").pairs
    lost: dict[str, float] = {}
    with open_checkpoint(adapter) as start, start.writer(out, overwrite=overwrite) as writer:
        if wrapped := pairs.keys() - start.outlines.keys():
            raise InputError(f"{adapter}: {min(wrapped)} has a wrapper's prefix; save the adapter with save_pretrained")
        for name in start.outlines:
            tensor = start.read(name)
            if name in pairs:
                A_RI, B_OR = factorised(tensor.double().flatten(1))
                spectrum_R = A_RI.square().sum(1)  # every factor holds the root of each singular value
                lost[name] = float(spectrum_R[rank:].norm() / spectrum_R.norm().clamp_min(torch.finfo(torch.float64).tiny))
                tensor = (B_OR[:, :rank] @ A_RI[:rank]).reshape(tensor.shape)
            writer.write(name, tensor)
    return lost


def _factors(home: Path, purpose: str) -> Adapter:
    """The adapter in a folder of PEFT.

    Raises:
        InputError: there is none, or one without pairs of factors.
    """
    found = next((home / name for name in FILES if (home / name).is_file()), None)
    if found is None:
        raise InputError(f"{home}: holds no adapter (none of {', '.join(FILES)}); give the folder that PEFT saved")
    factors = Adapter(home, open_weights(found))
    if not factors.pairs:
        raise InputError(f"{home}: holds no pairs of lora_A and lora_B; only LoRA can be {purpose}")
    return factors


def _targets(home: Path, factors: Adapter, start: Checkpoint) -> dict[str, str]:
    """Name of a tensor in the base -> its name in the adapter.

    Raises:
        InputError: the base has no such tensor, or one of another shape.
    """
    stored = {name.removeprefix(PREFIX): name for name in factors.outlines}
    for name, inner in stored.items():
        if ".base_layer." in name:
            raise InputError(f"{home}: holds {name}, a copy of the base; save the adapter with save_embedding_layers=False")
        if name not in start.outlines:
            remedy = "give the base model of this adapter; a second name of a tied layer (proj_out) is folded in by PEFT alone"
            raise InputError(f"{home}: {name} is not in {start.path}; {remedy}")
        shape = factors.outlines[inner].shape
        shape = shape[::-1] if _is_table(factors, inner) else shape
        if shape != start.outlines[name].shape:
            held = f"{list(shape)} in the adapter and {list(start.outlines[name].shape)} in {start.path}"
            raise InputError(f"{home}: {name} is {held}; give the base model of this adapter")
    return stored


def _is_table(factors: Adapter, name: str) -> bool:
    """Whether a product belongs to an embedding, which keeps it transposed."""
    return name in factors.pairs and "lora_embedding_A" in factors.pairs[name].A


def _folded(factors: Adapter, name: str, weight: Tensor) -> Tensor:
    """A tensor of the base with what the adapter adds, or what it holds in its place."""
    held = factors.read(name).double()
    if name in factors.pairs:
        held = weight.double() + (held.mT if _is_table(factors, name) else held)
    try:
        return as_before(held, weight)
    except InputError as error:
        raise InputError(f"{name.removeprefix(PREFIX)}: {error}") from error
