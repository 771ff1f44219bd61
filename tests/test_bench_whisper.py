"""The benchmark of fine-tuning Whisper runs on a small random model, and what it hands to Transformers is the same problem."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import bench_whisper


def test_both_loops_are_timed_and_see_the_same_batches(tmp_path):
    from transformers import WhisperForConditionalGeneration

    folder = bench_whisper.tiny_model(tmp_path)
    result = bench_whisper.measure(folder, batches=1, rounds=1, context=9)
    assert result["rounds"][0]["ratio"] > 0 and result["floor"] > 0
    assert bench_whisper.table(result).count("\n") == 6
    assert all(result["rounds"][0][fisher] > 0 for fisher in bench_whisper.FISHERS)
    model = bench_whisper.build(folder).eval()
    domain = bench_whisper.RandomUtterances(1, 8, len(model.model.decoder.embed_tokens.weight))
    batch = next(iter(domain.batches("train", shuffle=False, seed=0)))
    row = bench_whisper.for_transformers(model, [batch])[0]
    reference = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = reference(**row).loss.item()  # the mean over tokens
        tokens = int((row["labels"] != -100).sum()) / len(batch)
        assert model.loss(model(batch), batch, bench_whisper._plain()).item() == pytest.approx(theirs * tokens, rel=1e-4)
