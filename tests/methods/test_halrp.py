"""HALRP: its laws, and the traps between the authors' text, their code, and a program that only looks like it."""

import dataclasses

import pytest
import torch
from method_cases import Alone, Raw
from torch import nn

from asrcl.adapt import TrainConfig, Trainer, run_method, run_stages
from asrcl.contract.weights import Weights
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.increments import Increment
from asrcl.testing import ClassificationTask, blob_domain, build_mlp, tiny_learner, tiny_scenario

TRAINING = TrainConfig(epochs=6, learning_rate=0.02, average_best=1)


def with_base(model, **options):
    """A method that knows the model of the first domain."""
    method = build_method("halrp", private=[], **options)
    method.base, method.increments, method._models = Weights({n: v.clone() for n, v in model.state_dict().items()}), {}, {}
    return method


class OnBlobs(Alone):
    """A learner with one domain, for hooks that are called by hand."""

    task, device, epochs = ClassificationTask(), "cpu", 6
    domains = (blob_domain("blobs", sizes={"train": 48, "dev": 40}, batch_size=16),)


def moved(model, by=0.3):
    torch.manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(by * torch.randn_like(value))
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(folder, domains=4, count=None, **options):
    """Method and stages of a run of the tiny scenario."""
    method = build_method("halrp", **{"private": [], "importance_split": "dev", **options})
    learner = tiny_learner(folder, tiny_scenario(domains), TRAINING)
    return method, learner, list(run_stages(learner, method, "test", count))


# --- laws


def test_with_all_directions_the_perturbation_begins_as_the_free_copy():
    model = build_mlp()
    method = with_base(model, approximation_rate=1.0)
    free = moved(model)
    wrapped = method.wrap(OnBlobs(), model)
    for name, value in method.unwrap(OnBlobs(), wrapped).items():
        if name in free:
            torch.testing.assert_close(value, free[name], rtol=0, atol=1e-6)
    weight = wrapped[0].parametrizations.weight
    assert torch.equal(weight.original, method.base["0.weight"]) and not weight.original.requires_grad


def test_a_raw_attention_an_embedding_and_a_convolution_are_perturbed():
    torch.manual_seed(0)
    model = Raw()
    method = with_base(model, approximation_rate=1.0, importance="none")
    free = moved(model)
    tokens = torch.randint(5, (3, 7))
    method.wrap(OnBlobs(), model)
    plain = method.unwrap(OnBlobs(), model)
    for name in ("attention.in_proj_weight", "attention.out_proj.weight", "embedding.weight"):
        torch.testing.assert_close(plain[name], free[name], rtol=0, atol=1e-6)
    assert plain["convolution.weight"].shape == free["convolution.weight"].shape
    trained = {name.rpartition(".")[2] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == {"R", "S", "U", "V", "weight", "bias", "in_proj_bias"}  # weight and bias: of the normalisation, bias
    other = Raw()
    other.load_state_dict({name: value for name, value in plain.items() if ":" not in name})
    torch.testing.assert_close(other.eval()(tokens), model.eval()(tokens))


def test_forgetting_is_zero_to_the_bit(tmp_path):
    method, _, stages = run(tmp_path)
    learned = [stage.models[number] for number, stage in enumerate(stages)]
    for number, weights in enumerate(stages[-1].models):
        assert all(torch.equal(value, learned[number][name]) for name, value in weights.items())
    assert [e.total for e in stages[-1].errors] == [stage.errors[number].total for number, stage in enumerate(stages)]
    assert set(method.increments) == {"blobs1", "blobs2", "blobs3"}


def test_it_learns_nearly_what_a_free_model_learns(tmp_path):
    _, _, stages = run(tmp_path)
    *_, separate = run_stages(tiny_learner(tmp_path, tiny_scenario(4), TRAINING), build_method("separate"), "test")
    *_, initial = run_stages(tiny_learner(tmp_path, tiny_scenario(4), TRAINING), build_method("initial"), "test")

    def mean(stage):
        return sum(errors.rate for errors in stage.errors) / 4

    assert mean(stages[-1]) < mean(separate) + 0.25 * (mean(initial) - mean(separate))


def test_every_domain_perturbs_the_same_base(tmp_path):
    """Whatever stands between, a domain is learned alike: W_0 stays, and no later domain starts from an earlier one's."""
    method, learner, stages = run(tmp_path)
    assert method.base.hash == learner.initial.hash
    scenario = tiny_scenario(4)
    scenario = dataclasses.replace(scenario, domains=[scenario.domains[n] for n in (0, 2, 1, 3)])
    other = build_method("halrp", private=[])
    stages_b = list(run_stages(tiny_learner(tmp_path / "b", scenario, TRAINING), other, None))
    assert stages[3].models[3].hash == stages_b[3].models[3].hash
    assert {n: i.base for n, i in method.increments.items()} == {n: i.base for n, i in other.increments.items()}


def test_a_domain_that_is_not_known_gets_the_base(tmp_path):
    _, learner, stages = run(tmp_path, count=2)
    assert stages[1].models[3].hash == learner.initial.hash != stages[1].models[1].hash


def test_growth_falls_with_the_bound_and_only_pruning_forgets(tmp_path):
    growth, forgotten = [], []
    for bound in (None, 1.5, 1.0, 0.7):
        _, _, stages = run(tmp_path, growth_bound=bound)
        sizes = [stage.record["parameters"] for stage in stages]
        growth.append(sizes[-1] / sizes[0] - 1)
        forgotten.append(stages[1].models[1].hash != stages[-1].models[1].hash)
    assert growth == sorted(growth, reverse=True) and growth[-1] < 0.75 * growth[0]
    assert forgotten == [False, True, True, True]


def test_old_tasks_can_be_left_alone(tmp_path):
    method, _, stages = run(tmp_path, growth_bound=0.7, prune_old_tasks=False)
    assert stages[1].models[1].hash == stages[-1].models[1].hash
    assert method.increments["blobs3"].numbers() < method.increments["blobs3"].numbers(dense=True)


def test_parameters_are_the_base_and_what_every_domain_adds(tmp_path):
    method, learner, stages = run(tmp_path, domains=2)
    base = sum(value.numel() for value in learner.initial.values())
    assert stages[0].record["parameters"] == base
    added = method.increments["blobs1"]
    ranks = {name: factors.U.shape[1] for name, factors in added.factors.items()}
    low_rank = (16 + 8) * (1 + ranks["0.weight"]) + (4 + 16) * (1 + ranks["3.weight"])
    assert stages[1].record["parameters"] == base + low_rank + 16 + 4
    assert method.parameters(learner, biases=False) == base + low_rank


def test_increments_are_written_with_the_weights(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3), TRAINING)
    method = build_method("halrp", private=[])
    run_method(learner, method, tmp_path / "run", keep_weights=True)
    for name in ("blobs1", "blobs2"):
        loaded = Increment.load(tmp_path / "run" / "increments" / f"{name}.safetensors").weights(learner.initial)
        assert all(torch.equal(value, loaded[key]) for key, value in method.model_of(name).items())


# --- traps


def penalty_of(**options):
    model = build_mlp()
    method = with_base(model, **options)
    moved(model)
    method.wrap(OnBlobs(), model)
    return model, method.penalty(OnBlobs(), model, None)


def test_the_penalty_is_absolute_values_of_two_and_squares_of_all_four():
    model, penalty = penalty_of(l1=0.3, weight_decay=0.7)
    parts = [chain[0] for chain in (model[0].parametrizations.weight, model[3].parametrizations.weight)]
    l1 = sum(part.U.abs().sum() + part.V.abs().sum() for part in parts)
    l2 = sum(value.square().sum() for part in parts for value in (part.U, part.V, part.R, part.S))
    torch.testing.assert_close(penalty, 0.3 * l1 + 0.35 * l2)


@pytest.mark.parametrize("towards", [0.0, 1.0])
def test_scales_decay_to_zero_as_in_the_code_or_to_one(towards):
    model, penalty = penalty_of(l1=0.0, weight_decay=2.0, decay_towards=towards)
    penalty.backward()
    for part in (model[0].parametrizations.weight[0], model[3].parametrizations.weight[0]):
        torch.testing.assert_close(part.R.grad, 2 * (part.R.detach() - towards))
        torch.testing.assert_close(part.S.grad, 2 * (part.S.detach() - towards))
        torch.testing.assert_close(part.U.grad, 2 * part.U.detach())


def importance(kind, split):
    model = build_mlp()
    method = with_base(model, importance=kind, importance_split=split)
    moved(model)
    found = method._importance(OnBlobs(), model, ["0.weight", "3.weight"])
    assert model.training  # as it was
    return model, found


@pytest.mark.parametrize("split", ["train", "dev"])
def test_importance_is_the_squared_gradient_of_whole_batches_weighted_by_their_size(split):
    model, found = importance("mean", split)
    model.eval()
    wanted = {"0.weight": 0.0, "3.weight": 0.0}
    batches = list(OnBlobs.domains[0].batches(split, shuffle=False, seed=0))
    for batch in batches:
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(batch.inputs), batch.labels), list(model.parameters()))
        for name, gradient in zip(["0.weight", "0.bias", "3.weight", "3.bias"], gradients, strict=True):
            if name in wanted:
                wanted[name] += len(batch) * float(gradient.double().square().mean()) / len(batches)
    assert found == pytest.approx(wanted)
    _, sums = importance("sum", split)
    assert sums == pytest.approx({"0.weight": 128 * wanted["0.weight"], "3.weight": 64 * wanted["3.weight"]})


def test_without_the_curvature_all_weights_count_alike():
    assert importance("none", "dev")[1] == {"0.weight": 1.0, "3.weight": 1.0}


def test_the_trace_is_that_of_the_run_s_curvature(tmp_path):
    method, learner, _ = run(tmp_path, domains=2, importance="trace")
    free = learner.fine_tune(learner.initial, learner.scenario.domains[1], build_method("ft"), 1)
    diagonals = learner.estimate_curvature(free, learner.scenario.domains[1], "kron").diagonals()
    found = {name: float(value) for name, value in method._traces.items()}
    assert found == pytest.approx({name: float(value.double().sum()) for name, value in diagonals.items()})
    with pytest.raises(InputError, match=r"no curvature of 0\.weight; set curvature\.layers=all"):
        with_base(build_mlp(), importance="trace").wrap(OnBlobs(), build_mlp())


def test_what_decides_over_ranks_is_part_of_the_fine_tune_s_key(tmp_path):
    method, _, _ = run(tmp_path, domains=2, importance="trace")
    assert any(name.startswith("traces.") for name in method.training_state())


def test_both_parts_together_take_the_epochs_of_a_fine_tune(tmp_path):
    for first in (1, 2, 5):
        _, _, stages = run(tmp_path, domains=2, rank_epochs=first)
        assert len(stages[1].record["training"]) == TRAINING.epochs
    with pytest.raises(InputError, match=r"rank_epochs=6: must be below train\.adapt\.epochs=6"):
        run(tmp_path, domains=2, rank_epochs=6)


def test_the_free_copy_is_plain_fine_tuning(tmp_path, monkeypatch):
    """So that methods and settings that only differ afterwards share it; and no weight decay or L1 acts on it."""
    run(tmp_path, domains=2)
    fitted = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda trainer: fitted.append(trainer.config.epochs) or fit(trainer))
    run(tmp_path, domains=2, l1=0.1)
    assert fitted == [TRAINING.epochs - 1]


def test_normalisations_and_biases_are_the_domain_s_own(tmp_path):
    method, learner, _ = run(tmp_path, domains=2)
    assert set(method.increments["blobs1"].own) == {"0.bias", "3.bias"}
    private = build_method("halrp", private=["3.*"])
    list(run_stages(learner, private, None))
    assert set(private.increments["blobs1"].own) == {"0.bias", "3.bias", "3.weight"}
    assert set(private.increments["blobs1"].factors) == {"0.weight"}


def test_gradients_are_those_of_the_loss(tmp_path):
    """The authors multiply them by ten, which Adam does not notice and gradient descent does."""
    method_class = type(build_method("halrp"))
    seen = []

    class Watched(method_class):
        def after_backward(self, learner, model):
            with torch.enable_grad():
                again = learner.task.loss(model, self.batch) + self.penalty(learner, model, self.batch)
            trained = [value for value in model.parameters() if value.requires_grad]
            for value, wanted in zip(trained, torch.autograd.grad(again, trained), strict=True):
                seen.append(torch.allclose(value.grad, wanted, atol=1e-6))

        def penalty(self, learner, model, batch):
            self.batch = batch
            return super().penalty(learner, model, batch)

    learner = tiny_learner(tmp_path, tiny_scenario(2), dataclasses.replace(TRAINING, optimizer="sgd", epochs=2))
    list(run_stages(learner, Watched(private=[], l1=0.01, weight_decay=0.01), None))
    assert seen and all(seen)


def test_flat_ranks():
    model = build_mlp()
    method = with_base(model, ranks="flat", rank_cap=3)
    moved(model)
    method.wrap(OnBlobs(), model)
    assert [model[n].parametrizations.weight[0].U.shape[1] for n in (0, 3)] == [3, 3]
    with pytest.raises(InputError, match="rank_cap=9: no weight has so many directions; the most is 8"):
        with_base(build_mlp(), ranks="flat", rank_cap=9).wrap(OnBlobs(), build_mlp())


def test_more_of_the_scores_makes_a_larger_model(tmp_path):
    sizes = [run(tmp_path, domains=2, approximation_rate=rate)[2][1].record["parameters"] for rate in (0.3, 0.9, 1.0)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_the_first_domain_can_train_the_base(tmp_path):
    scenario = tiny_scenario(3, trained=False)
    scenario.learn_first = True
    method = build_method("halrp", private=[])
    stages = list(run_stages(tiny_learner(tmp_path, scenario, TRAINING), method, "test"))
    assert method.base.hash == stages[0].models[0].hash != scenario.initial.hash
    assert set(method.increments) == {"blobs1", "blobs2"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ranks": "best"}, "method.ranks=best: choose from global, flat"),
        ({"importance": "hessian"}, "method.importance=hessian: choose from mean, sum, trace, none"),
        ({"importance_split": "test"}, "importance_split=test: choose train or dev"),
        ({"rank_epochs": 0}, "rank_epochs=0: must be at least 1"),
        ({"rank_cap": 0}, "rank_cap=0: must be at least 1"),
        ({"approximation_rate": 0}, "approximation_rate must be positive"),
        ({"l1": -1.0}, "not negative"),
        ({"growth_bound": 0.0}, "growth_bound=0.0: must be positive, or null"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(InputError, match=words):
        build_method("halrp", **options)


def test_targets_that_match_nothing():
    model = build_mlp()
    with pytest.raises(InputError, match=r"targets=\['encoder.*0\.weight, 3\.weight"):
        with_base(model, targets=["encoder*"]).wrap(OnBlobs(), model)
