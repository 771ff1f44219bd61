"""What the processes of the tests do; a module of its own so that they can import it."""

from __future__ import annotations

from pathlib import Path

import torch
from image_cases import PAIRS, configured

from asrcl.adapt import load_weights
from asrcl.distributed import processes
from asrcl.experiment.run import adapt_all, train_all
from asrcl.images.models import build_classifier
from asrcl.scoring import RunResult

METHODS = ("er", "agem", "halrp")


def adapt_heads(folder: str, *more: str) -> dict[str, tuple[list[list[int]], dict[str, torch.Tensor]]]:
    """Some methods on three heads and batch normalisation, with whatever processes there are: error counts, last weights."""
    lenet = ["model=lenet", "model.widths=[4,8,32,16]", "train.adapt.epochs=3", "train.adapt.learning_rate=3e-3"]
    config = configured(Path(folder), "split_digits", PAIRS, *lenet, *more)
    train_all(config, [1])
    adapt_all(config, METHODS, [1], decode=True, save=True)
    runs = {name: config.home / name / "1" for name in METHODS}
    processes().barrier()
    return {
        name: (RunResult.load(run / "results.json").errors, load_weights(run / "stage3" / "model.safetensors"))
        for name, run in runs.items()
    }


def gradients_of_unlike_losses() -> list[list[float] | None]:
    """The averaged gradients of the heads' biases where every process has used another head, and nobody the third."""
    rank, model = processes().rank, build_classifier({"kind": "mlp", "widths": [4]}, (1, 2, 2), {"a": 2, "b": 2, "c": 2})
    processes().align(model)
    model(torch.ones(3, 1, 2, 2), "ab"[rank])[:, 0].sum().backward()
    processes().average_gradients(model)
    return [None if head.bias.grad is None else head.bias.grad.tolist() for head in model.heads]
