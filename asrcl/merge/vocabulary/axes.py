"""Where two models differ, and which of their tensors depend on the vocabulary: those with an axis as long as it.

Sizes decide where they can: a tensor whose one differing axis goes from the size of the old vocabulary to that of the new one.
Where the vocabularies have one size, or their sizes are not known, names must agree, for a layer inside the model may have that
size as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from asrcl.curvature.parameters import matches
from asrcl.exceptions import InputError
from asrcl.merge.sources import Sized, kind_of
from asrcl.merge.vocabulary.tokens import TokenList

Shape = tuple[int, ...]
Axis = tuple[int, int]
"""The axis of the vocabulary, and how many entries come behind those of the tokens."""
ROWS, SIZES = 12, 12

_USUAL = re.compile(
    r"(?i)(^|[._])(embed\w*|\w*emb|wte|shared|lm_head|proj_out|final_proj|vocab\w*|classifier|logits|ctc\w*|seq_lin|joint|joiner"
    r"|output_(layer|linear|projection)|lin_out|simple_(am|lm)_proj|decoder_layers|prediction|head)([._]|$)"
)
_OTHER = re.compile(r"(?i)pos|token_type|(^|\.)encoder\.(?!.*(embed_tokens|ctc))")


@dataclass(frozen=True)
class Layouts:
    """Names, shapes and kinds of numbers of two models.

    Attributes:
        old: shapes of the old model.
        new: shapes of the new model.
        types: name -> types in both, where they are known.
    """

    old: Mapping[str, Shape]
    new: Mapping[str, Shape]
    types: Mapping[str, tuple[torch.dtype, torch.dtype]]

    @classmethod
    def of(cls, old: Mapping[str, Shape | Sized], new: Mapping[str, Shape | Sized]) -> Layouts:
        """From shapes, or from things that have one."""
        shapes = [{name: _shape(value) for name, value in model.items()} for model in (old, new)]
        types = {name: (getattr(old[name], "dtype", None), getattr(new[name], "dtype", None)) for name in old if name in new}
        return cls(shapes[0], shapes[1], {name: (a, b) for name, (a, b) in types.items() if a is not None and b is not None})

    @property
    def names(self) -> list[str]:
        """Of both models: the order of the old one, then what only the new one has."""
        return [*self.old, *(name for name in self.new if name not in self.old)]

    def both(self, name: str) -> bool:
        """Whether both models have the tensor."""
        return name in self.old and name in self.new

    @cached_property
    def differing(self) -> dict[str, None]:
        """Names that one model lacks, or whose shapes or kinds of numbers differ."""
        return {n: None for n in self.names if self.old.get(n) != self.new.get(n) or self.other_kind(n)}

    def other_kind(self, name: str) -> bool:
        """Whether the models have different sorts of numbers there: floating, complex or whole ones."""
        kinds = self.types.get(name)
        return kinds is not None and kind_of(kinds[0]) != kind_of(kinds[1])

    def text(self, name: str, side: Literal["old", "new"]) -> str:
        """The shape of a tensor for a table."""
        shape = (self.old if side == "old" else self.new).get(name)
        if shape is None:
            return "missing"
        kind = f" {self.types[name][side == 'new']}".replace("torch.", "") if self.other_kind(name) else ""
        return f"[{', '.join(map(str, shape))}]{kind}"


def _shape(value: Shape | Sized) -> Shape:
    return tuple(value) if isinstance(value, tuple | list) and not hasattr(value, "shape") else tuple(value.shape)


def difference_table(head: str, names: Sequence[str] | Mapping[str, None], layouts: Layouts, hint: str) -> str:
    """A message with name, old and new shape of some tensors; a table, so that it has several lines."""
    rows = [(name, layouts.text(name, "old"), layouts.text(name, "new")) for name in list(names)[:ROWS]]
    rows.insert(0, ("tensor", "old", "new"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = [f"  and {len(names) - ROWS} more"] if len(names) > ROWS else []
    return "\n".join([f"the two models are not alike: {head} ({hint})", *lines, *more])


def vocabulary_axes(
    layouts: Layouts, old: TokenList | None, new: TokenList | None, trailing: Sequence[int], patterns: Sequence[str]
) -> dict[str, Axis]:
    """The tensors that depend on the vocabulary.

    Args:
        layouts: of the two models.
        old: tokens of the old model; None where they are not known.
        new: tokens of the new model.
        trailing: how many outputs may come behind those of the tokens.
        patterns: globs of the tensors, where they are known by name.

    Raises:
        InputError: no tensor has the size of a list of tokens, or sizes and names leave it open.
    """
    if old is not None and new is not None and old.tokens == new.tokens:
        _check_sizes(layouts, old, new, trailing)
        return {}
    pairs = _inferred(layouts, patterns) if old is None or new is None else {(len(old) + t, len(new) + t): t for t in trailing}
    found: dict[str, Axis] = {}
    for name in layouts.names:
        axes = [(axis, extra) for sizes, extra in pairs.items() for axis in _axes(layouts, name, sizes)]
        if not axes or (patterns and not matches(name, patterns)):
            continue
        if len(axes) > 1:
            shape = layouts.text(name, "old")
            raise InputError(f"{name}: several axes of {shape} are as long as the vocabulary, so that it cannot be aligned")
        found[name] = axes[0]
    if old is not None and new is not None:
        _check_sizes(layouts, old, new, trailing)
        if not any(layouts.both(name) for name in found):
            sizes = f"from {len(old)} outputs ({old.where}) to {len(new)} ({new.where})"
            raise InputError(f"no tensor goes {sizes}; are these the tokens of the two models?")
        if not patterns and len(old) == len(new):
            _check_names(found, old)
    return found


def _axes(layouts: Layouts, name: str, sizes: tuple[int, int]) -> list[int]:
    old, new = layouts.old.get(name), layouts.new.get(name)
    if old is None or new is None:
        shape, size = (old, sizes[0]) if old is not None else (new or (), sizes[1])
        return [axis for axis, length in enumerate(shape) if length == size] if _usual(name) else []
    if len(old) != len(new) or layouts.other_kind(name):
        return []
    others = [axis for axis in range(len(old)) if old[axis] != new[axis]]
    if sizes[0] != sizes[1]:
        return others if len(others) == 1 and (old[others[0]], new[others[0]]) == sizes else []
    return [axis for axis, length in enumerate(old) if length == sizes[0]] if not others else []


def _usual(name: str) -> bool:
    return bool(_USUAL.search(name)) and not _OTHER.search(name)


def _inferred(layouts: Layouts, patterns: Sequence[str]) -> dict[tuple[int, int], int]:
    """Sizes of the vocabularies as tensors with a usual name show them; none of another name may differ by the same sizes."""
    by_pair: dict[tuple[int, int], list[str]] = {}
    for name in layouts.differing:
        old, new = layouts.old.get(name, ()), layouts.new.get(name, ())
        others = [pair for pair in zip(old, new, strict=False) if pair[0] != pair[1]]
        if len(old) == len(new) and len(others) == 1:
            by_pair.setdefault(others[0], []).append(name)
    known = [p for p, names in by_pair.items() if any(matches(n, patterns) if patterns else _usual(n) for n in names)]
    return {pair: 0 for pair in known if patterns or not any(_OTHER.search(name) for name in by_pair[pair])}


def _check_sizes(layouts: Layouts, old: TokenList, new: TokenList, trailing: Sequence[int]) -> None:
    for tokens, shapes, role in ((old, layouts.old, "old"), (new, layouts.new, "new")):
        sizes = {length for shape in shapes.values() for length in shape}
        if any(len(tokens) + extra in sizes for extra in trailing):
            continue
        near = sorted(sorted(sizes), key=lambda size: abs(size - len(tokens)))[:SIZES]
        seen = ", ".join(map(str, sorted(near))) + (", ..." if len(sizes) > SIZES else "")
        hint = "; with a blank behind the tokens give trailing=1" if len(tokens) + 1 in sizes else ""
        raise InputError(f"{tokens.where}: {len(tokens)} tokens, but no axis of the {role} model is as long (seen: {seen}){hint}")


def _check_names(found: Mapping[str, Axis], tokens: TokenList) -> None:
    """With vocabularies of one size a layer inside the model could be taken for one of the vocabulary."""
    strange = [name for name in found if not _usual(name)]
    if strange:
        listed = ", ".join(strange[:4]) + (" ..." if len(strange) > 4 else "")
        raise InputError(
            f"both vocabularies have {len(tokens)} tokens, and {listed} have an axis of that length too; "
            "say with tensors= which tensors depend on the vocabulary"
        )
