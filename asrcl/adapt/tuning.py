"""Choosing the knobs of a method on the validation sets of the first adaptation, as the IHR paper does; then they are fixed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from asrcl.adapt.learner import DomainLearner
from asrcl.adapt.loop import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method

logger = logging.getLogger(__name__)


def grid(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations: {"tau": [1, 2], "damping": [1]} gives two settings."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def tune(
    learner: DomainLearner, name: str, options: dict[str, Any], choices: Mapping[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Dev error rates after the first adaptation, for every combination of knobs.

    Args:
        learner: scenario (two domains at least), cache, settings.
        name: of the method.
        options: its fixed options.
        choices: values to try for each knob; they override `options`.

    Returns:
        One row per setting, best first: the knobs, `old` and `new` (dev error rates in percent on the first and the second
        domain), and their mean, `average`.

    Raises:
        InputError: a scenario of one domain.
    """
    if len(learner.scenario.domains) < 2:
        raise InputError(f"scenario {learner.scenario.name}: tuning needs a second domain")
    rows = []
    for knobs in grid(choices):
        method = build_method(name, **{**options, **knobs})
        *_, after = run_stages(learner, method, "dev", count=2)
        old, new = (errors.rate for errors in after.errors if errors is not None)
        rows.append({**knobs, "old": old, "new": new, "average": (old + new) / 2})
        logger.info("%s %s: old %.2f, new %.2f, average %.2f", name, knobs, old, new, (old + new) / 2)
    return sorted(rows, key=lambda row: row["average"])
