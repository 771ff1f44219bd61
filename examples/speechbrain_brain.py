"""A SpeechBrain Brain: curvature from its own `compute_objectives`, merging of its checkpoint folders.

    python examples/speechbrain_brain.py               # a tiny Brain on random features, to see every step; no download

Your own Brain stays as it is. What is added: `loss_fn`, which calls it as `evaluate_batch` would, and a merge of two `CKPT+...`
folders into a third one that its Checkpointer recovers. Needs `pip install speechbrain`.
"""

import tempfile
from pathlib import Path
from typing import Any

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import Checkpointer
from torch import nn

from asrcl.curvature import estimate
from asrcl.merge import MergeSpec, merge_files

Batch = tuple[torch.Tensor, torch.Tensor]


class Recogniser(sb.Brain):
    """Frame-wise classification, in place of your CTC or attention recipe."""

    def compute_forward(self, batch: Batch, stage: Any) -> torch.Tensor:
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions: torch.Tensor, batch: Batch, stage: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(predictions.flatten(0, 1), batch[1].flatten())


def make_batches(seed: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (4, 8, 12), generator=generator)
    patterns = torch.randn(5, 10, generator=generator)
    return [(patterns[rows] + 0.5 * torch.randn(8, 12, 10, generator=generator), rows) for rows in labels]


def loss_fn(brain: Recogniser) -> Any:
    """The mean loss of a batch through the Brain; curvature estimation passes the model, which the Brain holds already."""

    def loss(_: nn.Module, batch: Batch) -> torch.Tensor:
        return brain.compute_objectives(brain.compute_forward(batch, sb.Stage.VALID), batch, sb.Stage.VALID)

    return loss


def train(brain: Recogniser, batches: list[Batch], epochs: int, folder: Path) -> Path:
    """Fit and save, as a recipe does; the folder of the checkpoint."""
    brain.fit(range(epochs), torch.utils.data.DataLoader(batches, batch_size=None), progressbar=False)
    checkpointer = Checkpointer(folder, {"model": brain.modules.model})
    return Path(checkpointer.save_checkpoint().path)


def main() -> None:
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp())
    old_domain, new_domain = make_batches(1), make_batches(2)
    model = nn.Sequential(nn.Linear(10, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 5))
    brain = Recogniser({"model": model}, opt_class=lambda parameters: torch.optim.Adam(parameters, 0.01))
    old = train(brain, old_domain, 20, folder / "old")
    curvature = estimate(model, loss_fn(brain), old_domain)
    curvature.save(folder / "curvature.safetensors")
    new = train(brain, new_domain, 5, folder / "new")
    merged = folder / "merged" / "CKPT+merged"
    merge_files(old, [new], merged, MergeSpec("ihr", {"damping": 1.0}, curvature=[folder / "curvature.safetensors"]))
    print(f"{'model':<8}{'loss, old domain':>18}{'loss, new domain':>18}")
    for name, saves in (("old", old.parent), ("new", new.parent), ("merged", merged.parent)):
        Checkpointer(saves, {"model": model}).recover_if_possible()
        model.eval()
        with torch.no_grad():
            losses = [sum(float(loss_fn(brain)(model, b)) for b in data) / len(data) for data in (old_domain, new_domain)]
        print(f"{name:<8}{losses[0]:>18.3f}{losses[1]:>18.3f}")


if __name__ == "__main__":
    main()
