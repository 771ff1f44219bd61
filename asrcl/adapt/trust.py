"""How far a curvature can be trusted: its predictions beside what the old domain's loss does on the way to the new weights.

    scenario.observers = [TrustRegion()]            # or `+trust=segment` on the command line

After a stage the loss of the domain before is measured at points of the segment from the old weights to the fine-tuned and, where
these are no point of it, to the merged ones: with all weights moved, and with those of one kind of layer alone (attention,
feed-forward, ...). Beside it stands ½ δᵀFδ of several curvatures at the old weights, the slope gᵀδ, and the second difference of
the loss itself. The curvatures are estimated on the same items as the loss of the training split is measured on, so that nothing
but the quadratic form stands between the two. docs/trust_region.md says what was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from asrcl.adapt.observers import Moved, predicted_increases, rounded
from asrcl.adapt.spectra import first_batches
from asrcl.contract.protocols import Batch, Domain, Task
from asrcl.contract.weights import Weights
from asrcl.curvature import Curvature, EstimateOptions, correct, estimate
from asrcl.curvature.modes import evaluated
from asrcl.curvature.parameters import matches
from asrcl.curvature.segment import forms_along, losses_along
from asrcl.exceptions import InputError
from asrcl.files import read_json, write_json

if TYPE_CHECKING:
    from asrcl.adapt.learner import DomainLearner

RECORD_VERSION: Final = 1  # of what a segment keeps; the cache looks at it
ALL: Final = "all"
NORMS: Final = "norms"
OTHER: Final = "other"
SPLITS: Final = ("train", "dev")
DIFFERENCE: Final = 0.1
"""Step of the second difference that gives the loss's own curvature. On the accents the result is the same to 0.3 % from 0.01 to
0.1; a larger step is above the rounding of the loss also where a kind of layer hardly moves."""
ONE_FILE: Final = 2**62
ON_LINE: Final = 1e-3
"""Distance from the segment, as a part of its length, within which merged weights are a point of it."""

Fisher = Literal["empirical", "mc", "exact"]
Structure = Literal["diagonal", "kron", "ekfac", "block", "full"]
UNFACTORED: Final = ("diagonal", "block", "full")


def _kinds() -> dict[str, tuple[str, ...]]:
    return {
        "attention": ("*attn*", "*attention.*", "*mha*"),
        "convolution": ("*conv*",),
        "feed-forward": ("*ffn*", "*feed_forward*", "*fc?.*", "*mlp*"),
        "embedding and output": ("*emb*", "*head*", "*src_module*", "*feature_projection*", "*proj_out*"),
    }


@dataclass(frozen=True)
class TrustSettings:
    """What is measured.

    Attributes:
        points: of the segment, at equal ratios of steps, the last at its end.
        smallest: the first step, as a part of the segment.
        items: of each split at most so many (whole batches).
        draws: label draws per item for "mc" of what is not factored, and for CTC under "exact". Factored "mc" has one draw, the
            default of merges.
        fishers: "empirical", with the labels of the data; "mc", labels drawn from the model; "exact", the generalised
            Gauss-Newton matrix of factored curvature, with all classes for cross entropy and `draws` draws for CTC, which has too
            many label sequences. What is not factored has no "exact": drawn labels give the same there but for sampling.
        structures: "diagonal", that of elastic weight consolidation; "kron" and "ekfac", a block per parameter tensor in
            Kronecker factors, without and with measured eigenvalues; "block", the same blocks without factors; "full", nothing
            left out.
        kinds: of layers: name -> glob patterns of parameter names, the first that fits. Normalisation layers are known by their
            class, and what fits nothing is "other".

    Raises:
        InputError: a number that is out of range, or nothing to predict.
    """

    points: int = 10
    smallest: float = 0.01
    items: int = 96
    draws: int = 8
    fishers: tuple[Fisher, ...] = ("empirical", "mc", "exact")
    structures: tuple[Structure, ...] = ("diagonal", "kron", "ekfac", "block", "full")
    kinds: dict[str, tuple[str, ...]] = field(default_factory=_kinds)

    def __post_init__(self) -> None:
        if self.points < 2 or not 0 < self.smallest < 1:
            raise InputError(f"trust: points={self.points}, smallest={self.smallest}: at least 2 and between 0 and 1 are needed")
        if self.items < 1 or self.draws < 1 or not self.fishers or not self.structures:
            raise InputError("trust: items and draws are at least 1, and fishers and structures each name at least one")

    @property
    def steps(self) -> list[float]:
        """The points of the segment."""
        last = self.points - 1
        return [rounded(float(self.smallest ** (1 - k / last))) for k in range(self.points)]


@dataclass(frozen=True)
class TrustRegion:
    """`trust`: the loss of the domain before along the way to the new weights, and what curvatures predict of it.

    Attributes:
        settings: what is measured.
    """

    settings: TrustSettings = field(default_factory=TrustSettings)

    def after_stage(self, learner: DomainLearner, moved: Moved) -> dict[str, Any]:
        """The segments of a stage that went on from the weights of another domain; nothing of the others."""
        if learner.stage < 2 or not (moved.learned and moved.continues):
            return {}
        assert moved.old is not None
        domain, share = learner.domains[-2], place_on_line(moved.old, moved.new, moved.end)
        record: dict[str, Any] = {"domain": domain.name, "steps": self.settings.steps}
        record["fine_tuned"] = self._segment(learner, domain, moved.old, moved.new)
        record["merged"] = self._segment(learner, domain, moved.old, moved.end) if share is None else {"step": rounded(share)}
        return {"trust": record}

    def _segment(self, learner: DomainLearner, domain: Domain, old: Weights, end: Weights) -> dict[str, Any]:
        curvatures = self._curvatures(learner, domain, old)  # first, for their time is counted by itself
        dev = domain.fingerprint("dev") if domain.size("dev") else None
        key = {**self._key(learner, domain, old), "dev": dev, "end": end.hash, **asdict(self.settings)}

        def make(folder: Path) -> None:
            model = learner.model_with(old)
            write_json(folder / "segment.json", self._measured(model, learner.task, domain, old, end, curvatures))

        return dict(read_json(learner.diagnose("trust", key, make) / "segment.json"))

    def _key(self, learner: DomainLearner, domain: Domain, old: Weights) -> dict[str, Any]:
        data, loss = domain.fingerprint("train"), learner.task.describe()["loss"]
        return {"old": old.hash, "data": data, "items": self.settings.items, "loss": loss, "version": RECORD_VERSION}

    def _curvatures(self, learner: DomainLearner, domain: Domain, old: Weights) -> dict[str, list[Curvature]]:
        """Structure and Fisher information -> curvatures that add up to one quadratic form, made once for all segments."""
        found: dict[str, list[Curvature]] = {}
        factored = [structure for structure in ("kron", "ekfac") if structure in self.settings.structures]
        for fisher in self.settings.fishers if factored else ():
            key = {**self._key(learner, domain, old), "fisher": fisher, "factored": factored}
            if fisher == "exact":
                key["draws"] = self.settings.draws

            def make(folder: Path, fisher: Fisher = fisher) -> None:
                model, batches = learner.model_with(old), first_batches(domain, "train", self.settings.items)
                for number, options in enumerate(self._estimates(fisher, model, learner.task, batches)):
                    for structure, curvature in _estimated(model, learner.task, batches, options, factored):
                        curvature.save(folder / f"{structure}-{number}.safetensors", max_shard_bytes=ONE_FILE)

            entry = learner.diagnose("trust_curvature", key, make)
            for structure in factored:
                files = sorted(entry.glob(f"{structure}-*.safetensors"))
                found[f"{structure} {fisher}"] = [Curvature.load(file) for file in files]
        return found

    def _estimates(self, fisher: Fisher, model: nn.Module, task: Task, batches: Sequence[Batch]) -> list[EstimateOptions]:
        """One estimate, or, of a loss with CTC under "exact", one for CTC and one for the rest, whose labels are independent."""
        if fisher != "exact":
            return [EstimateOptions(fisher)]
        watch = EstimateOptions().losses()
        with evaluated(model, list(model.parameters())), torch.enable_grad(), watch:
            task.curvature_loss(model, batches[0].to(next(model.parameters()).device))
        others = tuple(sorted(watch.seen - {"ctc_loss"}))
        found = [EstimateOptions("exact", parts=others)] if others else []
        drawn = EstimateOptions("mc", samples=self.settings.draws, parts=("ctc_loss",))
        return [*found, drawn] if "ctc_loss" in watch.seen else found

    def _measured(
        self, model: nn.Module, task: Task, domain: Domain, old: Weights, end: Weights, curvatures: Mapping[str, list[Curvature]]
    ) -> dict[str, Any]:
        change = _change(old, end)
        names, kinds = [name for name, _ in model.named_parameters() if name in change], layer_kinds(model, self.settings.kinds)
        groups = {kind: [name for name in names if kinds[name] == kind] for kind in dict.fromkeys(kinds[name] for name in names)}
        groups = {kind: of_kind for kind, of_kind in groups.items() if any(change[name].any() for name in of_kind)}
        splits = {split: first_batches(domain, split, self.settings.items) for split in SPLITS if domain.size(split)}
        predicted = self._predicted(curvatures, change, kinds, groups)
        slopes, forms = self._forms(model, task, splits["train"], change, {ALL: names, **groups})
        starts = {split: losses_along(model, task.curvature_loss, batches, {}, [0.0])[0] for split, batches in splits.items()}
        records = {}
        for kind, of_kind in {ALL: names, **groups}.items():
            part = change if kind == ALL else {name: change[name] for name in of_kind}
            records[kind] = {
                "weights": sum(change[name].numel() for name in of_kind),
                "norm": rounded(sum(float(change[name].square().sum()) for name in of_kind) ** 0.5),
                "slope": rounded(slopes[kind]),
                **self._rises(model, task, splits, starts, part),
                "predicted": {name: rounded(found[kind]) for name, found in {**predicted, **forms}.items()},
            }
        return {"items": {split: sum(map(len, batches)) for split, batches in splits.items()}, "kinds": records}

    def _rises(
        self,
        model: nn.Module,
        task: Task,
        splits: Mapping[str, Sequence[Batch]],
        starts: Mapping[str, float],
        change: Mapping[str, Tensor],
    ) -> dict[str, Any]:
        """By how much the loss rises at every step of a change, and how it curves."""
        found: dict[str, Any] = {}
        for split, batches in splits.items():
            around = [-DIFFERENCE, DIFFERENCE] if split == "train" else []
            losses = losses_along(model, task.curvature_loss, batches, change, [*self.settings.steps, *around])
            rises = [loss - starts[split] for loss in losses]
            found[split] = [rounded(rise) for rise in rises[: self.settings.points]]
            if around:
                found["curved"] = rounded(sum(rises[self.settings.points :]) / (2 * DIFFERENCE**2))
        return found

    def _predicted(
        self,
        curvatures: Mapping[str, list[Curvature]],
        change: Mapping[str, Tensor],
        kinds: Mapping[str, str],
        groups: Mapping[str, Sequence[str]],
    ) -> dict[str, dict[str, float]]:
        """Of every factored curvature, the prediction per kind and over all."""
        found = {}
        for name, parts in curvatures.items():
            sums = [predicted_increases(part, change, lambda parameter: kinds[parameter]) for part in parts]
            found[name] = {kind: sum(one.get(kind, 0.0) for one in sums) for kind in groups}
            found[name][ALL] = sum(value for one in sums for value in one.values())
        return found

    def _forms(
        self,
        model: nn.Module,
        task: Task,
        batches: Sequence[Batch],
        change: Mapping[str, Tensor],
        groups: Mapping[str, Sequence[str]],
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """The slope per kind, and what the Fisher information predicts that is not factored."""
        unfactored = [structure for structure in UNFACTORED if structure in self.settings.structures]
        wanted = [fisher for fisher in ("empirical", "mc") if unfactored and fisher in self.settings.fishers]
        slopes, found = {}, {}
        for fisher in dict.fromkeys(["empirical", *wanted]):  # the slope needs the labels of the data in any case
            options = EstimateOptions(fisher, samples=self.settings.draws if fisher == "mc" else 1)
            forms = forms_along(model, task.curvature_loss, batches, change, groups, options)
            if fisher == "empirical":
                slopes = {kind: form.slope for kind, form in forms.items()}
            for structure in unfactored if fisher in wanted else ():
                found[f"{structure} {fisher}"] = {kind: getattr(form, structure) for kind, form in forms.items()}
        return slopes, found


def layer_kinds(model: nn.Module, patterns: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Every parameter's kind of layer: "norms" by the class of its module, else the first kind that its name fits, or "other"."""
    found = {}
    for owner, module in model.named_modules():
        for name, _ in module.named_parameters(owner, recurse=False):
            fits = (kind for kind, globs in patterns.items() if matches(name, globs))
            found[name] = NORMS if "norm" in type(module).__name__.lower() else next(fits, OTHER)
    return found


def place_on_line(old: Mapping[str, Tensor], new: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> float | None:
    """Where weights lie on the line from old (0) to new (1); None where they do not lie on it."""
    if end is new:
        return 1.0
    along, whole, beside = 0.0, 0.0, 0.0
    line, other = _change(old, new), _change(old, end)
    for name, change in line.items():
        along += float((change * other[name]).sum())
        whole += float(change.square().sum())
    place = along / whole if whole else 0.0
    for name, change in line.items():
        beside += float((other[name] - place * change).square().sum())
    return place if beside**0.5 <= ON_LINE * whole**0.5 else None


def _change(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: new[name].double() - value.double() for name, value in old.items() if value.is_floating_point()}


def _estimated(
    model: nn.Module, task: Task, batches: Sequence[Batch], options: EstimateOptions, factored: Sequence[str]
) -> Iterator[tuple[str, Curvature]]:
    """One curvature of every structure that is wanted."""
    curvature = estimate(model, task.curvature_loss, batches, options, padding=lambda batch: task.padding(model, batch))
    if "kron" in factored:
        yield "kron", curvature
    if "ekfac" in factored:
        yield "ekfac", correct(curvature, model, task.curvature_loss, batches)
