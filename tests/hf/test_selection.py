"""What `Surest` chooses, against losses that Transformers computes itself; the same choice as `select:` of the recipes."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hub_models import write_model, write_whisper

from asrcl.exceptions import InputError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="asrcl.hf needs accelerate")

from asrcl.hf import Surest, selection  # noqa: E402
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
    if kind == "wav2vec2":  # what was said, delimiters at the ends included, which the text lacks
        model.config.ctc_loss_reduction = "sum"
        path = model(**inputs).logits[0].argmax(-1).tolist()
        said = [token for place, token in enumerate(path) if token != 0 and (place == 0 or path[place - 1] != token)]
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
    surest = surest_of((kind, {"a": models["orders"], "b": copy.deepcopy(models["orders"])}, processor, system[3]))
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
    inputs = next(surest._heard(WAVES[:2], RATE))
    with_loop, with_nothing = surest._candidates("general", inputs)
    assert with_loop.confidence == with_nothing.confidence == -math.inf
    if kind != "wav2vec2":
        sure = surest._candidates("general", inputs)
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


class Wrapper(torch.nn.Module):
    """What PEFT puts around a model, as far as `Surest` looks at it."""

    def __init__(self, model, prompt):
        super().__init__()
        self.base_model, self.active_peft_config = model, SimpleNamespace(is_prompt_learning=prompt)

    def get_base_model(self):
        return self.base_model


def wrapped(system, prompt):
    kind, models, *rest = system
    return surest_of((kind, {**models, "orders": Wrapper(models["orders"], prompt)}, *rest))


def both_ways(system):
    """A base as a module, and the same with its adapters on as a function."""
    kind, models, *rest = system
    return surest_of((kind, {**models, "orders": lambda: Wrapper(models["general"], False)}, *rest))


def other_sizes(system):
    kind, models, *rest = system
    other = copy.deepcopy(models["orders"])
    other.config.vocab_size = 77
    return surest_of((kind, {**models, "orders": other}, *rest))


def test_a_wrapper_of_adapters_is_the_model_in_it(system):
    assert wrapped(system, False).recognise(WAVES) == surest_of(system).recognise(WAVES)


def test_utterances_are_taken_some_at_a_time(system, monkeypatch):
    whole = surest_of(system).recognise(WAVES)
    monkeypatch.setattr(selection, "TOGETHER", 2)
    assert surest_of(system).recognise(torch.tensor(wave, requires_grad=True) for wave in WAVES) == whole
    assert surest_of(system).recognise([]) == []


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 2}])
def test_texts_are_those_of_generate(system, options):
    kind, models, processor, generate = system
    if kind == "wav2vec2":
        pytest.skip("CTC has no search")
    found = Surest({"orders": models["orders"].eval()}, processor, generate={**generate, **options}).recognise(WAVES)
    for wave, each in zip(WAVES, found, strict=True):
        inputs = processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt")
        tokens = models["orders"].generate(**inputs, **generate, **options)[0]
        assert each.text == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_nothing_is_encoded_twice_and_the_encoder_is_left_as_it_was(system):
    """As often as `generate` alone does: a Whisper that says timestamps goes on from the last of them."""
    kind, models, processor, generate = system
    if kind == "wav2vec2":
        pytest.skip("CTC encodes once anyway")
    model, calls = models["orders"].eval(), []
    encoder = model.get_encoder()
    handle = encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    for wave in WAVES:
        model.generate(**processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt"), **generate)
    alone = len(calls)
    found = surest_of((kind, {"orders": model}, processor, generate)).recognise(WAVES)
    assert len(calls) == 2 * alone and "forward" not in vars(encoder)
    placed = encoder.forward = encoder.forward  # as Accelerate leaves a model that it placed
    assert surest_of((kind, {"orders": model}, processor, generate)).recognise(WAVES) == found
    assert len(calls) == 3 * alone and vars(encoder)["forward"] is placed
    del encoder.forward
    handle.remove()


def test_a_text_is_scored_behind_the_prompt_that_was_decoded_with(tmp_path):
    """A multilingual Whisper whose tokeniser was not told the language."""
    model = transformers.WhisperForConditionalGeneration.from_pretrained(write_whisper(tmp_path, multilingual=True))
    processor = transformers.WhisperProcessor.from_pretrained(tmp_path)
    told = transformers.WhisperProcessor.from_pretrained(tmp_path, language="en", task="transcribe")
    surest = Surest({"general": model}, processor, generate={"language": "en", "max_new_tokens": 6})
    system = ("whisper", {"general": model.eval()}, told, {})
    for wave, found in zip(WAVES, surest.recognise(WAVES), strict=True):
        scored = [-loss_of(system, model, wave, text) for text in (found.text, " " + found.text)]  # which is without its blank
        assert any(found.confidence == pytest.approx(value, rel=1e-4) for value in scored)
    assert len(told.tokenizer("").input_ids) == len(surest._prompt(model, next(surest._heard(WAVES, RATE))[0])) + 1
    too_long = np.zeros(2 * RATE + 1, np.float32)
    with pytest.raises(InputError, match=r"waveform 0 has 2.00 s; the models take 0.1 to 2 s"):
        surest.recognise([too_long])


class Spoken(torch.nn.Module):
    """A CTC model that says certain tokens, one a frame, and is as sure of each."""

    def __init__(self, config, frames, probability):
        super().__init__()
        self.config, self.share, self.frames = config, torch.nn.Parameter(torch.tensor(probability)), frames
        self.device = self.share.device

    def can_generate(self):
        return False

    def forward(self, input_values):
        rest = (1 - self.share) / (self.config.vocab_size - 1)
        logits = rest.repeat(1, len(self.frames), self.config.vocab_size)
        logits[0, range(len(self.frames)), self.frames] = self.share
        return SimpleNamespace(logits=logits.log())


def test_delimiters_at_the_ends_are_no_doubt_and_special_tokens_no_text(tmp_path):
    write_model("wav2vec2", tmp_path / "model")
    processor = processor_of(tmp_path / "model", "wav2vec2")
    config = transformers.Wav2Vec2Config.from_pretrained(tmp_path / "model")

    def spoken(words, probability):
        return Spoken(config, [processor.tokenizer.convert_tokens_to_ids(word) for word in words], probability)

    plain, ended = [*"TURN", "|", "O", "N"], ["|", "<unk>", *"TURN", "|", "<pad>", "|", "O", "N", "|"]
    for words, text in ((plain, "TURN ON"), (ended, "TURN  ON"), (["|", "<pad>", "</s>"], "")):
        [found] = Surest({"one": spoken(words, 0.99)}, processor).recognise(WAVES[:1])
        assert found.text == text
        assert found.confidence > -0.1 if text else found.confidence == -math.inf
    models = {"unsure": spoken([*"TURN", "|", "O", "M"], 0.8), "sure": spoken(ended, 0.99)}
    assert Surest(models, processor).recognise(WAVES[:1])[0].model == "sure"
    config.pad_token_id = 5
    with pytest.raises(InputError, match="blank of the model is token 5, that of the tokeniser 0"):
        Surest(models, processor).recognise(WAVES[:1])


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
        (lambda system: surest_of(system).recognise([WAVES[0], WAVES[0][:1500]]), "waveform 1 has 0.09 s; the models take 0.1"),
        (lambda system: surest_of(system).recognise([(WAVES[0] * 32767).astype(np.int16)]), "waveform 0 has int16 in it"),
        (lambda system: surest_of(system).recognise([{"array": WAVES[0]}]), "waveform 0 has object in it"),
        (lambda system: surest_of(system, usual={"general": 0, "orders": math.nan}).recognise(WAVES), "orders is nan, no finite"),
        (lambda system: surest_of(system, usual={"general": 0, "orders": None}).recognise(WAVES), "orders is None, no finite"),
        (lambda system: Surest(system[1], SimpleNamespace(feature_extractor=1)), "SimpleNamespace has no tokenizer"),
        (lambda system: both_ways(system).recognise(WAVES), "general and orders are the same model, or one is a part"),
        (lambda system: wrapped(system, True).recognise(WAVES), "orders learned a prompt"),
        (lambda system: other_sizes(system).recognise(WAVES), r"general has \d+ tokens and .*, orders 77 tokens"),
        (lambda system: surest_of(system).calibrate("digits", WAVES), "no model digits; there are general, orders"),
        (lambda system: surest_of(system).calibrate("orders", []), "recognised nothing in 0 utterances"),
    ],
)
def test_what_cannot_be_compared_is_refused(system, call, words):
    with pytest.raises(InputError, match=words):
        call(system)
