"""The search of a run for how much of every stage may be taken, so that named domains are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from asrcl.adapt.keeping import DEV, Keep, compared, counted, domain_of
from asrcl.adapt.learner import DomainLearner
from asrcl.adapt.statistics import refreshed
from asrcl.contract.method import Method
from asrcl.contract.protocols import Domain
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.keep import Budget, Reading, check_baselines, exceeded, search
from asrcl.scoring import Errors

logger = logging.getLogger(__name__)

LEFT_OUT = "its domains have models of their own, or a stage does not go on from the one before"


class Keeper:
    """Chooses the strength of every stage of one run (docs/keep.md).

    Args:
        learner: of the run; has evaluated what the budgets count from when this is made.
        method: of the run.
        keep: what is to be kept.

    Raises:
        InputError: a budget that cannot be met or means nothing, or that not even the initial model meets.
    """

    def __init__(self, learner: DomainLearner, method: Method, keep: Keep) -> None:
        self._learner, self._method, self._keep = learner, method, keep
        self._baselines: dict[str, Errors] = {}
        keep.check(learner.scenario)
        if not method.has_strength:
            logger.warning("%s: keep is left out, since %s", learner.label or method.name, LEFT_OUT)
            return
        self._known = keep.known(learner.scenario)
        for budget in keep.budgets:
            if budget.domain in self._known and not keep.after:
                self._start(domain_of(learner.scenario, budget.domain))

    def _start(self, domain: Domain) -> None:
        """Take the baseline of a domain that the initial model knows, and see whether that model is within the budget."""
        keep, initial = self._keep, self._measured(self._learner.initial, domain)
        baseline = initial if keep.card is None else counted(keep.card[domain.name], keep.written, domain.name)
        if _contents(baseline) != _contents(initial):
            what = f"its dev set of {domain.name} is not that of this run"
            raise InputError(f"{keep.card_file}: {what}; run asrcl check with this data")
        self._take(domain.name, baseline)
        for budget in exceeded(*self._named({domain.name: initial}), keep.confident):
            raise InputError(
                f"keep: {budget} is not met by the initial model: {initial.rate:.2f} % on dev, the baseline is "
                f"{baseline.rate:.2f} % ({keep.card_file}); allow more, or start from another model"
            )

    def _measured(self, weights: Weights, domain: Domain) -> Errors:
        return counted(self._learner.evaluate(weights, domain, DEV, cost="keep"), self._keep.written, domain.name)

    def _take(self, name: str, baseline: Errors) -> None:
        check_baselines({name: baseline.rate}, "keep")
        if self._keep.confident and compared(baseline, baseline).high is None:
            why = f"{name} has a single speaker on dev, and so no interval"
            raise InputError(f"keep_confidence: {why}; set keep_confidence=false")
        self._baselines[name] = baseline

    def _named(self, measured: Mapping[str, Errors]) -> tuple[list[Budget], dict[str, float], dict[str, Reading]]:
        """Budgets, baselines and readings of some domains."""
        budgets = [budget for budget in self._keep.budgets if budget.domain in measured]
        readings = {name: compared(errors, self._baselines[name]) for name, errors in measured.items()}
        return budgets, {name: self._baselines[name].rate for name in measured}, readings

    def settled(self, domain: Domain, old: Weights, new: Weights, merged: Weights) -> Weights:
        """The weights that a stage ends with: the most of `merged` that keeps every domain that was known before; recorded.

        Args:
            domain: that was learned.
            old: weights before learning.
            new: after it.
            merged: what the method made of both, heads settled.
        """
        if not self._method.has_strength:
            self._learner.record["keep"] = {"left_out": LEFT_OUT}
        if not self._baselines:
            return merged
        learner, weights = self._learner, self._path(domain, old, new, merged)

        def measure(strength: float) -> dict[str, Reading]:
            at = weights(strength)
            return self._named({name: self._measured(at, domain_of(learner.scenario, name)) for name in self._baselines})[2]

        budgets = [budget for budget in self._keep.budgets if budget.domain in self._baselines]
        rates = {name: errors.rate for name, errors in self._baselines.items()}
        trade = search(budgets, rates, measure, self._keep.confident)
        end = weights(trade.strength)
        texts = {"texts": "written"} if self._keep.written else {}
        learner.record["keep"] = {**trade.as_json(), **texts, **self._gain(domain, merged, end)}
        logger.info("%s: strength %g of the update keeps %s", domain.name, trade.strength, ", ".join(map(str, budgets)))
        return end

    def _path(self, domain: Domain, old: Weights, new: Weights, merged: Weights) -> Callable[[float], Weights]:
        """Gives the weights at a strength; at the ends, the very ones that are given."""
        learner = self._learner

        def weights(strength: float) -> Weights:
            if strength == 1.0:
                return merged
            at = old if strength == 0.0 else self._method.at_strength(learner, domain, old, new, merged, strength)
            at = learner.settled(domain, new, Weights.of(at))
            return at if self._method.own_statistics else refreshed(learner, domain, old, new, at, self._method.averages)

        return weights

    def _gain(self, domain: Domain, merged: Weights, end: Weights) -> dict[str, Any]:
        """What the stage is for, beside what it costs: error rates of the learned domain as they are scored."""
        if not domain.size(DEV):
            return {}
        whole, taken = (self._learner.evaluate(weights, domain, DEV, cost="keep").rate for weights in (merged, end))
        return {"learned": {"domain": domain.name, "whole": whole, "taken": taken}}

    def ended(self, domain: Domain, given: Weights, end: Weights) -> None:
        """Look at what a stage ended with: it must be what `settled` gave; what is known now, and was not, counts from it.

        Raises:
            InputError: the method changed the weights after they were chosen.
        """
        if not self._method.has_strength:
            return
        if end is not given and end.hash != given.hash:
            raise InputError(
                f"method {self._method.name}: its end_domain changes the weights after they were chosen (keep); merge in "
                "merge_domain"
            )
        self._known |= {domain.name}
        if self._learner.stage >= self._keep.after and not self._learner.last:
            for budget in self._keep.budgets:
                if budget.domain in self._known and budget.domain not in self._baselines:
                    self._take(budget.domain, self._measured(end, domain_of(self._learner.scenario, budget.domain)))


def _contents(errors: Errors) -> list[tuple[str, int]]:
    """The items of a set, whatever a model makes of them."""
    return sorted((item.id, item.length) for item in errors.items)
