"""A folded adapter computes what base and adapter compute together."""

import json

import pytest
import torch
from ct2_writer import NAMES, tiny_whisper
from safetensors.torch import load_file, save_file

from asrcl.convert import cut_adapter, fold_adapter
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge_files

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

LINEAR = ("model.encoder.layers.0.self_attn.q_proj", "model.encoder.layers.1.fc1", "model.decoder.layers.0.encoder_attn.v_proj")
CONV, TABLE = "model.encoder.conv2", "model.decoder.embed_tokens"
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 12, "base_model_name_or_path": "somebody/base", "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base model as a folder; read only."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_whisper().save_pretrained(folder)
    return folder


def write_adapter(folder, base, seed=0, config=(), modules=(*LINEAR, CONV, TABLE), extra=()):
    """An adapter as PEFT lays it out; returns A and B by module."""
    g, settings = torch.Generator().manual_seed(seed), CONFIG | dict(config)
    weights, state, pairs = load_file(base / "model.safetensors"), dict(extra), {}
    for module in modules:
        rank = settings.get("rank_pattern", {}).get(module.rpartition(".")[2], settings["r"])
        rows, *columns = weights[f"{module}.weight"].shape
        rows, columns = (columns[0], [rows]) if module == TABLE else (rows, columns)
        A = torch.randn(rank, *columns, generator=g) / 4
        B = torch.randn(rows, rank, *(1 for _ in columns[1:]), generator=g) / 4
        kind, end = ("lora_embedding_", "") if module == TABLE else ("lora_", ".weight")
        state |= {f"base_model.model.{module}.{kind}A{end}": A, f"base_model.model.{module}.{kind}B{end}": B}
        pairs[module] = (A, B)
    folder.mkdir()
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return pairs


def load(folder):
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()


def beside(pairs, scale):
    """A hook for each module that adds what its adapter computes beside it."""

    def hook(module, given, output):
        A, B = pairs[names[module]]
        if isinstance(module, torch.nn.Embedding):
            return output + scale * (torch.nn.functional.embedding(given[0], A.T) @ B.T)
        if isinstance(module, torch.nn.Conv1d):
            inner = torch.nn.functional.conv1d(given[0], A, stride=module.stride, padding=module.padding)
            return output + scale * torch.nn.functional.conv1d(inner, B)
        return output + scale * (given[0] @ A.T @ B.T)

    names = {}
    return names, hook


@pytest.mark.parametrize("config, scale", [({}, 4.0), ({"use_rslora": True}, 12 / 3**0.5), ({"lora_alpha": 1}, 1 / 3)])
def test_the_folded_model_computes_what_both_compute(config, scale, base, tmp_path):
    modules = (*LINEAR, CONV)
    pairs = write_adapter(tmp_path / "adapter", base, config=config, modules=modules)
    assert fold_adapter(tmp_path / "adapter", base, tmp_path / "folded") == len(modules)
    model, folded = load(base), load(tmp_path / "folded")
    names, hook = beside(pairs, scale)
    for name, module in model.named_modules():
        if name in pairs:
            names[module] = name
            module.register_forward_hook(hook)
    given = {"input_features": torch.randn(2, 8, 100), "decoder_input_ids": torch.randint(0, len(NAMES), (2, 7))}
    with torch.no_grad():
        wanted, found, plain = model(**given).logits, folded(**given).logits, load(base)(**given).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (plain - wanted).abs().max() > 0.01


def test_an_embedding_keeps_its_product_transposed(base, tmp_path):
    pairs = write_adapter(tmp_path / "adapter", base, modules=(TABLE,))
    fold_adapter(tmp_path / "adapter", base, tmp_path / "folded")
    A, B = pairs[TABLE]
    old, new = (load_file(folder / "model.safetensors")[f"{TABLE}.weight"] for folder in (base, tmp_path / "folded"))
    torch.testing.assert_close(new, old + 4.0 * (B @ A).T)
    again = load(tmp_path / "folded")
    assert torch.equal(again.proj_out.weight, new), "the output layer is tied to it"


def test_only_what_the_adapter_holds_changes(base, tmp_path):
    kept = {"base_model.model.model.decoder.layer_norm.bias": torch.full((16,), 7.0)}
    write_adapter(tmp_path / "adapter", base, modules=LINEAR[:1], config={"rank_pattern": {"q_proj": 5}}, extra=kept)
    assert fold_adapter(tmp_path / "adapter", base, tmp_path / "folded") == 2
    old, new = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "folded"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"{LINEAR[0]}.weight", "model.decoder.layer_norm.bias"} and old.keys() == new.keys()
    assert new["model.decoder.layer_norm.bias"].eq(7).all()
    assert json.loads((tmp_path / "folded" / "config.json").read_text()) == json.loads((base / "config.json").read_text())


def test_merging_adapters_and_folding_is_folding_and_merging(base, tmp_path):
    """Whatever ranks and scales the two have: what is averaged are the products."""
    write_adapter(tmp_path / "first", base, 1, modules=LINEAR)
    write_adapter(tmp_path / "second", base, 2, modules=LINEAR, config={"r": 2, "lora_alpha": 5, "use_rslora": True})
    merge_files(tmp_path / "first", [tmp_path / "second"], tmp_path / "both", MergeSpec("average"))
    for name in ("first", "second", "both"):
        fold_adapter(tmp_path / name, base, tmp_path / f"{name}_folded")
    merge_files(tmp_path / "first_folded", [tmp_path / "second_folded"], tmp_path / "wanted", MergeSpec("average"))
    found, wanted = (load_file(tmp_path / name / "model.safetensors") for name in ("both_folded", "wanted"))
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-5, atol=1e-5)


def test_an_adapter_cut_to_a_rank_is_the_nearest_of_that_rank(base, tmp_path):
    kept = {"base_model.model.model.decoder.layer_norm.bias": torch.full((16,), 7.0)}
    pairs = write_adapter(tmp_path / "adapter", base, extra=kept)
    lost = cut_adapter(tmp_path / "adapter", tmp_path / "cut", 2)
    config = json.loads((tmp_path / "cut" / "adapter_config.json").read_text())
    state = load_file(tmp_path / "cut" / "adapter_model.safetensors")
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["q_proj"])
    assert state["base_model.model.model.decoder.layer_norm.bias"].eq(7).all()
    for module, (A, B) in pairs.items():
        kind, end = ("lora_embedding_", "") if module == TABLE else ("lora_", ".weight")
        stem = f"base_model.model.{module}.{kind}"
        found = state[f"{stem}B{end}"].flatten(1) @ state[f"{stem}A{end}"].flatten(1)
        U, s, V = torch.linalg.svd(4.0 * B.flatten(1).double() @ A.flatten(1).double(), full_matrices=False)
        torch.testing.assert_close(found.double(), U[:, :2] * s[:2] @ V[:2], rtol=1e-5, atol=1e-5)
        assert lost[f"base_model.model.{module}.weight"] == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-6)
    fold_adapter(tmp_path / "cut", base, tmp_path / "folded")


def test_cutting_to_a_rank_that_is_there_loses_nothing_and_narrows_what_was_padded(base, tmp_path):
    write_adapter(tmp_path / "adapter", base, modules=LINEAR)
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    state = {name: torch.zeros_like(t) if LINEAR[0] in name and "lora_B" in name else t for name, t in state.items()}
    save_file(state, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    lost = cut_adapter(tmp_path / "adapter", tmp_path / "same", 3)
    assert max(lost.values()) < 1e-6 and lost[f"base_model.model.{LINEAR[0]}.weight"] == 0
    cut_adapter(tmp_path / "adapter", tmp_path / "one", 1)
    assert {t.shape for n, t in load_file(tmp_path / "one" / "adapter_model.safetensors").items() if "lora_A" in n} == {(1, 16)}
    with pytest.raises(InputError, match="--rank 0"):
        cut_adapter(tmp_path / "adapter", tmp_path / "none", 0)
    with pytest.raises(InputError, match="holds no adapter"):
        cut_adapter(base, tmp_path / "none", 2)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "config, modules, message",
    [
        ({"base_model_name_or_path": "openai/whisper-tiny"}, LINEAR, "the adapter of openai/whisper-tiny, not of"),
        ({"fan_in_fan_out": True}, LINEAR, "fan_in_fan_out"),
        ({"use_dora": True}, LINEAR, "use_dora"),
        ({"peft_type": "LOHA"}, LINEAR, "of the kind LOHA"),
        ({"peft_type": "IA3"}, (), "no pairs of lora_A and lora_B"),
        ({}, LINEAR, r"embed_tokens\.base_layer\.weight, a copy of the base"),
    ],
)
def test_adapters_that_cannot_be_folded_in(config, modules, message, base, tmp_path):
    extra = {"base_model.model.model.decoder.embed_tokens.base_layer.weight": torch.zeros(16)}
    write_adapter(tmp_path / "adapter", base, config=config, modules=modules, extra=extra)
    with pytest.raises(InputError, match=message):
        fold_adapter(tmp_path / "adapter", base, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_a_base_under_another_name_can_be_vouched_for(base, tmp_path):
    write_adapter(tmp_path / "adapter", base, config={"base_model_name_or_path": "openai/whisper-tiny"}, modules=LINEAR)
    assert fold_adapter(tmp_path / "adapter", base, tmp_path / "folded", differences="note") == 3


def test_a_base_that_does_not_fit(base, tmp_path):
    write_adapter(tmp_path / "adapter", base, modules=LINEAR)
    config = transformers.WhisperConfig.from_pretrained(base)
    config.encoder_ffn_dim = 12
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"fc1\.weight is \[24, 16\] in the adapter and \[12, 16\] in"):
        fold_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "folded")
    config.encoder_layers = 1
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "other" / "base")
    with pytest.raises(InputError, match=r"layers\.1\.fc1\.weight is not in"):
        fold_adapter(tmp_path / "adapter", tmp_path / "other" / "base", tmp_path / "folded")
    with pytest.raises(InputError, match="holds no adapter"):
        fold_adapter(base, base, tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_a_sum_beyond_half_precision_is_refused(base, tmp_path):
    halved = {name: tensor.half() for name, tensor in load_file(base / "model.safetensors").items()}
    (tmp_path / "base").mkdir()
    save_file(halved, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    write_adapter(tmp_path / "adapter", base, modules=LINEAR, config={"lora_alpha": 1_000_000})
    with pytest.raises(InputError, match=r"^model\.\S+weight: .* beyond what float16 holds"):
        fold_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "folded")
