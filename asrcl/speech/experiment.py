"""A configured speech experiment: initial model, adaptation by several methods and seeds, tuning, decoding."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from asrcl.adapt import (
    Cache,
    Curvature,
    CurvatureConfig,
    Domain,
    DomainLearner,
    Scenario,
    Tracking,
    TrackingConfig,
    TrainConfig,
    adapt_domains,
    build_method,
    check_diagnostics,
    estimate_on_domain,
    load_state,
    run_method,
    train_initial,
    tune,
)
from asrcl.adapt.distributed import Processes
from asrcl.exceptions import InputError
from asrcl.files import write_json
from asrcl.scoring import Errors
from asrcl.speech.config import Config
from asrcl.speech.decoding import DecodeConfig
from asrcl.speech.features import FeatureConfig
from asrcl.speech.model import ConformerASR
from asrcl.speech.prepare import load_domains, tokenizer_path
from asrcl.speech.task import RecognitionTask, SpecAugmentConfig
from asrcl.speech.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def build_task(config: Config) -> RecognitionTask:
    """The recognition task that a configuration describes."""
    train = config.tree["train"]
    return RecognitionTask(
        Tokenizer(tokenizer_path(config)),
        ctc_weight=train["ctc_weight"],
        label_smoothing=train["label_smoothing"],
        augment=config.settings(SpecAugmentConfig, "train", "augment") if train["augment"] else None,
        decoding=config.settings(DecodeConfig, "decode"),
    )


def build_model(config: Config, vocabulary: int) -> nn.Module:
    """A model with fresh weights."""
    features = config.settings(FeatureConfig, "scenario", "features").size
    try:
        return ConformerASR(features, vocabulary, **config.tree["model"])
    except TypeError as error:
        raise InputError(f"model: {error}; see conf/model for the settings there are") from error


def build_scenario(config: Config, seed: int | None = None) -> Scenario:
    """Domains, task and model; with a seed, also that seed's initial model.

    Raises:
        InputError: an earlier stage has not run.
    """
    task = build_task(config)
    initial = load_state(initial_path(config, seed)) if seed is not None else None
    if initial is not None:
        _check_fits(build_model(config, len(task.tokenizer)), initial, initial_path(config, seed or 0))
    return Scenario(
        config.tree["scenario"]["name"],
        load_domains(config),
        task,
        lambda: build_model(config, len(task.tokenizer)),
        initial,
        {**config.tree, "overrides": list(config.overrides)},
        dict(config.tree["model"]),
    )


def _check_fits(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if differing := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
        raise InputError(
            f"{path}: not a checkpoint of this model ({len(differing)} tensors differ, e.g. {differing[0]}); "
            "give the model settings it was trained with, or run the train stage (asrcl train) again"
        )


def initial_path(config: Config, seed: int) -> Path:
    """Where the initial model of a seed lies."""
    return config.home / "initial" / str(seed) / "model.safetensors"


def _learner(config: Config, scenario: Scenario, seed: int, **options: Any) -> DomainLearner:
    return DomainLearner(
        scenario,
        Cache(config.home / "cache"),
        config.settings(TrainConfig, "train", "adapt"),
        config.settings(CurvatureConfig, "curvature"),
        seed,
        config.device,
        tracking=tracking(config),
        **options,
    )


def _check_settings(config: Config) -> None:
    """Refuse what would fail late: dashboards that are not there, diagnostics of an unknown kind."""
    tracking(config)
    check_diagnostics(config.tree["diagnostics"])


def tracking(config: Config) -> Tracking:
    """The dashboards that a configuration names.

    Raises:
        InputError: one that is not known or not installed.
    """
    return Tracking(config.settings(TrackingConfig, "tracking"), config.home)


def train(config: Config, seed: int) -> None:
    """Train the initial model of one seed on the first domain."""
    scenario, path = build_scenario(config), initial_path(config, seed)
    settings = config.settings(TrainConfig, "train", "initial")
    cache = Cache(config.home / "cache")
    state = train_initial(scenario, settings, cache, seed, path, config.device, tracking(config))
    count = sum(value.numel() for value in state.values())
    logger.info("initial model of seed %d: %.2f M parameters, %s", seed, count / 1e6, path)


def adapt(config: Config, method: str, seed: int, command: str = "", decode: bool = False) -> None:
    """Take one seed's initial model through all domains with one method, under `<exp>/<scenario>/<method>/<seed>`.

    Args:
        config: the experiment.
        method: a name under `methods` of the configuration.
        seed: of the initial model and of all randomness.
        command: what the user typed, for the result file.
        decode: also decode all domains after every stage and write `results.json`.

    Raises:
        InputError: unknown method, or an earlier stage has not run.
    """
    learner = _learner(config, build_scenario(config, seed), seed, diagnostics=config.tree["diagnostics"], label=method)
    name, options = _method_options(config, method)
    folder = config.home / method / str(seed)
    if decode:
        run_method(learner, build_method(name, **options), folder, name=method, command=command)
    else:
        adapt_domains(learner, build_method(name, **options), folder)


def import_plugins(config: Config) -> None:
    """Import the modules listed under `imports`, which may register methods of the user's own.

    Raises:
        InputError: a module that cannot be imported.
    """
    for module in config.tree["imports"]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"imports: cannot import {module} ({error}); is it on PYTHONPATH?") from error


def _method_options(config: Config, method: str) -> tuple[str, dict[str, Any]]:
    known = config.tree["methods"]
    if method not in known:
        raise InputError(f"method {method}: not in the configuration; choose from {', '.join(known)}")
    options = dict(known[method])
    return options.pop("name"), options


def _job(threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    import_plugins(arguments[0])
    return function(*arguments)


def _end_with(parent: int) -> None:
    """Let this process end when its parent has been killed, rather than go on unseen."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _in_jobs(config: Config, function: Callable[..., Any], runs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call `function` for each tuple of arguments, the configuration first, `launcher.jobs` at a time, a process for each."""
    if not runs:
        raise InputError("nothing to do: name at least one method (--methods) and one seed (--seeds)")
    # Processes of one torchrun share the work of each run, so they must all take the runs in the same order.
    jobs = min(max(1, int(config.tree["launcher"]["jobs"])), len(runs)) if Processes().count == 1 else 1
    threads = config.tree["launcher"]["threads"] or max(1, (os.cpu_count() or 1) // jobs)
    job = partial(_job, threads, function)
    if jobs == 1:
        return [job(run) for run in runs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        return list(pool.map(job, runs))


def train_all(config: Config, seeds: Sequence[int]) -> None:
    """Train the initial models of several seeds, `launcher.jobs` at a time.

    Raises:
        InputError: a wrong setting, before any work begins; or what training raises.
    """
    _check_settings(config)
    _in_jobs(config, train, [(config, seed) for seed in seeds])


def adapt_all(
    config: Config, methods: Sequence[str], seeds: Sequence[int], command: str = "", decode: bool = False
) -> None:
    """Run methods x seeds, `launcher.jobs` at a time; work that several share is done by the first that needs it.

    Raises:
        InputError: as `adapt`; methods and their options are checked before any work begins.
    """
    import_plugins(config)
    _check_settings(config)
    for method in methods:
        name, options = _method_options(config, method)
        build_method(name, **options)
    _in_jobs(config, adapt, [(config, method, seed, command, decode) for seed in seeds for method in methods])


def tune_method(config: Config, method: str, choices: dict[str, list[Any]], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Dev error rates of all knob settings after the first adaptation, averaged over seeds; written to `<home>/tuning`.

    Raises:
        InputError: unknown method or knob.
    """
    name, options = _method_options(config, method)
    tables = _in_jobs(config, _tune_seed, [(config, name, options, choices, seed) for seed in seeds])
    rows = _mean_tables(tables, list(choices))
    write_json(config.home / "tuning" / f"{method}.json", {"method": method, "seeds": list(seeds), "rows": rows})
    return rows


def _tune_seed(
    config: Config, name: str, options: dict[str, Any], choices: dict[str, list[Any]], seed: int
) -> list[dict[str, Any]]:
    return tune(_learner(config, build_scenario(config, seed), seed, diagnostics="none"), name, options, choices)


def _mean_tables(tables: Sequence[list[dict[str, Any]]], knobs: Sequence[str]) -> list[dict[str, Any]]:
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for row in (row for table in tables for row in table):
        by_setting.setdefault(str([row[knob] for knob in knobs]), []).append(row)
    means = []
    for rows in by_setting.values():
        rates = {column: sum(row[column] for row in rows) / len(rows) for column in ("old", "new", "average")}
        means.append({**{knob: rows[0][knob] for knob in knobs}, **rates})
    return sorted(means, key=lambda row: row["average"])


def decode_checkpoint(config: Config, checkpoint: Path, domain: str, split: str = "test") -> Errors:
    """Decode one split of one domain with any checkpoint of the scenario's model.

    Raises:
        InputError: unknown domain, or a checkpoint of another model.
    """
    scenario, chosen, model = _checkpoint_in_scenario(config, checkpoint, domain)
    return scenario.task.evaluate(model, chosen, split)


def validation_errors(config: Config, domains: Mapping[str, str]) -> Callable[[Path], dict[str, float]]:
    """Scores a checkpoint of the scenario's model by its word error rates, in percent, on validation sets.

    Args:
        config: the experiment.
        domains: what a score is called ("old", "new") -> name of the domain.

    Raises:
        InputError: when called: unknown domain, or a checkpoint of another model.
    """
    return lambda model: {name: decode_checkpoint(config, model, domain, "dev").rate for name, domain in domains.items()}


def curvature_of_checkpoint(
    config: Config,
    model_file: Path,
    domain: str,
    structure: Literal["kron", "ekfac", "diagonal", "dense"] = "kron",
    **options: Any,
) -> Curvature:
    """Curvature of the scenario's loss at any checkpoint of its model, on the training data of one domain.

    Args:
        config: the experiment; its group `curvature` says how to estimate.
        model_file: a model.safetensors.
        domain: name of the domain.
        structure: kind of curvature.
        **options: further arguments of `asrcl.curvature.estimate` (`checkpoint`, `progress`, ...).

    Raises:
        InputError: unknown domain, a checkpoint of another model, or what `asrcl.curvature.estimate` raises.
    """
    scenario, chosen, model = _checkpoint_in_scenario(config, model_file, domain)
    settings = config.settings(CurvatureConfig, "curvature")
    return estimate_on_domain(model, scenario.task, chosen, settings, structure, **options)


def _checkpoint_in_scenario(config: Config, checkpoint: Path, domain: str) -> tuple[Scenario, Domain, nn.Module]:
    """The scenario, one of its domains by name, and its model with the weights of a checkpoint on the run's device."""
    scenario = build_scenario(config)
    chosen = [item for item in scenario.domains if item.name == domain]
    if not chosen:
        names = ", ".join(item.name for item in scenario.domains)
        raise InputError(f"domain {domain}: not in this scenario; it has {names}")
    model, state = scenario.build_model(), load_state(checkpoint)
    _check_fits(model, state, checkpoint)
    model.load_state_dict(state)
    return scenario, chosen[0], model.to(config.device)
