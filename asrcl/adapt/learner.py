"""The costly operations of a run, each done once for the same inputs: fine-tune, estimate curvature, evaluate, measure a loss."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from asrcl.adapt.cache import MADE_BY, Cache
from asrcl.adapt.costs import measured
from asrcl.adapt.keeping import Keep
from asrcl.adapt.observers import RECORD_VERSION, Diagnostics, Observer, curvature_record, mean_loss, standard_observers
from asrcl.adapt.parts import frozen_parts
from asrcl.adapt.resume import clear_progress
from asrcl.adapt.scenario import Scenario, UnionDomain
from asrcl.adapt.trackers import TrackedRun, TrackingConfig
from asrcl.adapt.tracking import MARKER, Tracking
from asrcl.adapt.training import TrainConfig, Trainer
from asrcl.contract.adapters import adapter_sizes, attach_adapters
from asrcl.contract.method import Method
from asrcl.contract.protocols import Batch, Domain, Task
from asrcl.contract.weights import Weights, fingerprint, load_weights, save_recorded, save_weights
from asrcl.curvature import Curvature, estimate
from asrcl.distributed import processes
from asrcl.entries import remove_entry
from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json
from asrcl.scoring import Errors
from asrcl.state import StateDict

logger = logging.getLogger(__name__)

METHOD_STATE: Final = "method.safetensors"
CONFIDENCE_REVISION: Final = 2
"""Part of the keys of confidences; raise it when a task computes others for the same hypotheses."""
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
    """Does the work of a run and keeps it in a cache; methods see it as `asrcl.contract.protocols.Learner`.

    One model serves all operations, the weights of each being loaded into it; a second one is a teacher's (`frozen`), and a
    method that changes the model's structure gets one of its own for every fine-tune.

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
        keep: domains whose error rates may rise by a budget only; None for none.
        diagnostics: what `record` says of layers and curvature (see `asrcl.adapt.observers.standard_observers`).
        tracking: dashboards for curves; None for TensorBoard's files beside the cache.
        progress: called after every stage; says how far the work is.
        record: what the current stage did, for the result file.
        costs: seconds and memory of the current stage, kept apart because no two runs agree on them.
        parent: what the first fine-tune of the current stage started from; None before it.
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
    keep: Keep | None = None
    diagnostics: Diagnostics = "used"
    tracking: Tracking | None = None
    progress: Callable[[], str] = str
    record: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    parent: Weights | None = None
    _weights: Weights | None = field(default=None, repr=False)
    _curvatures: dict[str, Path] = field(default_factory=dict, repr=False)
    _models: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        standard_observers(self.diagnostics)  # an unknown word is refused before any work begins
        self.tracking = self.tracking or Tracking(TrackingConfig(), self.cache.root.parent)

    # --- what methods ask

    @property
    def task(self) -> Task:
        """The problem."""
        return self.scenario.task

    @property
    def last(self) -> bool:
        """Whether no domain follows the current one in this run."""
        return self.stage == (self.stages or len(self.scenario.domains))

    @property
    def initial(self) -> Weights:
        """The initial model.

        Raises:
            InputError: the scenario has none.
        """
        if self.scenario.initial is None:
            raise InputError(f"scenario {self.scenario.name}: no initial model; run the train stage (asrcl train) first")
        return Weights.of(self.scenario.initial)

    @property
    def fresh(self) -> Weights:
        """Weights that nothing has trained, drawn from the seed; the same as those that the initial model began with."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return Weights({name: value.clone() for name, value in self.scenario.build_model().state_dict().items()})

    @property
    def epochs(self) -> int:
        """Passes over the training data that a fine-tune of this run takes."""
        return self.train.epochs

    @property
    def weights(self) -> Weights:
        """What the last finished stage ended with; the initial model before the first."""
        return self.initial if self._weights is None else self._weights

    @property
    def domains(self) -> Sequence[Domain]:
        """The domains from the first to the current one."""
        return self.scenario.domains[: self.stage]

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What looks at every stage: what `diagnostics` asks for, and the scenario's own."""
        return (*standard_observers(self.diagnostics), *self.scenario.observers)

    def to_come(self, domain: Domain) -> bool:
        """Whether a domain is one of the run's that no stage so far has learned; False for a probe."""
        return any(other.name == domain.name for other in self.scenario.domains[self.stage :])

    def union(self, domains: Sequence[Domain]) -> Domain:
        """Several domains as one."""
        return UnionDomain(domains)

    def private(self, domain: Domain) -> Set[str]:
        """Names of the parameters that `domain` alone uses."""
        return set(self.scenario.private(domain.name))

    def foreign(self, domain: Domain) -> Set[str]:
        """Names of the parameters that other domains of the run alone use."""
        others = [other for other in self.scenario.domains if other.name != domain.name]
        return {name for other in others for name in self.private(other)}

    def settled(self, domain: Domain, learned: Weights, merged: Weights) -> Weights:
        """Merged weights with the parameters that `domain` alone uses as they were learned: no other domain's are merged in."""
        names = self.private(domain)
        if all(merged[name] is learned[name] for name in names):
            return merged
        return Weights({**merged.state, **{name: learned[name] for name in names}})

    def frozen(self, weights: Weights) -> nn.Module:
        """A teacher with these weights, in evaluation mode and without gradients. Valid until the next call."""
        return self._loaded("teacher", weights).requires_grad_(False).eval()

    def model_with(self, weights: Weights | StateDict) -> nn.Module:
        """The run's model with these weights, on its device. Valid until the next call or operation."""
        return self._loaded("model", weights)

    def _loaded(self, which: str, weights: Weights | StateDict) -> nn.Module:
        state = Weights.of(weights).state
        sizes = adapter_sizes(state)
        shape = f"{which} {sizes}"
        if shape not in self._models:
            with torch.random.fork_rng(devices=[]):  # a teacher may be asked for in the middle of an epoch
                self._models[shape] = attach_adapters(self.scenario.build_model().to(self.device), sizes)
        model = self._models[shape]
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        return model

    # --- the loop's bookkeeping

    def begin(self, stages: int) -> None:
        """Start a run of so many stages from the initial model."""
        self.stages, self._weights = stages, None
        self._curvatures.clear()

    def enter(self, stage: int) -> None:
        """Start a stage: nothing done, nothing spent."""
        self.stage, self.record, self.costs, self.parent = stage, {}, {}, None

    def leave(self, weights: Weights) -> None:
        """End a stage with these weights."""
        self._weights = weights

    # --- operations

    def fine_tune(
        self,
        parent: Weights | StateDict,
        domain: Domain,
        method: Method,
        epochs: int | None = None,
        learning_rate: float | None = None,
    ) -> Weights:
        """Weights after training on `domain` from `parent`, at the run's epochs and learning rate or those given.

        Methods that train alike share it. The method ends in the state that training left it in, whether that was now or before.

        Raises:
            DivergedError: the loss is not finite.
            InputError: a split is empty, or the method refuses the model.
        """
        train = self.train if epochs is None else replace(self.train, epochs=epochs)
        train = train if learning_rate is None else replace(train, learning_rate=learning_rate)
        parent, before = Weights.of(parent), method.training_state()
        started = fingerprint(before)  # now, since a method may change its tensors in place
        self.parent = self.parent or parent
        key = {
            "parent": parent.hash,
            "data": [domain.fingerprint(split) for split in ("train", "dev")],
            "loss": self.task.describe()["loss"],
            "train": train.key(),
            "method": method.key() | ({} if method.trains_plainly else {"state": started, "stage": self.stage}),
            "seed": self.seed,
            **self._model_key(),
        }

        def make(folder: Path) -> None:
            plain = self._trained_model(parent, method)
            with frozen_parts(plain, train.freeze, train.layer_rates):
                model = method.wrap(self, plain)
                trainer = Trainer(self, model, domain, train, method, folder, self._track(domain, method, folder))
                save_weights(trainer.fit(), folder / "model.safetensors")
            after = method.training_state()
            if fingerprint(after) != started:
                save_weights(after, folder / METHOD_STATE)
            write_json(folder / "training.json", asdict(trainer.progress))
            if trainer.processes.rank == 0:
                clear_progress(folder)

        entry = self._timed("train", key, make, notes=MARKER)
        if (entry / METHOD_STATE).exists():
            method.load_state_dict(load_weights(entry / METHOD_STATE))
        history = read_json(entry / "training.json")["history"]
        self._replay(domain, method, entry, history)
        losses = [{"train_loss": e["train_loss"], "dev_loss": e["dev_loss"]} for e in history]
        self.record["training"] = [*self.record.get("training", []), *losses]
        return Weights(load_weights(entry / "model.safetensors"))

    def _trained_model(self, parent: Weights, method: Method) -> nn.Module:
        """The model to train: one of its own where the method may change its structure, which no other operation must see."""
        if type(method).wrap is Method.wrap:
            return self.model_with(parent)
        model = self.scenario.build_model().to(self.device)
        model.load_state_dict(parent.state)
        return model

    def _track(self, domain: Domain, method: Method, folder: Path) -> Callable[[list[dict[str, float]]], TrackedRun]:
        """Starts the curves of one fine-tune."""
        assert self.tracking is not None
        return partial(self.tracking.training, self._track_name(domain, method, folder), folder, self._settings(domain, method))

    def _replay(self, domain: Domain, method: Method, entry: Path, history: list[dict[str, float]]) -> None:
        """Give dashboards the curves of a finished fine-tune where they lack them."""
        if self.tracking is not None and processes().rank == 0:
            settings = self._settings(domain, method)
            self.tracking.replay(self._track_name(domain, method, entry), entry, settings, history)

    def _track_name(self, domain: Domain, method: Method, folder: Path) -> str:
        """The method that needs the fine-tune, its place, and the beginning of its hash, which other settings change."""
        name = self.label or method.name or "initial"
        return f"{name}/{self.seed}/stage{self.stage}-{domain.name}-{folder.stem[:HASH_LETTERS]}"

    def _settings(self, domain: Domain, method: Method) -> dict[str, Any]:
        return {"domain": domain.name, "seed": self.seed, **self.train.key(), "method": method.key()}

    def estimate_curvature(
        self, weights: Weights | StateDict, domain: Domain, structure: Literal["kron", "diagonal"], cost: str = "curvature"
    ) -> Curvature:
        """Curvature of the task's loss at `weights` on the training data of `domain`; its time goes to `<cost>_seconds`."""
        weights = Weights.of(weights)
        key = {
            "model": weights.hash,
            "data": domain.fingerprint("train"),
            "loss": self.task.describe()["loss"],
            "structure": structure,
            "curvature": asdict(self.curvature),
            **self._model_key(),
        }
        entry = self._timed("curvature", key, lambda folder: self._estimate(weights, domain, structure, folder), cost)
        self._curvatures[weights.hash] = entry
        return Curvature.load(entry / "curvature.safetensors")

    def curvature_at(self, weights: Weights) -> Curvature | None:
        """The curvature that was estimated last in this run at exactly these weights."""
        entry = self._curvatures.get(weights.hash)
        return Curvature.load(entry / "curvature.safetensors") if entry else None

    def curvature_card(self, weights: Weights) -> dict[str, Any] | None:
        """A short description of that curvature, for the result file."""
        entry = self._curvatures.get(weights.hash)
        return None if entry is None else dict(read_json(self._card_of(entry) / "card.json"))

    def mean_loss(self, weights: Weights | StateDict, domain: Domain, split: str = "dev") -> float:
        """Mean over a split's items of the loss whose curvature is estimated."""
        weights = Weights.of(weights)
        key = self._measured(weights, domain, split) | {"loss": self.task.describe()["loss"]}

        def make(folder: Path) -> None:
            write_json(folder / "loss.json", {"loss": mean_loss(self.model_with(weights), self.task, domain, split)})

        return float(read_json(self._timed("loss", key, make, "diagnostics") / "loss.json")["loss"])

    def diagnose(self, kind: str, key: dict[str, Any], make: Callable[[Path], None], cost: str = "diagnostics") -> Path:
        """The cache entry of a measurement of somebody else's, such as an observer; its time goes to `<cost>_seconds`.

        Args:
            kind: sort of entry, a subfolder of the cache.
            key: what the result depends on besides the model's configuration and the device.
            make: fills the folder it is given.
            cost: what its time is called.
        """
        return self._timed(kind, {**key, **self._model_key()}, make, cost)

    def _card_of(self, entry: Path) -> Path:
        def make(folder: Path) -> None:
            write_json(folder / "card.json", curvature_record(Curvature.load(entry / "curvature.safetensors")))

        return self._timed("card", {"curvature": entry.name, "version": RECORD_VERSION}, make, "diagnostics")

    def _estimate(self, weights: Weights, domain: Domain, structure: Literal["kron", "diagonal"], folder: Path) -> None:
        model, task, partial = self.model_with(weights), self.task, folder / "partial.safetensors"

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

    def evaluate(self, weights: Weights | StateDict, domain: Domain, split: str = "test", cost: str = "errors") -> Errors:
        """Errors on a split, item by item; their time goes to `<cost>_seconds`."""
        weights = Weights.of(weights)
        key = self._measured(weights, domain, split) | {"task": self.task.describe()["evaluation"]}

        found: list[Errors] = []

        def make(folder: Path) -> None:
            found.append(self.task.evaluate(self.model_with(weights), domain, split))
            found[0].save(folder / "errors.jsonl")

        entry = self._timed("errors", key, make, cost)
        return found[0] if found else Errors.load(entry / "errors.jsonl")

    def confidence(self, weights: Weights | StateDict, domain: Domain, split: str, errors: Errors) -> list[float]:
        """How sure these weights are of every item of what `evaluate` gave for them; the time goes to `errors_seconds`."""
        weights = Weights.of(weights)
        key = self._measured(weights, domain, split) | {"task": self.task.describe(), "revision": CONFIDENCE_REVISION}

        def make(folder: Path) -> None:
            found = self.task.confidence(self.model_with(weights), domain, split, errors)
            write_json(folder / "confidence.json", [value if math.isfinite(value) else None for value in found])

        entry = self._timed("confidence", key, make, "errors")
        return [-math.inf if value is None else value for value in read_json(entry / "confidence.json")]

    def _measured(self, weights: Weights, domain: Domain, split: str) -> dict[str, Any]:
        """What every measurement of weights on a split depends on."""
        return {"model": weights.hash, "data": domain.fingerprint(split), **self._model_key()}

    def _model_key(self) -> dict[str, Any]:
        return {"model_config": self.scenario.model_config} if self.scenario.model_config else {}

    def _timed(self, kind: str, key: dict[str, Any], make: Callable[[Path], None], cost: str = "", notes: str = "") -> Path:
        """A cache entry; what it took to make is added to the costs (`<cost or kind>_seconds`), also when it was made earlier."""

        def make_timed(folder: Path) -> None:
            with measured(self.device) as spent:
                make(folder)
            write_json(folder / "cost.json", spent)

        entry = self.cache.entry(kind, {**key, MADE_BY: processes().made_by(self.device)}, make_timed, notes)
        spent = read_json(entry / "cost.json")
        name = f"{cost or kind}_seconds"
        self.costs[name] = self.costs.get(name, 0.0) + spent.pop("seconds")
        for peak, value in spent.items():
            self.costs[peak] = max(self.costs.get(peak, 0), value)
        return entry


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


def train_initial(
    scenario: Scenario,
    train: TrainConfig,
    cache: Cache,
    seed: int,
    path: Path,
    device: str = "cpu",
    tracking: Tracking | None = None,
    domain: Domain | None = None,
) -> Weights:
    """Train the initial model from fresh weights on `domain`, by default the first of the scenario, and write it to `path`.

    The weights come from the cache where the same training has been done before.
    """
    learner = DomainLearner(scenario, cache, train, CurvatureConfig(), seed, device, tracking=tracking)
    state = learner.fine_tune(learner.fresh, domain or scenario.domains[0], Method())
    save_recorded(state, path, {"seed": seed, "train": asdict(train), **learner.record, **learner.costs})
    return state
