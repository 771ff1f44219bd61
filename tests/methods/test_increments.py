"""Increments: the models they give, what they count, and the files they are kept in."""

import pytest
import torch

from asrcl.contract.weights import fingerprint, save_weights
from asrcl.exceptions import InputError
from asrcl.methods.increments import Factors, Increment

SHARED = {"w": torch.arange(6.0).view(2, 3), "b": torch.zeros(2), "count": torch.tensor(3)}


def increment(zeros=False, base=""):
    U, V = torch.tensor([[1.0], [0.0 if zeros else 2.0]]), torch.tensor([[1.0, 0.0 if zeros else 1.0, 3.0]])
    factors = Factors(U, V, torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.5, 1.0]))
    return Increment({"w": factors}, {"b": torch.tensor([5.0, 6.0]), "norm.weight": torch.ones(4)}, base)


def test_the_model_is_scaled_shared_weights_and_the_product():
    model = increment().weights({**SHARED, "norm.weight": torch.zeros(4)})
    scaled = torch.tensor([[2.0], [1.0]]) * SHARED["w"] * torch.tensor([1.0, 0.5, 1.0])
    torch.testing.assert_close(model["w"], scaled + torch.tensor([[1.0, 1.0, 3.0], [2.0, 2.0, 6.0]]))
    assert torch.equal(model["b"], torch.tensor([5.0, 6.0])) and model["count"] is SHARED["count"]


def test_a_product_over_all_further_axes_is_added_as_it_is():
    weight, U, V = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(2, 8)
    model = Increment({"w": Factors(U, V)}).weights({"w": weight})
    torch.testing.assert_close(model["w"], weight + (U @ V).view(3, 2, 4))


def test_numbers_leave_out_zeros_and_if_asked_biases():
    assert increment().numbers() == 2 + 3 + 2 + 3 + 2 + 4
    assert increment(zeros=True).numbers() == 1 + 2 + 2 + 3 + 2 + 4
    assert increment(zeros=True).numbers(dense=True) == increment().numbers()
    own = Increment({}, {"layer.bias": torch.ones(3), "attention.in_proj_bias": torch.ones(2), "n": torch.tensor(1)})
    assert own.numbers() == 5 and own.numbers(biases=False) == 0


@pytest.mark.parametrize("zeros", [False, True])
def test_a_file_gives_back_what_was_saved(tmp_path, zeros):
    first = increment(zeros, "abc")
    first.save(tmp_path / "US.safetensors")
    again = Increment.load(tmp_path / "US.safetensors")
    assert again.base == "abc" and again.state().keys() == first.state().keys()
    assert all(torch.equal(value, first.state()[name]) for name, value in again.state().items())


def test_pruned_factors_take_less_room(tmp_path):
    U, V = torch.randn(200, 20), torch.randn(20, 200)
    pruned = Factors(torch.where(U > 1.5, U, 0.0), torch.where(V > 1.5, V, 0.0))
    for name, factors in (("full", Factors(U, V)), ("pruned", pruned)):
        Increment({"w": factors}).save(tmp_path / name)
    assert (tmp_path / "pruned").stat().st_size < 0.3 * (tmp_path / "full").stat().st_size
    again = Increment.load(tmp_path / "pruned").factors["w"]
    assert torch.equal(again.U, pruned.U) and torch.equal(again.V, pruned.V)


def test_another_base_is_refused():
    base = fingerprint({"w": SHARED["w"]})
    shared = {**SHARED, "norm.weight": torch.zeros(4)}
    increment(base=base).weights(shared)
    with pytest.raises(InputError, match=r"made for shared weights .* take the model it was made for"):
        increment(base=base).weights({**shared, "w": SHARED["w"] + 1})
    with pytest.raises(InputError, match=r"no tensor norm\.weight"):
        increment().weights(SHARED)


def test_files_of_another_kind_and_damaged_ones(tmp_path):
    save_weights({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match=r"plain\.safetensors: not an increment"):
        Increment.load(tmp_path / "plain.safetensors")
    facts = {"kind": "asrcl increment", "base": ""}
    save_weights({"w.U": torch.ones(2, 1)}, tmp_path / "half.safetensors", facts)
    with pytest.raises(InputError, match=r"half\.safetensors: .*no fitting pair of U and V of w"):
        Increment.load(tmp_path / "half.safetensors")
    save_weights({"w.U/values": torch.ones(2), "w.V": torch.ones(1, 2)}, tmp_path / "sparse.safetensors", facts)
    with pytest.raises(InputError, match=r"sparse\.safetensors: .*w\.U do not fit"):
        Increment.load(tmp_path / "sparse.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "half.safetensors").read_bytes()[:20])
    with pytest.raises(InputError, match="damaged"):
        Increment.load(tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match="no such"):
        Increment.load(tmp_path / "none.safetensors")
