"""Weights as a value."""

import pytest
import torch
from torch import nn

from asrcl.contract import weights as module
from asrcl.contract.weights import Weights, fingerprint


def test_weights_are_a_mapping_with_a_hash():
    state = {"a": torch.ones(2), "b": torch.zeros(3, 2)}
    weights = Weights(state)
    assert dict(weights) == state and len(weights) == 2 and weights.hash == fingerprint(state)
    assert Weights.of(weights) is weights and Weights.of(state).hash == weights.hash
    assert weights != Weights(state) and len({weights, weights}) == 1
    nn.Linear(1, 1).load_state_dict(Weights({"weight": torch.ones(1, 1), "bias": torch.ones(1)}))


def test_the_hash_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "fingerprint", lambda state: calls.append(1) or "hash")
    weights = Weights({"a": torch.ones(2)})
    assert (weights.hash, weights.hash, len(calls)) == ("hash", "hash", 1)


@pytest.mark.parametrize(
    "change", [{"a": torch.ones(3)}, {"b": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)}, {"a": torch.ones(2, 1)}, {}]
)
def test_any_difference_changes_the_hash(change):
    assert Weights(change).hash != Weights({"a": torch.ones(2)}).hash
