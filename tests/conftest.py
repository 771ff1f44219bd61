"""For all rooms: SpeechBrain and Hypothesis in one process, and a user's own tiny scenario on disk.

SpeechBrain keeps modules in `sys.modules` that import optional packages as soon as anybody asks for their `__file__`. Hypothesis
asks every module. Here such questions get the answer "no such attribute" instead of a failing import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SENTENCES = ("turn on the light", "play some jazz", "what is the time", "call my mother")
DOMAINS = {"low": 300.0, "high": 900.0}
SIZES = {"train": 6, "dev": 2, "test": 3}
NANO = "{width: 16, heads: 2, encoder_layers: 1, decoder_layers: 1, feed_forward: 24, kernel: 3, dropout: 0.0, stack: 4}"
TRAIN = """
defaults: [quick, _self_]
initial: {epochs: 1, average_best: 1}
adapt: {epochs: 1, average_best: 1}
"""


@dataclass(frozen=True)
class TonesScenario:
    """Where the scenario lies: `conf` is for `config_dir=`, `data` holds `<domain>/<split>` as Kaldi folders."""

    conf: Path
    data: Path

    def overrides(self, exp: Path, *more: str) -> list[str]:
        """What a user would type to run it."""
        chosen = [f"config_dir={self.conf}", "scenario=tones", "model=nano", "train=nano", "decode=ctc_greedy"]
        return [*chosen, "device=cpu", "launcher.threads=1", f"data_dir={self.data}", f"exp={exp}", *more]


def write_tones(folder: Path) -> TonesScenario:
    """Write audio, Kaldi folders and configuration below a folder."""
    for domain, pitch in DOMAINS.items():
        for split, size in SIZES.items():
            _write_split(folder / "data" / domain / split, f"{domain}-{split}", pitch, size)
    _write_split(folder / "data" / "probe" / "test", "probe-test", 600.0, 4)
    parts = [
        f"{{kind: kaldi, folder: '${{data_dir}}/{{domain}}/{split}', split: {split}}}" for split in SIZES
    ]
    listed = [f"  - {{name: {name}, corpus: [{', '.join(parts)}]}}".replace("{domain}", name) for name in DOMAINS]
    scenario = ["name: tones", "features: {bins: 8}", "tokens: {size: 40, kind: char}", "domains:", *listed]
    probe = f"  - {{name: probe, corpus: {parts[-1].replace('{domain}', 'probe')}}}"
    probed = "\n".join(["defaults: [tones, _self_]", "name: probed", "probes:", probe]) + "\n"
    files = {"scenario/tones": "\n".join(scenario) + "\n", "scenario/probed": probed, "model/nano": NANO, "train/nano": TRAIN}
    for name, text in files.items():
        path = folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return TonesScenario(folder / "conf", folder / "data")


def _write_split(folder: Path, prefix: str, pitch: float, size: int) -> None:
    import numpy as np
    import soundfile

    folder.mkdir(parents=True)
    names = [f"s{number % 2}-{prefix}-{number}" for number in range(size)]
    for number, name in enumerate(names):
        time = np.arange(8000 + 800 * number) / 16000
        soundfile.write(folder / f"{name}.wav", 0.5 * np.sin(2 * np.pi * pitch * time), 16000)
    (folder / "wav.scp").write_text("".join(f"{name} {name}.wav\n" for name in names))
    (folder / "text").write_text("".join(f"{name} {SENTENCES[i % len(SENTENCES)]}\n" for i, name in enumerate(names)))
    (folder / "utt2spk").write_text("".join(f"{name} {name[:2]}\n" for name in names))


def _quiet_lazy_modules() -> None:
    lazy = getattr(sys.modules.get("speechbrain.utils.importutils"), "LazyModule", None)
    if lazy is None or hasattr(lazy, "answers_quietly"):
        return
    load = lazy.__getattr__

    def answer(module: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return load(module, name)

    lazy.__getattr__, lazy.answers_quietly = answer, True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    _quiet_lazy_modules()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _quiet_lazy_modules()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models are slower on several threads, and results to the bit are compared with processes that have one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> TonesScenario:
    """Scenarios of two domains of tones (Kaldi folders), one with a probe; a nano model and one epoch of training."""
    return write_tones(tmp_path_factory.mktemp("tones"))
