"""RegMean++ in the loop: what it merges, with which data, and what it carries."""

import pytest
import torch

from asrcl.adapt import fingerprint, run_stages
from asrcl.exceptions import InputError
from asrcl.merge import regmean_plus_plus
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """One cache for all tests."""
    return tiny_learner(tmp_path_factory.mktemp("regmean"), tiny_scenario())


def states(learner, method):
    return [stage.models[0] for stage in run_stages(learner, method, None)]


def test_a_stage_is_the_merge_of_the_old_model_on_the_memory_and_of_the_new_one_on_its_domain(learner):
    method = build_method("regmean_plus_plus", budget=10_000, items=None, offdiagonal=1.0)
    found = states(learner, method)
    task, (first, second, third) = learner.task, learner.scenario.domains

    def again(old, new, olds, domain, number):
        held = [each.item("train", n) for each in olds for n in range(each.size("train"))]
        data = [held, list(domain.batches("train", shuffle=False, seed=0))]
        options = {"offdiagonal": 1.0, "task": number}
        return regmean_plus_plus(learner.frozen(old), old.state, new.state, task.curvature_loss, data, **options)

    new = learner.fine_tune(found[0], second, build_method("ft"))
    merged = again(found[0], new, [first], second, 2)
    for name, tensor in merged.items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-4)
    new = learner.fine_tune(found[1], third, build_method("ft"))
    merged = again(found[1], new, [first, second], third, 3)
    for name, tensor in merged.items():
        torch.testing.assert_close(found[2][name], tensor, rtol=1e-4, atol=1e-4)


def test_it_is_trained_as_fine_tuning_is_and_ends_elsewhere_than_regmean(learner):
    method = build_method("regmean_plus_plus", budget=64)
    assert method.trains_plainly and method.key() == {}
    plus, plain = states(learner, method), states(learner, build_method("ft", merge="regmean"))
    assert fingerprint(plus[1]) != fingerprint(plain[1])


def test_the_memory_stays_within_its_budget_and_comes_back_with_the_state(learner):
    method = build_method("regmean_plus_plus", budget=9)
    ends = states(learner, method)
    assert sum(len(value) for name, value in method.state_dict().items() if name.startswith("positions.")) <= 9
    again = build_method("regmean_plus_plus", budget=9)
    again.load_state_dict(method.state_dict())
    assert fingerprint(again.state_dict()) == fingerprint(method.state_dict())
    assert [fingerprint(model) for model in states(learner, build_method("regmean_plus_plus", budget=9))] == [
        fingerprint(model) for model in ends
    ]


def test_no_strength_is_the_model_before_and_fewer_items_another_merge(learner):
    ends = states(learner, build_method("regmean_plus_plus", strength=0.0, rest=0.0))
    assert len({fingerprint(model) for model in ends}) == 1
    one, all_of_them = (states(learner, build_method("regmean_plus_plus", items=items)) for items in (1, None))
    assert fingerprint(one[1]) != fingerprint(all_of_them[1])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"budget": 0}, "method.budget=0"),
        ({"items": 0}, "method.items=0"),
        ({"strength": 1.5}, "method.strength=1.5"),
        ({"layers": "some"}, "layers='some' does not exist"),
    ],
)
def test_what_cannot_be_is_refused_before_any_training(options, named):
    with pytest.raises(InputError, match=named):
        build_method("regmean_plus_plus", **options)
