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
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from asrcl.exceptions import InputError
from asrcl.speech.names import OF_RUNS, check_name
from asrcl.speech.reading import plain as plain_text
from asrcl.speech.reading import reading
from asrcl.speech.scenario import check_scenario

_Settings = TypeVar("_Settings")

MOST_NODES = 100_000  # in a YAML file, its aliases written out
MOST_DEPTH = 50
MOST_BYTES = 2**20
_REFERENCE = re.compile(r"\$\{(\.*)([\w.@-]*)\}")
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("methods", "model", "train", "train.initial", "train.adapt", "curvature", "decode", "tracking"), dict),
    **dict.fromkeys(("launcher", "search", "search.methods", "search.shared"), dict),
    **dict.fromkeys(("launcher.jobs", "train.max_frames", "train.max_items", "search.settings"), int),
    **dict.fromkeys(("train.ctc_weight", "train.label_smoothing"), float),
    **{"exp": str, "device": str, "imports": list, "launcher.threads": int | None, "search.order": list | None},
    "train.augment": object,
}


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
            raise InputError(f"{name}={values!r}: expected settings, not a value; see the folder {config_folder()}")
        known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
        if unknown := set(values) - known:
            raise InputError(f"{name}: unknown settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}")
        hints = get_type_hints(kind)
        for key, value in values.items():
            if not _fits(value, hints[key]):
                raise InputError(plain_text(f"{name}.{key}={value}: expected {_describe(hints[key])}"))
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
    known = {int: "a whole number", float: "a number", str: "text", type(None): "null", list: "a list", dict: "settings"}
    return known.get(hint, hint.__name__)


def load_config(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/config.yaml` with Hydra overrides such as `scenario=real_speech` or `train.adapt.epochs=8`.

    Of several overrides of one setting the last counts. `config_dir=FOLDER` adds a folder of own files (see the module).

    Raises:
        InputError: an override that does not fit, an interpolation that cannot be resolved, a scenario that lacks something.
    """
    try:
        return _load(overrides)
    except InputError as error:  # which may quote what was typed or written, line breaks and all
        raise InputError(plain_text(str(error))) from error


def _load(overrides: Sequence[str]) -> Config:
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise InputError(f"{override}: not an override; write group=choice or some.setting=value")
    chosen = {override.partition("=")[0]: override for override in overrides}
    _check_tuned(chosen)
    search = _search(chosen)
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = compose("config", overrides=search)
        assert isinstance(composed, DictConfig)
        _check_expansion(OmegaConf.to_container(composed, resolve=False))
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except InputError:
        raise
    except Exception as error:  # of Hydra's grammar, OmegaConf or YAML, which promise no closed list
        reason = plain_text(str(error) or type(error).__name__).partition(" Config search path:")[0]
        typed = f" ({' '.join(overrides)[:100]})" if overrides else ""
        raise InputError(f"configuration{typed}: {reason[:300]}; {config_folder()} has what can be set") from error
    assert isinstance(plain, dict)
    tree = {str(key): value for key, value in plain.items()}
    check_scenario(tree.get("scenario"))
    _check_types(tree)
    empty: dict[str, Any] = {"features": {}, "text": {}, "tokens": {}, "probes": [], "initial": {}}
    tree["scenario"] = {**empty, **{key: value for key, value in tree["scenario"].items() if value not in (None, [], "")}}
    return Config(tree, tuple(overrides))


def _check_expansion(tree: Any) -> None:
    """Refuse values that grow without end when references such as `${train.adapt}` are filled in."""
    sizes: dict[tuple[str, ...], int] = {}

    def size(path: tuple[str, ...]) -> int:
        if path not in sizes:
            node = tree
            for key in path:
                node = node.get(key) if isinstance(node, dict) else node[int(key)] if isinstance(node, list) else None
            inner = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
            named = _REFERENCE.findall(node) if isinstance(node, str) else ()
            parts = [(*path, str(key)) for key in inner] + [_place(path, dots, name) for dots, name in named]
            sizes[path] = len(str(node)) * (not inner) + sum(map(size, parts))
        return sizes[path]

    with reading("references (${...})", "correct them", "cannot be followed"):
        expanded = size(())
    if expanded > MOST_BYTES:
        raise InputError(f"configuration: more than {MOST_BYTES} characters with its references filled in; shorten it")


def _place(path: tuple[str, ...], dots: str, name: str) -> tuple[str, ...]:
    """What a reference at `path` stands for; dots before it lead upwards, from its own level."""
    above = path[: max(0, len(path) - len(dots))] if dots else ()
    return (*above, *(part for part in name.split(".") if part))


def _check_types(tree: Mapping[str, Any]) -> None:
    """Refuse values of another type than those that are used as they are, without settings of their own to check them."""
    for name, hint in _TYPES.items():
        value: Any = tree
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise InputError(f"{name}: missing; give it, or choose a group that has it (see {config_folder()})")
            value = value[key]
        if not _fits(value, hint):
            raise InputError(f"{name}={value}: expected {_describe(hint)}")
    for name, options in tree["methods"].items():
        check_name(name, "method")
        if name.casefold() in OF_RUNS:
            raise InputError(f"method {name}: the experiment keeps a folder of that name; choose another")
        if not isinstance(options, dict) or not isinstance(options.get("name"), str):
            raise InputError(f"methods.{name}: lacks the name of a method; see conf/method for examples")


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
    for group in sorted(path.name for path in config_folder().iterdir() if path.is_dir()):
        for file in sorted((folder / group).glob("*.yaml")):
            _check_size(file)
    return [*chosen.values(), f"hydra.searchpath=['file://{folder}']"]


def _check_size(path: Path) -> None:
    """Refuse a YAML file that is small on disk and without end in memory, its aliases naming one another.

    Raises:
        InputError: it is too large, or cannot be read. (What is no YAML is left to Hydra, which says where.)
    """
    with reading(path, "make it readable"):
        text = path.read_bytes()
    nodes = depth = 0
    sizes: dict[str, int] = {}
    above: list[tuple[str | None, int]] = []  # anchor, nodes before it
    if len(text) > MOST_BYTES:
        raise InputError(f"{path}: has {len(text)} bytes, more than {MOST_BYTES} of configuration; split it")
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                above.append((event.anchor, nodes))
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = above.pop()
                sizes.update({anchor: nodes - before} if anchor else {})
            elif isinstance(event, yaml.ScalarEvent) and event.anchor:
                sizes[event.anchor] = 1
            nodes += sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else isinstance(event, yaml.NodeEvent)
            depth = max(depth, len(above))
            if nodes > MOST_NODES or depth > MOST_DEPTH:
                raise InputError(
                    f"{path}:{event.start_mark.line + 1}: more than {MOST_NODES} entries with its aliases written out, or more "
                    f"than {MOST_DEPTH} levels; shorten it"
                )
    except (yaml.YAMLError, UnicodeError):
        return
