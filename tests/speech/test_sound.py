"""How utterances sound to the encoder, and whether they sound like a domain."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.experiment.tuning import search_all, searches
from asrcl.methods.sound import SHRINKAGE, Sound, features, heard_block
from asrcl.speech.task import RecognitionTask
from asrcl.testing import build_mlp


def two():
    """Two domains, of unit covariance but for shrinkage, that lie 10 apart along the first of two dimensions."""
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    sound = Sound()
    sound.add("a", square, square)
    sound.add("b", square + torch.tensor([10.0, 0.0]), square + torch.tensor([4.0, 0.0]))
    return sound


def test_excess_is_the_distance_beyond_that_to_the_nearest_domain():
    sound, scale = two(), 2 * (1 + SHRINKAGE)  # two dimensions, variance 1
    items = torch.tensor([[0.0, 0.0], [10.0, 3.0], [5.0, -7.0]], dtype=torch.float64)
    found = sound.excess(items)
    assert found["a"].tolist() == pytest.approx([0.0, 100 / scale, 0.0])
    assert found["b"].tolist() == pytest.approx([100 / scale, 0.0, 0.0])


def test_the_limit_is_the_largest_excess_of_a_dev_set_for_its_own_domain():
    sound = two()
    worst = (7.0**2 - 3.0**2) / (2 * (1 + SHRINKAGE))  # of b's dev set the item at 3, which is 7 from b and 3 from a
    assert sound.limit == pytest.approx(worst)
    again = Sound.of(sound.state())
    assert again.state().keys() == sound.state().keys() and again.limit == sound.limit and again.count == 8
    assert Sound().state() == {} and Sound.of({}).means == {}


@pytest.fixture
def heard(tokenizer, make_model, make_batch):
    model, batch = make_model(vocabulary=len(tokenizer)).eval(), make_batch([240, 200, 90], vocabulary=len(tokenizer))
    learner = SimpleNamespace(frozen=lambda weights: model, task=RecognitionTask(tokenizer), device="cpu")

    def hear(*batches):
        return features(learner, None, SimpleNamespace(batches=lambda split, shuffle, seed: iter(batches)), "test")

    return hear, batch, model


def test_features_know_neither_the_batch_nor_the_labels(heard):
    hear, batch, model = heard
    together, alone = hear(batch), hear(*batch.items())
    assert list(together) == list(batch.ids)
    width = together["u0"].numel() // 2
    for name in batch.ids:
        assert torch.allclose(together[name], alone[name], atol=1e-4) and together[name].shape == (2 * width,)
    assert not torch.allclose(together["u0"], together["u1"], atol=1e-2)
    other = hear(replace(batch, tokens=batch.tokens.flip(1)))
    assert all(torch.equal(other[name], together[name]) for name in batch.ids)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_block_that_is_listened_to_is_the_last_of_the_first_half():
    def model(blocks):
        layers = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(blocks))
        return torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"layers": layers})})

    assert [heard_block(model(blocks)) for blocks in (1, 2, 4, 12)] == [f"encoder.layers.{n}" for n in (0, 0, 1, 5)]
    with pytest.raises(InputError, match=r"no blocks named encoder\.layers\.N to listen to; use select=calibrated"):
        heard_block(build_mlp())


def test_a_gated_method_goes_through_a_search(start):
    config = start("+variants=beyond")
    (rows,) = search_all(config, searches(config, ["lora_gated"], {"rank": [2], "train.adapt.epochs": [1]}), [1]).values()
    assert 0 <= rows[0]["average"] <= 1000
