"""Rules by name, the rule `rest`, and the budget."""

from types import SimpleNamespace

import pytest
import torch
from merge_cases import kron, make_curvature, make_state

from asrcl.curvature import BlockKey, Curvature, DiagonalBlock
from asrcl.exceptions import InputError
from asrcl.merge import merge, plan
from asrcl.merge.depth import depths

DOUBLE = torch.float64


@pytest.fixture
def models():
    return make_state(1, DOUBLE), make_state(2, DOUBLE)


class Rules:
    def __init__(self, **rules):
        self.rules = rules

    def of(self, name):
        rule = self.rules.get(name.replace(".", "_"))
        return rule and SimpleNamespace(method=rule[0], knobs=rule[1])


def test_rules_by_name(models):
    old, new = models
    rules = Rules(encoder_weight=("keep", {}), gain=("new", {}), packed=("interpolate", {"strength": 0.25}))
    merged = merge(old, new, curvature=make_curvature(), rules=rules, tau=0.5)
    plain = merge(old, new, curvature=make_curvature(), tau=0.5)
    assert torch.equal(merged["encoder.weight"], old["encoder.weight"]) and torch.equal(merged["gain"], new["gain"])
    torch.testing.assert_close(merged["packed"], 0.75 * old["packed"] + 0.25 * new["packed"])
    assert torch.equal(merged["conv.weight"], plain["conv.weight"])
    planned = {row.name: row.rule for row in plan(old, new, curvature=make_curvature(), rules=rules).rows}
    assert (planned["encoder.weight"], planned["packed"]) == ("keep", "interpolate")
    with pytest.raises(InputError, match=r"interpolate .*option speed"):
        merge(old, new, "average", rules=Rules(gain=("interpolate", {"speed": 1})))


def test_the_predicted_increase_stays_within_the_budget(models):
    old, new = models
    curvature = make_curvature()

    def increase(**knobs):
        merged = merge(old, new, curvature=curvature, **knobs)
        delta = {name: merged[name] - old[name] for name in old if old[name].is_floating_point()}
        return float(curvature.quadratic(delta)), merged

    full, free = increase()
    for budget in (0.5 * full, 1e-3 * full):
        found, _ = increase(budget=budget)
        assert found == pytest.approx(budget, rel=1e-9)
    assert torch.equal(increase(budget=2 * full)[1]["packed"], free["packed"])
    with pytest.raises(InputError, match=r"budget .*curvature="):
        merge(old, new, "average", budget=1.0)
    assert merge(old, new, "average", curvature=curvature, budget=1e-9)["packed"] is not None


def test_rest_by_diagonal_fisher(models):
    old, new = models
    fisher = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=DOUBLE)
    key = BlockKey("encoder.bias", 0, 4)
    curvature = Curvature({BlockKey("encoder.weight", 0, 4): kron(4, 3), key: DiagonalBlock(fisher * 5, 5)})
    merged = merge(old, new, curvature=curvature, rest="fisher", task=4)
    weight = 2 / (fisher + 2)
    torch.testing.assert_close(merged["encoder.bias"], old["encoder.bias"] + weight * (new["encoder.bias"] - old["encoder.bias"]))
    torch.testing.assert_close(merged["gain"], 0.75 * old["gain"] + 0.25 * new["gain"])


@pytest.mark.parametrize("rest, share", [("keep", 0.0), ("new", 1.0), (0.3, 0.3), ("1/t", 0.2)])
def test_rest(models, rest, share):
    old, new = models
    merged = merge(old, new, curvature=make_curvature(), rest=rest, task=5)
    torch.testing.assert_close(merged["gain"], (1 - share) * old["gain"] + share * new["gain"])


def test_random_methods_do_not_depend_on_the_order(models):
    old, new = models
    first = merge(old, new, "dare", seed=3)
    turned = merge(dict(reversed(old.items())), dict(reversed(new.items())), "dare", seed=3)
    alone = merge({"packed": old["packed"]}, {"packed": new["packed"]}, "dare", seed=3)
    assert torch.equal(first["packed"], turned["packed"]) and torch.equal(first["packed"], alone["packed"])
    assert not torch.equal(first["packed"], merge(old, new, "dare", seed=4)["packed"])


def test_depth_goes_by_the_layers_in_the_order_of_the_model():
    names = ["embed.weight", "encoder.layers.0.a", "encoder.layers.0.b", "encoder.norm", "encoder.layers.1.a", "head.2.w", "out"]
    assert depths(names) == dict(zip(names, [0, 0, 0, 0, 0.5, 1, 1], strict=True))
    assert depths(["a", "b"]) == {"a": 0.0, "b": 0.0}


def test_a_method_inside_a_wrapper():
    names = ["encoder.layers.0.weight", "encoder.layers.1.weight"]
    old, new = ({name: torch.full((2, 3), value, dtype=DOUBLE) for name in names} for value in (0.0, 1.0))
    merged = merge(old, new, "lines+interpolate", strength=0.5, first=0.2, last=1.0)
    assert [float(merged[name].mean()) for name in names] == pytest.approx([0.1, 0.5])
    with pytest.raises(InputError, match="no merge method 'rows'"):
        merge(old, new, "lines+rows")
