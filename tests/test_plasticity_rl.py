"""Plasticity in reinforcement learning: laws of changing worlds, of the interleaved step and of the sequence of tasks."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from asrcl.curvature.spectrum import effective_rank
from asrcl.exceptions import InputError
from asrcl.files import read_json
from asrcl.studies.reinforcement.settings import REGULARISERS, Learning, Regulariser
from asrcl.studies.reinforcement.worlds import WORLDS, world_of
from asrcl.studies.study import run_study, study_of

SMALL = Learning(tasks=2, steps=128, late=1.0, episode=16, environments=2, rollout=32, batch=32, epochs=2, hidden=(8, 6))


def rl():
    """The module of agents; skips where the packages of the extra `rl` are not installed."""
    reason = "gymnasium and stable-baselines3 are not installed: pip install 'asrcl[rl]'"
    pytest.importorskip("gymnasium", reason=reason)
    pytest.importorskip("stable_baselines3", reason=reason)
    from asrcl.studies.reinforcement import agents

    return agents


# Worlds


@pytest.mark.parametrize("name", WORLDS)
def test_physics_depend_on_task_and_seed_alone_and_keep_their_ranges(name):
    world = WORLDS[name]
    drawn = [world.physics(index, seed) for seed in range(3) for index in range(20)]
    assert drawn == [world.physics(index, seed) for seed in range(3) for index in range(20)]
    for quantity, (low, high) in world.ranges.items():
        values = [abs(physics[quantity]) for physics in drawn]
        assert len(set(values)) == len(values)
        assert low <= min(values) < low * 1.5 and high / 1.5 < max(values) <= high
        assert abs(np.mean(np.log(values)) - np.log(low * high) / 2) < 4 * np.log(high / low) / np.sqrt(12 * len(values))


def test_a_sign_alternates_unless_told_otherwise():
    world = WORLDS["cart_pole"]
    assert [np.sign(world.physics(index, 0)["force"]) for index in range(4)] == [1, -1, 1, -1]
    assert {np.sign(world.physics(index, 0, reverse=False)["force"]) for index in range(4)} == {1}
    assert all(world.physics(index, 0)["gravity"] > 0 for index in range(4))
    assert world.physics(3, 0)["force"] == -world.physics(3, 0, reverse=False)["force"]


def thrown(environment, action, state=(0.0, 0.0, 0.1, 0.5)):
    environment.reset(seed=0)
    environment.unwrapped.state = np.array(state)
    return environment.step(action)[0]


@pytest.mark.parametrize(("quantity", "value"), [("gravity", 20.0), ("length", 1.0), ("force", -10.0)])
def test_each_of_the_cart_poles_physics_changes_what_it_does(quantity, value):
    rl()
    world, usual = WORLDS["cart_pole"], {"gravity": 9.8, "length": 0.5, "force": 10.0}
    fresh, changed = world.make(), world.make()
    world.put(changed.unwrapped, usual)
    np.testing.assert_array_equal(thrown(changed, 1), thrown(fresh, 1))
    world.put(changed.unwrapped, usual | {quantity: value})
    assert np.abs(thrown(changed, 1) - thrown(fresh, 1)).max() > 0.01
    world.put(changed.unwrapped, usual)
    np.testing.assert_array_equal(thrown(changed, 1), thrown(fresh, 1))


def test_a_longer_pole_moves_as_one_that_was_made_so():
    rl()
    world = WORLDS["cart_pole"]
    changed, made = world.make(), world.make()
    world.put(changed.unwrapped, {"gravity": 9.8, "length": 0.9, "force": 10.0})
    made.unwrapped.length = 0.9
    made.unwrapped.polemass_length = made.unwrapped.masspole * 0.9
    np.testing.assert_array_equal(thrown(changed, 0), thrown(made, 0))


def test_a_reversed_force_is_the_other_action():
    rl()
    world, usual = WORLDS["cart_pole"], {"gravity": 9.8, "length": 0.5, "force": 10.0}
    forward, backward = world.make(), world.make()
    world.put(forward.unwrapped, usual)
    world.put(backward.unwrapped, usual | {"force": -10.0})
    np.testing.assert_array_equal(thrown(forward, 1), thrown(backward, 0))


def test_the_ant_slips_where_there_is_no_friction():
    rl()
    pytest.importorskip("mujoco", reason="mujoco is not installed: pip install 'asrcl[rl]'")
    world, moved = WORLDS["slippery_ant"], []
    for friction in (0.02, 2.0):
        ant = world.make()
        world.put(ant.unwrapped, {"friction": friction})
        ant.reset(seed=0)
        for _ in range(20):
            ant.step(np.zeros(8))
        contacts = ant.unwrapped.data.contact
        assert len(contacts.friction) and np.allclose(contacts.friction[:, 0], friction)
        ant.unwrapped.data.qvel[0] = 3.0
        for _ in range(10):
            ant.step(np.zeros(8))
        moved.append(ant.unwrapped.data.qpos[0])
    assert moved[0] > moved[1] + 0.1


# The interleaved step


def agent_and_observations(regulariser=REGULARISERS["bp"], how=SMALL):
    agents = rl()
    worlds = agents.DummyVecEnv([world_of("cart_pole").make] * how.environments)
    observations = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    return agents, agents.agent_of(worlds, how, regulariser, 7), observations


def rank_of(features):
    values = torch.linalg.svdvals(features.double())
    return torch.special.entr(values / values.sum()).sum().exp()


def test_the_step_ascends_the_mean_effective_rank_by_its_gradient():
    agents, agent, observations = agent_and_observations()
    parameters = list(agent.policy.mlp_extractor.parameters())
    mean = torch.stack([rank_of(layer) for layer in agents.hidden(agent.policy, observations)]).mean()
    expected = [p.detach() + 1e-3 * g for p, g in zip(parameters, torch.autograd.grad(mean, parameters), strict=True)]
    heads = [agent.policy.action_net.weight.clone(), agent.policy.value_net.weight.clone()]
    agents.rank_step(agent.policy, observations, 1e-3)
    for found, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found.detach(), wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(heads[0], agent.policy.action_net.weight) and torch.equal(heads[1], agent.policy.value_net.weight)
    after = torch.stack([rank_of(layer) for layer in agents.hidden(agent.policy, observations)]).mean()
    assert after > mean


def test_dead_units_stay_without_a_gradient():
    agents, agent, observations = agent_and_observations()
    with torch.no_grad():
        agent.policy.mlp_extractor.policy_net[0].bias[:3] = -100.0
    before = agents.hidden_state(agent.policy, observations)
    agents.rank_step(agent.policy, observations, 1e-2)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in agent.policy.parameters())
    assert agents.hidden_state(agent.policy, observations)["dead_units"] >= 3 and before["dead_units"] >= 3


def test_hidden_state_counts_what_it_says():
    agents, agent, observations = agent_and_observations()
    found, layers = agents.hidden_state(agent.policy, observations), agents.hidden(agent.policy, observations)
    assert [layer.shape for layer in layers] == [(50, 8), (50, 6)] * 2
    ranks = [effective_rank(torch.linalg.svdvals(layer.detach().double())) for layer in layers]
    assert found["effective_rank"] == pytest.approx(np.mean(ranks), rel=1e-6)
    assert found["dead_units"] == sum(int((layer == 0).all(0).sum()) for layer in layers)
    squares = [float(parameter.detach().square().sum()) for parameter in agent.policy.parameters()]
    assert found["weight_norm"] == pytest.approx(sum(squares) ** 0.5, rel=1e-5)
    torch.testing.assert_close(agent.policy.predict_values(observations), agent.policy.value_net(layers[-1]))


def test_the_step_comes_once_in_every_epoch_and_is_no_part_of_the_loss(monkeypatch):
    agents = rl()
    seen = []
    monkeypatch.setattr(agents, "rank_step", lambda policy, observations, rate: seen.append((len(observations), rate)))
    agents.learn(world_of("cart_pole"), SMALL, Regulariser(er_rate=0.5), 0)
    rollouts = SMALL.tasks * SMALL.steps // (SMALL.rollout * SMALL.environments)
    assert seen == [(64, 0.5)] * rollouts * SMALL.epochs


def test_decay_is_an_l2_penalty_on_all_parameters():
    _, agent, _ = agent_and_observations(Regulariser(decay=0.25))
    (group,) = agent.policy.optimizer.param_groups
    assert type(agent.policy.optimizer) is torch.optim.Adam and group["weight_decay"] == 0.25  # not AdamW, which decouples it
    assert len(group["params"]) == len(list(agent.policy.parameters()))


# Sequences of tasks


def test_a_run_repeats_itself_and_differs_between_seeds():
    agents = rl()
    first, again, other = (agents.learn(world_of("cart_pole"), SMALL, REGULARISERS["l2_er"], seed) for seed in (0, 0, 1))
    assert first == again
    assert [task.late for task in first] != [task.late for task in other]


def test_the_first_task_is_the_same_for_all_and_only_fresh_agents_forget():
    agents = rl()
    runs = {name: agents.learn(world_of("cart_pole"), SMALL, REGULARISERS[name], 3) for name in ("bp", "er", "reset")}
    assert runs["bp"][0] == runs["reset"][0] and runs["bp"][1].physics == runs["reset"][1].physics
    assert runs["er"][0].state == runs["bp"][0].state and runs["er"][1].state != runs["bp"][1].state
    norms = {name: [task.state["weight_norm"] for task in run] for name, run in runs.items()}
    assert norms["bp"][1] != pytest.approx(norms["bp"][0], rel=1e-3)
    assert norms["reset"][1] == pytest.approx(norms["reset"][0], rel=1e-3)  # orthogonal initial weights have one norm


def test_environments_have_the_physics_of_the_task_while_it_is_learned(monkeypatch):
    agents = rl()
    seen = []

    def note(watch):
        seen.extend((environment.unwrapped.gravity, environment.unwrapped.force_mag) for environment in watch.training_env.envs)

    monkeypatch.setattr(agents.Watch, "_on_rollout_start", note)
    agents.learn(world_of("cart_pole"), SMALL, REGULARISERS["bp"], 0)
    physics = [world_of("cart_pole").physics(index, 0) for index in range(2)]
    assert seen == [(task["gravity"], task["force"]) for task in physics for _ in range(2 * SMALL.environments)]


def test_returns_are_those_of_episodes_that_end_late_in_the_task(monkeypatch):
    agents = rl()
    watches = []
    made = agents.Watch.__init__
    monkeypatch.setattr(agents.Watch, "__init__", lambda watch: (made(watch), watches.append(watch))[0])
    how = replace(SMALL, late=0.5)
    found = agents.learn(world_of("cart_pole"), how, REGULARISERS["bp"], 0)
    for task, watch in zip(found, watches, strict=True):
        steps, values = zip(*watch.returns, strict=True)
        assert min(steps) > 0 and max(steps) <= how.steps
        assert max(values) <= how.episode  # a reward of one for every step
        assert task.late == np.mean([value for step, value in watch.returns if step > 64]) and task.whole == np.mean(values)


# The study

TINY = ["tasks=2", "steps=64", "late=1.0", "episode=16", "environments=2", "rollout=32", "batch=32", "epochs=1", "hidden=[8,8]",
        "seeds=2", "jobs=1"]  # fmt: skip


def test_without_the_packages_one_line_says_what_to_install(monkeypatch, tmp_path):
    for package in ("gymnasium", "stable_baselines3"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # makes an import raise ImportError
            with pytest.raises(InputError, match=r"^plasticity_rl needs .*pip install 'asrcl\[rl\]'$"):
                run_study("plasticity_rl", tmp_path, TINY)


def test_without_mujoco_one_line_says_what_to_install(monkeypatch):
    rl()
    for module in [name for name in sys.modules if name.split(".")[0] == "mujoco" or name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(InputError, match=r"^Ant-v5 needs a package.*pip install 'asrcl\[rl\]'$"):
        world_of("slippery_ant").make()


def test_a_small_study_from_beginning_to_end(tmp_path):
    rl()
    shown = run_study("plasticity_rl", tmp_path, [*TINY, "regularisers=[reset,l2_er,bp]", "options.l2_er.decay=0.01"])
    assert "L2-ER" in shown and "more than plain" in shown
    record = read_json(tmp_path / "results.json")
    assert list(record["regularisers"]) == ["bp", "l2_er", "reset"] and set(record["sections"]) == {"plasticity_rl"}
    runs = record["regularisers"]["l2_er"]
    assert len(runs) == 2 and len(runs[0]) == 2 and runs[0][1]["physics"]["force"] < 0
    assert (tmp_path / "plasticity_rl.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_units_die_under_plain_ppo_and_live_with_the_interleaved_step(tmp_path):
    # Half a minute on a quiet core; the default's first tasks, with margins far beyond the spread over seeds.
    rl()
    run_study("plasticity_rl", tmp_path, ["tasks=4", "seeds=2", "regularisers=[bp,l2_er,reset]"])
    found = read_json(tmp_path / "results.json")["regularisers"]
    last = {name: [tasks[-1]["state"] for tasks in runs] for name, runs in found.items()}
    dead = {name: np.mean([state["dead_units"] for state in states]) for name, states in last.items()}
    norm = {name: np.mean([state["weight_norm"] for state in states]) for name, states in last.items()}
    assert dead["bp"] > 1.5 * dead["l2_er"] and dead["bp"] > 10 and dead["reset"] < 6
    assert norm["bp"] > 1.4 * norm["reset"]


def test_the_published_size_is_a_valid_study():
    full = study_of("plasticity_rl_full")
    assert full.hidden == (256, 256) and full.betas == (0.99, 0.99) and full.tasks * full.steps == pytest.approx(1e7, rel=1e-3)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("regularisers=[redo]", "redo is unknown; choose from bp"),
        ("options.l2.rate=1", r"options\.l2: rate is unknown; it has decay"),
        ("options.redo.decay=1", "redo is unknown; choose from bp"),
        ("world=moon", "world=moon: unknown; choose from cart_pole"),
        ("batch=60", "batch=60: must divide rollout \\* environments = 512"),
        ("steps=5000", "steps=5000: must be a multiple of rollout \\* environments = 512"),
        ("steps=4096", r"late=0\.25: this part of steps=4096 must hold an episode"),
        ("seeds=0", "seeds=0: give at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(override, named):
    with pytest.raises(InputError, match=named):
        study_of("plasticity_rl", override.split())
