"""The costly operations of a run, each done once for the same inputs: fine-tune, estimate curvature, evaluate, measure a loss."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from asrcl.adapt.cache import MADE_BY, Cache
from asrcl.adapt.diagnostics import RECORD_VERSION, curvature_record, layer_records, mean_loss, rounded, update_norm
from asrcl.adapt.distributed import Processes
from asrcl.adapt.protocols import Batch, Domain, StateDict, Task
from asrcl.adapt.resume import clear_progress
from asrcl.adapt.scenario import Scenario
from asrcl.adapt.trackers import TrackedRun, TrackingConfig
from asrcl.adapt.tracking import MARKER, Tracking
from asrcl.adapt.training import TrainConfig, Trainer
from asrcl.adapt.weights import fingerprint, load_state, save_recorded, save_state
from asrcl.curvature import Curvature, estimate
from asrcl.entries import remove_entry
from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json
from asrcl.methods import Method
from asrcl.scoring import Errors

logger = logging.getLogger(__name__)

HASH_LETTERS: Final = 6


@dataclass(frozen=True)
class CurvatureConfig:
    """How curvature is estimated; everything but `max_items` and `tolerance` as `asrcl.curvature.estimate` has it.

    Attributes:
        fisher: "empirical", with the labels of the data; "mc", with labels drawn from the model; "exact".
        layers: of a Kronecker curvature: "linear" maps alone, the rest being averaged as in the IHR paper; or "all" parameters.
        weight_sharing: "expand" or "reduce".
        stride: use one frame in so many.
        samples: draws per batch with "mc".
        max_items: at most so many items of the training data, None for all.
        tolerance: stop when the sums have converged to this relative change, None for never.
    """

    fisher: Literal["empirical", "mc", "exact"] = "empirical"
    layers: Literal["linear", "all"] = "linear"
    weight_sharing: Literal["expand", "reduce"] = "expand"
    stride: int = 1
    samples: int = 1
    max_items: int | None = None
    tolerance: float | None = None


@dataclass
class DomainLearner:
    """Does the work of a run and keeps it in a cache; methods see it as `asrcl.methods.Learner`.

    Attributes:
        scenario: domains, task, model.
        cache: where finished work lies.
        train: how to fine-tune.
        curvature: how to estimate curvature.
        seed: of all randomness.
        device: "cpu" or "cuda".
        label: what curves and messages call the method, where that is not the method's own name.
        stage: number of the current domain, from 1.
        stages: how many domains this run takes, None for all.
        diagnostics: what `record` says of layers and curvature: "none" nothing, "used" what the method's own curvature tells,
            "all" also for methods that need none, at the cost of an estimate per domain.
        tracking: dashboards for curves; None for TensorBoard's files beside the cache.
        progress: called after every stage; says how far the work is.
        record: what the current stage did, for the result file.
        costs: seconds and memory of the current stage, kept apart because no two runs agree on them.
    """

    scenario: Scenario
    cache: Cache
    train: TrainConfig
    curvature: CurvatureConfig
    seed: int
    device: str = "cpu"
    label: str = ""
    stage: int = 1
    stages: int | None = None
    diagnostics: Literal["none", "used", "all"] = "used"
    tracking: Tracking | None = None
    progress: Callable[[], str] = str
    record: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    _curvatures: dict[str, Path] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_diagnostics(self.diagnostics)
        self.tracking = self.tracking or Tracking(TrackingConfig(), self.cache.root.parent)

    @property
    def last(self) -> bool:
        """Whether no domain follows the current one in this run."""
        return self.stage == (self.stages or len(self.scenario.domains))

    def model_with(self, state: StateDict) -> nn.Module:
        """A model with these weights on the run's device."""
        model = self.scenario.build_model().to(self.device)
        model.load_state_dict(state)
        return model

    def fine_tune(self, parent: StateDict, domain: Domain, method: Method) -> StateDict:
        """Weights after training on `domain` from `parent`; shared by all methods that train alike."""
        key = {
            "parent": fingerprint(parent),
            "data": [domain.fingerprint(split) for split in ("train", "dev")],
            "loss": self.scenario.task.describe()["loss"],
            "train": asdict(self.train),
            "method": method.training_key(),
            "seed": self.seed,
            **self._model_key(),
        }

        def make(folder: Path) -> None:
            trainer = Trainer(
                self.model_with(parent), self.scenario.task, domain, self.train, method, self.seed, folder,
                self._track(domain, method, folder),
            )  # fmt: skip
            save_state(trainer.fit(), folder / "model.safetensors")
            write_json(folder / "training.json", asdict(trainer.progress))
            if trainer.processes.rank == 0:
                clear_progress(folder)

        entry = self._timed("train", key, make, notes=MARKER)
        history = read_json(entry / "training.json")["history"]
        self._replay(domain, method, entry, history)
        self.record["training"] = [{"train_loss": e["train_loss"], "dev_loss": e["dev_loss"]} for e in history]
        return load_state(entry / "model.safetensors")

    def _track(self, domain: Domain, method: Method, folder: Path) -> Callable[[list[dict[str, float]]], TrackedRun]:
        """Starts the curves of one fine-tune."""
        assert self.tracking is not None
        return partial(self.tracking.training, self._track_name(domain, method, folder), folder, self._settings(domain, method))

    def _replay(self, domain: Domain, method: Method, entry: Path, history: list[dict[str, float]]) -> None:
        """Give dashboards the curves of a finished fine-tune where they lack them."""
        if self.tracking is not None and Processes().rank == 0:
            settings = self._settings(domain, method)
            self.tracking.replay(self._track_name(domain, method, entry), entry, settings, history)

    def _track_name(self, domain: Domain, method: Method, folder: Path) -> str:
        """The method that needs the fine-tune, its place, and the beginning of its hash, which other settings change."""
        name = self.label or method.name or "initial"
        return f"{name}/{self.seed}/stage{self.stage}-{domain.name}-{folder.stem[:HASH_LETTERS]}"

    def _settings(self, domain: Domain, method: Method) -> dict[str, Any]:
        return {"domain": domain.name, "seed": self.seed, **asdict(self.train), "method": method.training_key()}

    def estimate_curvature(
        self, state: StateDict, domain: Domain, structure: Literal["kron", "diagonal"], cost: str = "curvature"
    ) -> Curvature:
        """Curvature of the task's loss at `state` on the training data of `domain`; its time goes to `<cost>_seconds`."""
        key = {
            "model": fingerprint(state),
            "data": domain.fingerprint("train"),
            "loss": self.scenario.task.describe()["loss"],
            "structure": structure,
            "curvature": asdict(self.curvature),
            **self._model_key(),
        }
        entry = self._timed("curvature", key, lambda folder: self._estimate(state, domain, structure, folder), cost)
        self._curvatures[key["model"]] = entry
        return Curvature.load(entry / "curvature.safetensors")

    def curvature_at(self, state: StateDict) -> Curvature | None:
        """The curvature that was estimated last in this run at exactly these weights."""
        entry = self._curvatures.get(fingerprint(state))
        return Curvature.load(entry / "curvature.safetensors") if entry else None

    def diagnose(self, old: StateDict, new: StateDict, merged: StateDict) -> None:
        """Record what a stage did to the weights: before it, after fine-tuning, at its end."""
        self.record["update_norm"], self.record["merged_update_norm"] = update_norm(old, new), update_norm(old, merged)
        if self.diagnostics != "none":
            curvature = self.curvature_at(old)
            self.record["layers"] = layer_records(old, new, merged, curvature)
            if curvature is not None:
                self._measure(str(curvature.metadata.get("domain")), old, new, merged)

    def _measure(self, name: str, old: StateDict, new: StateDict, merged: StateDict) -> None:
        """Record on which domain an increase of the loss was predicted, and what it came to on that domain's dev split."""
        self.record["predicted_on"] = name
        domain = next((domain for domain in self.scenario.domains if domain.name == name), None)
        if domain is not None and domain.size("dev"):
            before = self.mean_loss(old, domain)
            for key, state in (("measured_increase", new), ("merged_measured_increase", merged)):
                self.record[key] = rounded(self.mean_loss(state, domain) - before)

    def mean_loss(self, state: StateDict, domain: Domain, split: str = "dev") -> float:
        """Mean over a split's items of the loss whose curvature is estimated."""
        key = {
            "model": fingerprint(state),
            "data": domain.fingerprint(split),
            "loss": self.scenario.task.describe()["loss"],
            **self._model_key(),
        }

        def make(folder: Path) -> None:
            loss = mean_loss(self.model_with(state), self.scenario.task, domain, split)
            write_json(folder / "loss.json", {"loss": loss})

        return float(read_json(self._timed("loss", key, make, "diagnostics") / "loss.json")["loss"])

    def describe_curvature(self, state: StateDict, domain: Domain, continues: bool) -> None:
        """Record the curvature at the end of a stage, for the next one.

        Args:
            state: weights at the end of the stage.
            domain: that was learned in it.
            continues: whether the next stage starts from these weights; with diagnostics "all" they get a curvature.
        """
        if self.diagnostics == "all" and continues and not self.last:
            self.estimate_curvature(state, domain, "kron", cost="diagnostics")
        entry = self._curvatures.get(fingerprint(state))
        if self.diagnostics != "none" and entry is not None:
            self.record["curvature"] = read_json(self._card_of(entry) / "card.json")

    def _card_of(self, entry: Path) -> Path:
        def make(folder: Path) -> None:
            write_json(folder / "card.json", curvature_record(Curvature.load(entry / "curvature.safetensors")))

        return self._timed("card", {"curvature": entry.name, "version": RECORD_VERSION}, make, "diagnostics")

    def _estimate(self, state: StateDict, domain: Domain, structure: Literal["kron", "diagonal"], folder: Path) -> None:
        model, task, partial = self.model_with(state), self.scenario.task, folder / "partial.safetensors"

        def attempt() -> Curvature:
            return estimate_on_domain(model, task, domain, self.curvature, structure, checkpoint=partial)

        try:
            curvature = attempt()
        except InputError as error:
            if str(partial) not in str(error):
                raise
            logger.warning("%s; estimated from the first batch again", error)
            for left in folder.glob(f"{partial.name}*"):
                remove_entry(left)
            curvature = attempt()
        curvature.save(folder / "curvature.safetensors")
        logger.info("%s: %s curvature of stage %d", domain.name, structure, self.stage)

    def evaluate(self, state: StateDict, domain: Domain, split: str = "test") -> Errors:
        """Errors on a split, item by item."""
        key = {
            "model": fingerprint(state),
            "data": domain.fingerprint(split),
            "task": self.scenario.task.describe()["evaluation"],
            **self._model_key(),
        }

        def make(folder: Path) -> None:
            errors = self.scenario.task.evaluate(self.model_with(state), domain, split)
            errors.save(folder / "errors.jsonl")

        return Errors.load(self._timed("errors", key, make) / "errors.jsonl")

    def _model_key(self) -> dict[str, Any]:
        return {"model_config": self.scenario.model_config} if self.scenario.model_config else {}

    def _timed(self, kind: str, key: dict[str, Any], make: Callable[[Path], None], cost: str = "", notes: str = "") -> Path:
        """A cache entry; what it took to make is added to the costs (`<cost or kind>_seconds`), also when it was made earlier."""

        def make_timed(folder: Path) -> None:
            started = time.perf_counter()
            make(folder)
            write_json(
                folder / "cost.json", {"seconds": time.perf_counter() - started, "peak_memory_bytes": _peak_memory()}
            )

        entry = self.cache.entry(kind, {**key, MADE_BY: Processes().made_by(self.device)}, make_timed, notes)
        spent = read_json(entry / "cost.json")
        name = f"{cost or kind}_seconds"
        self.costs[name] = self.costs.get(name, 0.0) + spent["seconds"]
        self.costs["peak_memory_bytes"] = max(self.costs.get("peak_memory_bytes", 0), spent["peak_memory_bytes"])
        return entry


def check_diagnostics(diagnostics: str) -> None:
    """Make sure that `diagnostics` is one of "none", "used", "all".

    Raises:
        InputError: it is not.
    """
    if diagnostics not in ("none", "used", "all"):
        raise InputError(f"diagnostics={diagnostics}: choose none, used or all")


def estimate_on_domain(
    model: nn.Module,
    task: Task,
    domain: Domain,
    config: CurvatureConfig,
    structure: Literal["kron", "ekfac", "diagonal", "dense"] = "kron",
    **options: Any,
) -> Curvature:
    """Curvature of a task's loss at a model's weights on the training data of a domain.

    Args:
        model: on the device to compute on.
        task: has the loss and its padding masks.
        domain: the data.
        config: how to estimate.
        structure: kind of curvature.
        **options: further arguments of `asrcl.curvature.estimate` (`checkpoint`, `progress`, ...).

    Raises:
        InputError: as `asrcl.curvature.estimate`.
    """
    settings = asdict(config)
    if structure in ("diagonal", "dense"):  # of every parameter, item by item: no factors to share or thin
        settings |= {"layers": "all", "weight_sharing": "expand", "stride": 1, "tolerance": None}
    origin = {"domain": domain.name, "data_hash": domain.fingerprint("train"), "loss": task.describe()["loss"]}
    return estimate(
        model,
        task.curvature_loss,
        _Shuffled(domain),
        structure=structure,
        padding=lambda batch: task.padding(model, batch),
        metadata=origin,
        **settings,
        **options,
    )


@dataclass(frozen=True)
class _Shuffled:
    """The training batches of a domain in an order that is always the same; can be gone over several times."""

    domain: Domain

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.domain.batches("train", shuffle=True, seed=0))


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_initial(
    scenario: Scenario,
    train: TrainConfig,
    cache: Cache,
    seed: int,
    path: Path,
    device: str = "cpu",
    tracking: Tracking | None = None,
    domain: Domain | None = None,
) -> StateDict:
    """Train the initial model from fresh weights on `domain`, by default the first of the scenario, and write it to `path`.

    The weights come from the cache where the same training has been done before.
    """
    torch.manual_seed(seed)
    fresh = {name: value.clone() for name, value in scenario.build_model().state_dict().items()}
    learner = DomainLearner(scenario, cache, train, CurvatureConfig(), seed, device, tracking=tracking)
    state = learner.fine_tune(fresh, domain or scenario.domains[0], Method())
    save_recorded(state, path, {"seed": seed, "train": asdict(train), **learner.record, **learner.costs})
    return state
