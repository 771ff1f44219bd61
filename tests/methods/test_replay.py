"""Experience replay: what is in the memory, and what it does to the loss."""

from itertools import pairwise

import pytest
import torch

from asrcl.adapt import run_stages
from asrcl.distributed import Processes
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, build_method
from asrcl.testing import ClassificationTask, tiny_learner, tiny_scenario


def held(method):
    state = method.state_dict()
    return {name.removeprefix("positions."): value for name, value in state.items() if name.startswith("positions.")}


def states_after_stages(tmp_path, domains=4, **options):
    learner, method = tiny_learner(tmp_path, tiny_scenario(domains)), build_method("er", **options)
    return [held(method) for _ in run_stages(learner, method, None)]


@pytest.mark.parametrize("budget", [1, 2, 3, 7, 30, 1000])
def test_the_budget_is_kept_and_shared_evenly(tmp_path, budget):
    for number, memory in enumerate(states_after_stages(tmp_path, budget=budget)[:-1], 1):
        sizes = [len(positions) for positions in memory.values()]
        assert list(memory) == [f"blobs{k}" for k in range(number)]
        assert sum(sizes) == min(budget, 64 * number)  # a domain has 64 items to give
        assert max(sizes) - min(sizes) <= 1
        assert all(len(set(positions.tolist())) == len(positions) for positions in memory.values())


def test_a_domain_gives_up_items_but_never_takes_others(tmp_path):
    stages = states_after_stages(tmp_path, budget=30)
    for before, after in pairwise(stages[:3]):
        for name, positions in before.items():
            assert torch.equal(positions[: len(after[name])], after[name])


def test_the_last_domain_does_not_join(tmp_path):
    assert list(states_after_stages(tmp_path, 3, budget=9)[-1]) == ["blobs0", "blobs1"]


def test_the_loss_is_that_of_the_batch_plus_the_weighted_one_of_items_in_memory(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    seen = []

    class Watching(ClassificationTask):
        def loss(self, model, batch):
            seen.append(batch.ids)
            return super().loss(model, batch)

    learner.scenario.task = Watching()
    method = build_method("er", budget=10, weight=0.5, items=4)
    method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
    learner.enter(2)
    model = learner.model_with(learner.initial)
    batch = next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))
    loss = method.loss(learner, model, batch)
    new, memory = seen
    assert new == batch.ids and len(set(memory)) == 4
    first = learner.scenario.domains[0]
    names = {first.item("train", int(position)).ids[0]: int(position) for position in held(method)["blobs0"]}
    assert set(memory) <= set(names)
    parts = [first.item("train", names[identity]) for identity in memory]
    task = ClassificationTask()
    expected = task.loss(model, batch) + 0.5 * task.loss(model, type(batch).collate(parts))
    assert torch.equal(loss, expected)
    method.loss(learner, model, batch)
    assert seen[3] != memory  # every batch draws anew


def test_as_many_as_the_batch_by_default_and_all_of_a_small_memory(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    for budget, expected in ((40, 16), (5, 5)):
        method = build_method("er", budget=budget)
        method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
        [memory] = method.drawn(learner, 16)
        assert len(memory) == expected


def test_weight_zero_is_plain_fine_tuning_to_the_bit(tmp_path):
    scenario = tiny_scenario(dropout=0.2)
    found = [
        [stage.models[0].hash for stage in run_stages(tiny_learner(tmp_path / name, scenario), method, None)]
        for name, method in (("ft", FineTuning()), ("er", build_method("er", weight=0.0)))
    ]
    assert found[0] == found[1]


def test_a_memory_helps_to_remember(tmp_path):
    """Errors on the first domain after the third, over three seeds."""
    totals = {"ft": 0, "er": 0}
    for seed in range(3):
        learner = tiny_learner(tmp_path / str(seed), tiny_scenario(3, seed=seed))
        for name, options in (("ft", {}), ("er", {"budget": 32})):
            *_, last = run_stages(learner, build_method(name, **options), "test")
            totals[name] += last.errors[0].total
    assert totals["er"] < 0.5 * totals["ft"]


def test_a_memory_of_domains_that_the_run_lacks(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(2))
    learner.enter(2)
    method = build_method("er", budget=3)
    batch = next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))
    for state in ({"positions.other": torch.tensor([1])}, {"positions.blobs0": torch.tensor([64])}):
        method.load_state_dict(state)
        with pytest.raises(InputError, match=r"method er.*domain (other|blobs0)"):
            method.loss(learner, learner.model_with(learner.initial), batch)


def test_what_a_small_domain_leaves_over_goes_to_the_others(tmp_path):
    scenario = tiny_scenario(3)
    small = {split: (tensors[0][:10], tensors[1][:10]) for split, tensors in scenario.domains[1]._splits.items()}
    scenario.domains = [scenario.domains[0], type(scenario.domains[1])("small", small), scenario.domains[2]]
    learner, method = tiny_learner(tmp_path, scenario), build_method("er", budget=60)
    for learner.stage, domain in enumerate(scenario.domains[:2], 1):
        method.end_domain(learner, domain, None, learner.initial)
    assert {name: len(positions) for name, positions in held(method).items()} == {"blobs0": 50, "small": 10}


def test_other_data_are_another_state(tmp_path):
    states = []
    for seed in (0, 1):
        learner, method = tiny_learner(tmp_path / str(seed), tiny_scenario(3, seed=seed)), build_method("er", budget=4)
        method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
        states.append(method.state_dict())
    assert torch.equal(states[0]["positions.blobs0"], states[1]["positions.blobs0"])
    assert not torch.equal(states[0]["data.blobs0"], states[1]["data.blobs0"])


def test_processes_draw_items_of_their_own(tmp_path, monkeypatch):
    learner, method = tiny_learner(tmp_path, tiny_scenario(3)), build_method("er", budget=40)
    method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
    drawn = []
    for rank in (0, 1):
        monkeypatch.setattr("asrcl.methods.memory.processes", lambda rank=rank: Processes(rank, 2))
        method._draws = 3
        drawn.append(set(method.drawn(learner, 5)[0].ids))
    assert drawn[0] != drawn[1]


def test_the_old_options_draw_and_keep_what_they_did(tmp_path):
    """A memory of 5 of 64 items, by hand: the first 5 of a permutation that seed and stage alone decide."""
    learner, method = tiny_learner(tmp_path, tiny_scenario(3)), build_method("er", budget=5)
    method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
    generator = torch.Generator().manual_seed(((learner.seed + 1) * 1_000_003 + 1 + 1) * 1_000_003 + 0 + 1)
    assert torch.equal(held(method)["blobs0"], torch.randperm(64, generator=generator)[:5])


def test_a_reservoir_holds_every_item_with_the_same_probability(tmp_path):
    """Of domains with 64, 16 and 48 items a memory of 20 holds 10, 2.5 and 7.5 in the mean."""
    scenario = tiny_scenario(4)
    sizes = {"blobs0": 64, "blobs1": 16, "blobs2": 48}
    for domain in scenario.domains[:3]:
        domain._splits["train"] = tuple(tensor[: sizes[domain.name]] for tensor in domain._splits["train"])
    total = dict.fromkeys(sizes, 0)
    for seed in range(200):
        learner, method = tiny_learner(tmp_path, scenario, seed=seed), build_method("er", budget=20, filling="reservoir")
        for learner.stage, domain in enumerate(scenario.domains[:3], 1):
            method.end_domain(learner, domain, None, learner.initial)
            assert sum(map(len, held(method).values())) == 20
        for name, positions in held(method).items():
            assert len(set(positions.tolist())) == len(positions) and (positions < sizes[name]).all()
            total[name] += len(positions)
    for name, size in sizes.items():
        assert total[name] / 200 == pytest.approx(20 * size / 128, abs=0.6)  # three standard deviations of a mean of 200


def test_distillation_on_memory_from_itself_has_no_gradient_and_no_weight_is_plain_replay(tmp_path):
    learner = tiny_learner(tmp_path, tiny_scenario(3))
    batch = next(iter(learner.scenario.domains[1].batches("train", shuffle=False, seed=0)))
    gradients = {}
    for weights in (learner.initial, learner.fresh):
        for strength in (0.0, 3.0):
            method = build_method("er", budget=10, distillation=strength)
            learner.enter(1)
            method.end_domain(learner, learner.scenario.domains[0], None, learner.initial)
            learner.enter(2)
            model = learner.model_with(weights)
            method.loss(learner, model, batch).backward()
            gradients[weights.hash, strength] = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    same, other = learner.initial.hash, learner.fresh.hash
    torch.testing.assert_close(gradients[same, 3.0], gradients[same, 0.0], rtol=0, atol=1e-6)
    assert (gradients[other, 3.0] - gradients[other, 0.0]).abs().max() > 1e-2


@pytest.mark.parametrize(
    "option", [{"budget": 0}, {"items": 0}, {"weight": -1.0}, {"filling": "full"}, {"distillation": -1.0}]
)
def test_bad_options_are_refused(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
        build_method("er", **option)


def test_what_is_kept_is_counted_with_the_items(tmp_path):
    learner, method = tiny_learner(tmp_path, tiny_scenario(3)), build_method("er", budget=9)
    kept = [stage.record["kept_bytes"] for stage in run_stages(learner, method, None)]
    item = learner.scenario.domains[0].item("train", 0)
    size = sum(value.nbytes for value in vars(item).values() if isinstance(value, torch.Tensor))
    state = sum(value.nbytes for value in method.state_dict().values())
    assert kept[1] == kept[2] == state + 9 * size and size > 0
    plain = tiny_learner(tmp_path / "plain", tiny_scenario(3))
    assert [stage.record["kept_bytes"] for stage in run_stages(plain, build_method("ft"), None)] == [0, 0, 0]
    ihr = [stage.record["kept_bytes"] for stage in run_stages(plain, build_method("ft", merge="ihr"), None)]
    assert ihr[0] == ihr[1] > 0
    both = run_stages(learner, build_method("er", budget=9, merge="ihr"), None)
    assert [stage.record["kept_bytes"] for stage in both][1] == kept[1] + ihr[1]
