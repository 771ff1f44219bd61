"""Any training-time method with any merge behind it: `merge:` is an option of every method.

    methods.ewc_ihr: {like: ewc, merge: {method: ihr, damping: 3.0}}
    methods.ties: {like: ft, merge: {method: ties}}

After every domain the weights before it and those that the method learned are merged, as `asrcl merge OLD NEW --method ...` does.

With `rounds: R` a domain's epochs are shared out over R rounds, each of which starts from what the last one was merged to:

    w_0 = old,   w_r = merge(w_{r-1}, fine-tune of w_{r-1} for 1/R of the epochs)

so that what a merge took away can be learned once more where the old domains' loss is flat. The curvature stays that of the
weights before the domain. With `anchor: domain` every round is merged with the weights before the domain,

    w_0 = old,   w_r = merge(old, fine-tune of w_{r-1} for 1/R of the epochs)

so that the sum of all steps is filtered, not each by itself, and no direction is let through in every round anew. With the
Laplace merge this is proximal descent: where the rounds come to rest, the new domain's gradient balances the penalty
1/2 (w - old)^T F (w - old) (docs/beyond_ihr.md).

With `start: initial` every domain is fine-tuned from the initial model i, not from what was merged so far: the models of the
papers on merging, which know nothing of each other, but merged one by one as they come, so that of all models only the initial
one and the merge are kept. What comes in is, by the kind of the merge,

    the model w_t itself              means (average, slerp, ...), and what weighs both sides (regmean, mats, fisher)
    its update, as w_{t-1} + w_t - i  all others: task_arithmetic, ihr, laplace, lines, dare
    its update beside w_{t-1} - i     with base: initial (ties, tsv_m, opcm); a strength shrinks the sum anew at every stage

Methods that weigh both sides then carry the curvature of a domain at its own model; with `curvature: sum`, RegMean and MaTS are

    w_t = (sum_k F_k)^-1 sum_k F_k w_k,   the merge of all models together, since (sum_{k<t} F_k) w_{t-1} = sum_{k<t} F_k w_k.

All such runs share their fine-tunes with each other and with `separate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from asrcl.contract.method import Method, joined_state, parted_state
from asrcl.contract.protocols import Domain, Learner
from asrcl.contract.weights import Weights
from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge
from asrcl.merge.buffers import is_statistic
from asrcl.merge.path import STRAIGHT, check_path, damped
from asrcl.merge.registry import find_method
from asrcl.methods.carried import Carried
from asrcl.state import StateDict

MEANS: Final = ("average", "interpolate", "slerp", "karcher")
"""Merges that lie between two models, whatever these started from."""
COMMON: Final = ("task", "rest", "statistics", "layers", "budget")
"""Options of every merge (`asrcl.merge.MergeSpec`); what they are not is an option of the merge method."""


class Merged(Method):
    """A method whose every stage is merged with the weights before it.

    Args:
        inner: the method that learns a domain; it must go on from its own last weights.
        merge: the name of a merge method, or its options: `method`; `curvature`, of which earlier domains
            (`asrcl.methods.carried`) where the method uses one; `base`, from which updates are counted: the "previous" stage's
            weights, or the "initial" model's, so that what was merged so far is an update of its own (the default of
            methods that need several updates); `rounds`, how often a domain is learned and merged in its epochs, and `anchor`,
            whether a round is merged with what it started from ("round", the default) or with the weights before the "domain";
            `start`, what a domain is fine-tuned from, the "previous" weights (the default) or, by plain fine-tuning, the
            "initial" model (see the module);
            `path`, how less is taken where named domains are to be kept;
            `task`, `rest`, `statistics`, `layers`, `budget` of `asrcl.merge.MergeSpec`; and the options of the method itself.
            Where `statistics` is given they stay as merged; otherwise they are taken anew (`asrcl.adapt.statistics`).
            Methods that weigh the new domain too have its curvature estimated at the learned weights.

    Raises:
        InputError: an unknown merge method or option, or an inner method that starts every stage elsewhere or decodes domains
            with models of their own, so that there is nothing to merge.
    """

    def __init__(self, inner: Method, merge: str | Mapping[str, Any]) -> None:
        if not isinstance(merge, str | Mapping):
            raise InputError(f"method {inner.name}: merge={merge!r}: give the name of a merge method, or its options")
        options: dict[str, Any] = {"method": merge} if isinstance(merge, str) else dict(merge)
        if not inner.has_strength:
            raise InputError(f"method {inner.name}: has models per domain, or none that goes on, so merge= has nothing to merge")
        if "method" not in options:
            raise InputError(f"method {inner.name}: merge={options} names no method; asrcl methods lists them")
        kind = find_method(options.pop("method"))
        self._inner = inner
        self._carried = Carried(options.pop("curvature", "last"), "merge.curvature") if "blocks" in kind.context else None
        self._weighs_new = "new_blocks" in kind.context
        self.path = options.pop("path", STRAIGHT)
        self.base = options.pop("base", "initial" if kind.least > 1 else "previous")
        self.rounds = options.pop("rounds", 1)
        self.anchor = options.pop("anchor", "round")
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise InputError(f"merge.rounds={self.rounds}: a number of rounds, at least 1")
        if self.anchor not in ("round", "domain"):
            raise InputError(f"merge.anchor={self.anchor}: choose round or domain")
        if self.rounds > 1 and type(inner).learn is not Method.learn:
            raise InputError(f"method {inner.name}: learns a domain in a way of its own, so merge.rounds must be 1")
        if self.rounds > 1 and self.path != STRAIGHT:
            raise InputError(f"merge.path={self.path}: of one round; with merge.rounds above 1 less is taken on a straight line")
        self.start = options.pop("start", "previous")
        if self.start not in ("previous", "initial"):
            raise InputError(f"merge.start={self.start}: choose previous or initial")
        if self.start == "initial" and self.rounds > 1:
            raise InputError(f"merge.start=initial: every round goes on from the last one; leave out merge.rounds={self.rounds}")
        if self.start == "initial" and not inner.trains_plainly:
            raise InputError(f"merge.start=initial: method {inner.name} holds on to what it learned before; take ft")
        self._adds = self.start == "initial" and self.base == "previous" and not (self._weighs_new or kind.name in MEANS)
        self.counted_from = "previous" if self.start == "initial" else inner.counted_from
        self._round: Weights | None = None  # what the last round of the domain starts from
        self._apart: Weights | None = None  # the domain's model, where it started from the initial one
        self._of_new: Curvature | None = None  # of the new domain at the learned weights
        if self.base not in ("previous", "initial"):
            raise InputError(f"merge.base={self.base}: choose previous or initial")
        if self.base == "initial" and (not kind.several or self._weighs_new):
            raise InputError(f"merge.base=initial: merge method {kind.name} takes the update of one stage; leave base out")
        self.own_statistics = "statistics" in options
        self.averages = inner.averages
        common = {name: value for name, value in options.items() if name in COMMON}
        knobs = {name: value for name, value in options.items() if name not in COMMON}
        kind.check(knobs)
        check_path(self.path, kind.name, common.get("rest"), "merge.path")
        self._spec = MergeSpec(kind.name, knobs=knobs).changed(common)
        self._spec.options(1)
        self.name, self.role, self.kind = inner.name, "method", ""  # type: ignore[misc]
        self.label = f"{inner.label} + {kind.name}"

    @property
    def trains_plainly(self) -> bool:
        """As the inner method."""
        return self._inner.trains_plainly

    @property
    def has_strength(self) -> bool:
        """Not where the merge rests on every domain's model having been merged whole; the inner method was asked before."""
        return not (self.start == "initial" and self._weighs_new)

    def key(self) -> dict[str, Any]:
        """Fine-tunes are the inner method's."""
        return self._inner.key()

    def state_dict(self) -> StateDict:
        carried = {} if self._carried is None else self._carried.state_dict()
        return joined_state({"method": self._inner.state_dict(), "terms": carried})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        inner, terms = parted_state(self, state, "method", "terms")
        self._inner.load_state_dict(inner)
        if self._carried is not None:
            self._carried.load_state_dict(terms)

    def start_run(self, learner: Learner) -> None:
        self._inner.start_run(learner)
        if self._carried is not None:
            self._carried.terms = []

    def start_domain(self, learner: Learner, domain: Domain) -> None:
        self._inner.start_domain(learner, domain)
        self._of_new = None

    def learn(self, learner: Learner, domain: Domain, old: Weights) -> Weights | None:
        if self.start == "initial":
            learned = learner.fine_tune(learner.initial, domain, self._inner)
            # Of the heads that other domains have for themselves, the initial model knows nothing.
            self._apart = Weights({**learned.state, **{name: old[name] for name in learner.foreign(domain)}})
            return self._apart
        if self.rounds == 1:
            return self._inner.learn(learner, domain, old)
        if learner.epochs < self.rounds:
            epochs = f"{learner.epochs} epochs (train.adapt.epochs)"
            raise InputError(f"merge.rounds={self.rounds}: more than the {epochs} that they share")
        shares = [(learner.epochs + place) // self.rounds for place in range(self.rounds)]
        start = old
        for epochs in shares[:-1]:
            new = learner.fine_tune(start, domain, self._inner, epochs)
            merged = self._whole(learner, domain, self._anchor(old, start), new)
            start = Weights({**merged.state, **{name: new[name] for name in learner.private(domain)}})
        self._round = start
        return learner.fine_tune(start, domain, self._inner, shares[-1])

    def merge_domain(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        start = old if self.rounds == 1 else self._round
        assert start is not None, "a domain is learned before it is merged"
        return self._whole(learner, domain, self._anchor(old, start), new)

    def _anchor(self, old: Weights, start: Weights) -> Weights:
        """What a round is merged with: the weights before the domain, or those that the round started from."""
        return old if self.anchor == "domain" else start

    def _whole(self, learner: Learner, domain: Domain, old: Weights, new: Weights) -> Weights:
        """The merge of one round."""
        learned = Weights.of(self._inner.merge_domain(learner, domain, old, new))
        if self._adds:
            learned = _added(old, learned, learner.initial)
        return self._merged(learner, domain, old, learned, 1.0) if self._ready else learned

    def at_strength(
        self, learner: Learner, domain: Domain, old: Weights, new: Weights, merged: Weights, strength: float
    ) -> Weights:
        if self.path == STRAIGHT or not self._ready:
            return super().at_strength(learner, domain, old, new, merged, strength)
        learned = Weights.of(self._inner.merge_domain(learner, domain, old, new))
        return self._merged(learner, domain, old, _added(old, learned, learner.initial) if self._adds else learned, strength)

    @property
    def _ready(self) -> bool:
        """Whether there is all that the merge needs; before the first curvature there is nothing old to keep."""
        return self._carried is None or bool(self._carried.terms)

    def _merged(self, learner: Learner, domain: Domain, old: Weights, learned: Weights, damping: float) -> Weights:
        """The merge with its damping times a number; heads of other domains that this stage has not trained stay as they were."""
        spec = self._spec_for(learner, domain, learned)
        merged = merge(old.state, learned.state, spec if damping == 1 else damped(spec, damping))
        # Counted from the initial model, such a head has an update nevertheless: that of its own stage.
        idle = {name for name in learner.foreign(domain) if torch.equal(old[name], learned[name])}
        return Weights({**merged, **{name: old[name] for name in idle}})

    def _spec_for(self, learner: Learner, domain: Domain, learned: Weights) -> MergeSpec:
        given: dict[str, Any] = {"task": self._spec.task or learner.stage}
        if self.base == "initial":
            given["base"] = learner.initial.state
        if self._carried is not None:
            given["curvature"] = self._carried.terms
        if self._weighs_new:
            heads = learner.private(domain) | learner.foreign(domain)  # curvature of both sides has none of the others'
            given["curvature"] = [term.without(heads) for term in given["curvature"]]
            self._of_new = learner.estimate_curvature(learned, domain, "kron")
            given["new_curvature"] = self._of_new.without(heads)
        return self._spec.changed(given)

    def end_domain(self, learner: Learner, domain: Domain, old: Weights | None, new: Weights) -> Weights:
        end = Weights.of(self._inner.end_domain(learner, domain, old, new))
        if self._carried is not None:
            own = self._apart if old is not None and self._weighs_new else None
            self._carried.add(learner, domain, own or end, self._of_new if own else None)
        return end

    def kept_bytes(self, learner: Learner) -> int:
        own = 0 if self._carried is None else sum(value.nbytes for value in self._carried.state_dict().values())
        if "initial" in (self.base, self.start) and learner.weights is not learner.initial:
            own += sum(value.nbytes for value in learner.initial.values())
        return self._inner.kept_bytes(learner) + own

    def parameters(self, learner: Learner) -> int:
        return self._inner.parameters(learner)

    def write(self, folder: Path) -> None:
        self._inner.write(folder)


def _added(old: Weights, learned: Weights, initial: Weights) -> Weights:
    """The update since the initial model, added to the old weights; running statistics, which are no weights, as learned."""
    state = {
        name: old[name] + (value - initial[name]) if value.is_floating_point() and not is_statistic(name) else value
        for name, value in learned.items()
    }
    return Weights(state)
