"""Any method with any merge behind it."""

import pytest
import torch

from asrcl.adapt import Weights, fingerprint, run_stages
from asrcl.exceptions import InputError
from asrcl.merge import merge, methods
from asrcl.methods import Merged, build_method
from asrcl.testing import tiny_learner, tiny_scenario


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """One cache for all tests: fine-tunes and curvatures are shared."""
    return tiny_learner(tmp_path_factory.mktemp("merged"), tiny_scenario())


def states(learner, method):
    return [stage.models[0] for stage in run_stages(learner, method, None)]


@pytest.mark.parametrize(
    ("alone", "options"),
    [
        ({"name": "ihr", "damping": 0.1, "rest": 0.5}, {"method": "ihr", "damping": 0.1, "rest": 0.5}),
        ({"name": "ihr", "curvature": "sum"}, {"method": "ihr", "damping": 3.0, "curvature": "sum"}),
        ({"name": "laplace"}, "laplace"),
        ({"name": "fta"}, "average"),
        ({"name": "fta", "strength": 0.3}, {"method": "interpolate", "strength": 0.3}),
    ],
)
def test_plain_fine_tuning_with_a_merge_is_the_method_of_that_merge(learner, alone, options):
    wanted = states(learner, build_method(**alone))
    found = states(learner, build_method("ft", merge=options))
    assert [fingerprint(model) for model in found] == [fingerprint(model) for model in wanted]


def test_another_method_is_trained_as_it_is_and_merged_after_every_domain(learner):
    found = states(learner, build_method("ewc", strength=100.0, merge={"method": "interpolate", "strength": 0.25}))
    first = states(learner, build_method("ewc", strength=100.0))
    start = learner.scenario.initial
    wanted = merge(start.state, first[1].state, "interpolate", strength=0.25)
    assert fingerprint(found[1]) == fingerprint(wanted)
    assert fingerprint(found[2]) != fingerprint(first[2])


@pytest.mark.parametrize("name", sorted(methods().keys() - {"keep"}))
def test_every_merge_method_goes_through_a_run(learner, name):
    models = states(learner, build_method("ft", merge=name))
    assert all(torch.isfinite(value).all() for value in models[-1].values())
    assert fingerprint(models[-1]) != fingerprint(models[0])


def test_updates_may_be_counted_from_the_initial_model(learner):
    found = states(learner, build_method("ft", merge={"method": "task_arithmetic", "base": "initial", "strength": 0.5}))
    start, domains = learner.scenario.initial, learner.scenario.domains
    new = learner.fine_tune(found[1], domains[2], build_method("ft"))
    wanted = merge(found[1].state, new.state, "task_arithmetic", base=start.state, task=3, strength=0.5)
    assert fingerprint(found[2]) == fingerprint(wanted)


def test_rounds_share_the_epochs_and_start_from_what_was_merged(learner):
    start, second = learner.scenario.initial, learner.scenario.domains[1]
    spec = {"method": "interpolate", "strength": 0.5}
    found = states(learner, build_method("ft", merge={**spec, "rounds": 3}))
    model, ft = start, build_method("ft")
    shares = [(learner.epochs + place) // 3 for place in range(3)]
    assert sum(shares) == learner.epochs and len(set(shares)) <= 2
    for epochs in shares:
        model = Weights(merge(model.state, learner.fine_tune(model, second, ft, epochs).state, **spec))
    assert fingerprint(found[1]) == fingerprint(model)
    once = states(learner, build_method("ft", merge={**spec, "rounds": 1}))
    assert [fingerprint(each) for each in once] == [fingerprint(each) for each in states(learner, build_method("ft", merge=spec))]
    kept = states(learner, build_method("ft", merge={**spec, "strength": 0.0, "rounds": 2}))
    assert fingerprint(kept[-1]) == fingerprint(start.state)


def test_anchored_rounds_are_merged_with_the_weights_before_the_domain(learner):
    start, second = learner.scenario.initial, learner.scenario.domains[1]
    spec = {"method": "interpolate", "strength": 0.5}
    found = states(learner, build_method("ft", merge={**spec, "rounds": 2, "anchor": "domain"}))
    model, ft = start, build_method("ft")
    for epochs in (learner.epochs // 2, learner.epochs - learner.epochs // 2):
        model = Weights(merge(start.state, learner.fine_tune(model, second, ft, epochs).state, **spec))
    assert fingerprint(found[1]) == fingerprint(model)
    free = states(learner, build_method("ft", merge={**spec, "rounds": 2}))
    assert fingerprint(free[1]) != fingerprint(model)
    once = states(learner, build_method("ft", merge={**spec, "anchor": "domain"}))
    assert fingerprint(once[-1]) == fingerprint(states(learner, build_method("ft", merge=spec))[-1])


def apart(learner):
    """The models of all domains, each from the initial one."""
    ft = build_method("ft")
    return [learner.scenario.initial, *(learner.fine_tune(learner.scenario.initial, d, ft) for d in learner.scenario.domains[1:])]


def test_domains_that_start_from_the_initial_model_come_to_the_mean_of_all_models(learner):
    found = states(learner, build_method("ft", merge={"method": "average", "start": "initial"}))
    for name, value in found[-1].items():
        assert torch.allclose(value, torch.stack([model[name] for model in apart(learner)]).mean(0), atol=1e-6), name


@pytest.mark.parametrize(("name", "damping"), [("regmean", 1e-9), ("mats", 0.01)])
def test_merging_one_by_one_with_every_curvature_is_merging_all_models_together(learner, name, damping):
    spec = {"method": name, "start": "initial", "curvature": "sum", "damping": damping}
    found = states(learner, build_method("ft", merge=spec))
    first, *new = apart(learner)
    pairs = zip((first, *new), learner.scenario.domains, strict=True)
    terms = [learner.estimate_curvature(weights, domain, "kron") for weights, domain in pairs]
    learned = [model.state for model in new]
    wanted = merge(first.state, learned, name, curvature=terms[:1], new_curvature=terms[1:], damping=damping)
    for key, value in wanted.items():
        assert torch.allclose(found[-1][key], value, atol=2e-3), key
    assert fingerprint(found[1]) != fingerprint(found[2])


def test_updates_of_models_apart_are_added_up_with_one_strength_for_all(learner):
    spec = {"method": "task_arithmetic", "start": "initial", "strength": 0.4}
    found, (first, *new) = states(learner, build_method("ft", merge=spec)), apart(learner)
    for name, value in first.items():
        assert torch.allclose(found[-1][name], value + 0.4 * sum(model[name] - value for model in new), atol=1e-5), name


def test_ihr_of_models_apart_filters_the_update_by_what_is_there(learner):
    spec = {"method": "ihr", "damping": 1.0, "rest": 0.5}
    found, (first, _, third) = states(learner, build_method("ft", merge={**spec, "start": "initial"})), apart(learner)
    curvature = learner.estimate_curvature(found[1], learner.scenario.domains[1], "kron")
    new = {name: found[1][name] + (third[name] - value) for name, value in first.items()}
    wanted = merge(found[1].state, new, curvature=curvature, task=3, **spec)
    assert fingerprint(found[2]) == fingerprint(wanted)


def test_what_models_apart_keep_and_how_their_steps_are_counted(learner):
    """The initial model is kept; update norms are counted from the weights before the stage; a curvature is estimated once."""
    size = sum(value.nbytes for value in learner.scenario.initial.values())
    method = build_method("ft", merge={"method": "average", "start": "initial"})
    stages = list(run_stages(learner, method, None))
    assert [stage.record["kept_bytes"] for stage in stages] == [0, size, size]
    before, after = stages[1].models[0], stages[2].models[0]
    moved = sum((after[name] - value).square().sum() for name, value in before.items()).sqrt()
    assert stages[2].record["merged_update_norm"] == pytest.approx(float(moved), rel=1e-4)


def test_a_curvature_of_models_apart_is_estimated_once_and_no_less_than_all_of_a_model_is_merged(learner, monkeypatch):
    asked, estimate = [], type(learner).estimate_curvature

    def counted(self, weights, domain, structure):
        asked.append((learner.stage, domain.name))
        return estimate(self, weights, domain, structure)

    monkeypatch.setattr(type(learner), "estimate_curvature", counted)
    method = build_method("ft", merge={"method": "mats", "start": "initial", "curvature": "sum"})
    states(learner, method)
    assert asked == [(stage, domain.name) for stage, domain in enumerate(learner.scenario.domains, 1)]
    assert not method.has_strength and build_method("ft", merge={"method": "average", "start": "initial"}).has_strength


def test_more_rounds_than_epochs_are_refused(learner):
    with pytest.raises(InputError, match=r"merge.rounds=99: more than the \d+ epochs \(train.adapt.epochs\) that they share"):
        states(learner, build_method("ft", merge={"method": "ihr", "rounds": 99}))


BOTH = [("regmean", "running"), ("mats", "running"), ("mats", "sum"), ("fisher", "last")]


@pytest.mark.parametrize(("name", "curvature"), BOTH)
def test_merges_of_both_sides_have_the_new_domain_and_those_before(learner, name, curvature):
    found = states(learner, build_method("ft", merge={"method": name, "curvature": curvature}))
    start, domains = learner.scenario.initial, learner.scenario.domains
    new = learner.fine_tune(found[1], domains[2], build_method("ft"))
    terms = [learner.estimate_curvature(weights, d, "kron") for weights, d in zip((start, found[1], new), domains, strict=True)]
    old = {"running": [terms[0] + terms[1]], "sum": terms[:2], "last": terms[1:2]}[curvature]
    wanted = merge(found[1].state, new.state, name, curvature=old, new_curvature=terms[2], task=3)
    assert fingerprint(found[2]) == fingerprint(wanted)


def test_the_state_is_that_of_the_method_and_the_curvature(learner):
    method = build_method("ewc", merge="ihr")
    states(learner, method)
    again = build_method("ewc", merge="ihr")
    again.load_state_dict(method.state_dict())
    assert fingerprint(again.state_dict()) == fingerprint(method.state_dict())
    assert {name.partition(".")[0] for name in method.state_dict()} == {"method", "terms"}
    assert method.label == "EWC + ihr" and method.key() == build_method("ewc").key()


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("ft", "ihrr", "there is no merge method 'ihrr'"),
        ("ft", 0.5, "merge=0.5: give the name"),
        ("ft", {"damping": 1.0}, "names no method"),
        ("ft", {"method": "ihr", "dampning": 1.0}, r"no option dampning \(did you mean damping"),
        ("ft", {"method": "ihr", "curvature": "latest"}, "merge.curvature=latest: choose last, sum, running or first"),
        ("ft", {"method": "average", "path": "damping"}, "merge.path=damping"),
        ("ft", {"method": "ties", "base": "first"}, "merge.base=first: choose previous or initial"),
        ("ft", {"method": "ihr", "rounds": 0}, "merge.rounds=0: a number of rounds, at least 1"),
        ("ft", {"method": "ihr", "rounds": 2, "anchor": "old"}, "merge.anchor=old: choose round or domain"),
        ("ft", {"method": "ihr", "start": "fresh"}, "merge.start=fresh: choose previous or initial"),
        ("ewc", {"method": "average", "start": "initial"}, "merge.start=initial: method ewc holds on to what it learned"),
        ("ft", {"method": "ihr", "start": "initial", "rounds": 2}, "merge.start=initial: every round goes on"),
        ("ft", {"method": "ihr", "rounds": 2, "path": "damping"}, "merge.path=damping: of one round"),
        ("packnet", {"method": "ihr", "rounds": 2}, "nothing to merge|of its own"),
        ("ft", {"method": "ihr", "base": "initial"}, "merge.base=initial: merge method ihr takes the update of one stage"),
        ("ft", {"method": "regmean", "base": "initial"}, "merge.base=initial: merge method regmean"),
        ("ft", {"method": "average", "rest": 0.5}, "rest=0.5 would have no effect"),
        ("separate", "average", "nothing to merge"),
        ("lora_per_domain", "average", "nothing to merge"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_any_training(name, options, named):
    with pytest.raises(InputError, match=named):
        build_method(name, merge=options)


def test_fine_tuning_with_a_merge_is_a_method_that_is_judged():
    method = build_method("ft", merge="ties")
    assert (method.role, method.kind, method.decoded_by) == ("method", "", "stage_model")


def test_the_class_is_public():
    assert isinstance(build_method("ft", merge="average"), Merged)
