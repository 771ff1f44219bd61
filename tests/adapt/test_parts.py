"""Layer-wise learning rates and frozen parts: factor 1 is plain training, factor 0 leaves all as it is, both to the bit."""

import math
from dataclasses import replace

import pytest
import torch
from adapt_cases import equal_states
from adapt_cases import learner_on as one_domain
from torch import nn

from asrcl.adapt import Scenario, TrainConfig, Trainer, run_stages
from asrcl.adapt.parts import factor_of, frozen_parts, pairs_of, parameter_groups
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods import Method, build_method
from asrcl.testing import ClassificationTask, blob_domain, build_mlp, tiny_learner, tiny_scenario

QUICK = TrainConfig(epochs=3, learning_rate=0.02, average_best=1)


def tuned(folder, train, method="ft", **options):
    """The weights before and after the second domain."""
    first, second = run_stages(tiny_learner(folder, tiny_scenario(2, dropout=0.2), train), build_method(method, **options), None)
    return first.models[0], second.models[1]


def moved(old, new):
    return {name for name in old if not torch.equal(old[name], new[name])}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_factor_of_one_is_plain_training_to_the_bit(tmp_path, optimizer):
    train = replace(QUICK, optimizer=optimizer, weight_decay=0.01)
    _, plain = tuned(tmp_path / "plain", train)
    _, same = tuned(tmp_path / "same", replace(train, layer_rates=("0.*=1", "*=1.0")))
    assert plain.hash == same.hash


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_factor_of_zero_moves_nothing_by_an_ulp_and_is_freeze(tmp_path, optimizer):
    train = replace(QUICK, optimizer=optimizer, weight_decay=0.01)
    old, still = tuned(tmp_path / "still", replace(train, layer_rates=("0.*=0",)))
    _, frozen = tuned(tmp_path / "frozen", replace(train, freeze=("0.*",)))
    assert moved(old, still) == {"3.weight", "3.bias"} and still.hash == frozen.hash


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_a_factor_for_all_is_another_learning_rate(tmp_path, factor):
    _, scaled = tuned(tmp_path / "scaled", replace(QUICK, layer_rates=(f"*={factor}",)))
    _, faster = tuned(tmp_path / "faster", replace(QUICK, learning_rate=QUICK.learning_rate * factor))
    assert scaled.hash == faster.hash


def test_the_first_step_of_sgd_is_in_proportion(tmp_path):
    train = TrainConfig(epochs=1, optimizer="sgd", learning_rate=0.1, gradient_clip=0.0, accumulate=100, average_best=1)
    old, plain = tuned(tmp_path / "plain", train)
    _, scaled = tuned(tmp_path / "scaled", replace(train, layer_rates=("0.weight=0.5", "0.*=2", "3.weight=0")))
    for name, factor in {"0.weight": 0.5, "0.bias": 2.0, "3.weight": 0.0, "3.bias": 1.0}.items():
        torch.testing.assert_close(scaled[name] - old[name], factor * (plain[name] - old[name]), rtol=1e-4, atol=1e-7)


def test_frozen_statistics_of_batch_normalisation_stay(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))

    torch.manual_seed(0)
    domain, initial = blob_domain("blobs"), Weights(build().state_dict())
    learner = tiny_learner(tmp_path, Scenario("one", [domain], ClassificationTask(), build, initial),
                           replace(QUICK, layer_rates=("[01].*=0",)))  # fmt: skip
    new = learner.fine_tune(initial, domain, build_method("ft"))
    statistics = {"4.running_mean", "4.running_var", "4.num_batches_tracked"}
    assert moved(initial, new) == {f"{layer}.{kind}" for layer in (3, 4, 5) for kind in ("weight", "bias")} | statistics
    free = learner.model_with(initial)  # what was held is held no longer
    free.train()(torch.randn(5, 8))
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert not torch.equal(free[1].running_mean, initial["1.running_mean"])


@pytest.mark.parametrize("off", [{"freeze": ("0.*",)}, {"layer_rates": ("0.*=0",)}])
@pytest.mark.parametrize(
    "name, options", [("lora", {"rank": 2}), ("cssvd", {"share": 1.0}), ("svr", {}), ("gpm", {"rest": "train"})]
)
def test_what_a_method_adds_to_a_frozen_weight_stays_too(tmp_path, off, name, options):
    old, new = tuned(tmp_path, replace(QUICK, **off), name, **options)
    assert moved(old, new) and not {entry for entry in moved(old, new) if entry.startswith("0.")}


def test_what_a_method_adds_to_a_weight_has_its_factor():
    torch.manual_seed(0)
    learner = tiny_learner("unused", tiny_scenario(2))
    learner.enter(2)
    model = build_method("lora", rank=2).wrap(learner, build_mlp())
    assert factor_of("0.parametrizations.weight.0.A", pairs_of(("0.weight=0.5",))) == 0.5
    half, whole = parameter_groups(model, (), ("0.weight=0.5",))
    assert [group["factor"] for group in (half, whole)] == [0.5, 1.0] and len(half["params"]) == len(whole["params"]) == 2
    assert {id(p) for p in half["params"]} == {id(p) for p in model[0].parametrizations.weight[0].parameters()}


def test_training_that_was_killed_goes_on_with_the_same_rates(tmp_path):
    class Stopping(ClassificationTask):
        def loss(self, model, batch):
            if part.progress.epoch == 2 and model.training:
                raise KeyboardInterrupt
            return super().loss(model, batch)

    def trainer(folder, task=None):
        torch.manual_seed(7)
        config = replace(QUICK, layer_rates=("3.*=0.1", "0.bias=2"))
        domain, model = blob_domain("blobs"), build_mlp(dropout=0.3)
        return Trainer(one_domain(domain, task, config, folder), model, domain, config, Method(), folder)

    expected = trainer(tmp_path / "whole").fit()
    part = trainer(tmp_path / "part", Stopping())
    with pytest.raises(KeyboardInterrupt):
        part.fit()
    assert equal_states(trainer(tmp_path / "part").fit(), expected)


def test_rates_are_part_of_the_key_where_there_are_any():
    assert "layer_rates" not in TrainConfig().key() and TrainConfig(layer_rates=("a=2",)).key()["layer_rates"] == ("a=2",)


@pytest.mark.parametrize("text", ["0.weight", "=0.5", "0.weight=", "0.weight=-1", "0.weight=much", f"a={math.inf}", "a=nan"])
def test_bad_texts_are_refused(text):
    with pytest.raises(InputError, match=r"train\.layer_rates=.*PATTERN=FACTOR") as caught:
        TrainConfig(layer_rates=(text,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "rates, fault", [(("1.*=0.5",), r"layer_rates=1\.\*: matches no parameter.*0\.weight"), (("*=0",), "leaves nothing to train")]
)
def test_patterns_that_choose_nothing_or_leave_nothing(rates, fault):
    with pytest.raises(InputError, match=fault), frozen_parts(build_mlp(), (), rates):
        pass


def test_a_method_that_trains_only_what_is_frozen_is_refused(tmp_path):
    with pytest.raises(InputError, match="leave nothing to train"):
        tuned(tmp_path, replace(QUICK, freeze=("0.weight",)), "lora", targets=["0.weight"])
