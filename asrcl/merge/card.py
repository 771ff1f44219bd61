"""The card of a merged model: what it was made from, how, and what that is predicted to cost.

    card = card_text(record)                 # README.md in the manner of the Hugging Face Hub
    write_json(path, record.as_json())       # the same facts for programs; MergeRecord.load reads them

A card names files, never the folders of the machine they were on, except where the user's command says them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any, Protocol, Self

from asrcl.exceptions import InputError
from asrcl.files import read_json

FORMAT = "asrcl merge record 1"
TOP = 20
ASRCL = "asrcl"
USUAL = ("model", "pytorch_model", "pretrained", "final", "latest", "last", "best")
"""Names of files that say nothing about the model."""

_SNAPSHOT = re.compile(r"models--(.+?)--(.+?)[/\\]snapshots(?:[/\\]|$)")
_PLAIN = re.compile(r"[A-Za-z][\w./-]*")


class Effect(Protocol):
    """What a merge did to one tensor, as `asrcl.merge.executor` measures it."""

    @property
    def step(self) -> float: ...  # noqa: D102
    @property
    def update(self) -> float: ...  # noqa: D102
    @property
    def predicted(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Parent:
    """A model that went into the merge.

    Attributes:
        role: "old", "new" or "base".
        name: of the file, the folder or on the Hub, without the way to it.
        sha256: of its weights, in hexadecimal; None where not computed.
        kind: of container.
    """

    role: str
    name: str
    sha256: str | None = None
    kind: str = ""

    @classmethod
    def of(cls, role: str, path: str | os.PathLike[str], sha256: str | None = None, kind: str = "") -> Parent:
        """From a path; a snapshot in the cache of the Hub gets its name there."""
        return cls(role, public_name(path), sha256, kind)


@dataclass(frozen=True)
class CurvatureFile:
    """A curvature that the merge used.

    Attributes:
        file: its name.
        hash: of its content.
        items: how many items it was estimated from; None where it does not say.
        fisher: kind of Fisher information.
        role: whose loss it describes, "old" or "new".
    """

    file: str
    hash: str | None = None
    items: int | None = None
    fisher: str | None = None
    role: str = "old"


@dataclass(frozen=True)
class LayerRecord:
    """One tensor of the merged model.

    Attributes:
        name: of the tensor.
        rule: that it followed.
        relative: norm of the step over norm of the fine-tuning update: 0 is the old model, 1 as far from it as the new one; None
            where there was no update.
        predicted: increase of the old loss, ½ δᵀFδ; None where no curvature covers it.
    """

    name: str
    rule: str
    relative: float | None = None
    predicted: float | None = None

    @classmethod
    def of(cls, name: str, rule: str, effect: Effect | None) -> LayerRecord:
        """Make a record of what was measured."""
        if effect is None:
            return cls(name, rule)
        return cls(name, rule, effect.step / effect.update if effect.update > 0 else None, effect.predicted)


@dataclass(frozen=True)
class Totals:
    """Of the whole model.

    Attributes:
        relative: norm of the whole step over norm of the whole update.
        predicted: increase of the old loss by all tensors that curvature covers.
        covered: weights that curvature covers.
        weights: of the model.
    """

    relative: float | None = None
    predicted: float | None = None
    covered: int | None = None
    weights: int | None = None


@dataclass(frozen=True)
class Budget:
    """How the step was made to fit.

    Attributes:
        limit: allowed increase of the old loss.
        scale: that multiplied all steps.
        unlimited: predicted increase at scale 1.
    """

    limit: float
    scale: float
    unlimited: float | None = None


@dataclass(frozen=True)
class MergeRecord:
    """Everything a card says.

    Attributes:
        method: merge method.
        parents: models, the old one first.
        knobs: options of the method.
        rest: rule for what the method cannot treat.
        statistics: rule for running statistics of normalisation.
        rules: rules by tensor name, as `Rules.as_json()["rules"]` has them.
        curvature: files of curvature.
        date: ISO 8601.
        version: of asrcl.
        command: exactly as typed; several lines if it was a script.
        counts: rule -> number of tensors.
        layers: every tensor.
        totals: of all.
        budget: None where there was none.
        trade: what error rates named domains had at the strengths that were tried, as `asrcl.keep.Trade.as_json` has it, and the
            `path`; None where none were to be kept.
        notes: what else should be known, such as what became of the vocabulary.
        library_name: of the Hub, where known.
        name: of the merged model.
    """

    method: str
    parents: tuple[Parent, ...]
    knobs: Mapping[str, Any] = field(default_factory=dict)
    rest: float | str | None = None
    statistics: str | None = None
    rules: tuple[Mapping[str, Any], ...] = ()
    curvature: tuple[CurvatureFile, ...] = ()
    date: str = ""
    version: str = ""
    command: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[LayerRecord, ...] = ()
    totals: Totals = Totals()
    budget: Budget | None = None
    trade: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    library_name: str | None = None
    name: str = "Merged model"

    def as_json(self) -> dict[str, Any]:
        """JSON values under the names of the attributes; numbers that are not finite become null."""
        values: dict[str, Any] = _finite({"format": FORMAT, **asdict(self)})
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MergeRecord:
        """What `as_json` gave.

        Raises:
            InputError: it is something else; names the entry.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise InputError(f"this is no {FORMAT!r}")
        parts = {"parents": Parent, "curvature": CurvatureFile, "layers": LayerRecord}
        one = {"totals": Totals, "budget": Budget}
        given = {key: value for key, value in values.items() if key != "format"}
        for key, kind in parts.items():
            given[key] = tuple(_made(kind, entry, key) for entry in _list(given.get(key, []), key))
        for key, single in one.items():
            if given.get(key) is not None:
                given[key] = _made(single, given[key], key)
        for key in ("rules", "notes"):
            given[key] = tuple(_list(given.get(key, []), key))
        return _made(cls, given, "record")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a record.

        Raises:
            InputError: the file is missing, or no record of a merge.
        """
        try:
            return cls.from_json(read_json(path))  # type: ignore[return-value]
        except InputError as error:
            text = str(error)
            raise error if text.startswith(str(path)) else InputError(f"{path}: {text}") from error


def public_name(path: str | os.PathLike[str]) -> str:
    """What a card calls a model or file: its name on the Hub if it lies in the Hub's cache, or the last part of its path.

    Names that every model has (`model.safetensors`) are told apart by their folder.
    """
    text = os.fspath(path)
    if found := _SNAPSHOT.search(text):
        return f"{found[1]}/{found[2]}"
    pure = PurePath(text.replace("\\", "/"))
    if pure.stem in USUAL and pure.parent.name:
        return f"{pure.parent.name}/{pure.name}"
    return pure.name or Path(text).resolve().name


def card_text(record: MergeRecord) -> str:
    """The card as Markdown with the front matter of the Hub."""
    sections = [
        _front_matter(record),
        f"# {record.name}",
        _summary(record),
        _section("Models", _parents(record)),
        _section("Method", _method(record)),
        _section("What was to be kept", _trade(record.trade)),
        _section("Curvature", _curvatures(record)),
        _section("What happened to the tensors", _counts(record)),
        _section("What it is predicted to cost", _cost(record)),
        _section("Notes", "\n".join(f"- {note}" for note in record.notes)),
        _section("How to make it again", _reproduce(record)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(record: MergeRecord) -> str:
    lines = ["---", "base_model:", *(f"- {_scalar(_name(parent))}" for parent in record.parents), "base_model_relation: merge"]
    if record.library_name:
        lines.append(f"library_name: {_scalar(record.library_name)}")
    return "\n".join([*lines, "tags:", "- merge", f"- {ASRCL}", "---"])


def _summary(record: MergeRecord) -> str:
    news = [_name(parent) for parent in record.parents if parent.role == "new"]
    olds = [_name(parent) for parent in record.parents if parent.role == "old"]
    sources = f"`{_plain(', '.join(news))}` into `{_plain(', '.join(olds))}`" if news and olds else "models"
    return f"Made by merging {sources} with the method `{record.method}` of {ASRCL} {record.version}".rstrip() + _on(record) + "."


def _on(record: MergeRecord) -> str:
    return f" on {record.date}" if record.date else ""


def _parents(record: MergeRecord) -> str:
    rows = [(p.role, _code(_name(p)), p.kind, _code(p.sha256)) for p in record.parents]
    return _table(("role", "model", "kind", "SHA-256 of the weights"), rows)


def _method(record: MergeRecord) -> str:
    rows = [("method", f"`{record.method}`")]
    rows += [(name, f"`{_value(value)}`") for name, value in record.knobs.items()]
    rows += [("rest", f"`{_value(record.rest)}`")] if record.rest is not None else []
    rows += [("statistics", f"`{record.statistics}`")] if record.statistics else []
    text = _table(("option", "value"), rows)
    if record.budget is not None:
        text += f"\n\n{_budget(record.budget)}"
    if record.rules:
        cells = [(_globs(rule), f"`{rule.get('method') or record.method}`", _knobs(rule)) for rule in record.rules]
        text += "\n\nRules by name, the first match wins:\n\n" + _table(("tensors", "method", "options"), cells)
    return text


def _globs(rule: Mapping[str, Any]) -> str:
    match = rule.get("match", ())
    return ", ".join(_code(glob) for glob in ([match] if isinstance(match, str) else match))


def _knobs(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name} = {_value(value)}`" for name, value in (rule.get("knobs") or {}).items())


def _budget(budget: Budget) -> str:
    before = f" (it would have been {_number(budget.unlimited)})" if budget.unlimited is not None else ""
    effect = f"all steps were multiplied by {budget.scale:.4g}" if budget.scale < 1 else "no step had to shrink"
    return f"The predicted increase of the old loss was to stay within {_number(budget.limit)}{before}: {effect}."


def _trade(trade: Mapping[str, Any] | None) -> str:
    if trade is None:
        return ""
    domains, tried = trade["domains"], trade["tried"]
    head = (
        f"Of the path from the old model (strength 0) to the whole merge (1), {trade['path']}, strength "
        f"**{trade['strength']:.4g}** is taken: the largest of those tried, by bisection, at which every error rate is within "
        "its limit. Between those it may be otherwise. Error rates in %, as the evaluation gave them:"
    )
    rows = [("limit", *(f"{one['limit']:.2f} ({one['budget']})" for one in domains.values()), "")]
    for entry in sorted(tried, key=lambda entry: float(entry["strength"])):
        rates = [f"{entry['domains'][name]['rate']:.2f}" for name in domains]
        rows.append((f"{entry['strength']:.4g}", *rates, "yes" if entry["within"] else "no"))
    return f"{head}\n\n{_table(('strength', *map(_plain, domains), 'within'), rows)}"


def _curvatures(record: MergeRecord) -> str:
    rows = [
        (c.role, _code(public_name(c.file)), c.fisher or "", f"{c.items:,}" if c.items else "", _code(c.hash))
        for c in record.curvature
    ]
    return _table(("of the loss of", "file", "Fisher", "items", "hash"), rows) if rows else ""


def _counts(record: MergeRecord) -> str:
    rows = [(_plain(rule), f"{count:,}") for rule, count in sorted(record.counts.items(), key=lambda pair: -pair[1])]
    text = _table(("rule", "tensors"), rows) if rows else ""
    if record.totals.relative is not None:
        text += f"\n\nThe whole step is {record.totals.relative:.1%} as long as the fine-tuning update."
    return text.strip()


def _cost(record: MergeRecord) -> str:
    covered = [layer for layer in record.layers if layer.predicted is not None]
    if not covered:
        longest = sorted(record.layers, key=lambda layer: -(layer.relative or 0.0))
        moved = [layer for layer in longest if layer.relative]
        lines = ["There was no curvature of the old domain, so that no increase of its loss can be predicted."]
        return "\n\n".join([*lines, *([_layers(moved, None)] if moved else [])])
    total = record.totals.predicted
    total = sum(layer.predicted or 0.0 for layer in covered) if total is None else total
    covered.sort(key=lambda layer: -(layer.predicted or 0.0))
    return "\n\n".join([_meaning(record, total), _layers(covered, total)])


def _meaning(record: MergeRecord, total: float) -> str:
    text = (
        f"Predicted increase of the old loss: **{_number(total)} nats** per item, on average over items like those that the "
        "curvature was estimated from.\n\n"
        "It is ½ δᵀFδ, the second-order term of the old domain's mean loss per item along δ, the difference between the merged "
        "and the old weights, with the Fisher information F in the place of the Hessian. It holds for small steps around an old "
        "model that was trained to the end (no first-order term), and for the loss, not for error rates: measure those."
    )
    share = record.totals
    if share.covered is not None and share.weights:
        covered = share.covered / share.weights
        text += f" The curvature covers {covered:.1%} of the weights; what the others cost is not in the number."
    return text


def _layers(layers: Sequence[LayerRecord], total: float | None) -> str:
    head = ("tensor", "rule", "step / update") + (() if total is None else ("predicted increase", "share"))
    rows = [_layer(layer, total) for layer in layers[:TOP]]
    rest = layers[TOP:]
    if rest:
        cost = sum(layer.predicted or 0.0 for layer in rest)
        rows.append((f"{len(rest)} more", "", "", *(() if total is None else (_number(cost), _share(cost, total)))))
    return _table(head, rows)


def _layer(layer: LayerRecord, total: float | None) -> tuple[str, ...]:
    cells = (_code(layer.name), _plain(layer.rule), "" if layer.relative is None else f"{layer.relative:.3f}")
    return cells if total is None else (*cells, _number(layer.predicted or 0.0), _share(layer.predicted or 0.0, total))


def _reproduce(record: MergeRecord) -> str:
    if not record.command:
        return ""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", record.command)), 3)
    install = f"With `pip install {ASRCL}=={record.version}`" if record.version else f"With {ASRCL}"
    text = f"{install} and files of the hashes above:\n\n{fence}bash\n{record.command}\n{fence}"
    same = "The same files and options give the same weights; to the bit with the same PyTorch on the same kind of processor."
    return f"{text}\n\n{same}"


# Small pieces of Markdown


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _plain(text: str) -> str:
    """One line that does not end a code span."""
    return " ".join(text.replace("`", "'").split())


def _code(text: str | None) -> str:
    return f"`{_plain(text)}`" if text else ""


def _name(parent: Parent) -> str:
    """Never the way to a file; names of the Hub keep their one slash."""
    name = parent.name
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else public_name(name)


def _value(value: Any) -> str:
    return _plain(value if isinstance(value, str) else json.dumps(value, default=str))


def _number(value: float) -> str:
    return f"{value:.3g}"


def _share(value: float, total: float) -> str:
    return f"{value / total:.1%}" if total > 0 else ""


def _scalar(text: str) -> str:
    """A string in YAML; JSON's notation is YAML's too."""
    special = text.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if _PLAIN.fullmatch(text) and not special else json.dumps(text, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{key} must be a list")
    return list(value)


def _made(kind: Any, values: Any, key: str) -> Any:
    if not isinstance(values, Mapping):
        raise InputError(f"{key} must hold entries, not {values!r}")
    known = {one.name: one for one in fields(kind)}
    unknown = [name for name in values if name not in known]
    bare = (name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING)
    missing = [name for name in bare if name not in values]
    if unknown or missing:
        raise InputError(f"{key}: " + (f"unknown entry {unknown[0]!r}" if unknown else f"no entry {missing[0]!r}"))
    return kind(**values)
