"""What a run is to keep: budgets for named domains, and what their error rates count from (docs/keep.md).

A probe, and the first domain where the initial model stands for it, count from the error rate that the initial model has on the
dev set, or from that of a card (`asrcl check`). A domain that a stage learns counts from the next stage on, against the rate
that its own stage ended with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from asrcl.adapt.scenario import Scenario
from asrcl.contract.protocols import Domain
from asrcl.exceptions import InputError
from asrcl.keep import Budget, Reading
from asrcl.scoring import Errors, as_written

DEV = "dev"
"""The split that strengths are chosen on: what reports show is the test set."""


@dataclass(frozen=True)
class Keep:
    """The domains that a run keeps.

    Attributes:
        budgets: how far the error rate of each may rise.
        confident: whether the upper end of the 95 % interval of the rise (paired bootstrap over speakers) must be within the
            budget, in place of the rise itself.
        card: errors of another model on dev sets by domain, which the budgets count from in place of the initial model's; or
            None.
        card_file: where they are from, for messages.
        after: number of stages before anything is kept; with 1 or more, all that is known by then counts from what the last of
            them ended with, in place of the initial model.
        written: whether errors are those of texts as they are written, case and punctuation included, in place of those of
            normalised texts.
    """

    budgets: tuple[Budget, ...]
    confident: bool = False
    card: Mapping[str, Errors] | None = None
    card_file: str = "the card"
    after: int = 0
    written: bool = False

    @staticmethod
    def known(scenario: Scenario) -> set[str]:
        """Names of what the initial model stands for: probes, and the first domain where no stage learns it."""
        return {domain.name for domain in [*scenario.probes, *([] if scenario.learn_first else scenario.domains[:1])]}

    def check(self, scenario: Scenario) -> None:
        """Refuse what can be seen without a model: what `check_names` and `check_data` refuse."""
        names = [domain.name for domain in scenario.domains]
        self.check_names(names, [probe.name for probe in scenario.probes], self.known(scenario))
        self.check_data(scenario)

    def check_data(self, scenario: Scenario) -> None:
        """Refuse domains without a dev set.

        Raises:
            InputError: names the domain, and what to do.
        """
        for budget in self.budgets:
            if not domain_of(scenario, budget.domain).size(DEV):
                raise InputError(
                    f"keep: {budget.domain} has no dev set to choose strengths on, and its test set is for results; give its "
                    "corpus a dev part (split: dev, or sizes: {dev: ...})"
                )

    def check_names(self, domains: Sequence[str], probes: Sequence[str], known: Set[str]) -> None:
        """Refuse budgets that cannot be met or mean nothing.

        Args:
            domains: names in the order of learning.
            probes: names.
            known: those of them that the initial model stands for.

        Raises:
            InputError: an unknown domain, the last one, an improvement that nothing can bring, or a domain that the card lacks;
                no stage left to keep anything in.
        """
        if not 0 <= self.after < len(domains) or (self.after and self.card is not None):
            wanted = f"a number of stages from 0 to {len(domains) - 1}, and 0 with a card (keep_card)"
            raise InputError(f"keep_after={self.after}: give {wanted}")
        for budget in self.budgets:
            name = budget.domain
            if name not in (*domains, *probes):
                raise InputError(f"keep: {name} is no domain or probe of this scenario; it has {', '.join([*domains, *probes])}")
            if name == domains[-1] and name not in known:
                raise InputError(
                    f"keep: {name} is learned last, and no stage after it could change it; leave it out, or name one of "
                    f"{', '.join([*domains[:-1], *probes])}"
                )
            if budget.amount < 0 and (name not in known or self.card is None):
                raise InputError(
                    f"keep: {budget} asks for better than the old weights, which are what is left at strength 0; write a "
                    "budget of 0 or more, or count from another model (keep_card=FILE, of asrcl check)"
                )
            if self.card is not None and name in known and name not in self.card:
                listed = ", ".join(self.card) or "none"
                what = f"has no dev set of {name}, which keep names; it has {listed}"
                raise InputError(f"{self.card_file}: {what}; run asrcl check again")


def domain_of(scenario: Scenario, name: str) -> Domain:
    """A domain or probe by name."""
    return next(domain for domain in [*scenario.domains, *scenario.probes] if domain.name == name)


def counted(errors: Errors, written: bool, name: str) -> Errors:
    """Errors as budgets count them (`Keep.written`).

    Raises:
        InputError: texts as written are asked for where none are kept.
    """
    if not written:
        return errors
    if errors.scoring is None:
        why = "counts errors of its texts as they come, so there are no others"
        raise InputError(f"keep_written: {name} {why}; set keep_written=false, or scenario.scoring.normaliser")
    return as_written(errors)


def compared(errors: Errors, baseline: Errors) -> Reading:
    """An error rate with the 95 % interval of its rise above a baseline: both are resampled together, by speaker.

    The ends are None where there is a single speaker, or the rate of a resample is not finite.

    Raises:
        InputError: the two do not hold the same items.
    """
    from asrcl.scoring.significance.bootstrap import paired_bootstrap  # here: a run that keeps nothing needs no scipy

    interval = paired_bootstrap(errors, baseline)
    ends = [end if end - end == 0 else None for end in (interval.low, interval.high)]
    return Reading(errors.rate, *ends)
