"""What lies beside the weights of two models and changes what the weights mean: numbers of the configuration, lists of tokens.

A model that computes its features with another rate, its attention with other heads or its outputs with other tokens may have
weights of the same shapes; a merge of the two is a model of neither. Settings of training (rates of dropout, masks, batches,
paths) do not matter to the weights and are passed over.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asrcl.exceptions import InputError

TRAINING = re.compile(
    r"version|name_or_path|(^|_)dtype|architectures|processor_class|dropout|layer_?drop|drop_path|(^|\.|_)mask_|spec_?aug|use_cache|"
    r"checkpointing|loss|label|problem_type|suppress|forced|max_length|max_new|num_beams|generation|token_id|initializer|init_|"
    r"commit|revision|_path|path_|attn_implementation|output_(attentions|hidden)|return_dict|chunk_length|padding|truncation|"
    r"inference_mode|task_type|auto_mapping|vocab",
    re.IGNORECASE,
)
"""Names of settings that training, decoding or housekeeping use, but not the function that the weights stand for."""
SECTIONS = ("train_ds", "validation_ds", "test_ds", "optim", "spec_augment", "trainer", "exp_manager", "decoding", "target")
"""Parts of NeMo's configuration of which the same holds."""
FEATURES = re.compile(r"(^|\.)(preprocessor|feature_extractor|dims)\.|(^|\.)preprocessor_config")
"""Names below which paddings and lengths of chunks do matter."""
SHOWN = 4


@dataclass(frozen=True)
class Surroundings:
    """What a checkpoint says about its model beside the weights.

    Attributes:
        settings: of the model, by dotted name.
        remarks: settings that may be the model's or the training's.
        tokens: the list of tokens; or the hash of its file, where it cannot be read; None where there is none.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    remarks: Mapping[str, Any] = field(default_factory=dict)
    tokens: Sequence[str] | str | None = None


def compare(old: Surroundings, new: Surroundings, role: str, strict: bool = True, tokens: bool = True) -> list[str]:
    """What differs, one sentence each.

    Args:
        old: of the old model.
        new: of another.
        role: what the message calls the other.
        strict: refuse settings that differ; otherwise they are among the sentences.
        tokens: compare the tokens too.

    Raises:
        InputError: the models have other tokens, or `strict` and other settings of the model.
    """
    if tokens and old.tokens is not None and new.tokens is not None and old.tokens != new.tokens:
        remedy = "choose vocabulary=backbone-only or union (--vocabulary), or give the token lists (--tokens)"
        raise InputError(f"the old and the {role} model have one shape but different tokens: {_first(old, new)}; {remedy}")
    found = []
    for both, refuse in (((old.settings, new.settings), strict), ((old.remarks, new.remarks), False)):
        differing = list(_differences(*both))
        if differing and refuse:
            remedy = "merge models of one build; differences=note (--differences note) merges them all the same"
            raise InputError(f"the settings of the old and the {role} model differ: {_listed(differing)}; {remedy}")
        if differing:
            found.append(f"settings of the {role} model differ from the old model's, which are kept: {_listed(differing)}")
    return found


def flattened(value: Any, name: str = "") -> dict[str, Any]:
    """Settings by dotted name; lists of plain values are one setting, in any order where they are of text."""
    if hasattr(value, "__dict__") and not isinstance(value, type):  # argparse.Namespace
        value = vars(value)
    if isinstance(value, Mapping):
        inner = (flattened(entry, f"{name}.{key}" if name else str(key)) for key, entry in value.items())
        return {key: entry for part in inner for key, entry in part.items()}
    if isinstance(value, list | tuple):
        if any(isinstance(entry, Mapping | list | tuple) for entry in value):
            return flattened(dict(enumerate(value)), name)
        return {name: sorted(value) if value and all(isinstance(entry, str) for entry in value) else list(value)}
    return {name: value} if value is None or isinstance(value, str | int | float | bool) else {}


def digest(content: bytes) -> str:
    """What stands for tokens that cannot be read."""
    return hashlib.sha256(content).hexdigest()[:16]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Settings that both have and that are not alike; one that only one of them says has its default in the other."""
    for name, value in old.items():
        training = TRAINING.search(name) and not FEATURES.search(name)
        if not training and name.split(".")[0] not in SECTIONS and name in new and new[name] != value:
            yield name, value, new[name]


def _listed(differing: Sequence[tuple[str, Any, Any]]) -> str:
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    return "; ".join(f"{name} is {_short(old)} and {_short(new)}" for name, old, new in differing[:SHOWN]) + more


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first(old: Surroundings, new: Surroundings) -> str:
    if isinstance(old.tokens, str) or isinstance(new.tokens, str) or old.tokens is None or new.tokens is None:
        return "the files of their tokenizers differ"
    place = next((n for n, pair in enumerate(zip(old.tokens, new.tokens, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"{len(old.tokens)} and {len(new.tokens)} of them"
    return f"number {place} is {old.tokens[place]!r} and {new.tokens[place]!r}"
