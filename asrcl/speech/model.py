"""A SpeechBrain Conformer encoder and Transformer decoder with joint CTC and attention heads.

Shapes: B utterances, T input frames, F features per frame, S encoder frames, L tokens, V vocabulary, D model width.

Utterances of a batch do not see each other's padding: the depthwise convolutions get zeros where a frame is padded, as they
would at the end of the utterance alone, and attention masks padded keys. So the loss of a batch is the sum of the losses of its
utterances one by one, which the curvature estimates rely on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from speechbrain.lobes.models.transformer.Conformer import ConvolutionModule
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.nnet.linear import Linear
from torch import Tensor, nn

from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.speech.decoding import DecodeConfig, decode, padded_beyond
from asrcl.speech.recogniser import Objective, joint_loss, real, register_model, shift_right
from asrcl.speech.tokenizer import Tokenizer

if TYPE_CHECKING:
    from asrcl.speech.domain import SpeechBatch


class FrameStacking(nn.Module):
    """Concatenate `factor` neighbouring frames: `[B, T, F]` to `[B, ceil(T / factor), F * factor]`."""

    def __init__(self, features: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.output_size = features * factor

    def forward(self, features: Tensor) -> Tensor:
        """Frames for the encoder."""
        padding = -features.shape[1] % self.factor
        features = nn.functional.pad(features, (0, 0, 0, padding))
        return features.reshape(features.shape[0], -1, self.output_size)

    def lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames of utterances of `lengths` input frames."""
        return (lengths + self.factor - 1) // self.factor

    def layer_lengths(self, lengths: Tensor) -> list[Tensor]:
        """Positions of every layer's output, the encoder frames last."""
        return [self.lengths(lengths)]


class ConvolutionalSubsampling(nn.Module):
    """Two 3x3 convolutions of stride 2 without padding, as in the paper's models: `[B, T, F]` to `[B, about T/4, D * F']`."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2), nn.ReLU(), nn.Conv2d(width, width, 3, stride=2), nn.ReLU()
        )
        self.output_size = width * self._after(self._after(features))

    shortest = 7
    """Frames that two kernels of 3 at stride 2 need."""

    @staticmethod
    def _after(size: Any) -> Any:
        return (size - 1) // 2

    def forward(self, features: Tensor) -> Tensor:
        """Frames for the encoder."""
        short = max(0, self.shortest - features.shape[1])
        maps = self.convolutions(nn.functional.pad(features, (0, 0, 0, short))[:, None])
        return maps.transpose(1, 2).flatten(2)

    def lengths(self, lengths: Tensor) -> Tensor:
        """Encoder frames of utterances of `lengths` input frames, at least 1."""
        return self.layer_lengths(lengths)[-1]

    def layer_lengths(self, lengths: Tensor) -> list[Tensor]:
        """Positions of every layer's output, the encoder frames last."""
        first = self._after(lengths.clamp(min=self.shortest))
        return [first, self._after(first)]


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise InputError(f"model: {name}={size}: must be a whole number of at least 1; change conf/model")


@register_model("conformer")
class ConformerASR(nn.Module):
    """Hybrid CTC/attention recogniser; `decoder_layers=0` leaves a CTC-only model.

    Args:
        features: F, features per frame.
        vocabulary: V, with the tokens of `BLANK`, `BOS`, `EOS`.
        width: D, model width.
        heads: attention heads.
        encoder_layers: Conformer blocks.
        decoder_layers: Transformer blocks; 0 for CTC only.
        feed_forward: inner width of the feed-forward layers.
        kernel: width of the depthwise convolutions, odd.
        dropout: dropout rate.
        subsampling: "stack" (neighbouring frames concatenated) or "conv2d" (two strided convolutions).
        stack: how many frames "stack" concatenates.

    Raises:
        InputError: a size that cannot be built.
    """

    def __init__(
        self,
        features: int,
        vocabulary: int,
        width: int = 128,
        heads: int = 4,
        encoder_layers: int = 4,
        decoder_layers: int = 1,
        feed_forward: int = 512,
        kernel: int = 15,
        dropout: float = 0.1,
        subsampling: Literal["stack", "conv2d"] = "stack",
        stack: int = 4,
    ) -> None:
        super().__init__()
        _check_sizes(
            width=width, heads=heads, encoder_layers=encoder_layers, feed_forward=feed_forward, kernel=kernel, stack=stack
        )
        if width % heads or kernel % 2 == 0 or decoder_layers < 0 or not 0 <= dropout < 1:
            raise InputError(
                f"model: width ({width}) must be a multiple of heads ({heads}), kernel ({kernel}) odd, decoder_layers "
                f"({decoder_layers}) 0 or more, dropout ({dropout}) from 0 to below 1; change conf/model"
            )
        if subsampling not in ("stack", "conv2d") or (subsampling == "conv2d" and features < 7):
            raise InputError(
                f"model: subsampling={subsampling} on {features} features; use stack, or conv2d with 7 features or more"
            )
        self.frontend: FrameStacking | ConvolutionalSubsampling
        if subsampling == "stack":
            self.frontend = FrameStacking(features, stack)
        else:
            self.frontend = ConvolutionalSubsampling(features, width)
        self.transformer = TransformerASR(
            tgt_vocab=vocabulary,
            input_size=self.frontend.output_size,
            d_model=width,
            nhead=heads,
            num_encoder_layers=encoder_layers,
            num_decoder_layers=decoder_layers,
            d_ffn=feed_forward,
            dropout=dropout,
            activation=nn.GELU,
            encoder_module="conformer",
            attention_type="RelPosMHAXL",
            normalize_before=True,
            kernel_size=kernel,
            causal=False,
        )
        self.ctc_head = Linear(vocabulary, input_size=width)
        self.attention_head = Linear(vocabulary, input_size=width) if decoder_layers else None
        self._padded: Tensor | None = None  # [B, S], True at padded frames of the batch in flight
        for module in self.modules():
            if isinstance(module, ConvolutionModule):
                module.conv.register_forward_pre_hook(self._silence_padding)

    def _silence_padding(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self._padded is None:
            return inputs
        return (inputs[0].masked_fill(self._padded[:, None, :], 0.0), *inputs[1:])

    def encode(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states `[B, S, D]` and their lengths `[B]` for features `[B, T, F]` of `lengths` frames."""
        features = features[:, : int(lengths.max())]  # the attention masks end with the longest utterance
        beyond = padded_beyond(lengths, features.shape[1])
        frames = self.frontend(features.masked_fill(beyond[..., None], 0.0))
        frame_lengths = self.frontend.lengths(lengths)
        self._padded = padded_beyond(frame_lengths, frames.shape[1])
        try:
            states = self.transformer.encode(frames, wav_len=frame_lengths / frames.shape[1])
        finally:
            self._padded = None
        return states, frame_lengths

    def decode(self, states: Tensor, lengths: Tensor, prefix: Tensor) -> Tensor:
        """Attention logits `[B, L, V]` of the token after each position of `prefix` `[B, L]`.

        Padding of the prefix is on the right, where causal attention keeps it from being seen.
        """
        assert self.attention_head is not None, "decode() on a CTC-only model"
        # TransformerASR.decode does the same under no_grad: it is meant for search and would leave the decoder untrained.
        embedded = self.transformer.custom_tgt_module(prefix)
        hidden, _, _ = self.transformer.decoder(
            embedded + self.transformer.positional_encoding_decoder(embedded),
            states,
            tgt_mask=torch.ones(2 * prefix.shape[1:], dtype=torch.bool, device=prefix.device).triu(1),
            memory_key_padding_mask=padded_beyond(lengths, states.shape[1]),
        )
        return self.attention_head(hidden)

    def forward(self, batch: SpeechBatch) -> Outputs:
        """Logits of the CTC head `[B, S, V]` and, after the batch's own tokens, of the attention head `[B, L + 1, V]`."""
        ctc_logits, frames, logits = self.logits(batch.features, batch.lengths, shift_right(batch.tokens))
        masks = (real(frames, ctc_logits.shape[1]), real(batch.token_lengths + 1, batch.tokens.shape[1] + 1))
        return Outputs((ctc_logits,), masks[:1]) if logits is None else Outputs((ctc_logits, logits), masks)

    def loss(self, outputs: Outputs, batch: SpeechBatch, objective: Objective) -> Tensor:
        """Joint CTC/attention loss."""
        return joint_loss(outputs, batch, objective)

    def transcribe(self, batch: SpeechBatch, options: DecodeConfig, tokenizer: Tokenizer) -> list[str]:
        """The best hypothesis of each utterance, by greedy CTC or joint beam search."""
        return [tokenizer.decode(tokens) for tokens in decode(self, batch, options)]

    def padding(self, batch: SpeechBatch) -> Sequence[Tensor]:
        """Masks of the frontend's and the encoder's frames `[B, S]` and of the decoder's positions `[B, L + 1]`."""
        return [real(lengths) for lengths in (*self.frontend.layer_lengths(batch.lengths), batch.token_lengths + 1)]

    @classmethod
    def describe(cls, **settings: Any) -> dict[str, Any]:
        """All settings."""
        return settings

    def logits(self, features: Tensor, lengths: Tensor, prefix: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """CTC logits `[B, S, V]`, their lengths `[B]`, and attention logits `[B, L, V]` (None without a prefix or a decoder)."""
        states, frame_lengths = self.encode(features, lengths)
        logits = None
        if self.attention_head is not None and prefix is not None:
            logits = self.decode(states, frame_lengths, prefix)
        return self.ctc_head(states), frame_lengths, logits
