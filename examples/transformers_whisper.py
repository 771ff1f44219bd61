"""Merge a fine-tuned Whisper of Transformers back into the model it came from: folders in, a folder out.

    python examples/transformers_whisper.py      # a tiny random model on random features, to see every step; no download

For a real model take `WhisperForConditionalGeneration.from_pretrained("openai/whisper-small")` in place of `make_model` and your
processor's batches in place of `make_batches`; the rest stays. Needs `pip install transformers`.
"""

import tempfile
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from asrcl.curvature import estimate
from asrcl.merge import MergeSpec, merge_files


def make_model() -> WhisperForConditionalGeneration:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=20, max_target_positions=12,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config)


def make_batches(seed: int, count: int = 4) -> list[dict[str, torch.Tensor]]:
    """What `WhisperProcessor` and a collator give: log-Mel features and labels, -100 where padded."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, 40, (count, 4, 6), generator=generator)
    return [
        {"input_features": torch.randn(4, 8, 40, generator=generator) + seed, "labels": rows.clone()} for rows in labels
    ]


def loss_fn(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean loss of a batch; Transformers computes it from the labels."""
    return model(**batch).loss


def fine_tune(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], epochs: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for batch in batches * epochs:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def mean_loss(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    return sum(float(loss_fn(model, batch)) for batch in batches) / len(batches)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    old_domain, new_domain = make_batches(0), make_batches(1)
    model = make_model()
    fine_tune(model, old_domain, 30)
    model.save_pretrained(folder / "old")
    estimate(model, loss_fn, old_domain).save(folder / "curvature.safetensors")  # every parameter, unmodified model
    fine_tune(model, new_domain, 10)
    model.save_pretrained(folder / "new")
    spec = MergeSpec("ihr", {"tau": 1.0, "damping": 1.0}, curvature=[folder / "curvature.safetensors"])
    record = merge_files(folder / "old", [folder / "new"], folder / "merged", spec)
    print(f"{'model':<8}{'loss, old domain':>18}{'loss, new domain':>18}")
    for name in ("old", "new", "merged"):
        loaded = WhisperForConditionalGeneration.from_pretrained(folder / name).eval()
        print(f"{name:<8}{mean_loss(loaded, old_domain):>18.3f}{mean_loss(loaded, new_domain):>18.3f}")
    print(f"predicted increase of the old loss: {record.totals.predicted:.3g}; card: {folder / 'merged' / 'README.md'}")


if __name__ == "__main__":
    main()
