"""A tiny Whisper for English, one for two languages, and one to spoil."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hub_models import write_whisper


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper for English."""
    return write_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def multilingual_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper for English and German."""
    return write_whisper(tmp_path_factory.mktemp("whisper_languages"), multilingual=True)


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny Whisper that may then be spoiled: (**settings of `write_whisper`)."""
    return lambda **settings: write_whisper(tmp_path / "whisper", **settings)
