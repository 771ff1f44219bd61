"""The weights of a model by name, as every room passes them on."""

from __future__ import annotations

from torch import Tensor

StateDict = dict[str, Tensor]
"""Name -> tensor, as `torch.nn.Module.state_dict` gives them."""
