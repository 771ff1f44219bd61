"""One regulariser on one stream of tasks: all seeds at once, one sample after the other.

Shapes: S copies, N samples of a task, B samples of a step, D numbers of a sample, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from asrcl.studies.plasticity.measures import Online, SpectrumSettings, hidden_state, online, spectra
from asrcl.studies.plasticity.networks import Networks, error_slopes, generator_of
from asrcl.studies.plasticity.regularisers import Plain
from asrcl.studies.plasticity.streams import Stream

WEIGHT_DRAWS = 21
"""The purpose of a seed's random numbers for initial weights."""


@dataclass(frozen=True)
class Training:
    """How networks are trained and looked at.

    Attributes:
        hidden: widths of the hidden layers.
        rate: learning rate.
        batch: samples of a step.
        block: samples between two steps of regularisers that work on many samples.
        looked_at: samples of a task on which hidden units and the accuracy after the task are measured.
        tau: the loss, in nats, that a task must reach to count as trainable.
        spectra_at: numbers of the tasks before and after which spectra are measured.
        spectrum_seeds: copies of which they are measured.
        spectrum: how.
    """

    hidden: Sequence[int] = (100, 100, 100)
    rate: float = 0.03
    batch: int = 1
    block: int = 100
    looked_at: int = 256
    tau: float = 0.5
    spectra_at: Sequence[int] = ()
    spectrum_seeds: int = 2
    spectrum: SpectrumSettings = field(default_factory=SpectrumSettings)


@dataclass
class History:
    """What was seen of all tasks, each a list over tasks.

    Attributes:
        tasks: how each was learned.
        states: `measures.hidden_state` at its start, on its samples.
        spectra: number of a task -> `start` and `end` -> `measures.spectra` per copy.
        fresh: online accuracy per copy of unseen tasks that began abruptly after the last one, the mean over them.
    """

    tasks: list[Online] = field(default_factory=list)
    states: list[dict[str, list[float]]] = field(default_factory=list)
    spectra: dict[int, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    fresh: list[float] = field(default_factory=list)


def train(
    stream: Stream, regulariser: Plain, seeds: Sequence[int], tasks: int, how: Training, fresh: tuple[Stream, int] | None = None
) -> History:
    """Learn the tasks of a stream one after the other, with weights, head and labels carried on.

    Args:
        stream: the tasks.
        regulariser: not used before.
        seeds: of the copies; a copy learns what it would learn alone.
        tasks: how many.
        how: to train and what to measure.
        fresh: a stream and how many of its tasks to learn in the end, from the place after the last one.
    """
    widths = (stream.features, *how.hidden, stream.classes)
    networks = Networks(widths, [generator_of(seed, WEIGHT_DRAWS) for seed in seeds], layer_norm=regulariser.layer_norm)
    regulariser.begin(networks, widths, seeds)
    history = History()
    for index in range(tasks):
        samples, labels = _tasks(stream, index, seeds)
        if index:
            regulariser.task(networks, index)
        history.states.append(hidden_state(networks, samples[:, : how.looked_at]))
        looked = index in how.spectra_at
        start = _spectra(networks, samples, labels, how, index) if looked else []
        history.tasks.append(_learned(networks, regulariser, samples, labels, how))
        if looked:
            history.spectra[index] = {"start": start, "end": _spectra(networks, samples, labels, how, index)}
    if fresh is not None:
        found = []
        for index in range(tasks, tasks + fresh[1]):
            regulariser.task(networks, index)
            found.append(_learned(networks, regulariser, *_tasks(fresh[0], index, seeds), how).accuracy)
        history.fresh = torch.tensor(found).mean(0).tolist()
    return history


def _tasks(stream: Stream, index: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The task of every seed, `[S, N, D]` and `[S, N]`, cut to the shortest."""
    pairs = [stream.task(index, seed) for seed in seeds]
    length = min(len(labels) for _, labels in pairs)
    return torch.stack([samples[:length] for samples, _ in pairs]), torch.stack([labels[:length] for _, labels in pairs])


def _learned(networks: Networks, regulariser: Plain, samples: Tensor, labels: Tensor, how: Training) -> Online:
    logits = learn(networks, regulariser, samples, labels, how)
    after = networks.forward(samples[:, -how.looked_at :]).logits.argmax(2)
    end_accuracy = (after == labels[:, -how.looked_at :]).double().mean(1)
    return online(logits, labels, end_accuracy, how.tau, how.block)


@torch.inference_mode()
def learn(networks: Networks, regulariser: Plain, samples: Tensor, labels: Tensor, how: Training) -> Tensor:
    """One pass over a task by gradient descent, in place.

    Args:
        networks: S copies.
        regulariser: what happens besides.
        samples: `[S, N, D]`.
        labels: `[S, N]`; each copy has its own.
        how: learning rate, samples of a step and of a block.

    Returns:
        Logits `[S, N, C]`, those of a sample before the update that it took part in.
    """
    classes = networks.weights[-1].shape[2]
    targets = torch.nn.functional.one_hot(labels, classes).to(samples)
    found = torch.empty_like(targets)
    steps = zip(samples.split(how.batch, 1), targets.split(how.batch, 1), found.split(how.batch, 1), strict=True)
    for number, (inputs, wanted, kept) in enumerate(steps, 1):
        done = networks.forward(inputs)
        kept.copy_(done.logits)
        slopes = networks.backward(done, error_slopes(done.logits, wanted))
        regulariser.pull(networks, how.rate)
        networks.descend(done, slopes, how.rate, regulariser.decay, regulariser.decay_all)
        regulariser.stepped(networks, done)
        seen = number * how.batch
        if seen % how.block == 0:
            regulariser.block(networks, samples[:, seen - how.block : seen])
    return found


def _spectra(networks: Networks, samples: Tensor, labels: Tensor, how: Training, index: int) -> list[dict[str, Any]]:
    """Spectra of the first copies, on the first samples of the task."""
    items = how.spectrum.items
    return [
        spectra(networks.member(copy), samples[copy, :items], labels[copy, :items], how.spectrum, seed=index)
        for copy in range(min(how.spectrum_seeds, networks.size))
    ]
