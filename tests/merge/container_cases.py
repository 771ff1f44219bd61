"""Checkpoints laid out as each toolkit lays them out, and the law that all of them pass."""

from __future__ import annotations

import argparse
import io
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from asrcl.merge.containers import open_checkpoint

torch.set_num_threads(1)


def odd_state(seed: int = 0) -> dict[str, Tensor]:
    """Every type and shape that a speech model may hold, in an order that sorting would change."""
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(5, 3, generator=g)
    return {
        "encoder.weight": matrix,
        "encoder.half": torch.randn(3, 2, generator=g).half(),
        "encoder.brain": torch.randn(7, generator=g).bfloat16(),
        "batches": torch.tensor(3 + seed),
        "a.mask": torch.tensor([True, False, seed % 2 == 0]),
        "nothing": torch.empty(0, 4),
        "scalar": torch.randn((), generator=g, dtype=torch.float64),
        "across": torch.randn(4, 6, generator=g).T,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "last": torch.randn(2, 3, 2, generator=g)[:, 1],
    }


def bits(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, bytes]:
    content = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), tensor.dtype, content


def content(path: Path) -> list[tuple[str, object]]:
    """Names in order, each with shape, type and bits."""
    with open_checkpoint(path) as checkpoint:
        for name, outline in checkpoint.outlines.items():
            tensor = checkpoint.read(name)
            assert (tuple(tensor.shape), tensor.dtype) == (outline.shape, outline.dtype)
        return [(name, bits(checkpoint.read(name))) for name in checkpoint.outlines]


def rewrite(source: Path, out: Path, change=lambda name, tensor: tensor, **options) -> Path:
    """Write every tensor of a checkpoint again, last first."""
    with open_checkpoint(source) as checkpoint, checkpoint.writer(out, **options) as writer:
        for name in reversed(checkpoint.outlines):
            writer.write(name, change(name, checkpoint.read(name)))
    return out


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ---- the layouts


def plain_state(folder: Path) -> Path:
    """ESPnet's valid.acc.ave.pth, and WeNet's avg_30.pt."""
    path = folder / "valid.acc.ave.pth"
    torch.save(OrderedDict(odd_state()), path)
    return path


def data_parallel(folder: Path) -> Path:
    path = folder / "epoch_3.pt"
    torch.save({f"module.{name}": tensor for name, tensor in odd_state().items()}, path)
    return path


def legacy(folder: Path) -> Path:
    """What torch wrote before 1.6."""
    path = folder / "old.pt"
    torch.save(odd_state(), path, _use_new_zipfile_serialization=False)
    return path


def espnet_training(folder: Path) -> Path:
    path = folder / "checkpoint.pth"
    torch.save({"model": odd_state(), "reporter": {"epoch": 3}, "optimizers": [{"state": {}}], "scaler": None}, path)
    return path


def icefall(folder: Path) -> Path:
    """A training checkpoint with a running average and the flags of the run among the keys."""
    path = folder / "epoch-30.pt"
    average = {name: tensor.double() for name, tensor in odd_state(5).items() if tensor.is_floating_point()}
    flags = {"exp_dir": Path("exp"), "lr": 0.045, "best_valid_loss": np.float64(0.25), "env_info": {"k2": "1.24"}}
    torch.save({"model": odd_state(), "model_avg": average, "optimizer": {"state": {0: torch.ones(2)}}, **flags}, path)
    return path


def lightning(folder: Path) -> Path:
    path = folder / "last.ckpt"
    state = {f"model.{name}": tensor for name, tensor in odd_state().items()}
    hyper = {"args": argparse.Namespace(layers=2)}
    loops = {"epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.4.0", "optimizer_states": [{"state": {}}]}
    torch.save({**loops, "state_dict": OrderedDict(state), "hyper_parameters": hyper}, path)
    return path


def tutorial(folder: Path) -> Path:
    path = folder / "tutorial.bin"
    torch.save({"epoch": 1, "model_state_dict": odd_state()}, path)
    return path


def safetensors(folder: Path) -> Path:
    path = folder / "m.safetensors"
    state = {name: tensor.contiguous() for name, tensor in odd_state().items()}
    save_file(state, path, metadata={"format": "pt", "author": "me"})
    return path


def nemo(folder: Path, mode: str = "w", members: dict[str, bytes] | None = None, name: str = "model.nemo") -> Path:
    """Members as NeMo packs them, the weights in the middle."""
    weights = io.BytesIO()
    torch.save(OrderedDict(odd_state()), weights)
    path = folder / name
    default = {
        "./model_config.yaml": b"target: nemo.EncDecCTCModelBPE\n",
        "./model_weights.ckpt": weights.getvalue(),
        "./a1b2_tokenizer.model": bytes(range(256)),
        "./a1b2_vocab.txt": "ä\nö\n".encode(),
    }
    with tarfile.open(path, mode) as archive:
        archive.addfile(directory("."))
        for member, data in (members or default).items():
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def directory(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type = tarfile.DIRTYPE
    return entry


TORCH = [plain_state, data_parallel, legacy, espnet_training, icefall, lightning, tutorial]
FILES = [*TORCH, safetensors, nemo]
