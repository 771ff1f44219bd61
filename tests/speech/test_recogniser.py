"""Recognisers are exchangeable: the linear CTC model of docs/adapt.md goes through a scenario; what is unknown is refused."""

import pytest
import torch
from doc_cases import example

from asrcl.adapt import save_weights
from asrcl.exceptions import InputError
from asrcl.experiment import run
from asrcl.experiment.config import load_config
from asrcl.experiment.initial import initial_path
from asrcl.experiment.registry import benchmark_of
from asrcl.files import hash_file, read_json
from asrcl.scoring import RunResult
from asrcl.speech.model import ConformerASR
from asrcl.speech.prepare import open_tokenizer
from asrcl.speech.recogniser import Recogniser, recogniser_of
from asrcl.speech.task import RecognitionTask


@pytest.fixture
def linear(tones, tmp_path, monkeypatch):
    """Makes a configuration whose model is the plugin's: (*overrides)."""
    (tmp_path / "linear_plugin.py").write_text(example("linear_plugin.py"))
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "linear.yaml").write_text("kind: linear_ctc\nbias: true\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in tones.conf.glob("*/*.yaml"):
        target = tmp_path / "conf" / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text())

    def configure(*overrides):
        own = [f"config_dir={tmp_path / 'conf'}", "model=linear", "imports=[linear_plugin]"]
        return load_config(tones.overrides(tmp_path / "exp", *own, *overrides))

    return configure


def test_a_model_of_a_plugin_goes_through_a_whole_experiment(linear):
    config = linear("launcher.jobs=2")
    for stage in ("data", "tokens"):
        benchmark_of(config.tree).prepare(config, stage)
    run.train_all(config, [1])
    run.adapt_all(config, ["ft", "ihr"], [1], decode=True)
    for method in ("ft", "ihr"):
        result = RunResult.load(config.home / method / "1" / "results.json")
        assert result.config["model"] == {"kind": "linear_ctc", "bias": True}
        assert all(count is not None for row in result.errors for count in row)
    scenario = run.build_scenario(config, 1)
    assert scenario.model_config == {"kind": "linear_ctc", "bias": True} and set(scenario.initial) == {"head.weight", "head.bias"}


def test_initial_weights_may_be_those_of_a_checkpoint(linear, tmp_path):
    config = linear()
    for stage in ("data", "tokens"):
        benchmark_of(config.tree).prepare(config, stage)
    vocabulary = len(open_tokenizer(config))
    path = tmp_path / "weights.safetensors"
    state = {"head.weight": torch.full((vocabulary, 8), 2.0), "head.bias": torch.zeros(vocabulary)}
    save_weights(state, path)
    config.tree["scenario"]["initial"] = {"checkpoint": str(path)}
    run.train(config, 1)
    initial = run.build_scenario(config, 1).initial
    assert all(torch.equal(initial[name], value) for name, value in state.items())
    record = read_json(initial_path(config, 1).with_suffix(".json"))
    assert record["source"] == str(path) and record["hash"] == hash_file(path)
    save_weights({"head.weight": torch.ones(3, 3)}, path)
    with pytest.raises(InputError, match=r"weights\.safetensors: .*2 tensors differ"):
        run.train(config, 1)


def test_an_unknown_model_and_an_unknown_option_are_refused_with_those_there_are(linear):
    config = linear()
    for stage in ("data", "tokens"):
        benchmark_of(config.tree).prepare(config, stage)
    config.tree["model"] = {"kind": "quadratic"}
    with pytest.raises(InputError, match=r"model\.kind=quadratic: .*conformer, .*linear_ctc"):
        run.train(config, 1)
    config.tree["model"] = {"kind": "linear_ctc", "depth": 3}
    with pytest.raises(InputError, match=r"^model: .*depth"):
        run.train(config, 1)


def test_a_module_that_is_no_recogniser_is_refused(tokenizer, make_batch):
    with pytest.raises(InputError, match=r"model Linear: lacks loss, transcribe"):
        RecognitionTask(tokenizer).padding(torch.nn.Linear(2, 2), make_batch([20]))


def test_the_conformer_is_a_recogniser(make_model):
    model = make_model()
    assert isinstance(model, Recogniser) and recogniser_of(model) is model
    assert ConformerASR.describe(width=3, dropout=0.1) == {"width": 3, "dropout": 0.1}


@torch.no_grad()
def test_outputs_have_masks_of_what_is_real_and_distil(make_model, make_batch, tokenizer):
    model, other, batch = make_model(), make_model(width=32), make_batch([61, 27])
    task = RecognitionTask(tokenizer, ctc_weight=0.3)
    outputs = task.outputs(model, batch)
    assert [mask.sum(1).tolist() for mask in outputs.masks] == [[16, 7], [6, 3]]
    assert all(logits.shape[:2] == mask.shape for logits, mask in zip(outputs.logits, outputs.masks, strict=True))
    distance = task.distillation(outputs, task.outputs(other, batch), 2.0)
    assert distance > 0 and task.distillation(outputs, outputs, 2.0) == 0
    alone = [task.distillation(task.outputs(model, item), task.outputs(other, item), 2.0) for item in batch.items()]
    torch.testing.assert_close(distance, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)
    single = task.outputs(make_model(decoder_layers=0), batch)
    assert len(single.logits) == 1 and task.distillation(single, single, 1.0) == 0
