"""The user's configuration: Hydra groups composed into one tree, and the typed settings read from it.

A scenario of your own is a YAML file in a folder of your own, `my_conf/scenario/mine.yaml`, found by naming that folder:

    asrcl prepare config_dir=my_conf scenario=mine

Such a folder may hold files of any group (scenario, model, train, ...), under names that `conf/` does not use. A scenario
has a `name` and a list `domains`, each with a `name` and a `corpus` (its `kind` and the options of that loader), and may set
`features`, `text` and `tokens`; `probes`, domains that are scored after every stage and never trained on; and `initial`, where
the first model comes from (see `asrcl.speech.initial`). `defaults: [accents_topics, _self_]` takes over from a shipped one what
the file leaves out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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

    @property
    def typed(self) -> set[str]:
        """Names of the settings and groups that the user has set by an override."""
        return {override.partition("=")[0].lstrip("+~") for override in self.overrides}

    def typed_over(self, changes: Mapping[str, Any]) -> list[str]:
        """Names of the changes that `changed(..., keep_typed=True)` leaves out, the user having set them or their group."""
        names = [".".join(path) for path, _ in _leaves(changes)]
        return [name for name in names if any(name == typed or name.startswith(f"{typed}.") for typed in self.typed)]

    def changed(self, changes: Mapping[str, Any], where: str = "", *, keep_typed: bool = False) -> Config:
        """The same with some settings of the tree replaced, which must be there already.

        Args:
            changes: a tree like the configuration's, or `{"train.adapt.epochs": 4}`.
            where: what to name in messages.
            keep_typed: leave alone what the user has set by an override, a whole group included.

        Raises:
            InputError: a setting that does not exist; the message lists those there are.
        """
        tree = copy.deepcopy(self.tree)
        left_out = self.typed_over(changes) if keep_typed else []
        for path, value in _leaves(changes):
            if ".".join(path) in left_out:
                continue
            *above, last = path
            node: Any = tree
            for depth, key in enumerate([*above, last]):
                if not isinstance(node, dict) or key not in node:
                    known = ", ".join(node) if isinstance(node, dict) else f"{node!r}, a value"
                    raise InputError(
                        f"{where}{': ' if where else ''}{'.'.join(path)}: no such option; "
                        f"{'.'.join(path[:depth]) or 'the configuration'} has {known}"
                    )
                if depth < len(above):
                    node = node[key]
            node[last] = value
        return replace(self, tree=tree)

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


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        path = (*above, *str(key).split("."))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


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
    _check_tuned(chosen)
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
    empty: dict[str, Any] = {"features": {}, "text": {}, "tokens": {}, "probes": [], "initial": {}}
    plain["scenario"] = {**empty, **{key: value for key, value in plain["scenario"].items() if value is not None}}
    return Config({str(key): value for key, value in plain.items()}, tuple(overrides))


def _check_tuned(chosen: Mapping[str, str]) -> None:
    """Hydra passes over a file of an optional group that does not exist, even where the user names it."""
    name = chosen.get("tuned", "=none").partition("=")[2]
    folders = [config_folder(), Path(chosen.get("config_dir", "=").partition("=")[2]).expanduser()]
    known = sorted({path.stem for folder in folders for path in folder.glob("tuned/*.yaml")})
    if name not in [*known, "null"]:
        raise InputError(f"tuned={name}: no such choice of hyper-parameters; there are {', '.join(known)}")


def _search(chosen: dict[str, str]) -> list[str]:
    """The overrides for Hydra, with the user's own folder on its search path."""
    own = chosen.pop("config_dir", None)
    if own is None:
        return list(chosen.values())
    folder = Path(own.partition("=")[2]).expanduser().absolute()
    if not folder.is_dir():
        raise InputError(f"{own}: no such folder; name the one that holds scenario/NAME.yaml")
    return [*chosen.values(), f"hydra.searchpath=['file://{folder}']"]


def corpus_parts(domain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The corpora of a domain, a probe or `initial`, one or several."""
    corpus = domain["corpus"]
    return [dict(part) for part in (corpus if isinstance(corpus, list) else [corpus])]


def _check_scenario(scenario: Any) -> None:
    if not isinstance(scenario, dict) or not scenario.get("name") or not scenario.get("domains"):
        raise InputError("scenario: lacks a name or its domains; see conf/scenario for examples")
    for group in ("domains", "probes"):
        if not isinstance(scenario.get(group) or [], list):
            example = "'- {name: ..., corpus: {kind: ...}}'"
            raise InputError(f"scenario.{group}: not a list; write one {example} for each")
        for number, entry in enumerate(scenario.get(group) or [], 1):
            if not isinstance(entry, dict) or not entry.get("name") or not _is_corpus(entry.get("corpus")):
                wanted = "a name and a corpus with a kind, e.g. {kind: kaldi}"
                raise InputError(f"scenario.{group}: entry {number} needs {wanted}")
    _check_initial(scenario.get("initial") or {}, scenario["domains"][0])
    for probe in scenario.get("probes") or []:
        _check_probe(probe, scenario["domains"])


def _check_initial(initial: Any, first: Mapping[str, Any]) -> None:
    """The first model must have been trained on the first domain, or on more of the same."""
    if not isinstance(initial, dict) or set(initial) - {"models", "corpus", "train"}:
        raise InputError("scenario.initial: may have models (a folder), corpus (with a kind), train (in place of train.initial)")
    if not initial.get("corpus"):
        if initial.get("models"):
            raise InputError("scenario.initial: models without a corpus; say what they were trained on, or initial: null")
        return
    if not _is_corpus(initial["corpus"]):
        raise InputError("scenario.initial: its corpus needs a kind, e.g. {kind: kaldi}")
    known = [_source(part) for part in corpus_parts(first)]
    for part in corpus_parts(initial):
        if _source(part) not in known:
            raise InputError(
                f"scenario.initial: its corpus ({_words(_source(part))}) is not that of the first domain, {first['name']} "
                f"({'; '.join(map(_words, known))}); give its own, or initial: null to train on {first['name']}"
            )


def _is_corpus(corpus: Any) -> bool:
    parts = corpus if isinstance(corpus, list) else [corpus]
    return bool(parts) and all(isinstance(part, dict) and part.get("kind") for part in parts)


def _check_probe(probe: Mapping[str, Any], domains: Sequence[Mapping[str, Any]]) -> None:
    """A probe tells of what was never trained on, so neither its name nor its source may be a domain's."""
    names = ", ".join(domain["name"] for domain in domains)
    if probe["name"] in [domain["name"] for domain in domains]:
        raise InputError(f"probe {probe['name']}: a domain has that name; choose one that is not among {names}")
    for part in corpus_parts(probe):
        for domain in domains:
            if any(_source(part) == _source(other) for other in corpus_parts(domain)):
                raise InputError(
                    f"probe {probe['name']}: its corpus ({_words(_source(part))}) is what domain {domain['name']} is trained "
                    f"on; give the probe another (the domains are {names}), or leave it out: scenario.probes=[]"
                )


def _source(part: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one source of speech from another: accent and channel if synthetic, else all but which part is taken."""
    if part["kind"] == "synthetic":
        return {key: part[key] for key in ("kind", "accent", "channel") if part.get(key)}
    return {key: value for key, value in part.items() if key not in ("split", "count", "seed", "sizes")}


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())
