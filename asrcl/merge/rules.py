"""Rules by tensor name, from a file.

    # merge.yaml
    method: ihr
    knobs: {tau: 1.0}
    rest: 1/t
    statistics: pool
    rules:
      - match: "encoder.layers.0-3.*"        # glob; a part `a-b` of a name stands for all numbers from a to b
        method: average
        knobs: {strength: 0.3}
      - match: ["*.embed*", "ctc.*"]
        method: keep                         # the old model; `new` is the new one
      - match: "decoder.*"
        knobs: {tau: 0.5}                    # the method above, with other options

The first rule that matches wins. Every entry may be left out.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

from asrcl.exceptions import InputError
from asrcl.merge.buffers import check_statistics
from asrcl.merge.registry import methods
from asrcl.merge.tensors import checked_number
from asrcl.merge.yamls import Lines, Place, read_structure

Known = Callable[[str], object]
RESTS = ("1/t", "keep", "new", "fisher")
KEYS = ("method", "knobs", "rest", "statistics", "rules")
RULE_KEYS = ("match", "method", "knobs")
MOST = 10_000
"""Patterns that one glob with ranges of numbers may stand for."""

_RANGE = re.compile(r"(?<![^.])(\d+)-(\d+)(?![^.])")


class Rule(NamedTuple):
    """What to do with a tensor.

    Attributes:
        method: a merge method.
        knobs: its options.
    """

    method: str
    knobs: Mapping[str, Any]


@dataclass(frozen=True)
class NameRule:
    """A rule and the names it is for.

    Attributes:
        match: globs.
        method: None for the method of all.
        knobs: on top of the knobs of all where `method` is None, otherwise these alone.
    """

    match: tuple[str, ...]
    method: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, name: str) -> bool:
        """Whether the rule applies to a tensor."""
        return any(fnmatchcase(name, glob) for glob in self._globs)

    @cached_property
    def _globs(self) -> tuple[str, ...]:
        return tuple(glob for pattern in self.match for glob in expanded(pattern))


@dataclass(frozen=True)
class Rules:
    """All rules of a merge.

    Attributes:
        method: for names without a rule; None where the file does not say.
        knobs: of that method.
        rest: as `asrcl.merge.merge` takes it; None where the file does not say.
        statistics: the same.
        rules: in order.
    """

    method: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    rest: float | str | None = None
    statistics: str | None = None
    rules: tuple[NameRule, ...] = ()

    def of(self, name: str) -> Rule | None:
        """The rule of a tensor: that of the first match, or else the method of all; None where the file names none.

        Raises:
            InputError: its rule has options only, and there is no method for all names.
        """
        found = next((rule for rule in self.rules if rule.matches(name)), None)
        if found is not None and found.method is not None:
            return Rule(found.method, found.knobs)
        if self.method is not None:
            return Rule(self.method, {**self.knobs, **(found.knobs if found else {})})
        if found is not None:
            raise InputError(f"the rule for {', '.join(found.match)} has no method, and there is none for all names")
        return None

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse globs that fit no tensor of a model, for they are most likely misspelt.

        Raises:
            InputError: names the glob and the tensors nearest to it.
        """
        known = list(names)
        for rule in self.rules:
            for glob in rule.match:
                if not any(fnmatchcase(name, one) for one in expanded(glob) for name in known):
                    near = difflib.get_close_matches(glob, known, 2, 0.4)
                    hint = f" (nearest: {', '.join(near)})" if near else ""
                    raise InputError(f"no tensor of the old model fits the rule {glob!r}{hint}")

    def as_json(self) -> dict[str, Any]:
        """Return what a file with these rules would say."""
        rules = [_said({"match": list(r.match), "method": r.method, "knobs": dict(r.knobs)}) for r in self.rules]
        top = {"method": self.method, "knobs": dict(self.knobs), "rest": self.rest, "statistics": self.statistics, "rules": rules}
        return _said(top)


def load_rules(path: str | os.PathLike[str], known: Known | None = None) -> Rules:
    """Read rules from a YAML or JSON file.

    Args:
        path: of the file.
        known: called with every method that is named; raises InputError for those that do not exist.

    Raises:
        InputError: names the line and the entry at fault: unknown keys, wrong values, keys that come twice, or a missing PyYAML.
    """
    content, lines = read_structure(path)
    return _Reader(str(path), lines, known).rules(content)


def parse_rules(content: Mapping[str, Any], known: Known | None = None) -> Rules:
    """The same from what such a file says.

    Raises:
        InputError: see `load_rules`.
    """
    return _Reader("rules", {}, known).rules(content)


def expanded(pattern: str) -> list[str]:
    """The globs that a glob with ranges of numbers stands for: `layers.0-2.*` is three.

    Raises:
        InputError: a range runs backwards, or there are too many.
    """
    parts: list[list[str]] = []
    place, count = 0, 1
    for found in _RANGE.finditer(pattern):
        if max(len(found[1]), len(found[2])) > 9:
            raise InputError(f"{pattern!r}: the range {found[0]} is too long")
        first, last = int(found[1]), int(found[2])
        count *= last - first + 1
        if first > last or count > MOST:
            raise InputError(f"{pattern!r}: the range {found[0]} " + ("runs backwards" if first > last else "is too long"))
        parts += [[pattern[place : found.start()]], [str(number) for number in range(first, last + 1)]]
        place = found.end()
    return ["".join(one) for one in itertools.product(*parts, [pattern[place:]])]


class _Reader:
    """Checks what a file says and tells where it is wrong."""

    def __init__(self, path: str, lines: Lines, known: Known | None) -> None:
        self._path, self._lines, self._known = path, lines, known

    def rules(self, content: Any) -> Rules:
        top = self._mapping({} if content is None else content, (), KEYS)
        listed = top.get("rules") or []
        if not isinstance(listed, list | tuple):
            raise self._error(("rules",), f"rules must be a list of rules, not {listed!r}")
        rules = tuple(self._rule(entry, ("rules", number)) for number, entry in enumerate(listed))
        method, knobs = self._method(top, ()), self._knobs(top, ())
        self._check_knobs(method, knobs, ())
        if method is None and (knobs or any(rule.method is None for rule in rules)):
            place = ("knobs",) if knobs else ("rules", next(n for n, rule in enumerate(rules) if rule.method is None))
            raise self._error(place, "knobs need a method; add the entry 'method' to the rule or to the top of the file")
        return Rules(method, knobs, self._rest(top), self._statistics(top), rules)

    def _rule(self, entry: Any, place: Place) -> NameRule:
        rule = self._mapping(entry, place, RULE_KEYS)
        match = rule.get("match")
        globs = [match] if isinstance(match, str) else match
        if not isinstance(globs, list | tuple) or not globs or not all(isinstance(glob, str) and glob for glob in globs):
            raise self._error((*place, "match"), "a rule needs 'match', a glob of tensor names or a list of them")
        method, knobs = self._method(rule, place), self._knobs(rule, place)
        if method is None and not knobs:
            raise self._error(place, f"the rule for {', '.join(globs)} says neither method nor knobs")
        self._check_knobs(method, knobs, place)
        for glob in globs:
            self._checked((*place, "match"), lambda glob=glob: expanded(glob))  # type: ignore[misc]
        return NameRule(tuple(globs), method, knobs)

    def _method(self, entry: Mapping[str, Any], place: Place) -> str | None:
        method = entry.get("method")
        if method is None:
            return None
        if not isinstance(method, str):
            raise self._error((*place, "method"), f"method must be a name, not {method!r}")
        if self._known is not None:
            self._checked((*place, "method"), lambda: self._known and self._known(method))
        return method

    def _knobs(self, entry: Mapping[str, Any], place: Place) -> dict[str, Any]:
        knobs = entry.get("knobs")
        if knobs is None:
            return {}
        if not isinstance(knobs, Mapping) or not all(isinstance(name, str) for name in knobs):
            raise self._error((*place, "knobs"), f"knobs must be names with values, not {knobs!r}")
        return dict(knobs)

    def _check_knobs(self, method: str | None, knobs: Mapping[str, Any], place: Place) -> None:
        if method is not None and (known := methods().get(method)) is not None:
            self._checked((*place, "knobs"), lambda: known.check(knobs))

    def _rest(self, top: Mapping[str, Any]) -> float | str | None:
        rest = top.get("rest")
        if rest is None or rest in RESTS:
            return rest
        if isinstance(rest, str):
            raise self._error(("rest",), f"rest must be a number or one of {', '.join(RESTS)}, not {rest!r}")
        return float(self._checked(("rest",), lambda: checked_number("rest", rest)))

    def _statistics(self, top: Mapping[str, Any]) -> str | None:
        value = top.get("statistics")
        if value is not None:
            self._checked(("statistics",), lambda: check_statistics(value))
        return value

    def _mapping(self, value: Any, place: Place, keys: tuple[str, ...]) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(place, f"{value!r} stands where entries {', '.join(keys)} should be")
        for key in value:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1, 0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise self._error((*place, str(key)), f"unknown key {str(key)!r}{hint} (known: {', '.join(keys)})")
        return value

    def _checked(self, place: Place, call: Callable[[], Any]) -> Any:
        """A check by others, whose message gets the place."""
        try:
            return call()
        except InputError as error:
            raise self._error(place, str(error)) from error

    def _error(self, place: Place, message: str) -> InputError:
        line = next((self._lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in self._lines), None)
        if line is not None:
            return InputError(f"{self._path} line {line}: {message}")
        rule = f" rule {int(place[1]) + 1}" if len(place) > 1 else ""
        return InputError(f"{self._path}{rule}: {message}")


def _said(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if value is not None and value != {} and value != []}
