"""Several models of Transformers, one for each domain, and every utterance recognised by the one that is surest of it.

What `select: confidence` and `select: calibrated` do in the recipes (docs/selection.md), for models that were made anywhere:

    surest = Surest({"general": whisper, "orders": fine_tuned}, processor)
    surest.calibrate("general", general_dev); surest.calibrate("orders", orders_dev)
    surest.recognise([waveform])[0].text
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
TOGETHER = 64
"""Utterances whose features are held at the same time."""


@dataclass(frozen=True)
class Candidate:
    """What one model recognised.

    Attributes:
        text: without special tokens and without blanks at its ends.
        confidence: natural logarithm of the probability that the model gives to what it said, per token and one more (the end
            token of a decoder); minus infinity where nothing was recognised, for a loop, and for what the model cannot score.
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
            HuBERT); or functions without arguments that make one ready and return it, which lets adapters share a base
            (docs/selection.md). A module that lies in what a function returns is refused: it would be changed with it.
        processor: a processor of Transformers, with `feature_extractor` and `tokenizer`.
        usual: what `calibrate` returned earlier, by name.
        generate: options of `generate` for models with a decoder, such as `{"language": "de", "num_beams": 4}`. The prompt behind
            which a text is scored (language, task) is the one that `generate` takes for that utterance.

    Attributes:
        usual: by name; assign or save it as you like.

    Raises:
        InputError: no models, a processor without one of its parts, or `usual` of a model that is not there.
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
        if lacks := [part for part in ("feature_extractor", "tokenizer") if getattr(processor, part, None) is None]:
            raise InputError(f"Surest: {type(processor).__name__} has no {' and no '.join(lacks)}; give AutoProcessor's")
        self._models, self._processor, self._generate = dict(models), processor, dict(generate or {})
        self.usual = dict(usual or {})
        self._first: tuple[str, str] | None = None  # a model that was used, and what the others have to be like
        if strangers := sorted(set(self.usual) - set(self._models)):
            raise InputError(f"Surest: usual confidence of {', '.join(strangers)}, but the models are {self._names()}")

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
            raise InputError(f"Surest.calibrate: no model {name}; there are {self._names()}")
        found = [one for several in self._heard(waveforms, sampling_rate) for one in self._candidates(name, several)]
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
            InputError: some models are calibrated and others are not, models that one processor cannot serve or that share what a
                function changes; a waveform that is no finite mono signal, is shorter than 0.1 s or longer than the model's
                window; another sampling rate.
        """
        if self.usual:
            self._check_usual()
        found = []
        for inputs in self._heard(waveforms, sampling_rate):
            every = {name: self._candidates(name, inputs) for name in self._models}
            found += [self._chosen({name: one[place] for name, one in every.items()}) for place in range(len(inputs))]
        return found

    def _names(self) -> str:
        return ", ".join(map(str, self._models))

    def _check_usual(self) -> None:
        if missing := [str(name) for name in self._models if name not in self.usual]:
            raise InputError(
                f"Surest: {', '.join(map(str, self.usual))} calibrated, {', '.join(missing)} not, so their confidences cannot be "
                "compared; calibrate all of them or none"
            )
        for name, value in self.usual.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"Surest: usual confidence of {name} is {value!r}, no finite number; calibrate it again")

    def _chosen(self, candidates: Mapping[str, Candidate]) -> Recognised:
        best = max(candidates, key=lambda name: candidates[name].confidence - self.usual.get(name, 0.0))
        return Recognised(candidates[best].text, candidates[best].confidence, best, candidates)

    def _heard(self, waveforms: Sequence[Waveform], sampling_rate: int) -> Iterator[list[dict[str, Tensor]]]:
        """The features of the utterances, batches of one, some at a time: those of Whisper take a megabyte each."""
        extractor = self._processor.feature_extractor
        if sampling_rate != extractor.sampling_rate:
            raise InputError(
                f"Surest: audio of {sampling_rate} Hz for models of {extractor.sampling_rate}; resample it "
                "(torchaudio.functional.resample)"
            )
        window = getattr(extractor, "n_samples", math.inf)
        signals = [_samples(waveform, place, sampling_rate, window) for place, waveform in enumerate(waveforms)]
        for start in range(0, len(signals), TOGETHER):
            some = signals[start : start + TOGETHER]
            yield [dict(extractor(samples, sampling_rate=sampling_rate, return_tensors="pt")) for samples in some]

    @torch.no_grad()
    def _candidates(self, name: str, inputs: Sequence[Mapping[str, Tensor]]) -> list[Candidate]:
        """What one model makes of the utterances."""
        model = self._ready(name)
        device, kind = next(model.parameters()).device, next(model.parameters()).dtype
        score = self._by_decoder if model.can_generate() else self._by_ctc
        found = []
        with evaluated(model):
            for each in inputs:
                placed = {key: value.to(device, kind if value.is_floating_point() else None) for key, value in each.items()}
                with _encoding_once(model) if model.can_generate() else nullcontext():
                    text, confidence = score(model, placed)
                found.append(Candidate(text.strip(), confidence if math.isfinite(confidence) else -math.inf))
        return found

    def _ready(self, name: str) -> Any:
        """A model, without PEFT's wrapper, whose adapters lie in the model itself."""
        chosen = self._models[name]
        model: Any = chosen if isinstance(chosen, nn.Module) else chosen()
        for other, entry in self._models.items():
            if other != name and isinstance(entry, nn.Module) and (entry in {*model.modules()} or model in {*entry.modules()}):
                raise InputError(
                    f"Surest: {other} and {name} are the same model, or one is a part of the other, so what makes one ready "
                    f"changes both; give {other} as a function, too, which switches adapters off (docs/selection.md), or a copy"
                )
        if hasattr(model, "get_base_model"):
            if model.active_peft_config.is_prompt_learning:
                raise InputError(f"Surest: {name} learned a prompt (PEFT); only adapters that lie in the layers can be used")
            model = model.get_base_model()
        kind = f"{model.config.vocab_size} tokens and {'a decoder' if model.can_generate() else 'CTC'}"
        first, known = self._first = self._first or (name, kind)
        if kind != known:
            raise InputError(f"Surest: {first} has {known}, {name} {kind}; one processor cannot serve both")
        return model

    def _by_decoder(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[str, float]:
        """Text, and minus the cross entropy of its tokens and the end token behind the prompt that the model begins with."""
        tokenizer, config = self._processor.tokenizer, model.config
        options = {**self._generate, "return_dict_in_generate": False}
        text = tokenizer.decode(model.generate(**inputs, **options)[0], skip_special_tokens=True)
        said = tokenizer(text, add_special_tokens=False).input_ids
        room = getattr(config, "max_target_positions", getattr(config, "max_position_embeddings", math.inf))
        if not text.strip() or _loops(text):
            return text, -math.inf
        prompt = self._prompt(model, inputs)
        if len(prompt) + len(said) > room:
            return text, -math.inf
        tokens = torch.tensor([[*prompt, *said]], device=model.device)
        logits = model(**inputs, decoder_input_ids=tokens).logits[0, len(prompt) - 1 :].float()
        label = torch.tensor([*said, config.eos_token_id], device=model.device)
        return text, -float(functional.cross_entropy(logits, label))

    def _prompt(self, model: Any, inputs: Mapping[str, Tensor]) -> list[int]:
        """The tokens before the first one that `generate` chooses; a Whisper may find the language out, and takes them off."""
        one = {"max_new_tokens": 1, "num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": True}
        whole = {"force_unique_generate_call": True} if model.config.model_type == "whisper" else {}
        return model.generate(**inputs, **{**self._generate, **one, **whole}).sequences[0, :-1].tolist()

    def _by_ctc(self, model: Any, inputs: Mapping[str, Tensor]) -> tuple[str, float]:
        """Text, and minus the CTC loss of what was said, divided by one more than its tokens.

        That includes the word delimiters at the ends, which the text lacks: some models were trained to write them.
        """
        tokenizer, blank = self._processor.tokenizer, model.config.pad_token_id
        if tokenizer.pad_token_id != blank:
            raise InputError(
                f"Surest: the blank of the model is token {blank}, that of the tokeniser {tokenizer.pad_token_id} "
                f"({tokenizer.pad_token}); this is another model's processor"
            )
        log_probabilities = model(**inputs).logits[0].float().log_softmax(-1)
        said = [token for token in log_probabilities.argmax(-1).unique_consecutive().tolist() if token != blank]
        unwritten = {*tokenizer.all_special_ids} - {tokenizer.word_delimiter_token_id}
        text = tokenizer.decode([token for token in said if token not in unwritten], group_tokens=False)
        if not text.strip() or _loops(text):
            return text, -math.inf
        frames, length = torch.tensor([len(log_probabilities)]), torch.tensor([len(said)])
        target = torch.tensor([said], device=model.device)
        loss = functional.ctc_loss(log_probabilities[:, None], target, frames, length, blank, "sum")
        return text, -float(loss) / (len(said) + 1)


@contextmanager
def _encoding_once(model: Any) -> Iterator[None]:
    """Within, the encoder encodes nothing twice: an utterance is decoded, its prompt is asked for, and its text is scored.

    `generate` takes what was encoded before, too (`encoder_outputs`), but then Whisper's does not give the same texts.
    """
    encoder = model.get_encoder()
    forward, replaced = encoder.forward, vars(encoder).get("forward")
    known: list[tuple[list[Tensor], Any]] = []

    def remembering(*values: Any, **options: Any) -> Any:
        given = [*values, *(value for name, value in options.items() if name != "return_dict")]
        tensors = [value for value in given if isinstance(value, Tensor)]
        if any(value not in (None, False) for value in given if not isinstance(value, Tensor)):
            return forward(*values, **options)  # asked for more than what it made of the tensors
        same = (made for seen, made in known if len(seen) == len(tensors) and all(map(torch.equal, tensors, seen)))
        if (made := next(same, None)) is None:
            made = forward(*values, **options)
            known.append((tensors, made))
        return type(made)(**made)  # a copy, for a beam search writes into it

    encoder.forward = remembering
    try:
        yield
    finally:
        del encoder.forward
        if replaced is not None:
            encoder.forward = replaced


def _loops(text: str) -> bool:
    """Whether a text says the same again and again, of which a decoder is always sure."""
    return compression_ratio(text) > LOOP_RATIO


def _samples(waveform: Waveform, place: int, sampling_rate: int, window: float) -> np.ndarray:
    """One channel of finite floats `[samples]`, of a length that models can take."""
    if isinstance(waveform, Tensor) and waveform.is_floating_point():
        waveform = waveform.detach().float().cpu()
    signal, name = np.asarray(waveform), f"Surest: waveform {place}"
    if signal.dtype.kind != "f":
        raise InputError(f"{name} has {signal.dtype} in it; floats in [-1, 1] are needed (int16: divide by 32768)")
    if signal.ndim != 1 or not np.isfinite(signal).all():
        raise InputError(f"{name} has shape {signal.shape}; one channel of finite samples is needed")
    seconds, longest = len(signal) / sampling_rate, window / sampling_rate
    if not 0.1 <= seconds <= longest:
        to = "" if math.isinf(longest) else f" to {longest:g}"
        raise InputError(f"{name} has {seconds:.2f} s; the models take 0.1{to} s, so cut it, or leave it out")
    return signal.astype(np.float32)
