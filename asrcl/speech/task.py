"""Speech recognition as a task: what any recogniser is trained on and judged by (augmentation, loss, decoding, counting).

Shapes: B utterances, T frames, S encoder frames, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from speechbrain.augment.freq_domain import SpectrogramDrop, Warping
from torch import Tensor, nn

from asrcl.contract.outputs import Outputs, distillation
from asrcl.contract.protocols import Domain
from asrcl.scoring import Errors, Scoring, count_errors, count_normalised
from asrcl.speech.decoding import DecodeConfig
from asrcl.speech.domain import SpeechBatch, bucket
from asrcl.speech.recogniser import Objective, recogniser_of
from asrcl.speech.tokenizer import Tokenizer
from asrcl.text import compression_ratio, normaliser

SCORED_TOKENS = 2048
"""Padded tokens of the hypotheses that are scored at once; the logits of each are as many as the vocabulary has tokens."""

REVISION = 2
"""Part of the cache keys of training and curvature; raise when the same settings would give other gradients."""


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment (Park et al., 2019), applied in training only; a count of 0 switches a part off.

    Attributes:
        frequency_masks, frequency_width: number of masks and their greatest width in bins.
        time_masks, time_width: number of masks and their greatest width in frames.
        warp_window: greatest shift of time warping in frames, 0 for none.
    """

    frequency_masks: int = 2
    frequency_width: int = 30
    time_masks: int = 2
    time_width: int = 40
    warp_window: int = 5


def spec_augment(config: SpecAugmentConfig) -> Callable[[Tensor], Tensor]:
    """The augmentation `[B, T, F] -> [B, T, F]` that a configuration describes, from SpeechBrain's parts; it works in place."""
    steps: list[nn.Module] = []
    if config.warp_window:
        steps.append(Warping(warp_window=config.warp_window))
    for dim, count, width in (
        (2, config.frequency_masks, config.frequency_width),
        (1, config.time_masks, config.time_width),
    ):
        if count:
            steps.append(SpectrogramDrop(0, width, count, count, replace="zeros", dim=dim))
    return nn.Sequential(*steps)


@dataclass
class RecognitionTask:
    """Recognition as a task (`asrcl.contract.protocols.Task`), by any model that is a `asrcl.speech.recogniser.Recogniser`.

    The loss of an utterance is `ctc_weight * CTC + (1 - ctc_weight) * cross entropy`, each summed over its tokens and not divided
    by its length, as in the ESPnet models of the IHR paper; the loss of a batch is the mean over its utterances.

    Attributes:
        tokenizer: text to tokens and back.
        ctc_weight: weight of the CTC part; a CTC-only model has nothing else.
        label_smoothing: of the cross entropy, in training only.
        augment: SpecAugment settings or None.
        decoding: how `evaluate` decodes.
        scoring: how references and hypotheses are normalised before they are counted; None counts them as they come.
    """

    tokenizer: Tokenizer
    ctc_weight: float = 0.3
    label_smoothing: float = 0.1
    augment: SpecAugmentConfig | None = None
    decoding: DecodeConfig = field(default_factory=DecodeConfig)
    scoring: Scoring | None = None

    def __post_init__(self) -> None:
        self._augmentation = spec_augment(self.augment) if self.augment else None
        # An unknown normaliser is refused before anything is decoded.
        self._rules = normaliser(self.scoring.normaliser).source if self.scoring else ""

    def loss(self, model: nn.Module, batch: SpeechBatch) -> Tensor:
        """Training loss; SpecAugment and label smoothing apply while the model is in training mode."""
        return self.loss_and_outputs(model, batch)[0]

    def loss_and_outputs(self, model: nn.Module, batch: SpeechBatch) -> tuple[Tensor, Outputs, SpeechBatch]:
        """The same with the outputs it is of and the augmented batch that they are of."""
        if model.training and self._augmentation:
            batch = replace(batch, features=self._augmentation(batch.features.clone()))
        objective = Objective(self.ctc_weight, self.label_smoothing) if model.training else Objective(self.ctc_weight)
        outputs = model(batch)
        return recogniser_of(model).loss(outputs, batch, objective), outputs, batch

    def curvature_loss(self, model: nn.Module, batch: SpeechBatch) -> Tensor:
        """The same loss without augmentation and label smoothing."""
        return recogniser_of(model).loss(model(batch), batch, Objective(self.ctc_weight))

    def outputs(self, model: nn.Module, batch: SpeechBatch) -> Outputs:
        """Logits of the model's heads, with masks of the real frames and tokens."""
        return model(batch)

    def distillation(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """Knowledge distillation of all heads, weighted as their losses are."""
        weights = (self.ctc_weight, 1 - self.ctc_weight) if len(student.logits) > 1 else (1.0,)
        return distillation(student, teacher, temperature, weights)

    def padding(self, model: nn.Module, batch: SpeechBatch) -> Sequence[Tensor]:
        """Masks `[B, positions]`, True at real positions, one for each padded axis that the layers of the model see."""
        return recogniser_of(model).padding(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, domain: Domain, split: str) -> Errors:
        """Decode a split and count word and character errors per utterance, on normalised texts where `scoring` says so."""
        recogniser = recogniser_of(model)
        device = next(model.parameters()).device
        model.eval()
        references: dict[str, str] = {}
        hypotheses: dict[str, str] = {}
        speakers: dict[str, str] = {}
        for batch in domain.batches(split, shuffle=False, seed=0):
            assert isinstance(batch, SpeechBatch)
            found = recogniser.transcribe(batch.to(device), self.decoding, self.tokenizer)
            hypotheses.update(zip(batch.ids, found, strict=True))
            references.update(zip(batch.ids, batch.references, strict=True))
            speakers.update(zip(batch.ids, batch.speakers, strict=True))
        if self.scoring is None:
            return count_errors(references, hypotheses, speakers)
        return count_normalised(references, hypotheses, speakers, self.scoring)

    @torch.no_grad()
    def confidence(self, model: nn.Module, domain: Domain, split: str, errors: Errors) -> list[float]:
        """Minus the loss (CTC and attention, as trained) with what was recognised as the label, per token and end.

        What is scored is the text as the tokeniser writes it, be the tokens that the search found others. An utterance has minus
        infinity of which nothing was recognised, a loop, more than the decoder has room for, or more than CTC can align. (A
        decoder is sure of what it says again and again; the test for loops is Whisper's, `scoring.loop_ratio`.)
        """
        recogniser, device = recogniser_of(model), next(model.parameters()).device
        objective = Objective(self.ctc_weight, zero_infinity=not self.ctc_weight)
        most = (self.scoring or Scoring).loop_ratio
        texts_of = {item.id: item.written[1] for item in errors.items}
        said = {n: self.tokenizer.encode(text) if compression_ratio(text) <= most else [] for n, text in texts_of.items()}
        found = dict.fromkeys(said, -math.inf)
        model.eval()
        for batch in domain.batches(split, shuffle=False, seed=0):
            assert isinstance(batch, SpeechBatch)
            room = recogniser.room(batch) if hasattr(recogniser, "room") else math.inf
            places = [place for place, name in enumerate(batch.ids) if 0 < len(said[name]) <= room]
            for group in bucket([len(said[batch.ids[place]]) for place in places], SCORED_TOKENS, SCORED_TOKENS):
                texts = [torch.tensor(said[batch.ids[places[member]]]) for member in group]
                lengths, tokens = torch.tensor([*map(len, texts)]), nn.utils.rnn.pad_sequence(texts, batch_first=True)
                rows = replace(_rows(batch, [places[member] for member in group]), tokens=tokens, token_lengths=lengths)
                rows = rows.to(device)
                outputs = model(rows)
                for place, name in enumerate(rows.ids):
                    loss = float(recogniser.loss(_one(outputs, place), _rows(rows, [place]), objective))
                    found[name] = -loss / (len(said[name]) + 1) if math.isfinite(loss) else -math.inf
        return [found[item.id] for item in errors.items]

    def describe(self) -> dict[str, Any]:
        """Everything that changes a gradient (`loss`) or a score (`evaluation`)."""
        loss = {
            "task": "recognition",
            "revision": REVISION,
            "tokenizer": self.tokenizer.fingerprint,
            "ctc_weight": self.ctc_weight,
            "label_smoothing": self.label_smoothing,
            "augment": asdict(self.augment) if self.augment else None,
        }
        evaluation = {"tokenizer": self.tokenizer.fingerprint, **asdict(self.decoding)}
        if self.scoring is not None:  # with the version of the rules, which decide the counts as much as their name does
            evaluation["scoring"] = {**asdict(self.scoring), "rules": self._rules}
        return {"loss": loss, "evaluation": evaluation}


def _one(outputs: Outputs, place: int) -> Outputs:
    """The outputs of one utterance of a batch, as padded as there."""
    masks = tuple(None if mask is None else mask[place : place + 1] for mask in outputs.masks)
    return Outputs(tuple(logits[place : place + 1] for logits in outputs.logits), masks)


def _rows(batch: SpeechBatch, places: list[int]) -> SpeechBatch:
    """Some utterances of a batch, as padded as there."""
    texts: dict[str, Any] = {n: tuple(getattr(batch, n)[place] for place in places) for n in ("ids", "speakers", "references")}
    tensors = {name: getattr(batch, name)[places] for name in ("features", "lengths", "tokens", "token_lengths")}
    return SpeechBatch(**texts, **tensors, domain=batch.domain, mixable=batch.mixable)
