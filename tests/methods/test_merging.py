"""Methods that end with a merge do what `asrcl.merge` does with the same inputs."""

import pytest
import torch

from asrcl.adapt import fingerprint, run_stages
from asrcl.exceptions import InputError
from asrcl.merge import merge
from asrcl.methods import Method, build_method
from asrcl.testing import tiny_learner, tiny_scenario

KNOBS = [
    {},
    {"damping": 0.1, "tau": 0.7},
    {"rest": "keep", "damping": 2.0},
    {"damping_kind": "absolute", "damping": 1e-3, "rescale": "global"},
    {"rest": 0.25, "layers": ["3.*"]},
]


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """One cache for all tests: fine-tunes and curvatures are shared."""
    return tiny_learner(tmp_path_factory.mktemp("methods"), tiny_scenario())


def states(learner, method):
    return [stage.models[0] for stage in run_stages(learner, method, None)]


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("terms", ["last", "sum", "running", "first"])
@pytest.mark.parametrize("knobs", KNOBS, ids=lambda knobs: ",".join(knobs) or "default")
def test_ihr_is_merge_with_the_curvature_of_earlier_domains(learner, knobs, terms):
    found = states(learner, build_method("ihr", curvature=terms, **knobs))
    domains, state, curvatures = learner.scenario.domains, learner.scenario.initial, []
    for task in (2, 3):
        curvatures.append(learner.estimate_curvature(state, domains[task - 2], "kron"))
        new = learner.fine_tune(state, domains[task - 1], Method())
        pooled = curvatures[0] + curvatures[1] if task == 3 else curvatures[0]
        used = {"last": curvatures[-1], "sum": curvatures, "running": pooled, "first": curvatures[0]}[terms]
        state = merge(state, new, "ihr", curvature=used, task=task, **knobs)
        if terms == "sum" and task == 3:
            assert_close(found[2], state)
        else:
            assert fingerprint(found[task - 1]) == fingerprint(state)


def test_what_is_carried_differs_from_the_third_domain_on(learner):
    found = [states(learner, build_method("ihr", curvature=terms, damping=0.1)) for terms in ("last", "sum", "running", "first")]
    assert len({fingerprint(models[1]) for models in found}) == 1
    assert len({fingerprint(models[2]) for models in found}) == 4


def test_ihr_knobs_are_checked(learner):
    with pytest.raises(InputError, match="rescale"):
        states(learner, build_method("ihr", rescale="upwards"))


def test_fta_is_the_running_mean(learner):
    found = states(learner, build_method("fta"))
    state = learner.scenario.initial
    for task in (2, 3):
        new = learner.fine_tune(state, learner.scenario.domains[task - 1], Method())
        assert_close(found[task - 1], {name: state[name] + (new[name] - state[name]) / task for name in state})
        state = found[task - 1]


def test_fta_with_a_constant_weight(learner):
    found = states(learner, build_method("fta", strength=0.2))
    state = learner.scenario.initial
    for task in (2, 3):
        new = learner.fine_tune(state, learner.scenario.domains[task - 1], Method())
        assert_close(found[task - 1], {name: 0.8 * state[name] + 0.2 * new[name] for name in state})
        state = found[task - 1]


def test_fta_ends_are_the_initial_model_and_fine_tuning(learner):
    initial = fingerprint(learner.scenario.initial)
    assert {fingerprint(state) for state in states(learner, build_method("fta", strength=0.0))} == {initial}
    tuned = states(learner, build_method("ft"))
    kept = states(learner, build_method("fta", strength=1.0))
    assert [fingerprint(state) for state in kept] == [fingerprint(state) for state in tuned]


@pytest.mark.parametrize("name", ["fta", "ihr"])
def test_first_domain_leaves_the_initial_model(learner, name):
    assert states(learner, build_method(name))[0] is learner.scenario.initial
