"""Reading pickles of arrays and plain containers without executing anything that they name.

A pickle calls what it likes by naming it. Here the few names that a pickled NumPy array has stand for classes of this module,
which keep numbers and bytes and call nothing; every other name is refused. NumPy itself is not asked before the pickle is read.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np

from asrcl.exceptions import InputError

_TYPES = ("|u1", "<u1", "|i1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f4", "<f8")


def load_plain(content: bytes) -> Any:
    """What a pickle holds: dicts, lists, tuples, texts, bytes, numbers and NumPy arrays of numbers.

    Texts of Python 2 come as bytes.

    Raises:
        InputError: the pickle names anything else; nothing has been called then.
        Exception: the pickle is damaged (wrap the call in `asrcl.experiment.reading.reading`).
    """
    return _settled(_Reader(io.BytesIO(content)).load())


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, encoding="bytes")
        # Made anew for every pickle, which may set attributes of them.
        kind, array = type("Kind", (_Kind,), {}), type("Array", (_Array,), {})
        self._admitted: dict[tuple[str, str], Any] = {("numpy", "dtype"): kind, ("numpy", "ndarray"): type("Marker", (), {})}
        for package in ("numpy.core", "numpy._core"):
            self._admitted[f"{package}.multiarray", "_reconstruct"] = array
            self._admitted[f"{package}.numeric", "_frombuffer"] = type("Buffer", (_Buffer,), {})
        self._admitted["_codecs", "encode"] = type("Text", (_Text,), {})  # how Python 3 writes bytes for Python 2

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name."""
        if (module, name) not in self._admitted:
            raise InputError(f"the pickle names {module}.{name}, which is neither an array nor a plain container")
        return self._admitted[module, name]


class _Kind:
    """Stands for a NumPy type."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = _text(code), "|"

    def __setstate__(self, state: Any) -> None:
        self.order = _text(state[1])


class _Text:
    """Stands for bytes that are written as text."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.text = text


class _Array:
    """Stands for an array that is filled after it is made."""

    shape: Any = ()
    kind: Any = None
    fortran: Any = False
    content: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.fortran, self.content = state


class _Buffer(_Array):
    """Stands for an array that is made of a buffer, as protocol 5 has it."""

    def __init__(self, content: Any, kind: Any, shape: Any, order: Any) -> None:
        self.content, self.kind, self.shape, self.fortran = content, kind, shape, _text(order) == "F"


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _settled(value: Any) -> Any:
    """The value with arrays for what stands for them, in dicts and lists, nested at most as deep as Python can follow."""
    if isinstance(value, dict):
        return {_settled(key): _settled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_settled, value))
    if isinstance(value, _Text):
        return value.text.encode("latin1")
    if isinstance(value, _Array):
        return _array(value)
    if value is None or isinstance(value, bytes | bytearray | str | int | float):
        return value
    raise InputError(f"the pickle holds {type(value).__name__}, which is neither an array nor a plain container")


def _array(value: _Array) -> np.ndarray[Any, Any]:
    """The array that a stand-in describes, of numbers only."""
    content, shape, kind = _settled(value.content), value.shape, value.kind
    code = (kind.order if kind.order in "<|" else "?") + kind.code if isinstance(kind, _Kind) else ""
    if code not in _TYPES or not isinstance(content, bytes | bytearray) or not all(type(side) is int for side in shape):
        raise InputError("the pickle holds an array of something else than little-endian numbers")
    if len(content) != math.prod(shape) * np.dtype(code).itemsize or min(shape, default=0) < 0:
        raise InputError(f"the pickle holds an array of shape {shape} with {len(content)} bytes")
    return np.frombuffer(content, code).reshape(shape, order="F" if value.fortran else "C")
