"""Methods on a Conformer, whose attention has its projections in parameters without a layer of their own."""

from types import SimpleNamespace

import pytest
import torch

from asrcl.curvature import estimate
from asrcl.methods import build_method
from asrcl.methods.mas import absolute_gradients
from asrcl.speech.task import RecognitionTask, SpecAugmentConfig


@pytest.fixture
def task(tokenizer):
    return RecognitionTask(tokenizer)


def curvature_of(task, model, batch):
    return estimate(model, task.curvature_loss, [batch], padding=lambda batch: task.padding(model, batch), layers="all")


def raw_names(model):
    return [name for name, _ in model.named_parameters() if name.endswith("in_proj_weight")]


def test_importance_of_mas_is_that_of_utterances_without_padding(task, make_model, make_batch):
    model, batch, size = make_model(), make_batch([61, 40, 27]), build_method("mas")._size
    found = absolute_gradients(task, model, batch, size)
    assert raw_names(model) and all(found[name].any() for name in raw_names(model))
    expected = torch.zeros_like(found[raw_names(model)[0]])
    for item in batch.items():
        [gradient] = torch.autograd.grad(size(task.outputs(model, item)), model.get_parameter(raw_names(model)[0]))
        expected += gradient.abs()
    torch.testing.assert_close(found[raw_names(model)[0]], expected)


def test_lwf_distils_both_heads_of_a_recogniser(task, make_model, make_batch):
    model, teacher, batch = make_model(), make_model(), make_batch([61, 40, 27])
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.01)
    learner = SimpleNamespace(task=task, domains=[], weights=None, frozen=lambda weights: teacher)
    method = build_method("lwf", strength=0.1, temperature=1.0)
    found, plain = method.loss(learner, model, batch), task.loss(model, batch)
    expected = plain.detach().clone()
    for item in batch.items():
        student, old = task.outputs(model, item), task.outputs(teacher, item)
        for weight, own, other in zip((task.ctc_weight, 1 - task.ctc_weight), student.logits, old.logits, strict=True):
            p, q = other.softmax(-1), own.softmax(-1)
            expected += 0.1 * weight * (p * (p / q).log()).sum() / len(batch)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found > plain


def test_the_penalty_of_kfac_ewc_has_the_curvature_for_gradient(task, make_model, make_batch):
    """Of raw attention parameters, of embeddings (their rows are the inputs), of depthwise kernels; after its state was kept."""
    model, batch = make_model(), make_batch([61, 40, 27])
    curvature = curvature_of(task, model, batch)
    learner = SimpleNamespace(last=False, device="cpu", weights=model.state_dict(), estimate_curvature=lambda *_: curvature)
    given = build_method("kfac_ewc", strength=2.0, rest="free")
    given.end_domain(learner, None, None, {name: value.clone() for name, value in model.state_dict().items()})
    method = build_method("kfac_ewc", strength=2.0, rest="free")
    method.load_state_dict(given.state_dict())
    method.start_domain(learner, None)
    delta = {name: 0.01 * torch.randn_like(value) for name, value in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(delta[name])
    method.penalty(learner, model, None).backward()
    kinds, expected = {type(block).__name__ for block in method._terms[0].values()}, curvature.multiply(delta)
    assert kinds == {"KroneckerBlock", "DenseBlock"} and {key.name for key in method._terms[0]} >= set(raw_names(model))
    for name in {key.name for key in method._terms[0]}:
        torch.testing.assert_close(model.get_parameter(name).grad, 2 * expected[name], rtol=1e-4, atol=1e-5)


def test_gpm_projects_query_key_and_value_of_a_raw_parameter_apart(task, make_model, make_batch):
    """Their rows have inputs of their own, and a step is orthogonal to each."""
    model, batch = make_model(dropout=0.0), make_batch([61, 40, 27])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    curvature = curvature_of(task, model, batch)
    learner = SimpleNamespace(
        last=False, device="cpu", weights=before, private=lambda domain: set(), estimate_curvature=lambda *arguments: curvature
    )
    method = build_method("gpm", energy=0.9)
    method.end_domain(learner, None, None, before)
    method.start_domain(learner, None)
    model.train()
    optimizer = torch.optim.Adam(method.wrap(learner, model).parameters(), 0.01)
    task.loss(model, batch).backward()
    method.after_backward(learner, model)
    optimizer.step()
    method.after_step(learner, model)
    after, rows = model.state_dict(), {}
    for (key, transposed), basis in method._spaces.items():
        change = key.rows_of(after[key.name] - before[key.name]).flatten(1)
        left = basis.T @ change if transposed else change @ basis
        assert left.abs().max() <= 1e-6 * max(1.0, float(change.norm()))
        rows.setdefault(key.name, []).append(key.row_stop - key.row_start)
        assert change.any() or len(basis) == basis.shape[1], key
    name = raw_names(model)[0]
    assert sum(rows[name]) == len(before[name])
    unprotected = {name for name, _ in model.named_parameters() if name not in rows}
    assert unprotected and all(torch.equal(after[name], before[name]) for name in unprotected)
    assert all(torch.equal(value, before[name]) for name, value in after.items() if "running" in name)


def test_student_and_teacher_see_the_same_augmented_frames_in_one_pass_each(tokenizer, make_model, make_batch):
    task = RecognitionTask(tokenizer, augment=SpecAugmentConfig(time_width=8, frequency_width=3))
    seen, models = [], [make_model(dropout=0.0), make_model(dropout=0.0)]
    for model in models:
        model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].features))
    learner = SimpleNamespace(task=task, domains=[], weights=None, frozen=lambda weights: models[1])
    models[0].train()
    batch = make_batch([61, 40])
    build_method("lwf").loss(learner, models[0], batch)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], batch.features)
