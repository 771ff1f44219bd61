"""wav2vec 2.0 (Baevski et al. 2020, arXiv 2006.11477) and HuBERT (Hsu et al. 2021, arXiv 2106.07447) with a CTC head.

Shapes: B utterances, N samples, S encoder frames (one for 320 samples), L tokens, V vocabulary.

Frames of padding are masked wherever frames meet. Where the first convolution normalises over all of an utterance's samples
(`feat_extract_norm: group`, the base models), the convolutions run for one utterance after the other. A padded batch is thereby
its utterances one by one, which Transformers' own batches are not for those models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCTC

from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.speech.features import FeatureConfig
from asrcl.speech.hub import FRONT_END, folder_of, load_model, read_table, settings_hash
from asrcl.speech.pretrained.samples import after_convolutions, check_vocabulary, refuse_window
from asrcl.speech.pretrained.tokens import CharacterTokenizer
from asrcl.speech.recogniser import Objective, ctc_loss, real

if TYPE_CHECKING:
    from asrcl.speech.decoding import DecodeConfig
    from asrcl.speech.domain import SpeechBatch
    from asrcl.speech.tokenizer import Tokenizer

KINDS = ("wav2vec2", "hubert")


class HubCTC(nn.Module):
    """A wav2vec 2.0 or HuBERT with the weights of its folder; its own masking in training is that of `config.json`.

    Args:
        features: F, which is 1: the model sees samples.
        vocabulary: number of tokens, at most V.
        pretrained: folder of the model, or its name on the hub.
        context: None; the model has no window.

    Raises:
        InputError: a folder that is of another kind or cannot be used.
    """

    def __init__(self, features: int, vocabulary: int, pretrained: str, context: None = None) -> None:
        super().__init__()
        folder = folder_of(pretrained, *KINDS)
        model = load_model(AutoModelForCTC, folder)
        check_vocabulary(folder, model.config, vocabulary)
        self.config, self.blank = model.config, int(model.config.pad_token_id)
        self._convolutions = list(zip(self.config.conv_kernel, self.config.conv_stride, strict=True))
        self._base_name = model.base_model_prefix
        self.add_module(self._base_name, model.base_model)
        self.dropout, self.lm_head = model.dropout, model.lm_head

    @property
    def base(self) -> Any:
        """The model below the head, under the name that it has in the checkpoint."""
        return getattr(self, self._base_name)

    def forward(self, batch: SpeechBatch) -> Outputs:
        """Logits `[B, S, V]` and the mask of the real frames."""
        heard = self._extracted(batch)
        mask = real(self.frames(batch.lengths), heard.shape[1])
        projected = self.base.feature_projection(heard)
        hidden = projected[0] if isinstance(projected, tuple) else projected
        if self.training:
            hidden = self.base._mask_hidden_states(hidden, attention_mask=mask)
        states = self.base.encoder(hidden, attention_mask=mask).last_hidden_state
        return Outputs((self.lm_head(self.dropout(states)),), (mask,))

    def _extracted(self, batch: SpeechBatch) -> Tensor:
        """What the convolutions make of the samples, `[B, S, C]`."""
        samples = batch.features[..., 0]
        if self.config.feat_extract_norm == "layer":
            return self.base.feature_extractor(samples).transpose(1, 2)
        alone = (samples[n, :length] for n, length in enumerate(batch.lengths.tolist()))
        return pad_sequence([self.base.feature_extractor(one[None])[0].T for one in alone], batch_first=True)

    def frames(self, lengths: Tensor) -> Tensor:
        """Encoder frames of utterances of so many samples."""
        return after_convolutions(lengths, self._convolutions)[-1]

    def loss(self, outputs: Outputs, batch: SpeechBatch, objective: Objective) -> Tensor:
        """CTC, summed over an utterance, mean over utterances."""
        return ctc_loss(outputs, batch, self.blank, objective.zero_infinity) / len(batch)

    @torch.no_grad()
    def transcribe(self, batch: SpeechBatch, options: DecodeConfig, tokenizer: Tokenizer) -> list[str]:
        """The best path, without repetitions and blanks.

        Raises:
            InputError: a search that needs an attention decoder.
        """
        if options.kind not in ("greedy", "ctc_greedy"):
            raise InputError(f"decode.kind={options.kind}: this model has a CTC head alone; choose greedy")
        outputs = self(batch)
        sizes = self.frames(batch.lengths).tolist()
        paths = (row[:size].unique_consecutive().tolist() for row, size in zip(outputs.logits[0].argmax(-1), sizes, strict=True))
        return [tokenizer.decode([token for token in path if token != self.blank]) for path in paths]

    def padding(self, batch: SpeechBatch) -> Sequence[Tensor]:
        """The mask of the encoder's frames `[B, S]`, after those of every convolution before."""
        return [real(lengths) for lengths in after_convolutions(batch.lengths, self._convolutions)]

    @classmethod
    def describe(cls, **settings: Any) -> dict[str, Any]:
        """A hash of the folder's settings."""
        return {"model": "ctc", "folder": settings_hash(settings["pretrained"])}

    @classmethod
    def front_end(cls, pretrained: str, context: None = None, **settings: Any) -> FeatureConfig:
        """Samples, each utterance brought to mean 0 and variance 1 where the folder says so."""
        refuse_window(context)
        normalised = read_table(folder_of(pretrained, *KINDS), FRONT_END).get("do_normalize", True)
        return FeatureConfig("waveform", normalise="mean_variance" if normalised else "none")

    @classmethod
    def tokenizer(cls, pretrained: str, **settings: Any) -> Tokenizer:
        """The tokeniser in the folder."""
        return CharacterTokenizer(folder_of(pretrained, *KINDS))
