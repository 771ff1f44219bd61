"""What `Surest` chooses, against losses that Transformers computes itself; the same choice as `select:` of the recipes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_models import write_model, write_whisper

from asrcl.exceptions import InputError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="asrcl.hf needs accelerate")

from asrcl.hf import Surest  # noqa: E402
from asrcl.hf.selection import Candidate  # noqa: E402

torch.set_num_threads(1)
RATE = 16_000
WAVES = [np.sin(np.arange(RATE * seconds) * pitch).astype(np.float32) for seconds, pitch in ((1, 0.1), (1, 0.31), (2, 0.02))]


def processor_of(folder, kind):
    if kind == "whisper":
        return transformers.WhisperProcessor.from_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=kind == "wav2vec2", return_attention_mask=False)
    return SimpleNamespace(feature_extractor=extractor, tokenizer=transformers.AutoTokenizer.from_pretrained(folder))


def perturbed(model, seed):
    """Another model with the same sizes."""
    torch.manual_seed(seed)
    found = type(model)(model.config)
    found.load_state_dict({name: value + 0.1 * torch.randn_like(value) for name, value in model.state_dict().items()})
    if model.can_generate():
        found.generation_config = model.generation_config
    return found


@pytest.fixture(scope="module", params=["whisper", "wav2vec2", "moonshine"])
def system(request, tmp_path_factory):
    """Two models of a kind and their processor."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param) / "model"
    if kind == "whisper":
        folder.mkdir()
        write_whisper(folder)
    else:
        write_model(kind, folder)
    architecture = {"whisper": transformers.WhisperForConditionalGeneration, "wav2vec2": transformers.Wav2Vec2ForCTC}
    first = architecture.get(kind, transformers.MoonshineForConditionalGeneration).from_pretrained(folder)
    return kind, {"general": first, "orders": perturbed(first, 4)}, processor_of(folder, kind), {"max_new_tokens": 6}


def surest_of(system, **options):
    kind, models, processor, generate = system
    return Surest(models, processor, generate=None if kind == "wav2vec2" else generate, **options)


@torch.no_grad()
def loss_of(system, model, wave, text):
    """Mean loss of a text's tokens and the end, by Transformers' own `labels`."""
    kind, _, processor, _ = system
    tokenizer, inputs = processor.tokenizer, processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt")
    said = tokenizer(text, add_special_tokens=False).input_ids
    if kind == "wav2vec2":
        model.config.ctc_loss_reduction = "sum"
        return float(model(**inputs, labels=torch.tensor([said])).loss) / (len(said) + 1)
    prompt = [token for token in tokenizer("").input_ids[1:-1]] if kind == "whisper" else []
    labels = torch.tensor([[*prompt, *said, model.config.eos_token_id]])
    total = float(model(**inputs, labels=labels).loss) * labels.numel()  # of the prompt, too: take that away again
    for place in range(len(prompt)):
        alone = torch.full_like(labels, -100)
        alone[0, place] = labels[0, place]
        start = torch.tensor([[model.config.decoder_start_token_id, *labels[0, :-1].tolist()]])
        total -= float(model(**inputs, labels=alone, decoder_input_ids=start).loss)
    return total / (len(said) + 1)


def test_confidence_is_minus_the_loss_that_transformers_computes(system):
    found = surest_of(system).recognise(WAVES)
    for wave, each in zip(WAVES, found, strict=True):
        for name, candidate in each.candidates.items():
            model = system[1][name].eval()
            text = (" " if system[0] == "whisper" and not candidate.text.startswith(" ") else "") + candidate.text
            with_blank, without = (-loss_of(system, model, wave, one) for one in (text, candidate.text))
            if math.isfinite(candidate.confidence):
                assert any(candidate.confidence == pytest.approx(value, rel=1e-4) for value in (with_blank, without))
    assert any(math.isfinite(each.confidence) for each in found)


def test_the_surest_is_chosen_and_calibration_counts_from_what_is_usual(system):
    surest = surest_of(system)
    for each in surest.recognise(WAVES):
        best = max(each.candidates.values(), key=lambda candidate: candidate.confidence)
        assert each.candidates[each.model] == Candidate(each.text, each.confidence) == best
    usual = {name: surest.calibrate(name, WAVES) for name in ("general", "orders")}
    every = surest.recognise(WAVES)
    for name in usual:
        known = [each.candidates[name].confidence for each in every if math.isfinite(each.candidates[name].confidence)]
        assert surest.usual[name] == usual[name] == pytest.approx(sum(known) / len(known))
    for model, other in (("general", "orders"), ("orders", "general")):  # however sure, the one of which more is usual loses
        found = surest_of(system, usual={model: -1e6, other: 1e6}).recognise(WAVES)
        sure = [each for each in found if math.isfinite(each.candidates[model].confidence)]
        assert sure and all(each.model == model for each in sure)


def test_one_model_twice_is_the_first_and_its_own_text(system):
    kind, models, processor, _ = system
    surest = surest_of((kind, {"a": models["orders"], "b": lambda: models["orders"]}, processor, system[3]))
    for each in surest.recognise(WAVES):
        assert each.model == "a" and each.candidates["a"] == each.candidates["b"]


def test_models_are_left_as_they_were(system):
    model = system[1]["orders"].train()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    inner = next(iter(model.children())).eval()
    surest_of(system).recognise(WAVES[:1])
    assert model.training and not inner.training
    assert flags == [parameter.requires_grad for parameter in model.parameters()]


def test_a_loop_and_silence_are_never_the_surest(system, monkeypatch):
    kind, _, processor, _ = system
    surest = surest_of(system)
    texts = iter(["yes " * 40, "", "on", "off"])
    monkeypatch.setattr(type(processor.tokenizer), "decode", lambda self, *ids, **options: next(texts))
    with_loop, with_nothing = surest._candidates("general", surest._inputs(WAVES[:2], RATE))
    assert with_loop.confidence == with_nothing.confidence == -math.inf
    if kind != "wav2vec2":
        sure = surest._candidates("general", surest._inputs(WAVES[:2], RATE))
        assert all(math.isfinite(each.confidence) for each in sure)
    chosen = surest._chosen({"general": with_loop, "orders": Candidate("on", -50.0)})
    assert (chosen.model, chosen.text) == ("orders", "on")
    assert surest._chosen({"general": with_nothing, "orders": with_loop}).model == "general"


def test_a_text_without_room_in_the_decoder_counts_for_nothing(system, monkeypatch):
    kind, _, processor, _ = system
    if kind == "wav2vec2":
        pytest.skip("CTC has no decoder")
    letters = "turn on the light in my room please and then play music for everybody who is at home"
    monkeypatch.setattr(type(processor.tokenizer), "decode", lambda self, *ids, **options: letters)
    assert surest_of(system).recognise(WAVES[:1])[0].confidence == -math.inf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda system: Surest({}, system[2]), "no models to choose from"),
        (lambda system: surest_of(system, usual={"digits": 1.0}), "usual confidence of digits, but the models are general"),
        (lambda system: surest_of(system, usual={"orders": 1.0}).recognise(WAVES), "orders calibrated, general not"),
        (lambda system: surest_of(system).recognise(WAVES, 8_000), "audio of 8000 Hz for models of 16000"),
        (lambda system: surest_of(system).recognise([WAVES[0], np.zeros((2, 100))]), r"waveform 1 has shape \(2, 100\)"),
        (lambda system: surest_of(system).recognise([np.full(16_000, np.nan)]), "finite samples"),
        (lambda system: surest_of(system).recognise([[]]), "waveform 0"),
        (lambda system: surest_of(system).calibrate("digits", WAVES), "no model digits; there are general, orders"),
        (lambda system: surest_of(system).calibrate("orders", []), "recognised nothing in 0 utterances"),
    ],
)
def test_what_cannot_be_compared_is_refused(system, call, words):
    with pytest.raises(InputError, match=words):
        call(system)
