"""`asrcl tune`: every method gets the same number of settings, drawn from a stated space of options of the method and the run.

An option with a dot is one of the run (`train.adapt.learning_rate`, `curvature.fisher`), one without belongs to the method, and
one of `merge.` to the merge behind it. Two protocols say what a setting is judged by, on validation sets alone:

- `first`: the mean over the first two domains after the first adaptation (Vander Eeckt and Van hamme, arXiv 2601.14751);
- `sequence`: the mean over all domains after all adaptations, in another order of domains (of two domains there is no other), or
  through some of them, which takes less time.

Both may be constrained: of the settings that raise the error rate of the first domain by at most so many points, the best one.

Settings are drawn before any is tried (`search.sampler=halton`), or the later half where the earlier ones were good (`tpe`).
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from asrcl.adapt import CurvatureConfig, TrainConfig, check_learning, dev_rates, draw, learn_where
from asrcl.entries import seal
from asrcl.exceptions import InputError
from asrcl.experiment import launch
from asrcl.experiment.config import Config
from asrcl.experiment.reading import reading
from asrcl.experiment.run import build_scenario, configured_method, learner_of
from asrcl.files import file_lock, write_text
from asrcl.methods import Method
from asrcl.scoring.results.run_result import NO_OPTIONS
from asrcl.scoring.results.stage_records import RATES
from asrcl.search import grid

logger = logging.getLogger(__name__)

OF_THE_RUN: Final = ("train.adapt.", "train.augment.", "train.max_items", "curvature.", "decode.", "model.dropout")
OF_THE_MERGE: Final = "merge."
PROTOCOLS: Final = ("first", "sequence")
SAMPLERS: Final = ("halton", "tpe")
Setting = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """What is tried for one method.

    Attributes:
        method: a name under `methods` of the configuration.
        space: the values of every option.
        settings: those that are tried; where the sampler learns, what it would try if it did not.
        learns: whether later settings depend on what the earlier ones came to.
    """

    method: str
    space: dict[str, list[Any]]
    settings: list[Setting]
    learns: bool = False


def searches(
    config: Config, methods: Sequence[str], own: Mapping[str, list[Any]] | None = None, count: int | None = None
) -> list[Search]:
    """What to try for some methods: all of a space of the user's own, or the same number of settings from that of `search`.

    Args:
        config: its group `search` has `settings` (their number), `shared` (options that every method searches) and `methods`.
        methods: names under `methods`.
        own: a space in place of that of `search`.
        count: number of settings; by default `search.settings`, and of a space of the user's own all.

    Raises:
        InputError: an unknown method or option; a method that `search` has no space for.
    """
    sampler = config.tree["search"].get("sampler", "halton")
    if sampler not in SAMPLERS:
        raise InputError(f"search.sampler={sampler}: choose {' or '.join(SAMPLERS)}")
    found = []
    for method in methods:
        space = _checked(config, dict(own) if own is not None else _space(config, method))
        settings = grid(space) if own is not None and count is None else draw(space, count or config.tree["search"]["settings"])
        learns = sampler == "tpe" and len(settings) < math.prod(map(len, space.values()))
        others = [{**settings[0], name: value} for name, values in space.items() for value in values] if learns else []
        for setting in (*settings, *others):
            _configured(config, method, setting)
        found.append(Search(method, space, settings, learns))  # where all of a space is tried there is nothing to learn
    if any(search.learns for search in found):
        check_learning()
    return found


def _space(config: Config, method: str) -> dict[str, Any]:
    spaces = config.tree["search"]["methods"]
    if method not in spaces:
        raise InputError(f"method {method}: search.methods has no space for it; it has {', '.join(spaces)}; or give --grid")
    return {**config.tree["search"]["shared"], **(spaces[method] or {})}


def _checked(config: Config, space: dict[str, Any]) -> dict[str, list[Any]]:
    """A space in which every option has a list of values and an effect."""
    for name, values in space.items():
        if not isinstance(values, list):
            raise InputError(f"search space: {name}={values}: give a list of values")
        if name in NO_OPTIONS:
            raise InputError(f"search space: {name}: is no option of a method; search options of the run by their own names")
        if "." in name and not name.startswith((*OF_THE_RUN, OF_THE_MERGE)):
            known = ", ".join((*OF_THE_RUN, OF_THE_MERGE))
            raise InputError(f"search space: {name}: nothing that is searched depends on it; choose from {known}")
        if name in config.typed:
            raise InputError(f"search space: {name}: is also set on the command line ({name}=...); leave one of the two out")
    return {str(name): list(values) for name, values in space.items()}


def _configured(config: Config, method: str, setting: Setting) -> tuple[Config, Method]:
    """The method and the configuration with one setting in them."""
    of_run = {name: value for name, value in setting.items() if name.startswith(OF_THE_RUN)}
    of_method = {name: value for name, value in setting.items() if "." not in name}
    of_merge = {name.removeprefix(OF_THE_MERGE): value for name, value in setting.items() if name.startswith(OF_THE_MERGE)}
    if of_merge:
        of_method["merge"] = {**_merge_of(config, method), **of_merge}
    config, built = configured_method(config, method, **of_method)
    config = config.changed(of_run, "search space")
    config.settings(TrainConfig, "train", "adapt")
    config.settings(CurvatureConfig, "curvature")
    return config, built


def _merge_of(config: Config, method: str) -> dict[str, Any]:
    """The merge that a method of the configuration has behind it."""
    merge = config.tree["methods"].get(method, {}).get("merge")
    if merge is None:
        raise InputError(f"search space: {OF_THE_MERGE}...: methods.{method} has no merge behind it; add merge: {{method: NAME}}")
    return {"method": merge} if isinstance(merge, str) else dict(merge)


def _of_a_variant(config: Config, method: str, setting: Setting) -> dict[str, Any]:
    """What the file of what was chosen says of a variant besides: then a configuration that lacks the variant has it, too."""
    name = config.tree["methods"][method]["name"]
    merged = any(option.startswith(OF_THE_MERGE) for option in setting)
    said = {key: copy.deepcopy(config.tree["methods"][method].get(key)) for key in ("label", "select", "run")}
    of_its_own = {key: value for key, value in said.items() if value}
    return ({} if name == method else {"name": name, **of_its_own}) | ({"merge": _merge_of(config, method)} if merged else {})


def search_all(
    config: Config, wanted: Sequence[Search], seeds: Sequence[int], protocol: str = "first", rise: float | None = None
) -> dict[str, list[Setting]]:
    """Score every setting of every search, `launcher.jobs` at a time, and write `<home>/tuning` (see the module).

    Args:
        config: the experiment.
        wanted: of `searches`.
        seeds: of the initial models; rates are means over them.
        protocol: "first" or "sequence"; the latter takes the domains that `search.order` has in its order, or else the first one
            and then the others backwards.
        rise: what the first domain's error rate may rise by, in points; settings after which it rose by more come last, those
            with the least rise before the others. None: whatever it does.

    Returns:
        Per method one row per setting, best first: its options, and `old`, `new`, `average` and `rise` of `dev_rates`.

    Raises:
        InputError: an unknown protocol or domain; a method none of whose settings worked, once the others are written. A setting
            that cannot be trained or merged (a loss that is not finite, a curvature that is singular without damping) is left
            out, and `<home>/tuning` has the reason.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"--protocol {protocol}: choose {' or '.join(PROTOCOLS)}")
    there = len(config.tree["scenario"]["domains"])
    config = _reordered(config) if protocol == "sequence" else config
    some = [domain["name"] for domain in config.tree["scenario"]["domains"]]
    how = protocol if len(some) == there else f"{protocol} {' '.join(some)}"
    tables, hopeless = {}, []
    for search, tried in zip(wanted, _outcomes(config, wanted, seeds, protocol, rise), strict=True):
        rows, failed = [row for row in tried if "average" in row], [row for row in tried if "average" not in row]
        if not rows:
            hopeless.append(f"{search.method}: none of {len(failed)} settings worked; the first: {failed[0]['reason']}")
            continue
        tables[search.method] = sorted(rows, key=partial(_order, rise))
        if rise is not None and tables[search.method][0]["rise"] > rise:
            logger.warning("%s: no setting raised the first domain's error rate by at most %g points", search.method, rise)
        _write(config, search, tables[search.method], failed, {"seeds": list(seeds), "protocol": protocol, "rise": rise})
    told = {search.method: _told(search, seeds, how, rise) for search in wanted if search.method in tables}
    starts = {method: _of_a_variant(config, method, rows[0]) | {"chosen": told[method]} for method, rows in tables.items()}
    if tables:
        _write_chosen(config.home / "tuning" / f"{protocol}.yaml", tables, starts, protocol)
    if hopeless:
        raise InputError("; ".join(hopeless))
    return tables


def _outcomes(
    config: Config, wanted: Sequence[Search], seeds: Sequence[int], protocol: str, rise: float | None
) -> list[list[Setting]]:
    """For every search its rows, in the order tried, with a reason in place of rates where a setting failed.

    All settings that are known beforehand are tried at once, `launcher.jobs` at a time, searches that learn each in one job.
    """
    if any(search.learns for search in wanted):
        runs = [(config, search, list(seeds), protocol, rise) for search in wanted]
        return launch.in_jobs(config, _learned, runs, "settings", sum(len(search.settings) for search in wanted) * len(seeds))
    every = [(config, s.method, setting, seed, protocol) for s in wanted for setting in s.settings for seed in seeds]
    scores = iter(launch.in_jobs(config, _score, every, "settings"))
    return [[_row(setting, [next(scores) for _ in seeds]) for setting in search.settings] for search in wanted]


def _learned(config: Config, search: Search, seeds: Sequence[int], protocol: str, rise: float | None) -> list[Setting]:
    """The rows of one search, one after the other."""
    rows: list[Setting] = []

    def score(setting: Setting) -> tuple[float, float] | None:
        rows.append(_row(setting, [_score(config, search.method, setting, seed, protocol) for seed in seeds]))
        if "average" not in rows[-1]:
            return None
        return rows[-1]["average"], 0.0 if rise is None else rows[-1]["rise"] - rise

    if search.learns:
        learn_where(search.space, len(search.settings), score)
    else:
        for setting in search.settings:
            score(setting)
    return rows


def _row(setting: Setting, rates: Sequence[dict[str, float] | str]) -> Setting:
    """A setting with the means of its rates over seeds, or the first reason for which one of them has none."""
    reasons = [rate for rate in rates if isinstance(rate, str)]
    known = [rate for rate in rates if not isinstance(rate, str)]
    found = {"reason": reasons[0]} if reasons else {name: sum(rate[name] for rate in known) / len(known) for name in RATES}
    return setting | found


def _told(search: Search, seeds: Sequence[int], protocol: str, rise: float | None) -> str:
    """What reports say of how a method's options were chosen."""
    limit = "" if rise is None else f", ≤{rise:g}"
    by = " by TPE" if search.learns else ""
    return f"{protocol}{limit}, {len(search.settings)} settings{by}, seeds {' '.join(map(str, seeds))}"


def _order(rise: float | None, row: Setting) -> tuple[float, float]:
    """What rows are sorted by: how far a row is beyond the constraint, and then its mean error rate."""
    return (-math.inf if rise is None or row["rise"] <= rise else row["rise"]), row["average"]


def _score(config: Config, method: str, setting: Setting, seed: int, protocol: str) -> dict[str, float] | str:
    """Dev error rates of one setting and seed, or why it has none: what cannot be trained or merged does not end a search."""
    config, built = _configured(config, method, setting)
    learner = learner_of(config, build_scenario(config, seed), seed, diagnostics="none", label=method)
    try:
        rates = dev_rates(learner, built, 2 if protocol == "first" else None)
    except InputError as error:
        logger.warning("%s %s: left out, %s; %s", method, setting, error, launch.step())
        return str(error)
    logger.info("%s %s: old %.2f, new %.2f, average %.2f, rise %+.2f; %s", method, setting, *rates.values(), launch.step())
    return rates


def _reordered(config: Config) -> Config:
    """The scenario with the domains of `search.order` in that order; by default the first domain, then the others backwards."""
    domains = {str(domain["name"]): domain for domain in config.tree["scenario"]["domains"]}
    first, *others = domains
    order = [str(name) for name in config.tree["search"]["order"] or [first, *reversed(others)]]
    if order[0] != first or not set(order) <= set(domains) or len(set(order)) < len(order):
        raise InputError(f"search.order={order}: give domains of {', '.join(domains)}, {first} first, none of them twice")
    return config.changed({"scenario": {"domains": [domains[name] for name in order]}})


def _write(config: Config, search: Search, rows: list[Setting], failed: list[Setting], judged: dict[str, Any]) -> None:
    protocol = judged["protocol"]
    tail = "" if protocol == "first" else f"-{protocol}"
    order = [domain["name"] for domain in config.tree["scenario"]["domains"]]
    seal(
        config.home / "tuning",
        f"{search.method}{tail}.json",
        {
            "method": search.method,
            "domains": order[:2] if protocol == "first" else order,
            **judged,
            "space": search.space,
            "sampler": "tpe" if search.learns else "halton",
            "rows": rows,
            "diverged": failed,
            "chosen": {name: rows[0][name] for name in search.space},
        },
        files=(),
    )


def _write_chosen(path: Path, tables: Mapping[str, list[Setting]], starts: Mapping[str, dict[str, Any]], protocol: str) -> None:
    """The best setting of every method as a file for `conf/tuned/<scenario>.yaml`; methods of other searches stay."""
    with file_lock(path.with_suffix(".lock")):
        _add_chosen(path, tables, starts, protocol)


def _add_chosen(path: Path, tables: Mapping[str, list[Setting]], starts: Mapping[str, dict[str, Any]], protocol: str) -> None:
    chosen: dict[str, Any] = {}
    if os.path.lexists(path):
        with reading(path, "delete it, and asrcl tune writes it anew"):
            chosen = dict((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("methods") or {})
    for method, rows in tables.items():
        options = starts[method]
        for name, value in rows[0].items():
            if name not in RATES:
                *above, last = ["run", *name.split(".")] if name.startswith(OF_THE_RUN) else name.split(".")
                node = options
                for key in above:
                    node = node.setdefault(key, {})
                node[last] = value
        chosen[method] = options
    head = f"# @package _global_\n# Chosen by asrcl tune --protocol {protocol}; the whole search is beside it (.json).\n"
    write_text(path, head + yaml.safe_dump({"methods": chosen}, sort_keys=False))
