"""A plain PyTorch loop that learns a second domain and keeps the first.

    python examples/plain_pytorch.py

Two toy domains (the second one's inputs are rotated): train on the first, estimate its curvature, fine-tune on the second, and
merge. Printed is the accuracy on both domains before and after; a few seconds on a CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from asrcl.curvature import estimate
from asrcl.merge import merge


def make_domain(angle: float, count: int = 800) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in four clusters, turned by an angle in degrees."""
    labels = torch.arange(count) % 4
    turn = labels * math.pi / 2 + math.radians(angle)
    points = torch.stack([turn.cos(), turn.sin()], 1) + 0.3 * torch.randn(count, 2)
    return points, labels


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean over the items of a batch, which is all that curvature estimation asks for."""
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def train(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        loss_fn(model, data).backward()
        optimizer.step()


def accuracy(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((model(data[0]).argmax(1) == data[1]).float().mean()) * 100


def main() -> None:
    torch.manual_seed(0)
    first, second = make_domain(0), make_domain(35)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    train(model, first, 200)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curvature = estimate(model, loss_fn, list(zip(first[0].split(100), first[1].split(100), strict=True)))
    # The data of the first domain may go now; the curvature can be kept in a file (curvature.save).
    train(model, second, 100)
    new = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    models = {
        "old": old,
        "fine-tuned": new,
        "average": merge(old, new, "average"),
        "ihr": merge(old, new, "ihr", curvature=curvature, damping=0.1),
    }
    print(f"{'model':<12}{'first domain':>14}{'second domain':>15}")
    for name, state in models.items():
        model.load_state_dict(state)
        print(f"{name:<12}{accuracy(model, first):>13.1f}%{accuracy(model, second):>14.1f}%")


if __name__ == "__main__":
    main()
