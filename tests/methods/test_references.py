"""Models of their own for every domain: what they start from, and what domains are decoded with."""

import pytest

from asrcl.adapt import run_stages
from asrcl.methods import Method, build_method
from asrcl.testing import tiny_learner


@pytest.mark.parametrize("name", ["single", "separate"])
def test_every_domain_has_a_model_of_its_own(tmp_path, name):
    learner = tiny_learner(tmp_path)
    parent = learner.fresh if name == "single" else learner.initial
    assert learner.fresh.hash != learner.initial.hash
    stages = list(run_stages(learner, build_method(name), None))
    own = [learner.initial.hash]
    own += [learner.fine_tune(parent, domain, Method()).hash for domain in learner.scenario.domains[1:]]
    assert [model.hash for model in stages[-1].models] == own and len(set(own)) == 3
    assert [model.hash for model in stages[1].models] == [*own[:2], learner.initial.hash]
    count = sum(value.numel() for value in learner.initial.values())
    assert [stage.record["parameters"] for stage in stages] == [count, 2 * count, 3 * count]


def test_a_probe_has_no_single_model(tmp_path):
    learner, method = tiny_learner(tmp_path), build_method("single")
    list(run_stages(learner, method, None))
    probe = type("Probe", (), {"name": "probe"})()
    assert method.weights_for(learner, probe) is None


def test_reports_take_single_task_models_for_an_oracle_that_no_metric_is_made_of():
    method = build_method("single")
    assert (method.role, method.kind, method.decoded_by) == ("oracle", "", "domain_model")
