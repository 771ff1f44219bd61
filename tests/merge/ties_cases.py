"""A decoder whose embedding is its output layer, and its bias another's."""

import torch
from merge_cases import kron

from asrcl.curvature import BlockKey, Curvature

TIED = (("decoder.embed.weight", "out.weight"), ("decoder.bias", "out.bias"))


def state(seed, turned=False):
    g = torch.Generator().manual_seed(seed)
    embedding, bias = torch.randn(8, 4, generator=g), torch.randn(32, generator=g)
    entries = {
        "decoder.embed.weight": embedding,
        "decoder.bias": bias,
        **{f"decoder.layers.{n}.weight": torch.randn(8, 4, generator=g) for n in range(3)},
        "decoder.norm.weight": torch.ones(32),
        "final.norm.weight": torch.ones(32),
        "out.weight": embedding.clone(),
        "out.bias": bias.clone(),
    }
    return dict(reversed(entries.items())) if turned else entries


def curvature():
    return Curvature({BlockKey("out.weight", 0, 8): kron(8, 4)})
