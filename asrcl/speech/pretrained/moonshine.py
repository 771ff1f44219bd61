"""Moonshine (Jeffries et al. 2024, arXiv 2410.15608) of Hugging Face folders, as a recogniser that can be trained and merged.

Shapes: B utterances, N samples, S encoder frames (one for 384 samples), D width, P tokens of the prompt, L tokens of a text.

Its first layers normalise over all of an utterance's frames, so they run for one utterance after the other; the rest runs for
the batch, with the frames of padding masked. A padded batch is thereby its utterances one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import MoonshineForConditionalGeneration
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoderModelOutput

from asrcl.speech.features import FeatureConfig
from asrcl.speech.hub import folder_of, load_model, settings_hash
from asrcl.speech.pretrained.samples import after_convolutions, check_vocabulary, refuse_window
from asrcl.speech.pretrained.sequence import SequenceRecogniser
from asrcl.speech.pretrained.tokens import HubTokenizer
from asrcl.speech.recogniser import real

if TYPE_CHECKING:
    from asrcl.speech.domain import SpeechBatch
    from asrcl.speech.tokenizer import Tokenizer

LONGEST_SECONDS = 64


class Moonshine(SequenceRecogniser):
    """A Moonshine model with the weights of its folder.

    Args:
        features: F, which is 1: the model sees samples.
        vocabulary: number of tokens, at most V.
        pretrained: folder of the model, or its name on the hub.
        context: None; the model has no window.

    Raises:
        InputError: a folder that is not Moonshine's or cannot be used.
    """

    def __init__(self, features: int, vocabulary: int, pretrained: str, context: None = None) -> None:
        folder = folder_of(pretrained, "moonshine")
        model = load_model(MoonshineForConditionalGeneration, folder)
        check_vocabulary(folder, model.config, vocabulary)
        super().__init__(model, {"": [int(model.config.decoder_start_token_id)]})

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """Encoder states `[B, S, D]` of the batch's samples and the mask `[B, S]` of the real ones."""
        encoder = self.model.encoder
        heard = [self._front(batch.features[n, :length, 0]) for n, length in enumerate(batch.lengths.tolist())]
        hidden = pad_sequence(heard, batch_first=True)
        mask = real(torch.tensor([len(frames) for frames in heard], device=hidden.device))
        # From here on as MoonshineEncoder.forward does.
        attended = create_bidirectional_mask(config=encoder.config, inputs_embeds=hidden, attention_mask=mask)
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rotation = encoder.rotary_emb(hidden, position_ids=positions)
        for layer in encoder.layers:
            hidden = layer(hidden, attention_mask=attended, position_ids=positions, position_embeddings=rotation)
        return encoder.layer_norm(hidden), mask

    def _front(self, samples: Tensor) -> Tensor:
        """The convolutions over one utterance: `[N]` to `[S, D]`."""
        encoder = self.model.encoder
        hidden = encoder.groupnorm(torch.tanh(encoder.conv1(samples[None, None])))
        hidden = functional.gelu(encoder.conv3(functional.gelu(encoder.conv2(hidden))))
        return hidden[0].T

    def padding(self, batch: SpeechBatch) -> Sequence[Tensor]:
        """Mask of the encoder's frames `[B, S]`, and those of `written`."""
        return [real(torch.tensor(self.frames(batch), device=batch.features.device)), *self.written(batch)]

    def encoded(self, states: Tensor, mask: Tensor | None) -> MoonshineEncoderModelOutput:
        """The states with the mask, which this model looks for there."""
        return MoonshineEncoderModelOutput(last_hidden_state=states, attention_mask=mask)

    @property
    def longest(self) -> int:
        """Positions of the decoder."""
        return int(self._generator[0].config.max_position_embeddings)

    def frames(self, batch: SpeechBatch) -> list[int]:
        """Encoder frames of every utterance."""
        encoder = self.model.encoder
        layers = [(layer.kernel_size[0], layer.stride[0]) for layer in (encoder.conv1, encoder.conv2, encoder.conv3)]
        frames: list[int] = after_convolutions(batch.lengths, layers)[-1].tolist()
        return frames

    @classmethod
    def describe(cls, **settings: Any) -> dict[str, Any]:
        """A hash of the folder's settings."""
        return {"model": "moonshine", "folder": settings_hash(settings["pretrained"])}

    @classmethod
    def front_end(cls, pretrained: str, context: None = None, **settings: Any) -> FeatureConfig:
        """Samples as they are."""
        refuse_window(context)
        return FeatureConfig("waveform", normalise="none", window=LONGEST_SECONDS)

    @classmethod
    def tokenizer(cls, pretrained: str, **settings: Any) -> Tokenizer:
        """The tokeniser in the folder."""
        return HubTokenizer(folder_of(pretrained, "moonshine"))
