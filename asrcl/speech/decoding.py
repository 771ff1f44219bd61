"""From logits to token sequences: greedy CTC, and SpeechBrain's joint CTC/attention beam search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.decoders.seq2seq import S2STransformerBeamSearcher
from torch import Tensor, nn
from torch.nn import functional

from asrcl.exceptions import InputError
from asrcl.speech.tokenizer import BLANK, BOS, EOS

if TYPE_CHECKING:
    from asrcl.speech.domain import SpeechBatch
    from asrcl.speech.model import ConformerASR


def padded_beyond(lengths: Tensor, size: int) -> Tensor:
    """`[B, size]`, True at positions that lie beyond each length."""
    return torch.arange(size, device=lengths.device)[None] >= lengths[:, None]


@dataclass(frozen=True)
class DecodeConfig:
    """How to decode.

    Attributes:
        kind: "ctc_greedy", or "joint_beam" for joint CTC/attention beam search; of models whose decoder is all they have
            (Whisper), "greedy" or "beam".
        beam: beam width of "joint_beam" and "beam".
        ctc_weight: weight of the CTC score in "joint_beam".
        max_ratio: longest hypothesis, as a share of the encoder frames.
        ctc_candidates: "joint_beam" asks CTC in every step about so many tokens, those attention likes best; None: about all.
        max_frames, max_items: padded frames and utterances per batch at most, outside of training; None: as in training.
            They change the time it takes, and what is decoded only where a hypothesis runs into `max_ratio` of the padded frames.
    """

    kind: Literal["ctc_greedy", "joint_beam", "greedy", "beam"] = "ctc_greedy"
    beam: int = 10
    ctc_weight: float = 0.3
    max_ratio: float = 1.0
    ctc_candidates: int | None = None
    max_frames: int | None = None
    max_items: int | None = None

    def __post_init__(self) -> None:
        if self.ctc_candidates is not None and self.ctc_candidates < self.beam:
            raise InputError(f"decode: ctc_candidates ({self.ctc_candidates}) must be at least the beam ({self.beam}), or null")
        if any(limit is not None and limit < 1 for limit in (self.max_frames, self.max_items)):
            raise InputError(
                f"decode: max_frames ({self.max_frames}) and max_items ({self.max_items}) must be at least 1, or null"
            )
        if self.beam < 1 or not 0 <= self.ctc_weight <= 1 or self.max_ratio <= 0:
            raise InputError(
                f"decode: beam ({self.beam}) must be at least 1, ctc_weight ({self.ctc_weight}) from 0 to 1, "
                f"max_ratio ({self.max_ratio}) positive"
            )


class _NextTokenSearcher(S2STransformerBeamSearcher):
    """SpeechBrain's beam search, but a step works out the next token alone; the scores are the same up to rounding.

    SpeechBrain's step runs the decoder over the whole prefix and projects the encoder states anew each time. Here the last layer
    (of small models the only one) sees the last position alone, and keys and values of the encoder states are made once.
    """

    model: Any
    _states: Tensor | None = None

    def forward_step(self, inp_tokens: Tensor, memory: Tensor | None, enc_states: Tensor, enc_lens: Tensor) -> Any:
        """Log probabilities `[B * beam, V]` of the next token, the prefixes `[B * beam, L]`, and no attention."""
        prefix = inp_tokens[:, None] if memory is None else torch.cat([memory, inp_tokens[:, None]], dim=1)
        if self._states is not enc_states:
            self._states, self._padded = enc_states, padded_beyond(enc_lens, enc_states.shape[1])
            self._keys, self._values = _keys_and_values(self.model.decoder.layers[-1].multihead_attn.att, enc_states)
        embedded = self.model.custom_tgt_module(prefix)
        hidden = embedded + self.model.positional_encoding_decoder(embedded)
        later = torch.ones(2 * prefix.shape[1:], dtype=torch.bool, device=prefix.device).triu(1)
        *inner, last = self.model.decoder.layers
        for layer in inner:
            hidden, _, _ = layer(hidden, enc_states, tgt_mask=later, memory_key_padding_mask=self._padded)
        hidden = self._last_layer(last, hidden)
        return self.softmax(self.fc(self.model.decoder.norm(hidden))[:, -1] / self.temperature), prefix, None

    def _last_layer(self, layer: Any, hidden: Tensor) -> Tensor:
        """A decoder layer with its norms first, `[B, L, D]` to its last position `[B, 1, D]`, without dropout."""
        normed = layer.norm1(hidden)
        attended, _ = layer.self_attn(normed[:, -1:], normed, normed)
        hidden = hidden[:, -1:] + attended
        attention = layer.multihead_attn.att
        size = attention.embed_dim
        query = functional.linear(layer.norm2(hidden), attention.in_proj_weight[:size], attention.in_proj_bias[:size])
        mask = ~self._padded[:, None, None, :]
        found = functional.scaled_dot_product_attention(
            _split_heads(query, attention.num_heads), self._keys, self._values, attn_mask=mask
        )
        hidden = hidden + attention.out_proj(found.transpose(1, 2).flatten(2))
        result: Tensor = hidden + layer.pos_ffn(layer.norm3(hidden))
        return result


def _keys_and_values(attention: nn.MultiheadAttention, states: Tensor) -> list[Tensor]:
    """Projections of encoder states `[B, S, D]`, each `[B, heads, S, D / heads]`."""
    size = attention.embed_dim
    projected = functional.linear(states, attention.in_proj_weight[size:], attention.in_proj_bias[size:])
    return [_split_heads(part, attention.num_heads) for part in projected.chunk(2, dim=-1)]


def _split_heads(values: Tensor, heads: int) -> Tensor:
    return values.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joint_beam_searcher(model: ConformerASR, config: DecodeConfig) -> nn.Module:
    if model.attention_head is None:
        raise InputError(
            "decode.kind=joint_beam needs an attention decoder; this model is CTC-only, use decode.kind=ctc_greedy"
        )
    scorer = None
    if config.ctc_weight > 0:
        ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)
        which = "full_scorers" if config.ctc_candidates is None else "partial_scorers"
        scale = ((config.ctc_candidates or 0) + 0.5) / config.beam  # SpeechBrain takes int(beam * scale) of them
        scorer = ScorerBuilder(**{which: [ctc]}, weights={"ctc": config.ctc_weight}, scorer_beam_scale=scale)
    return _NextTokenSearcher(
        modules=[model.transformer, model.attention_head],
        bos_index=BOS,
        eos_index=EOS,
        min_decode_ratio=0.0,
        max_decode_ratio=config.max_ratio,
        beam_size=config.beam,
        using_eos_threshold=False,
        length_normalization=True,
        scorer=scorer,
    )


@torch.no_grad()
def decode(model: ConformerASR, batch: SpeechBatch, config: DecodeConfig) -> list[list[int]]:
    """Token indices of the best hypothesis of each utterance.

    Raises:
        InputError: beam search asked of a CTC-only model, or a search that is not this model's.
    """
    if config.kind not in ("ctc_greedy", "joint_beam"):
        raise InputError(f"decode.kind={config.kind}: of models without a CTC head; choose ctc_greedy or joint_beam")
    states, lengths = model.encode(batch.features, batch.lengths)
    relative = lengths / states.shape[1]
    if config.kind == "ctc_greedy":
        return ctc_greedy_decode(model.ctc_head(states).log_softmax(-1), relative, blank_id=BLANK)
    hypotheses, _, _, _ = _joint_beam_searcher(model, config)(states, relative)
    return [[int(token) for token in hypothesis] for hypothesis in hypotheses]
