"""O-LoRA: the penalty against its equation, what is kept of every domain, and its ends."""

import pytest
import torch

from asrcl.adapt import run_stages
from asrcl.exceptions import InputError
from asrcl.methods import build_method
from asrcl.methods.olora import updates
from asrcl.testing import build_mlp, tiny_learner, tiny_scenario


def test_the_penalty_is_that_of_the_equation(tmp_path):
    learner, method = tiny_learner(tmp_path), build_method("olora", rank=2, strength=0.3)
    learner.enter(2)
    held = {"0.weight": torch.randn(4, 8), "3.weight": torch.randn(4, 16)}
    method.load_state_dict({f"rows.{name}": value for name, value in held.items()})
    wrapped = method.wrap(learner, build_mlp())
    drawn = {name: update.A for name, update in updates(wrapped).items()}
    expected = 0.0
    for name, rows in held.items():
        for earlier in rows.split(2):  # domain by domain
            for one in earlier:
                for other in drawn[name]:
                    expected += float(one @ other.detach()) ** 2
    found = method.penalty(learner, wrapped, None)
    torch.testing.assert_close(found, torch.tensor(0.3 * expected))
    found.backward()
    torch.testing.assert_close(drawn["0.weight"].grad, 0.6 * drawn["0.weight"].detach() @ held["0.weight"].T @ held["0.weight"])


def test_of_orthogonal_rows_the_penalty_is_zero(tmp_path):
    learner, method = tiny_learner(tmp_path), build_method("olora", rank=2, targets=["0.weight"])
    learner.enter(2)
    method.load_state_dict({"rows.0.weight": torch.eye(8)[:3]})
    wrapped = method.wrap(learner, build_mlp())
    with torch.no_grad():
        wrapped[0].parametrizations.weight[0].A[:, :3] = 0
    assert float(method.penalty(learner, wrapped, None)) == 0


def overlaps(folder, strength):
    """How much the third domain's rows overlap with the second's; each is a mean over epochs, as the weights are."""
    scenario = tiny_scenario(4)
    learner, method, held = tiny_learner(folder, scenario), build_method("olora", rank=2, strength=strength), []
    for stage in run_stages(learner, method, None):
        held.append({name: value.clone() for name, value in method._rows.items()})
        assert stage.models[0].keys() == learner.initial.keys()
    assert held[0] == {} and held[3].keys() == held[2].keys() == {"0.weight", "3.weight"}
    for name, rows in held[2].items():
        assert rows.shape[0] == 4 and torch.equal(rows[:2], held[1][name]) and torch.equal(held[3][name], rows)
    return sum(float((rows[:2] @ rows[2:].T).square().sum()) for rows in held[2].values())


def test_the_penalty_makes_later_updates_orthogonal(tmp_path):
    free, drawn = (overlaps(tmp_path / str(strength), strength) for strength in (0.0, 10.0))
    assert drawn < 0.05 * free


def test_strength_zero_is_lora_to_the_bit(tmp_path):
    scenario = tiny_scenario(3, dropout=0.2)
    found = [
        [stage.models[0].hash for stage in run_stages(tiny_learner(tmp_path / name, scenario), build_method(name, **more), None)]
        for name, more in (("lora", {}), ("olora", {"strength": 0.0}))
    ]
    assert found[0] == found[1]


def test_rows_of_another_model_and_bad_options_are_refused(tmp_path):
    learner, method = tiny_learner(tmp_path), build_method("olora")
    learner.enter(2)
    method.load_state_dict({"rows.0.weight": torch.eye(5)})
    with pytest.raises(InputError, match=r"olora.*0\.weight.*5 wide.*8"):
        method.wrap(learner, build_mlp())
    for option in ({"strength": -1.0}, {"rank": 0}):
        with pytest.raises(InputError, match=rf"method\.{next(iter(option))}"):
            build_method("olora", **option)
