"""What the cheap variants of an estimate lose, beside what one Monte Carlo sample leaves uncertain anyway.

A small Conformer is trained for a moment on frames that resemble their neighbours, as those of speech do. Reference are the
factors of all frames of all batches, with labels drawn from the model. Every variant sees the same labels, so that what differs
is the variant's own error; but for the row of another seed, where nothing differs except the draw.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from bench_models import FEATURES, FrameClassifier, Frames, Sizes
from torch import Tensor, nn

from asrcl.curvature import Curvature, KroneckerBlock, estimate
from asrcl.exceptions import InputError

SMALL = {
    "full": Sizes(width=48, inner=192, blocks=3, classes=32, items=8, frames=100),
    "tiny": Sizes(width=16, inner=32, blocks=1, heads=2, classes=8, kernel=3, items=2, frames=24),
}
STEPS = {"full": (150, 16), "tiny": (3, 4)}  # training steps, batches of an estimate
SEGMENT, MEMORY = 8, 0.9  # frames of one class in a row; correlation of the noise of two neighbours


class SampledLoss:
    """Frame cross entropy at labels drawn from the model itself; the same seed draws the same labels."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, model: nn.Module, batch: Frames) -> Tensor:
        """Summed over frames, mean over items."""
        logits = model(batch.features).flatten(0, 1)
        labels = torch.multinomial(logits.detach().softmax(-1), 1, generator=self._generator).squeeze(-1)
        return F.cross_entropy(logits, labels, reduction="sum") / len(batch)


def speechlike(sizes: Sizes, count: int, generator: torch.Generator) -> list[Frames]:
    """Batches whose class stays for some frames and whose noise changes slowly."""
    centres = torch.randn(sizes.classes, FEATURES, generator=torch.Generator().manual_seed(1))
    batches = []
    for _ in range(count):
        segments = torch.randint(sizes.classes, (sizes.items, -(-sizes.frames // SEGMENT)), generator=generator)
        classes = segments.repeat_interleave(SEGMENT, dim=1)[:, : sizes.frames]
        fresh = torch.randn(sizes.items, sizes.frames, FEATURES, generator=generator)
        noise = [fresh[:, 0]]
        for frame in fresh[:, 1:].unbind(1):
            noise.append(MEMORY * noise[-1] + (1 - MEMORY**2) ** 0.5 * frame)
        batches.append(Frames(centres[classes] + 2 * torch.stack(noise, dim=1), classes))
    return batches


def trained(sizes: Sizes, steps: int, generator: torch.Generator) -> nn.Module:
    """A model after a few steps of Adam."""
    torch.manual_seed(0)
    model = FrameClassifier(sizes)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for batch in speechlike(sizes, steps, generator):
        optimizer.zero_grad()
        F.cross_entropy(model(batch.features).flatten(0, 1), batch.classes.flatten()).backward()
        optimizer.step()
    return model.eval()


def errors(found: Curvature, truth: Curvature) -> dict[str, float]:
    """Relative Frobenius errors of A and G, median and largest over the linear maps."""
    result: dict[str, float] = {}
    for side in ("A_II", "G_OO"):
        values = []
        for key, block in truth.blocks.items():
            if isinstance(block, KroneckerBlock):
                exact = getattr(block, side)
                values.append(float((getattr(found.blocks[key], side) - exact).norm() / exact.norm()))
        result |= {f"{side[0]}_median": statistics.median(values), f"{side[0]}_max": max(values)}
    return result


def accuracy(size: str = "full") -> list[dict[str, Any]]:
    """One row for every variant: its errors, or why it could not run."""
    sizes, (steps, count) = SMALL[size], STEPS[size]
    generator = torch.Generator().manual_seed(0)
    model, batches = trained(sizes, steps, generator), speechlike(sizes, count, generator)

    def of(seed: int, data: Sequence[Frames], **options: Any) -> Curvature:
        return estimate(model, SampledLoss(seed), data, **options)

    truth = of(0, batches)
    variants: dict[str, Callable[[], Curvature]] = {
        "another sample (Monte Carlo noise)": lambda: of(1, batches),
        "every 4th frame": lambda: of(0, batches, stride=4),
        "a quarter of the batches": lambda: of(0, batches[: count // 4]),
        "products in bfloat16": lambda: of(0, batches, products="bfloat16"),
    }
    rows = []
    for name, variant in variants.items():
        try:
            rows.append({"variant": name, **errors(variant(), truth)})
        except (TypeError, InputError) as error:
            rows.append({"variant": name, "skipped": f"{type(error).__name__}: {error}"})
    return rows


def accuracy_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = ("A_median", "A_max", "G_median", "G_max")
    lines = ["| against all frames, relative Frobenius error | A median | A largest | G median | G largest |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        cells = [row["skipped"], "", "", ""] if "skipped" in row else [f"{row[column]:.3f}" for column in columns]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)
