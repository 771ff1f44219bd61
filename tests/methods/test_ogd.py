"""Orthogonal gradient descent: of a linear model the kept outputs do not change at all; what is kept, and the ends."""

from functools import partial

import pytest
import torch
from torch import nn

from asrcl.adapt import CurvatureConfig, DomainLearner, Scenario, TrainConfig, run_stages
from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.ogd import answer
from asrcl.testing import ClassificationTask, blob_domain, tiny_learner, tiny_scenario

SGD = TrainConfig(epochs=4, optimizer="sgd", learning_rate=0.3, average_best=1)
ADAM = TrainConfig(epochs=4, optimizer="adamw", learning_rate=0.03, weight_decay=0.1, average_best=1)


def linear(folder, train, **options):
    """A run of a linear model over two domains: the method, the first domain, and the models of both stages."""
    domains = [blob_domain("old", 1), blob_domain("new", 2, 1.0)]
    torch.manual_seed(0)
    scenario = Scenario("linear", domains, ClassificationTask(), partial(nn.Linear, 8, 4), nn.Linear(8, 4).state_dict())
    learner = DomainLearner(scenario, tiny_learner(folder).cache, train, CurvatureConfig(), 0)
    method = build_method("ogd", **options)
    stages = list(run_stages(learner, method, None))
    return learner, method, [stage.models[0] for stage in stages]


def largest(learner, weights, items):
    """The logits, by the class that was the largest with the first weights."""
    inputs = torch.cat([item.inputs for item in items])
    old = learner.frozen(weights[0])(inputs)
    classes = old.argmax(-1, keepdim=True)
    return [learner.frozen(state)(inputs).gather(1, classes).flatten() for state in weights]


@pytest.mark.parametrize("train, project", [(SGD, "gradient"), (SGD, "step"), (ADAM, "step")])
def test_outputs_of_a_linear_model_that_are_kept_stay_while_it_learns(tmp_path, train, project):
    learner, method, weights = linear(tmp_path, train, budget=12, project=project)
    generator = torch.Generator().manual_seed(learner.seed * 10_007 + 1)
    order = torch.randperm(64, generator=generator)[:12].tolist()
    before, after = largest(learner, weights, [learner.scenario.domains[0].item("train", position) for position in order])
    torch.testing.assert_close(after, before, rtol=0, atol=1e-4)
    losses = [learner.mean_loss(state, learner.scenario.domains[1], "train") for state in weights]
    assert losses[1] < 0.9 * losses[0]
    way = torch.cat([(weights[1][name] - value).flatten() for name, value in weights[0].items()])
    assert (method._gradients["old"] @ way).abs().max() < 1e-5 * way.norm()


def test_adam_leaves_the_space_when_gradients_alone_are_projected(tmp_path):
    _, method, weights = linear(tmp_path, ADAM, budget=12, project="gradient")
    way = torch.cat([(weights[1][name] - value).flatten() for name, value in weights[0].items()])
    assert (method._gradients["old"] @ way).abs().max() > 1e-2 * way.norm()


@pytest.mark.parametrize("budget", [1, 2, 7, 30])
def test_the_budget_is_kept(tmp_path, budget):
    learner, method = tiny_learner(tmp_path, tiny_scenario(4)), build_method("ogd", budget=budget)
    for number, _ in enumerate(run_stages(learner, method, None), 1):
        counts = [len(gradients) for gradients in method._gradients.values()]
        assert counts == [max(1, budget // min(number, 3))] * min(number, 3, budget)


def test_dependent_gradients_span_what_they_span():
    method = build_method("ogd")
    first, second = torch.eye(5)[0], nn.functional.normalize(torch.tensor([3.0, 4, 0, 0, 0]), dim=0)
    method.load_state_dict({"gradients.a": torch.stack([first, first]), "gradients.b": torch.stack([second, first])})
    for trained, spanned in (([1.0, 1, 1, 1, 1], [1.0, 1, 0, 0, 0]), ([0.0, 1, 1, 1, 1], [0.0, 1, 0, 0, 0])):
        basis = method._orthonormal(torch.tensor(trained))
        torch.testing.assert_close(basis @ basis.T, torch.diag(torch.tensor(spanned)))
    with pytest.raises(InputError, match=r"ogd: its gradients of a.*5.*6"):
        method._orthonormal(torch.ones(6))


def test_the_answer_is_the_sum_of_the_largest_logits_at_real_positions():
    logits = torch.tensor([[[1.0, 3.0], [5.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert float(answer(Outputs((logits, logits[:, 0]), (mask, None)))) == 3 + 5 + 3


def test_without_an_earlier_domain_it_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(2, dropout=0.2)
    scenario.learn_first = True
    runs = [run_stages(tiny_learner(tmp_path, scenario), build_method(name), None) for name in ("ft", "ogd")]
    plain, projected = (next(stages).models[0].hash for stages in runs)
    assert plain == projected != scenario.initial.hash


@pytest.mark.parametrize("option", [{"budget": 0}, {"project": "both"}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("ogd", **option)
