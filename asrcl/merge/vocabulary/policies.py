"""Models whose tensors differ in names or shapes, and models with different tokens: aligned by a policy that the user names.

    alignment = align(old_outlines, new_outlines, "union", tokens=("old/tokens.txt", "new/tokens.txt"))
    old_view, new_view = alignment.pair(name, old_tensor, new_tensor)      # of one shape, that of the merged model

    error           refuse, with a table of what differs
    keep-old        what differs stays as in the old model; what only the new model has is dropped
    backbone-only   the same, but refuse where anything else differs than what depends on the vocabulary
    union           rows of tokens that both models have are merged; rows of the others come from the model that has them

The merged tokens are the old ones in their places, special ones too, and then the new ones. Outputs that no token is listed for,
such as the blank of NeMo models, come last in both models and stay last (`trailing`).

Merging needs no wider tensors than the old ones: `fitted` brings a new tensor into the old shape, where curvature of the old
model fits; `extended` then appends the rows of new tokens to the result. `pair` is both at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.merge.numbers import readable
from asrcl.merge.sources import Sized, TensorSource
from asrcl.merge.vocabulary.axes import Layouts, Shape, difference_table, vocabulary_axes
from asrcl.merge.vocabulary.token_files import remarks, write_tokens
from asrcl.merge.vocabulary.tokens import TokenList, Tokens, as_tokens, role_of

Policy = Literal["error", "keep-old", "backbone-only", "union"]
Action = Literal["merge", "keep", "drop", "rows"]
LISTED = 8


class TensorPlan(NamedTuple):
    """What happens to one tensor where the models have different vocabularies.

    Attributes:
        action: "merge" as it is, "keep" the old one, "drop" what only the new model has, or merge by "rows" of tokens.
        shape: in the merged model; None if dropped.
        why: in a few words; empty for what is merged as it is.
        axis: that of the tokens.
        trailing: entries on that axis behind the tokens.
    """

    action: Action
    shape: Shape | None
    why: str = ""
    axis: int = 0
    trailing: int = 0


@dataclass(frozen=True)
class TokenUnion:
    """Which tokens two models share.

    Attributes:
        old: tokens of the old model.
        new: tokens of the new model.
        old_index: places of the shared tokens in the old model, rising.
        new_index: places of the same tokens in the new model.
        only_old: places in the old model of tokens that the new one lacks.
        only_new: places in the new model of tokens that the old one lacks.
        renamed: special tokens that the two models name differently, (new, old).
    """

    old: TokenList
    new: TokenList
    old_index: tuple[int, ...]
    new_index: tuple[int, ...]
    only_old: tuple[int, ...]
    only_new: tuple[int, ...]
    renamed: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, old: TokenList, new: TokenList) -> TokenUnion:
        """Match tokens by their text, and special ones by their part where the models name them differently.

        Raises:
            InputError: the lists share no token that stands for text.
        """
        places = {token: n for n, token in enumerate(old.tokens)}
        known = set(new.tokens)
        by_role = {role: n for token, n in reversed(places.items()) if token not in known and (role := role_of(token))}
        found: dict[int, int] = {}
        for n, token in enumerate(new.tokens):
            place = places[token] if token in places else by_role.get(role_of(token) or "")
            if place is not None:
                found.setdefault(place, n)
        if not any(role_of(old.tokens[place]) is None for place in found):
            raise InputError(f"{old.where} and {new.where} share no token that stands for text; are they of the same kind?")
        shared, used = sorted(found), set(found.values())
        renamed = [(new.tokens[found[p]], old.tokens[p]) for p in shared if new.tokens[found[p]] != old.tokens[p]]
        only_old = tuple(n for n in range(len(old)) if n not in found)
        only_new = tuple(n for n in range(len(new)) if n not in used)
        return cls(old, new, tuple(shared), tuple(found[p] for p in shared), only_old, only_new, tuple(renamed))

    @cached_property
    def added(self) -> tuple[str, ...]:
        """Tokens that only the new model has, in its order."""
        return tuple(self.new.tokens[n] for n in self.only_new)

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens: the old ones in their places, then the new ones."""
        return self.old.tokens + self.added

    @property
    def same(self) -> bool:
        """Whether every token has the same place in both models."""
        return not self.only_old and not self.only_new and self.old_index == self.new_index

    @cached_property
    def indices(self) -> tuple[Tensor, Tensor, Tensor]:
        """`old_index`, `new_index` and `only_new` as tensors."""
        old, new, only = (torch.tensor(index, dtype=torch.long) for index in (self.old_index, self.new_index, self.only_new))
        return old, new, only


@dataclass(frozen=True)
class Alignment:
    """How the tensors of two models go together; made by `align`.

    Attributes:
        policy: asked for.
        plans: by name, in the order of the old model; what only the new model has comes last.
        tokens: those of the two models, None where they are not known.
        notes: what the user should know, a sentence each.
    """

    policy: Policy
    plans: Mapping[str, TensorPlan]
    tokens: TokenUnion | None
    notes: tuple[str, ...]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of the merged model, in the order of the old one."""
        return {name: plan.shape for name, plan in self.plans.items() if plan.shape is not None}

    def why(self, name: str) -> str:
        """Why a tensor is not merged as it is; empty where it is."""
        return self.plans[name].why

    def pair(self, name: str, old: Tensor | None, new: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both tensors in the shape of the merged model; equal wherever one model alone has a say.

        Args:
            name: of the tensor.
            old: of the old model; None if it has none.
            new: of the new model; None if it has none.

        Raises:
            InputError: the tensor has no place in the merged model, or one that is needed is missing.
        """
        fitted = self.fitted(name, old, new)
        assert old is not None
        return self.extended(name, old, new), self.extended(name, fitted, new, old.dtype)

    def fitted(self, name: str, old: Tensor | None, new: Tensor | None) -> Tensor:
        """The new tensor in the shape of the old one, equal to it wherever the new model has no say; arguments as in `pair`."""
        plan = self.plans[name]
        if plan.action == "drop" or old is None:
            raise InputError(f"{name} is only in the new model and has no place in the merged one ({self.policy})")
        if plan.action == "keep":
            return old
        new = _needed(name, new)
        if plan.action == "merge":
            return new
        assert self.tokens is not None
        places, sources, _ = self.tokens.indices
        axis, size, other = plan.axis, len(self.tokens.old), len(self.tokens.new)
        kind = torch.promote_types(old.dtype, new.dtype)
        result, new = old.to(kind, copy=True), new.to(device=old.device, dtype=kind)
        result.index_copy_(axis, places.to(old.device), new.index_select(axis, sources.to(old.device)))
        result.narrow(axis, size, plan.trailing).copy_(new.narrow(axis, other, plan.trailing))
        return result

    def extended(self, name: str, merged: Tensor, new: Tensor | None, through: torch.dtype | None = None) -> Tensor:
        """A tensor of the old shape with the rows of tokens that only the new model has; those come behind the old tokens.

        Args:
            name: of the tensor.
            merged: of the old shape.
            new: of the new model; may be None where no rows are taken from it.
            through: a type that the new rows are rounded to before they take that of `merged`.

        Raises:
            InputError: the new rows are not finite, or the new tensor is missing.
        """
        plan = self.plans[name]
        if plan.action != "rows" or self.tokens is None or not self.tokens.only_new:
            return merged
        new, index = _needed(name, new), self.tokens.indices[2]
        rows = new.index_select(plan.axis, index.to(new.device))
        if not torch.isfinite(readable(rows)).all():
            raise InputError(f"{name} of the new model holds NaN or infinity; it cannot be merged")
        rows = rows.to(through or merged.dtype).to(device=merged.device, dtype=merged.dtype)
        if not torch.isfinite(readable(rows)).all():
            raise InputError(f"{name} of the new model goes beyond what {merged.dtype} holds; save the old model in float32")
        known, behind = merged.split([len(self.tokens.old), plan.trailing], plan.axis)
        return torch.cat([known, rows, behind], plan.axis)

    def write_tokens(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the tokens of the merged model in the form of the old model's file.

        Args:
            path: a file, or a folder where it gets the name of the old file.

        Returns:
            The files written; also `config.json` of a Hugging Face folder, whose `vocab_size` grows.

        Raises:
            InputError: the tokens are not known, or nothing can be written there.
        """
        if self.tokens is None:
            raise InputError("the tokens of the two models are not known; give both files of tokens")
        return write_tokens(self.tokens.old, self.tokens.added if self.policy == "union" else (), path)


class FittedSource:
    """A new model in the shapes of the old one.

    Args:
        alignment: of the two.
        old: the old model.
        new: the new model.
    """

    def __init__(self, alignment: Alignment, old: TensorSource, new: TensorSource) -> None:
        self._alignment, self._old, self._new = alignment, old, new

    @property
    def outlines(self) -> Mapping[str, Sized]:
        """Shapes and types of the old model's tensors."""
        return self._old.outlines

    def read(self, name: str) -> Tensor:
        """One tensor; what the new model has no say in is not read from it."""
        action = self._alignment.plans[name].action
        new = None if action == "keep" else self._new.read(name).detach()
        return new if action == "merge" and new is not None else self._alignment.fitted(name, self._old.read(name).detach(), new)


def align(
    old: Mapping[str, Shape | Sized],
    new: Mapping[str, Shape | Sized],
    policy: Policy = "error",
    tokens: tuple[Tokens, Tokens] | None = None,
    *,
    trailing: int | Sequence[int] = 0,
    tensors: str | Sequence[str] = (),
) -> Alignment:
    """Decide what becomes of every tensor of two models; nothing but names and shapes is looked at.

    Args:
        old: shapes of the old model by name, or anything with `shape` (and `dtype`).
        new: the same of the new model.
        policy: see the head of this module.
        tokens: of the old and of the new model, as lists, files or folders; needed for "union". With them the other policies also
            see models of one shape whose outputs stand for different tokens.
        trailing: outputs behind those of the tokens: 1 where the blank comes last and is not listed (NeMo), several numbers where
            the layers differ.
        tensors: glob patterns of the tensors that depend on the vocabulary, where sizes and names do not show it.

    Raises:
        InputError: the models differ in a way that the policy does not cover; tokens come twice; a list of tokens fits no tensor.
    """
    if policy not in get_args(Policy):
        raise InputError(f"there is no policy {policy!r} for vocabularies; there are: {', '.join(get_args(Policy))}")
    if policy == "union" and tokens is None:
        raise InputError("the policy union needs the tokens of both models (tokens.txt, *.model, tokenizer.json, ...)")
    union = TokenUnion.of(as_tokens(tokens[0]), as_tokens(tokens[1])) if tokens is not None else None
    patterns = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    extra = (trailing,) if isinstance(trailing, int) else tuple(trailing)
    layouts = Layouts.of(old, new)
    axes = vocabulary_axes(layouts, union.old if union else None, union.new if union else None, extra, patterns)
    special = {} if union is not None and union.same else axes
    _check(policy, layouts, special, union)
    plans = {name: _plan_of(name, policy, layouts, special, union) for name in layouts.names}
    return Alignment(policy, MappingProxyType(plans), union, tuple(_notes(policy, plans, union)))


def _check(policy: Policy, layouts: Layouts, axes: Mapping[str, tuple[int, int]], union: TokenUnion | None) -> None:
    differing = layouts.differing
    if policy == "error":
        if differing:
            inside = all(name in axes for name in differing)
            hint = "they depend on the vocabulary: choose backbone-only or union" if inside else "keep-old leaves them alone"
            raise InputError(difference_table(f"{len(differing)} tensor(s) differ", differing, layouts, hint))
        if union is not None and not union.same:
            first = _first_difference(union)
            raise InputError(f"the models have one shape but different tokens: {first}; choose backbone-only or union")
    elif policy != "keep-old":
        strange = [name for name in differing if name not in axes or (policy == "union" and not layouts.both(name))]
        if strange:
            head = f"{len(strange)} tensor(s) differ by more than the vocabulary, which {policy} does not cover"
            hint = "keep-old leaves them alone; tensors= names those of the vocabulary"
            raise InputError(difference_table(head, strange, layouts, hint))


def _first_difference(union: TokenUnion) -> str:
    pairs = zip(union.old.tokens, union.new.tokens, strict=False)
    found = next(((n, a, b) for n, (a, b) in enumerate(pairs) if a != b), None)
    return f"number {found[0]} is {found[1]!r} and {found[2]!r}" if found else f"{len(union.old)} and {len(union.new)} tokens"


def _plan_of(
    name: str, policy: Policy, layouts: Layouts, axes: Mapping[str, tuple[int, int]], union: TokenUnion | None
) -> TensorPlan:
    shape = layouts.old.get(name)
    if shape is None:
        return TensorPlan("drop", None, "only in the new model")
    if name not in layouts.differing and (name not in axes or union is None):
        return TensorPlan("merge", shape)
    if policy == "union" and union is not None:
        axis, trailing = axes[name]
        wide = (*shape[:axis], shape[axis] + len(union.only_new), *shape[axis + 1 :])
        why = f"{len(union.old_index)} tokens of both, {len(union.only_old)} only old, {len(union.only_new)} only new"
        return TensorPlan("rows", wide, why, axis, trailing)
    if name not in layouts.new:
        return TensorPlan("keep", shape, "only in the old model")
    why = f"{layouts.text(name, 'new')} in the new model" if name in layouts.differing else "other tokens"
    return TensorPlan("keep", shape, why)


def _notes(policy: Policy, plans: Mapping[str, TensorPlan], union: TokenUnion | None) -> list[str]:
    notes = []
    for action, text in (("keep", "kept from the old model"), ("drop", "dropped, for only the new model has them")):
        names = [name for name, plan in plans.items() if plan.action == action]
        if names:
            notes.append(f"{text}: {_listed(names)}")
    if union is None or policy != "union" or union.same:
        return notes
    counts = f"{len(union.old_index)} in both models, {len(union.only_old)} only in the old, {len(union.only_new)} only new"
    notes.append(f"{len(union.tokens)} tokens: {counts}" + (f" ({_listed(union.added)})" if union.added else ""))
    notes += [f"{new} of the new model is {old} of the old" for new, old in union.renamed]
    return notes + remarks(union.old, union.added)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _needed(name: str, tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise InputError(f"{name} of the new model is needed")
    return tensor
