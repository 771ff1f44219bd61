"""Which parameters a fine-tune moves, and how fast: the options `freeze` and `layer_rates` of `asrcl.adapt.training.TrainConfig`.

Learning rates that differ between layers are the discriminative fine-tuning of Howard and Ruder (ULMFiT, ACL 2018, arXiv
1801.06146, section 3.2; there every layer has the rate of the one above divided by 2.6). Patterns are of names in the plain
model; what a method adds to a weight (low-rank factors, gates) goes with the weight.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

from asrcl.exceptions import InputError
from asrcl.methods.frozen import statistics_held

NAMED: Final = 4
_ADDED: Final = re.compile(r"(^|\.)parametrizations\.(\w+)\..*")


def pairs_of(rates: Sequence[str]) -> list[tuple[str, float]]:
    """The patterns and factors of texts `PATTERN=FACTOR`.

    Raises:
        InputError: a text of another form, or a factor that is negative or not finite.
    """
    pairs = []
    for text in rates:
        pattern, sign, factor = text.rpartition("=")
        try:
            value = float(factor)
        except ValueError:
            value = math.nan
        if not pattern or not sign or not 0 <= value < math.inf:
            raise InputError(f"train.layer_rates={text}: write PATTERN=FACTOR, the factor finite and not negative; 0 freezes")
        pairs.append((pattern, value))
    return pairs


def factor_of(name: str, rates: Sequence[tuple[str, float]]) -> float:
    """What the learning rate of a parameter, by its name in a plain or wrapped model, is multiplied by.

    The first pattern that matches decides; without one it is 1.
    """
    plain = _ADDED.sub(r"\1\2", name)
    return next((factor for pattern, factor in rates if fnmatch.fnmatchcase(plain, pattern)), 1.0)


@contextmanager
def frozen_parts(model: nn.Module, freeze: Sequence[str], rates: Sequence[str] = ()) -> Iterator[None]:
    """Within the block, parameters whose names match a pattern of `freeze`, or whose factor is 0, are not trained.

    The statistics of a batch normalisation all of whose parameters are held are held, too.

    Args:
        model: a plain one.
        freeze: patterns of names.
        rates: texts `PATTERN=FACTOR`.

    Raises:
        InputError: a pattern that matches no parameter, or patterns that leave nothing to train.
    """
    parameters, pairs = dict(model.named_parameters()), pairs_of(rates)
    for option, patterns in (("freeze", freeze), ("layer_rates", [pattern for pattern, _ in pairs])):
        for pattern in patterns:
            if not fnmatch.filter(parameters, pattern):
                some = ", ".join(list(parameters)[:NAMED])
                raise InputError(f"train.{option}={pattern}: matches no parameter; their names are like {some}")
    still = {name for pattern in freeze for name in fnmatch.filter(parameters, pattern)}
    still |= {name for name in parameters if factor_of(name, pairs) == 0}
    held = {name for name in still if parameters[name].requires_grad}
    if held and not any(value.requires_grad and name not in held for name, value in parameters.items()):
        option, value = ("freeze", freeze) if freeze else ("layer_rates", rates)
        raise InputError(f"train.{option}={', '.join(value)}: leaves nothing to train; leave a pattern out")
    for name in held:
        parameters[name].requires_grad_(False)
    hooks = statistics_held(model, parameters.keys() - still) if held else []
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name in held:
            parameters[name].requires_grad_(True)


def parameter_groups(model: nn.Module, freeze: Sequence[str], rates: Sequence[str]) -> list[dict[str, Any]]:
    """Groups for an optimiser, one for each factor (`factor`), of the parameters that are trained.

    Args:
        model: as a method wants it trained; what it added to a frozen weight is left out.
        freeze: patterns of names.
        rates: texts `PATTERN=FACTOR`.

    Raises:
        InputError: there is nothing to train.
    """
    pairs = [*((pattern, 0.0) for pattern in freeze), *pairs_of(rates)]
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and (factor := factor_of(name, pairs)):
            groups.setdefault(factor, []).append(parameter)
    if not groups:
        raise InputError("train.freeze, train.layer_rates and the method together leave nothing to train; train a part more")
    return [{"params": members, "factor": factor} for factor, members in groups.items()]
