"""Options from the configuration, held against the parameters of the function or class that takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from asrcl.exceptions import InputError
from asrcl.experiment.config import misfit


def check_options(
    taker: Callable[..., Any], given: Mapping[str, Any], where: str, own: Collection[str] = (), more: Collection[str] = ()
) -> None:
    """Refuse options that a function or a class does not have, lacks, or has of another type.

    Args:
        taker: its parameters are the options; what they are annotated with is their type.
        given: the options of the configuration.
        where: what to name in messages.
        own: parameters that are no options.
        more: options that something else takes, for messages.

    Raises:
        InputError: names the option and those there are.
    """
    parameters = {name: item for name, item in inspect.signature(taker).parameters.items() if name not in own}
    known = ", ".join((*parameters, *more))
    if unknown := set(given) - set(parameters):
        raise InputError(f"{where}: unknown option {', '.join(sorted(map(str, unknown)))}; known are {known}")
    if lacking := [name for name, item in parameters.items() if item.default is item.empty and name not in given]:
        raise InputError(f"{where}: lacks {', '.join(lacking)}; its options are {known}")
    annotated: Any = taker
    try:
        hints = get_type_hints(annotated.__init__ if isinstance(taker, type) else annotated)
    except NameError:  # a plugin that imports its types for the type checker alone
        return
    for name, value in given.items():
        if name in hints and (wrong := misfit(value, hints[name])):
            raise InputError(f"{where}: {name}={value}: expected {wrong}")
