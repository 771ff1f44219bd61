"""The study: two settings in four modes, kinds and structures of curvature, strengths, projections, trust regions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from asrcl.curvature.projection import common_basis
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.studies.quadratic.curvature import STRUCTURES, Kind, Structure
from asrcl.studies.quadratic.figures import kappa_figure, trust_figure
from asrcl.studies.quadratic.landscape import TrustRegion, ends_of_tasks, leakage, trust_region
from asrcl.studies.quadratic.monitor import KEEPINGS
from asrcl.studies.quadratic.networks import Perceptrons, Samples
from asrcl.studies.quadratic.tables import (
    Found,
    fidelity_table,
    grid_table,
    landscape_table,
    mode_table,
    projection_table,
    published_table,
    strength_table,
    trust_table,
)
from asrcl.studies.quadratic.tasks import Tasks, sine_bands
from asrcl.studies.quadratic.training import PUBLISHED, TUNED, Optimisation, Plan, Trajectory, train
from asrcl.studies.study import Outcome

log = logging.getLogger(__name__)

MODES: dict[str, Plan] = {
    "sequential": Plan(),
    "accumulate": Plan("regularised", "accumulate"),
    "refresh": Plan("regularised", "refresh"),
    "replay": Plan("replay"),
}
GRID: dict[Kind, tuple[Structure, ...]] = {
    "fisher": STRUCTURES,
    "empirical": STRUCTURES,
    "hessian": ("full",),
    "hessian_abs": ("full",),
    "hessian_clip": ("full",),
    "kfac": ("block", "diagonal"),
    "ekfac": ("block", "diagonal"),
}
"""Which structures are compared. What a Hessian has beyond the Fisher information lies between the two weight matrices
(`Perceptrons.second_derivatives`), so that its blocks and its diagonal are those of the Fisher information."""
HOLDERS: dict[str, Plan] = {
    "nothing": Plan(),
    "penalty, accumulated": Plan("regularised", "accumulate"),
    "penalty and gradient, accumulated": Plan("regularised", "accumulate", first_order=True),
    "penalty, refreshed": Plan("regularised", "refresh"),
    "penalty and gradient, refreshed": Plan("regularised", "refresh", first_order=True),
    "spectral override, accumulated": Plan("regularised", "accumulate", flattened=True),
    "projection, energy .99999, accumulated": Plan("sequential", "accumulate", projected=True),
    "projection, energy .99999, refreshed": Plan("sequential", "refresh", projected=True),
    "projection, rank 5, accumulated": Plan("sequential", "accumulate", projected=True, rank=5),
    "projection, all ranks": Plan("sequential", "refresh", projected=True, rank=10**9),
}
"""What holds the old tasks -> plan. The last must not move at all."""
DISTANCES = torch.logspace(-2, 1, 31, dtype=torch.float64)
"""Of the trust region."""


@dataclass(frozen=True)
class Quadratic:
    """Settings of the study (conf/study/quadratic.yaml).

    Attributes:
        seeds: copies of the main runs; each has data, initial weights and batches of its own.
        grid_seeds: copies where kinds and structures of curvature, strengths and projections are compared.
        width: hidden units; 100 make 502 parameters.
        tasks, samples, noise: of the sine bands.
        stored_share: part of each training set that is stored.
        checks: evaluations in each task.
        mean: penalties are means over stored samples instead of the published sums.
        first_order: quadratic models keep the gradients at their anchors.
        published, tuned: changes of the two settings, e.g. `published.strength=0.1`.
        strengths: alphas that both optimisers are tried with.
    """

    seeds: int = 10
    grid_seeds: int = 5
    width: int = 100
    tasks: int = 9
    samples: int = 250
    noise: float = 0.5
    stored_share: float = 0.1
    checks: int = 10
    mean: bool = False
    first_order: bool = False
    published: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    strengths: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)

    def run(self) -> Outcome:
        """Train every trajectory, all seeds at once, and make tables and figures.

        Raises:
            InputError: a setting that does not fit; fewer than two seeds, of which there is no spread.
        """
        if min(self.seeds, self.grid_seeds) < 2:
            raise InputError(f"seeds={self.seeds}, grid_seeds={self.grid_seeds}: two are needed for a spread")
        settings = {"published": self._setting("published", PUBLISHED), "tuned": self._setting("tuned", TUNED)}
        main = _Runs(self, self.seeds)
        runs = {
            name: {mode: main.train(f"{name}: {mode}", how, plan, self.checks) for mode, plan in MODES.items()}
            for name, how in settings.items()
        }
        log.info("landscapes and trust regions")
        ends = {mode: ends_of_tasks(main.networks, main.training, run) for mode, run in runs["published"].items()}
        trust = {name: trust_region(main.networks, modes["sequential"], DISTANCES) for name, modes in runs.items()}
        few = _Runs(self, self.grid_seeds)
        grid, strengths = self._grid(few, settings), self._strengths(few, settings)
        held = {name: self._held(few, name, how) for name, how in settings.items()}
        tables = {
            "quadratic": published_table(runs["published"]),
            "quadratic_modes": mode_table(runs),
            "quadratic_fidelity": fidelity_table(runs),
            "quadratic_grid": grid_table(grid),
            "quadratic_strengths": strength_table(strengths),
            "quadratic_trust": trust_table(trust),
            "quadratic_landscape": landscape_table(ends),
            "quadratic_projection": projection_table(held),
        }
        return Outcome(
            {name: table for name, (_, table) in tables.items()},
            {name: caption for name, (caption, _) in tables.items()},
            {"kappa": kappa_figure(runs["published"], settings["published"].steps), "trust": trust_figure(trust)},
            {
                "runs": {f"{name}: {mode}": _record(run) for name, modes in runs.items() for mode, run in modes.items()},
                "grid": {" ".join(key): _lists(found) for key, found in grid.items()},
                "strengths": {" ".join(map(str, key)): _lists(found) for key, found in strengths.items()},
                "held": {f"{name}: {by}": _lists(one) for name, (found, _) in held.items() for by, one in found.items()},
                "leakage": {name: _lists(leaks) for name, (_, leaks) in held.items()},
                "trust": {name: _trust_record(region) for name, region in trust.items()},
                "landscape": {mode: _lists(found) for mode, found in ends.items()},
            },
        )

    def _setting(self, name: str, base: Optimisation) -> Optimisation:
        """A setting with the user's changes, which are checked by name and type."""
        return Config({name: asdict(base) | dict(getattr(self, name))}).settings(Optimisation, name)

    def _grid(self, runs: _Runs, settings: Mapping[str, Optimisation]) -> dict[tuple[str, ...], Found]:
        """Kind, structure, keeping -> what was measured at the end, in the published setting."""
        return {
            (kind, structure, keeping): runs.final(
                f"{kind}, {structure}, {keeping}",
                settings["published"],
                Plan("regularised", keeping, kind, structure),
            )
            for kind, structures in GRID.items()
            for structure in structures
            for keeping in KEEPINGS
        }

    def _strengths(self, runs: _Runs, settings: Mapping[str, Optimisation]) -> dict[tuple[str, str, float], Found]:
        """Setting, keeping, strength -> what was measured at the end."""
        return {
            (name, keeping, strength): runs.final(
                f"{name}, {keeping}, strength {strength:g}", replace(how, strength=strength), Plan("regularised", keeping)
            )
            for name, how in settings.items()
            for keeping in KEEPINGS
            for strength in self.strengths
        }

    def _held(self, runs: _Runs, name: str, how: Optimisation) -> tuple[dict[str, Found], Found]:
        """What holds the weights -> what was measured at the end, and how much projections in turn would let through."""
        found: dict[str, Found] = {}
        leaks: Found = {}
        free = torch.zeros(0)
        for holder, plan in HOLDERS.items():
            run = runs.train(f"{name}, held by {holder}", how, plan, 1, keep=True)
            moved = (run.anchors[-1] - run.anchors[1]).norm(dim=1)
            found[holder] = {key: values[-1] for key, values in run.measures.items()} | {"moved": moved}
            if holder == "nothing":
                free = run.anchors[-1] - run.anchors[-2]
            if plan.projected:
                assert run.monitor is not None
                directions = plan.directions(run.monitor)
                found[holder]["directions"] = common_basis(torch.cat(directions, -1)).norm(dim=1).sum(1)
                leaks = leaks or leakage(directions, free)
        return found, leaks


class _Runs:
    """Data and networks of some seeds, and trajectories of all of them."""

    def __init__(self, study: Quadratic, seeds: int) -> None:
        self.study, self.seeds = study, range(seeds)
        self.tasks: Tasks = sine_bands(self.seeds, tasks=study.tasks, samples=study.samples, noise=study.noise)
        self.networks = Perceptrons(self.seeds, study.width)
        self.training = [Samples(self.tasks.inputs[:, task], self.tasks.labels[:, task]) for task in range(study.tasks)]

    def train(self, title: str, how: Optimisation, plan: Plan, checks: int, *, keep: bool = False) -> Trajectory:
        """A trajectory; without its monitor unless that is to be kept."""
        log.info("%s, %d seeds", title, len(self.seeds))
        plan = replace(plan, mean=self.study.mean, first_order=plan.first_order or self.study.first_order)
        share = self.study.stored_share
        run = train(self.tasks, self.networks, self.seeds, how, plan, stored_share=share, checks=checks)
        return run if keep else replace(run, monitor=None)

    def final(self, title: str, how: Optimisation, plan: Plan) -> Found:
        """What is measured at the end of a trajectory."""
        return {name: values[-1] for name, values in self.train(title, how, plan, 1).measures.items()}


def _lists(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors as lists of numbers of six digits."""
    return {name: _rounded(values.tolist()) for name, values in found.items()}


def _rounded(values: Any) -> Any:
    return [_rounded(value) for value in values] if isinstance(values, list) else float(f"{values:.6g}")


def _record(run: Trajectory) -> dict[str, Any]:
    """Of a run: measures of every seed at the end and averaged, and their means over seeds along the way."""
    summaries: dict[str, Callable[[Tensor], Tensor]] = {
        "final": lambda values: values[-1],
        "average": lambda values: values.mean(0),
        "along": lambda values: values.mean(1),
    }
    found = {part: _lists({name: of(values) for name, values in run.measures.items()}) for part, of in summaries.items()}
    return {"steps": run.steps, **found}


def _trust_record(region: TrustRegion) -> dict[str, Any]:
    means = {"actual": region.actual, **region.predicted}
    return _lists({"distances": region.distances, "steps": region.steps} | {k: v.mean(1) for k, v in means.items()})
