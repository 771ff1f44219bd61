"""The loop over domains: fine-tune, merge as far as named domains are kept, consolidate, evaluate, forget the data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asrcl.adapt.environment import environment
from asrcl.adapt.keeper import Keeper
from asrcl.adapt.learner import DomainLearner
from asrcl.adapt.observers import Moved
from asrcl.adapt.statistics import refreshed
from asrcl.contract.method import Method
from asrcl.contract.protocols import Domain
from asrcl.contract.weights import Weights, save_recorded
from asrcl.distributed import processes
from asrcl.files import write_json
from asrcl.scoring import Errors, ItemErrors, ProbeCounts, RunResult, Written, count_written, write_trn

logger = logging.getLogger(__name__)


@dataclass
class Stage:
    """What one stage left.

    Attributes:
        models: the weights that each domain is decoded with.
        errors: per domain, None where not evaluated.
        probes: per probe, likewise.
        record: what was done.
        costs: what it took.
    """

    models: list[Weights]
    errors: list[Errors | None]
    probes: list[Errors | None] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)


def adapt_domains(learner: DomainLearner, method: Method, folder: Path) -> None:
    """Take the initial model through all domains with one method; each stage's weights go to `stage<t>/model.safetensors`.

    Raises:
        InputError: the scenario has no initial model.
    """
    for _ in _kept(learner, method, run_stages(learner, method, None), folder):
        pass


def _kept(learner: DomainLearner, method: Method, stages: Iterator[Stage], folder: Path) -> Iterator[Stage]:
    """The stages, the weights and costs of each written, and what else the method writes."""
    for stage in stages:
        save_recorded(stage.models[learner.stage - 1], folder / f"stage{learner.stage}" / "model.safetensors", {})
        write_json(folder / f"stage{learner.stage}" / "costs.json", stage.costs)
        method.write(folder)
        yield stage


def run_method(
    learner: DomainLearner, method: Method, folder: Path, *, name: str = "", command: str = "", keep_weights: bool = False
) -> RunResult:
    """Adapt, decode every domain's test set after every stage, and write `results.json`; finished work is taken from the cache.

    Args:
        learner: scenario, cache, settings.
        method: what to do about forgetting.
        folder: result folder of this method and seed.
        name: of the method in the result file, where it is not the method's own.
        command: what the user typed, for the result file.
        keep_weights: also write the weights of every stage, as `adapt_domains` does.

    Raises:
        InputError: the scenario has no initial model.
    """
    stages = run_stages(learner, method, "test")
    history = list(_kept(learner, method, stages, folder) if keep_weights else stages)
    return _write_results(learner, method, name or method.name, history, folder, command)


def run_stages(learner: DomainLearner, method: Method, split: str | None, count: int | None = None) -> Iterator[Stage]:
    """Go through the domains one by one; after each, the model is evaluated on every domain, seen or to come.

    Args:
        learner: scenario, cache, settings.
        method: what to do about forgetting.
        split: "dev" for choosing knobs, "test" for results, None to leave evaluation for later.
        count: stop after this many domains and look only at these.

    Raises:
        InputError: the scenario has no initial model, or what it is to keep cannot be kept (`asrcl.adapt.keeping.Keep`).
    """
    scenario, domains = learner.scenario, learner.scenario.domains[: count or len(learner.scenario.domains)]
    learner.begin(len(domains))
    keeper = Keeper(learner, method, learner.keep) if learner.keep else None
    method.start_run(learner)
    models = [learner.initial] * len(scenario.domains)
    for number, domain in enumerate(domains, 1):
        learner.enter(number)
        errors: list[Errors | None] = [None] * len(domains)
        probes: list[Errors | None] = [None] * len(scenario.probes)
        if _learn(learner, method, domain, keeper):
            models = [method.weights_for(learner, each) or learner.weights for each in scenario.domains]
            due = scenario.evaluation.after(number, len(domains)) if split else ()
            for n in due:
                errors[n] = measured_by(learner, method, domains[n], split or "")
            if due and split == "test":
                for n, probe in enumerate(scenario.probes):
                    probes[n] = method.evaluate(learner, probe, split)
        _log_stage(learner, method, domain.name, [*errors, *probes])
        yield Stage(models, errors, probes, learner.record, learner.costs)


def measured_by(learner: DomainLearner, method: Method, domain: Domain, split: str) -> Errors:
    """Errors of a method on a domain of the run after the current stage; where it has no model for it, of the last weights."""
    found = method.evaluate(learner, domain, split)
    return learner.evaluate(learner.weights, domain, split) if found is None else found


def _learn(learner: DomainLearner, method: Method, domain: Domain, keeper: Keeper | None) -> bool:
    """Learn a domain, or, of the first, take the initial model as having learned it; False where the stage has no model."""
    old: Weights | None = None
    new: Weights | None = learner.initial
    if learner.stage > 1 or learner.scenario.learn_first:
        old = learner.weights
        method.start_domain(learner, domain)
        new = method.learn(learner, domain, old)
    if new is None:
        return False
    given = new
    if old is not None:
        merged = learner.settled(domain, new, Weights.of(method.merge_domain(learner, domain, old, new)))
        given = merged if method.own_statistics else refreshed(learner, domain, old, new, merged, method.averages)
    if keeper is not None and old is not None:
        given = keeper.settled(domain, old, new, given)
    end = learner.settled(domain, new, Weights.of(method.end_domain(learner, domain, old, given)))
    if keeper is not None:
        keeper.ended(domain, given, end)
    before = old if method.counted_from == "previous" else old and (learner.parent or old)
    moved = Moved(domain, before, new, end, method.continues)
    learner.leave(end)
    learner.record["parameters"] = method.parameters(learner)
    learner.record["kept_bytes"] = method.kept_bytes(learner)
    for observer in learner.observers:
        learner.record |= observer.after_stage(learner, moved)
    return True


def _log_stage(learner: DomainLearner, method: Method, domain: str, errors: Sequence[Errors | None]) -> None:
    rates = " ".join(f"{item.rate:.1f}" for item in errors if item)
    what, progress = f"error rates {rates}" if rates else "adapted", learner.progress()
    name = f"{learner.label or method.name} seed {learner.seed} stage {learner.stage} ({domain})"
    logger.info("%s: %s%s", name, what, f"; {progress}" if progress else "")


def _write_results(
    learner: DomainLearner, method: Method, name: str, history: list[Stage], folder: Path, command: str
) -> RunResult:
    """Write the decodes of every stage and domain, and `results.json` that sums them up."""
    domains = [domain.name for domain in learner.scenario.domains]
    for number, stage in enumerate(history, 1):
        for domain, errors in zip(domains, stage.errors, strict=True):
            if errors is not None:
                write_decode(errors, folder / f"stage{number}" / domain)
    probes = [_probe_counts(probe.name, n, history, folder) for n, probe in enumerate(learner.scenario.probes)]
    last = history[-1].errors
    assert all(errors is not None for errors in last)
    result = RunResult(
        scenario=learner.scenario.name,
        method=name,
        role=method.role,
        kind=method.kind,
        decoded_by=method.decoded_by,
        label=method.label,
        seed=learner.seed,
        unit=last[0].unit if last[0] else "word",
        domains=domains,
        errors=[[e.total if e else None for e in stage.errors] for stage in history],
        lengths=[e.length if e else 0 for e in last],
        character_errors=[[e.character_errors if e else None for e in stage.errors] for stage in history],
        character_lengths=[e.character_length if e else 0 for e in last],
        item_files=[
            [f"stage{n}/{domain}/utterances.jsonl" if e else None for domain, e in zip(domains, stage.errors, strict=True)]
            for n, stage in enumerate(history, 1)
        ],
        written=_known([[count_written(e) if e else None for e in stage.errors] for stage in history]),
        probes=[probe for probe in probes if probe is not None],
        config=learner.scenario.config,
        command=command,
        environment=environment(learner.device),
        stages=[{**stage.record, "model": stage.models[n].hash} for n, stage in enumerate(history)],
    )
    write_json(folder / "costs.json", [stage.costs for stage in history])
    result.save(folder / "results.json")
    if learner.tracking is not None and processes().rank == 0:
        learner.tracking.result(result, folder)
    return result


def _probe_counts(name: str, index: int, history: list[Stage], folder: Path) -> ProbeCounts | None:
    """What a run says of a probe, its decodes written; None where the method has no model for it."""
    found = [stage.probes[index] for stage in history]
    measured = [errors for errors in found if errors is not None]
    if not measured:
        return None
    files = [f"stage{number}/{name}/utterances.jsonl" if errors else None for number, errors in enumerate(found, 1)]
    for errors, file in zip(found, files, strict=True):
        if errors is not None and file is not None:
            write_decode(errors, (folder / file).parent)
    return ProbeCounts(
        name,
        errors=[errors.total if errors else None for errors in found],
        length=measured[0].length,
        character_errors=[errors.character_errors if errors else None for errors in found],
        character_length=measured[0].character_length,
        item_files=files,
        written=next(iter(_known([[count_written(errors) if errors else None for errors in found]])), []),
    )


def _known(written: list[list[Written | None]]) -> list[list[Written | None]]:
    """The counts of written text; nothing where texts were scored as they came."""
    return written if any(entry for row in written for entry in row) else []


def write_decode(errors: Errors, folder: Path) -> None:
    """Write `utterances.jsonl`, and where words were recognised sclite's `ref.trn` and `hyp.trn`."""

    def name(item: ItemErrors) -> str:
        """For sclite, which takes what stands before the first hyphen for the speaker."""
        return item.id if item.id.startswith(f"{item.group}-") else f"{item.group}-{item.id}"

    errors.save(folder / "utterances.jsonl")
    if errors.unit == "image":
        return
    write_trn(folder / "ref.trn", {name(item): item.reference for item in errors.items})
    write_trn(folder / "hyp.trn", {name(item): item.hypothesis for item in errors.items})
