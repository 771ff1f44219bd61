"""What recognisers with an encoder and a decoder share (Whisper, Moonshine): outputs after the batch's own tokens, loss, search.

Shapes: B utterances, S encoder frames, D width, P tokens of the prompt, L tokens of a text, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput

from asrcl.contract.outputs import Outputs
from asrcl.exceptions import InputError
from asrcl.speech.recogniser import Objective, real

if TYPE_CHECKING:
    from asrcl.speech.decoding import DecodeConfig
    from asrcl.speech.domain import SpeechBatch
    from asrcl.speech.tokenizer import Tokenizer

IGNORED = -100
"""Target of a position that has no token."""


class SequenceRecogniser(nn.Module):
    """An encoder and a decoder of Transformers, trained on texts after a prompt.

    Subclasses have `encode` and `padding`. The names of the weights are those of the folder's checkpoint, which leaves out the
    output layer, because its weights are those of the token embedding.

    Args:
        generator: the model as Transformers has it.
        prompts: tokens before a text by the name of its domain, or under "" for all; as many for each.
        unprompted: how many of them, the last ones, decoding leaves to the model.
    """

    def __init__(self, generator: PreTrainedModel, prompts: Mapping[str, Sequence[int]], unprompted: int = 0) -> None:
        super().__init__()
        self.model = generator.model
        generator.generation_config.max_length = None  # `transcribe` gives the length
        self._generator: Any = (generator,)  # not a module of its own: it consists of the same ones
        self._prompts, self._unprompted = {name: tuple(prompt) for name, prompt in prompts.items()}, unprompted
        self.end = int(generator.config.eos_token_id)

    def prompt(self, batch: SpeechBatch) -> tuple[int, ...]:
        """The tokens before the texts of a batch.

        Raises:
            InputError: prompts are given by domain, and not for this one.
        """
        found = self._prompts.get(batch.domain, self._prompts.get(""))
        if found is None:
            raise InputError(f"model.language: says nothing of {batch.domain}; it has {', '.join(self._prompts)}")
        return found

    def room(self, batch: SpeechBatch) -> int:
        """How many tokens a text of a batch may have."""
        return int(self.longest) - len(self.prompt(batch))

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor | None]:
        """Encoder states `[B, S, D]`, and the mask `[B, S]` of those that the decoder may attend to; None for all."""
        raise NotImplementedError

    def forward(self, batch: SpeechBatch) -> Outputs:
        """Logits of the batch's own tokens and the end after them `[B, L + 1, V]`, with the mask of the real ones."""
        decoder = self.model.decoder
        states, mask = self.encode(batch)
        prompt = self.prompt(batch)
        tokens = torch.cat([_repeated(prompt, states), batch.tokens], dim=1)
        if tokens.shape[1] > self.longest:
            name = batch.ids[int(batch.token_lengths.argmax())]
            what = f"its text has {batch.tokens.shape[1]} tokens, the model has room for {self.room(batch)}"
            raise InputError(f"utterance {name}: {what}; split it or leave it out")
        masked = {} if mask is None else {"encoder_attention_mask": mask}  # Whisper's decoder knows none
        hidden = decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=False, **masked).last_hidden_state
        logits = functional.linear(hidden[:, len(prompt) - 1 :], decoder.embed_tokens.weight)
        return Outputs((logits,), (real(batch.token_lengths + 1, logits.shape[1]),))

    def loss(self, outputs: Outputs, batch: SpeechBatch, objective: Objective) -> Tensor:
        """Cross entropy of the text and its end after the prompt, summed over an utterance's tokens, mean over utterances."""
        target = functional.pad(batch.tokens, (0, 1)).scatter(1, batch.token_lengths[:, None], self.end)
        mask = outputs.masks[0]
        assert mask is not None, "texts of a batch differ in length"
        total = functional.cross_entropy(
            outputs.logits[0].float().flatten(0, 1),
            torch.where(mask, target, IGNORED).flatten(),
            ignore_index=IGNORED,
            label_smoothing=objective.label_smoothing,
            reduction="sum",
        )
        return total / len(batch)

    @torch.no_grad()
    def transcribe(self, batch: SpeechBatch, options: DecodeConfig, tokenizer: Tokenizer) -> list[str]:
        """The best hypothesis of each utterance, greedily or by beam search, without the tokens that the folder suppresses.

        Raises:
            InputError: a search that needs a CTC head.
        """
        if options.kind not in ("greedy", "beam"):
            raise InputError(f"decode.kind={options.kind}: this model is a decoder without a CTC head; choose greedy or beam")
        states, mask = self.encode(batch)
        tokens = self.prompt(batch)
        prompt = _repeated(tokens[: len(tokens) - self._unprompted], states)
        most = [max(1, min(self.longest - prompt.shape[1], int(options.max_ratio * frames))) for frames in self.frames(batch)]
        # Not the model's own `generate`, which for Whisper cuts long recordings into windows by itself and admits no short one.
        found = GenerationMixin.generate(
            self._generator[0],
            decoder_input_ids=prompt,
            encoder_outputs=self.encoded(states, mask),
            attention_mask=torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask,
            logits_processor=self.processors(prompt.shape[1]),
            num_beams=options.beam if options.kind == "beam" else 1,
            max_new_tokens=max(most),
            do_sample=False,
        )
        texts = found[:, prompt.shape[1] :].tolist()
        return [tokenizer.decode(tokens[:limit]) for tokens, limit in zip(texts, most, strict=True)]

    def written(self, batch: SpeechBatch) -> list[Tensor]:
        """Masks of the decoder's positions `[B, P + L]`, and of those whose logits are asked for `[B, L + 1]`."""
        before, size = len(self.prompt(batch)), batch.tokens.shape[1]
        return [real(batch.token_lengths + more, size + more) for more in (before, 1)]

    def encoded(self, states: Tensor, mask: Tensor | None) -> BaseModelOutput:
        """What `encode` gave, as Transformers' search takes it."""
        return BaseModelOutput(last_hidden_state=states)

    @property
    def longest(self) -> int:
        """Tokens that the decoder has positions for, the prompt included."""
        raise NotImplementedError

    def frames(self, batch: SpeechBatch) -> list[int]:
        """Encoder frames of each utterance, which bound its hypothesis; the same for an utterance in whichever batch."""
        raise NotImplementedError

    def processors(self, begin: int) -> LogitsProcessorList:
        """What changes the logits in decoding besides what the folder's generation settings say; texts begin at `begin`."""
        return LogitsProcessorList()


def _repeated(tokens: Sequence[int], states: Tensor) -> Tensor:
    return torch.tensor([list(tokens)], device=states.device).expand(len(states), -1)
