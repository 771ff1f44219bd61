"""What choosing the surest of several models costs beside decoding with one, in one run.

    python tools/bench_surest.py --model FOLDER --audio FOLDER

Every round decodes the same utterances with `generate` of Transformers, features included, then with `asrcl.hf.Surest` of one
model and of `--models` (copies of the one, which cost what others of its size do), and with Surest as it would be if every call
encoded for itself. The floor of Surest is `generate`, times the number of models: what it adds is a pass of the decoder over the
text, for its probability, and the first step of a search, for its prompt.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from asrcl.hf import Surest, selection
from asrcl.scoring.display.table import markdown, plain
from asrcl.speech.audio import read_audio

RATE = 16_000


def measure(model: Any, processor: Any, waves: Sequence[np.ndarray], models: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round."""
    several = {f"model {number}": copy.deepcopy(model) for number in range(models)}
    one, all_of_them = Surest({"model": model}, processor), Surest(several, processor)

    @torch.no_grad()
    def generate() -> None:
        for wave in waves:
            model.generate(**processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt"))

    def encoding_anew() -> None:
        with mock.patch.object(selection, "_encoding_once", lambda model: nullcontext()):
            one.recognise(waves)

    cases: dict[str, Callable[[], object]] = {
        "`generate`": generate,
        "`Surest`, one model": lambda: one.recognise(waves),
        "`Surest`, one model, encoding for every call": encoding_anew,
        f"`Surest`, {models} models": lambda: all_of_them.recognise(waves),
    }
    generate()  # once before, for what is made at first use
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, run in cases.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of a Whisper model")
    parser.add_argument("--audio", type=Path, required=True, help="folder with audio files below it")
    parser.add_argument("--items", type=int, default=20, help="utterances")
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    files = sorted(path for path in options.audio.rglob("*") if path.suffix in (".wav", ".flac", ".mp3"))[: options.items]
    if not files:
        parser.error(f"{options.audio}: no .wav, .flac or .mp3 file below it")
    waves = [read_audio(path, rate=RATE).numpy() for path in files]
    model = WhisperForConditionalGeneration.from_pretrained(options.model).eval()
    seconds = measure(model, WhisperProcessor.from_pretrained(options.model), waves, options.models, options.rounds)
    base = seconds["`generate`"]
    rows = []
    for name, times in seconds.items():
        ratios = [mine / theirs for mine, theirs in zip(times, base, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        rows.append([name, f"{1000 * statistics.median(times) / len(waves):.0f}", spread])
    print(markdown(plain(["decoding", "ms per utterance", "ratio median (min-max)"], rows)))


if __name__ == "__main__":
    main()
