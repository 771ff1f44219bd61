"""Speech recognition as a task: joint CTC/attention loss, decoding, counting.

Shapes: B utterances, T frames, S encoder frames, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from speechbrain.augment.freq_domain import SpectrogramDrop, Warping
from torch import Tensor, nn
from torch.nn import functional

from asrcl.contract.outputs import Outputs, distillation
from asrcl.contract.protocols import Domain
from asrcl.scoring import Errors, count_errors
from asrcl.speech.decoding import DecodeConfig, decode
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.model import BLANK, BOS, EOS, ConformerASR
from asrcl.speech.tokenizer import Tokenizer

REVISION = 2
"""Part of the cache keys of training and curvature; raise when the same settings would give other gradients."""


@dataclass(frozen=True)
class SpecAugmentConfig:
    """SpecAugment (Park et al., 2019), applied in training only; a count of 0 turns a part off.

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
    """Joint CTC/attention recognition behind the `asrcl.contract.protocols.Task` protocol.

    The loss of an utterance is `ctc_weight * CTC + (1 - ctc_weight) * cross entropy`, each summed over its tokens and not divided
    by its length, as in the ESPnet models of the IHR paper; the loss of a batch is the mean over its utterances.

    Attributes:
        tokenizer: text to tokens and back.
        ctc_weight: weight of the CTC part; a CTC-only model has nothing else.
        label_smoothing: of the cross entropy, in training only.
        augment: SpecAugment settings or None.
        decoding: how `evaluate` decodes.
    """

    tokenizer: Tokenizer
    ctc_weight: float = 0.3
    label_smoothing: float = 0.1
    augment: SpecAugmentConfig | None = None
    decoding: DecodeConfig = field(default_factory=DecodeConfig)

    def __post_init__(self) -> None:
        self._augmentation = spec_augment(self.augment) if self.augment else None

    def loss(self, model: nn.Module, batch: SpeechBatch) -> Tensor:
        """Training loss; SpecAugment and label smoothing apply while the model is in training mode."""
        if not model.training:
            return self.curvature_loss(model, batch)
        features = self._augmentation(batch.features.clone()) if self._augmentation else batch.features
        return self._joint_loss(model, batch, features, self.label_smoothing)

    def curvature_loss(self, model: nn.Module, batch: SpeechBatch) -> Tensor:
        """The same loss without augmentation and label smoothing."""
        return self._joint_loss(model, batch, batch.features, 0.0)

    def _joint_loss(self, model: nn.Module, batch: SpeechBatch, features: Tensor, smoothing: float) -> Tensor:
        ctc_logits, frames, logits = model(features, batch.lengths, _shift_right(batch.tokens))
        ctc = functional.ctc_loss(
            _full(ctc_logits).log_softmax(-1).transpose(0, 1),
            batch.tokens,
            frames,
            batch.token_lengths,
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )
        if logits is None:
            return ctc / len(batch)
        entropy = functional.cross_entropy(
            _full(logits).flatten(0, 1),
            _with_end(batch.tokens, batch.token_lengths).flatten(),
            ignore_index=BLANK,
            label_smoothing=smoothing,
            reduction="sum",
        )
        return (self.ctc_weight * ctc + (1 - self.ctc_weight) * entropy) / len(batch)

    def outputs(self, model: nn.Module, batch: SpeechBatch) -> Outputs:
        """Logits of the CTC head `[B, S, V]` and, after the batch's own tokens, of the attention head `[B, L + 1, V]`."""
        ctc_logits, frames, logits = model(batch.features, batch.lengths, _shift_right(batch.tokens))
        if logits is None:
            return Outputs((ctc_logits,), (_mask(frames),))
        return Outputs((ctc_logits, logits), (_mask(frames), _mask(batch.token_lengths + 1)))

    def distillation(self, student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
        """Knowledge distillation of both heads, weighted as their losses are."""
        weights = (self.ctc_weight, 1 - self.ctc_weight) if len(student.logits) > 1 else (1.0,)
        return distillation(student, teacher, temperature, weights)

    def padding(self, model: nn.Module, batch: SpeechBatch) -> Sequence[Tensor]:
        """Masks of the frontend's and the encoder's frames `[B, S]` and of the decoder's positions `[B, L + 1]`."""
        assert isinstance(model, ConformerASR)
        return [_mask(lengths) for lengths in (*model.frontend.layer_lengths(batch.lengths), batch.token_lengths + 1)]

    @torch.no_grad()
    def evaluate(self, model: nn.Module, domain: Domain, split: str) -> Errors:
        """Decode a split and count word and character errors per utterance."""
        assert isinstance(model, ConformerASR)
        device = next(model.parameters()).device
        model.eval()
        references: dict[str, str] = {}
        hypotheses: dict[str, str] = {}
        speakers: dict[str, str] = {}
        for batch in domain.batches(split, shuffle=False, seed=0):
            assert isinstance(batch, SpeechBatch)
            tokens = decode(model, batch.to(device), self.decoding)
            hypotheses.update(zip(batch.ids, (self.tokenizer.decode(hypothesis) for hypothesis in tokens), strict=True))
            references.update(zip(batch.ids, batch.references, strict=True))
            speakers.update(zip(batch.ids, batch.speakers, strict=True))
        return count_errors(references, hypotheses, speakers)

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
        return {"loss": loss, "evaluation": {"tokenizer": self.tokenizer.fingerprint, **asdict(self.decoding)}}


def _full(logits: Tensor) -> Tensor:
    """Half-precision logits in single precision; double precision stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _mask(lengths: Tensor) -> Tensor:
    return torch.arange(int(lengths.max()), device=lengths.device)[None] < lengths[:, None]


def _shift_right(tokens: Tensor) -> Tensor:
    """Decoder input `[B, L + 1]`: the start token, then the sentence."""
    return functional.pad(tokens, (1, 0), value=BOS)


def _with_end(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Decoder target `[B, L + 1]`: the sentence, then the end token."""
    return functional.pad(tokens, (0, 1), value=BLANK).scatter(1, lengths[:, None], EOS)
