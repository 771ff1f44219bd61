"""A pretrained model goes through a whole experiment with nothing but a configuration value; what comes out fits its folder."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from asrcl.exceptions import InputError
from asrcl.experiment import run
from asrcl.experiment.config import load_config
from asrcl.experiment.registry import benchmark_of
from asrcl.scoring import RunResult

transformers = pytest.importorskip("transformers")


def configure(tones, exp, folder, *overrides):
    own = ["scenario=probed", "model=pretrained", f"model.pretrained={folder}", "decode=greedy", "train.augment=null"]
    return load_config([*tones.overrides(exp), *own, "train.adapt.learning_rate=1e-3", *overrides])


def prepare(config):
    for stage in ("data", "tokens"):
        benchmark_of(config.tree).prepare(config, stage)


def test_whisper_goes_through_a_whole_experiment(tones, tmp_path, whisper_folder):
    config = configure(tones, tmp_path / "exp", whisper_folder)
    prepare(config)
    run.train_all(config, [1])
    run.adapt_all(config, ["ft", "ihr", "lora", "frozen", "hybrid"], [1], decode=True)
    stored = load_file(whisper_folder / "model.safetensors")
    initial = run.build_scenario(config, 1).initial
    assert all(torch.equal(initial[name], stored[name]) for name in stored)  # taken as it is
    for method in ("ft", "ihr", "lora", "frozen", "hybrid"):
        result = RunResult.load(config.home / method / "1" / "results.json")
        assert result.config["model"] == {"kind": "pretrained", "pretrained": str(whisper_folder), "context": None}
        assert all(count is not None for row in result.errors for count in row)
    run.adapt_all(config, ["ft"], [1])
    adapted = load_file(config.home / "ft" / "1" / "stage2" / "model.safetensors")
    assert {name: value.shape for name, value in adapted.items()} == {name: value.shape for name, value in stored.items()}
    moved = {name for name in stored if not torch.equal(adapted[name], stored[name])}
    assert "model.decoder.embed_tokens.weight" in moved and "model.encoder.embed_positions.weight" not in moved


def test_a_shorter_window_is_learned_first(tones, tmp_path, whisper_folder):
    config = configure(tones, tmp_path / "exp", whisper_folder, "model.context=1", "train.initial.schedule=constant")
    prepare(config)
    with pytest.raises(InputError, match=r"model\.context=1: .*scenario\.initial\.train"):
        run.train_all(config, [1])
    config.tree["scenario"]["initial"] = {"train": {"epochs": 1}}
    run.train_all(config, [1])
    stored = load_file(whisper_folder / "model.safetensors")
    initial = run.build_scenario(config, 1).initial
    assert any(not torch.equal(initial[name], stored[name]) for name in stored)


def test_what_the_window_cannot_hold_is_listed_or_refused_never_cut(tones, tmp_path, whisper_folder):
    slow = "+scenario.features.speeds=[0.3]"  # stretches what lasts 0.6 s to the two seconds of the window
    with pytest.raises(InputError, match=r"s long, the model sees 0\.6; .*raise model\.context"):
        prepare(configure(tones, tmp_path / "exp", whisper_folder, slow))
    config = configure(tones, tmp_path / "exp", whisper_folder, slow, "+scenario.text.max_broken_share=0.6")
    prepare(config)
    assert "the model sees 0.6" in (config.home / "data" / "low" / "broken.tsv").read_text()


def test_domains_of_several_languages(tones, tmp_path, multilingual_folder):
    config = configure(tones, tmp_path / "exp", multilingual_folder, "+model.language={low: en, high: de}")
    prepare(config)
    with pytest.raises(InputError, match=r"model\.language: says nothing of probe"):
        run.train_all(config, [1])
    config = configure(tones, tmp_path / "exp", multilingual_folder, "+model.language={low: en, high: de, probe: en}")
    run.train_all(config, [1])
    run.adapt_all(config, ["er", "ihr"], [1], decode=True)
    assert not next(iter(run.build_scenario(config, 1).domains[0].batches("test", shuffle=False, seed=0))).mixable


def test_frozen_parts_stay_as_they_are(tones, tmp_path, whisper_folder):
    config = configure(tones, tmp_path / "exp", whisper_folder, "train.adapt.freeze=['model.encoder.*']")
    prepare(config)
    run.train_all(config, [1])
    run.adapt_all(config, ["ft"], [1])
    stored, adapted = (
        load_file(path)
        for path in (whisper_folder / "model.safetensors", config.home / "ft" / "1" / "stage2" / "model.safetensors")
    )
    moved = {name for name in stored if not torch.equal(adapted[name], stored[name])}
    assert moved and all(name.startswith("model.decoder.") for name in moved)
    with pytest.raises(InputError, match=r"train\.freeze=encoder\.\*: matches no parameter"):
        run.adapt_all(configure(tones, tmp_path / "exp", whisper_folder, "train.adapt.freeze=['encoder.*']"), ["ft"], [1])
    with pytest.raises(InputError, match="leaves nothing to train"):
        run.adapt_all(configure(tones, tmp_path / "exp", whisper_folder, "train.adapt.freeze=['*']"), ["ft"], [1])


def test_a_checkpoint_of_another_model_is_refused(tones, tmp_path, whisper_folder):
    save_file({"model.encoder.conv1.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    config = configure(tones, tmp_path / "exp", whisper_folder)
    config.tree["scenario"]["initial"] = {"checkpoint": str(tmp_path / "other.safetensors")}
    prepare(config)
    with pytest.raises(InputError, match=r"other\.safetensors: not a checkpoint of this model"):
        run.train_all(config, [1])
