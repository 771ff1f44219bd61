"""Corpora: whatever the source, a `datasets.Dataset` with the columns of `Utterance`.

- the form: `Utterance`, `columns`, `to_dataset`, `to_utterances`, `select`
- any corpus by name: `load_corpus`, `CORPORA`
- manifests of other toolkits: `load_kaldi`, `load_nemo`, `load_speechbrain`, `write_kaldi`
- public corpora: `load_hub`, `load_commonvoice`, `load_librispeech`, `load_libri_adapt`
- small free corpora: `load_packed` (any with a `manifest.csv`), `load_an4`, `load_coffee`, `load_digits`, `load_ljspeech`
- what is fit for use: `validate`, `Broken`, `write_broken`

>>> from asrcl.speech.corpora import columns
>>> columns
('id', 'path', 'start', 'end', 'kind', 'text', 'speaker', 'domain', 'split')
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from datasets import Dataset

from asrcl.exceptions import InputError
from asrcl.speech.corpora.commonvoice import load_commonvoice
from asrcl.speech.corpora.hub import load_hub
from asrcl.speech.corpora.kaldi import load_kaldi, write_kaldi
from asrcl.speech.corpora.libri_adapt import load_libri_adapt, load_librispeech
from asrcl.speech.corpora.nemo import load_nemo
from asrcl.speech.corpora.packages import load_an4, load_coffee, load_digits, load_ljspeech, load_packed
from asrcl.speech.corpora.speechbrain import load_speechbrain
from asrcl.speech.corpora.utterance import Utterance, columns, select, to_dataset, to_utterances
from asrcl.speech.corpora.validate import Broken, validate, write_broken

__all__ = [
    "CORPORA",
    "Broken",
    "Utterance",
    "columns",
    "load_an4",
    "load_coffee",
    "load_commonvoice",
    "load_corpus",
    "load_digits",
    "load_hub",
    "load_kaldi",
    "load_libri_adapt",
    "load_librispeech",
    "load_ljspeech",
    "load_nemo",
    "load_packed",
    "load_speechbrain",
    "select",
    "to_dataset",
    "to_utterances",
    "validate",
    "write_broken",
    "write_kaldi",
]

CORPORA: dict[str, Callable[..., Dataset]] = {
    "kaldi": load_kaldi,
    "nemo": load_nemo,
    "speechbrain": load_speechbrain,
    "hub": load_hub,
    "commonvoice": load_commonvoice,
    "librispeech": load_librispeech,
    "libri_adapt": load_libri_adapt,
    "an4": load_an4,
    "coffee": load_coffee,
    "digits": load_digits,
    "ljspeech": load_ljspeech,
    "packed": load_packed,
}


def load_corpus(kind: str, **options: Any) -> Dataset:
    """Load a corpus by the name of its kind, with the options of its loader.

    Args:
        kind: a key of `CORPORA`.
        **options: passed to the loader.

    Raises:
        InputError: the kind is not known, an option is missing or unknown, or the loader refuses its input.
    """
    if kind not in CORPORA:
        raise InputError(f"corpus kind {kind!r}: not known; choose one of {', '.join(CORPORA)}")
    signature = inspect.signature(CORPORA[kind])
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(
            f"corpus kind {kind}: {error}; it takes {', '.join(signature.parameters)}"
        ) from error
    return CORPORA[kind](**options)
