"""How often a run builds models and hashes weights."""

import pytest
import torch
from adapt_cases import QUICK

from asrcl.adapt import run_method
from asrcl.contract import weights as module
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture
def counted(monkeypatch):
    """Content hashes of whole state dicts, in the order in which they were computed."""
    hashes, original = [], module.fingerprint

    def counting(state):
        hashes.append(original(state))
        return hashes[-1]

    monkeypatch.setattr(module, "fingerprint", counting)
    return hashes


def scenario_that_counts(domains):
    scenario, built = tiny_scenario(domains), []
    build = scenario.build_model

    def counting():
        built.append(build())
        return built[-1]

    scenario.build_model = counting
    return scenario, built


@pytest.mark.parametrize("name, states", [("ihr", 9), ("ft", 5), ("fta", 5)])
def test_a_run_of_five_domains(tmp_path, counted, name, states):
    """Every distinct state is hashed once, whatever it is used for, and at most three models are built."""
    scenario, built = scenario_that_counts(5)
    run_method(tiny_learner(tmp_path, scenario, QUICK), build_method(name), tmp_path / "run")
    assert len(set(counted)) == states == len(counted)
    assert 1 <= len(built) <= 3


def test_a_method_that_changes_the_structure_builds_one_model_per_fine_tune(tmp_path):
    scenario, built = scenario_that_counts(3)
    run_method(tiny_learner(tmp_path, scenario, QUICK), build_method("lora"), tmp_path / "run")
    assert len(built) == 1 + 2


def test_a_teacher_is_a_second_model(tmp_path):
    scenario, built = scenario_that_counts(2)
    learner = tiny_learner(tmp_path, scenario, QUICK)
    teacher, student = learner.frozen(learner.initial), learner.model_with(learner.initial)
    assert teacher is not student and len(built) == 2
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert learner.frozen(learner.initial) is teacher and all(p.requires_grad for p in student.parameters())


def test_nothing_of_one_operation_is_left_in_the_model_for_the_next(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2, dropout=0.3), QUICK)
    model, domain = learner.model_with(learner.initial), learner.scenario.domains[0]
    learner.task.loss(model, next(iter(domain.batches("train", shuffle=False, seed=0)))).backward()
    with torch.no_grad():
        model[0].weight.zero_()
    again = learner.model_with(learner.initial)
    assert all(p.grad is None for p in again.parameters())
    assert torch.equal(again[0].weight, learner.initial["0.weight"])
