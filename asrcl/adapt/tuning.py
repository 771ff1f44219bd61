"""Choosing hyper-parameters on validation sets: settings drawn from a stated space, each scored after one or all adaptations."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from asrcl.adapt.learner import DomainLearner
from asrcl.adapt.loop import measured_by, run_stages
from asrcl.contract.method import Method
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.search import grid

logger = logging.getLogger(__name__)


def draw(choices: Mapping[str, Sequence[Any]], count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`count` different settings from a space, or all of it where it has no more.

    They are points of a scrambled Halton sequence (`scipy.stats.qmc`), so that few settings still spread over every option, and
    options that several spaces begin with have the same values in all of them. The same arguments give the same list, and a
    longer list begins with the shorter one as long as it is not the whole space.

    Args:
        choices: the values of every option, all equally likely.
        count: how many settings.
        seed: of the scrambling.

    Raises:
        InputError: an option without values, or a count below 1.
    """
    from scipy.stats import qmc

    if empty := [name for name, values in choices.items() if not values]:
        raise InputError(f"search space: no values for {', '.join(empty)}")
    if count < 1:
        raise InputError(f"search: {count} settings; ask for at least one")
    if math.prod(len(values) for values in choices.values()) <= count:
        return grid(choices)
    sequence, sizes = qmc.Halton(len(choices), seed=seed), np.array([len(values) for values in choices.values()])
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(int(index) for index in (sequence.random(1)[0] * sizes).astype(int))] = None
    return [{name: choices[name][i] for name, i in zip(choices, point, strict=True)} for point in found]


def check_learning() -> None:
    """Make sure that `learn_where` has what it needs.

    Raises:
        InputError: optuna is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError("search.sampler=tpe needs optuna: pip install 'asrcl[tune]', or take search.sampler=halton") from error


def learn_where(
    choices: Mapping[str, Sequence[Any]], count: int, score: Callable[[dict[str, Any]], tuple[float, float] | None], seed: int = 0
) -> None:
    """Score `count` different settings of a space, each chosen after those before it: optuna's tree-structured Parzen estimator.

    The first half are the first points of `draw`, the same ones for every method whose space begins alike. From then on settings
    are likelier where the better ones lay. Numbers in order are taken as a scale, other values as categories.

    Args:
        choices: the values of every option.
        count: how many settings; no more than the space has.
        score: what a setting comes to, lower is better, and how far it is beyond a limit, 0 or less where it is within: of two
            settings beyond it, the nearer is better. None where its training diverged.
        seed: of the draws and of the estimator.

    Raises:
        InputError: optuna is not installed, an option without values, or a count below 1.

    Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, NeurIPS 2011; optuna's `TPESampler`.
    """
    check_learning()
    import optuna

    spread = draw(choices, count, seed)
    first = math.ceil(len(spread) / 2)
    axes = {name: _axis(values) for name, values in choices.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=first))
    for setting in spread[:first]:
        study.enqueue_trial({name: choices[name].index(value) for name, value in setting.items()})
    tried: dict[tuple[int, ...], tuple[float, float]] = {}
    repeated = 0
    while len(tried) < len(spread):
        trial = study.ask(axes)
        place = tuple(trial.params[name] for name in choices)
        if place in tried:
            repeated += 1
        else:
            repeated = 0
            found = score({name: choices[name][index] for name, index in zip(choices, place, strict=True)})
            tried[place] = _DIVERGED if found is None else found
        value, beyond = tried[place]
        trial.set_constraint("limit", beyond)
        study.tell(trial, value)
        if repeated > _PATIENCE:  # it insists on what it knows: give it what is left of the draws
            left = next(s for s in spread if tuple(choices[name].index(s[name]) for name in choices) not in tried)
            study.enqueue_trial({name: choices[name].index(value) for name, value in left.items()})


_DIVERGED = (math.inf, 1e9)
_PATIENCE = 10
"""How often in a row `learn_where` lets itself be told a setting that it has tried."""


def _axis(values: Sequence[Any]) -> Any:
    """The positions of an option's values for optuna: a scale where they are numbers in order, else categories."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    ordered = len(numbers) == len(values) and (numbers == sorted(numbers) or numbers == sorted(numbers, reverse=True))
    return IntDistribution(0, len(values) - 1) if ordered else CategoricalDistribution(range(len(values)))


def dev_rates(learner: DomainLearner, method: Method, domains: int | None = 2) -> dict[str, float]:
    """Dev error rates, in percent, after adapting to the second domain, or to the first `domains` (None: to all).

    Returns:
        `old`, the mean over all domains but the last one learned; `new`, of that one; `average`, the mean over all; `rise`, what
        the first domain's rate has risen by since it was learned.

    Raises:
        InputError: a scenario of one domain.
    """
    if len(learner.scenario.domains) < 2:
        raise InputError(f"scenario {learner.scenario.name}: tuning needs a second domain")
    seen, before = learner.scenario.domains[:domains], math.nan
    for number, _ in enumerate(run_stages(learner, method, None, count=domains)):
        if number == 0:
            before = measured_by(learner, method, seen[0], "dev").rate
    rates = [measured_by(learner, method, domain, "dev").rate for domain in seen]
    average = float(np.mean(rates))
    return {"old": float(np.mean(rates[:-1])), "new": rates[-1], "average": average, "rise": rates[0] - before}


def tune(
    learner: DomainLearner, name: str, options: dict[str, Any], choices: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Dev error rates after the first adaptation, for every combination of options of a method.

    Args:
        learner: scenario (two domains at least), cache, settings.
        name: of the method.
        options: its fixed options.
        choices: values to try for each option; they override `options`.

    Returns:
        One row per setting, best first: the options, and the rates of `dev_rates`.

    Raises:
        InputError: a scenario of one domain, an unknown method or option.
    """
    rows = []
    for setting in grid(choices):
        rates = dev_rates(learner, build_method(name, **{**options, **setting}))
        rows.append({**setting, **rates})
        logger.info("%s %s: old %.2f, new %.2f, average %.2f, rise %+.2f", name, setting, *rates.values())
    return sorted(rows, key=lambda row: row["average"])
