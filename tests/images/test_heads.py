"""Methods where every domain has a head of its own: what is held, and what only a later domain will use."""

from itertools import pairwise

import pytest
import torch
from image_cases import configured

from asrcl.adapt import run_stages
from asrcl.experiment.registry import benchmark_of
from asrcl.experiment.run import learner_of
from asrcl.merge import methods
from asrcl.methods import build_method

PAIRS = "scenario.domains=[{name: '01', classes: [0, 1]}, {name: '23', classes: [2, 3]}, {name: '45', classes: [4, 5]}]"


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    """Three pairs of digits, each with a head of its own; the initial model is not trained, which no law here needs."""
    config = configured(tmp_path_factory.mktemp("heads"), "split_digits", PAIRS, "model.widths=[16]", "curvature.max_items=32")
    scenario = benchmark_of(config.tree).scenario(config, 1)
    learner = learner_of(config, scenario, 1)
    scenario.initial = learner.fresh
    return learner


CONSOLIDATED = [{0}, {0, 1}, {0, 1}]  # after every stage but the last, of which nothing is needed
OF_A_PATH = [None, {1}, {1, 2}]  # there is none of the first domain
HELD = {"l2": CONSOLIDATED, "ewc": CONSOLIDATED, "kfac_ewc": CONSOLIDATED, "mas": CONSOLIDATED, "si": OF_A_PATH}


@pytest.mark.parametrize("name", HELD)
def test_a_penalty_holds_no_head_to_its_random_start(learner, name):
    """What holds the next stage has no gradient in the head that it learns nor in those to come; learned heads are held."""
    method, found = build_method(name), []
    for _ in run_stages(learner, method, None):
        model = learner.model_with({key: value + 1.0 for key, value in learner.fresh.items()})
        penalty = method.penalty(learner, model, None)
        if penalty is not None:
            penalty.backward()
            assert model.trunk[1].weight.grad.any()
        drawn = {n for n in range(3) if (gradient := model.heads[n].weight.grad) is not None and gradient.any()}
        found.append(None if penalty is None else drawn)
    assert found == HELD[name]


def test_lwf_distils_the_heads_of_earlier_domains_on_the_new_images(learner):
    """The distillation has gradients in the trunk and in the heads of earlier domains; the new head is the task's alone."""
    learner.begin(3)
    learner.enter(3)
    method, model = build_method("lwf", strength=0.5, temperature=1.0), learner.model_with(learner.fresh)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    batch = next(iter(learner.scenario.domains[2].batches("train", shuffle=False, seed=0)))
    teacher = learner.frozen(learner.weights)
    expected = learner.task.loss(model, batch)
    for name in ("01", "23"):
        old, new = teacher(batch.pixels, name).softmax(-1), model(batch.pixels, name).softmax(-1)
        expected = expected + 0.5 * (old * (old / new).log()).sum(-1).mean()
    loss = method.loss(learner, model, batch)
    torch.testing.assert_close(loss, expected)
    [own] = torch.autograd.grad(learner.task.loss(model, batch), [model.heads[2].weight])
    loss.backward()
    torch.testing.assert_close(model.heads[2].weight.grad, own)
    assert model.heads[0].weight.grad.any() and model.heads[1].weight.grad.any()


def test_gpm_leaves_the_own_head_free(learner):
    """The head of a domain is trained in its stage and in no other, and has no space."""
    method = build_method("gpm", energy=0.9)
    states = [stage.models[0] for stage in run_stages(learner, method, None)]
    assert {place.key.name for place in method._spaces} == {"trunk.1.weight"}
    for head, stage in ((1, 1), (2, 2)):
        moved = [not torch.equal(one[f"heads.{head}.weight"], two[f"heads.{head}.weight"]) for one, two in pairwise(states)]
        assert moved == [stage == 1, stage == 2]
    assert torch.equal(states[0]["heads.0.weight"], states[2]["heads.0.weight"])


@pytest.mark.parametrize(
    "name", ["cgalore", "ogd", "ema", "olora", "clrl", "swa", "cssvd", "svr", "osf", "regmean_plus_plus"]
)
def test_a_head_moves_in_the_stage_of_its_domain_alone(learner, name):
    states = [stage.models[0] for stage in run_stages(learner, build_method(name), None)]
    assert not torch.equal(states[0]["trunk.1.weight"], states[2]["trunk.1.weight"])
    for head in range(3):
        moved = [not torch.equal(one[f"heads.{head}.weight"], two[f"heads.{head}.weight"]) for one, two in pairwise(states)]
        assert moved == [head == 1, head == 2]


@pytest.mark.parametrize("name", sorted(methods().keys() - {"keep"}))
def test_every_merge_leaves_the_heads_of_other_domains_alone(learner, name):
    """Those that count updates from the initial model too: a head that an earlier stage trained is no update of this one."""
    kind = methods()[name]
    options = {"method": name, **({"base": "initial"} if kind.several and "new_blocks" not in kind.context else {})}
    states = [stage.models[0] for stage in run_stages(learner, build_method("ft", merge=options), None)]
    assert not torch.equal(states[0]["trunk.1.weight"], states[2]["trunk.1.weight"])
    for head in range(3):
        moved = [not torch.equal(one[f"heads.{head}.weight"], two[f"heads.{head}.weight"]) for one, two in pairwise(states)]
        assert moved == [head == 1, head == 2]


def test_a_merge_takes_in_what_replay_teaches_the_heads_of_earlier_domains(learner):
    method = build_method("der", merge={"method": "interpolate", "strength": 0.5})
    *_, second, third = (stage.models[0] for stage in run_stages(learner, method, None))
    assert not torch.equal(second["heads.0.weight"], third["heads.0.weight"])


@pytest.mark.parametrize("name, moving", [("der", {0, 1, 2}), ("lwf_entropy", {0, 1, 2})])
def test_replay_and_distillation_train_the_heads_of_earlier_domains_along(learner, name, moving):
    *_, second, third = (stage.models[0] for stage in run_stages(learner, build_method(name), None))
    assert {head for head in range(3) if not torch.equal(second[f"heads.{head}.weight"], third[f"heads.{head}.weight"])} == moving


def test_agem_projects_over_all_heads(learner):
    """Where there is a conflict the heads of others move, too, by the memory's gradient, which the new images have none of."""
    method = build_method("agem", budget=20)
    *_, last = run_stages(learner, method, None)
    assert method._draws > 0 and last.models[0].keys() == learner.fresh.keys()


def test_packnet_keeps_every_head(learner):
    """To the bit, and for domains to come the head is as fresh as at the beginning."""
    method, models = build_method("packnet"), []
    for stage in run_stages(learner, method, None):
        models.append(stage.models)
    for number in range(3):
        assert len({row[number].hash for row in models[number:]}) == 1
        assert torch.equal(models[0][2]["heads.2.weight"], learner.fresh["heads.2.weight"])
        assert not torch.equal(models[2][number][f"heads.{number}.weight"], learner.fresh[f"heads.{number}.weight"])
    assert {name.split(".", 1)[1] for name in method.state_dict() if name.startswith("owner")} == {"trunk.1.weight"}
