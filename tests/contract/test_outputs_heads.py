"""Distillation between outputs: a calculation by hand, masks, gradients of the student alone."""

import pytest
import torch

from asrcl.contract.outputs import Outputs, distillation


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_divergence_of_tempered_softmaxes_summed_over_positions():
    student, teacher = random(2, 3, 4), random(2, 3, 4, seed=1)
    found = distillation(Outputs((student,), (None,)), Outputs((teacher,), (None,)), 2.0, (0.5,))
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    torch.testing.assert_close(found, 0.5 * 4 * (p * (p / q).log()).sum() / 2)


def test_equal_outputs_are_at_no_distance_and_others_at_one():
    same, other = Outputs((random(2, 3),), (None,)), Outputs((random(2, 3, seed=1),), (None,))
    assert distillation(same, same, 3.0, (1.0,)) == 0 and distillation(same, other, 3.0, (1.0,)) > 0


def test_padded_positions_do_not_count_and_heads_add_up():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    first, second = random(2, 3, 4), random(2, 5)
    student = Outputs((first, second), (mask, None))
    teacher = Outputs((random(2, 3, 4, seed=1), random(2, 5, seed=2)), (mask, None))
    whole = distillation(student, teacher, 1.0, (0.3, 0.7))
    spoiled = first.clone()
    spoiled[~mask] = 50.0
    assert distillation(Outputs((spoiled, second), (mask, None)), teacher, 1.0, (0.3, 0.7)) == whole
    parts = [
        distillation(Outputs((s,), (m,)), Outputs((t,), (m,)), 1.0, (1.0,))
        for s, t, m in zip(student.logits, teacher.logits, student.masks, strict=True)
    ]
    torch.testing.assert_close(whole, 0.3 * parts[0] + 0.7 * parts[1])


def test_gradients_flow_into_the_student_alone():
    student, teacher = random(2, 3).requires_grad_(), random(2, 3, seed=1).requires_grad_()
    distillation(Outputs((student,), (None,)), Outputs((teacher,), (None,)), 1.0, (1.0,)).backward()
    assert student.grad is not None and student.grad.any() and teacher.grad is None


def test_heads_must_have_weights():
    outputs = Outputs((random(2, 3),), (None,))
    with pytest.raises(ValueError):
        distillation(outputs, outputs, 1.0, (0.5, 0.5))
