"""Benchmarks by name: what a scenario is made of (speech, images, ...) behind one protocol, imported only when it is asked for.

A scenario names its benchmark (`scenario.benchmark`, by default speech). A benchmark of your own is a class in a module that
`imports` names:

    @register_benchmark("images")
    class ImageBenchmark: ...
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from asrcl.exceptions import InputError

if TYPE_CHECKING:
    from asrcl.adapt import Scenario
    from asrcl.experiment.config import Config

_Class = TypeVar("_Class", bound=type[Any])
_Kind = TypeVar("_Kind")

SPEECH = "speech"


class Registry(Generic[_Kind]):
    """Classes by name, those that come with asrcl and those that plugins add.

    Args:
        setting: the setting of the configuration that chooses one, for messages.
        built_in: name -> "module:Class"; the module is imported when the name is asked for.
    """

    def __init__(self, setting: str, built_in: Mapping[str, str] | None = None) -> None:
        self.setting = setting
        self._built_in = dict(built_in or {})
        self._registered: dict[str, type[_Kind]] = {}

    @property
    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._built_in, *self._registered})

    def register(self, name: str) -> Callable[[_Class], _Class]:
        """Class decorator: make a class available under `name`.

        Raises:
            InputError: another class has that name.
        """

        def add(added: _Class) -> _Class:
            place = f"{added.__module__}:{added.__qualname__}"
            known = self._registered.get(name)
            taken = self._built_in.get(name) or (f"{known.__module__}:{known.__qualname__}" if known else place)
            if taken != place:
                raise InputError(f"{self.setting}={name}: {taken} is registered under this name; choose another for {place}")
            self._registered[name] = added
            return added

        return add

    def get(self, name: Any) -> type[_Kind]:
        """The class with this name.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        if name not in self.names:
            known = ", ".join(self.names)
            raise InputError(f"{self.setting}={name}: unknown; choose from {known}, or name its module under imports")
        if name not in self._registered:
            module, _, attribute = self._built_in[name].partition(":")
            self._registered[name] = getattr(importlib.import_module(module), attribute)
        return self._registered[name]


class Benchmark(Protocol):
    """A family of scenarios; built without arguments.

    Attributes:
        stages: what `prepare` does, in order, e.g. ("data", "tokens"); may be empty.
        needs: names of settings that it uses as they are -> their types, e.g. {"train.max_items": int}; checked when the
            configuration is composed.
    """

    stages: tuple[str, ...]
    needs: Mapping[str, Any]

    def checked(self, scenario: dict[str, Any]) -> dict[str, Any]:
        """The scenario of the configuration, with what it leaves out filled in.

        Args:
            scenario: its name, and its domains and probes as lists of entries with names, are checked already.

        Raises:
            InputError: an entry is not of the form that this benchmark needs.
        """
        ...

    def prepare(self, config: Config, stage: str, only: Iterable[str] | None = None) -> None:
        """Do one of `stages`, for all domains and probes or for some; what is done already is left alone.

        Raises:
            InputError: the data cannot be used.
        """
        ...

    def scenario(self, config: Config, seed: int | None = None) -> Scenario:
        """Domains, task and model; the initial weights are left out, the experiment fills them in.

        Args:
            config: the experiment.
            seed: of the run; None where what is asked for does not belong to one.

        Raises:
            InputError: an earlier stage has not run.
        """
        ...

    def train_initial(self, config: Config, seed: int) -> None:
        """Write the initial model of a seed to `asrcl.experiment.initial.initial_path`; `train_first` there trains one.

        Raises:
            InputError: an earlier stage has not run.
        """
        ...


_BUILT_IN = {"images": "asrcl.images.benchmark:ImageBenchmark", SPEECH: "asrcl.speech.benchmark:SpeechBenchmark"}
BENCHMARKS: Registry[Benchmark] = Registry("scenario.benchmark", _BUILT_IN)
register_benchmark = BENCHMARKS.register


def benchmark_of(tree: Mapping[str, Any]) -> Benchmark:
    """The benchmark of a configuration's tree.

    Raises:
        InputError: an unknown one.
    """
    return BENCHMARKS.get(tree["scenario"].get("benchmark", SPEECH))()


def import_plugins(modules: Iterable[Any]) -> None:
    """Import the modules listed under `imports`, which may register methods, models and benchmarks of the user's own.

    Raises:
        InputError: a module that cannot be imported.
    """
    for module in modules:
        if module not in sys.modules:
            try:
                importlib.import_module(str(module))
            except ImportError as error:
                raise InputError(f"imports: cannot import {module} ({error}); is it on PYTHONPATH?") from error
