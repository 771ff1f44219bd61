"""What recognisers that see samples, not frames, share (Moonshine, wav2vec 2.0, HuBERT)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from asrcl.exceptions import InputError


def refuse_window(context: Any) -> None:
    """Refuse a window, which these models have none of.

    Raises:
        InputError: there is one.
    """
    if context is not None:
        raise InputError(f"model.context={context}: is for Whisper, this model has no window; set model.context=null")


def check_vocabulary(folder: Path, config: Any, vocabulary: int) -> None:
    """Refuse a tokeniser with more tokens than the model's outputs.

    Raises:
        InputError: it is another model's.
    """
    if vocabulary > config.vocab_size:
        raise InputError(f"{folder}: its tokenizer has {vocabulary} tokens, its model {config.vocab_size}; it is another model's")


def after_convolutions(lengths: Tensor, layers: Iterable[tuple[int, int]]) -> list[Tensor]:
    """Positions after each of some convolutions without padding, `(kernel, stride)` each, over inputs of `lengths` `[B]`."""
    found = []
    for kernel, stride in layers:
        lengths = (lengths - kernel) // stride + 1
        found.append(lengths)
    return found
