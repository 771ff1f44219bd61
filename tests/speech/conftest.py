"""Small things that the tests of features, model and task share: tones on disk, a tokeniser, batches, a tiny model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset

from asrcl.experiment import run as experiment
from asrcl.experiment.config import Config, load_config
from asrcl.speech.corpora import Utterance, to_dataset
from asrcl.speech.domain import SpeechBatch
from asrcl.speech.model import ConformerASR
from asrcl.speech.prepare import prepare_data, prepare_tokens
from asrcl.speech.tokenizer import PieceTokenizer, train_tokenizer

TINY = {
    "width": 16, "heads": 2, "encoder_layers": 2, "decoder_layers": 1, "feed_forward": 24, "kernel": 5, "dropout": 0.1,
}  # fmt: skip
SENTENCES = ["turn on the light", "play some jazz", "what is the time", "call my mother", "stop the music please"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., SpeechBatch]:
    """Random utterances: (lengths, features=8, vocabulary=9, overhang=0, dtype=float32); padding holds garbage."""

    def build(
        lengths: list[int],
        features: int = 8,
        vocabulary: int = 9,
        overhang: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> SpeechBatch:
        generator = torch.Generator().manual_seed(sum(lengths))
        count = len(lengths)
        sizes = [max(1, length // 12) for length in lengths]
        tokens = torch.zeros(count, max(sizes), dtype=torch.long)
        for row, size in enumerate(sizes):
            tokens[row, :size] = torch.randint(4, vocabulary, (size,), generator=generator)
        return SpeechBatch(
            tuple(f"u{number}" for number in range(count)),
            tuple(f"s{number % 2}" for number in range(count)),
            tuple(SENTENCES[number % len(SENTENCES)] for number in range(count)),
            torch.randn(count, max(lengths) + overhang, features, generator=generator, dtype=dtype),
            torch.tensor(lengths),
            tokens,
            torch.tensor(sizes),
        )

    return build


@pytest.fixture(scope="session")
def make_model() -> Callable[..., ConformerASR]:
    """A tiny model in eval mode with seeded weights: (features=8, vocabulary=9, **settings)."""

    def build(features: int = 8, vocabulary: int = 9, **settings: object) -> ConformerASR:
        torch.manual_seed(0)
        return ConformerASR(features, vocabulary, **{**TINY, **settings}).eval()  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PieceTokenizer:
    """One piece per letter."""
    return train_tokenizer(SENTENCES, tmp_path_factory.mktemp("tokens") / "pieces.model", size=32, kind="char")


def write_tone(path: Path, seconds: float = 0.5, rate: int = 16000, frequency: float = 440.0, channels: int = 1) -> Path:
    """A sine of half of full scale."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * time)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path


@pytest.fixture
def tone() -> Callable[..., Path]:
    """Writes a sine: (path, seconds=0.5, rate=16000, frequency=440, channels=1)."""
    return write_tone


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Dataset]:
    """A corpus of tones: (sizes={"train": 3, "dev": 1, "test": 2}, domain="tones"), longer from utterance to utterance."""

    def build(sizes: dict[str, int] | None = None, domain: str = "tones") -> Dataset:
        rows = []
        for split, size in (sizes or {"train": 3, "dev": 1, "test": 2}).items():
            for number in range(size):
                name = f"{domain}-{split}-{number}"
                path = write_tone(tmp_path / f"{name}.wav", 0.3 + 0.1 * number, frequency=300 + 100 * number)
                text = SENTENCES[number % len(SENTENCES)]
                rows.append(Utterance(name, str(path), 0, -1, "audio", text, f"s{number % 2}", domain, split))
        return to_dataset(rows)

    return build


@pytest.fixture(scope="module")
def trained(tones: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an experiment whose initial model is there; read only."""
    exp = tmp_path_factory.mktemp("exp")
    config = load_config(tones.overrides(exp))
    prepare_data(config)
    prepare_tokens(config)
    experiment.train(config, 1)
    return exp


@pytest.fixture
def start(trained: Path, tones: Any, tmp_path: Path) -> Callable[..., Config]:
    """A copy of it, and its configuration: (*overrides)."""
    shutil.copytree(trained, tmp_path / "exp")

    def configure(*overrides: str) -> Config:
        return load_config(tones.overrides(tmp_path / "exp", *overrides))

    return configure
