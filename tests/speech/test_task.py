"""The recognition task: its loss against a calculation by hand, what happens in training only, decoding, counting."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from asrcl.contract.protocols import Task
from asrcl.exceptions import InputError
from asrcl.scoring import Errors, ItemErrors, Scoring
from asrcl.speech.decoding import DecodeConfig, decode
from asrcl.speech.task import RecognitionTask, SpecAugmentConfig, spec_augment
from asrcl.speech.tokenizer import BLANK, BOS, EOS


def token_losses(model, item):
    """CTC and cross entropy of a batch of one, summed over its tokens."""
    sentence = item.tokens[0]
    prefix = torch.cat([torch.tensor([BOS]), sentence])[None]
    target = torch.cat([sentence, torch.tensor([EOS])])
    ctc_logits, frames, logits = model.logits(item.features, item.lengths, prefix)
    ctc = functional.ctc_loss(
        ctc_logits[0].log_softmax(-1), sentence, frames, item.token_lengths, blank=BLANK, reduction="sum"
    )
    return ctc, -logits[0].log_softmax(-1)[range(len(target)), target].sum(), logits[0]


def test_it_is_a_task(tokenizer):
    assert isinstance(RecognitionTask(tokenizer), Task)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_is_ctc_plus_cross_entropy(weight, tokenizer, make_model, make_batch):
    model, batch = make_model(), make_batch([61])
    ctc, entropy, _ = token_losses(model, batch)
    loss = RecognitionTask(tokenizer, ctc_weight=weight).curvature_loss(model, batch)
    torch.testing.assert_close(loss, weight * ctc + (1 - weight) * entropy, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_loss_is_the_mean_over_utterances(tokenizer, make_model, make_batch):
    task, model, batch = RecognitionTask(tokenizer), make_model(), make_batch([61, 40, 27])
    alone = torch.stack([task.curvature_loss(model, item) for item in batch.items()])
    torch.testing.assert_close(task.curvature_loss(model, batch), alone.mean(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_ctc_only_model_has_only_the_ctc_part(tokenizer, make_model, make_batch):
    model, batch = make_model(decoder_layers=0), make_batch([61])
    logits, frames, _ = model.logits(batch.features, batch.lengths)
    ctc = functional.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), batch.tokens, frames, batch.token_lengths, reduction="sum"
    )
    torch.testing.assert_close(RecognitionTask(tokenizer, ctc_weight=0.3).curvature_loss(model, batch), ctc)


@torch.no_grad()
def test_label_smoothing_applies_in_training_only(tokenizer, make_model, make_batch):
    model, batch = make_model(dropout=0.0), make_batch([61])
    task = RecognitionTask(tokenizer, ctc_weight=0.0, label_smoothing=0.2)
    _, entropy, logits = token_losses(model, batch)
    uniform = -logits.log_softmax(-1).mean(-1).sum()
    torch.testing.assert_close(task.loss(model, batch), entropy)
    torch.testing.assert_close(task.loss(model.train(), batch), 0.8 * entropy + 0.2 * uniform)
    torch.testing.assert_close(task.curvature_loss(model, batch), entropy)


@torch.no_grad()
def test_augmentation_applies_in_training_only(tokenizer, make_model, make_batch):
    model, batch = make_model(dropout=0.0), make_batch([61])
    before = batch.features.clone()
    plain = RecognitionTask(tokenizer, label_smoothing=0.0)
    augmented = RecognitionTask(tokenizer, label_smoothing=0.0, augment=SpecAugmentConfig(1, 6, 1, 30, 5))
    assert augmented.loss(model, batch) == plain.loss(model, batch)
    model.train()
    losses = {augmented.loss(model, batch).item() for _ in range(4)}
    assert len(losses) > 1 and plain.loss(model, batch).item() not in losses
    assert augmented.curvature_loss(model, batch) == plain.curvature_loss(model, batch)
    assert torch.equal(batch.features, before)


def test_masks_are_zeros_of_the_wanted_number_and_width():
    torch.manual_seed(0)
    config = SpecAugmentConfig(frequency_masks=1, frequency_width=3, time_masks=1, time_width=5, warp_window=0)
    changed = spec_augment(config)(torch.ones(20, 30, 12)) == 0
    rows, columns = changed.all(dim=2).sum(1), changed.all(dim=1).sum(1)
    assert rows.max() < 5 + 1 and columns.max() < 3 + 1 and rows.any() and columns.any()


def test_all_parts_of_the_augmentation_can_be_off():
    features = torch.randn(2, 20, 12)
    assert torch.equal(spec_augment(SpecAugmentConfig(0, 3, 0, 5, 0))(features), features)


def test_padding_tells_real_frames_and_tokens(tokenizer, make_model, make_batch):
    model, batch = make_model(), make_batch([61, 27])
    frames, tokens = RecognitionTask(tokenizer).padding(model, batch)
    assert frames.sum(1).tolist() == [16, 7] and frames.shape == (2, 16)
    assert tokens.sum(1).tolist() == [6, 3] and tokens.shape == (2, 6)


class Fixed:
    """A domain of given batches."""

    name = "fixed"

    def __init__(self, *batches):
        self._batches = batches

    def batches(self, split, *, shuffle, seed):
        return iter(self._batches)


def spelled(tokenizer, text, frames):
    """CTC logits `[frames, V]` whose best path spells the text, blanks between all letters."""
    path = torch.zeros(frames, dtype=torch.long)
    letters = tokenizer.encode(text)
    path[1 : 2 * len(letters) : 2] = torch.tensor(letters)
    return 9.0 * functional.one_hot(path, len(tokenizer)).float()


class Scripted(torch.nn.Module):
    """A CTC head that ignores the states."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, states):
        return self.logits


@pytest.fixture
def scripted(tokenizer, make_model, make_batch):
    """A batch of two utterances, and a model that recognises "turn on the lit" and "play some jazz"."""
    model, batch = make_model(vocabulary=len(tokenizer)), make_batch([240, 200], vocabulary=len(tokenizer))
    logits = [spelled(tokenizer, text, 60) for text in ("turn on the lit", "play some jazz")]
    logits[1][50:] = 0.0
    logits[1][50:, tokenizer.encode("x")[-1]] = 9.0  # in the padding
    model.ctc_head = Scripted(torch.stack(logits))
    return model, batch


def test_greedy_decoding_drops_blanks_repeats_and_padding(scripted, tokenizer):
    model, batch = scripted
    tokens = decode(model, batch, DecodeConfig("ctc_greedy"))
    assert [tokenizer.decode(hypothesis) for hypothesis in tokens] == ["turn on the lit", "play some jazz"]


def test_evaluation_counts_per_utterance(scripted, tokenizer):
    model, batch = scripted
    model.train()
    errors = RecognitionTask(tokenizer).evaluate(model, Fixed(batch), "test")
    assert [(item.id, item.group, item.errors, item.length) for item in errors.items] == [
        ("u0", "s0", 1, 4),
        ("u1", "s1", 0, 3),
    ]
    assert [item.character_errors for item in errors.items] == [2, 0]
    assert not model.training


def test_evaluation_on_normalised_texts_keeps_them_as_written(scripted, tokenizer):
    model, batch = scripted
    batch = replace(batch, references=("Turn on the lit!", "PLAY some jazz."))
    task = RecognitionTask(tokenizer, scoring=Scoring("basic"))
    errors = task.evaluate(model, Fixed(batch), "test")
    assert errors.total == 0 and errors.scoring == task.scoring
    assert [item.raw_reference for item in errors.items] == ["Turn on the lit!", "PLAY some jazz."]
    assert [item.raw_hypothesis for item in errors.items] == ["", ""]


def test_the_normaliser_and_its_rules_are_in_the_key_of_evaluations(tokenizer):
    plain, basic, spaced = (
        RecognitionTask(tokenizer, scoring=scoring).describe() for scoring in (None, Scoring("basic"), Scoring("spaced"))
    )
    assert "scoring" not in plain["evaluation"] and plain["loss"] == basic["loss"]
    assert basic["evaluation"]["scoring"]["rules"].startswith("asrcl, Unicode")
    assert basic["evaluation"] != spaced["evaluation"]
    with pytest.raises(InputError, match="unknown normaliser 'shout'"):
        RecognitionTask(tokenizer, scoring=Scoring("shout"))


@pytest.fixture(scope="module")
def trained(make_model, make_batch):
    """A tiny model that knows three utterances by heart."""
    model, batch = make_model(dropout=0.0).train(), make_batch([61, 40, 27])
    task = RecognitionTask(SimpleNamespace(fingerprint="none"), label_smoothing=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    return model.eval(), batch


@pytest.mark.parametrize("beam, weight", [(1, 0.0), (1, 0.4), (4, 0.4)])
def test_joint_search_finds_what_was_learned_in_a_batch_and_alone(beam, weight, trained):
    model, batch = trained
    config = DecodeConfig("joint_beam", beam=beam, ctc_weight=weight)
    truth = [row[:size].tolist() for row, size in zip(batch.tokens, batch.token_lengths, strict=True)]
    assert decode(model, batch, config) == truth
    assert [decode(model, item, config)[0] for item in batch.items()] == truth


def test_joint_search_needs_a_decoder(make_model, make_batch):
    with pytest.raises(InputError, match="CTC-only"):
        decode(make_model(decoder_layers=0), make_batch([30]), DecodeConfig("joint_beam"))


@pytest.mark.parametrize("settings", [{"beam": 0}, {"ctc_weight": 1.5}, {"max_ratio": 0.0}])
def test_impossible_decoding_is_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        DecodeConfig(**settings)


def test_description_separates_gradients_from_scores(tokenizer):
    base = RecognitionTask(tokenizer).describe()
    greedy = RecognitionTask(tokenizer, decoding=DecodeConfig(beam=3)).describe()
    heavier = RecognitionTask(tokenizer, ctc_weight=0.5, augment=SpecAugmentConfig()).describe()
    assert greedy["loss"] == base["loss"] and greedy["evaluation"] != base["evaluation"]
    assert heavier["loss"] != base["loss"] and heavier["evaluation"] == base["evaluation"]


def recognised(batch, *texts):
    """Errors with these hypotheses."""
    return Errors([ItemErrors(name, "s", 0, 0, 0, 1, "", text) for name, text in zip(batch.ids, texts, strict=True)])


def test_confidence_is_the_loss_of_what_was_recognised_per_token_whatever_it_is_batched_with(tokenizer, make_model, make_batch):
    model, batch = make_model(vocabulary=len(tokenizer)).eval(), make_batch([240, 200], vocabulary=len(tokenizer))
    task = RecognitionTask(tokenizer)
    errors = recognised(batch, "turn on the light", "jazz")
    found = task.confidence(model, Fixed(batch), "test", errors)
    for item, value in zip(errors.items, found, strict=True):
        tokens = torch.tensor([tokenizer.encode(item.hypothesis)])
        one = next(part for part in batch.items() if part.ids == (item.id,))
        one = replace(one, tokens=tokens, token_lengths=torch.tensor([tokens.shape[1]]))
        with torch.no_grad():
            wanted = -float(task.curvature_loss(model, one)) / (tokens.shape[1] + 1)
        assert value == pytest.approx(wanted, rel=1e-4)
    nothing = task.confidence(model, Fixed(batch), "test", recognised(batch, "", "jazz"))
    assert nothing[0] == -math.inf and nothing[1] == pytest.approx(found[1], rel=1e-4)


NO_LOOPS = Scoring("whisper-digits", loop_ratio=100.0)


def test_what_ctc_cannot_align_is_the_least_sure(tokenizer, make_model, make_batch):
    model, batch = make_model(vocabulary=len(tokenizer)).eval(), make_batch([240, 200], vocabulary=len(tokenizer))
    frames = int(model.padding(batch)[0].sum(1).max())
    said = recognised(batch, "a" * frames, "jazz")  # a blank must part equal letters
    sure = RecognitionTask(tokenizer, scoring=NO_LOOPS).confidence(model, Fixed(batch), "test", said)
    assert sure[0] == -math.inf and math.isfinite(sure[1])
    free = RecognitionTask(tokenizer, ctc_weight=0.0, scoring=NO_LOOPS).confidence(model, Fixed(batch), "test", said)
    assert all(map(math.isfinite, free))  # attention alone is asked


def test_a_loop_is_the_least_sure_however_sure_the_decoder_is_of_it(tokenizer, make_model, make_batch):
    model, batch = make_model(vocabulary=len(tokenizer)).eval(), make_batch([400, 200], vocabulary=len(tokenizer))
    said = recognised(batch, "on and on " * 12, "on and on")
    sure = RecognitionTask(tokenizer, ctc_weight=0.0).confidence(model, Fixed(batch), "test", said)
    assert sure[0] == -math.inf and math.isfinite(sure[1])
    lenient = RecognitionTask(tokenizer, ctc_weight=0.0, scoring=NO_LOOPS)
    assert all(map(math.isfinite, lenient.confidence(model, Fixed(batch), "test", said)))
