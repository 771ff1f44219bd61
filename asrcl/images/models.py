"""Networks for images: a trunk that all domains share and one head, or one for each domain.

Shapes: B images, C channels, H x W pixels, F features, K classes of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from asrcl.exceptions import InputError
from asrcl.experiment.registry import Registry


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
    try:
        trunk: Any = MODELS.get(kind)(shape, **options)
    except TypeError as error:
        raise InputError(f"model ({kind}): {error}; see conf/model for the settings there are") from error
    return Classifier(trunk, trunk.features, heads)
