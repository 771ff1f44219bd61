"""YAML files, read safely and with the line of every entry, so that messages can name it.

PyYAML is optional; JSON is read without it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError

Place = tuple[str | int, ...]
"""Keys and indices that lead to an entry."""
Lines = dict[Place, int]

MOST = 200_000
"""Entries of a file, with all that its aliases stand for."""
DEEPEST = 100

_EXPONENT = re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$")


def yaml_module(path: str | os.PathLike[str]) -> Any:
    """PyYAML.

    Raises:
        InputError: it is not installed; names the file that needs it.
    """
    try:
        return importlib.import_module("yaml")
    except ImportError as error:
        raise InputError(f"{path}: reading YAML needs PyYAML (pip install pyyaml); JSON is read without it") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, as UTF-8.

    Raises:
        InputError: it is missing, cannot be read or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {'no such file' if isinstance(error, FileNotFoundError) else error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text file in UTF-8") from error


def read_structure(path: str | os.PathLike[str]) -> tuple[Any, Lines]:
    """What a YAML or JSON file says, and where each entry stands (lines count from 1; none are known of JSON).

    Raises:
        InputError: missing, not readable, a tag that would make an object, or a key that comes twice.
    """
    text = read_text(path)
    return (_json(path, text), {}) if Path(path).suffix == ".json" else _yaml(path, text)


def parse_yaml(where: str, text: str) -> Any:
    """What a text in YAML says.

    Args:
        where: what messages call it.
        text: of a file or a member of an archive.

    Raises:
        InputError: see `read_structure`.
    """
    return _yaml(where, text)[0]


def compose_yaml(path: str | os.PathLike[str], text: str) -> Any:
    """The node of a whole text in YAML, every scalar of it as text; None for an empty one.

    Raises:
        InputError: it is no YAML.
    """
    yaml = yaml_module(path)
    with _readable(path, yaml):
        return yaml.compose(text, Loader=yaml.BaseLoader)


def _yaml(path: str | os.PathLike[str], text: str) -> tuple[Any, Lines]:
    yaml = yaml_module(path)
    with _readable(path, yaml):
        loader = _loader(yaml)(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None, {}
            lines: Lines = {}
            _number(yaml, node, (), lines, str(path), set())
            return loader.construct_document(node), lines
        finally:
            loader.dispose()


@contextmanager
def _readable(path: str | os.PathLike[str], yaml: Any) -> Iterator[None]:
    """Turn whatever PyYAML raises into an error of the user, in one line."""
    try:
        yield
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, RecursionError):
            problem = "nested too deeply"
        raise InputError(f"{path}{where}: not readable as YAML ({problem})") from error


def _json(path: str | os.PathLike[str], text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{path}: the key {key!r} comes twice")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno}: not readable as JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = "nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"
        raise InputError(f"{path}: not readable as JSON ({why})") from error


def _loader(yaml: Any) -> Any:
    """The safe loader, but `1e-3` is a number (PyYAML takes it for text, for YAML 1.1 wants a dot)."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))  # type: ignore[attr-defined]
    return loader


def _number(yaml: Any, node: Any, place: Place, lines: Lines, path: str, above: set[int]) -> None:
    """Note the line of a node and of all below it; refuse keys that come twice."""
    lines.setdefault(place, node.start_mark.line + 1)
    if len(lines) > MOST or len(place) > DEEPEST:
        what = f"more than {MOST:,} entries, aliases counted" if len(lines) > MOST else f"more than {DEEPEST} levels"
        raise InputError(f"{path} line {node.start_mark.line + 1}: {what}; write it out in a smaller file")
    if id(node) in above:
        raise InputError(f"{path} line {node.start_mark.line + 1}: an alias that contains itself")
    above = above | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            _number(yaml, entry, (*place, index), lines, path, above)
    elif isinstance(node, yaml.MappingNode):
        for key, entry in node.value:
            inner, line = (*place, str(key.value)), key.start_mark.line + 1
            if inner in lines:
                raise InputError(f"{path} line {line}: the key {key.value!r} comes twice (first in line {lines[inner]})")
            lines[inner] = line
            _number(yaml, entry, inner, lines, path, above)
