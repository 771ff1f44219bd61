"""Whisper (Radford et al. 2022, arXiv 2212.04356) of Hugging Face folders, as a recogniser that can be trained and merged.

Shapes: B utterances, F mel bins, M frames of the window, S = M / 2 encoder frames, D width, P tokens of the prompt, L tokens of a
text, V vocabulary.

The encoder sees a window of fixed length, filled up with silence, and attends to all of it: that padding is part of the data, the
same for an utterance alone and in a batch. Masked is what differs between the two, the tokens after the end of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LogitsProcessorList, WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from asrcl.exceptions import InputError
from asrcl.speech.features import FeatureConfig
from asrcl.speech.hub import GENERATION, configuration, folder_of, load_model, read_table, settings_hash
from asrcl.speech.pretrained.sequence import SequenceRecogniser
from asrcl.speech.pretrained.tokens import HubTokenizer

if TYPE_CHECKING:
    from asrcl.speech.domain import SpeechBatch

FRAMES_PER_SECOND = 100
ENGLISH_VOCABULARY = 51864
"""Tokens of the published models that know English alone; the multilingual ones have more."""


class Whisper(SequenceRecogniser):
    """A Whisper model with the weights of its folder.

    Args:
        features: F, which must be the model's mel bins.
        vocabulary: number of tokens, at most V.
        pretrained: folder of the model, or its name on the hub.
        context: the window in whole seconds, at most the model's own 30; None for that. A shorter one makes training and decoding
            of short utterances several times cheaper, but a model that was not trained for it loops and errs: adapt it first.
        language: language of the speech (`en`, `de`, ...), or of every domain and probe by name (`{calls: en, orders: de}`); of
            multilingual models alone, which need it.
        task: "transcribe", or "translate" into English, of multilingual models alone.
        timestamps: whether decoding predicts times besides words, which vanish from the text; training does without.
        new_tokens: words of a new domain that get a token each; their embeddings begin as the mean of those of their pieces, and
            all others stay what they are, to the bit.

    Raises:
        InputError: a folder that is not Whisper's or cannot be used, or settings that this model cannot have.
    """

    def __init__(
        self,
        features: int,
        vocabulary: int,
        pretrained: str,
        context: int | None = None,
        language: str | Mapping[str, str] | None = None,
        task: Literal["transcribe", "translate"] = "transcribe",
        timestamps: bool = False,
        new_tokens: Sequence[str] = (),
    ) -> None:
        folder = folder_of(pretrained, "whisper")
        whisper = load_model(WhisperForConditionalGeneration, folder)
        if new_tokens:
            _extend(whisper, HubTokenizer(folder, prefix=" "), self.tokenizer(pretrained, new_tokens))
        if features != whisper.config.num_mel_bins or vocabulary > whisper.config.vocab_size:
            raise InputError(
                f"{folder}: is for {whisper.config.num_mel_bins} mel bins and {whisper.config.vocab_size} tokens, but there are "
                f"{features} and {vocabulary}; the tokenizer or preprocessor_config.json there is another model's"
            )
        languages = language if isinstance(language, Mapping) else {"": language}
        super().__init__(
            whisper, {domain: _prompt(folder, spoken, task) for domain, spoken in languages.items()}, unprompted=int(timestamps)
        )
        self.window = (self.front_end(pretrained, context).window or 0) * FRAMES_PER_SECOND
        self.timestamps = timestamps
        self.model.encoder.embed_positions.requires_grad_(False)  # sines, which loading makes trainable

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, None]:
        """Encoder states `[B, S, D]` of the batch's features in the window, all of which the decoder attends to."""
        encoder = self.model.encoder
        frames = filled(batch.features, batch.lengths, self.window).transpose(1, 2)
        hidden = functional.gelu(encoder.conv2(functional.gelu(encoder.conv1(frames)))).transpose(1, 2)
        # WhisperEncoder.forward does the same, for the one length alone that its positions are made for.
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = functional.dropout(hidden, encoder.dropout, self.training)
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return encoder.layer_norm(hidden), None

    def padding(self, batch: SpeechBatch) -> Sequence[Tensor]:
        """Masks of the frames of window and encoder, `[B, M]` and `[B, S]`, all real, and those of `written`."""
        everywhere = torch.ones(len(batch), self.window, dtype=torch.bool, device=batch.features.device)
        return [everywhere, everywhere[:, ::2], *self.written(batch)]

    @property
    def longest(self) -> int:
        """Positions of the decoder."""
        return int(self._generator[0].config.max_target_positions)

    def frames(self, batch: SpeechBatch) -> list[int]:
        """Encoder frames of the window, for every utterance."""
        return [self.window // 2] * len(batch)

    def processors(self, begin: int) -> LogitsProcessorList:
        """The grammar of times, where they are predicted."""
        if not self.timestamps:
            return LogitsProcessorList()
        return LogitsProcessorList([WhisperTimeStampLogitsProcessor(self._generator[0].generation_config, begin_index=begin)])

    @classmethod
    def describe(cls, **settings: Any) -> dict[str, Any]:
        """The settings, and a hash of the folder's in place of its name."""
        own = {name: value for name, value in settings.items() if name != "pretrained"}
        return {**own, "model": "whisper", "folder": settings_hash(settings["pretrained"])}

    @classmethod
    def front_end(cls, pretrained: str, context: int | None = None, **settings: Any) -> FeatureConfig:
        """Whisper's log-mel features in the window."""
        config = configuration(folder_of(pretrained, "whisper"))
        longest = int(config.get("max_source_positions", 1500)) * 2 // FRAMES_PER_SECOND
        if context is not None and not 1 <= context <= longest:
            raise InputError(f"model.context={context}: whole seconds, from 1 to the model's own window of {longest}")
        return FeatureConfig("whisper", bins=int(config.get("num_mel_bins", 80)), normalise="none", window=context or longest)

    @classmethod
    def tokenizer(cls, pretrained: str, new_tokens: Sequence[str] = (), **settings: Any) -> HubTokenizer:
        """The tokeniser in the folder, with the new tokens."""
        return HubTokenizer(folder_of(pretrained, "whisper"), new_tokens, prefix=" ")


def _prompt(folder: Path, language: str | None, task: str) -> list[int]:
    """Tokens before the text: start, of a multilingual model language and task, and that there are no times."""
    multilingual = _multilingual(folder)
    if not multilingual and (language not in (None, "en") or task != "transcribe"):
        raise InputError(f"model: {folder} knows English alone; leave out language={language} and task={task}")
    if multilingual and language is None:
        raise InputError(f"model.language: {folder} knows many languages; say which the speech is in, e.g. +model.language=en")
    named = [f"<|{language}|>", f"<|{task}|>"] if multilingual else []
    tokenizer = HubTokenizer(folder)
    return [tokenizer.index(name) for name in ("<|startoftranscript|>", *named, "<|notimestamps|>")]


def _extend(whisper: WhisperForConditionalGeneration, before: HubTokenizer, after: HubTokenizer) -> None:
    """Rows of the embedding for tokens that were added to the vocabulary."""
    rows = whisper.model.decoder.embed_tokens.weight.detach().clone()
    whisper.resize_token_embeddings(max(len(after), len(rows)), mean_resizing=False)
    with torch.no_grad():
        weight = whisper.model.decoder.embed_tokens.weight
        weight[: len(rows)] = rows
        for index in range(len(before), len(after)):
            weight[index] = rows[before.encode(after.decode([index]))].mean(0)


def _multilingual(folder: Path) -> bool:
    """Whether the prompt has language and task; the vocabularies of English models name languages, too."""
    said = read_table(folder, GENERATION).get("is_multilingual")
    return bool(said) if said is not None else int(configuration(folder).get("vocab_size", 0)) > ENGLISH_VOCABULARY


def filled(features: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Features `[B, size, F]`, each utterance's last frame, which is of silence, repeated up to the end of the window."""
    position = torch.arange(size, device=features.device)[None].minimum(lengths[:, None] - 1)
    return features.gather(1, position[..., None].expand(-1, -1, features.shape[2]))
