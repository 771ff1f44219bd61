"""Hybrid update: the similarity of two domains, and that it decides what is trained and nothing else."""

import pytest
import torch
from image_cases import configured
from torch import nn

from asrcl.adapt import Scenario, run_stages
from asrcl.exceptions import InputError
from asrcl.experiment.registry import benchmark_of
from asrcl.experiment.run import learner_of
from asrcl.methods import build_method
from asrcl.methods.hybrid import agreement
from asrcl.testing import ClassificationTask, blob_domain, tiny_learner, tiny_scenario

REFERENCES = ["fixed", "start", "end", "update"]


def stages_of(learner, name, **options):
    return list(run_stages(learner, build_method(name, **options), "test"))


def hashes(stages):
    return [stage.models[0].hash for stage in stages]


@pytest.mark.parametrize("reference", REFERENCES)
def test_thresholds_at_the_ends_are_frozen_and_plain_training_to_the_bit(tmp_path, reference):
    learner = tiny_learner(tmp_path, tiny_scenario(4))
    lowest, highest = (stages_of(learner, "hybrid", threshold=value, reference=reference) for value in (-1.0, 1.0))
    assert hashes(lowest) == hashes(stages_of(learner, "frozen"))
    assert hashes(highest) == hashes(stages_of(learner, "ft"))
    assert hashes(lowest) != hashes(highest)
    assert all(-1 <= stage.record["similarity"] < 1 for stage in (*lowest[1:], *highest[1:]))


@pytest.mark.parametrize("reference", REFERENCES)
def test_many_blocks_are_trained_where_similarity_is_below_the_threshold_alone(tmp_path, reference):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    found = stages_of(learner, "hybrid", threshold=1.0, reference=reference)[1].record["similarity"]
    for threshold, blocks in ((found - 1e-3, 1), (found + 1e-3, None)):
        record = stages_of(learner, "hybrid", threshold=threshold, reference=reference)[1].record
        assert record["similarity"] == found and record["trained_blocks"] == blocks


def test_fine_tunes_are_shared_with_frozen_and_plain_training(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    for name in ("ft", "frozen"):
        stages_of(learner, name)
    before = len(list(tmp_path.glob("cache/train/*/model.safetensors")))
    for threshold in (-1.0, 1.0):
        stages_of(learner, "hybrid", threshold=threshold)
    assert len(list(tmp_path.glob("cache/train/*/model.safetensors"))) == before == 4


def test_a_repeated_domain_is_as_similar_as_can_be_and_a_rotated_one_is_not(tmp_path):
    scenario = tiny_scenario(1, rotation=0.0)
    scenario.domains = [blob_domain("a"), blob_domain("b"), blob_domain("c", 3, 1.5)]
    records = [stage.record for stage in stages_of(tiny_learner(tmp_path, scenario), "hybrid", threshold=0.9)]
    assert records[1]["similarity"] == pytest.approx(1) and records[1]["trained_blocks"] == 1
    assert records[2]["similarity"] < 0.5 and records[2]["trained_blocks"] is None


def direction(learner, domain, **options):
    """What a method compares of a domain."""
    method = build_method("hybrid", **options)
    return method._direction_of(learner, domain, learner.initial)


def test_the_direction_is_the_gradient_of_the_mean_loss_over_all_items(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2, sizes={"train": 40, "dev": 8, "test": 8}))  # the last batch is smaller
    domain = learner.scenario.domains[1]
    found = direction(learner, domain, point="initial", heads=["3.*"])
    model = learner.model_with(learner.initial)
    model.eval()
    inputs, labels = domain._tensors("train")
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    assert found.keys() == {"0.weight", "0.bias"}  # a head is never compared
    for name, value in found.items():
        torch.testing.assert_close(value, model.get_parameter(name).grad)


def test_dropout_does_not_move_the_direction_and_no_random_number_is_drawn(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2, dropout=0.5))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, other = (direction(learner, learner.scenario.domains[1]) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], other[name]) for name in one)


def with_heads(folder, domains):
    """Digits with a head for each domain."""
    config = configured(folder, "split_digits", f"scenario.domains={domains}", "model.widths=[16]", "train.adapt.epochs=1")
    scenario = benchmark_of(config.tree).scenario(config, 1)
    learner = learner_of(config, scenario, 1)
    scenario.initial = learner.fresh
    return learner


def test_batch_statistics_are_not_used_so_that_the_direction_does_not_depend_on_batches(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    weights, found = build().state_dict(), []
    for size in (8, 64):
        domains = [blob_domain("a", batch_size=size), blob_domain("b", 1, 1.0, batch_size=size)]
        learner = tiny_learner(tmp_path, Scenario("normed", domains, ClassificationTask(), build, weights))
        found.append(direction(learner, domains[1], point="initial"))
    assert found[0].keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])


def test_one_head_for_all_domains_takes_the_noise_of_random_heads_away(tmp_path):
    """Two domains with equal images: behind one head their gradients are equal, behind heads of their own they are not."""
    learner = with_heads(tmp_path, "[{name: a, classes: [0, 1]}, {name: b, classes: [0, 1]}]")
    similarity = {
        head: stages_of(learner, "hybrid", head=head, threshold=1.0)[1].record["similarity"] for head in ("first", "own")
    }
    assert similarity["first"] > 0.99 and similarity["own"] < 0.5


def test_a_head_without_a_domain_s_classes_is_named(tmp_path):
    learner = with_heads(tmp_path, "[{name: a, classes: [0, 1]}, {name: b, classes: [2, 3, 4]}]")
    with pytest.raises(InputError, match=r"method\.head=first: the head of a cannot take the labels of b .*choose own"):
        stages_of(learner, "hybrid")
    assert stages_of(learner, "hybrid", head="own")[1].record["similarity"] < 1


def test_update_vectors_are_those_of_one_epoch(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    domain = learner.scenario.domains[1]
    updated = learner.fine_tune(learner.initial, domain, build_method("ft"), 1)
    found = direction(learner, domain, reference="update")
    assert torch.equal(found["0.weight"], learner.initial["0.weight"] - updated["0.weight"])


def test_the_gradient_of_a_learned_domain_is_next_to_nothing(tmp_path):
    """Why the end of the domain before is no reference: its gradient has vanished with its loss."""
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    first = learner.scenario.domains[0]
    sizes = {
        point: sum(float(value.square().sum()) for value in direction(learner, first, point=point).values()) ** 0.5
        for point in ("fresh", "initial")
    }
    assert sizes["initial"] < 0.2 * sizes["fresh"]


def test_agreement_by_hand():
    one = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0])}
    other = {"a": torch.tensor([4.0, 3.0]), "b": torch.tensor([-2.0])}
    assert agreement(one, other) == pytest.approx((24 - 2) / (26 * 29) ** 0.5)
    assert agreement(one, other, per_layer=True) == pytest.approx((24 / 25 - 1) / 2)
    assert agreement(one, other, "sign") == pytest.approx(1 / 3)
    assert agreement(one, one) == 1.0 and agreement(one, {name: -value for name, value in one.items()}) == -1.0


def test_no_layer_speaks_for_all_when_each_has_unit_length():
    one = {"a": torch.tensor([1000.0]), "b": torch.tensor([1e-30])}
    other = {"a": torch.tensor([1000.0]), "b": torch.tensor([-1e-30])}
    assert agreement(one, other) == pytest.approx(1)
    assert agreement(one, other, per_layer=True) == pytest.approx(0)


def test_a_direction_of_zero_is_like_none():
    assert agreement({"a": torch.zeros(3)}, {"a": torch.ones(3)}) == 0.0
    assert agreement({"a": torch.zeros(3)}, {"a": torch.ones(3)}, per_layer=True) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.1}, r"method\.threshold=1\.1"),
        ({"threshold": float("nan")}, r"method\.threshold=nan"),
        ({"small": -1}, r"method\.small=-1"),
        ({"small": 2, "large": 1}, r"method\.large=1: fewer than method\.small=2"),
        ({"similarity": "angle"}, r"method\.similarity=angle: choose cosine or sign"),
        ({"reference": "zero"}, r"method\.reference=zero: choose fixed or start or end or update"),
        ({"point": "last"}, r"method\.point=last"),
        ({"head": "all"}, r"method\.head=all"),
        ({"batches": 0}, r"method\.batches=0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        build_method("hybrid", **options)


def test_a_direction_of_another_model_is_refused(tmp_path):
    method = build_method("hybrid")
    method.load_state_dict({"direction.0.weight": torch.zeros(2, 2)})
    with pytest.raises(InputError, match=r"its direction of 0\.weight has shape \(2, 2\)"):
        method.start_domain(tiny_learner(tmp_path), blob_domain("other"))
