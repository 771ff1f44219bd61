"""The user's configuration: Hydra groups composed into one tree, and the typed settings read from it.

A scenario of your own is a YAML file in a folder of your own, `my_conf/scenario/mine.yaml`, found by naming that folder:

    asrcl prepare config_dir=my_conf scenario=mine

Such a folder may hold files of any group (scenario, model, train, ...), under names that `conf/` does not use. A scenario has a
`name`, a `benchmark` (by default speech), a list `domains` whose entries have a `name` each, and perhaps `probes`, domains that
are scored after every stage and never trained on. With `learn_first: true` the initial model, which was then trained on
something else, learns the first domain, too; `initial: {checkpoint: FILE}` takes its weights from a file. `orders` and `order`
are other orders of its domains (`asrcl.experiment.orders`). What else a scenario has is for its benchmark to say
(`asrcl.speech.scenario`).
`defaults: [accents_topics, _self_]` takes over from a shipped scenario what the file leaves out.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter, ValidationError

from asrcl.exceptions import InputError
from asrcl.experiment.names import OF_RUNS, check_distinct, check_name
from asrcl.experiment.orders import FOLDER, as_listed, check_orders, in_order, named_order, order_folder, wanted_orders
from asrcl.experiment.reading import plain as plain_text
from asrcl.experiment.reading import reading
from asrcl.experiment.registry import benchmark_of, import_plugins

_Settings = TypeVar("_Settings")

MOST_NODES = 100_000  # in a YAML file, its aliases written out
MOST_DEPTH = 50
MOST_BYTES = 2**20
_REFERENCE = re.compile(r"\$\{(\.*)([\w.@-]*)\}")
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("methods", "train", "train.initial", "train.adapt", "curvature", "tracking", "launcher"), dict),
    **dict.fromkeys(("evaluation", "search", "search.methods", "search.shared"), dict),
    **dict.fromkeys(("launcher.jobs", "search.settings"), int),
    **{"keep": str | None, "keep_confidence": bool, "keep_card": str | None, "keep_after": int, "keep_written": bool},
    **{"exp": str, "device": str, "imports": list, "launcher.threads": int | None, "search.order": list | None},
}


def config_folder() -> Path:
    """The folder of configuration groups: `conf/` of a checkout, or the one shipped in the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "conf", package / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(f"{package}: found no conf/config.yaml beside or inside the package; install asrcl again")


CHANGED: Final = ", changed"
"""What `methods.NAME.chosen` ends with where not all is as it was chosen."""
_ALIKE: Final = {"like", "label", "select", "chosen"}
"""What an entry that is like another may set and train as that one does."""


def typed_names(overrides: Sequence[str]) -> set[str]:
    """Names of the settings and groups that overrides set."""
    return {override.partition("=")[0].lstrip("+~") for override in overrides}


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
        """Output folder of the scenario, which its orders share: `<exp>/<scenario name>`."""
        return Path(self.tree["exp"]) / self.tree["scenario"]["name"]

    @property
    def order(self) -> str:
        """The name of the order of the domains; "" where they are as listed."""
        return str(self.tree["scenario"].get("order", ""))

    @property
    def runs(self) -> Path:
        """Where initial models and runs lie: in `home`, or for an order of the domains in a folder of its own there."""
        return self.home / order_folder(self.order) if self.order else self.home

    @property
    def name(self) -> str:
        """What results call the scenario: its name, with the order of the domains."""
        return self.tree["scenario"]["name"] + (f"_{FOLDER}{self.order}" if self.order else "")

    @property
    def device(self) -> str:
        """The device to compute on; "auto" takes a GPU when there is one."""
        import torch  # here: composing a configuration needs none of it

        wanted = str(self.tree["device"])
        if wanted == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if wanted.startswith("cuda") and not torch.cuda.is_available():
            raise InputError("device=cuda: no GPU here; use device=cpu or device=auto")
        return wanted

    @property
    def typed(self) -> set[str]:
        """Names of the settings and groups that the user has set by an override."""
        return typed_names(self.overrides)

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

    def in_orders(self, wanted: str) -> list[Config]:
        """The same for several orders of the domains, an experiment each; for this one alone where nothing is wanted.

        Args:
            wanted: as `asrcl.experiment.orders.wanted_orders` reads it.

        Raises:
            InputError: an unknown order, one that is no permutation, one of an order, or one that the benchmark refuses.
        """
        if not wanted:
            return [self]
        if self.order:
            raise InputError(f"--orders {wanted} and scenario.order={self.order}: leave one of the two out")
        scenario, checked = self.tree["scenario"], benchmark_of(self.tree).checked
        orders = [in_order(scenario, *order) for order in wanted_orders(scenario, wanted).items()]
        return [replace(self, tree={**self.tree, "scenario": checked(order)}) for order in orders]

    @property
    def listed(self) -> Config:
        """The same with the domains as listed, for what all orders share (corpora, tokens)."""
        return replace(self, tree={**self.tree, "scenario": as_listed(self.tree["scenario"])})

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
            if wrong := misfit(value, hints[key]):
                raise InputError(plain_text(f"{name}.{key}={value}: expected {wrong}"))
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        path = (*above, *str(key).split("."))
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def misfit(value: Any, hint: Any) -> str:
    """What was expected where a value from YAML does not fit a type hint; "" where it does.

    Values are checked as JSON, in which a list may stand for a tuple and a whole number for a float, but no text for a number.
    """
    try:
        TypeAdapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in error.errors()))
    except TypeError:  # e.g. bytes, which YAML has and JSON has not
        return "text, a number, a list or settings"
    return ""


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
    search = _search(dict(chosen))
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
    check_types(tree, _TYPES)
    tree["methods"] = _with_likes(_with_variants(tree["methods"], chosen))
    _check_methods(tree["methods"])
    tree["methods"] = _with_changes(tree["methods"], typed_names(overrides))
    import_plugins(tree["imports"])
    benchmark = benchmark_of(tree)
    scenario = {"probes": [], **{k: v for k, v in tree["scenario"].items() if v not in (None, [], "")}}
    scenario = benchmark.checked(scenario)  # which writes out short forms of domains
    if "order" in scenario:
        scenario = benchmark.checked(in_order(scenario, *named_order(scenario, scenario["order"])))
    tree["scenario"] = scenario
    check_types(tree, benchmark.needs)
    return Config(tree, tuple(overrides))


def check_scenario(scenario: Any) -> None:
    """Refuse a scenario without a name and a list of named domains, and names that cannot be folders.

    Raises:
        InputError: names the entry and what is wrong with it.
    """
    if not isinstance(scenario, dict) or scenario.get("name") is None or not scenario.get("domains"):
        raise InputError("scenario: lacks a name or its domains; see conf/scenario for examples")
    check_name(scenario["name"], "scenario")
    if not isinstance(scenario.get("learn_first", False), bool):
        raise InputError(f"scenario.learn_first={scenario['learn_first']}: expected true or false")
    for group in ("domains", "probes"):
        entries = scenario.get(group) or []
        if not isinstance(entries, list):
            raise InputError(f"scenario.{group}: not a list; write one '- {{name: ..., ...}}' for each")
        for number, entry in enumerate(entries, 1):
            if not isinstance(entry, dict) or entry.get("name") is None:
                raise InputError(f"scenario.{group}: entry {number} needs a name")
            check_name(entry["name"], group[:-1])
        names = [entry["name"] for entry in entries]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"scenario.{group}: two {group} have the name {twice[0]}; rename one")
    domains = [entry["name"] for entry in scenario["domains"]]
    probes = [entry["name"] for entry in scenario.get("probes") or []]
    if both := [name for name in probes if name in domains]:
        raise InputError(f"probe {both[0]}: a domain has that name; choose one that is not among {', '.join(domains)}")
    check_distinct([*domains, *probes], "domain")
    check_orders(scenario)


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


def check_types(tree: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Refuse values of another type than those that are used as they are, without settings of their own to check them.

    Args:
        tree: of a configuration.
        types: name of a setting, e.g. "launcher.jobs" -> its type.

    Raises:
        InputError: a setting that is missing, or of another type.
    """
    for name, hint in types.items():
        value: Any = tree
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise InputError(f"{name}: missing; give it, or choose a group that has it (see {config_folder()})")
            value = value[key]
        if hint is not object and (wrong := misfit(value, hint)):
            raise InputError(f"{name}={value}: expected {wrong}")


def _with_variants(methods: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    """Methods whose `chosen` says so where a file of `+variants=`, which is read after what was chosen, has options of theirs."""
    asked = chosen.get("+variants", "").partition("=")[2].strip("[]").replace(",", " ").split()
    folders = [config_folder(), *(Path(own.partition("=")[2]).expanduser() for own in [chosen.get("config_dir")] if own)]
    files = [path for name in asked for folder in folders if (path := folder / "variants" / f"{name}.yaml").is_file()]
    contents = [OmegaConf.to_container(OmegaConf.load(file), resolve=False) for file in files]
    named = {name for content in contents if isinstance(content, dict) for name in content.get("methods") or {}}
    found = {}
    for name, options in methods.items():
        if name in named and isinstance(options, dict) and "chosen" in options:
            options = {**options, "chosen": f"{options['chosen']}{CHANGED}"}
        found[name] = options
    return found


def _with_likes(methods: Mapping[str, Any]) -> dict[str, Any]:
    """Methods with the options of the one that they are `like`, but for those that they give themselves; of `run` likewise.

    Raises:
        InputError: one that is like an unknown method, or like one that is like another.
    """
    found = {}
    for name, options in methods.items():
        like = options.get("like") if isinstance(options, dict) else None
        if like is not None:
            model = methods.get(like)
            if not isinstance(model, dict) or "like" in model:
                raise InputError(f"methods.{name}.like={like}: no method of the configuration that has options of its own")
            runs = [each["run"] for each in (model, options) if isinstance(each.get("run"), dict)]
            told = {"chosen": f"as {like}{CHANGED if options.keys() - _ALIKE else ''}"} if "chosen" in model else {}
            inherited = {k: v for k, v in model.items() if k != "label"} | told
            options = {**inherited, **{k: v for k, v in options.items() if k != "like"}}
            options |= {"run": OmegaConf.to_container(OmegaConf.merge(*runs))} if len(runs) == 2 else {}
        found[name] = options
    return found


def _with_changes(methods: Mapping[str, Any], typed: Set[str]) -> dict[str, Any]:
    """Methods whose `chosen` says so where the user has set something that was chosen, or that it was chosen with."""
    common = any(name == group or name.startswith(f"{group}.") for name in typed for group in ("train", "curvature"))
    found = {}
    for name, options in methods.items():
        own = any(each.startswith(f"methods.{name}.") and each.rpartition(".")[2] not in ("label", "chosen") for each in typed)
        if isinstance(options, dict) and "chosen" in options and (common or own):
            options = {**options, "chosen": f"{str(options['chosen']).removesuffix(CHANGED)}{CHANGED}"}
        found[name] = options
    return found


def _check_methods(methods: Mapping[str, Any]) -> None:
    for name, options in methods.items():
        check_name(name, "method")
        if name.casefold() in OF_RUNS or name.casefold().startswith(FOLDER):
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
    if order := chosen.pop("scenario.order", None):
        chosen["scenario.order"] = f"++{order}"  # scenarios list their domains in an order, and have no such setting
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
