"""What is looked at when a stage is over: how far the weights moved, layer by layer, and what curvature predicted of it.

An observer sees the weights before, between and after, and returns what `results.json` keeps of the stage; docs/adapt.md has
one of one's own. A layer is the module that owns the parameters: `encoder.0.weight` and `encoder.0.bias` belong to `encoder.0`.
With δ the change of a layer's weights and H the curvature of the previous domain at the weights before the change, the
predicted increase of the mean item loss on that domain is ½ δᵀHδ (Kirkpatrick et al. 2017; docs/curvature.md). H is
block-diagonal, so layers add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from torch import Tensor, nn

from asrcl.adapt.spectra import LossSpectra
from asrcl.contract.protocols import Domain, Task
from asrcl.contract.weights import Weights
from asrcl.curvature import Curvature, card
from asrcl.curvature.segment import mean_item_loss
from asrcl.exceptions import InputError

if TYPE_CHECKING:
    from asrcl.adapt.learner import DomainLearner

RECORD_VERSION: Final = 1  # of what `curvature_record` keeps; a cache of records looks at it
SPECTRUM_POINTS: Final = 32
SPECTRA: Final = 24
_BLOCK_KEYS: Final = ("name", "kind", "size", "weights", "share", "trace", "largest", "mean", "effective_rank")

Diagnostics = Literal["none", "used", "all", "spectra"]


@dataclass(frozen=True)
class Moved:
    """The weights of a stage.

    Attributes:
        domain: that was learned.
        old: what learning started from; None in the first stage of a run whose initial model knows the first domain.
        new: after learning.
        end: what the stage ended with.
        continues: whether the next stage starts from `end`.
    """

    domain: Domain
    old: Weights | None
    new: Weights
    end: Weights
    continues: bool

    @property
    def learned(self) -> bool:
        """Whether anything was learned."""
        return self.old is not None and self.new is not self.old


class Observer(Protocol):
    """Looks at every stage of a run when it is over."""

    def after_stage(self, learner: DomainLearner, moved: Moved) -> dict[str, Any]:
        """What to keep of a stage in `results.json`: JSON values by name. It may use the cached operations of the learner."""
        ...


class UpdateNorms:
    """`update_norm` and `merged_update_norm`: the L2 norms of the change of all weights by learning, and by the whole stage."""

    def after_stage(self, learner: DomainLearner, moved: Moved) -> dict[str, Any]:
        """Both norms of a stage that learned."""
        if not moved.learned:
            return {}
        assert moved.old is not None
        return {"update_norm": update_norm(moved.old, moved.new), "merged_update_norm": update_norm(moved.old, moved.end)}


class LayerChanges:
    """`layers`: the norms of every layer's change, and what the curvature that the method used predicts of the old loss.

    Beside it stands what the old loss really did on the dev split of the domain whose curvature it is.
    """

    def after_stage(self, learner: DomainLearner, moved: Moved) -> dict[str, Any]:
        """The layers of a stage that learned."""
        if not moved.learned:
            return {}
        assert moved.old is not None
        curvature = learner.curvature_at(moved.old)
        record: dict[str, Any] = {"layers": layer_records(moved.old, moved.new, moved.end, curvature)}
        if curvature is not None:
            record |= self._measured(learner, str(curvature.metadata.get("domain")), moved)
        return record

    def _measured(self, learner: DomainLearner, name: str, moved: Moved) -> dict[str, Any]:
        domain = next((domain for domain in learner.scenario.domains if domain.name == name), None)
        if domain is None or not domain.size("dev"):
            return {"predicted_on": name}
        assert moved.old is not None
        before = learner.mean_loss(moved.old, domain)
        return {
            "predicted_on": name,
            "measured_increase": rounded(learner.mean_loss(moved.new, domain) - before),
            "merged_measured_increase": rounded(learner.mean_loss(moved.end, domain) - before),
        }


@dataclass(frozen=True)
class CurvatureCards:
    """`curvature`: a card of the curvature at the weights that a stage ended with, for the next one.

    Attributes:
        estimate: whether it is also estimated for methods that need none, where the next stage starts from these weights.
    """

    estimate: bool = False

    def after_stage(self, learner: DomainLearner, moved: Moved) -> dict[str, Any]:
        """The card, if there is a curvature."""
        if self.estimate and moved.continues and not learner.last:
            learner.estimate_curvature(moved.end, moved.domain, "kron", cost="diagnostics")
        card = learner.curvature_card(moved.end)
        return {} if card is None else {"curvature": card}


def standard_observers(diagnostics: str) -> tuple[Observer, ...]:
    """The observers of a run.

    Args:
        diagnostics: "none", the norms over all weights alone; "used", also layers and what the method's own curvature tells;
        "all",
            the same with a curvature for methods that need none, at the cost of an estimate per domain; "spectra", "used" with
            the spectrum of the loss at every domain's start, at the cost of a hundred passes over a few items.

    Raises:
        InputError: another word.
    """
    if diagnostics not in get_args(Diagnostics):
        raise InputError(f"diagnostics={diagnostics}: choose none, used, all or spectra")
    if diagnostics == "none":
        return (UpdateNorms(),)
    usual = (UpdateNorms(), LayerChanges(), CurvatureCards(estimate=diagnostics == "all"))
    return (*usual, LossSpectra()) if diagnostics == "spectra" else usual


def update_norm(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """L2 norm of the difference of all floating tensors."""
    return sum(_squares(old, new).values()) ** 0.5


def layer_records(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], merged: Mapping[str, Tensor], curvature: Curvature | None = None
) -> list[dict[str, Any]]:
    """What fine-tuning and merging did to every layer, in the order of the weights; numbers have six digits.

    Args:
        old: weights before the stage.
        new: after fine-tuning.
        merged: what the stage ended with.
        curvature: of the loss on the previous domain at `old`; without it nothing is predicted.

    Returns:
        Per layer the keys `name`, `update_norm`, `merged_update_norm`, and where the curvature has a block for any of its
        parameters `predicted_increase` and `merged_predicted_increase` (docs/results.md).

    Raises:
        InputError: the curvature belongs to another model.
    """
    columns = {"update_norm": _norms(old, new), "merged_update_norm": _norms(old, merged)}
    if curvature is not None:
        curvature.check(old)
        columns["predicted_increase"] = _increases(curvature, old, new)
        columns["merged_predicted_increase"] = _increases(curvature, old, merged)
    return [
        {"name": layer, **{key: rounded(column[layer]) for key, column in columns.items() if layer in column}}
        for layer in columns["update_norm"]
    ]


def predicted_increases(
    curvature: Curvature, change: Mapping[str, Tensor], group: Callable[[str], str]
) -> dict[str, float]:
    """½ δᵀHδ of the parameters that have a block, summed within the groups that `group` makes of their names."""
    sums: dict[str, float] = {}
    for key, block, rows in curvature.pairs(change):
        sums[group(key.name)] = sums.get(group(key.name), 0.0) + float(block.quadratic(rows))
    return sums


def mean_loss(model: nn.Module, task: Task, domain: Domain, split: str) -> float:
    """Mean over a split's items of the loss whose curvature is estimated, the model in evaluation mode.

    Raises:
        InputError: the domain has no such split.
    """
    model.eval()
    return mean_item_loss(model, task.curvature_loss, domain.batches(split, shuffle=False, seed=0))


def curvature_record(curvature: Curvature) -> dict[str, Any]:
    """A curvature for the result file: its origin, trace and blocks; the largest blocks with their spectra.

    The keys are those of `asrcl.curvature.card`, without what is long and shown nowhere.
    """
    found = card(curvature, spectrum_points=SPECTRUM_POINTS).as_json()
    blocks = [
        {key: rounded(block[key]) for key in _BLOCK_KEYS} | ({"spectrum": block["spectrum"]} if rank < SPECTRA else {})
        for rank, block in enumerate(found["blocks"])
    ]
    numbers = {key: rounded(found[key]) for key in ("covered", "weights", "trace")}
    facts = {key: value for key, value in found["facts"].items() if key != "versions"}
    return {"facts": facts, **numbers, "blocks": blocks}


def _squares(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, float]:
    """Squared L2 norm of the change of every floating tensor, from 0 where it was not there (an adapter's)."""
    return {
        name: float((value.double() - old[name].double() if name in old else value.double()).square().sum())
        for name, value in new.items()
        if value.is_floating_point()
    }


def _norms(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for name, value in _squares(old, new).items():
        sums[_layer(name)] = sums.get(_layer(name), 0.0) + value
    return {layer: total**0.5 for layer, total in sums.items()}


def _increases(curvature: Curvature, old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, float]:
    """Per layer ½ δᵀHδ, over the parameters that have a block."""
    change = {name: new[name].double() - old[name].double() for name in curvature.names() if name in old}
    return predicted_increases(curvature, change, _layer)


def _layer(name: str) -> str:
    return name.rpartition(".")[0] or name


def rounded(value: Any) -> Any:
    """Six digits of a number, so that the order of a sum is not seen in the file."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
