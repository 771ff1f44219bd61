"""Low-rank adapters are merged as what they add to the weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge, merge_files
from asrcl.merge.containers import load_state, open_checkpoint
from asrcl.merge.containers.adapters import factorised
from asrcl.merge.rules import parse_rules

BASE = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "openai/whisper-tiny",
}
SHAPES = {"q_proj": (16, 12), "fc1": (20, 16)}


def adapter(folder, seed, config=(), ranks=(), dtype=torch.float32, plain=()):
    """Write an adapter; its products by module are returned."""
    g, settings = torch.Generator().manual_seed(seed), BASE | dict(config)
    state, products = {}, {}
    for module, (rows, columns) in SHAPES.items():
        rank = dict(ranks).get(module, settings["r"])
        A = torch.randn(rank, columns, generator=g).to(dtype)
        B = torch.randn(rows, rank, generator=g).to(dtype)
        name = f"base_model.model.layers.0.{module}"
        state |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        products[f"{name}.weight"] = (B.double() @ A.double(), rank)
    folder.mkdir(parents=True)
    save_file(
        state | {name: torch.full((3,), float(seed)) for name in plain}, folder / "adapter_model.safetensors", {"format": "pt"}
    )
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    alphas = settings.get("alpha_pattern", {})
    scale = {n: alphas.get(n.split(".")[-2], settings["lora_alpha"]) for n in products}
    root = math.sqrt if settings.get("use_rslora") else float
    return {name: product * scale[name] / root(rank) for name, (product, rank) in products.items()}


def effective(folder):
    """What the stored factors add to the weights, by PEFT's own formula."""
    state, config = load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())
    root = math.sqrt if config.get("use_rslora") else float
    assert not config.get("rank_pattern") and not config.get("alpha_pattern")
    stems = [name.removesuffix(".lora_A.weight") for name in state if name.endswith("lora_A.weight")]
    factors = {stem: [state[f"{stem}.lora_{side}.weight"].double() for side in "BA"] for stem in stems}
    return {f"{stem}.weight": config["lora_alpha"] / root(config["r"]) * B @ A for stem, (B, A) in factors.items()}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"config": {"lora_alpha": 64}},
        {"config": {"r": 7}},
        {"config": {"r": 2, "lora_alpha": 3, "use_rslora": True}},
        {"config": {"rank_pattern": {"fc1": 6}, "alpha_pattern": {"fc1": 24}}, "ranks": {"fc1": 6}},
    ],
    ids=["alike", "alpha", "rank", "rank-stabilised", "patterns"],
)
@pytest.mark.parametrize("strength", [0.3, 1.0, 1.5])
def test_products_are_averaged_whatever_scales_and_ranks_they_have(tmp_path, change, strength):
    old, new = adapter(tmp_path / "old", 1), adapter(tmp_path / "new", 2, **change)
    record = merge_files(tmp_path / "old", [tmp_path / "new"], tmp_path / "m", MergeSpec("interpolate", {"strength": strength}))
    for name, product in effective(tmp_path / "m").items():
        torch.testing.assert_close(product, (1 - strength) * old[name] + strength * new[name], rtol=1e-5, atol=1e-5)
    ranks = 4 + max(change.get("config", {}).get("r", 4), dict(change.get("ranks", {})).get("fc1", 0))
    assert json.loads((tmp_path / "m/adapter_config.json").read_text())["r"] <= ranks
    assert any("merged as their products" in note for note in record.notes) and record.library_name == "peft"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_strength_zero_leaves_the_factors_as_they_are(tmp_path, dtype):
    adapter(tmp_path / "old", 1, dtype=dtype)
    adapter(tmp_path / "new", 2, {"lora_alpha": 64}, dtype=dtype)
    merge_files(tmp_path / "old", [tmp_path / "new"], tmp_path / "m", MergeSpec("interpolate", {"strength": 0.0}))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        read = load_file if name.endswith("safetensors") else lambda path: json.loads(path.read_text())
        old, merged = read(tmp_path / "old" / name), read(tmp_path / "m" / name)
        assert list(old) == list(merged) and all(str(old[key]) == str(merged[key]) for key in old)


def test_rules_and_plain_tensors(tmp_path):
    old = adapter(tmp_path / "old", 1, plain=["base_model.model.layers.0.norm.weight"])
    new = adapter(tmp_path / "new", 2, plain=["base_model.model.layers.0.norm.weight"])
    rules = parse_rules({"method": "interpolate", "knobs": {"strength": 0.5}, "rules": [{"match": "*fc1*", "method": "keep"}]})
    merge_files(tmp_path / "old", [tmp_path / "new"], tmp_path / "m", MergeSpec.of(rules))
    found = effective(tmp_path / "m")
    q, fc = (f"base_model.model.layers.0.{module}.weight" for module in SHAPES)
    torch.testing.assert_close(found[q], (old[q] + new[q]) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[fc], old[fc], rtol=1e-5, atol=1e-5)
    norm = load_file(tmp_path / "m/adapter_model.safetensors")["base_model.model.layers.0.norm.weight"]
    assert norm.tolist() == [1.5] * 3


@pytest.mark.parametrize(
    "config, message",
    [
        ({"base_model_name_or_path": "openai/whisper-base"}, "base model is 'openai/whisper-tiny' and 'openai/whisper-base'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is False and True"),
        ({"use_dora": True}, "with use_dora or lora_bias is no sum of products"),
        ({"peft_type": "LOHA"}, "LOHA .*products"),
        ({"lora_alpha": None}, "lora_alpha is None, not a number above 0"),
        ({"r": 0}, "r is 0, not a number"),
    ],
)
def test_adapters_that_do_not_add_up_are_refused(tmp_path, config, message):
    adapter(tmp_path / "old", 1, {"fan_in_fan_out": False})
    adapter(tmp_path / "new", 2, {"fan_in_fan_out": False})
    changed = json.loads((tmp_path / "new/adapter_config.json").read_text()) | config
    (tmp_path / "new/adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match=message):
        merge_files(tmp_path / "old", [tmp_path / "new"], tmp_path / "m", MergeSpec("interpolate"))
    assert not (tmp_path / "m").exists()


def test_other_targets_and_a_missing_configuration_are_refused(tmp_path):
    adapter(tmp_path / "old", 1)
    state = {f"base_model.model.k_proj.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    (tmp_path / "new").mkdir()
    save_file(state, tmp_path / "new/adapter_model.safetensors")
    with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
        open_checkpoint(tmp_path / "new")
    (tmp_path / "new/adapter_config.json").write_text(json.dumps(BASE | {"target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match=r"tensor\(s\) differ"):
        merge_files(tmp_path / "old", [tmp_path / "new"], tmp_path / "m", MergeSpec("interpolate"))


def test_factors_in_memory_are_refused_where_both_changed(tmp_path):
    adapter(tmp_path / "old", 1)
    old = {"l.lora_A": torch.randn(2, 5), "l.lora_B": torch.randn(5, 2), "l.weight": torch.randn(5, 5)}
    with pytest.raises(InputError, match=r"l\.lora_A and l\.lora_B .*adapter"):
        merge(old, {name: tensor + 1 for name, tensor in old.items()}, "interpolate")
    half = old | {"l.lora_B": old["l.lora_B"] + 1}
    torch.testing.assert_close(merge(old, half, "interpolate", strength=0.5)["l.lora_B"], old["l.lora_B"] + 0.5)
    with pytest.raises(InputError, match="merged as products"):
        load_state(tmp_path / "old")


@pytest.mark.parametrize(
    "shape, rank", [((30, 20), 3), ((200, 150), 5), ((200, 150), 60), ((40, 300), 40), ((6, 6), 6), ((5, 3), 0)]
)
def test_a_factorisation_has_the_rank_of_its_matrix(shape, rank):
    g = torch.Generator().manual_seed(rank)
    matrix = torch.randn(shape[0], rank, generator=g, dtype=torch.float64) @ torch.randn(
        rank, shape[1], generator=g, dtype=torch.float64
    )
    A, B = factorised(matrix)
    assert A.shape == (max(rank, 1), shape[1]) and B.shape == (shape[0], max(rank, 1))
    torch.testing.assert_close(B @ A, matrix, rtol=1e-8, atol=1e-8)


def test_convolutions_and_embeddings(tmp_path):
    parts = {"conv": ((4, 3, 5), (8, 4, 1)), "embedding": ((4, 30), (8, 4))}
    made = []
    for seed in (1, 2):
        g, folder, state, products = torch.Generator().manual_seed(seed), tmp_path / str(seed), {}, {}
        for module, shapes in parts.items():
            A, B = (torch.randn(shape, generator=g) for shape in shapes)
            names = [
                f"m.{module}.lora_{side}.weight" if module == "conv" else f"m.{module}.lora_embedding_{side}" for side in "AB"
            ]
            state |= dict(zip(names, (A, B), strict=True))
            products[f"m.{module}.weight"] = 2.0 * torch.einsum("or,r...->o...", B.flatten(1), A).double()
        folder.mkdir()
        save_file(state, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(BASE))
        made.append(products)
    merge_files(tmp_path / "1", [tmp_path / "2"], tmp_path / "m", MergeSpec("interpolate", {"strength": 0.5}))
    with open_checkpoint(tmp_path / "m") as merged:
        assert list(merged.outlines) == list(made[0])
        for name in merged.outlines:
            torch.testing.assert_close(merged.read(name), (made[0][name] + made[1][name]) / 2, rtol=1e-5, atol=1e-5)
