"""A configured experiment from audio to results on a scenario of tones, and what it refuses."""

import shutil
from types import SimpleNamespace

import pytest

from asrcl.adapt import load_state, save_state
from asrcl.exceptions import InputError
from asrcl.files import read_json
from asrcl.scoring import RunResult
from asrcl.speech import experiment
from asrcl.speech.config import load_config
from asrcl.speech.prepare import load_domains, prepare_data, prepare_tokens, tokenizer_path

METHODS = ["initial", "ft", "fta", "ewc", "ihr"]


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory):
    """The folder of an experiment whose initial model is there; read only."""
    exp = tmp_path_factory.mktemp("exp")
    config = load_config(tones.overrides(exp))
    prepare_data(config)
    prepare_tokens(config)
    experiment.train(config, 1)
    return exp


@pytest.fixture
def start(trained, tones, tmp_path):
    """A copy of it, and its configuration: (*overrides)."""
    shutil.copytree(trained, tmp_path / "exp")

    def configure(*overrides):
        return load_config(tones.overrides(tmp_path / "exp", *overrides))

    return configure


def cached(config):
    return {path: path.stat().st_mtime_ns for path in (config.home / "cache").glob("*/*/*.*")}


def test_all_methods_adapt_and_a_second_time_costs_nothing(start):
    config = start()
    experiment.adapt_all(config, METHODS, [1], "typed", decode=True)
    paths = [config.home / method / "1" / "results.json" for method in METHODS]
    first, work = [path.read_bytes() for path in paths], cached(config)
    for method, path in zip(METHODS, paths, strict=True):
        result = RunResult.load(path)
        assert (result.scenario, result.method, result.seed, result.command) == ("tones", method, 1, "typed")
        assert result.domains == ["low", "high"] and result.lengths == [11, 11]
        assert all(count is not None for row in result.errors for count in row) or method == "initial"
        assert result.config["scenario"]["name"] == "tones" and "scenario=tones" in result.config["overrides"]
    experiment.adapt_all(config, METHODS, [1], "typed", decode=True)
    assert [path.read_bytes() for path in paths] == first and cached(config) == work


def test_adapting_first_and_decoding_later_gives_the_same(start):
    config = start()
    experiment.adapt_all(config, ["ft"], [1])
    assert not (config.home / "ft" / "1" / "results.json").exists()
    work = cached(config)
    experiment.adapt_all(config, ["ft"], [1], decode=True)
    assert {path: time for path, time in cached(config).items() if path in work} == work
    assert RunResult.load(config.home / "ft" / "1" / "results.json").errors[1][1] is not None
    assert (config.home / "ft" / "1" / "stage2" / "model.safetensors").is_file()


def test_a_changed_setting_trains_again(start):
    experiment.adapt_all(start(), ["ft"], [1])
    before = cached(start())
    config = start("train.adapt.learning_rate=7e-3")
    experiment.adapt_all(config, ["ft"], [1])
    assert len(cached(config)) > len(before)


def test_decoding_a_checkpoint(start):
    config = start()
    errors = experiment.decode_checkpoint(config, experiment.initial_path(config, 1), "high", "dev")
    assert len(errors) == 2 and errors.length > 0


def test_tuning_writes_a_table(start):
    config = start()
    rows = experiment.tune_method(config, "fta", {"strength": [0.1, 0.9]}, [1])
    assert [set(row) for row in rows] == [{"strength", "old", "new", "average"}] * 2
    assert rows[0]["average"] <= rows[1]["average"]
    assert read_json(config.home / "tuning" / "fta.json")["rows"] == rows


def test_tokens_are_trained_once(start):
    config = start()
    path = tokenizer_path(config)
    before = path.stat().st_mtime_ns
    prepare_tokens(config)
    assert path.stat().st_mtime_ns == before
    prepare_tokens(start("scenario.tokens.size=39"))
    assert path.stat().st_mtime_ns != before
    path.write_bytes(b"damaged")
    assert len(prepare_tokens(config)) > 30


def test_broken_utterances_are_listed_and_left_out(tones, tmp_path):
    shutil.copytree(tones.data, tmp_path / "data")
    (tmp_path / "data" / "low" / "train" / "s0-low-train-0.wav").write_bytes(b"")
    more = [f"data_dir={tmp_path / 'data'}", "+scenario.text.max_broken_share=0.2"]
    config = load_config(tones.overrides(tmp_path / "exp", *more))
    prepare_data(config, ["low"])
    listed = (config.home / "data" / "low" / "broken.tsv").read_text().splitlines()
    assert len(listed) == 2 and listed[1].startswith("s0-low-train-0\t")
    assert not (config.home / "data" / "high").exists()
    prepare_data(config)
    prepare_tokens(config)
    assert load_domains(config)[0].size("train") == 5


def test_processes_of_one_torchrun_stay_together(start, monkeypatch):
    """A pool in each of them would start runs in different orders and wait for ever."""
    monkeypatch.setattr(experiment, "Processes", lambda: SimpleNamespace(count=2))
    monkeypatch.setattr(experiment, "ProcessPoolExecutor", None)
    config = start("launcher.jobs=4")
    runs = [(config, number) for number in (1, 2, 3)]
    assert experiment._in_jobs(config, lambda _, number: 10 * number, runs) == [10, 20, 30]


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda config: experiment.adapt_all(config, ["ft", "magic"], [1]), "method magic: not in the configuration"),
        (lambda config: experiment.adapt_all(config, [], [1]), "at least one method"),
        (lambda config: experiment.adapt_all(config, ["ft"], [7]), "initial/7/model.safetensors: no such checkpoint"),
        (lambda config: experiment.tune_method(config, "ft", {"magic": [1]}, [1]), "method ft: "),
        (lambda config: experiment.decode_checkpoint(config, config.home / "none", "high"), "no such checkpoint"),
        (
            lambda config: experiment.decode_checkpoint(config, experiment.initial_path(config, 1), "middle"),
            "domain middle: not in this scenario; it has low, high",
        ),
        (lambda config: prepare_data(config, ["middle"]), "domain middle: not in this scenario; it has low, high"),
    ],
)
def test_what_is_not_there_is_named(call, word, start):
    config = start()
    with pytest.raises(InputError) as refusal:
        call(config)
    assert word in str(refusal.value)
    assert not (config.home / "ft").exists()


def test_a_checkpoint_of_another_model_is_refused(start):
    config = start()
    path = experiment.initial_path(config, 1)
    other = start("model.width=32")
    for call in (
        lambda: experiment.decode_checkpoint(other, path, "low"),
        lambda: experiment.adapt_all(other, ["ft"], [1]),
    ):
        with pytest.raises(InputError, match=r"model.safetensors: not a checkpoint of this model"):
            call()
    state = load_state(path)
    save_state({f"module.{name}": value for name, value in state.items()}, path)
    with pytest.raises(InputError, match=r"not a checkpoint of this model"):
        experiment.decode_checkpoint(config, path, "low")


@pytest.mark.parametrize(
    "override, word",
    [
        ("+model.wings=2", "wings"),
        ("model.width=15", "width (15)"),
        ("methods.ihr.curvature=median", "median"),
        ("train.adapt.optimizer=sgd", "train.adapt.optimizer=sgd"),
        ("+methods.ft.strength=3", "method ft: "),
    ],
)
def test_settings_that_do_not_exist_are_refused(override, word, start):
    with pytest.raises(InputError) as refusal:
        experiment.adapt_all(start(override), ["ft", "ihr"], [1])
    assert word in str(refusal.value)


def test_training_needs_data_and_tokens(tones, tmp_path):
    config = load_config(tones.overrides(tmp_path))
    with pytest.raises(InputError, match="run the data stage"):
        prepare_tokens(config)
    with pytest.raises(InputError, match="run the tokens stage"):
        experiment.train(config, 1)


@pytest.mark.parametrize(
    "corpus, word",
    [
        ("{kind: synthetic, acent: US}", "it takes domain, accent"),
        ("{kind: synthetic, accent: US, sizes: {train: 1}}", "seed"),
        ("{kind: tape, folder: x}", "kind 'tape': not known"),
        ("{kind: kaldi}", "missing a required argument: 'folder'"),
        ("{kind: kaldi, folder: '${data_dir}/none'}", "none/wav.scp: cannot be read"),
    ],
)
def test_a_corpus_that_cannot_be_loaded_is_refused(corpus, word, tones, tmp_path):
    (tmp_path / "scenario").mkdir()
    (tmp_path / "scenario" / "bad.yaml").write_text(f"name: bad\ndomains: [{{name: one, corpus: {corpus}}}]\n")
    config = load_config([f"config_dir={tmp_path}", "scenario=bad", f"exp={tmp_path}", f"data_dir={tones.data}"])
    with pytest.raises(InputError) as refusal:
        prepare_data(config)
    assert word in str(refusal.value)


def test_recorded_corpora_ask_for_their_folder(tmp_path):
    with pytest.raises(InputError, match="data_dir=FOLDER"):
        prepare_data(load_config(["scenario=real_speech", f"exp={tmp_path}"]))
