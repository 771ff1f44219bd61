"""What the curvature benchmarks run: models, batches, losses, and a count of the products that their factors cost.

Shapes: N items, T frames, D model width, H inner width of the feed-forward layers, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = Path(__file__).resolve().parents[1] / "conf" / "model" / "conformer_paper.yaml"
FEATURES = 80


@dataclass(frozen=True)
class Frames:
    """Items of equally many frames: features `[N, T, F]`, a class for every frame `[N, T]`."""

    features: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str) -> Frames:
        """The same batch on another device."""
        return Frames(self.features.to(device), self.classes.to(device))

    def items(self) -> Iterator[Frames]:
        """The items one by one."""
        for number in range(len(self)):
            yield Frames(self.features[number : number + 1], self.classes[number : number + 1])


@dataclass(frozen=True)
class Sizes:
    """Sizes of a `FrameClassifier` and of its batches."""

    width: int = 144
    inner: int = 576
    blocks: int = 6
    heads: int = 4
    classes: int = 256
    kernel: int = 15
    items: int = 16
    frames: int = 100


SIZES = {
    "full": {"toy": Sizes(), "widths": Sizes(width=256, inner=2048, blocks=2)},
    "tiny": {
        "toy": Sizes(width=16, inner=32, heads=2, classes=8, kernel=3, items=2, frames=8),
        "widths": Sizes(width=16, inner=64, blocks=2, heads=2, classes=8, kernel=3, items=2, frames=8),
    },
}


class FeedForward(nn.Module):
    """LayerNorm, D to H, SiLU, H to D."""

    def __init__(self, size: Sizes) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.width)
        self.up = nn.Linear(size.width, size.inner)
        self.down = nn.Linear(size.inner, size.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """The change of the hidden states `[N, T, D]`."""
        return self.down(F.silu(self.up(self.norm(hidden))))


class Attention(nn.Module):
    """LayerNorm and self-attention with four separate maps."""

    def __init__(self, size: Sizes) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm = nn.LayerNorm(size.width)
        self.query, self.key, self.value, self.output = (nn.Linear(size.width, size.width) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        """The change of the hidden states `[N, T, D]`."""
        read = self.norm(hidden)
        parts = [part(read).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        return self.output(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """LayerNorm, pointwise map with a gate, depthwise convolution, LayerNorm, SiLU, pointwise map.

    The pointwise maps are `nn.Linear`, because some of the libraries that are compared know no one-dimensional convolution.
    """

    def __init__(self, size: Sizes) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.width)
        self.enter = nn.Linear(size.width, 2 * size.width)
        self.depthwise = nn.Conv1d(size.width, size.width, size.kernel, padding=size.kernel // 2, groups=size.width)
        self.middle = nn.LayerNorm(size.width)
        self.leave = nn.Linear(size.width, size.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """The change of the hidden states `[N, T, D]`."""
        gated = F.glu(self.enter(self.norm(hidden)))
        mixed = self.depthwise(gated.transpose(1, 2)).transpose(1, 2)
        return self.leave(F.silu(self.middle(mixed)))


class Block(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, LayerNorm: ten linear maps."""

    def __init__(self, size: Sizes) -> None:
        super().__init__()
        self.first, self.attention = FeedForward(size), Attention(size)
        self.convolution, self.last = Convolution(size), FeedForward(size)
        self.norm = nn.LayerNorm(size.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """The next hidden states `[N, T, D]`."""
        hidden = hidden + 0.5 * self.first(hidden)
        hidden = hidden + self.attention(hidden)
        hidden = hidden + self.convolution(hidden)
        return self.norm(hidden + 0.5 * self.last(hidden))


class FrameClassifier(nn.Module):
    """A Conformer encoder that gives every frame C logits; with 6 blocks it has 62 linear maps."""

    def __init__(self, size: Sizes) -> None:
        super().__init__()
        self.input = nn.Linear(FEATURES, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.blocks)))
        self.output = nn.Linear(size.width, size.classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[N, T, C]`."""
        return self.output(self.blocks(self.input(features)))


def frame_loss(model: nn.Module, batch: Frames) -> Tensor:
    """Cross entropy summed over frames, mean over items."""
    logits = model(batch.features)
    return F.cross_entropy(logits.flatten(0, 1), batch.classes.flatten(), reduction="sum") / len(batch)


@dataclass(frozen=True)
class Work:
    """One model with its batch.

    Attributes:
        first_bias: the bias of the first linear map. Left as the only trainable parameter, it makes the backward pass compute
            the gradients of all activations and nothing else worth mentioning.
        padding: as `asrcl.curvature.estimate` takes it.
    """

    model: nn.Module
    batch: Any
    loss: Callable[[nn.Module, Any], Tensor]
    first_bias: str
    padding: Callable[[Any], Sequence[Tensor]] | None = None


def build(name: str, size: str = "full", device: str = "cpu") -> Work:
    """The model called "toy", "widths" or "paper" at its initial weights, with a random batch."""
    torch.manual_seed(0)
    if name == "paper":
        return _paper(device)
    sizes = SIZES[size][name]
    batch = Frames(torch.randn(sizes.items, sizes.frames, FEATURES), torch.randint(sizes.classes, (sizes.items, sizes.frames)))
    return Work(FrameClassifier(sizes).eval().to(device), batch.to(device), frame_loss, "input.bias")


def _paper(device: str) -> Work:
    """The 47 M Conformer of conf/model/conformer_paper.yaml with 16 utterances of 8 to 12 seconds and 40 to 55 pieces."""
    import yaml

    from asrcl.speech.domain import SpeechBatch
    from asrcl.speech.model import ConformerASR
    from asrcl.speech.task import RecognitionTask

    pieces, items = 5000, 16
    model = ConformerASR(features=FEATURES, vocabulary=pieces, **yaml.safe_load(CONFIG.read_text())).eval().to(device)
    lengths, token_lengths = 800 + 400 * torch.arange(items) // (items - 1), 40 + torch.arange(items)
    mask = torch.arange(int(token_lengths.max()))[None] < token_lengths[:, None]
    tokens = torch.randint(3, pieces, mask.shape) * mask
    names = tuple(str(number) for number in range(items))
    batch = SpeechBatch(names, names, names, torch.randn(items, 1200, FEATURES), lengths, tokens, token_lengths)
    task = RecognitionTask(tokenizer=None)  # type: ignore[arg-type] # the loss asks for no tokenizer
    first = next(name for name, _ in model.named_parameters() if "custom_src_module" in name and name.endswith("bias"))
    return Work(model, batch.to(device), task.curvature_loss, first, lambda batch: task.padding(model, batch))


@dataclass
class Products:
    """Every product `rows × inputs -> outputs` of a linear map in one forward pass."""

    shapes: list[tuple[int, int, int]]
    inputs: list[Tensor]
    weights: set[int]

    @property
    def pass_flops(self) -> float:
        """Forward and backward of the linear maps: three GEMMs each."""
        return sum(6.0 * rows * inputs * outputs for rows, inputs, outputs in self.shapes)

    @property
    def factor_flops(self) -> float:
        """The symmetric products AᵀA and GᵀG at half of a GEMM, an input that several maps read counted once."""
        maps = zip(self.inputs, self.shapes, strict=True)
        read = {(tensor.data_ptr(), inputs): rows * inputs**2 for tensor, (rows, inputs, _) in maps}
        return float(sum(read.values()) + sum(rows * outputs**2 for rows, _, outputs in self.shapes))

    @property
    def correction_flops(self) -> float:
        """Rotating inputs and gradients into an eigenbasis and forming every item's gradient there."""
        return sum(2.0 * rows * (inputs**2 + outputs**2 + inputs * outputs) for rows, inputs, outputs in self.shapes)

    @property
    def largest_activation(self) -> int:
        """Bytes of input and output of the largest linear map."""
        return max(
            rows * (inputs + outputs) * tensor.element_size()
            for tensor, (rows, inputs, outputs) in zip(self.inputs, self.shapes, strict=True)
        )


@contextmanager
def _recording(products: Products) -> Iterator[None]:
    linear, conv1d = F.linear, F.conv1d

    def record(values: Tensor, weight: Tensor, output: Tensor) -> Tensor:
        products.shapes.append((output.numel() // weight.shape[0], weight.shape[1], weight.shape[0]))
        products.inputs.append(values.detach())
        products.weights.add(weight.data_ptr())
        return output

    def watched_linear(values: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        return record(values, weight, linear(values, weight, *rest, **named))

    def watched_conv1d(values: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
        output = conv1d(values, weight, *rest, **named)
        pointwise = weight.shape[-1] == 1 and weight.shape[1] == values.shape[1]
        return record(values, weight, output) if pointwise else output

    try:
        F.linear, F.conv1d = watched_linear, watched_conv1d  # type: ignore[assignment]
        yield
    finally:
        F.linear, F.conv1d = linear, conv1d


def products_of(work: Work) -> Products:
    """The products of one pass, counted by watching it."""
    products = Products([], [], set())
    with _recording(products):
        work.loss(work.model, work.batch)
    return products
