"""Models per domain without being told the domain: every item is taken from the model that is surest of it (`select:`).

    methods.lora_selected: {like: lora_per_domain, select: confidence}

A method with a model for each domain, the first domain's among them, never forgets, but has to be told which domain an item is
from. With `select: confidence` nobody tells it: every model recognises the item, and the hypothesis is taken of which its own
model is surest,

    k* = argmax_k  log p_k(h_k | x) / (|h_k| + 1),     h_k = what model k recognises of x

(`Task.confidence`; of equals the earliest domain's). With `select: calibrated` each model's confidence counts from its own mean
on the dev set of its own domain, measured when that was learned and kept as one number: where domains differ in how sure one can
be of them (digits, free speech), a model of an easy one is sure of what it gets wrong. `select: gated` asks a later domain's
model only about what sounds like its domain (`asrcl.methods.sound`), and calibrates besides: a decoder that has learned a closed
list of words is sure of them whatever is said. No data of earlier domains are kept, and no classifier of domains is trained; it
takes as many decodes as there are domains. Choosing between dialect-specific recognisers utterance by utterance is old (Soto et
al., "Selection and combination of hypotheses for dialectal speech recognition", ICASSP 2016); here the recognisers are a shared
model and what each domain adds to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from asrcl.contract.method import Method, joined_state, parted_state
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods.sound import HEARD, Sound, features
from asrcl.state import StateDict

if TYPE_CHECKING:
    from asrcl.scoring import Errors

WAYS: Final = {"confidence": "confidence", "calibrated": "calibrated confidence", "gated": "sound and confidence"}
"""The values of `select:`, and what tables call them."""


class Selected(Method):
    """A method with models per domain, every item decoded by the model that is surest of what it recognises.

    Args:
        inner: the method that learns; its `weights_for` gives every domain learned so far a model.
        select: "confidence", "calibrated" or "gated" (see the module).

    Raises:
        InputError: another way to select, or an inner method that decodes all domains with one model.
    """

    def __init__(self, inner: Method, select: str) -> None:
        if select not in WAYS:
            raise InputError(f"method {inner.name}: select={select!r}: choose {', '.join(WAYS)}, or leave it out")
        if type(inner).weights_for is Method.weights_for:
            raise InputError(
                f"method {inner.name}: decodes all domains with one model, so select= has nothing to choose from; it is for "
                "lora_per_domain, adapters, halrp, packnet and separate"
            )
        self._inner, self._calibrated, self._gated = inner, select != "confidence", select == "gated"
        self._sound = Sound()
        self._heard: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._usual: StateDict = {}  # per domain float64 [], the mean confidence of its model on its own dev set
        self.name, self.continues = inner.name, inner.continues  # type: ignore[misc]
        self.label = f"{inner.label}, by {WAYS[select]}"

    @property
    def trains_plainly(self) -> bool:
        """As the inner method."""
        return self._inner.trains_plainly

    def key(self) -> dict[str, Any]:
        """Fine-tunes are the inner method's."""
        return self._inner.key()

    def state_dict(self) -> StateDict:
        return joined_state({"method": self._inner.state_dict(), "usual": self._usual, "sound": self._sound.state()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        inner, self._usual, sound = parted_state(self, state, "method", "usual", "sound")
        self._sound = Sound.of(sound)
        self._inner.load_state_dict(inner)

    def start_run(self, learner: Learner) -> None:
        self._usual, self._sound, self._heard = {}, Sound(), {}
        self._inner.start_run(learner)

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        self._check(domain)
        self._inner.start_domain(learner, domain)

    def _check(self, domain: Domain) -> None:
        """Refuse what is decoded with the name of its own domain, whichever model decodes it."""
        if domain.size("train") and not domain.item("train", 0).mixable:
            raise InputError(
                f"method {self.name}: select: domain {domain.name} has a head or a language of its own, which every "
                "model would be told; use a scenario whose domains share them"
            )

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights | None:
        return self._inner.learn(learner, domain, old)

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        return self._inner.merge_domain(learner, domain, old, new)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        self._check(domain)
        end = self._inner.end_domain(learner, domain, old, new)
        if self._calibrated:
            self._usual[domain.name] = torch.tensor(self._mean_confidence(learner, domain), dtype=torch.float64)
        if self._gated:
            if not domain.size("train"):
                raise InputError(f"method {self.name}: select=gated: domain {domain.name} has no training items; use calibrated")
            train, dev = self._hear(learner, domain, "train", HEARD), self._hear(learner, domain, "dev")
            self._sound.add(domain.name, *(torch.stack([*found.values()]) for found in (train, dev)))
        return end

    def _hear(self, learner: Learner, domain: Domain, split: str, most: int | None = None) -> dict[str, Tensor]:
        """What the first domain's model makes of a split."""
        first = self._inner.weights_for(learner, learner.domains[0])
        assert first is not None, "the first domain has a model from its own stage on"
        key = first.hash, domain.fingerprint(split)
        if key not in self._heard:
            self._heard[key] = features(learner, first, domain, split, most)
        return self._heard[key]

    def _mean_confidence(self, learner: Learner, domain: Domain) -> float:
        """Of a domain's model on its own dev set, without items of which nothing was recognised."""
        weights = self._inner.weights_for(learner, domain)
        if weights is None or not domain.size("dev"):
            raise InputError(
                f"method {self.name}: select: domain {domain.name} has no dev set to calibrate its model on; give it "
                "one, or use select=confidence"
            )
        sure = learner.confidence(weights, domain, "dev", learner.evaluate(weights, domain, "dev"))
        known = [value for value in sure if math.isfinite(value)]
        return math.fsum(known) / len(known) if known else 0.0

    def weights_for(self, learner: Learner, domain: Domain) -> Weights | None:
        return self._inner.weights_for(learner, domain)

    def evaluate(self, learner: Learner, domain: Domain, split: str) -> Errors | None:
        models: dict[str, tuple[str, Weights]] = {}
        for known in learner.domains:
            weights = self._inner.weights_for(learner, known)
            if weights is not None:
                models.setdefault(weights.hash, (known.name, weights))
        if not models:
            return None
        names, weights_of = zip(*models.values(), strict=True)
        found = [learner.evaluate(weights, domain, split) for weights in weights_of]
        if len(models) == 1:
            return found[0]
        usual = [float(self._usual.get(name, 0.0)) for name in names]
        sure = [
            [value - mean for value in learner.confidence(weights, domain, split, said)]
            for weights, said, mean in zip(weights_of, found, usual, strict=True)
        ]
        if self._gated:
            heard = self._hear(learner, domain, split)
            items = torch.stack([heard[item.id] for item in found[0].items])
            excess = self._sound.excess(items)
            for k, name in enumerate(names[1:], 1):
                near = excess[name] <= self._sound.limit
                sure[k] = [value if inside else -math.inf for value, inside in zip(sure[k], near.tolist(), strict=True)]
        best = [max(range(len(models)), key=lambda k: (sure[k][item], -k)) for item in range(len(found[0]))]
        shares = Counter(names[k] for k in best)
        learner.record.setdefault("selected", {})[domain.name] = {name: shares[name] for name in names}
        return replace(found[0], items=[found[k].items[item] for item, k in enumerate(best)])

    def parameters(self, learner: Learner) -> int:
        return self._inner.parameters(learner)

    def kept_bytes(self, learner: Learner) -> int:
        own = {**self._usual, **self._sound.state()}
        return self._inner.kept_bytes(learner) + sum(value.nbytes for value in own.values())

    def write(self, folder: Path) -> None:
        self._inner.write(folder)
