"""What a speech recogniser offers, so that the Conformer, a model of your own or a pretrained one can go through a scenario.

A recogniser is a `torch.nn.Module` that maps a batch to the logits of its heads. The configuration chooses one (`model.kind`, by
default conformer); a plugin (`imports`) adds its own with `@register_model("name")`.

Shapes: B utterances, T frames, F features per frame, S output frames, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.experiment.registry import Registry
from asrcl.speech.features import FeatureConfig
from asrcl.speech.hub import model_type
from asrcl.speech.tokenizer import BLANK, BOS, EOS, Tokenizer

if TYPE_CHECKING:
    from asrcl.experiment.config import Config
    from asrcl.speech.decoding import DecodeConfig
    from asrcl.speech.domain import SpeechBatch

CONFORMER = "conformer"


@dataclass(frozen=True)
class Objective:
    """What a loss consists of.

    Attributes:
        ctc_weight: weight of the CTC part, the attention part having the rest; a model with one head has nothing else.
        label_smoothing: of the cross entropy.
        zero_infinity: whether CTC of an utterance with more tokens than frames counts as 0, and not as infinite.
    """

    ctc_weight: float = 0.3
    label_smoothing: float = 0.0
    zero_infinity: bool = True


@runtime_checkable
class Recogniser(Protocol):
    """A model that the recognition task can train, decode and describe; built as `cls(features, vocabulary, **settings)`.

    `features` is F, `vocabulary` is V with the special tokens of `asrcl.speech.tokenizer`, the settings are those of the group
    `model` without `kind`.
    """

    def __call__(self, batch: SpeechBatch) -> Outputs:
        """`forward`: the logits of the heads, CTC `[B, S, V]` before attention `[B, L + 1, V]`, and masks of real positions."""
        ...

    def loss(self, outputs: Outputs, batch: SpeechBatch, objective: Objective) -> Tensor:
        """Mean over the utterances of a batch of the loss of its outputs; `joint_loss` is that of CTC and attention heads."""
        ...

    def transcribe(self, batch: SpeechBatch, options: DecodeConfig, tokenizer: Tokenizer) -> list[str]:
        """The best hypothesis of each utterance.

        Raises:
            InputError: a search that this model has no head for.
        """
        ...

    def padding(self, batch: SpeechBatch) -> Sequence[Tensor]:
        """Masks `[B, positions]`, True at real positions, one for each padded axis that the layers see."""
        ...

    @classmethod
    def describe(cls, **settings: Any) -> dict[str, Any]:
        """What the settings change beyond names, shapes and values of the weights (dropout, heads), for cache keys."""
        ...


@runtime_checkable
class PretrainedRecogniser(Recogniser, Protocol):
    """A recogniser whose weights, features and tokeniser come from a folder or a hub, the setting `pretrained` naming which."""

    @classmethod
    def front_end(cls, **settings: Any) -> FeatureConfig:
        """The features that the model was trained with.

        Raises:
            InputError: settings or a folder that cannot be used.
        """
        ...

    @classmethod
    def tokenizer(cls, **settings: Any) -> Tokenizer:
        """The tokeniser that the model was trained with.

        Raises:
            InputError: settings or a folder that cannot be used.
        """
        ...


PRETRAINED = "pretrained"
_BUILT_IN = {
    CONFORMER: "asrcl.speech.model:ConformerASR",
    "whisper": "asrcl.speech.pretrained.whisper:Whisper",
    "moonshine": "asrcl.speech.pretrained.moonshine:Moonshine",
    "wav2vec2": "asrcl.speech.pretrained.ctc:HubCTC",
    "hubert": "asrcl.speech.pretrained.ctc:HubCTC",
}
MODELS: Registry[Recogniser] = Registry("model.kind", _BUILT_IN)
register_model = MODELS.register


def model_class(settings: Mapping[str, Any]) -> type[Recogniser]:
    """The class of the recogniser that the group `model` of a configuration describes.

    Raises:
        InputError: an unknown kind.
    """
    kind = settings.get("kind", CONFORMER)
    if kind == PRETRAINED:
        kind = model_type(str(settings.get("pretrained")))
    return MODELS.get(kind)


def pretrained_class(settings: Mapping[str, Any]) -> type[PretrainedRecogniser] | None:
    """The same where it comes with weights, features and a tokeniser of its own; None where these are the scenario's."""
    found = model_class(settings)
    return cast("type[PretrainedRecogniser]", found) if hasattr(found, "front_end") else None


def front_end(config: Config) -> FeatureConfig:
    """How audio becomes features: as the pretrained model needs it, else as the scenario says.

    Raises:
        InputError: settings of features or model that cannot be used.
    """
    of_scenario = config.settings(FeatureConfig, "scenario", "features")
    settings = config.tree["model"]
    if (pretrained := pretrained_class(settings)) is None:
        return of_scenario
    return replace(pretrained.front_end(**model_settings(settings)), speeds=of_scenario.speeds, channel=of_scenario.channel)


def model_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The group `model` without its `kind`: what the class is built with."""
    return {name: value for name, value in settings.items() if name != "kind"}


def recogniser_of(model: nn.Module) -> Recogniser:
    """The model as what it must be to recognise speech.

    Raises:
        InputError: a model without the methods of `Recogniser`.
    """
    if not isinstance(model, Recogniser):
        names = ("loss", "transcribe", "padding", "describe")
        lacking = ", ".join(name for name in names if not hasattr(model, name))
        raise InputError(f"model {type(model).__name__}: lacks {lacking}; see asrcl.speech.recogniser.Recogniser")
    return cast(Recogniser, model)


def joint_loss(outputs: Outputs, batch: SpeechBatch, objective: Objective) -> Tensor:
    """`ctc_weight * CTC + (1 - ctc_weight) * cross entropy`, summed over the tokens of an utterance, mean over the utterances.

    Args:
        outputs: of a CTC head and perhaps an attention head; without one the loss is CTC alone.
        batch: the utterances.
        objective: the weights.
    """
    ctc = ctc_loss(outputs, batch, zero_infinity=objective.zero_infinity)
    if len(outputs.logits) == 1:
        return ctc / len(batch)
    entropy = functional.cross_entropy(
        _full(outputs.logits[1]).flatten(0, 1),
        with_end(batch.tokens, batch.token_lengths).flatten(),
        ignore_index=BLANK,
        label_smoothing=objective.label_smoothing,
        reduction="sum",
    )
    return (objective.ctc_weight * ctc + (1 - objective.ctc_weight) * entropy) / len(batch)


def ctc_loss(outputs: Outputs, batch: SpeechBatch, blank: int = BLANK, zero_infinity: bool = True) -> Tensor:
    """CTC of the first head, summed over the utterances; of one with more tokens than frames 0, or infinite."""
    frames = outputs.masks[0]
    assert frames is not None, "a CTC head has padded frames"
    return functional.ctc_loss(
        _full(outputs.logits[0]).log_softmax(-1).transpose(0, 1),
        batch.tokens,
        frames.sum(1),
        batch.token_lengths,
        blank=blank,
        reduction="sum",
        zero_infinity=zero_infinity,
    )


def _full(logits: Tensor) -> Tensor:
    """Half-precision logits in single precision; double precision stays."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def real(lengths: Tensor, size: int | None = None) -> Tensor:
    """Mask `[B, size]`, True at positions before each length; the size is by default the largest length."""
    return torch.arange(int(lengths.max()) if size is None else size, device=lengths.device)[None] < lengths[:, None]


def shift_right(tokens: Tensor) -> Tensor:
    """Decoder input `[B, L + 1]`: the start token, then the sentence."""
    return functional.pad(tokens, (1, 0), value=BOS)


def with_end(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Decoder target `[B, L + 1]`: the sentence, then the end token."""
    return functional.pad(tokens, (0, 1), value=BLANK).scatter(1, lengths[:, None], EOS)
