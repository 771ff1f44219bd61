"""What lies beside the weights and changes what they mean is compared in every container."""

import json

import pytest
import torch
from container_cases import nemo
from safetensors.torch import save_file
from torch import nn

from asrcl.curvature import estimate
from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec, merge_files, preview_files

CONFIG = {
    "model_type": "wav2vec2",
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.1,
    "hidden_act": "gelu",
}
FEATURES = {"sampling_rate": 16000, "do_normalize": True, "padding_value": 0.0}
SPEC = MergeSpec("interpolate", {"strength": 0.5})


def hugging_face(folder, value, config=(), features=(), files=()):
    folder.mkdir()
    save_file({"w": torch.full((3, 2), value)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES | dict(features)))
    for name, content in dict(files).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


MATTERS = [
    ({"config": {"num_attention_heads": 8}}, "num_attention_heads is 4 and 8"),
    ({"config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps is 1e-05 and 1e-06"),
    ({"config": {"hidden_act": "relu"}}, "hidden_act is 'gelu' and 'relu'"),
    ({"features": {"sampling_rate": 8000}}, r"preprocessor_config\.sampling_rate is 16000 and 8000"),
    ({"features": {"do_normalize": False}}, r"preprocessor_config\.do_normalize is True and False"),
]
HARMLESS = [
    {"config": {"attention_dropout": 0.0}},
    {"config": {"transformers_version": "5.0", "torch_dtype": "float16", "_name_or_path": "x", "mask_time_prob": 0.1}},
    {"config": {"new_in_this_version": 3}},
    {"files": {"generation_config.json": "{}"}},
]


@pytest.mark.parametrize("change, message", MATTERS)
def test_settings_that_change_what_weights_mean_are_refused_or_noted(tmp_path, change, message):
    old, new = hugging_face(tmp_path / "old", 0.0), hugging_face(tmp_path / "new", 1.0, **change)
    for call in (lambda: merge_files(old, [new], tmp_path / "m", SPEC), lambda: preview_files(old, [new], SPEC)):
        with pytest.raises(InputError, match=rf"settings .*: {message}.*differences"):
            call()
    noted = MergeSpec("interpolate", {"strength": 0.5}, differences="note")
    record = merge_files(old, [new], tmp_path / "m", noted)
    assert len(record.notes) == 1 and message.replace("\\", "") in record.notes[0]


@pytest.mark.parametrize("change", HARMLESS)
def test_settings_of_training_do_not_matter(tmp_path, change):
    old, new = hugging_face(tmp_path / "old", 0.0), hugging_face(tmp_path / "new", 1.0, **change)
    assert merge_files(old, [new], tmp_path / "m", SPEC).notes == ()


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json", "tokens.txt", "vocab.txt"])
def test_other_tokens_of_the_same_number_are_refused(tmp_path, name):
    def written(tokens):
        by_id = {token: n for n, token in enumerate(tokens)}
        whole = {"vocab.json": by_id, "tokenizer.json": {"model": {"vocab": by_id}}}
        lines = [f"{token} {n}" for n, token in enumerate(tokens)] if name == "tokens.txt" else tokens
        return json.dumps(whole[name]) if name in whole else "\n".join(lines) + "\n"

    old = hugging_face(tmp_path / "old", 0.0, files={name: written(["<blank>", "a", "b"])})
    new = hugging_face(tmp_path / "new", 1.0, files={name: written(["<blank>", "b", "a"])})
    same = hugging_face(tmp_path / "same", 1.0, files={name: written(["<blank>", "a", "b"])})
    with pytest.raises(InputError, match="different tokens: number 1 is 'a' and 'b'; choose vocabulary=backbone-only"):
        merge_files(old, [new], tmp_path / "m", SPEC)
    assert merge_files(old, [same], tmp_path / "m", SPEC).notes == ()


def test_archives_of_nemo(tmp_path):
    import io

    weights = io.BytesIO()
    torch.save({"w": torch.ones(2)}, weights)

    def archive(name, heads=4, rate=16000, tokenizer=b"abc", prefix="a1b2"):
        config = f"preprocessor: {{sample_rate: {rate}}}\nencoder: {{n_heads: {heads}}}\noptim: {{lr: {rate}}}\n"
        members = {
            "./model_config.yaml": config.encode(),
            "./model_weights.ckpt": weights.getvalue(),
            f"./{prefix}_tokenizer.model": tokenizer,
        }
        return nemo(tmp_path, members=members, name=name)

    old = archive("old.nemo")
    with pytest.raises(InputError, match=r"encoder\.n_heads is 4 and 8"):
        merge_files(old, [archive("heads.nemo", heads=8)], tmp_path / "m.nemo", SPEC)
    with pytest.raises(InputError, match=r"preprocessor\.sample_rate is 16000 and 8000"):
        merge_files(old, [archive("rate.nemo", rate=8000)], tmp_path / "m.nemo", SPEC)
    with pytest.raises(InputError, match=r"different tokens: .*tokenizers"):
        merge_files(old, [archive("tokens.nemo", tokenizer=b"abd")], tmp_path / "m.nemo", SPEC)
    assert merge_files(old, [archive("same.nemo", prefix="ffff")], tmp_path / "m.nemo", SPEC).notes == ()


def test_statistics_and_tokenizers_of_speechbrain(tmp_path):
    for name, mean in (("old", 0.0), ("other", 1.0), ("same", 0.0)):
        folder = tmp_path / f"CKPT+{name}"
        folder.mkdir()
        (folder / "CKPT.yaml").write_text("WER: 3\n")
        torch.save({"w": torch.ones(2)}, folder / "model.ckpt")
        torch.save({"mean": torch.full((2,), mean)}, folder / "normalizer.ckpt")
        torch.save({"state": torch.rand(3)}, folder / "optimizer.ckpt")
    old, other, same = (tmp_path / f"CKPT+{name}" for name in ("old", "other", "same"))
    notes = merge_files(old, [other], tmp_path / "m", SPEC).notes
    assert any("settings of the new model differ" in note and "normalizer.ckpt" in note for note in notes)
    assert not any("optimizer.ckpt is" in note and "differ" in note for note in notes)
    assert not any("differ" in note for note in merge_files(old, [same], tmp_path / "n", SPEC).notes)


@pytest.mark.parametrize("name", ["ema.safetensors", "pytorch_model_ema.bin", "model-averaged.pt", "swa.ckpt"])
def test_files_of_averages_are_left_out_by_name(tmp_path, name):
    old, new = hugging_face(tmp_path / "old", 0.0), hugging_face(tmp_path / "new", 1.0)
    for folder in (old, new):
        (folder / name).write_bytes(b"x")
        (folder / "optimizer.pt").write_bytes(b"x")
    record = merge_files(old, [new], tmp_path / "m", SPEC)
    assert not (tmp_path / "m" / name).exists() and (tmp_path / "m/optimizer.pt").exists()
    assert any(note.startswith(f"{name}, an average of the old weights, is left out") for note in record.notes)
    assert any(note.startswith("optimizer.pt is carried over unchanged") for note in record.notes)


def test_settings_inside_files_of_torch(tmp_path):
    for name, heads, lr in (("old", 4, 1.0), ("heads", 8, 1.0), ("lr", 4, 2.0)):
        torch.save(
            {"model": {"w": torch.ones(2)}, "dims": {"n_audio_head": heads}, "hparams": {"lr": lr}}, tmp_path / f"{name}.pt"
        )
    with pytest.raises(InputError, match=r"dims\.n_audio_head is 4 and 8"):
        merge_files(tmp_path / "old.pt", [tmp_path / "heads.pt"], tmp_path / "m.pt", SPEC)
    record = merge_files(tmp_path / "old.pt", [tmp_path / "lr.pt"], tmp_path / "m.pt", SPEC)
    assert record.notes == ("settings of the new model differ from the old model's, which are kept: hparams.lr is 1.0 and 2.0",)


def test_a_word_that_does_not_exist(tmp_path):
    old = hugging_face(tmp_path / "old", 0.0)
    with pytest.raises(InputError, match=r"differences=.*refuse and note"):
        merge_files(old, [old], tmp_path / "m", MergeSpec("interpolate", differences="ignore"))


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("which, said", [("old", False), ("new", True), ("stranger", True)])
def test_curvature_of_other_weights_is_named_on_card_record_and_preview(tmp_path, caplog, which, said):
    models = {name: net(n) for n, name in enumerate(("old", "new", "stranger"))}
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(32, 6, generator=generator), torch.randint(0, 3, (32,), generator=generator)
    loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    estimate(models[which], loss, [batch]).save(tmp_path / "c.safetensors")
    for name in ("old", "new"):
        save_file(models[name].state_dict(), tmp_path / f"{name}.safetensors")
    spec = MergeSpec("ihr", curvature=(tmp_path / "c.safetensors",))
    paths = tmp_path / "old.safetensors", [tmp_path / "new.safetensors"]
    record = merge_files(*paths, tmp_path / "m.safetensors", spec)
    assert any("estimated at other weights" in note for note in record.notes) == said
    assert ("estimated at other weights" in (tmp_path / "m.safetensors.md").read_text()) == said
    caplog.clear()
    preview_files(*paths, spec)
    assert ("c.safetensors: this curvature was estimated at other weights" in caplog.text) == said
