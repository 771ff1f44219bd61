"""The study: regularisers side by side on one stream, and plain training where the world changes more and more gradually."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from joblib import Parallel, delayed

from asrcl.exceptions import InputError
from asrcl.studies.plasticity.display import ReportSettings, abruptness_figure, curves_figure, measures_figure, tables
from asrcl.studies.plasticity.measures import SpectrumSettings
from asrcl.studies.plasticity.regularisers import REGULARISERS, regulariser
from asrcl.studies.plasticity.streams import Stream, gradual, stream_of
from asrcl.studies.plasticity.training import History, Training, train
from asrcl.studies.study import Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plasticity:
    """Settings of the study (arXiv 2509.22335; the change's width after arXiv 2602.09234).

    Attributes:
        stream: name of a sequence of tasks, see `streams.STREAMS`.
        stream_options: of the stream (`epochs`, `count`).
        images: options of the image source in place of the stream's own (`kind`, `train`, `size`, ...).
        data_dir: folder of data, for streams whose images are files.
        regularisers: names in `regularisers.REGULARISERS`.
        options: name of a regulariser -> options of its class.
        seeds: how many copies.
        tasks: how many.
        hidden: widths of the hidden layers.
        rate: learning rate.
        batch: samples of a step.
        block: samples between two steps of effective rank and its like, and of a window of tau-trainability.
        tau: loss of a window, in nats, below which a task counts as learned.
        spectra: tasks before and after which spectra are measured, evenly spaced from the first to the last; 0 for none.
        spectrum_seeds: copies of which they are measured.
        epsilons, spectrum_items, hessian_steps, ggn_steps, draws, exact_below: see `measures.SpectrumSettings`.
        widths: parts of a task over which it takes the previous one's place, each a run of its own; 0 is abrupt.
        change: "sampling" draws samples of both tasks, "interpolation" moves the pixels (permuted images only).
        gradual_regularisers: with which the widths are run; empty leaves this part out.
        fresh_tasks: tasks that begin abruptly after the last one, with which all widths are compared.
        jobs: processes at a time.
    """

    stream: str = "permuted_digits"
    stream_options: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    regularisers: tuple[str, ...] = ("bp", "l2", "er", "l2_er", "reset")
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 5
    tasks: int = 80
    hidden: tuple[int, ...] = (100, 100, 100)
    rate: float = 0.03
    batch: int = 1
    block: int = 100
    tau: float = 0.5
    spectra: int = 6
    spectrum_seeds: int = 2
    epsilons: tuple[float, ...] = (0.03, 0.1, 0.3)
    spectrum_items: int = 100
    hessian_steps: int = 120
    ggn_steps: int = 40
    draws: int = 3
    exact_below: int = 2000
    widths: tuple[float, ...] = (0.0, 0.5, 1.0)
    change: Literal["sampling", "interpolation"] = "sampling"
    gradual_regularisers: tuple[str, ...] = ("bp", "l2_er")
    fresh_tasks: int = 5
    jobs: int = 2

    def __post_init__(self) -> None:
        positive = ("seeds", "tasks", "batch", "block", "jobs", "spectrum_items", "draws", "fresh_tasks")
        if small := [name for name in positive if getattr(self, name) < 1]:
            raise InputError(f"{small[0]}={getattr(self, small[0])}: give at least 1")
        if self.block % self.batch:
            raise InputError(f"block={self.block}: must be a multiple of batch={self.batch}")
        if not self.epsilons or min(self.epsilons) < 0:
            raise InputError(f"epsilons={list(self.epsilons)}: give at least one, from 0 on")
        for name in self.options:
            if name not in self.regularisers and name not in self.gradual_regularisers:
                raise InputError(f"options.{name}: no such regulariser is run; those run are {', '.join(self.regularisers)}")
        for name in (*self.regularisers, *self.gradual_regularisers):
            regulariser(name, self.options.get(name, {}))

    @property
    def spectra_at(self) -> list[int]:
        """Numbers of the tasks whose spectra are measured."""
        return sorted({round(place) for place in np.linspace(0, self.tasks - 1, self.spectra)}) if self.spectra else []

    @property
    def training(self) -> Training:
        """What a run needs of the settings."""
        spectrum = SpectrumSettings(
            self.epsilons, self.spectrum_items, self.hessian_steps, self.ggn_steps, self.draws, self.exact_below
        )
        at, copies = self.spectra_at, self.spectrum_seeds
        return Training(self.hidden, self.rate, self.batch, self.block, tau=self.tau, spectra_at=at, spectrum_seeds=copies,
                        spectrum=spectrum)  # fmt: skip

    def run(self) -> Outcome:
        """Train all, measure, and put it into tables and figures."""
        stream = stream_of(self.stream, self.data_dir, self.images, **self.stream_options)
        ordered = [name for name in REGULARISERS if name in self.regularisers]
        jobs = [(name, 0.0) for name in ordered]
        jobs += [(name, width) for name in self.gradual_regularisers for width in self.widths if (name, width) not in jobs]
        found: dict[tuple[str, float], History] = {}
        calls = (delayed(_run)(self, stream, name, width) for name, width in jobs)
        for name, width, history in Parallel(n_jobs=self.jobs, return_as="generator_unordered")(calls):
            found[name, width] = history
            where = f", change over {width:g} of a task" if width else ""
            late = np.mean([task.accuracy for task in history.tasks[-self.report.late :]])
            logger.info("%d of %d: %s%s: online accuracy %.3f in the end", len(found), len(jobs), name, where, late)
        gradually = {name: {width: found[name, width] for width in self.widths} for name in self.gradual_regularisers}
        return self._outcome({name: found[name, 0.0] for name in ordered}, gradually if self.widths else {})

    @property
    def report(self) -> ReportSettings:
        """What tables and figures need to know."""
        return ReportSettings(max(1, self.tasks // 8), max(1, self.tasks // 4), self.epsilons, self.block, self.tau, self.seeds)

    def _outcome(self, main: Mapping[str, History], gradually: Mapping[str, Mapping[float, History]]) -> Outcome:
        found, captions = tables(main, gradually, self.report)
        figures = {}
        if main:
            figures["plasticity"] = curves_figure(main, self.report)
            figures["plasticity_measures"] = measures_figure(main, self.report)
        if gradually:
            figures["plasticity_abruptness"] = abruptness_figure(gradually, main, self.report)
        numbers = {
            "regularisers": {name: asdict(history) for name, history in main.items()},
            "abruptness": {name: {f"{w:g}": asdict(h) for w, h in runs.items()} for name, runs in gradually.items()},
        }
        return Outcome(found, captions, figures, numbers)


def _run(study: Plasticity, stream: Stream, name: str, width: float) -> tuple[str, float, History]:
    """One job in a process of its own; spectra are measured where tasks change abruptly."""
    torch.set_num_threads(1)
    how, fresh = study.training, (stream, study.fresh_tasks) if name in study.gradual_regularisers else None
    if width or name not in study.regularisers:
        how = replace(how, spectra_at=())
    own, changing = regulariser(name, study.options.get(name, {})), gradual(stream, width, study.change)
    return name, width, train(changing, own, range(study.seeds), study.tasks, how, fresh)
