"""Where models come from, and what is refused."""

import subprocess
from dataclasses import fields, replace

import pytest
import torch
from merge_cases import bits, make_curvature, make_state
from safetensors.torch import save_file
from torch import nn

from asrcl import curvature as room
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, load_state, merge, merge_files, merge_method, methods, plan, registry


@pytest.fixture
def state():
    return make_state(1)


def same(first, second):
    return list(first) == list(second) and all(torch.equal(t, second[n]) for n, t in first.items())


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}]
)
def test_torch_checkpoints_and_their_wrappers(tmp_path, state, suffix, wrap):
    torch.save(wrap(state), tmp_path / f"m{suffix}")
    assert same(load_state(tmp_path / f"m{suffix}"), state)


def test_safetensors_modules_and_dicts(tmp_path, state):
    save_file(state, tmp_path / "m.safetensors")
    loaded = load_state(str(tmp_path / "m.safetensors"))
    assert loaded.keys() == state.keys() and all(torch.equal(t, state[n]) for n, t in loaded.items())
    module = nn.Linear(2, 3)
    assert same(load_state(module), module.state_dict())
    assert same(load_state({"model": state}), state)


def test_a_model_whose_parameter_is_called_model_is_no_wrapper():
    plain = {"model": torch.ones(2)}
    assert load_state(plain) == plain


def test_paths_can_be_merged(tmp_path, state):
    other = make_state(2)
    save_file(state, tmp_path / "old.safetensors")
    torch.save({"state_dict": other}, tmp_path / "new.ckpt")
    merged = merge(tmp_path / "old.safetensors", tmp_path / "new.ckpt", "interpolate", strength=1.0)
    assert torch.equal(merged["packed"], other["packed"])


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return subprocess.call, (["touch", str(self.target)],)


def test_code_in_a_checkpoint_is_not_run(tmp_path, state):
    path, target = tmp_path / "m.pt", tmp_path / "was-run"
    torch.save({"state_dict": state, "extra": Harmful(target)}, path)
    with pytest.raises(InputError, match=r"m\.pt: .*tensors"):
        load_state(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, state, suffix):
    path = tmp_path / f"m{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"m{suffix}") as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(b"abc")
    with pytest.raises(InputError, match=f"m{suffix}"):
        load_state(path)


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere.pt", "nowhere.pt: no such file"),
        (__file__, "unknown kind of checkpoint"),
        (3, "old: a int is no model"),
        ({}, "not a state dict"),
        ({"weight": torch.ones(1), "epoch": 3}, "epoch is no tensor"),
    ],
)
def test_what_is_no_model_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        merge(source, {"weight": torch.ones(1)}, "average")


def without(state, name):
    return {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: without(s, "gain"), r"gain .*only in the old"),
        (lambda s: s | {"more": torch.ones(1)}, r"more .*only in the new"),
        (
            lambda s: s | {"packed": torch.ones(6, 4)},
            r"packed is \[6, 3\] in the old and \[6, 4\] in the new",
        ),
        (lambda s: s | {"gain": torch.tensor(1)}, "gain is float32 in the old and int64 in the new"),
    ],
)
@pytest.mark.parametrize("call", [merge, plan])
def test_models_that_do_not_match_are_refused(state, change, message, call):
    with pytest.raises(InputError, match=message):
        call(state, change(make_state(2)), "average")


def test_numbers_that_are_not_finite_are_named(state):
    with pytest.raises(InputError, match="gain of the new model"):
        merge(state, make_state(2) | {"gain": torch.tensor(float("nan"))}, "average")
    state["encoder.bias"][2] = float("inf")
    with pytest.raises(InputError, match=r"encoder\.bias of the old model"):
        merge(state, make_state(2), "average")


@pytest.mark.parametrize(
    ("method", "count", "base", "faulty", "role"),
    [
        ("average", 1, False, 0, "the old model"),
        ("average", 1, False, 1, "the new model"),
        ("average", 3, False, 2, "new model 2"),
        ("average", 1, True, 0, "the base model"),
        ("average", 1, True, 1, "the old model"),
        ("average", 2, True, 3, "new model 2"),
        ("ihr", 1, False, 0, "the old model"),
        ("ihr", 1, False, 1, "the new model"),
    ],
)
@pytest.mark.parametrize("name", ["encoder.weight", "norm.running_mean"])
def test_a_nan_is_blamed_on_the_model_that_has_it(method, count, base, faulty, role, name):
    """Also where a first pass over all layers meets it (`rescale="global"`), and where a variance needs the mean."""
    states = [make_state(seed) for seed in range(1 + base + count)]
    states[faulty][name].view(-1)[0] = float("nan")
    ancestor, old, *new = states if base else (None, *states)
    given = {"curvature": make_curvature(), "rescale": "global"} if method == "ihr" else {}
    with pytest.raises(InputError) as error:
        merge(old, new, method, base=ancestor, **given)
    assert f"{name} of {role} holds NaN" in str(error.value)


@pytest.mark.parametrize(("method", "side"), [("keep", 0), ("new", -1)])
def test_keep_and_new_are_methods_like_others(method, side):
    """Whatever a tensor holds, and of how many models."""
    states = [make_state(seed) for seed in range(3)]
    for state in states:
        state["gain"] = torch.tensor(float("nan"))
    merged = merge(states[0], states[1:], method)
    assert bits(merged) == bits(states[side])
    assert plan(states[0], states[1:], method).counts() == {method: len(states[0])}
    with pytest.raises(InputError, match=rf"{method} .*option tau"):
        merge(states[0], states[1:], method, tau=1.0)


def test_unknown_methods_and_options_list_the_known_ones(state):
    with pytest.raises(InputError, match=r"no merge method 'tie'; there are: average, .*, ihr, interpolate, .*"):
        merge(state, state, "tie")
    with pytest.raises(InputError, match=r"no option damp \(did you mean damping\?\); it has: tau, damping, damping_kind"):
        merge(state, state, "ihr", damp=1)
    with pytest.raises(InputError, match=r"strength .*finite"):
        merge(state, state, "interpolate", strength="half")
    with pytest.raises(InputError, match=r"average .* rest=0\.5"):
        merge(state, state, "average", rest=0.5)


def test_a_method_can_be_added(state, monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @merge_method("take", source="this test")
    def take(delta, *, old, task, share=1.0):
        """Take a share of the update."""
        assert old.shape == delta.shape and task == 3
        return share * delta

    assert methods()["take"].knobs == {"share": 1.0} and methods()["take"].summary == "Take a share of the update."
    other = make_state(2)
    assert torch.allclose(merge(state, other, "take", task=3)["packed"], other["packed"])
    assert plan(state, other, "take", task=3).counts() == {"take": 5, "pool statistics": 1, "new": 2}
    with pytest.raises(InputError, match="already"):
        merge_method("take", source="this test")(take)


def test_one_new_model_where_a_method_takes_no_more(state):
    with pytest.raises(InputError, match=r"interpolate .*one new model"):
        merge(state, [make_state(2), make_state(3)], "interpolate")
    with pytest.raises(InputError, match="no new model"):
        merge(state, [], "average")
    both = merge(state, [make_state(2), make_state(3)], "average")
    mean = (state["packed"] + make_state(2)["packed"] + make_state(3)["packed"]) / 3
    torch.testing.assert_close(both["packed"], mean)


WRAPPED = {
    "compiled inside": lambda name: name.replace("encoder.", "encoder._orig_mod."),
    "in parallel inside": lambda name: name.replace("encoder.", "encoder.module."),
    "checkpointed": lambda name: name.replace("encoder.", "encoder._checkpoint_wrapped_module."),
    "in parallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("side", ["old", "new"])
@pytest.mark.parametrize("where", ["memory", "files"])
def test_names_that_wrappers_made_different_are_matched(tmp_path, wrapping, side, where):
    from safetensors.torch import load_file

    plain = {"old": 0.0, "new": 1.0}
    models = {k: {"encoder.0.weight": torch.full((2, 2), v), "encoder.0.bias": torch.full((2,), v)} for k, v in plain.items()}
    models[side] = {WRAPPED[wrapping](name): tensor for name, tensor in models[side].items()}
    if where == "memory":
        merged = merge(models["old"], models["new"], "interpolate", strength=0.5)
    else:
        paths = [tmp_path / f"{name}.safetensors" for name in ("old", "new", "merged")]
        for path in paths[:2]:
            save_file(models[path.stem], path)
        merge_files(paths[0], [paths[1]], paths[2], MergeSpec("interpolate", {"strength": 0.5}))
        merged = load_file(paths[2])
    assert set(merged) == set(models["old"]) and all(t.unique().tolist() == [0.5] for t in merged.values())


def test_two_names_of_one_tensor_are_named():
    old = {"a.weight": torch.zeros(2), "b": torch.zeros(2)}
    new = {"a.module.weight": torch.ones(2), "module.a.weight": torch.ones(2)}
    with pytest.raises(InputError, match=r"a\.module\.weight and module\.a\.weight .*a\.weight"):
        merge(old, new, "interpolate")


def test_one_object_says_all_that_keywords_say(tmp_path):
    """In memory and in files, with curvatures from either; keywords beside it are on top."""
    old, new, curvature = make_state(1), make_state(2), make_curvature()
    spec = MergeSpec("ihr", {"tau": 0.5}, curvature=curvature, rest=0.25, layers="enc*")
    wanted = merge(old, new, "ihr", tau=0.5, curvature=curvature, rest=0.25, layers="enc*")
    assert bits(merge(old, new, spec)) == bits(wanted)
    other = MergeSpec("ihr", {"tau": 9.0}, curvature=[curvature], rest=0.25)
    assert bits(merge(old, new, other, tau=0.5, layers=["enc*"])) == bits(wanted)
    assert plan(old, new, spec) == plan(old, new, curvature=curvature, rest=0.25, layers="enc*")
    curvature.save(tmp_path / "c.safetensors")
    wanted = merge(old, new, replace(spec, curvature=[tmp_path / "c.safetensors"]))
    places = [tmp_path / f"{name}.safetensors" for name in ("old", "new", "out")]
    save_file(old, places[0])
    save_file(new, places[1])
    for given in (places[0].with_name("c.safetensors"), [room.Curvature.load(tmp_path / "c.safetensors")]):
        merge_files(places[0], [places[1]], places[2], replace(spec, curvature=given))
        found = load_state(places[2])
        assert bits({name: found[name] for name in wanted}) == bits(wanted)
    with pytest.raises(InputError, match="vocabulary="):
        merge(old, new, MergeSpec("average", vocabulary="union"))


def test_no_method_has_an_option_that_a_merge_has():
    shared = {one.name for one in fields(MergeSpec)}
    assert not {f"{name}: {knob}" for name, method in methods().items() for knob in method.knobs if knob in shared}
