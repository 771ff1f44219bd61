"""What holds of every method: names, options, keys, hooks, states."""

import inspect
import textwrap

import pytest
import torch
from torch import nn

from asrcl.contract import method as contract
from asrcl.contract.method import HOOKS, TRAINING_HOOKS, code_of, joined_state, parted_state
from asrcl.exceptions import InputError
from asrcl.methods import FineTuning, Method, Weights, build_method, method_class, method_names, register

STANDARD = ("initial", "ft", "fta", "ewc", "er", "ihr", "joint", "laplace", "lora", "separate", "si")
PROTECTING = ("agem", "cgalore", "clrl", "cssvd", "der", "ema", "ogd", "olora", "osf", "regmean_plus_plus", "svr", "swa")
PER_DOMAIN = ("adapters", "halrp", "lora_per_domain")
PLAIN = ("ft", "fta", "ihr", "laplace", "separate", "joint", "regmean_plus_plus")


def test_methods_that_come_with_the_package():
    assert {*STANDARD, *PROTECTING, *PER_DOMAIN} <= set(method_names())
    assert method_names() == sorted(method_names())


@pytest.mark.parametrize("name", (*STANDARD, *PROTECTING, *PER_DOMAIN))
def test_every_method_can_be_built_by_name(name):
    method = build_method(name)
    assert isinstance(method, Method) and method.name == name and method.label != ""
    assert method.state_dict() == {}
    assert inspect.getdoc(method_class(name))


@pytest.mark.parametrize("name", (*STANDARD, *PROTECTING, *PER_DOMAIN))
def test_a_state_of_another_method_is_refused(name):
    with pytest.raises(InputError, match=rf"method {name}.*unknown\.w"):
        build_method(name).load_state_dict({"unknown.w": torch.zeros(2)})


def test_unknown_method_lists_the_known_ones():
    with pytest.raises(InputError, match=r"ihrr.*ewc.*ihr"):
        build_method("ihrr")


@pytest.mark.parametrize("name", (*STANDARD, *PROTECTING, *PER_DOMAIN))
def test_unknown_option_is_named(name):
    with pytest.raises(InputError, match=rf"method {name}.*temperature; it has \w+"):
        build_method(name, temperature=1)


@pytest.mark.parametrize(
    "name, options, fault",
    [
        ("ewc", {"mode": "offline"}, "mode=offline"),
        ("ewc", {"strength": -1.0}, "strength=-1"),
        ("ewc", {"strength": "much"}, "method ewc"),
        ("ihr", {"curvature": "next"}, "curvature=next"),
        ("si", {"strength": -1.0}, "strength=-1"),
        ("si", {"damping": 0.0}, "damping=0"),
        ("er", {"budget": 0}, r"budget=0.*ft"),
        ("er", {"weight": -0.5}, "weight=-0.5"),
        ("er", {"items": 0}, "items=0"),
        ("lora", {"rank": 0}, "rank=0"),
    ],
)
def test_bad_options(name, options, fault):
    with pytest.raises(InputError, match=fault) as caught:
        build_method(name, **options)
    assert "\n" not in str(caught.value)


class Nothing:
    """A learner whose task has a loss of 3."""

    stage, last = 1, False

    class task:  # noqa: N801 - an attribute of a stub
        @staticmethod
        def loss(model, batch):
            return torch.tensor(3.0)


def test_hooks_do_nothing_by_default():
    method, model, learner = Method(), nn.Linear(2, 2), Nothing()
    new = Weights(model.state_dict())
    assert method.trains_plainly and method.key() == {}
    assert method.wrap(learner, model) is model
    assert method.loss(learner, model, None) == 3.0
    assert method.penalty(learner, model, None) is None
    assert method.start_epoch(learner, model, 0) is None
    assert method.after_backward(learner, model) is None and method.after_step(learner, model) is None
    assert method.end_domain(learner, None, new, new) is new
    unwrapped = method.unwrap(learner, model)
    assert unwrapped.keys() == new.keys() and all(torch.equal(unwrapped[name], new[name]) for name in new)
    assert unwrapped["weight"].data_ptr() != model.weight.data_ptr()


# --- keys


@pytest.mark.parametrize("name", (*STANDARD, *PROTECTING, *PER_DOMAIN))
def test_only_methods_that_train_as_fine_tuning_share_its_weights(name):
    assert (build_method(name).key() == {}) == (name in PLAIN)


@pytest.mark.parametrize("hook", TRAINING_HOOKS)
@pytest.mark.parametrize("base", [Method, FineTuning, method_class("ihr")])
def test_a_subclass_with_a_training_hook_never_shares_fine_tuning(base, hook):
    """The penalty of one that forgets its key would never be called."""
    changed = type("Changed", (base,), {hook: lambda self, *arguments: None})
    assert not changed().trains_plainly and changed().key() != {}


def test_a_subclass_of_the_base_says_so_to_share():
    assert type("Own", (Method,), {})().key() != {}
    assert type("Own", (Method,), {"shares_fine_tuning": True})().key() == {}


def test_key_follows_arguments_settings_version_and_class():
    class Pull(Method):
        def __init__(self, strength=1.0, names=("a",)):
            self._strength, self.twice = strength, 2 * strength

        def penalty(self, learner, model, batch):
            return None

    class Push(Pull):
        pass

    newer = type("Pull", (Pull,), {"version": 2, "__qualname__": Pull.__qualname__})
    keys = [Pull().key(), Pull(2.0).key(), Pull(names=("b",)).key(), Push().key(), newer().key()]
    assert all(keys.count(key) == 1 for key in keys)
    assert Pull(1.0).key() == Pull(strength=1.0).key() == keys[0]
    later = Pull()
    later.twice = 7.0
    assert later.key() not in keys


def written(folder, monkeypatch, body):
    """The hash of the code of a method in a module of its own."""
    name = "own_method_module"
    (folder / f"{name}.py").write_text(textwrap.dedent(body))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    __import__("importlib").invalidate_caches()
    contract._code_of_module.cache_clear()
    return code_of(__import__(name).Own)


def test_key_follows_the_code_of_the_module_but_not_its_comments(tmp_path, monkeypatch):
    body = '''
        """Words."""
        from asrcl.methods import Method
        def factor():
            """More words."""
            return {value}
        class Own(Method):
            """Some {words}."""
            def penalty(self, learner, model, batch):  # {words}
                return factor() * batch
    '''
    hashes = [
        written(tmp_path / str(n), monkeypatch, body.replace("{value}", value).replace("{words}", words))
        for n, (value, words) in enumerate([("1", "words"), ("1", "other words"), ("2", "words")])
        if (tmp_path / str(n)).mkdir() is None
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# --- hooks


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_with_other_arguments_is_refused_when_its_class_is_written(hook):
    with pytest.raises(InputError, match=rf"Wrong: {hook}\(.*learner") as caught:
        type("Wrong", (Method,), {"__qualname__": "Wrong", hook: lambda self, learner, one, two, three, four: None})
    assert "\n" not in str(caught.value)


def test_a_hook_may_name_its_arguments_as_it_likes():
    class Own(Method):
        def penalty(self, run, net, *rest, weight=1.0):
            return None

    assert Own().penalty(None, None, None) is None


def test_own_method_joins_the_table(monkeypatch):
    monkeypatch.setattr(contract, "_METHODS", dict(contract._METHODS))

    @register("half")
    class Half(Method):
        def merge_domain(self, learner, domain, old, new):
            return Weights({name: (old[name] + new[name]) / 2 for name in old})

    assert "half" in method_names() and Half.label == "half"
    merged = build_method("half").merge_domain(None, None, Weights({"w": torch.zeros(1)}), Weights({"w": torch.ones(1)}))
    assert merged["w"] == 0.5


# --- states


def test_states_of_several_parts_come_back():
    parts = {"fisher": {"a.weight": torch.ones(2)}, "anchor": {"a.weight": torch.zeros(2), "b": torch.ones(1)}}
    found = parted_state(Method(), joined_state(parts), "fisher", "anchor")
    assert [list(part) for part in found] == [["a.weight"], ["a.weight", "b"]]
    with pytest.raises(InputError, match=r"Method.*other\.b.*fisher"):
        parted_state(Method(), {"other.b": torch.ones(1)}, "fisher")
