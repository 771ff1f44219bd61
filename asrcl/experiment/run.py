"""Runs of a configured experiment: adaptation by several methods and seeds, decoding, curvature of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from torch import nn

from asrcl.adapt import (
    Cache,
    CurvatureConfig,
    Domain,
    DomainLearner,
    EvaluationPolicy,
    Observer,
    Scenario,
    TrainConfig,
    Weights,
    adapt_domains,
    estimate_on_domain,
    load_recorded,
    run_method,
    standard_observers,
)
from asrcl.adapt.baselines import BaselineCard
from asrcl.adapt.trust import TrustRegion, TrustSettings
from asrcl.contract.adapters import adapter_sizes, attach_adapters
from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.experiment import launch
from asrcl.experiment.config import Config
from asrcl.experiment.initial import TRAIN_STAGE, check_fits, initial_path, take_checkpoint, tracking
from asrcl.experiment.keeping import check_kept_data, keep_of, measure_baselines
from asrcl.experiment.registry import benchmark_of
from asrcl.files import hash_json
from asrcl.methods import Method, build_method
from asrcl.scoring import Errors

logger = logging.getLogger(__name__)

THE_STAGE: Final = "the stage that made it (asrcl train or asrcl adapt)"


def build_scenario(config: Config, seed: int | None = None) -> Scenario:
    """Domains, task and model; with a seed, also that seed's initial model.

    Raises:
        InputError: an earlier stage has not run.
    """
    scenario = benchmark_of(config.tree).scenario(config, seed)
    initial = None
    if seed is not None:
        path = initial_path(config, seed)
        initial = load_recorded(path, TRAIN_STAGE, expected=True)
        check_fits(scenario.build_model(), initial, path)
    return replace(
        scenario,
        name=config.name,
        initial=initial,
        config={**config.tree, "overrides": list(config.overrides)},
        evaluation=config.settings(EvaluationPolicy, "evaluation"),
        learn_first=config.tree["scenario"].get("learn_first", False),
    )


def learner_of(config: Config, scenario: Scenario, seed: int, **options: Any) -> DomainLearner:
    """What does the work of one run, with the settings of a configuration; further options as `DomainLearner` has them."""
    return DomainLearner(
        scenario,
        Cache(config.home / "cache"),
        config.settings(TrainConfig, "train", "adapt"),
        config.settings(CurvatureConfig, "curvature"),
        seed,
        config.device,
        tracking=tracking(config),
        keep=keep_of(config),
        **options,
    )


def _check_settings(config: Config) -> None:
    """Refuse what would fail late: dashboards or checkpoints that are not there, unknown diagnostics or evaluations."""
    checkpoint = (config.tree["scenario"].get("initial") or {}).get("checkpoint")
    if checkpoint and not Path(str(checkpoint)).is_file():
        raise InputError(f"scenario.initial.checkpoint={checkpoint}: no such file; name a checkpoint of this model")
    config.settings(EvaluationPolicy, "evaluation")
    tracking(config)
    standard_observers(config.tree["diagnostics"])
    own_observers(config)


def own_observers(config: Config) -> list[Observer]:
    """What else the configuration wants to be looked at when a stage is over (`+trust=segment`); it changes no other number.

    Raises:
        InputError: a setting that cannot be used.
    """
    return [TrustRegion(config.settings(TrustSettings, "trust"))] if config.tree.get("trust") else []


def train(config: Config, seed: int) -> None:
    """Make the initial model of one seed: take that of `scenario.initial.checkpoint`, or do as the benchmark does.

    Raises:
        InputError: an earlier stage has not run, a checkpoint that is not of this model, or what the benchmark raises.
    """
    benchmark = benchmark_of(config.tree)
    if checkpoint := (config.tree["scenario"].get("initial") or {}).get("checkpoint"):
        take_checkpoint(config, benchmark.scenario(config, seed), seed, Path(checkpoint))
    else:
        benchmark.train_initial(config, seed)


def adapt(config: Config, method: str, seed: int, command: str = "", decode: bool = False, save: bool = False) -> None:
    """Take one seed's initial model through all domains with one method, under `<exp>/<scenario>[/<order>]/<method>/<seed>`.

    Args:
        config: the experiment.
        method: a name under `methods` of the configuration.
        seed: of the initial model and of all randomness.
        command: what the user typed, for the result file.
        decode: decode all domains after every stage and write `results.json`.
        save: with `decode`, also write the weights of every stage, which without it are written anyway.

    Raises:
        InputError: unknown method, or an earlier stage has not run.
    """
    config, built = configured_method(config, method)
    scenario = build_scenario(config, seed)
    scenario.observers = (*scenario.observers, *own_observers(config))
    learner = learner_of(config, scenario, seed, diagnostics=config.tree["diagnostics"], label=method)
    learner.progress = partial(_progress, config.order)
    folder = config.runs / method / str(seed)
    if decode:
        run_method(learner, built, folder, name=method, command=command, keep_weights=save)
    else:
        adapt_domains(learner, built, folder)


def _progress(order: str) -> str:
    return f"{f'order {order}; ' if order else ''}{launch.step()}"


def configured_method(config: Config, name: str, **changes: Any) -> tuple[Config, Method]:
    """A method of the configuration, and the configuration as it wants it.

    Args:
        config: the experiment; `methods.<name>.run` holds options of the run that are otherwise for this method, but for those
            that the user has typed, `methods.<name>.label` is what tables call it, and `methods.<name>.chosen` what they say of
            where its options come from.
        name: under `methods`.
        **changes: further options of the method.

    Raises:
        InputError: unknown method or option.
    """
    known = config.tree["methods"]
    if name not in known:
        raise InputError(f"method {name}: not in the configuration; choose from {', '.join(known)}")
    options = {**known[name], **changes}
    own, label = options.pop("run", None) or {}, options.pop("label", None)
    options.pop("chosen", None)
    if typed := config.typed_over(own):
        logger.info("%s: %s as typed, not as in methods.%s.run", name, ", ".join(typed), name)
    built = build_method(options.pop("name"), **options)
    built.label = label or (built.label if built.name == name or options.get("merge") else name)
    return config.changed(own, f"methods.{name}.run", keep_typed=True), built


def train_all(config: Config, seeds: Sequence[int], orders: str = "") -> None:
    """Make the initial models of several seeds, and orders of the domains, `launcher.jobs` at a time.

    Raises:
        InputError: a wrong setting or order, before any work begins; or what training raises.
    """
    _check_settings(config)
    configs = config.in_orders(orders)
    for each in configs:
        check_kept_data(each)
    runs = [(each, seed) for each in configs for seed in seeds]
    launch.in_jobs(config, train, runs, "initial models")


def adapt_all(
    config: Config,
    methods: Sequence[str],
    seeds: Sequence[int],
    command: str = "",
    decode: bool = False,
    save: bool = False,
    orders: str = "",
) -> None:
    """Run orders x methods x seeds, `launcher.jobs` at a time; work that several share is done by the first that needs it.

    Args:
        config: the experiment.
        methods: names under `methods` of the configuration.
        seeds: of the initial models.
        command: as for `adapt`.
        decode: likewise.
        save: likewise.
        orders: of the domains, as `--orders` has them; "" for the configuration's own.

    Raises:
        InputError: as `adapt`; methods, their options and orders are checked before any work begins.
    """
    built, configs = check_runs(config, methods), config.in_orders(orders)
    for each in configs:
        check_kept_data(each)
    stages = len(config.tree["scenario"]["domains"])
    runs = [(each, method, seed, command, decode, save) for seed in seeds for each in configs for method in _apart(built)]
    launch.in_jobs(config, adapt, runs, "stages", stages * len(runs))


def check_runs(config: Config, methods: Sequence[str]) -> dict[str, tuple[Config, Method]]:
    """Methods by name, each with its configuration, and the other settings checked.

    Raises:
        InputError: a method, an option or another setting that would fail later.
    """
    _check_settings(config)
    built = {method: configured_method(config, method) for method in methods}
    for own, _ in [(config, None), *built.values()]:
        keep_of(own)
    return built


def _apart(methods: Mapping[str, tuple[Config, Method]]) -> list[str]:
    """The methods in such an order that neighbours train differently: those that share a fine-tune would wait for each other.

    The last named go first: they tend to take longest, and what takes longest should not run alone at the end.
    """
    groups: dict[str, list[str]] = {}
    for name, (config, method) in reversed(list(methods.items())):
        trained = [method.key(), config.tree["train"], "" if method.continues else method.name]
        groups.setdefault(hash_json(trained), []).append(name)
    rounds = max(map(len, groups.values()), default=0)
    return [group[n] for n in range(rounds) for group in groups.values() if n < len(group)]


def check_model(
    config: Config, model: str, seed: int = 1, only: Sequence[str] = (), out: Path | None = None
) -> tuple[BaselineCard, Path]:
    """Measure a model on the dev and test sets of the scenario's domains and probes, and write its card (`asrcl check`).

    Args:
        config: the experiment.
        model: a file of weights, or "initial" for the initial model of the seed.
        seed: of that model.
        only: names of domains and probes; empty for all.
        out: where the card goes; by default beside the model (`<name>.check.json`).

    Returns:
        The card and its place.

    Raises:
        InputError: an earlier stage has not run, a file of another model, or an unknown domain.
    """
    config = config.changed({"keep": None})  # the card that is to count may not be there yet
    scenario, path = build_scenario(config), initial_path(config, seed) if model == "initial" else Path(model)
    weights = Weights(load_recorded(path, TRAIN_STAGE))
    check_fits(scenario.build_model(), weights.state, path)
    card = measure_baselines(learner_of(config, scenario, seed), weights, path.name, only)
    place = out or path.with_suffix(".check.json")
    card.save(place)
    return card, place


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
    return _ValidationErrors(config, domains)


@dataclass(frozen=True)
class _ValidationErrors:
    config: Config
    domains: Mapping[str, str]

    def identity(self) -> dict[str, Any]:
        """What the scores depend on besides the weights: the validation sets, how they are decoded, and what the model is."""
        scenario = build_scenario(self.config)
        known = {domain.name: domain.fingerprint("dev") for domain in scenario.domains}
        sets = {name: [domain, known.get(domain)] for name, domain in self.domains.items()}
        return {"sets": sets, "evaluation": scenario.task.describe()["evaluation"], "model": scenario.model_config}

    def __call__(self, model: Path) -> dict[str, float]:
        return {name: decode_checkpoint(self.config, model, domain, "dev").rate for name, domain in self.domains.items()}


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
    model, state = scenario.build_model(), load_recorded(checkpoint, THE_STAGE)
    attach_adapters(model, adapter_sizes(state))
    check_fits(model, state, checkpoint)
    model.load_state_dict(state)
    return scenario, chosen[0], model.to(config.device)
