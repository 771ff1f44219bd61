"""One agent in a changing world: PPO of stable-baselines3, the interleaved step, and what is measured.

This module needs the packages of the extra `rl`; `worlds.require` says so in one line where they are missing.

Shapes: B observations, D numbers of an observation, H hidden units of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from asrcl.studies.plasticity.regularisers import rank_gradient
from asrcl.studies.reinforcement.settings import Learning, Regulariser
from asrcl.studies.reinforcement.worlds import World

AGENT_DRAWS = 32
"""The purpose of a seed's random numbers for an agent: initial weights, actions, first states of episodes."""


@dataclass(frozen=True)
class Learned:
    """How a task went.

    Attributes:
        physics: of the task.
        late: mean return of the episodes that ended in its last part.
        whole: mean return of all its episodes.
        state: `hidden_state` at its start.
    """

    physics: dict[str, float]
    late: float
    whole: float
    state: dict[str, float]


def learn(world: World, how: Learning, regulariser: Regulariser, seed: int, *, reverse: bool = True) -> list[Learned]:
    """Learn the tasks of a world one after the other.

    Weights and the state of the optimiser are carried on, unless agents are to be fresh; episodes begin anew with every task.
    The first task is the same for all regularisers, down to the initial weights.

    Args:
        world: what changes.
        how: to learn.
        regulariser: what happens besides.
        seed: of tasks and agents. The global generators of Python, NumPy and PyTorch are seeded, as stable-baselines3 does.
        reverse: whether signs of physics alternate from task to task.
    """
    worlds = DummyVecEnv([lambda: Monitor(world.make(how.episode))] * how.environments)
    agent, found = None, []
    for index in range(how.tasks):
        physics = world.physics(index, seed, reverse=reverse)
        for environment in worlds.envs:
            world.put(environment.unwrapped, physics)
        if agent is None or regulariser.fresh:
            agent = agent_of(worlds, how, regulariser, _agent_seed(seed, index))
        agent.set_env(worlds, force_reset=True)
        watch = Watch()
        agent.learn(how.steps, callback=watch, log_interval=how.steps, reset_num_timesteps=False)  # so rare: no log
        late = [value for step, value in watch.returns if step > how.steps * (1 - how.late)]
        whole = [value for _, value in watch.returns]
        found.append(Learned(physics, float(np.mean(late)), float(np.mean(whole)), watch.state))
    return found


def _agent_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, AGENT_DRAWS, index)).generate_state(1)[0] >> 1)  # NumPy's own takes 32 bits


def agent_of(worlds: DummyVecEnv, how: Learning, regulariser: Regulariser, seed: int) -> PPO:
    """A new agent with two networks of their own for policy and value, with ReLUs."""
    optimizer = {"betas": how.betas, "eps": 1e-5, "weight_decay": regulariser.decay, "fused": True}
    agent = PPO(
        "MlpPolicy", worlds, learning_rate=how.rate, n_steps=how.rollout, batch_size=how.batch, n_epochs=how.epochs,
        gamma=how.discount, gae_lambda=how.trace, clip_range=how.clip, ent_coef=how.entropy, vf_coef=how.value,
        max_grad_norm=how.gradient_norm, seed=seed, device="cpu",
        policy_kwargs={"net_arch": list(how.hidden), "activation_fn": nn.ReLU, "optimizer_kwargs": optimizer},
    )  # fmt: skip
    if regulariser.er_rate:
        interleave(agent, regulariser.er_rate, every=how.rollout * how.environments // how.batch)
    return agent


class Watch(BaseCallback):
    """Notes the return of every episode, and the hidden units on the first rollout of a task before it is learned from.

    Attributes:
        returns: steps of the task when an episode ended, and its return.
        state: see `hidden_state`.
    """

    model: PPO

    def __init__(self) -> None:
        super().__init__()
        self.returns: list[tuple[int, float]] = []
        self.state: dict[str, float] = {}
        self._begun = 0

    def _on_training_start(self) -> None:
        self._begun = self.model.num_timesteps

    def _on_step(self) -> bool:
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.returns += [(self.num_timesteps - self._begun, value) for value in ended]
        return True

    def _on_rollout_end(self) -> None:
        if not self.state:
            self.state = hidden_state(self.model.policy, _rollout(self.model))


def _rollout(agent: PPO) -> Tensor:
    """The observations of the last rollout, `[B, D]`."""
    observations = agent.rollout_buffer.observations
    return torch.as_tensor(observations.reshape(-1, observations.shape[-1]))


def hidden(policy: ActorCriticPolicy, observations: Tensor) -> list[Tensor]:
    """The hidden layers' features `[B, H]` after their ReLUs, those of the policy's network and then those of the value's."""
    found = []
    for network in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        features = policy.extract_features(observations)
        for layer in network:
            features = layer(features)
            if isinstance(layer, nn.ReLU):
                found.append(features)
    return found


@torch.no_grad()
def hidden_state(policy: ActorCriticPolicy, observations: Tensor) -> dict[str, float]:
    """Effective rank of the hidden layers (mean), dead hidden units, norm of all parameters.

    Args:
        policy: of an agent.
        observations: `[B, D]`; a unit is dead that is zero on all of them.
    """
    layers = hidden(policy, observations)
    return {
        "effective_rank": float(torch.stack([rank_gradient(features)[0] for features in layers]).mean()),
        "dead_units": float(sum(int((features.amax(0) == 0).sum()) for features in layers)),
        "weight_norm": float(nn.utils.parameters_to_vector(policy.parameters()).norm()),
    }


def interleave(agent: PPO, rate: float, every: int) -> None:
    """Take a `rank_step` on the rollout after every so many steps of the agent's optimiser."""
    taken = 0

    def after(*_: object) -> None:
        nonlocal taken
        taken += 1
        if taken % every == 0:
            rank_step(agent.policy, _rollout(agent), rate)

    agent.policy.optimizer.register_step_post_hook(after)


def rank_step(policy: ActorCriticPolicy, observations: Tensor, rate: float) -> None:
    """One plain ascent of the mean effective rank of the hidden layers on observations `[B, D]`, past the optimiser.

    The published code adds the means of the policy's and of the value's layers: its learning rate is half of this one.
    """
    layers = hidden(policy, observations)
    slopes = [(rank_gradient(features.detach())[1] / len(layers)).to(features) for features in layers]
    parameters = list(policy.mlp_extractor.parameters())
    with torch.no_grad():
        for parameter, gradient in zip(parameters, torch.autograd.grad(layers, parameters, slopes), strict=True):
            parameter.add_(gradient, alpha=rate)
