"""Dark experience replay: the loss against its formula, what is kept, and its ends."""

import pytest
import torch
from torch.nn import functional

from asrcl.adapt import run_stages
from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.der import _real
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture
def learner(tmp_path):
    return tiny_learner(tmp_path, tiny_scenario(3, dropout=0.2))


def remembering(learner, **options):
    """A method with a memory of the first domain, as the second begins."""
    method = build_method("der", **options)
    method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
    learner.enter(2)
    return method


def batch_of(learner):
    return next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))


def test_the_loss_is_that_of_the_formula(learner):
    method = remembering(learner, budget=10, alpha=0.3, beta=0.7)
    first, old = learner.scenario.domains[0], learner.frozen(learner.initial)
    held = [first.item("train", int(position)) for position in method.state_dict()["positions.blobs0"]]
    inputs, labels = torch.cat([item.inputs for item in held]), torch.cat([item.labels for item in held])
    kept = old(inputs)
    model, batch = learner.model_with(learner.fresh).eval(), batch_of(learner)
    distance = (model(inputs) - kept).square().mean(-1).mean()  # all 10 items are in a batch of 16
    again = functional.cross_entropy(model(inputs), labels)
    expected = functional.cross_entropy(model(batch.inputs), batch.labels) + 0.3 * distance + 0.7 * again
    torch.testing.assert_close(method.loss(learner, model, batch), expected)


def test_to_its_own_logits_the_distance_and_its_gradient_are_zero(learner):
    method = remembering(learner, budget=10, alpha=5.0, beta=0.0)
    model, batch = learner.model_with(learner.initial).eval(), batch_of(learner)
    method.loss(learner, model, batch).backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    learner.task.loss(model, batch).backward()
    for one, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=0, atol=1e-5)  # rounding differs between processors


def test_logits_are_those_of_the_weights_that_each_domain_ended_with(learner):
    method, ended = build_method("der", budget=12), []
    for stage in run_stages(learner, method, None):
        ended.append(stage.models[0])
        assert len(method._logits) == sum(map(len, method._positions.values())) == 12
    for weights, domain in zip(ended[:2], learner.scenario.domains, strict=False):
        model = learner.frozen(weights)
        for position in method._positions[domain.name].tolist():
            now = model(domain.item("train", position).inputs)[0]
            torch.testing.assert_close(method._logits[f"{domain.name}/{position}/0"], now)


def test_heads_of_sequences_are_kept_at_real_positions():
    logits = torch.arange(24.0).view(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    first, second = _real(Outputs((logits, logits[:, 0]), (mask, None)), 0)
    assert torch.equal(first, logits[0, :2]) and torch.equal(second, logits[0, 0])


def models(learner, method):
    return [stage.models[0].hash for stage in run_stages(learner, method, None)]


@pytest.mark.parametrize(
    "options, other, same",
    [({"alpha": 0.0, "beta": 0.0}, "ft", {}), ({"alpha": 0.0, "beta": 0.5, "filling": "balanced"}, "er", {"weight": 0.5})],
)
def test_without_logits_it_is_replay_and_without_labels_fine_tuning_to_the_bit(tmp_path, options, other, same):
    scenario = tiny_scenario(3, dropout=0.2)
    found = [
        models(tiny_learner(tmp_path / name, scenario), build_method(name, **chosen))
        for name, chosen in (("der", options), (other, same))
    ]
    assert found[0] == found[1]


def test_old_logits_alone_help_to_remember(tmp_path):
    totals = {"ft": 0, "der": 0}
    for seed in range(2):
        learner = tiny_learner(tmp_path / str(seed), tiny_scenario(3, seed=seed))
        for name, options in (("ft", {}), ("der", {"budget": 32, "alpha": 1.0, "beta": 0.0})):
            *_, last = run_stages(learner, build_method(name, **options), "test")
            totals[name] += last.errors[0].total
    assert totals["der"] < 0.6 * totals["ft"]


def test_logits_of_another_length_are_refused(learner):
    method = remembering(learner, budget=3)
    method._logits = {name: value[:2] for name, value in method._logits.items()}
    with pytest.raises(InputError, match=r"method der: item \d+ of domain blobs0"):
        method.loss(learner, learner.model_with(learner.initial), batch_of(learner))


@pytest.mark.parametrize("option", [{"alpha": -0.1}, {"beta": float("nan")}, {"budget": 0}, {"filling": "first"}])
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("der", **option)
