"""Moonshine, wav2vec 2.0 and HuBERT here are what Transformers runs, one utterance at a time; padding changes nothing."""

import math
import random
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hub_models import write_characters, write_model

from asrcl.contract.weights import state_of
from asrcl.curvature import estimate
from asrcl.exceptions import InputError
from asrcl.experiment import run
from asrcl.experiment.config import load_config
from asrcl.experiment.registry import benchmark_of
from asrcl.scoring import Errors, ItemErrors, RunResult
from asrcl.speech.decoding import DecodeConfig
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.pretrained.tokens import CharacterTokenizer
from asrcl.speech.recogniser import Objective, model_class
from asrcl.speech.task import RecognitionTask

transformers = pytest.importorskip("transformers")
SECONDS = [0.5, 0.9, 0.3]
TEXTS = ["turn on", "the light, please", "no"]
KINDS = ["wav2vec2", "wav2vec2_large", "hubert", "moonshine"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param) / "model")


def build(folder):
    settings = {"kind": "pretrained", "pretrained": str(folder)}
    found = model_class(settings)
    tokenizer = found.tokenizer(pretrained=str(folder))
    return found(1, len(tokenizer), pretrained=str(folder)).eval(), tokenizer


def batch_of(tokenizer):
    generator, parts = torch.Generator().manual_seed(2), []
    for number, (seconds, text) in enumerate(zip(SECONDS, TEXTS, strict=True)):
        samples = torch.randn(int(16000 * seconds), generator=generator)
        tokens = torch.tensor([tokenizer.encode(text)])
        sizes = torch.tensor([len(samples)]), torch.tensor([tokens.shape[1]])
        parts.append(SpeechBatch((f"u{number}",), ("s",), (text,), samples[None, :, None], sizes[0], tokens, sizes[1]))
    return SpeechBatch.collate(parts)


@torch.no_grad()
def test_logits_are_those_of_transformers_for_one_utterance(folder):
    model, tokenizer = build(folder)
    batch = batch_of(tokenizer)
    outputs = model(batch)
    if hasattr(model, "lm_head"):
        reference = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    else:
        reference = transformers.MoonshineForConditionalGeneration.from_pretrained(folder).eval()
    for number, item in enumerate(batch.items()):
        if hasattr(model, "lm_head"):
            wanted = reference(item.features[..., 0]).logits[0]
        else:
            tokens = torch.cat([torch.tensor([[1]]), item.tokens], dim=1)
            wanted = reference(input_values=item.features[..., 0], decoder_input_ids=tokens).logits[0]
        ours = outputs.logits[0][number][outputs.masks[0][number]]
        assert ours.shape == wanted.shape and torch.allclose(ours, wanted, atol=1e-4)


@torch.no_grad()
def test_hypotheses_do_not_depend_on_the_batch(folder):
    model, tokenizer = build(folder)
    batch = batch_of(tokenizer)
    options = DecodeConfig("greedy", max_ratio=0.5)
    together = model.transcribe(batch, options, tokenizer)
    assert together == [text for item in batch.items() for text in model.transcribe(item, options, tokenizer)]
    assert any(together)
    with pytest.raises(InputError, match=r"decode\.kind=joint_beam"):
        model.transcribe(batch, DecodeConfig("joint_beam"), tokenizer)


def test_a_padded_batch_is_its_utterances(folder):
    model, tokenizer = build(folder)
    batch, task = batch_of(tokenizer), RecognitionTask(tokenizer)
    whole = task.curvature_loss(model, batch)
    alone = torch.stack([task.curvature_loss(model, item) for item in batch.items()])
    assert whole.item() == pytest.approx(alone.mean().item(), rel=1e-4) and whole.item() > 0
    together, apart = (
        estimate(model, task.curvature_loss, batches, padding=lambda one: task.padding(model, one), layers="linear")
        for batches in ([batch], list(batch.items()))
    )
    assert together.metadata["unmasked"] == [] and together.blocks.keys() == apart.blocks.keys()
    for key, block in together.blocks.items():
        for ours, theirs in zip(block.tensors().values(), apart.blocks[key].tensors().values(), strict=True):
            scale = theirs.abs().max().item()
            assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-4 * scale), key


def test_weights_have_the_names_of_the_folder_and_copies_are_their_own(folder):
    from safetensors.torch import load_file

    model, tokenizer = build(folder)
    stored = load_file(folder / "model.safetensors")
    ours = state_of(model)
    assert set(ours) == set(stored) and all(torch.equal(ours[name], stored[name]) for name in ours)
    copy, batch = deepcopy(model), batch_of(tokenizer)
    with torch.no_grad():
        for value in copy.parameters():
            value.mul_(-1)
    task = RecognitionTask(tokenizer)
    assert not torch.allclose(task.curvature_loss(copy, batch), task.curvature_loss(model, batch))


def test_wav2vec2_goes_through_a_whole_experiment(tones, tmp_path):
    folder = write_model("wav2vec2", tmp_path / "model")
    chosen = ["scenario=probed", "model=pretrained", f"model.pretrained={folder}", "decode=greedy", "train.max_frames=200000"]
    config = load_config([*tones.overrides(tmp_path / "exp"), *chosen])
    for stage in ("data", "tokens"):
        benchmark_of(config.tree).prepare(config, stage)
    with pytest.raises(InputError, match=r"train\.augment: .*sees samples"):
        run.train_all(config, [1])
    config = load_config([*tones.overrides(tmp_path / "exp"), *chosen, "train.augment=null"])
    run.train_all(config, [1])
    run.adapt_all(config, ["ft", "ihr"], [1], decode=True)
    result = RunResult.load(config.home / "ihr" / "1" / "results.json")
    assert all(count is not None for row in result.errors for count in row)


def test_settings_and_files_that_cannot_be_are_refused(tmp_path):
    folder = write_model("wav2vec2", tmp_path / "model")
    found = model_class({"kind": "pretrained", "pretrained": str(folder)})
    with pytest.raises(InputError, match=r"model\.context=10: .*set model\.context=null"):
        found.front_end(pretrained=str(folder), context=10)
    (folder / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"preprocessor_config\.json: holds no settings by name"):
        found.front_end(pretrained=str(folder))
    with pytest.raises(InputError, match=r"its tokenizer has 99 tokens, its model 31"):
        found(1, 99, pretrained=str(folder))


def test_characters_that_the_vocabulary_lacks_are_left_out(tmp_path):
    write_characters(tmp_path / "model")
    tokenizer = CharacterTokenizer(tmp_path / "model")
    tokens = tokenizer.encode("Turn on, the light!")
    assert tokenizer.decode(tokens) == "TURN ON THE LIGHT"
    assert tokenizer.decode(tokenizer.encode("hello")) == "HELLO"  # l and l are two letters, not one that lasts


def test_the_loss_is_ctc_of_transformers(tmp_path):
    folder = write_model("wav2vec2", tmp_path / "model")
    model, tokenizer = build(folder)
    batch = batch_of(tokenizer)
    reference = transformers.AutoModelForCTC.from_pretrained(folder, ctc_loss_reduction="sum").eval()
    for item in batch.items():
        wanted = reference(item.features[..., 0], labels=item.tokens).loss
        assert model.loss(model(item), item, Objective()).item() == pytest.approx(wanted.item(), rel=1e-4)


class Fixed:
    """A split of one batch."""

    name = "fixed"

    def __init__(self, batch):
        self.batch = batch

    def batches(self, split, *, shuffle, seed):
        return iter([self.batch])


@torch.no_grad()
def test_confidence_is_minus_the_loss_of_the_hypothesis_alone(folder):
    model, tokenizer = build(folder)
    batch, task = batch_of(tokenizer), RecognitionTask(tokenizer)
    texts = ["no", "on", "it please"]
    items = [ItemErrors(name, "s", 0, 0, 0, 1, "", text) for name, text in zip(batch.ids, texts, strict=True)]
    found = task.confidence(model, Fixed(batch), "test", Errors(items))
    for one, text, value in zip(batch.items(), texts, found, strict=True):
        tokens = torch.tensor([tokenizer.encode(text)])
        alone = replace(one, tokens=tokens, token_lengths=torch.tensor([tokens.shape[1]]))
        wanted = -float(task.curvature_loss(model, alone)) / (tokens.shape[1] + 1)
        assert value == pytest.approx(wanted, rel=1e-3)
    endless = "".join(random.Random(0).choices("abcdefghij", k=900))
    long = [replace(items[0], hypothesis=endless), replace(items[1], hypothesis=""), items[2]]
    unsure = task.confidence(model, Fixed(batch), "test", Errors(long))
    assert unsure[:2] == [-math.inf, -math.inf] and unsure[2] == pytest.approx(found[2], rel=1e-3)
