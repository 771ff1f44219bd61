"""What a checkpoint holds beside its weights, and tensors that are no weights."""

import copy

import pytest
import torch
from torch import nn

from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge, merge_files
from asrcl.merge.containers import load_state, open_checkpoint


def weights(value, prefix=""):
    entries = {"fc.weight": torch.full((3, 2), value), "fc.bias": torch.full((3,), value), "n": torch.tensor(3)}
    return {f"{prefix}{name}": tensor for name, tensor in entries.items()}


def shadows(value):
    return [torch.full((3, 2), value), torch.full((3,), value)]


BESIDE = {
    "timm": (lambda v: {"state_dict": weights(v), "state_dict_ema": weights(v), "epoch": 3}, ["state_dict_ema"]),
    "yolo": (lambda v: {"model": weights(v), "ema": weights(v), "updates": 9}, ["ema"]),
    "icefall": (lambda v: {"model": weights(v), "model_avg": weights(v), "sampler": None}, ["model_avg"]),
    "nested": (lambda v: {"model": weights(v), "ema": {"decay": 0.99, "module": weights(v, "module.")}}, ["ema.module"]),
    "callback": (
        lambda v: {"state_dict": weights(v), "callbacks": {"EMA": {"shadow": weights(v, "model.")}}, "epoch": 1},
        ["callbacks.EMA.shadow"],
    ),
    "lists": (lambda v: {"model": weights(v), "ema": {"shadow_params": shadows(v), "decay": 0.9}}, ["ema.shadow_params"]),
    "two lists": (lambda v: {"model": weights(v), "averages": [shadows(v), shadows(v)]}, ["averages.0", "averages.1"]),
    "without dots": (
        lambda v: {"model": weights(v), "shadow": {k.replace(".", ""): t for k, t in weights(v).items()}}, ["shadow"]
    ),
    "stochastic averages": (
        lambda v: {"model_state_dict": weights(v), "swa": {"n_averaged": torch.tensor(2), **weights(v, "module.")}}, ["swa"]
    ),
    "the whole twice": (lambda v: {"model": weights(v), "state_dict": weights(v, "module.")}, ["state_dict"]),
    "best so far": (lambda v: {"model": weights(v), "best": {"loss": 0.5, "weights": weights(v)}}, ["best.weights"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", BESIDE)
def test_copies_and_averages_of_the_old_weights_are_left_out_by_name(tmp_path, layout):
    make, places = BESIDE[layout]
    for name, value in (("old", 0.0), ("new", 1.0)):
        torch.save(make(value), tmp_path / f"{name}.pt")
    record = merge_files(
        tmp_path / "old.pt", [tmp_path / "new.pt"], tmp_path / "m.pt", MergeSpec("interpolate", {"strength": 0.5})
    )
    merged = torch.load(tmp_path / "m.pt", weights_only=True)
    for place in places:
        assert any(note.startswith(f"{place}, a copy") for note in record.notes)
        outer, _, last = place.rpartition(".")
        value = merged
        for key in outer.split(".") if outer else ():
            value = value[key]
        assert last not in value if isinstance(value, dict) else not value
    assert all(torch.equal(t, torch.full_like(t, 0.5)) for t in load_state(tmp_path / "m.pt").values() if t.is_floating_point())
    left = set(make(0.0)) - {place for place in places if "." not in place}
    assert set(merged) == left, "everything else is carried over"


def test_optimisers_are_carried_over_and_named(tmp_path):
    model = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    masters = {"fp32_from_fp16": [[p.detach().clone() for p in model.parameters()]]}
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "amp_masters": masters, "epoch": 2}
    torch.save(content, tmp_path / "old.pt")
    torch.save({"model": {n: t + 1 for n, t in model.state_dict().items()}}, tmp_path / "new.pt")
    record = merge_files(tmp_path / "old.pt", [tmp_path / "new.pt"], tmp_path / "m.pt", MergeSpec("interpolate"))
    merged = torch.load(tmp_path / "m.pt", weights_only=True)
    for key in ("optimizer", "amp_masters"):
        assert any(note.startswith(f"{key} holds tensors made for the old weights") for note in record.notes)
        assert key in merged
    assert not any(note.startswith("epoch") for note in record.notes)


def test_states_of_other_things_are_no_copies(tmp_path):
    strangers = {"discriminator": {"conv.weight": torch.ones(3, 2)}, "mean": {"cmvn": torch.ones(80)}, "vocab": {"a": 1}}
    torch.save({"model": weights(0.0), **strangers}, tmp_path / "m.pt")
    origin = open_checkpoint(tmp_path / "m.pt").describe()
    assert set(origin.extras) == set(strangers)
    assert sorted(note.split()[0] for note in origin.notes) == ["discriminator", "mean"]


# ---- tensors that are no weights


class Wrapped(torch.Tensor):
    """A tensor subclass as torchao, quanto and DTensor make them."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, *_):
        return cls(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


NO_WEIGHTS = {
    "meta device": lambda: torch.empty(2, 2, device="meta"),
    "lazy": lambda: nn.LazyLinear(3).weight,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "expanded": lambda: torch.zeros(1).expand(1 << 40),
    "wrapped": lambda: Wrapped(torch.ones(2)),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_tensors_without_numbers_of_their_own_are_refused(tmp_path, kind):
    state = {"fc.bias": torch.ones(2), "fc.weight": NO_WEIGHTS[kind]()}
    with pytest.raises(InputError, match=r"old: fc\.weight (is|has|says)") as caught:
        merge(state, copy.copy(state), "interpolate")
    assert "\n" not in str(caught.value)
    if kind in ("meta device", "expanded", "sparse"):
        torch.save({"model": state}, tmp_path / "m.pt")
        with pytest.raises(InputError, match=r"m\.pt: (fc\.weight|damaged)"):
            open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize(
    "state",
    [
        {"a.weight": torch.empty(0), "a.bias": torch.empty(0)},
        {"a.weight": torch.empty(0).half(), "norm.weight": torch.ones(3), "norm.bias": torch.ones(3), "n": torch.tensor(1)},
        {"a.q": torch.empty(0), "a.k": torch.empty(0), "b": torch.ones(1)},
    ],
)
@pytest.mark.parametrize("where", ["memory", "pt", "safetensors"])
def test_placeholders_of_partitioned_models_are_refused(tmp_path, state, where):
    from safetensors.torch import save_file

    path = tmp_path / f"m.{where}"
    if where == "pt":
        torch.save({"module": state, "zero_stage": 3}, path)
    elif where == "safetensors":
        save_file(state, path)
    with pytest.raises(InputError, match=r"placeholder.*ZeRO-3.*zero_to_fp32"):
        load_state(state if where == "memory" else path)


def test_flattened_shards_are_refused():
    with pytest.raises(InputError, match=r"_flat_param .*FSDP.*FULL_STATE_DICT"):
        load_state({"_fsdp_wrapped_module._flat_param": torch.ones(100)})


def test_empty_tensors_of_a_whole_model_stay():
    state = {"w": torch.ones(3), "cache": torch.empty(0), "e": torch.empty(0, 3)}
    assert list(merge(state, {n: t + 1 for n, t in state.items()}, "interpolate")) == list(state)
