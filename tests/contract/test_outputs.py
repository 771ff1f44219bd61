"""Distillation against its formula."""

import pytest
import torch

from asrcl.contract.outputs import Outputs, distillation

B, P, C = 3, 5, 4


def draw(seed, mask=True):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([5, 2, 3])
    masks = torch.arange(P)[None] < lengths[:, None] if mask else None
    return Outputs((torch.randn(B, P, C, generator=generator), torch.randn(B, C, generator=generator)), (masks, None))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_distillation_is_the_sum_of_divergences_over_real_positions(temperature):
    student, teacher, weights = draw(1), draw(2), (0.3, 0.7)
    expected = 0.0
    for i, length in enumerate([5, 2, 3]):
        for p in range(length):
            expected += 0.3 * divergence(student.logits[0][i, p], teacher.logits[0][i, p], temperature)
        expected += 0.7 * divergence(student.logits[1][i], teacher.logits[1][i], temperature)
    assert float(distillation(student, teacher, temperature, weights)) == pytest.approx(float(expected) / B, rel=1e-5)


def divergence(student, teacher, temperature):
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum()


def test_distillation_of_the_same_outputs_is_zero_and_pulls_towards_the_teacher():
    student, teacher = draw(3), draw(4)
    assert float(distillation(student, student, 2.0, (1.0, 1.0))) == pytest.approx(0.0, abs=1e-6)
    logits = student.logits[0].clone().requires_grad_()
    loss = distillation(Outputs((logits,), student.masks[:1]), Outputs(teacher.logits[:1], student.masks[:1]), 2.0, (1.0,))
    loss.backward()
    with torch.no_grad():
        nearer = logits - 0.1 * logits.grad
    after = distillation(Outputs((nearer,), student.masks[:1]), Outputs(teacher.logits[:1], student.masks[:1]), 2.0, (1.0,))
    assert 0 < float(after) < float(loss)
    assert torch.equal(logits.grad[1, 2:], torch.zeros(P - 2, C))  # padded positions have no say
