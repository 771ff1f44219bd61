"""What the processes of the tests do; a module of its own so that they can import it."""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from adapt_cases import QUICK, adapt_once, learner_on

from asrcl.adapt import Cache, TrainConfig, Trainer, adapt_domains, fingerprint, run_method, state_of
from asrcl.boundary import in_one_line
from asrcl.methods import Method, build_method
from asrcl.testing import ClassificationTask, blob_domain, build_mlp, tiny_learner

CYCLE = replace(QUICK, epochs=4, schedule="one_cycle")


def make_alone(folder: str) -> tuple[str, bool]:
    """Ask for an entry as one of two independent processes, at the same time as the other."""
    rank = os.environ.pop("RANK")
    os.environ["WORLD_SIZE"] = "1"
    made = []

    def make(work):
        made.append(True)
        time.sleep(0.3)
        (work / "maker").write_text(rank)

    (Path(folder) / f"ready{rank}").touch()
    while len(list(Path(folder).glob("ready*"))) < 2:
        time.sleep(0.005)
    entry = Cache(Path(folder) / "cache").entry("kind", {"x": 1}, make)
    return (entry / "maker").read_text(), bool(made)


class StopTraining(Exception):  # noqa: N818 - nothing went wrong
    """Ends a training early, in all processes at once."""


def train(folder: Path, config: TrainConfig, items: int, stop_at: int = -1, dropout: float = 0.0) -> dict[str, Any]:
    """Train a small model with whatever processes there are, and tell what this process ended with."""
    torch.manual_seed(7)
    domain = blob_domain("blobs", sizes={"train": items, "dev": 40, "test": 8})

    class Stopping(ClassificationTask):
        def loss(self, model: Any, batch: Any) -> Any:
            if model.training and run.progress.epoch == stop_at:
                raise StopTraining
            return super().loss(model, batch)

    learner = learner_on(domain, Stopping(), config, folder)
    run = Trainer(learner, build_mlp(dropout=dropout), domain, config, Method(), folder)
    try:
        final = run.fit()
    except StopTraining:
        return {}
    moments = {
        f"{index}.{name}": value for index, slot in run.optimizer.state_dict()["state"].items() for name, value in slot.items()
    }
    return {
        "final": final,
        "last": state_of(run.model),
        "moments": fingerprint(moments),
        "steps": run.progress.steps,
        "history": [(epoch["train_loss"], epoch["dev_loss"]) for epoch in run.progress.history],
    }


def adapt_on_a_small_disk(folder: str, limit: int) -> tuple[str, str]:
    """A whole run, of whose files none may be larger than `limit` bytes (0: any may); how it ended, and what it said."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    said, before = io.StringIO(), sys.stderr
    sys.stderr = said
    code = 0
    try:
        with in_one_line():
            adapt_once(folder, "ihr", 2)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stderr = before
    return str(code), said.getvalue()


def work_together(folder: str) -> dict[str, Any]:
    """Everything that is checked about two processes of one `torchrun`, in one start of them."""
    home = Path(folder)
    train(home / "resumed", CYCLE, 72, stop_at=2, dropout=0.3)
    run_method(tiny_learner(home), build_method("ihr"), home / "run")
    adapt_domains(tiny_learner(home), build_method("ihr"), home / "run")
    return {
        "even": train(home / "even", CYCLE, 64),
        "uneven": train(home / "uneven", CYCLE, 72),
        "whole": train(home / "whole", CYCLE, 72, dropout=0.3),
        "resumed": train(home / "resumed", CYCLE, 72, dropout=0.3),
        "accumulated": train(home / "accumulated", replace(CYCLE, accumulate=2), 72),
    }
