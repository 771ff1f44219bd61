"""Several models of Transformers, one for each domain, and every utterance recognised by the one that is surest of it.

What `select: confidence` and `select: calibrated` do in the recipes (docs/selection.md), for models that were made anywhere:

    surest = Surest({"general": whisper, "orders": fine_tuned}, processor)
    surest.calibrate("general", general_dev); surest.calibrate("orders", orders_dev)
    surest.recognise([waveform])[0].text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from asrcl.curvature.modes import evaluated
from asrcl.exceptions import InputError
from asrcl.text import LOOP_RATIO, compression_ratio

Waveform = np.ndarray | Tensor | Sequence[float]


@dataclass(frozen=True)
class Candidate:
    """What one model recognised.

    Attributes:
        text: without special tokens and without blanks at its ends.
        confidence: natural logarithm of the probability that the model gives to its own text, per token (with a decoder the end
            token is one of them); minus infinity where nothing was recognised, for a loop, and for what the model cannot score.
    """

    text: str
    confidence: float


@dataclass(frozen=True)
class Recognised(Candidate):
    """The candidate that was chosen for an utterance.

    Attributes:
        model: whose it is.
        candidates: of all models, by name.
    """

    model: str
    candidates: Mapping[str, Candidate]


class Surest:
    """Recognises every utterance with each of several models and keeps what its own model is surest of.

        k* = argmax_k  log p_k(h_k | x) / (|h_k| + 1) - usual_k,     h_k = what model k recognises of x

    of equals the earliest. `usual_k`, the mean of that confidence on the dev set of model k's own domain (`calibrate`), matters
    where domains differ in how sure one can be of them: a model of digits is sure of whatever it hears. Choosing between the
    hypotheses of dialect-specific recognisers is due to Soto et al. (ICASSP 2016); docs/selection.md has what it does.

    Args:
        models: by name, all of them for the same processor: modules, with a decoder (Whisper, Moonshine) or CTC (wav2vec 2.0,
            HuBERT); or functions without arguments that make one ready and return it, such as
            `lambda: (peft_model.set_adapter("orders"), peft_model)[1]` for adapters of one base.
        processor: a processor of Transformers, with `feature_extractor` and `tokenizer`. A multilingual Whisper's has to know the
            language (`WhisperProcessor.from_pretrained(folder, language="de", task="transcribe")`), and so has `generate`.
        usual: what `calibrate` returned earlier, by name.
        generate: options of `generate` for models with a decoder, such as `{"language": "de", "num_beams": 4}`.

    Attributes:
        usual: by name; assign or save it as you like.

    Raises:
        InputError: no models, or `usual` of a model that is not there.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module | Callable[[], nn.Module]],
        processor: Any,
        usual: Mapping[str, float] | None = None,
        generate: Mapping[str, Any] | None = None,
    ) -> None:
        if not models:
            raise InputError("Surest: no models to choose from; give them by name, {'general': model, ...}")
        self._models, self._processor, self._generate = dict(models), processor, dict(generate or {})
        self.usual = dict(usual or {})
        if strangers := sorted(set(self.usual) - set(self._models)):
            raise InputError(f"Surest: usual confidence of {', '.join(strangers)}, but the models are {', '.join(self._models)}")

    def calibrate(self, name: str, waveforms: Sequence[Waveform], sampling_rate: int = 16_000) -> float:
        """Measure how sure a model is of its own domain; 50 utterances will do.

        Args:
            name: of the model.
            waveforms: utterances of its domain that it was not trained on, as for `recognise`.
            sampling_rate: in Hz.

        Returns:
            The mean confidence, which is kept in `usual`. Utterances of which nothing was recognised do not count.

        Raises:
            InputError: no such model, or none of the utterances was recognised.
        """
        if name not in self._models:
            raise InputError(f"Surest.calibrate: no model {name}; there are {', '.join(self._models)}")
        found = self._candidates(name, self._inputs(waveforms, sampling_rate))
        known = [candidate.confidence for candidate in found if math.isfinite(candidate.confidence)]
        if not known:
            raise InputError(f"Surest.calibrate: {name} recognised nothing in {len(found)} utterances; is this its domain?")
        self.usual[name] = math.fsum(known) / len(known)
        return self.usual[name]

    def recognise(self, waveforms: Sequence[Waveform], sampling_rate: int = 16_000) -> list[Recognised]:
        """Recognise utterances, one by one, with every model.

        Args:
            waveforms: mono, float in [-1, 1], `[samples]` each.
            sampling_rate: in Hz; has to be the feature extractor's.

        Returns:
            For each what the surest model recognised. Where no model is sure of anything it is the first model's.

        Raises:
            InputError: some models are calibrated and others are not, a waveform that is no finite mono signal, or another
                sampling rate.
        """
        if self.usual and (missing := [name for name in self._models if name not in self.usual]):
            raise InputError(
                f"Surest: {', '.join(self.usual)} calibrated, {', '.join(missing)} not, so their confidences cannot be compared; "
                "calibrate all of them or none"
            )
        inputs = self._inputs(waveforms, sampling_rate)
        found = {name: self._candidates(name, inputs) for name in self._models}  # model by model: adapters are switched once
        return [self._chosen({name: candidates[place] for name, candidates in found.items()}) for place in range(len(inputs))]

    def _chosen(self, candidates: Mapping[str, Candidate]) -> Recognised:
        best = max(candidates, key=lambda name: candidates[name].confidence - self.usual.get(name, 0.0))
        return Recognised(candidates[best].text, candidates[best].confidence, best, candidates)

    def _inputs(self, waveforms: Sequence[Waveform], sampling_rate: int) -> list[dict[str, Tensor]]:
        """The features of every utterance, batches of one."""
        extractor = self._processor.feature_extractor
        if sampling_rate != extractor.sampling_rate:
            raise InputError(
                f"Surest: audio of {sampling_rate} Hz for models of {extractor.sampling_rate}; resample it "
                "(torchaudio.functional.resample)"
            )
        inputs = []
        for place, waveform in enumerate(waveforms):
            samples = np.asarray(waveform, np.float32)
            if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
                raise InputError(f"Surest: waveform {place} has shape {samples.shape}; one channel of finite samples is needed")
            inputs.append(dict(extractor(samples, sampling_rate=sampling_rate, return_tensors="pt")))
        return inputs

    @torch.no_grad()
    def _candidates(self, name: str, inputs: Sequence[Mapping[str, Tensor]]) -> list[Candidate]:
        """What one model makes of the utterances."""
        chosen = self._models[name]
        model: Any = chosen if isinstance(chosen, nn.Module) else chosen()
        device, kind = next(model.parameters()).device, next(model.parameters()).dtype
        score = self._by_decoder if model.can_generate() else self._by_ctc
        found = []
        with evaluated(model):
            for each in inputs:
                placed = {key: value.to(device, kind if value.is_floating_point() else None) for key, value in each.items()}
                text, confidence = score(model, placed)
                found.append(Candidate(text.strip(), confidence if math.isfinite(confidence) else -math.inf))
        return found

    def _by_decoder(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[str, float]:
        """Text, and minus the cross entropy of its tokens and the end token behind the prompt that the tokeniser writes."""
        tokenizer, config = self._processor.tokenizer, model.config
        text = tokenizer.decode(model.generate(**inputs, **self._generate)[0], skip_special_tokens=True)
        start, end = config.decoder_start_token_id, config.eos_token_id
        prompt = [start, *(token for token in tokenizer("").input_ids if token not in (start, end))]
        said = _tokens(tokenizer, text)
        tokens = torch.tensor([[*prompt, *said]], device=model.device)
        room = getattr(config, "max_target_positions", getattr(config, "max_position_embeddings", math.inf))
        if not said or tokens.shape[1] > room:
            return text, -math.inf
        logits = model(**inputs, decoder_input_ids=tokens).logits[0, len(prompt) - 1 :].float()
        return text, -float(functional.cross_entropy(logits, torch.tensor([*said, end], device=model.device)))

    def _by_ctc(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[str, float]:
        """Text, and minus its CTC loss, divided by one more than its tokens."""
        tokenizer, log_probabilities = self._processor.tokenizer, model(**inputs).logits[0].float().log_softmax(-1)
        text = tokenizer.decode(log_probabilities.argmax(-1))
        said = _tokens(tokenizer, text)
        if not said:
            return text, -math.inf
        frames, length = torch.tensor([len(log_probabilities)]), torch.tensor([len(said)])
        target, blank = torch.tensor([said], device=model.device), model.config.pad_token_id
        loss = functional.ctc_loss(log_probabilities[:, None], target, frames, length, blank, "sum")
        return text, -float(loss) / (len(said) + 1)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    """The text in the vocabulary, without special tokens; nothing of a loop, of which a decoder is always sure."""
    return [] if compression_ratio(text) > LOOP_RATIO else tokenizer(text, add_special_tokens=False).input_ids
