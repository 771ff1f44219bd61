import pytest
import torch
from torch import nn

from asrcl.exceptions import InputError
from asrcl.methods import Method, build_method, method_names, register
from asrcl.methods import base as registry


def test_methods_that_come_with_the_package():
    assert {"initial", "ft", "fta", "ewc", "ihr", "separate", "joint"} <= set(method_names())
    assert method_names() == sorted(method_names())


@pytest.mark.parametrize("name", method_names())
def test_every_method_can_be_built_by_name(name):
    method = build_method(name)
    assert isinstance(method, Method) and method.name == name
    assert method.starts_from in ("previous", "initial") and method.data in ("current", "all")


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(InputError, match=r"method ihrr: unknown.*ewc.*ihr"):
        build_method("ihrr")


@pytest.mark.parametrize("name", method_names())
def test_unknown_option_is_named(name):
    with pytest.raises(InputError, match=rf"method {name}: no option temperature; it has \w+"):
        build_method(name, temperature=1)


@pytest.mark.parametrize(
    "name, options, fault",
    [
        ("ewc", {"mode": "offline"}, "mode=offline"),
        ("ewc", {"strength": -1.0}, "strength=-1"),
        ("ewc", {"strength": "much"}, "method ewc"),
        ("ihr", {"curvature": "first"}, "curvature=first"),
    ],
)
def test_bad_options(name, options, fault):
    with pytest.raises(InputError, match=fault) as caught:
        build_method(name, **options)
    assert "\n" not in str(caught.value)


def test_hooks_do_nothing_by_default():
    method, model = Method(), nn.Linear(2, 2)
    new = model.state_dict()
    assert method.training_key() == {}
    assert method.penalty(model, None) is None
    method.after_backward(model)
    assert method.end_domain(None, None, new, new) is new


def test_own_method_joins_the_table(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @register("half")
    class Half(Method):
        def end_domain(self, learner, domain, old, new):
            return new if old is None else {name: (old[name] + new[name]) / 2 for name in old}

    assert "half" in method_names()
    merged = build_method("half").end_domain(None, None, {"w": torch.zeros(1)}, {"w": torch.ones(1)})
    assert merged["w"] == 0.5
