"""Networks for images: a trunk that all domains share and one head, or one for each domain.

Shapes: B images, C channels, H x W pixels, F features, K classes of a head.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from asrcl.exceptions import InputError
from asrcl.experiment.registry import Registry
from asrcl.images.options import check_options


class Classifier(nn.Module):
    """A trunk and heads.

    Args:
        trunk: `[B, C, H, W]` to `[B, F]`.
        features: F.
        heads: number of classes by domain, or under "" for the one head of all.
    """

    def __init__(self, trunk: nn.Module, features: int, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.trunk = trunk
        self._place = {name: number for number, name in enumerate(heads)}  # names of domains may hold dots
        self.heads = nn.ModuleList(nn.Linear(features, classes) for classes in heads.values())

    def forward(self, pixels: Tensor, domain: str) -> Tensor:
        """Logits `[B, K]` of the head of `domain`."""
        head = self._place.get("", self._place.get(domain))
        if head is None:
            raise InputError(f"model: no head for domain {domain}; it has heads for {', '.join(self._place)}")
        return self.heads[head](self.trunk(pixels))

    def private(self, domain: str) -> tuple[str, ...]:
        """Names of the parameters that this domain alone uses: those of its head; none where all share one."""
        return () if "" in self._place else tuple(f"heads.{self._place[domain]}.{name}" for name in ("weight", "bias"))


MODELS: Registry[nn.Module] = Registry("model.kind")
register_trunk = MODELS.register


@register_trunk("mlp")
class MultiLayerPerceptron(nn.Sequential):
    """Linear maps with rectifiers between flattened pixels and features.

    Args:
        shape: C, H, W.
        widths: of the hidden layers, the last of which are the features.
        dropout: after every rectifier.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int] = (128, 128), dropout: float = 0.0) -> None:
        if not widths or min(widths) < 1:
            raise InputError(f"model.widths={list(widths)}: give the width of at least one hidden layer")
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip([math.prod(shape), *widths], widths, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers)
        self.features = widths[-1]


@register_trunk("lenet")
class LeNet(nn.Sequential):
    """HALRP's LeNet (arXiv 2311.15161, its code): two convolutions of 5 x 5 and two linear maps, each with batch normalisation.

    Args:
        shape: C, H, W; H and W at least 8.
        widths: channels of both convolutions, then widths of both linear maps.
    """

    def __init__(self, shape: Sequence[int], widths: Sequence[int] = (20, 50, 800, 500)) -> None:
        channels, height, width = shape
        if len(widths) != 4 or min(widths) < 1 or min(height, width) < 8:
            raise InputError(f"model.widths={list(widths)} on {height} x {width} pixels: give four widths, 8 x 8 pixels or more")
        first, second, third, self_features = widths
        super().__init__(
            nn.Conv2d(channels, first, 5, padding=2), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5, padding=2), nn.BatchNorm2d(second), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(second * (height // 4) * (width // 4), third), nn.BatchNorm1d(third), nn.ReLU(),
            nn.Linear(third, self_features), nn.ReLU(),
        )  # fmt: skip
        self.features = self_features


@register_trunk("alexnet_small")
class SmallAlexNet(nn.Sequential):
    """The AlexNet for 32 x 32 pixels of Serra et al. (2018, HAT) and Saha et al. (2021, GPM).

    Three convolutions, with kernels 4, 3 and 2 pixels wide and without padding, and two linear maps;
    dropout follows every rectifier, and maxima over 2 x 2 pixels every convolution.

    Args:
        shape: C, H, W; H and W at least 19.
        widths: channels of the three convolutions, then widths of both linear maps.
        dropout: after the first two convolutions, and after what follows them.
        normalisation: batch normalisation before every rectifier.
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 2048, 2048),
        dropout: Sequence[float] = (0.2, 0.5),
        normalisation: bool = False,
    ) -> None:
        channels, *sides = shape
        if len(widths) != 5 or min(widths) < 1 or min(sides) < 19:
            found = " x ".join(map(str, sides))
            raise InputError(f"model.widths={list(widths)} on {found} pixels: give five widths, 19 x 19 pixels or more")
        if len(dropout) != 2 or not all(0 <= rate < 1 for rate in dropout):
            raise InputError(f"model.dropout={list(dropout)}: give two rates from 0 to below 1, of early and of later layers")
        layers: list[nn.Module] = []
        rates = (dropout[0], dropout[0], dropout[1])
        for inputs, outputs, kernel, rate in zip([channels, *widths], widths[:3], (4, 3, 2), rates, strict=False):
            layers.append(nn.Conv2d(inputs, outputs, kernel))
            layers += [nn.BatchNorm2d(outputs)] if normalisation else []
            layers += [nn.ReLU(), nn.Dropout(rate), nn.MaxPool2d(2)]
            sides = [(side - kernel + 1) // 2 for side in sides]
        layers.append(nn.Flatten())
        for inputs, outputs in ((widths[2] * math.prod(sides), widths[3]), (widths[3], widths[4])):
            layers.append(nn.Linear(inputs, outputs))
            layers += [nn.BatchNorm1d(outputs)] if normalisation else []
            layers += [nn.ReLU(), nn.Dropout(dropout[1])]
        super().__init__(*layers)
        self.features = widths[4]


@register_trunk("resnet18")
class ResNet18(nn.Sequential):
    """ResNet-18 (He et al., 2016) of torchvision's blocks with the stem for small images: 3 x 3, stride 1, no maxima.

    With width 64 its parameters have the names and, but for `conv1`, the shapes of `torchvision.models.resnet18`.

    Args:
        shape: C, H, W.
        width: channels of the first stage; twice as many in each that follows.
    """

    def __init__(self, shape: Sequence[int], width: int = 64) -> None:
        from torchvision.models.resnet import BasicBlock  # here: it takes seconds to import, and few need it

        if width < 1:
            raise InputError(f"model.width={width}: give the channels of the first stage, 1 or more")
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
            "bn1": nn.BatchNorm2d(width),
            "relu": nn.ReLU(),
        }
        inputs = width
        for stage in range(4):
            outputs, stride = width * 2**stage, 1 if stage == 0 else 2
            across = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)) if stage else None
            blocks = BasicBlock(inputs, outputs, stride, across), BasicBlock(outputs, outputs)
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
            inputs = outputs
        super().__init__(OrderedDict(layers, pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten()))
        self.features = inputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as torchvision begins
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_classifier(settings: Mapping[str, Any], shape: Sequence[int], heads: Mapping[str, int]) -> Classifier:
    """A classifier with fresh weights.

    Args:
        settings: the group `model` of the configuration: `kind` and what the trunk takes.
        shape: C, H, W.
        heads: as for `Classifier`.

    Raises:
        InputError: an unknown kind or setting.
    """
    options = dict(settings)
    kind = options.pop("kind", "conformer")
    builder = MODELS.get(kind)
    check_options(builder, options, f"model ({kind})", own=("shape",))
    trunk: Any = builder(shape, **options)
    return Classifier(trunk, trunk.features, heads)
