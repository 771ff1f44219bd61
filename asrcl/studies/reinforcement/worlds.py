"""Worlds: environments of gymnasium, and which of their physics are drawn anew for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from asrcl.exceptions import InputError
from asrcl.studies.plasticity.networks import generator_of

PHYSICS_DRAWS = 31
"""The purpose of a seed's random numbers for physics."""
REMEDY: Final = "pip install 'asrcl[rl]'"


@dataclass(frozen=True)
class World:
    """An environment and the physics that a task may change.

    Attributes:
        environment: gymnasium's name.
        episode: steps after which an episode is cut off.
        ranges: what is drawn -> the ends of a range; uniform in the logarithm.
        reversing: those of them whose sign is the other one in every second task.
        put: writes drawn physics into an environment without wrappers.
    """

    environment: str
    episode: int
    ranges: Mapping[str, tuple[float, float]]
    reversing: tuple[str, ...]
    put: Callable[[Any, Mapping[str, float]], None]

    def physics(self, index: int, seed: int, *, reverse: bool = True) -> dict[str, float]:
        """The physics of a task, which depend on its number and the seed and on nothing else.

        Args:
            index: number of the task, from 0 on.
            seed: of the sequence of tasks.
            reverse: whether signs alternate from task to task.
        """
        parts = torch.rand(len(self.ranges), generator=generator_of(seed, PHYSICS_DRAWS, index), dtype=torch.float64).tolist()
        drawn = {name: low * (high / low) ** part for (name, (low, high)), part in zip(self.ranges.items(), parts, strict=True)}
        odd = reverse and index % 2 == 1
        return {name: -value if odd and name in self.reversing else value for name, value in drawn.items()}

    def make(self, episode: int | None = None) -> Any:
        """The environment, its episodes cut off after so many steps.

        Raises:
            InputError: a package that the environment needs is not installed.
        """
        require()
        import gymnasium

        try:
            return gymnasium.make(self.environment, max_episode_steps=episode or self.episode, disable_env_checker=True)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            raise InputError(f"{self.environment} needs a package that is not installed ({error}); {REMEDY}") from error


def _cart_pole(env: Any, physics: Mapping[str, float]) -> None:
    env.gravity, env.length, env.force_mag = physics["gravity"], physics["length"], physics["force"]
    env.polemass_length = env.masspole * env.length  # computed once by gymnasium, which would go on with the old length


def _ant(env: Any, physics: Mapping[str, float]) -> None:
    # Of two bodies in contact MuJoCo takes the larger coefficient: the floor's alone would change nothing.
    env.model.geom_friction[:, 0] = physics["friction"]


WORLDS: Final[dict[str, World]] = {
    "cart_pole": World(
        "CartPole-v1", 200, {"gravity": (5.0, 20.0), "length": (0.25, 1.0), "force": (5.0, 20.0)}, ("force",), _cart_pole
    ),
    "slippery_ant": World("Ant-v5", 1000, {"friction": (0.02, 2.0)}, (), _ant),
}
"""Name -> world. Units are those of gymnasium: m/s², m (half of the pole), N; a force below zero pushes the other way."""


def world_of(name: str) -> World:
    """A world by name.

    Raises:
        InputError: an unknown name; the message lists what there is.
    """
    if name not in WORLDS:
        raise InputError(f"world={name}: unknown; choose from {', '.join(WORLDS)}")
    return WORLDS[name]


def require() -> None:
    """Import what the study needs beyond the recipes' packages.

    Raises:
        InputError: gymnasium or stable-baselines3 is not installed.
    """
    try:
        import gymnasium  # noqa: F401
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        raise InputError(f"plasticity_rl needs gymnasium and stable-baselines3: {REMEDY}") from error
