"""Folders of Hugging Face and SpeechBrain, written and read back by those libraries themselves."""

import json
import os
import shutil

import pytest
import torch
from container_cases import bits, content, listing, odd_state, rewrite
from torch import nn

from asrcl.exceptions import InputError
from asrcl.merge.containers import load_state, open_checkpoint

transformers = pytest.importorskip("transformers")


def whisper():
    torch.manual_seed(1)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_source_positions": 20, "max_target_positions": 20}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(vocab_size=60, num_mel_bins=8, **sizes, **heads, **tokens)
    return transformers.WhisperForConditionalGeneration(config)


def wav2vec2():
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 12}
    convolution = {"conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**sizes, **convolution, **positions))


def save(model, folder, shards=False):
    """A folder as users have it: weights, configs, a tokenizer, a card, a folder of other files."""
    model.save_pretrained(folder, **({"max_shard_size": "10KB"} if shards else {}))
    vocabulary = folder.parent / "vocab.json"
    vocabulary.write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "ä": 3}))
    transformers.Wav2Vec2CTCTokenizer(vocabulary, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    (folder / "README.md").write_text("# a model\n")
    (folder / "templates").mkdir()
    (folder / "templates" / "chat.jinja").write_text("{{ x }}")
    return folder


def as_pickles(folder):
    """The same folder as `save_pretrained(safe_serialization=False)` made it for years."""
    for file in list(folder.glob("*.safetensors")):
        torch.save(load_state(file), folder / file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin"))
        file.unlink()
    for index in list(folder.glob("*.index.json")):
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    return folder


def same_parameters(first, second):
    assert first.state_dict().keys() == second.state_dict().keys()
    return all(bits(tensor) == bits(second.state_dict()[name]) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("pickles", [False, True])
@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("make", [whisper, wav2vec2])
def test_hugging_face_folders_are_written_as_they_were(tmp_path, make, shards, pickles):
    model = make()
    source = save(model, tmp_path / "source", shards)
    if pickles:
        as_pickles(source)
    out = rewrite(source, tmp_path / "out")
    assert content(out) == content(source)
    assert listing(out) == listing(source) and (len(list(out.glob("*-of-*"))) > 2) == shards
    for name in listing(source):
        if not (source / name).is_dir() and not name.endswith((".safetensors", ".bin")):
            same = json.loads if name.endswith(".index.json") else str
            assert same((out / name).read_text()) == same((source / name).read_text()), name
    loaded = type(model).from_pretrained(out, use_safetensors=not pickles)
    assert same_parameters(loaded, model)
    assert transformers.Wav2Vec2CTCTokenizer.from_pretrained(out).get_vocab()["ä"] == 3


@pytest.mark.parametrize("shards", [False, True])
def test_changed_weights_arrive_in_from_pretrained(tmp_path, shards):
    model = wav2vec2()
    out = rewrite(save(model, tmp_path / "source", shards), tmp_path / "out", lambda name, t: t + 1)
    loaded = transformers.Wav2Vec2ForCTC.from_pretrained(out).state_dict()
    assert all(torch.equal(loaded[name], tensor + 1) for name, tensor in model.state_dict().items())


def test_names_are_those_of_the_module(tmp_path):
    model = whisper()
    model.save_pretrained(tmp_path / "m")
    found = load_state(tmp_path / "m")
    assert found.keys() == model.state_dict().keys() - {"proj_out.weight"}
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert checkpoint.describe().kind == "hf folder" and "generation_config.json" in checkpoint.describe().extras


def test_a_folder_can_become_one_file_and_an_index_is_its_folder(tmp_path):
    source = save(wav2vec2(), tmp_path / "source", shards=True)
    out = rewrite(source, tmp_path / "m.safetensors")
    assert dict(content(out)) == dict(content(source)) and out.is_file()
    assert content(source / "model.safetensors.index.json") == content(source)


def test_a_new_vocabulary_goes_to_the_shard_of_its_tensor(tmp_path):
    source = save(wav2vec2(), tmp_path / "source", shards=True)
    with open_checkpoint(source) as checkpoint:
        outlines = dict(checkpoint.outlines) | {"lm_head.weight": torch.ones(15, 16), "more": torch.ones(2)}
        with checkpoint.writer(tmp_path / "out", outlines=outlines) as writer:
            for name in checkpoint.outlines:
                writer.write(name, torch.ones(15, 16) if name == "lm_head.weight" else checkpoint.read(name))
            writer.write("more", torch.ones(2))
    before, after = (json.loads((f / "model.safetensors.index.json").read_text()) for f in (source, tmp_path / "out"))
    assert after["weight_map"]["lm_head.weight"] == before["weight_map"]["lm_head.weight"]
    assert after["metadata"]["total_size"] == before["metadata"]["total_size"] + 3 * 16 * 4 + 2 * 4
    assert load_state(tmp_path / "out")["lm_head.weight"].shape == (15, 16)


def test_weights_in_other_formats_and_other_checkpoints_are_left_out_with_a_note(tmp_path):
    source = save(wav2vec2(), tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"old")
    (source / "tf_model.h5").write_bytes(b"old")
    (source / "checkpoint-500").mkdir()
    shutil.copy(source / "model.safetensors", source / "checkpoint-500")
    (source / ".cache").mkdir()
    with open_checkpoint(source) as checkpoint:
        notes = " | ".join(checkpoint.describe().notes)
    out = rewrite(source, tmp_path / "out")
    for name in ("pytorch_model.bin", "tf_model.h5", "checkpoint-500"):
        assert name in notes and not (out / name).exists()
    assert (out / "templates" / "chat.jinja").exists() and not (out / ".cache").exists()


def test_a_folder_that_exists_is_replaced_only_where_asked_for(tmp_path):
    source = save(wav2vec2(), tmp_path / "source")
    out = rewrite(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"out: exists already; .*overwrite=True"):
        rewrite(source, out)
    rewrite(source, out, lambda name, t: t * 0, overwrite=True)
    assert load_state(out)["lm_head.bias"].abs().sum() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "vocab.json"]
    assert listing(out) == listing(source)
    rewrite(out, out, lambda name, t: t + 1, overwrite=True)
    assert load_state(out)["lm_head.bias"].unique().tolist() == [1]
    (tmp_path / "empty").mkdir()
    assert content(rewrite(source, tmp_path / "empty")) == content(source)


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path):
    source = save(wav2vec2(), tmp_path / "source")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no checkpoint .*overwritten"):
        rewrite(source, tmp_path / "home", overwrite=True)
    out = rewrite(source, tmp_path / "out")
    (out / "checkpoint-500").mkdir()
    with pytest.raises(InputError, match=r"checkpoint-500, .*lost"):
        rewrite(source, out, overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_replacing_a_folder_restores_it_where_renaming_fails(tmp_path, monkeypatch):
    source = save(wav2vec2(), tmp_path / "source")
    out = rewrite(source, tmp_path / "out")
    before, rename = content(out), os.rename

    def fail(start, end):
        if str(start).endswith(".part"):
            raise OSError(28, "No space left on device")
        rename(start, end)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(InputError, match="No space left"):
        rewrite(source, out, lambda name, t: t * 0, overwrite=True)
    assert content(out) == before and len(list(tmp_path.iterdir())) == 3


def test_hugging_face_caches_of_links_are_copied_as_files(tmp_path):
    source = save(wav2vec2(), tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("model.safetensors", "config.json"):
        (snapshot / name).symlink_to(source / name)
    out = rewrite(snapshot, tmp_path / "out")
    assert listing(out) == ["config.json", "model.safetensors"]
    assert not any(file.is_symlink() for file in out.iterdir())


# ---- SpeechBrain




def speechbrain_folder(folder, model, **more):
    checkpoints = pytest.importorskip("speechbrain.utils.checkpoints")
    optimizer = torch.optim.Adam(model.parameters())
    saver = checkpoints.Checkpointer(folder, {"model": model, "optimizer": optimizer, **more})
    return saver.save_checkpoint(meta={"WER": 7.5}, name="epoch3").path


def network():
    torch.manual_seed(3)
    return nn.ModuleList([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.LSTM(4, 2)])


def test_speechbrain_recovers_what_was_written(tmp_path):
    checkpoints = pytest.importorskip("speechbrain.utils.checkpoints")
    model = network()
    source = speechbrain_folder(tmp_path / "save", model)
    out = rewrite(source, tmp_path / "new" / source.name, lambda name, t: t + 1)
    assert listing(out) == listing(source) == ["CKPT.yaml", "model.ckpt", "optimizer.ckpt"]
    for name in ("CKPT.yaml", "optimizer.ckpt"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    fresh = network()
    found = checkpoints.Checkpointer(tmp_path / "new", {"model": fresh}, allow_partial_load=True).recover_if_possible()
    assert found.meta["WER"] == 7.5
    assert all(torch.equal(fresh.state_dict()[name], tensor + 1) for name, tensor in model.state_dict().items())
    assert content(rewrite(source, tmp_path / "same" / source.name)) == content(source)


def test_speechbrain_checkpoints_say_what_they_leave_alone(tmp_path):
    source = speechbrain_folder(tmp_path / "save", network(), wav2vec2=nn.Linear(2, 2))
    with open_checkpoint(source) as checkpoint:
        origin = checkpoint.describe()
    assert origin.kind == "speechbrain" and any("wav2vec2.ckpt" in note for note in origin.notes)
    assert load_state(source / "wav2vec2.ckpt").keys() == {"weight", "bias"}
    (source / "model.ckpt").rename(source / "whisper.ckpt")
    with pytest.raises(InputError, match=r"model\.ckpt .*wav2vec2\.ckpt, whisper\.ckpt"):
        open_checkpoint(source)
    (source / "wav2vec2.ckpt").unlink()
    assert load_state(source).keys() == network().state_dict().keys()


def test_a_folder_of_several_checkpoints_lists_them(tmp_path):
    speechbrain_folder(tmp_path / "save", network())
    with pytest.raises(InputError, match=r"save: .*\(CKPT\+epoch3\)"):
        open_checkpoint(tmp_path / "save")


def test_an_unpacked_nemo_folder(tmp_path):
    (tmp_path / "m").mkdir()
    torch.save(odd_state(), tmp_path / "m" / "model_weights.ckpt")
    (tmp_path / "m" / "model_config.yaml").write_text("a: 1")
    out = rewrite(tmp_path / "m", tmp_path / "out")
    assert content(out) == content(tmp_path / "m") and listing(out) == ["model_config.yaml", "model_weights.ckpt"]
