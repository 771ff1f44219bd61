"""From logits to token sequences: greedy CTC, and SpeechBrain's joint CTC/attention beam search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from speechbrain.decoders.ctc import ctc_greedy_decode
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.decoders.seq2seq import S2STransformerBeamSearcher
from torch import nn

from asrcl.exceptions import InputError
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.model import BLANK, BOS, EOS, ConformerASR


@dataclass(frozen=True)
class DecodeConfig:
    """How to decode.

    Attributes:
        kind: "ctc_greedy", or "joint_beam" for joint CTC/attention beam search.
        beam: beam width of "joint_beam".
        ctc_weight: weight of the CTC score in "joint_beam".
        max_ratio: longest hypothesis, as a share of the encoder frames.
    """

    kind: Literal["ctc_greedy", "joint_beam"] = "ctc_greedy"
    beam: int = 10
    ctc_weight: float = 0.3
    max_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.beam < 1 or not 0 <= self.ctc_weight <= 1 or self.max_ratio <= 0:
            raise InputError(
                f"decode: beam ({self.beam}) must be at least 1, ctc_weight ({self.ctc_weight}) from 0 to 1, "
                f"max_ratio ({self.max_ratio}) positive"
            )


def _joint_beam_searcher(model: ConformerASR, config: DecodeConfig) -> nn.Module:
    if model.attention_head is None:
        raise InputError(
            "decode.kind=joint_beam needs an attention decoder; this model is CTC-only, use decode.kind=ctc_greedy"
        )
    scorer = None
    if config.ctc_weight > 0:
        ctc = CTCScorer(ctc_fc=model.ctc_head, blank_index=BLANK, eos_index=EOS)
        scorer = ScorerBuilder(full_scorers=[ctc], weights={"ctc": config.ctc_weight})
    return S2STransformerBeamSearcher(
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
        InputError: beam search asked of a CTC-only model.
    """
    states, lengths = model.encode(batch.features, batch.lengths)
    relative = lengths / states.shape[1]
    if config.kind == "ctc_greedy":
        return ctc_greedy_decode(model.ctc_head(states).log_softmax(-1), relative, blank_id=BLANK)
    hypotheses, _, _, _ = _joint_beam_searcher(model, config)(states, relative)
    return [[int(token) for token in hypothesis] for hypothesis in hypotheses]
