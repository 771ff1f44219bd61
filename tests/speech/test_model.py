"""The Conformer: an utterance in a batch is the utterance alone, for outputs and for curvature."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from asrcl.curvature import KroneckerBlock, estimate
from asrcl.exceptions import InputError
from asrcl.experiment.config import load_config
from asrcl.speech.model import ConformerASR, ConvolutionalSubsampling, FrameStacking
from asrcl.speech.task import RecognitionTask
from asrcl.speech.tokenizer import BOS

LENGTHS = [61, 5, 40, 27]  # 5 frames: shorter than one window of the convolutions
SUBSAMPLINGS = ["stack", "conv2d"]
RELATIVE = "linear_pos"  # its input is one table for the whole batch, see docs/curvature_format.md


def shifted(batch):
    return functional.pad(batch.tokens, (1, 0), value=BOS)


@pytest.fixture
def task():
    return RecognitionTask(SimpleNamespace(fingerprint="none"))


@pytest.fixture
def doubles(monkeypatch):
    """Make a model compute in double precision: SpeechBrain asks for single precision in two places."""
    softmax = functional.softmax

    def same_precision(tensor, dim=None, dtype=None, **rest):
        return softmax(tensor, dim=dim, dtype=None if tensor.dtype == torch.float64 else dtype, **rest)

    monkeypatch.setattr(functional, "softmax", same_precision)

    def convert(model):
        model.double().transformer.positional_encoding.emb_dtype = torch.float64
        return model

    return convert


@torch.no_grad()
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("overhang", [0, 9])
def test_outputs_of_a_padded_batch_are_those_of_the_utterances_alone(subsampling, overhang, make_model, make_batch):
    model, batch = make_model(subsampling=subsampling), make_batch(LENGTHS, overhang=overhang)
    ctc, frames, attention = model.logits(batch.features, batch.lengths, shifted(batch))
    for row, item in enumerate(batch.items()):
        ctc_alone, frames_alone, attention_alone = model.logits(item.features, item.lengths, shifted(item))
        assert frames[row] == frames_alone[0] == ctc_alone.shape[1]
        torch.testing.assert_close(ctc[row, : frames[row]], ctc_alone[0], atol=2e-6, rtol=0)
        torch.testing.assert_close(attention[row, : len(attention_alone[0])], attention_alone[0], atol=2e-6, rtol=0)


@torch.no_grad()
def test_padding_may_hold_anything(make_model, make_batch):
    model, batch = make_model(), make_batch([40, 20])
    clean = model.logits(batch.features, batch.lengths, shifted(batch))
    batch.features[1, 20:] = float("nan")
    garbage = model.logits(batch.features, batch.lengths, shifted(batch))
    torch.testing.assert_close(clean, garbage, atol=0, rtol=0)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_curvature_of_a_padded_batch_is_that_of_the_utterances_alone(subsampling, doubles, task, make_model, make_batch):
    model = doubles(make_model(subsampling=subsampling))
    batch = make_batch([61, 30, 40, 27], dtype=torch.float64)
    together, alone = (
        estimate(model, task.curvature_loss, data, padding=lambda batch: task.padding(model, batch))
        for data in ([batch], batch.items())
    )
    assert together.metadata["unmasked"] == []
    compared = [key for key in together.blocks if RELATIVE not in key.name]
    assert any("decoder" in key.name for key in compared) and any("conv" in key.name for key in compared)
    for key in compared:
        first, second = together.blocks[key], alone.blocks[key]
        assert first.kind == second.kind and first.items == second.items == 4
        for role, tensor in first.tensors().items():
            torch.testing.assert_close(tensor, second.tensors()[role], rtol=1e-8, atol=1e-12)
        if isinstance(first, KroneckerBlock):
            assert first.positions == second.positions


def test_every_parameter_gets_a_gradient(task, make_model, make_batch):
    """SpeechBrain's own `TransformerASR.decode` runs without gradients; the decoder must not."""
    model = make_model().train()
    task.loss(model, make_batch([40, 30])).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


@torch.no_grad()
def test_decoder_gives_what_the_beam_search_sees(make_model, make_batch):
    """Training and SpeechBrain's search must read the same network."""
    model, batch = make_model(), make_batch([61, 40])
    states, lengths = model.encode(batch.features, batch.lengths)
    hidden, _ = model.transformer.decode(shifted(batch), states, lengths)
    torch.testing.assert_close(model.decode(states, lengths, shifted(batch)), model.attention_head(hidden))


@torch.no_grad()
def test_decoder_does_not_look_ahead(make_model, make_batch):
    model, batch = make_model(), make_batch([61])
    prefix = shifted(batch)
    changed = prefix.clone()
    changed[0, 3:] = 4 + (changed[0, 3:] - 3) % 5
    before, after = (model.logits(batch.features, batch.lengths, tokens)[2] for tokens in (prefix, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_ctc_only_model_trains_a_step(task, make_model, make_batch):
    model, batch = make_model(decoder_layers=0).train(), make_batch([40, 30])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = task.curvature_loss(model.eval(), batch).item()
    for _ in range(5):
        optimizer.zero_grad()
        task.loss(model.train(), batch).backward()
        optimizer.step()
    assert model.attention_head is None and model.logits(batch.features, batch.lengths, shifted(batch))[2] is None
    assert task.curvature_loss(model.eval(), batch).item() < before


@pytest.mark.parametrize("frontend", [FrameStacking(8, 4), FrameStacking(8, 3), ConvolutionalSubsampling(8, 4)])
def test_frontend_lengths_are_those_of_its_output(frontend):
    for frames in range(1, 40):
        found = frontend(torch.zeros(1, frames, 8)).shape
        assert found[1] == frontend.lengths(torch.tensor([frames]))[0]
        assert found[2] == frontend.output_size


def test_frame_stacking_concatenates_neighbours():
    stacked = FrameStacking(2, 3)(torch.arange(8.0).reshape(1, 4, 2))
    assert stacked.tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 0, 0, 0, 0]]]


def test_model_of_the_paper_has_its_size():
    settings = load_config(["scenario=commonvoice", "model=conformer_paper"]).tree["model"]
    with torch.device("meta"):
        model = ConformerASR(80, 5000, **settings)
    assert 46e6 < sum(parameter.numel() for parameter in model.parameters()) < 47.5e6


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"width": 15}, "width (15)"),
        ({"kernel": 4}, "kernel (4)"),
        ({"heads": 0}, "heads=0"),
        ({"encoder_layers": 0}, "encoder_layers=0"),
        ({"width": "16"}, "width=16"),
        ({"decoder_layers": -1}, "decoder_layers (-1)"),
        ({"dropout": 1.5}, "dropout (1.5)"),
        ({"subsampling": "conv3d"}, "subsampling=conv3d"),
        ({"subsampling": "conv2d", "features": 6}, "7 features"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(settings, word, make_model):
    with pytest.raises(InputError) as refusal:
        make_model(**settings)
    assert word in str(refusal.value) and "\n" not in str(refusal.value)
