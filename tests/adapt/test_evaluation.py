"""Which domains are evaluated when, and how a run begins."""

import pytest
from adapt_cases import QUICK, CountingTask

from asrcl.adapt import EvaluationPolicy, run_method, run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.testing import blob_domain, tiny_learner, tiny_scenario


def measured(folder, policy, name="ft", domains=5):
    """1 where R has an entry."""
    scenario = tiny_scenario(domains, task=CountingTask())
    scenario.evaluation, scenario.probes = policy, [blob_domain("probe", 99)]
    result = run_method(tiny_learner(folder, scenario, QUICK), build_method(name), folder / name)
    table = [[int(count is not None) for count in row] for row in result.errors]
    return table, [int(count is not None) for count in result.probes[0].errors], scenario.task.calls["evaluate"]


@pytest.mark.parametrize(
    "policy, stages",
    [
        (EvaluationPolicy(), [5, 5, 5, 5, 5]),
        (EvaluationPolicy("seen"), [1, 2, 3, 4, 5]),
        (EvaluationPolicy(every=2), [5, 5, 0, 5, 5]),
        (EvaluationPolicy("seen", every=3), [1, 0, 3, 0, 5]),
        (EvaluationPolicy("seen", every=100), [1, 0, 0, 0, 5]),
    ],
)
def test_what_is_evaluated(tmp_path, policy, stages):
    table, probe, calls = measured(tmp_path, policy)
    assert table == [[1] * count + [0] * (5 - count) for count in stages]
    assert probe == [int(count > 0) for count in stages]
    assert calls == sum(stages) + sum(probe)  # nothing else was decoded


def test_many_domains_do_not_cost_their_square(tmp_path):
    *_, calls = measured(tmp_path, EvaluationPolicy("seen", every=10), domains=40)
    assert calls < 40 * 40 / 8


@pytest.mark.parametrize("options, fault", [({"domains": "some"}, "domains=some"), ({"every": 0}, "every=0")])
def test_bad_policies(options, fault):
    with pytest.raises(InputError, match=fault):
        EvaluationPolicy(**options)


def test_oracles_have_what_they_have(tmp_path):
    assert measured(tmp_path, EvaluationPolicy(), "joint", 3)[0] == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    scenario = tiny_scenario(3)
    scenario.probes = [blob_domain("probe", 99)]
    run = run_method(tiny_learner(tmp_path, scenario, QUICK), build_method("separate"), tmp_path / "separate")
    assert run.probes == []  # nothing tells which of its models a probe wants
    assert run.errors[2][1] == run.errors[1][1]


@pytest.mark.parametrize("name", ["ft", "fta", "ewc", "ihr", "si", "er", "separate", "joint"])
def test_a_pretrained_model_may_learn_the_first_domain_too(tmp_path, name):
    scenario = tiny_scenario(3, trained=False)
    scenario.learn_first = True
    learner = tiny_learner(tmp_path, scenario)
    stages = list(run_stages(learner, build_method(name), "test"))
    if name != "joint":
        assert stages[0].errors[0].rate < learner.evaluate(learner.initial, scenario.domains[0]).rate / 2
        assert "update_norm" in stages[0].record
    if name == "ihr":  # no curvature before it, so nothing holds the first domain back
        first = learner.fine_tune(learner.initial, scenario.domains[0], build_method("ft"))
        assert stages[0].models[0].hash == first.hash != stages[1].models[0].hash
    assert len(stages) == 3


def test_a_run_needs_an_initial_model(tmp_path):
    scenario = tiny_scenario(2)
    scenario.initial = None
    with pytest.raises(InputError, match=r"scenario tiny.*asrcl train"):
        list(run_stages(tiny_learner(tmp_path, scenario, QUICK), build_method("ft"), None))
