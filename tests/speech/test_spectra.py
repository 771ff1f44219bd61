"""The observer of spectra on a Conformer: CTC, which PyTorch differentiates once, attention, padding."""

import numpy as np
import pytest
import torch

from asrcl.adapt.spectra import LossSpectra, _precise
from asrcl.curvature.spectrum import hessian_operator
from asrcl.speech.task import RecognitionTask


@pytest.fixture
def probe():
    return LossSpectra(epsilons=(1e-6, 1.0), steps=12, draws=2, parameters=("*encoder.norm*",))


def test_the_spectrum_of_a_conformer_with_ctc(probe, tokenizer, make_model, make_batch):
    model, task, batch = make_model(), RecognitionTask(tokenizer), make_batch([61, 40])
    found = probe.of(model, task, [batch])
    operator = hessian_operator(model, task.curvature_loss, [batch], parameters=("*encoder.norm*",), finite_difference=True)
    assert found["items"] == 2 and found["weights"] == operator.shape[0]
    values = np.linalg.eigvalsh((lambda m: (m + m.T) / 2)(operator @ np.eye(operator.shape[0])))
    assert found["hessian"]["largest"] == pytest.approx(values.max(), rel=1e-2)
    assert found["hessian"]["smallest"] < 0 < found["fisher"]["largest"]
    assert found["fisher"]["smallest"] > -1e-4 * found["fisher"]["largest"]
    # Differences of gradients in single precision resolve no eigenvalue of a millionth; the largest are well above one.
    assert found["hessian"]["epsilon_rank"][0] is None
    assert found["hessian"]["epsilon_rank"][1] == pytest.approx(np.mean(np.abs(values) > 1), abs=0.1)


def test_a_model_that_computes_in_single_precision_alone_stays_as_it_is(tokenizer, make_model, make_batch):
    model, task, batches = make_model(), RecognitionTask(tokenizer), [make_batch([61, 40])]
    kept = _precise(model, task, batches)
    assert kept[0] is model and kept[2] is batches and next(model.parameters()).dtype == torch.float32
