"""Tasks, methods and whole runs that the tests of this folder share; also imported by the processes they start."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from asrcl.adapt import DomainLearner, Keep, Scenario, Tracking, TrackingConfig, TrainConfig, adapt_domains, run_method, training
from asrcl.keep import read_budgets
from asrcl.methods import build_method
from asrcl.testing import ClassificationTask, blob_domain, build_mlp, tiny_learner, tiny_scenario

training.SAVE_SECONDS = 0.0  # here the state of every epoch is written, short as it is, so that kills fall between all writes
QUICK = TrainConfig(epochs=3, learning_rate=0.03, average_best=2)


@dataclass
class CountingTask(ClassificationTask):
    """Counts its calls: `training` for the loss in training mode, `dev` for it in eval mode, and the rest by name."""

    calls: dict[str, int] = field(default_factory=dict)

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def loss(self, model, batch):
        self._count("training" if model.training else "dev")
        return super().loss(model, batch)

    def curvature_loss(self, model, batch):
        self._count("curvature")
        return super().curvature_loss(model, batch)

    def evaluate(self, model, domain, split):
        self._count("evaluate")
        return super().evaluate(model, domain, split)


def learner_on(domain: Any, task: Any = None, train: TrainConfig = QUICK, folder: Any = "unused", seed: int = 0) -> DomainLearner:
    """A learner for one domain; what trains a model of one's own asks it for the task and the seed."""
    return tiny_learner(folder, Scenario("one", [domain], task or ClassificationTask(), build_mlp), train, seed)


class Countdown:
    """Kills this process, as `kill -9` does, at the n-th call."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class KillingTask(ClassificationTask):
    """Kills the process at the n-th call of one of its functions."""

    where: str = ""
    countdown: Any = None

    def loss_and_outputs(self, model, batch):
        if self.where == "loss":
            self.countdown()
        return super().loss_and_outputs(model, batch)

    def curvature_loss(self, model, batch):
        if self.where == "curvature_loss":
            self.countdown()
        return super().curvature_loss(model, batch)

    def evaluate(self, model, domain, split):
        if self.where == "evaluate":
            self.countdown()
        return super().evaluate(model, domain, split)


def kill_before_file_operations(calls: int) -> None:
    """Kill this process at its n-th attempt to rename or remove a file."""
    countdown = Countdown(calls)
    for name in ("replace", "unlink"):
        original = getattr(os, name)

        def dying(*arguments, _original=original, **options):
            countdown()
            return _original(*arguments, **options)

        setattr(os, name, dying)


def adapt_once(
    folder: str, method: str, domains: int = 3, where: str = "", calls: int = 0, save_seconds: float = 0.0, keep: str = ""
) -> None:
    """A whole run under `folder`, killed at a point of one's choice; to be called in a process of its own."""
    training.SAVE_SECONDS = save_seconds
    os.environ["PATH"] = ""  # the state of the source tree, which git tells, may change between two runs
    if where == "file":
        kill_before_file_operations(calls)
    task = KillingTask(where=where, countdown=Countdown(calls))
    scenario = tiny_scenario(domains, trained=False, dropout=0.2, task=task)
    learner = tiny_learner(folder, scenario, QUICK)
    if keep:
        scenario.probes = [blob_domain("probe", 77, 0.4, sizes={"dev": 64, "test": 48})]
        learner.keep = Keep(read_budgets(keep))
    run_method(learner, build_method(method), Path(folder) / "run")
    adapt_domains(learner, build_method(method), Path(folder) / "run")


def start_run_in_database(folder: str, number: int) -> None:
    """One MLflow run in a database that several processes make at once; to be called in a process of its own."""
    home = Path(folder)
    (home / str(number)).mkdir(exist_ok=True)
    tracking = Tracking(TrackingConfig(backends=("mlflow",)), home)
    tracking.replay(f"a{number}", home / str(number), {}, [{"loss": 1.0}])
    assert tracking.backends == ["mlflow"]


def outcome(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves that must not depend on how it was run: bytes by relative path."""
    run = folder / "run"
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "costs.json"]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def with_domain(scenario: Scenario, number: int, domain: Any) -> Scenario:
    """The scenario with one domain replaced; the initial model stays."""
    domains = [*scenario.domains]
    domains[number] = domain
    return Scenario(scenario.name, domains, scenario.task, scenario.build_model, scenario.initial, {}, scenario.model_config)


def equal_states(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)
