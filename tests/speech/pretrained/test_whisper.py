"""Whisper here is Whisper as Transformers runs it: same features, logits, loss and hypotheses; padding changes nothing."""

import math
import string
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from asrcl.contract.weights import state_of
from asrcl.curvature import estimate
from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json
from asrcl.scoring import Errors, ItemErrors
from asrcl.speech.decoding import DecodeConfig
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.features import features_of
from asrcl.speech.pretrained.tokens import HubTokenizer
from asrcl.speech.pretrained.whisper import Whisper
from asrcl.speech.recogniser import Objective, Recogniser, model_class
from asrcl.speech.task import RecognitionTask

transformers = pytest.importorskip("transformers")
TEXTS = ["Turn on the light.", "No", "Zwölf — fünf?"]
SECONDS = [0.7, 1.3, 0.4]


def waves():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(int(16000 * seconds), generator=generator) * 0.1 for seconds in SECONDS]


def row(tmp_path, wave, number=0):
    import soundfile

    path = tmp_path / f"{number}.wav"
    soundfile.write(path, wave.numpy(), 16000, subtype="FLOAT")
    return {"id": f"u{number}", "path": str(path), "start": 0, "end": -1, "kind": "audio"}


def batch_of(folder, tmp_path, **settings):
    """Three utterances, batched."""
    tokenizer = Whisper.tokenizer(str(folder))
    parts = []
    for number, (wave, text) in enumerate(zip(waves(), TEXTS, strict=True)):
        features = features_of(row(tmp_path, wave, number), Whisper.front_end(str(folder), **settings))
        tokens = torch.tensor([tokenizer.encode(text)])
        sizes = torch.tensor([len(features)]), torch.tensor([tokens.shape[1]])
        parts.append(SpeechBatch((f"u{number}",), ("s",), (text,), features[None], sizes[0], tokens, sizes[1]))
    return SpeechBatch.collate(parts)


def build(folder, **settings):
    return Whisper(8, len(Whisper.tokenizer(str(folder))), pretrained=str(folder), **settings).eval()


def reference(folder):
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def without_times(*models):
    """Models that write no times, in which Transformers sees several segments of a recording."""
    for model in models:
        times = range(model.generation_config.no_timestamps_token_id + 1, model.config.vocab_size)
        model.generation_config.suppress_tokens = [3, 5, *times]


def reference_features(folder):
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    arrays = [wave.numpy() for wave in waves()]
    return extractor(arrays, sampling_rate=16000, return_tensors="pt")["input_features"]


@torch.no_grad()
def test_logits_are_those_of_transformers(whisper_folder, tmp_path):
    batch, model, whisper = batch_of(whisper_folder, tmp_path), build(whisper_folder), reference(whisper_folder)
    ours = model(batch)
    prompt = torch.tensor([list(model.prompt(batch))]).expand(3, -1)
    tokens = torch.cat([prompt, batch.tokens], dim=1)
    theirs = whisper(input_features=reference_features(whisper_folder), decoder_input_ids=tokens).logits[:, prompt.shape[1] - 1 :]
    assert torch.allclose(ours.logits[0], theirs, atol=1e-5)
    assert ours.masks[0].sum(1).tolist() == (batch.token_lengths + 1).tolist()


@torch.no_grad()
def test_the_loss_is_the_cross_entropy_of_text_and_end(whisper_folder, tmp_path):
    batch, model, whisper = batch_of(whisper_folder, tmp_path), build(whisper_folder), reference(whisper_folder)
    start, *rest = model.prompt(batch)
    labels = torch.full((3, len(rest) + batch.tokens.shape[1] + 1), -100)
    inputs = torch.full_like(labels, 0)
    for number, length in enumerate(batch.token_lengths.tolist()):
        text = batch.tokens[number, :length].tolist()
        labels[number, len(rest) : len(rest) + length + 1] = torch.tensor([*text, whisper.config.eos_token_id])
        inputs[number, : len(rest) + length + 1] = torch.tensor([start, *rest, *text])
    logits = whisper(input_features=reference_features(whisper_folder), decoder_input_ids=inputs).logits
    wanted = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / 3
    assert model.loss(model(batch), batch, Objective()).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("beam", [1, 3])
def test_hypotheses_are_those_of_transformers(whisper_folder, tmp_path, beam):
    batch, model, whisper = batch_of(whisper_folder, tmp_path), build(whisper_folder), reference(whisper_folder)
    without_times(model._generator[0], whisper)
    options = DecodeConfig("greedy" if beam == 1 else "beam", beam=beam, max_ratio=0.2)
    tokenizer = Whisper.tokenizer(str(whisper_folder))
    found = model.transcribe(batch, options, tokenizer)
    theirs = whisper.generate(reference_features(whisper_folder), num_beams=beam, max_new_tokens=20)
    assert found == [tokenizer.decode(tokens) for tokens in theirs.tolist()]
    assert found[0] and found == [text for item in batch.items() for text in model.transcribe(item, options, tokenizer)]


def test_a_multilingual_model_is_told_language_and_task(multilingual_folder, tmp_path):
    folder = multilingual_folder
    batch, model, whisper = batch_of(folder, tmp_path), build(folder, language="de", task="translate"), reference(folder)
    names = ["<|startoftranscript|>", "<|de|>", "<|translate|>", "<|notimestamps|>"]
    tokenizer = HubTokenizer(folder)
    without_times(model._generator[0], whisper)
    assert model.prompt(batch) == tuple(tokenizer.index(name) for name in names)
    theirs = whisper.generate(reference_features(folder), language="de", task="translate", max_new_tokens=20)
    found = model.transcribe(batch, DecodeConfig("greedy", max_ratio=0.2), tokenizer)
    assert found == [tokenizer.decode(tokens) for tokens in theirs.tolist()]
    with pytest.raises(InputError, match=r"model\.language: .*en"):
        build(folder)
    with pytest.raises(InputError, match=r"lacks <\|fr\|>"):
        build(folder, language="fr")


@torch.no_grad()
def test_every_domain_may_have_its_language(multilingual_folder, tmp_path):
    batch, both = batch_of(multilingual_folder, tmp_path), build(multilingual_folder, language={"calls": "en", "orders": "de"})
    for domain, language in (("calls", "en"), ("orders", "de")):
        ours, alone = both(replace(batch, domain=domain)), build(multilingual_folder, language=language)(batch)
        assert torch.equal(ours.logits[0], alone.logits[0])
    with pytest.raises(InputError, match=r"model\.language: says nothing of probe; it has calls, orders"):
        both(replace(batch, domain="probe"))


def test_a_text_that_the_decoder_has_no_room_for_is_refused(whisper_folder, tmp_path):
    batch = batch_of(whisper_folder, tmp_path)
    long = replace(batch, tokens=torch.ones(3, 80, dtype=torch.long), token_lengths=torch.tensor([3, 80, 4]))
    with pytest.raises(InputError, match=r"utterance u1: its text has 80 tokens, the model has room for 58"):
        build(whisper_folder)(long)


def test_times_are_predicted_and_vanish_from_the_text(whisper_folder, tmp_path):
    batch, model = batch_of(whisper_folder, tmp_path), build(whisper_folder, timestamps=True)
    seen = []

    class Spy:
        def decode(self, tokens):
            seen.append(tokens)
            return HubTokenizer(whisper_folder).decode(tokens)

    texts = model.transcribe(batch, DecodeConfig("greedy", max_ratio=0.2), Spy())
    first = HubTokenizer(whisper_folder).index("<|0.00|>")
    assert all(tokens[0] >= first for tokens in seen) and not any("<|" in text for text in texts)


@torch.no_grad()
def test_a_shorter_window_is_the_same_model_with_fewer_positions(whisper_folder, tmp_path):
    batch, model, whisper = batch_of(whisper_folder, tmp_path), build(whisper_folder, context=1), reference(whisper_folder)
    short = replace(batch, lengths=batch.lengths.clamp(max=100), features=batch.features[:, :100])
    encoder = whisper.model.encoder
    encoder.config.max_source_positions, encoder.embed_positions.num_embeddings = 50, 50
    states = encoder(reference_features(whisper_folder)[..., :100]).last_hidden_state
    kept = torch.tensor([0, 2])  # the other utterance is longer than a second
    assert torch.allclose(model.encode(short)[0][kept], states[kept], atol=1e-5)


def test_an_utterance_longer_than_the_window_is_refused(whisper_folder, tmp_path):
    with pytest.raises(InputError, match=r"1\.wav: utterance u1 lasts 1\.3 s, .*window of 1 s"):
        batch_of(whisper_folder, tmp_path, context=1)
    with pytest.raises(InputError, match=r"model\.context=3"):
        Whisper.front_end(str(whisper_folder), context=3)


def test_a_padded_batch_is_its_utterances(whisper_folder, tmp_path):
    batch, model = batch_of(whisper_folder, tmp_path), build(whisper_folder)
    task = RecognitionTask(Whisper.tokenizer(str(whisper_folder)))
    whole = task.curvature_loss(model, batch)
    alone = torch.stack([task.curvature_loss(model, item) for item in batch.items()])
    assert whole.item() == pytest.approx(alone.mean().item(), rel=1e-5)
    together, apart = (
        estimate(model, task.curvature_loss, batches, padding=lambda one: task.padding(model, one), layers="linear")
        for batches in ([batch], list(batch.items()))
    )
    assert together.metadata["unmasked"] == [] and len(together.blocks) > 20
    for key, block in together.blocks.items():
        for ours, theirs in zip(block.tensors().values(), apart.blocks[key].tensors().values(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-6), key


def test_weights_have_the_names_of_the_folder(whisper_folder):
    from safetensors.torch import load_file

    stored, ours = load_file(whisper_folder / "model.safetensors"), state_of(build(whisper_folder))
    assert set(ours) == set(stored) and all(torch.equal(ours[name], stored[name]) for name in ours)


def test_copies_are_models_of_their_own(whisper_folder, tmp_path):
    from copy import deepcopy

    batch, model = batch_of(whisper_folder, tmp_path), build(whisper_folder)
    other = deepcopy(model)
    with torch.no_grad():
        other.model.decoder.embed_tokens.weight.mul_(-1)
    options, tokenizer = DecodeConfig("greedy", max_ratio=0.1), Whisper.tokenizer(str(whisper_folder))
    assert isinstance(other, Recogniser)
    assert other.transcribe(batch, options, tokenizer) != model.transcribe(batch, options, tokenizer)
    assert other._generator[0].model is other.model


def spoiled(folder, what):
    if what == "kind":
        write_json(folder / "config.json", {**read_json(folder / "config.json"), "model_type": "llama"})
    elif what == "quantised":
        write_json(folder / "config.json", {**read_json(folder / "config.json"), "quantization_config": {"bits": 4}})
    elif what == "tokens":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif what == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what == "damaged":
        (folder / "model.safetensors").write_bytes(b"\0" * 100)
    return folder


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("kind", r"model\.kind=llama: unknown"),
        ("quantised", "quantised"),
        ("tokens", r"no tokenizer \(tokenizer\.json"),
        ("pickle", r"no weights .* pickle"),
        ("damaged", r"cannot be loaded by Whisper"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(make_folder, what, words):
    folder = spoiled(make_folder(), what)
    with pytest.raises(InputError, match=words) as raised:
        model_class({"kind": "pretrained", "pretrained": str(folder)})(8, 300, pretrained=str(folder))
    assert ("\n" not in str(raised.value) and str(folder) in str(raised.value)) or what == "kind"


def test_a_name_that_is_nowhere_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"model\.pretrained=nobody/nothing: .*hub"):
        model_class({"kind": "pretrained", "pretrained": "nobody/nothing"})
    with pytest.raises(InputError, match=r"model\.pretrained=/no/such/folder: no such folder"):
        model_class({"kind": "pretrained", "pretrained": "/no/such/folder"})


def test_english_alone_has_no_other_language(whisper_folder):
    with pytest.raises(InputError, match="English alone"):
        build(whisper_folder, language="de")


@torch.no_grad()
def test_confidence_of_whisper_is_the_mean_log_probability_of_text_and_end_as_transformers_has_it(whisper_folder, tmp_path):
    batch, model, theirs = batch_of(whisper_folder, tmp_path), build(whisper_folder), reference(whisper_folder)
    tokenizer = Whisper.tokenizer(str(whisper_folder))
    domain = SimpleNamespace(batches=lambda split, shuffle, seed: iter([batch]))
    texts = ["Hm.", "Turn on", string.ascii_letters + string.digits]  # for the last there is no room
    items = [ItemErrors(name, "s", 0, 0, 0, 1, "", text) for name, text in zip(batch.ids, texts, strict=True)]
    found = RecognitionTask(tokenizer).confidence(model, domain, "test", Errors(items))
    assert found[2] == -math.inf
    prompt, features = list(model.prompt(batch)), reference_features(whisper_folder)
    for place, text in enumerate(texts[:2]):
        said = tokenizer.encode(text)
        logits = theirs(features[place : place + 1], decoder_input_ids=torch.tensor([prompt + said])).logits[0, len(prompt) - 1 :]
        target = torch.tensor([*said, theirs.config.eos_token_id])
        assert found[place] == pytest.approx(-float(functional.cross_entropy(logits, target)), rel=1e-3)
