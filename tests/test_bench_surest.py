"""The benchmark of `asrcl.hf.Surest` times four ways of decoding, of which one encodes for every call, and the others do not."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hub_models import write_whisper

pytest.importorskip("transformers")
pytest.importorskip("accelerate", reason="asrcl.hf needs accelerate")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import bench_surest


def test_only_the_case_that_says_so_encodes_for_every_call(tmp_path):
    import transformers

    folder = write_whisper(tmp_path)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    encoded, counts = [], []
    model.get_encoder().layers[0].register_forward_hook(lambda *_: encoded.append(1))
    clock = iter(range(100))

    def tick() -> int:
        counts.append(len(encoded))
        return next(clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_surest.time, "perf_counter", tick)
        wave = np.sin(np.arange(16_000) * 0.31).astype(np.float32)
        seconds = bench_surest.measure(model, transformers.WhisperProcessor.from_pretrained(folder), [wave], 1, 1)
    assert [len(times) for times in seconds.values()] == [1] * 4
    generate, once, anew, _ = (end - start for start, end in zip(counts[::2], counts[1::2], strict=True))
    assert generate == once < anew
