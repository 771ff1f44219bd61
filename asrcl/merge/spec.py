"""The specification of a merge, one object that `merge`, `plan`, `merge_files` and `sweep` all take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from asrcl.curvature import Curvature
from asrcl.exceptions import InputError
from asrcl.merge.buffers import Statistics
from asrcl.merge.containers import Source
from asrcl.merge.registry import find_method
from asrcl.merge.rules import Rules
from asrcl.merge.setup import MergeOptions, Rest
from asrcl.merge.vocabulary import Policy
from asrcl.merge.vocabulary.tokens import Tokens


@dataclass(frozen=True)
class MergeSpec:
    """How to merge.

    Attributes:
        method: "ihr" or any other of `asrcl.merge.methods()`.
        knobs: options of the method, such as `tau` or `strength`.
        curvature: of the old domains at the old model, one or several, each a `Curvature` or a file; methods that use none
            ignore it.
        new_curvature: of the new models on their own domains, for methods that weigh both sides.
        base: the ancestor that old and new models were all fine-tuned from, where it is not the old model.
        task: number of domains with the new ones; None for one more than there are new models.
        rest: weight of the new model in tensors and rows that the method cannot treat: a number, "1/t" with t = `task` (which
            None stands for), "keep", "new", or "fisher" (see `asrcl.merge.setup.MergeOptions`).
        statistics: running means and variances of normalisation: "pool" (as of pooled data), "old" or "new".
        layers: glob patterns of the tensors that curvature may treat.
        rules: other methods for some tensors, see `asrcl.merge.rules`.
        budget: how much the old loss may grow, predicted by `curvature`; the step shrinks until it does not grow more.
        vocabulary: what to do where the models differ, see `asrcl.merge.vocabulary`; files only, as are the next four.
        tokens: the token lists of the old and the new model.
        trailing: outputs behind those of the tokens, see `asrcl.merge.vocabulary.align`.
        tensors: globs of the tensors that depend on the vocabulary, where sizes do not tell.
        differences: "refuse" models whose settings say that equal weights mean something else (feature rates, attention heads,
            scales of adapters), or "note" it.
    """

    method: str = "ihr"
    knobs: Mapping[str, Any] = field(default_factory=dict)
    curvature: Sequence[str | Path | Curvature] = ()
    new_curvature: Sequence[str | Path | Curvature] = ()
    base: Source | None = None
    task: int | None = None
    rest: Rest | None = None
    statistics: Statistics = "pool"
    layers: tuple[str, ...] = ("*",)
    rules: Rules | None = None
    budget: float | None = None
    vocabulary: Policy = "error"
    tokens: tuple[Tokens, Tokens] | None = None
    trailing: int = 0
    tensors: tuple[str, ...] = ()
    differences: Literal["refuse", "note"] = "refuse"

    def __post_init__(self) -> None:
        """One curvature or pattern is as good as a list of one."""
        for name in ("curvature", "new_curvature"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name), Curvature | str | Path))
        object.__setattr__(self, "layers", _as_tuple(self.layers, str))

    @classmethod
    def of(cls, rules: Rules | None, **given: Any) -> MergeSpec:
        """What a file of rules says, with what was given otherwise (and is not None) on top."""
        said: dict[str, Any] = {"rules": rules}
        if rules is not None:
            said |= {"method": rules.method, "knobs": rules.knobs, "rest": rules.rest, "statistics": rules.statistics}
        said |= {name: value for name, value in given.items() if value is not None}
        if rules is not None and (given.get("knobs") or given.get("method")):
            # What the user typed also holds where the file has no rule of its own for a tensor.
            said["rules"] = replace(rules, method=said["method"], knobs={**rules.knobs, **(given.get("knobs") or {})})
            said["knobs"] = said["rules"].knobs
        return cls(**{name: value for name, value in said.items() if value is not None})

    def changed(self, options: Mapping[str, Any]) -> MergeSpec:
        """The same with attributes changed by name; any other name is an option of the method."""
        own = {one.name for one in fields(self)}
        chosen = {name: value for name, value in options.items() if name in own}
        knobs = {**chosen.pop("knobs", self.knobs), **{name: value for name, value in options.items() if name not in own}}
        return replace(self, **chosen, knobs=knobs)

    def curvatures(self) -> tuple[list[Curvature], list[Curvature]]:
        """Those of the old domains and those of the new models, read where files are named.

        Raises:
            InputError: a file cannot be read, or something else was given.
        """
        old, new = ([_loaded(one) for one in given] for given in (self.curvature, self.new_curvature))
        return old, new

    def options(self, new: int) -> MergeOptions:
        """What holds for every method.

        Args:
            new: how many new models there are.

        Raises:
            InputError: `rest` was given to a method that treats every tensor.
        """
        if self.rest is not None and self.rules is None and not find_method(self.method).partial:
            why = f"merge method {self.method} treats every tensor, so rest={self.rest!r} would have no effect"
            raise InputError(f"{why}; leave it out")
        return MergeOptions(
            # The old model is one of the updates from `base`, and is not counted twice.
            task=1 + new if self.task is None and self.base is not None else self.task,
            rest="1/t" if self.rest is None else self.rest,
            statistics=self.statistics,
            layers=self.layers,
        )


def _as_tuple(given: Any, single: Any) -> tuple[Any, ...]:
    return () if given is None else (given,) if isinstance(given, single) else tuple(given)


def _loaded(curvature: Any) -> Curvature:
    if isinstance(curvature, Curvature):
        return curvature
    if isinstance(curvature, str | Path):
        return Curvature.load(curvature)
    raise InputError(f"curvature= takes Curvature objects or files, not {type(curvature).__name__}")


DEFAULTS: Final = MergeSpec()
