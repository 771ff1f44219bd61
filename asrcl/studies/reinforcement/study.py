"""The study: regularisers side by side in a world whose physics change."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from joblib import Parallel, delayed

from asrcl.exceptions import InputError
from asrcl.studies.reinforcement.display import changes_figure, tables
from asrcl.studies.reinforcement.settings import REGULARISERS, Learning, regulariser
from asrcl.studies.reinforcement.worlds import require, world_of
from asrcl.studies.study import Outcome

if TYPE_CHECKING:
    from asrcl.studies.reinforcement.agents import Learned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlasticityRl(Learning):
    """Settings of the study (arXiv 2509.22335, Slippery Ant), with those of `settings.Learning`.

    Attributes:
        world: name in `worlds.WORLDS`.
        reverse: whether signs of physics alternate from task to task.
        regularisers: names in `settings.REGULARISERS`.
        options: name of a regulariser -> options of `settings.Regulariser`.
        seeds: how many sequences of tasks, each with an agent of its own.
        jobs: processes at a time.
    """

    world: str = "cart_pole"
    reverse: bool = True
    regularisers: tuple[str, ...] = tuple(REGULARISERS)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 5
    jobs: int = 2

    def __post_init__(self) -> None:
        positive = ("tasks", "steps", "environments", "rollout", "batch", "epochs", "seeds", "jobs")
        if small := [name for name in positive if getattr(self, name) < 1]:
            raise InputError(f"{small[0]}={getattr(self, small[0])}: give at least 1")
        together = self.rollout * self.environments
        if together % self.batch:
            raise InputError(f"batch={self.batch}: must divide rollout * environments = {together}")
        if self.steps % together:
            raise InputError(f"steps={self.steps}: must be a multiple of rollout * environments = {together}")
        episode = self.episode or world_of(self.world).episode
        if not 0 < self.late <= 1 or self.steps * self.late < episode * self.environments:
            raise InputError(
                f"late={self.late:g}: this part of steps={self.steps} must hold an episode of each environment, "
                f"{self.environments} of {episode} steps; give more steps, or shorter episodes"
            )
        for name in (*self.regularisers, *self.options):  # those of the published size may be more than are run
            regulariser(name, self.options.get(name, {}))

    @property
    def learning(self) -> Learning:
        """What an agent needs of the settings."""
        return Learning(**{item.name: getattr(self, item.name) for item in fields(Learning)})

    def run(self) -> Outcome:
        """Train all, measure, and put it into a table and a figure.

        Raises:
            InputError: gymnasium, stable-baselines3 or what the world needs is not installed.
        """
        require()
        world_of(self.world).make().close()
        ordered = [name for name in REGULARISERS if name in self.regularisers]
        jobs = [(name, seed) for seed in range(self.seeds) for name in ordered]
        found: dict[tuple[str, int], list[Learned]] = {}
        calls = (delayed(_run)(self, name, seed) for name, seed in jobs)
        for name, seed, tasks in Parallel(n_jobs=self.jobs, return_as="generator_unordered")(calls):
            found[name, seed] = tasks
            returns = f"{tasks[0].late:.0f} on the first task, {tasks[-1].late:.0f} on the last"
            logger.info("%d of %d: %s, seed %d: mean return %s", len(found), len(jobs), name, seed, returns)
        runs = {name: [found[name, seed] for seed in range(self.seeds)] for name in ordered}
        return self._outcome(runs)

    def _outcome(self, runs: Mapping[str, list[list[Learned]]]) -> Outcome:
        found, captions = tables(runs, self.late)
        figures = {"plasticity_rl": changes_figure(runs, self.late)} if runs else {}
        numbers = {name: [[asdict(task) for task in tasks] for tasks in seeds] for name, seeds in runs.items()}
        return Outcome(found, captions, figures, {"regularisers": numbers})


def _run(study: PlasticityRl, name: str, seed: int) -> tuple[str, int, list[Learned]]:
    """One job in a process of its own."""
    from asrcl.studies.reinforcement.agents import learn

    torch.set_num_threads(1)
    own = regulariser(name, study.options.get(name, {}))
    return name, seed, learn(world_of(study.world), study.learning, own, seed, reverse=study.reverse)
