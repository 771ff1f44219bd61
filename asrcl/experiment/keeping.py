"""What a configuration wants to be kept (`keep` and what begins so), and the baselines of a model."""

from __future__ import annotations

from collections.abc import Sequence

from asrcl.adapt import Domain, DomainLearner, Keep, Weights
from asrcl.adapt.baselines import SPLITS, BaselineCard
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.experiment.registry import benchmark_of
from asrcl.keep import read_budgets


def keep_of(config: Config) -> Keep | None:
    """What a run of a configuration keeps; None where `keep` is not set.

    Raises:
        InputError: a budget of another form, one that cannot be met or means nothing, or a card that cannot be read.
    """
    if not config.tree["keep"]:
        return None
    card = config.tree["keep_card"]
    found = BaselineCard.load(card).dev if card else None
    budgets = read_budgets(config.tree["keep"])
    tree = config.tree
    keep = Keep(budgets, tree["keep_confidence"], found, str(card), tree["keep_after"], tree["keep_written"])
    scenario = config.tree["scenario"]
    domains, probes = ([entry["name"] for entry in scenario[group]] for group in ("domains", "probes"))
    keep.check_names(domains, probes, {*probes, *([] if scenario.get("learn_first") else domains[:1])})
    return keep


def check_kept_data(config: Config) -> None:
    """Refuse a domain to be kept that has no dev set, before anything is trained; the data must be prepared.

    Raises:
        InputError: as `keep_of`, or such a domain.
    """
    if keep := keep_of(config):
        keep.check_data(benchmark_of(config.tree).scenario(config))


def measure_baselines(learner: DomainLearner, weights: Weights, model: str, only: Sequence[str] = ()) -> BaselineCard:
    """Error rates of a model on the dev and test sets of all domains and probes, or of some.

    Args:
        learner: does the work, and keeps it in its cache.
        weights: of the model.
        model: what the card calls it.
        only: names; empty for all.

    Raises:
        InputError: an unknown name, or nothing to measure.
    """
    scenario = learner.scenario
    found: dict[str, Domain] = {domain.name: domain for domain in [*scenario.domains, *scenario.probes]}
    if unknown := sorted(set(only) - set(found)):
        raise InputError(f"--domains {unknown[0]}: no domain or probe of this scenario; it has {', '.join(found)}")
    chosen = [domain for name, domain in found.items() if not only or name in only]
    errors = {d.name: {split: learner.evaluate(weights, d, split) for split in SPLITS if d.size(split)} for d in chosen}
    return BaselineCard(model, weights.hash, scenario.name, errors)

