"""The user's configuration: Hydra groups composed into one tree, and the typed settings read from it.

A scenario of your own is a YAML file in a folder of your own, `my_conf/scenario/mine.yaml`, found by naming that folder:

    asrcl prepare config_dir=my_conf scenario=mine

Such a folder may hold files of any group (scenario, model, train, ...), under names that `conf/` does not use. A scenario
has a `name` and a list `domains`, each with a `name` and a `corpus` (its `kind` and the options of that loader), and may set
`features`, `text` and `tokens`; `defaults: [accents, _self_]` takes over from a shipped one what the file leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from asrcl.exceptions import InputError

_Settings = TypeVar("_Settings")


def config_folder() -> Path:
    """The folder of configuration groups: `conf/` of a checkout, or the one shipped in the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"{package}: found no conf/config.yaml beside or inside the package; install asrcl again")


@dataclass(frozen=True)
class Config:
    """A composed configuration.

    Attributes:
        tree: everything, resolved, as plain dicts and lists.
        overrides: what the user changed, as typed.
    """

    tree: dict[str, Any]
    overrides: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """Output folder of the scenario: `<exp>/<scenario name>`."""
        return Path(self.tree["exp"]) / self.tree["scenario"]["name"]

    @property
    def device(self) -> str:
        """The device to compute on; "auto" takes a GPU when there is one."""
        wanted = str(self.tree["device"])
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("device=cuda: no GPU here; use device=cpu or device=auto")
        return wanted

    def settings(self, kind: type[_Settings], *path: str) -> _Settings:
        """A typed settings object from the subtree at `path`.

        Raises:
            InputError: unknown keys, or values of another type or choice than `kind` declares.
        """
        values: Any = self.tree
        for key in path:
            values = values[key]
        name = ".".join(path)
        if not isinstance(values, dict):
            raise InputError(f"{name}={values}: expected settings, not a value; see the folder {config_folder()}")
        known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        if unknown := set(values) - known:
            raise InputError(f"{name}: unknown settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        hints = get_type_hints(kind)
        for key, value in values.items():
            if not _fits(value, hints[key]):
                raise InputError(f"{name}.{key}={value}: expected {_describe(hints[key])}")
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value from YAML may stand for a field with this type hint."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, arguments))
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    return {int: "a whole number", float: "a number", str: "text", type(None): "null"}.get(hint, hint.__name__)


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/config.yaml` with Hydra overrides such as `scenario=real_speech` or `train.adapt.epochs=8`.

    Of several overrides of one setting the last counts. `config_dir=FOLDER` adds a folder of own files (see the module).

    Raises:
        InputError: an override that does not fit, an interpolation that cannot be resolved, a scenario that lacks something.
    """
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise InputError(f"{override}: not an override; write group=choice or some.setting=value")
    chosen = {override.partition("=")[0]: override for override in overrides}
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            tree = compose("config", overrides=_search(chosen))
        assert isinstance(tree, DictConfig)
        plain = OmegaConf.to_container(tree, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split()).partition(" Config search path:")[0]
        typed = f" ({' '.join(overrides)[:100]})" if overrides else ""
        raise InputError(f"configuration{typed}: {reason[:300]}; {config_folder()} has what can be set") from error
    assert isinstance(plain, dict)
    _check_scenario(plain.get("scenario"))
    plain["scenario"] = {"features": {}, "text": {}, "tokens": {}, **plain["scenario"]}
    return Config({str(key): value for key, value in plain.items()}, tuple(overrides))


def _search(chosen: dict[str, str]) -> list[str]:
    """The overrides for Hydra, with the user's own folder on its search path."""
    own = chosen.pop("config_dir", None)
    if own is None:
        return list(chosen.values())
    folder = Path(own.partition("=")[2]).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{own}: no such folder; name the one that holds scenario/NAME.yaml")
    return [*chosen.values(), f"hydra.searchpath=['file://{folder}']"]


def _check_scenario(scenario: Any) -> None:
    if not isinstance(scenario, dict) or not scenario.get("name") or not scenario.get("domains"):
        raise InputError("scenario: lacks a name or its domains; see conf/scenario for examples")
    if not isinstance(scenario["domains"], list):
        raise InputError("scenario.domains: not a list; write one '- {name: ..., corpus: {kind: ...}}' for each domain")
    for number, domain in enumerate(scenario["domains"], 1):
        named = isinstance(domain, dict) and domain.get("name")
        corpus = domain.get("corpus") if named else None
        parts = corpus if isinstance(corpus, list) else [corpus]
        if not named or not all(isinstance(part, dict) and part.get("kind") for part in parts):
            raise InputError(f"scenario.domains: entry {number} needs a name and a corpus with a kind, e.g. {{kind: kaldi}}")
