"""The study's settings and its order of work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from asrcl.adapt import TrainConfig
from asrcl.exceptions import InputError
from asrcl.studies.study import Outcome
from asrcl.studies.update_magnitude import linear_figures, linear_tables, network_report
from asrcl.studies.update_magnitude.closed_form import MARGIN, TwoTasks
from asrcl.studies.update_magnitude.linear import distance_map, specific_sweeps
from asrcl.studies.update_magnitude.networks import MIXED, PIXELS, REFERENCES, Sizes, run_sequence

SWEPT: Final = 10**6  # stands for n2 where a sweep sets it
NEVER: Final = {"threshold": 1.0}  # a hybrid update that always trains everything: its similarities along plain fine-tuning


@dataclass(frozen=True)
class UpdateMagnitude:
    """Frozen, initialised and hybrid training: the linear model by closed form and simulation, then small networks.

    Attributes:
        shared, specific, noise: of the linear model (`asrcl.studies.update_magnitude.closed_form.TwoTasks`).
        first: n1 of the maps, one each.
        second: n2 of the map's columns; those too near to interpolation are left out.
        distances: d of its rows.
        draws: of both tasks, for every cell.
        table_second, table_distances: the part of the first map that stands in the table; among `second` and `distances`.
        sweep_specific: p2 of the sweep.
        sweep_second: n2 of its panels.
        sweep_distances: d of the task-specific truths; the shared ones are equal.
        sweep_draws: draws of every point.
        seed: of the linear part.
        seeds: sequences of every kind, each with permutations, images and initial weights of its own; 0 leaves the
            networks out.
        tasks: of a sequence.
        train_images: of a task.
        pixels: how many of 64 pixels a task permutes, a kind of sequence each, fewest first.
        widths: of the hidden layers, a block each.
        epochs, learning_rate, momentum: of plain stochastic gradient descent, for every task.
        threshold: of the hybrid update.
    """

    shared: int = 100
    specific: int = 10
    noise: float = 0.3
    first: tuple[int, ...] = (500, 50)
    second: tuple[int, ...] = (15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 105, 115, 120, 130, 150, 200, 300)
    distances: tuple[float, ...] = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0)
    draws: int = 800
    table_second: tuple[int, ...] = (30, 60, 100, 150)
    table_distances: tuple[float, ...] = (0.0, 0.3, 1.0, 2.0)
    sweep_specific: tuple[int, ...] = (5, 10, 20, 30, 40, 45, 55, 60, 70, 80, 100, 120, 130, 140, 145, 155, 160, 170, 180, 200)
    sweep_second: tuple[int, ...] = (50, 150)
    sweep_distances: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    sweep_draws: int = 200
    seed: int = 1
    seeds: int = 5
    tasks: int = 6
    train_images: int = 300
    pixels: tuple[int, ...] = (4, 16, 32, 64)
    widths: tuple[int, ...] = (64, 64, 64)
    epochs: int = 20
    learning_rate: float = 0.05
    momentum: float = 0.9
    threshold: float = 0.3

    def __post_init__(self) -> None:
        if min(self.draws, self.sweep_draws) < 2:
            raise InputError("study: draws and sweep_draws must be at least 2, for a standard error")
        if self.seeds < 0 or self.tasks < 2 or len(self.pixels) < 2 or not all(1 < count <= PIXELS for count in self.pixels):
            raise InputError(f"study: seeds must not be negative, tasks at least 2, pixels two numbers from 2 to {PIXELS}")
        for name, part, whole in (
            ("table_second", self.table_second, self.second), ("table_distances", self.table_distances, self.distances)
        ):  # fmt: skip
            if missing := [value for value in part if value not in whole]:
                raise InputError(f"study.{name}={missing[0]}: not among {name.removeprefix('table_')}, which the map simulates")

    def run(self) -> Outcome:
        """The linear model, then the networks."""
        linear = self._linear()
        if not self.seeds:
            return linear
        networks = self._networks()
        return Outcome(
            {**linear.tables, **networks.tables}, {**linear.captions, **networks.captions},
            {**linear.figures, **networks.figures}, {**linear.numbers, **networks.numbers},
        )  # fmt: skip

    def _linear(self) -> Outcome:
        base = TwoTasks(shared=self.shared, specific=self.specific, noise=self.noise, first=max(self.first), second=SWEPT)
        maps = []
        for number, first in enumerate(self.first):
            tasks = TwoTasks(self.shared, self.specific, first, SWEPT, self.noise)
            maps.append(distance_map(tasks, self.second, self.distances, self.draws, self.seed + number))
        sweep = (self.sweep_specific, self.sweep_second, self.sweep_distances)
        sweeps = specific_sweeps(base, *sweep, self.sweep_draws, self.seed + len(maps))
        cells = [cell for part in (*maps, *sweeps) for cell in part]
        agreement = linear_tables.agreement(cells)
        ends = (max(self.specific + MARGIN, min(self.second)), max(self.second))
        frontiers = [record for part in maps for record in linear_tables.frontier_records(part[0].tasks, *ends)]
        tables = {
            "update_magnitude": linear_tables.distance_table(maps[0], self.table_second, self.table_distances),
            "update_magnitude_agreement": linear_tables.agreement_table(agreement),
            "update_magnitude_map": linear_tables.frontier_table(frontiers, [cell for part in maps for cell in part]),
            "update_magnitude_peak": linear_tables.sweep_table(sweeps),
        }
        numbers: dict[str, Any] = {
            "map": [cell.record() for part in maps for cell in part],
            "sweep": [cell.record() for part in sweeps for cell in part],
            "agreement": agreement,
            "frontiers": frontiers,
        }
        figures = {"map": linear_figures.map_figure(maps), "forgetting": linear_figures.sweep_figure(sweeps)}
        return Outcome(tables, self._captions(), figures, numbers)

    def _captions(self) -> dict[str, str]:
        sizes = f"p = {self.shared} shared numbers, noise {self.noise:g}"
        return {
            "update_magnitude": f"Linear model, {sizes}, p2 = {self.specific}, n1 = {self.first[0]}: closed form, in brackets "
            f"the mean of {self.draws} draws ± its standard error; d: distance of both parts, risk 2: excess risk on task 2.",
            "update_magnitude_agreement": "All simulated cells (maps and sweeps) against the closed form, by whether task 2 has "
            "more or fewer samples than parameters; s.e.: standard error of the simulated mean.",
            "update_magnitude_map": f"Where frozen training is better than initialised, by closed form for every n2 from "
            f"{max(self.specific + MARGIN, min(self.second))} to {max(self.second)} that is {MARGIN} away from interpolation.",
            "update_magnitude_peak": f"Forgetting of task 1 against the number p2 of task-specific parameters ({sizes}, "
            f"n1 = {max(self.first)}, equal shared truths), means of {self.sweep_draws} draws.",
        }

    def _networks(self) -> Outcome:
        train = TrainConfig(epochs=self.epochs, optimizer="sgd", learning_rate=self.learning_rate, momentum=self.momentum,
                            gradient_clip=0.0, average_best=1)  # fmt: skip
        sizes = Sizes(self.tasks, self.train_images, self.widths, train)
        training: dict[str, tuple[str, dict[str, Any]]] = {
            "head alone": ("frozen", {"blocks": 0}),
            "frozen": ("frozen", {"blocks": 1}),
            **{f"last {blocks} blocks": ("frozen", {"blocks": blocks}) for blocks in range(2, len(self.widths))},
            "initialised": ("ft", {}),
            "hybrid": ("hybrid", {"threshold": self.threshold}),
        }
        references = {name: ("hybrid", {**options, **NEVER}) for name, options in REFERENCES.items()}
        kinds = [str(count) for count in self.pixels]
        similar, dissimilar = kinds[0], kinds[-1]
        runs: list[dict[str, Any]] = []
        compared: list[dict[str, Any]] = []
        for kind in (*kinds, MIXED):
            methods = training | (references if kind in (similar, dissimilar) else {})
            for seed in range(1, self.seeds + 1):
                for record in run_sequence(kind, sizes, seed, methods):
                    (compared if record["method"] in references else runs).append(record)
        tables = {
            "update_magnitude_networks": network_report.networks_table(runs),
            "update_magnitude_cosines": network_report.cosine_table(compared, similar, dissimilar),
        }
        captions = {
            "update_magnitude_networks": f"Networks with {len(self.widths)} blocks on sequences of {self.tasks} digit tasks, "
            f"{self.train_images} images each; in %, mean ± s.d. of {self.seeds} seeds. frozen: the last block and the "
            "head are trained; forgetting: against the accuracy when a task was learned, (max): against its best until then.",
            "update_magnitude_cosines": "Similarity of consecutive tasks by what is compared, along plain fine-tuning, mean ± "
            f"s.d. over tasks and {self.seeds} seeds; told apart: how often a similar pair has the larger value.",
        }
        figures = {"networks": network_report.networks_figure(runs, self.threshold)}
        return Outcome(tables, captions, figures, {"networks": runs, "cosines": compared})
