"""Methods on a Conformer, whose attention has its projections in parameters without a layer of their own."""

import pytest
import torch

from asrcl.methods import build_method
from asrcl.methods.mas import absolute_gradients
from asrcl.speech.task import RecognitionTask


@pytest.fixture
def task(tokenizer):
    return RecognitionTask(tokenizer)


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
