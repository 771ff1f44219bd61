"""Fine-tuning on one domain: the only training loop there is.

One process, or several under `torchrun` (n batches, one each, make a step; gradients are averaged). All randomness of an epoch
comes from the seed and the epoch's number, and the whole state, the method's included, is written after every epoch (of short
ones, after some), so a killed run ends with the same weights as one that was left alone.
"""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from asrcl.adapt.parts import pairs_of, parameter_groups
from asrcl.adapt.progress import duration
from asrcl.adapt.resume import clear_progress, has_progress, load_progress, save_progress, saved_progress
from asrcl.adapt.sharpness import ascended
from asrcl.adapt.trackers import TrackedRun
from asrcl.contract.method import Method
from asrcl.contract.protocols import Batch, Domain, Learner
from asrcl.contract.weights import average_states, fingerprint, load_weights, save_weights
from asrcl.distributed import processes
from asrcl.exceptions import InputError
from asrcl.state import StateDict

logger = logging.getLogger(__name__)

TOO_FEW: Final = "Expected more than 1"  # how torch's normalisations begin to complain of a batch with nothing to average over
NAMED: Final = 4
LEFT_OUT: Final = ("freeze", "layer_rates", "sam", "sam_adaptive")
"""Options of which a key says nothing where they are off, so that keys of before there were such options still hold."""
LOOKED_AT_EVERY: Final = {"cpu": 1}
OTHERWISE_EVERY: Final = 32
"""So many losses stay on an accelerator before they are looked at: to read one, the processor waits for all work so far."""
SAVE_SECONDS = 5.0
"""Training that took less since the state was last written is not worth writing it: a run that is killed does it once more."""
LOG_SECONDS: Final = 1.0
"""An epoch that took less has no line on the log, where hundreds of them would hide what stages say."""
_Shared = tuple[Batch, int, int]


class DivergedError(InputError):
    """The loss of a training run is not finite."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: passes over the training data. optimizer: "adam", "adamw" or "sgd". learning_rate: peak learning rate ("noam":
        the factor of that schedule). schedule: "constant"; "one_cycle" (linear up to `warmup` of the run, cosine down to 0);
        "linear" (the same, linear down to 0);
            "exponential" (times `decay` with every epoch, step by step); "noam" (Vaswani et al., 2017).
        decay: of "exponential": what an epoch multiplies the rate by, however many items it has.
        warmup: share of the run for "one_cycle" and "linear".
        warmup_steps: number of optimiser steps for "noam".
        model_size: D of "noam".
        weight_decay: of the optimiser.
        momentum: of "sgd".
        gradient_clip: largest gradient norm, 0 for no limit.
        accumulate: batches per optimiser step.
        average_best: the final model is the mean of this many epochs, those with the lowest dev loss; 1 takes the best.
        precision: "fp32", or "bf16" for automatic mixed precision.
        freeze: patterns of parameter names (`model.encoder.*`) that stay as they are.
        layer_rates: `PATTERN=FACTOR` texts; the first whose pattern matches a parameter's name says what its learning rate is
            multiplied by, 0 leaves it as it is.
        sam: rho of sharpness-aware minimisation (`asrcl.adapt.sharpness`), which takes a second pass for every step; 0 for none.
        sam_adaptive: in units of each weight (ASAM).
    """

    epochs: int = 10
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 3e-4
    schedule: Literal["constant", "one_cycle", "linear", "exponential", "noam"] = "constant"
    decay: float = 0.95
    warmup: float = 0.25
    warmup_steps: int = 4000
    model_size: int = 256
    weight_decay: float = 0.0
    momentum: float = 0.0
    gradient_clip: float = 5.0
    accumulate: int = 1
    average_best: int = 3
    precision: Literal["fp32", "bf16"] = "fp32"
    freeze: tuple[str, ...] = ()
    layer_rates: tuple[str, ...] = ()
    sam: float = 0.0
    sam_adaptive: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.accumulate < 1 or self.average_best < 1:
            raise InputError("train: epochs, accumulate and average_best must be at least 1")
        if self.learning_rate <= 0:
            raise InputError(f"train.learning_rate={self.learning_rate}: must be positive")
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise InputError(f"train.{name}={getattr(self, name)}: choose from {', '.join(get_args(hint))}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"train.warmup={self.warmup}: a share of the run, at least 0 and below 1; noam has warmup_steps")
        if not 0 < self.decay <= 1:
            raise InputError(f"train.decay={self.decay}: what an epoch multiplies the learning rate by, above 0 and at most 1")
        if not 0 <= self.sam < math.inf:
            raise InputError(f"train.sam={self.sam}: a radius, finite and not negative; 0 for none")
        pairs_of(self.layer_rates)
        if self.warmup_steps < 1:
            raise InputError(f"train.warmup_steps={self.warmup_steps}: must be at least 1")
        if self.momentum and (self.optimizer != "sgd" or not 0 <= self.momentum < 1):
            raise InputError(f"train.momentum={self.momentum}: of optimizer=sgd alone, at least 0 and below 1")

    def key(self) -> dict[str, Any]:
        """All that decides what training does, for cache keys."""
        return {name: value for name, value in asdict(self).items() if value or name not in LEFT_OUT}


@dataclass
class Progress:
    """What is known after some epochs: losses per epoch and the kept ones."""

    epoch: int = 0
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def best(self, count: int) -> list[int]:
        """Numbers of the epochs (from 1) with the lowest dev loss, best first."""
        ranked = sorted(range(len(self.history)), key=lambda i: self.history[i]["dev_loss"])
        return [i + 1 for i in ranked[:count]]


def learning_rate(config: TrainConfig, done: float, step: int) -> float:
    """Learning rate of optimiser step `step` (from 1) with which the share `done` of the run is over.

    A function of our own beside torch's schedulers: these count steps, and need to know beforehand how many there will be; how
    many batches an epoch has is known only when it is over, for every epoch groups items of similar length anew.
    """
    if config.schedule == "noam":
        scale = min(step**-0.5, step * config.warmup_steps**-1.5)
        return config.learning_rate * config.model_size**-0.5 * scale
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "exponential":
        return float(config.learning_rate * config.decay ** (done * config.epochs))
    if done < config.warmup:
        return config.learning_rate * max(done / config.warmup, 1e-3)
    left = (done - config.warmup) / (1 - config.warmup)
    if config.schedule == "linear":
        return config.learning_rate * (1 - left)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * left))


def seed_everything(*numbers: int) -> int:
    """Seed Python, numpy and torch from a few numbers; returns the seed."""
    seed = int(np.random.SeedSequence([abs(number) for number in numbers]).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = parameter_groups(model, config.freeze, config.layer_rates)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.learning_rate, config.momentum, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _blocks(batches: Iterable[_Shared], count: int) -> Iterator[list[_Shared]]:
    """The batches of one optimiser step after the other; the last step may have fewer."""
    iterator = iter(batches)
    while block := list(islice(iterator, count)):
        yield block


def _name(batch: Batch, number: int) -> str:
    """The number of a batch, and which items it has if it says so, the first few of them."""
    names = [str(name) for name in getattr(batch, "ids", ())]
    listed = f" ({', '.join(names[:NAMED])}{', ...' if len(names) > NAMED else ''})" if names else ""
    return f"{number}{listed}"


@dataclass
class _Losses:
    """The losses of an epoch: looked at when some have gathered, so that an accelerator is not waited for in every step.

    Attributes:
        every: how many gather.
        refuse: called with a value that is not finite, the number of optimiser steps before it, and where it arose; None where
            several processes train together, which must all stop at the same place.
    """

    every: int
    refuse: Callable[[float, int, str], None] | None
    total: float = 0.0
    items: float = 0.0
    _waiting: list[tuple[Tensor, int, int, Batch, int]] = field(default_factory=list)

    def add(self, loss: Tensor, items: int, steps: int, batch: Batch, number: int) -> None:
        self._waiting.append((loss.detach(), items, steps, batch, number))
        if len(self._waiting) >= self.every:
            self.look()

    def look(self) -> None:
        """Add up what has gathered, and stop at a loss that is not finite."""
        if not self._waiting:
            return
        losses = [entry[0] for entry in self._waiting]
        values = torch.stack(losses).tolist() if len(losses) > 1 else [losses[0].item()]
        for value, (_, items, steps, batch, number) in zip(values, self._waiting, strict=True):
            if self.refuse is not None and not math.isfinite(value):
                self.refuse(value, steps, f" at batch {_name(batch, number)}")
            self.total, self.items = self.total + value * items, self.items + items
        self._waiting.clear()


class Trainer:
    """Trains one model on one domain.

    Args:
        learner: the run that it is a part of: task, seed, and what the method asks for.
        model: as the method wants it trained; trained in place.
        domain: the data.
        config: how to train.
        method: its hooks are called.
        folder: where progress is kept; a later call with the same arguments goes on from there.
        track: starts a run on dashboards, given the numbers of the epochs that are done; the first process alone calls it.
    """

    def __init__(
        self,
        learner: Learner,
        model: nn.Module,
        domain: Domain,
        config: TrainConfig,
        method: Method,
        folder: Path,
        track: Callable[[list[dict[str, float]]], TrackedRun] | None = None,
    ) -> None:
        self.learner, self.model, self.domain, self.config, self.method = learner, model, domain, config, method
        self.folder, self.track = folder, track
        self.processes = processes()
        self.device = next(model.parameters()).device
        self.optimizer = _optimizer(model, config)
        self.progress = Progress()
        self.processes.align(model)
        self._method_before = fingerprint(method.training_state())
        self._unsaved: dict[int, StateDict] = {}  # weights of epochs that are among the best and not on the disk
        self._saved_at = time.monotonic()

    def fit(self) -> StateDict:
        """Train all epochs and return the averaged weights.

        Raises:
            DivergedError: the loss is not finite, naming epoch and step; epochs that were written are kept.
            InputError: a split is empty.
        """
        for split in ("train", "dev"):
            if not self.domain.size(split):
                raise InputError(f"{self.domain.name}: no {split} items; training needs both a train and a dev split")
        self._resume()
        run = self.track(self.progress.history) if self.track and not self.processes.rank else None
        try:
            self._train(run)
        except BaseException:
            if run:
                run.close(failed=True)
            raise
        if run:
            run.close()
        best = self.progress.best(self.config.average_best)
        states = [self._unsaved.get(epoch) or load_weights(self._epoch_file(epoch)) for epoch in best]
        self.processes.barrier()  # the caller may now remove the files
        return average_states(states)

    def _train(self, run: TrackedRun | None) -> None:
        while self.progress.epoch < self.config.epochs:
            started = time.perf_counter()
            train_loss = self._train_epoch()
            record = {"train_loss": train_loss, "dev_loss": self._dev_loss(), "seconds": time.perf_counter() - started}
            self.progress.epoch += 1
            self.progress.history.append(record)
            self._keep()
            self._log(record, run)

    def _epoch_file(self, epoch: int) -> Path:
        return self.folder / f"epoch{epoch:03d}.safetensors"

    def _resume(self) -> None:
        """Go on from the last whole epoch, if there is one, it is sound, and it was trained in the same way."""
        if self.processes.rank == 0:
            self._discard_other_progress()
        self.processes.barrier()
        if facts := saved_progress(self.folder):
            self.progress = Progress(facts["epoch"], facts["steps"], facts["history"])
            state = load_progress(self.folder, self.progress.epoch, self.model, self.optimizer)
            if facts["method_state"]:
                self.method.load_state_dict({name: value.to(self.device) for name, value in state.items()})
            logger.info("%s: going on after epoch %d", self.domain.name, self.progress.epoch)

    def _discard_other_progress(self) -> None:
        facts, wanted = saved_progress(self.folder), self._origin
        found = facts["origin"] if facts else wanted
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            what = ", ".join(f"{name} {found.get(name)}, now {wanted[name]}" for name in differing)
            logger.warning("%s: trained from the first epoch again, since it was begun otherwise (%s)", self.folder, what)
            clear_progress(self.folder)

    @cached_property
    def _origin(self) -> dict[str, Any]:
        """All that decides what an epoch does to the weights; a run that goes on must agree in it."""
        origin = {
            **self.config.key(),
            "data": [self.domain.fingerprint(split) for split in ("train", "dev")],
            "method": self.method.key(),
            "seed": self.learner.seed,
            **self.processes.made_by(self.device),
        }
        return dict(json.loads(json.dumps(origin, default=str)))

    def _keep(self) -> None:
        """Keep the epoch's weights if it is among the best, and write the state if to train so far again would take long."""
        if self.processes.rank == 0:
            best, epoch = self.progress.best(self.config.average_best), self.progress.epoch
            if epoch in best:
                self._unsaved[epoch] = self.method.unwrap(self.learner, self.model)
            self._unsaved = {number: state for number, state in self._unsaved.items() if number in best}
            if self.processes.count > 1 or time.monotonic() - self._saved_at >= SAVE_SECONDS:  # all of them read the files
                self._save(best)
        self.processes.barrier()

    def _save(self, best: list[int]) -> None:
        for epoch, weights in self._unsaved.items():
            save_weights(weights, self._epoch_file(epoch))
        self._unsaved.clear()
        state = self.method.training_state()
        changed = fingerprint(state) != self._method_before
        facts = {**asdict(self.progress), "origin": self._origin, "method_state": changed}
        kept = [self._epoch_file(epoch).name for epoch in best]
        save_progress(self.folder, self.model, self.optimizer, facts, kept, state if changed else {})
        self._saved_at = time.monotonic()

    def _train_epoch(self) -> float:
        seed = seed_everything(self.learner.seed, self.progress.epoch)
        self.model.train()
        self.method.start_epoch(self.learner, self.model, self.progress.epoch)
        self.optimizer.zero_grad(set_to_none=True)
        refuse = partial(self._refuse, "loss") if self.processes.count == 1 else None
        losses = _Losses(LOOKED_AT_EVERY.get(self.device.type, OTHERWISE_EVERY), refuse)
        batches = self.processes.share(self.domain.batches("train", shuffle=True, seed=seed))
        size, number, seen = self.domain.size("train"), 0, 0
        for step in _blocks(self._progress_bar(batches), self.config.accumulate):
            items = sum(together for _, _, together in step)
            for batch, mine, _ in step:
                number += 1
                # The weight makes a step's gradient the mean over its items, whatever the sizes of its batches.
                loss = self._backward(batch.to(self.device), self.processes.count * mine / items, number)
                losses.add(loss, mine, self.progress.steps, batch, number)
            if self.config.sam:
                with ascended(self.model, self.config.sam, self.config.sam_adaptive):  # each process by its own gradients
                    for batch, mine, _ in step:
                        self._backward(batch.to(self.device), self.processes.count * mine / items, number)
            seen += items
            share = min(seen / size, 1.0) if len(step) == self.config.accumulate else 1.0
            self._step((self.progress.epoch + share) / self.config.epochs)
        losses.look()
        mean = self.processes.mean(losses.total, losses.items)
        if not math.isfinite(mean):
            self._refuse("loss", mean, self.progress.steps)
        return mean

    def _backward(self, batch: Batch, weight: float, number: int) -> Tensor:
        """Add a batch's weighted gradient; gives its loss without the penalty."""
        # Of small models, autocast takes a noticeable part of a step even where it is not enabled.
        lower = self.config.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16) if lower else nullcontext():
            loss = self._loss(batch, number)
        penalty = self.method.penalty(self.learner, self.model, batch)
        ((loss if penalty is None else loss + penalty) * weight).backward()
        return loss

    def _loss(self, batch: Batch, number: int) -> torch.Tensor:
        try:
            return self.method.loss(self.learner, self.model, batch)
        except ValueError as error:
            if not str(error).startswith(TOO_FEW):
                raise
            which = f"batch {_name(batch, number)} of epoch {self.progress.epoch + 1}"
            raise InputError(
                f"{self.domain.name}: {which} is too small for the model's normalisation, "
                "which needs two values to average over; choose a batch size that leaves no single item over"
            ) from error

    def _refuse(self, what: str, value: float, steps: int, where: str = "") -> None:
        kept = f"; {self.folder} keeps earlier epochs" if has_progress(self.folder) else ""
        raise DivergedError(
            f"{self.domain.name}: {what} is {value} in epoch {self.progress.epoch + 1} after {steps} steps{where}; "
            f"lower train.learning_rate ({self.config.learning_rate}) or check the data{kept}"
        )

    def _step(self, done: float) -> None:
        self.progress.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * learning_rate(self.config, done, self.progress.steps)
        self.processes.average_gradients(self.model)
        self.method.after_backward(self.learner, self.model)
        if self.config.gradient_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.method.after_step(self.learner, self.model)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _dev_loss(self) -> float:
        self.processes.align(self.model, buffers_only=True)
        self.model.eval()
        losses: list[Tensor] = []
        counts: list[int] = []
        for batch, mine, _ in self.processes.share(self.domain.batches("dev", shuffle=False, seed=0)):
            if mine:
                losses.append(self.learner.task.loss(self.model, batch.to(self.device)))
                counts.append(mine)
        values = torch.stack(losses).tolist() if losses else []
        total = sum(value * count for value, count in zip(values, counts, strict=True))
        mean = self.processes.mean(total, sum(counts))
        if not math.isfinite(mean):
            self._refuse("dev loss", mean, self.progress.steps)
        return mean

    def _progress_bar(self, batches: Iterable[_Shared]) -> Iterable[_Shared]:
        """A bar on a terminal, nothing in a log file."""
        from tqdm import tqdm

        label = f"{self.domain.name} epoch {self.progress.epoch + 1}/{self.config.epochs}"
        return tqdm(batches, desc=label, leave=False, disable=True if self.processes.rank else None, unit="batch")

    def _log(self, record: dict[str, float], run: TrackedRun | None) -> None:
        if self.processes.rank:
            return
        epoch = self.progress.epoch
        done = self.progress.history[-5:]
        left = (self.config.epochs - epoch) * sum(entry["seconds"] for entry in done) / len(done)
        logger.log(
            logging.INFO if record["seconds"] >= LOG_SECONDS else logging.DEBUG,
            "%s epoch %d/%d: train loss %.3f, dev loss %.3f, %.1f s%s",
            self.domain.name,
            epoch,
            self.config.epochs,
            record["train_loss"],
            record["dev_loss"],
            record["seconds"],
            f", {duration(left)} left" if left else "",
        )
        if run:
            run.log(record, epoch)
