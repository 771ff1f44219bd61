"""Merging checkpoints on disk, tensor by tensor, with a card beside the result.

    from asrcl.merge import MergeSpec, merge_files
    spec = MergeSpec("ihr", {"tau": 1.0}, curvature=["curvature.safetensors"])
    record = merge_files("old.nemo", ["new.nemo"], "merged.nemo", spec)

Memory holds the largest tensor, its curvature and little else (the pickled containers excepted, which are written whole).
Nothing appears at the target before everything is computed.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from asrcl.curvature import Curvature
from asrcl.curvature.parameters import hash_parameters
from asrcl.curvature.wrappers import matched
from asrcl.exceptions import InputError
from asrcl.merge.buffers import is_statistic
from asrcl.merge.card import Budget, CurvatureFile, LayerRecord, MergeRecord, Parent, Totals, card_text
from asrcl.merge.containers import Checkpoint, Outline, Source, open_checkpoint
from asrcl.merge.containers.settings import compare
from asrcl.merge.containers.staging import disk
from asrcl.merge.executor import Effect
from asrcl.merge.job import Merged, MergeJob
from asrcl.merge.plans import PlanRow
from asrcl.merge.registry import find_method
from asrcl.merge.setup import roles_of
from asrcl.merge.sources import TensorSource, as_named_in
from asrcl.merge.spec import DEFAULTS, MergeSpec
from asrcl.merge.vocabulary import Alignment, FittedSource, align

_log = logging.getLogger(__name__)

_UNFIT: Final = (
    "running means and variances were measured with other weights than the merged ones; before use let the merged model see data "
    "of the new domain (torch.optim.swa_utils.update_bn; docs/merge.md)"
)

Path_ = str | Path
Progress = Callable[[str], None]


class Preview(NamedTuple):
    """What a merge does to one tensor.

    Attributes:
        row: the rule and why.
        effect: norms and predicted increase; None where it was not measured.
    """

    row: PlanRow
    effect: Effect | None


def merge_files(
    old: Path_,
    new: Sequence[Path_],
    out: Path_,
    spec: MergeSpec = DEFAULTS,
    *,
    container: str | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Progress | None = None,
    scale: float = 1.0,
    trade: Mapping[str, Any] | None = None,
) -> MergeRecord:
    """Merge checkpoints into one of the old one's container, with its configuration, tokenizer and whatever else lies in it.

    Beside a file `out` a card `out.md` and a record `out.json` are written, in a folder `README.md` and `merge.json`.

    Args:
        old: checkpoint before the new domain.
        new: checkpoints fine-tuned from it.
        out: file or folder to write.
        spec: how to merge; its `base` is a checkpoint on disk too.
        container: "safetensors" for the tensors alone; None for the container of the old model.
        overwrite: replace a folder that exists.
        command: what the user typed, for the card.
        progress: called with the name of every tensor.
        scale: multiplies every step; 0 is the old model.
        trade: what was measured to choose it, for the card (`asrcl.merge.within`).

    Raises:
        InputError: a file is missing, damaged, unsafe or does not fit, an option is out of range, or the target cannot be
            written; nothing is left behind then.
    """
    with _opened(old, new, spec) as models, torch.no_grad():
        allowed, unlimited = models.job.scale_within(spec.budget, progress) if spec.budget is not None else (1.0, None)
        previews: dict[str, Preview] = {}
        with models.old.writer(out, container, models.outlines, overwrite) as writer:
            for merged in models.job.run(scale * allowed, measure=True, progress=progress):
                writer.write(merged.name, models.grown(merged))
                previews[merged.name] = Preview(models.row(merged.name), merged.effect)
            record = replace(_record(models, spec, previews, command, allowed, unlimited), name=Path(out).name, trade=trade)
            name = record.name
            names = ("README.md", "merge.json") if writer.folder is not None else (f"{name}.md", f"{name}.json")
            with disk(Path(out)):  # so that the result and what tells where it is from appear at once
                record = _accompany(models, record, writer.beside, *names)
    return record


def preview_files(
    old: Path_, new: Sequence[Path_], spec: MergeSpec = DEFAULTS, *, measure: bool = True, progress: Progress | None = None
) -> tuple[list[Preview], float]:
    """What `merge_files` would do, and the scale that a budget asks for; nothing is written.

    Args:
        old: as in `merge_files`.
        new: as there.
        spec: as there.
        measure: also compute the merge, for its norms and predicted increase.
        progress: as there.

    Raises:
        InputError: as `merge_files`, for everything that shows before writing.
    """
    with _opened(old, new, spec) as models, torch.no_grad():
        for remark in models.remarks:  # a merge has them on its card
            _log.warning("%s", remark)
        if not measure:
            return [Preview(models.row(name), None) for name in models.old.outlines], 1.0
        scale = models.job.scale_within(spec.budget, progress)[0] if spec.budget is not None else 1.0
        found = models.job.run(scale, measure=True, progress=progress)
        return [Preview(models.row(merged.name), merged.effect) for merged in found], scale


@dataclass(frozen=True)
class _Models:
    """Everything open for one merge."""

    old: Checkpoint
    new: list[Checkpoint]
    base: Checkpoint | None
    curvatures: list[Curvature]
    new_curvatures: list[Curvature]
    alignment: Alignment | None
    job: MergeJob
    remarks: tuple[str, ...]

    @property
    def grows(self) -> bool:
        """Whether the merged model has more tokens than the old one."""
        tokens = self.alignment.tokens if self.alignment is not None and self.alignment.policy == "union" else None
        return tokens is not None and bool(tokens.only_new)

    @property
    def outlines(self) -> dict[str, Outline]:
        """Shapes and types of the merged model's tensors."""
        shapes = self.alignment.shapes if self.alignment is not None else {}
        return {name: Outline(tuple(shapes.get(name, o.shape)), o.dtype) for name, o in self.old.outlines.items()}

    def write_tokens(self, folder: Path) -> list[str]:
        """Write the tokens of a grown model, and say where."""
        if not self.grows or self.alignment is None:
            return []
        return [f"tokens of the merged model: {path.name}" for path in self.alignment.write_tokens(folder)]

    def grown(self, merged: Merged) -> torch.Tensor:
        """A merged tensor with the rows of the new model's own tokens."""
        if not self.grows or self.alignment is None or self.alignment.plans[merged.name].action != "rows":
            return merged.tensor
        return self.alignment.extended(merged.name, merged.tensor, as_named_in(self.old.outlines, self.new[0]).read(merged.name))

    def row(self, name: str) -> PlanRow:
        """The plan of a tensor, with what became of its vocabulary."""
        row = self.job.row(name)
        why = self.alignment.why(name) if self.alignment is not None else ""
        if not why:
            return row
        kept = self.alignment is not None and self.alignment.plans[name].action == "keep"
        return row._replace(rule="keep" if kept else row.rule, why=why if kept else f"{row.why}; {why}")


@contextmanager
def _opened(old: Path_, new: Sequence[Path_], spec: MergeSpec) -> Iterator[_Models]:
    if not new:
        raise InputError("there is no new model to merge")
    with ExitStack() as stack:
        first, *others = (stack.enter_context(open_checkpoint(path)) for path in (old, *new))
        base = stack.enter_context(open_checkpoint(_place(spec.base))) if spec.base is not None else None
        remarks = _compared(first, others, base, spec)
        alignment, sources = _aligned(first, others, spec)
        curvatures, new_curvatures = spec.curvatures()
        options = spec.options(len(new))
        start: TensorSource = first
        if base is not None:
            start, sources = as_named_in(first.outlines, base), [first, *sources]
            align(start.outlines, first.outlines, "error")
        if spec.rules is not None:
            spec.rules.check_names(first.outlines)
        roles = roles_of(len(new), base is not None)
        job = MergeJob(start, sources, spec.method, spec.knobs, options, curvatures, new_curvatures, spec.rules, roles)
        remarks += _strangers(zip(map(_name, spec.curvature), curvatures, repeat(start), strict=False))
        remarks += _strangers(zip(map(_name, spec.new_curvature), new_curvatures, others, strict=False))
        yield _Models(first, others, base, curvatures, new_curvatures, alignment, job, tuple(remarks))


def _compared(old: Checkpoint, others: Sequence[Checkpoint], base: Checkpoint | None, spec: MergeSpec) -> list[str]:
    """How what lies beside the weights differs between the models.

    Raises:
        InputError: they are models of different builds, or with different tokens.
    """
    if spec.differences not in ("refuse", "note"):
        raise InputError(f"differences={spec.differences!r} does not exist; there are refuse and note")
    named = spec.vocabulary != "error" or spec.tokens is not None
    around, found = old.surroundings(), []
    for role, other in [*(("new", one) for one in others), *([("base", base)] if base else [])]:
        found += compare(around, other.surroundings(), role, spec.differences == "refuse", tokens=not named)
    return list(dict.fromkeys(found))


class _Read(Mapping[str, torch.Tensor]):
    """Tensors of a checkpoint by the names that a curvature has for them, read when asked for."""

    def __init__(self, model: TensorSource, names: Mapping[str, str]) -> None:
        self._model, self._names = model, names

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._model.read(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _place(base: Source) -> Path_:
    if not isinstance(base, str | Path):
        raise InputError(f"base= takes a checkpoint on disk here, not {type(base).__name__}; save it, or merge in memory")
    return base


def _name(curvature: Path_ | Curvature) -> str:
    return "a curvature in memory" if isinstance(curvature, Curvature) else Path(curvature).name


def _strangers(pairs: Iterable[tuple[str, Curvature, TensorSource]]) -> list[str]:
    """Curvatures that were estimated at other weights than those of the model that they stand for."""
    found, known = [], {}
    for name, curvature, model in pairs:
        held = curvature.metadata.get("model_hash")
        aliases = curvature.metadata.get("aliases", {})
        there = matched([*curvature.metadata.get("parameters", {}), *aliases], model.outlines)
        names = {aliases.get(theirs, theirs): own for theirs, own in reversed(there.items())}
        key = (id(model), tuple(names))
        if held is None:
            found.append(f"{name}: this curvature does not say at which weights it was estimated")
            continue
        if key not in known:
            known[key] = hash_parameters(_Read(model, names))
        if known[key] != held:
            found.append(
                f"{name}: this curvature was estimated at other weights (hash {held}) than those it is used at "
                f"({known[key]}), or at the same in another type; it says little of a model that was trained on since"
            )
    return found


def _aligned(old: Checkpoint, others: list[Checkpoint], spec: MergeSpec) -> tuple[Alignment | None, list[TensorSource]]:
    new = [as_named_in(old.outlines, other) for other in others]
    if len(new) > 1 or spec.base is not None:
        if spec.vocabulary != "error":
            only = "one new model without base; merge the models one after the other"
            raise InputError(f"vocabulary={spec.vocabulary} is for {only}")
        for other in new:
            align(old.outlines, other.outlines, "error")
        return None, new
    alignment = align(
        old.outlines, new[0].outlines, spec.vocabulary, spec.tokens, trailing=spec.trailing, tensors=spec.tensors
    )
    return alignment, [FittedSource(alignment, old, new[0])]


def _record(
    models: _Models, spec: MergeSpec, previews: Mapping[str, Preview], command: str, scale: float, unlimited: float | None
) -> MergeRecord:
    rules = spec.rules.as_json().get("rules", ()) if spec.rules is not None else ()
    parents = [("old", models.old), *(("new", one) for one in models.new), *((("base", models.base),) if models.base else ())]
    origins = [(role, checkpoint.describe()) for role, checkpoint in parents]
    notes = [note for _, origin in origins[:1] for note in origin.notes]
    if count := sum(is_statistic(name) and preview.row.rule.endswith(" statistics") for name, preview in previews.items()):
        notes.append(f"{count} tensors of {_UNFIT}")
    return MergeRecord(
        method=spec.method,
        parents=tuple(Parent.of(role, origin.path, origin.sha256, origin.kind) for role, origin in origins),
        knobs=find_method(spec.method).knobs | dict(spec.knobs),
        rest=spec.options(len(models.new)).rest,
        statistics=spec.statistics,
        rules=tuple(rules),
        curvature=tuple(_curvature_files(models, spec)),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        version=version("asrcl"),
        command=command,
        counts=dict(Counter(preview.row.rule for preview in previews.values())),
        layers=tuple(LayerRecord.of(name, preview.row.rule, preview.effect) for name, preview in previews.items()),
        totals=_totals(models, list(previews.values())),
        budget=Budget(spec.budget, scale, unlimited) if spec.budget is not None else None,
        notes=(*models.remarks, *notes, *(models.alignment.notes if models.alignment is not None else ())),
        library_name={"hf folder": "transformers", "peft folder": "peft"}.get(origins[0][1].kind),
    )


def _curvature_files(models: _Models, spec: MergeSpec) -> Iterator[CurvatureFile]:
    sides = (("old", spec.curvature, models.curvatures), ("new", spec.new_curvature, models.new_curvatures))
    for role, paths, curvatures in sides:
        for given, curvature in zip(paths, curvatures, strict=True):
            facts = curvature.metadata
            yield CurvatureFile(_name(given), facts.get("model_hash"), facts.get("items"), facts.get("fisher"), role)


def _totals(models: _Models, previews: Sequence[Preview]) -> Totals:
    effects = [preview.effect for preview in previews if preview.effect is not None]
    step, update = (math.sqrt(sum(getattr(effect, which) ** 2 for effect in effects)) for which in ("step", "update"))
    known = [effect.predicted for effect in effects if effect.predicted is not None]
    weights = sum(outline.numel for outline in models.old.outlines.values() if outline.dtype.is_floating_point)
    covered = sum(cover.size for name in models.old.outlines for cover in models.job.coverage.of(name))
    return Totals(step / update if update else None, sum(known) if known else None, covered or None, weights)


def _accompany(models: _Models, record: MergeRecord, folder: Path, card: str, facts: str) -> MergeRecord:
    """Write the tokens of a grown model, the card and the record into a folder that does not appear yet."""
    record = replace(record, notes=(*record.notes, *models.write_tokens(folder)))
    (folder / card).write_text(card_text(record), encoding="utf-8")
    (folder / facts).write_text(json.dumps(record.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return record
