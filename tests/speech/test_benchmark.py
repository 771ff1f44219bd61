"""A configured experiment from audio to results on a scenario of tones, and what it refuses."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from doc_cases import example

from asrcl.adapt import load_weights, save_weights
from asrcl.exceptions import InputError
from asrcl.experiment import launch
from asrcl.experiment import run as experiment
from asrcl.experiment.config import load_config
from asrcl.experiment.tuning import search_all, searches
from asrcl.files import read_json
from asrcl.scoring import RunResult
from asrcl.scoring.commands.verify import recount
from asrcl.speech import initial
from asrcl.speech.features import FeatureStore
from asrcl.speech.prepare import data_folder, load_domains, prepare_data, prepare_tokens, tokenizer_path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("ship_initial", ROOT / "tools" / "ship_initial.py")
ship_initial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ship_initial)
METHODS = ["initial", "ft", "fta", "ewc", "ihr"]


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


PENALTIES = ("kfac_ewc", "l2", "mas", "lwf", "lwf_entropy")
PROJECTIONS = ("gpm", "cgalore", "osf", "ogd", "agem")
NEW_PARTS = ("adapters", "packnet", "lora", "olora", "cssvd", "clrl", "frozen", "hybrid", "swa", "regmean_plus_plus")


@pytest.mark.parametrize("name", [*PENALTIES, *PROJECTIONS, "er", "der", "svr", *NEW_PARTS])
def test_methods_run_on_a_conformer(start, name):
    """And end with other weights than plain fine-tuning does."""
    config = start("train.adapt.epochs=3", "train.adapt.schedule=constant")  # penalties pull from the second step on
    experiment.adapt_all(config, ["ft", name], [1], decode=True)
    plain, own = (RunResult.load(config.home / method / "1" / "results.json") for method in ("ft", name))
    assert own.errors[1][1] is not None and own.lengths == [11, 11]
    agrees = name == "agem"  # with so similar tones no gradient works against the memory
    assert (own.stages[1]["model"] == plain.stages[1]["model"]) == agrees


def test_merges_run_on_a_conformer_by_name(start):
    """Those with curvature of both sides, and those that count updates from the initial model."""
    config, names = start("+variants=merges"), ["karcher", "model_stock", "wudi", "fisher", "regmean", "two_sided"]
    experiment.adapt_all(config, ["ft", *names], [1], decode=True)
    found = {name: RunResult.load(config.home / name / "1" / "results.json").stages[1]["model"] for name in ("ft", *names)}
    found.pop("model_stock")  # takes the first update alone whole: plain fine-tuning but for running statistics
    assert len(set(found.values())) == len(found)


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


def test_decoding_a_checkpoint_that_has_adapters(start):
    """As the run decoded the domain, which is not as the shared model does."""
    config = start("train.adapt.learning_rate=0.05")
    experiment.adapt_all(config, ["adapters"], [1], decode=True, save=True)
    place, result = config.home / "adapters" / "1", RunResult.load(config.home / "adapters" / "1" / "results.json")
    found = experiment.decode_checkpoint(config, place / "stage2" / "model.safetensors", "high", "test")
    assert (found.total, found.character_errors) == (result.errors[1][1], result.character_errors[1][1])
    plain = experiment.decode_checkpoint(config, experiment.initial_path(config, 1), "high", "test")
    assert [item.hypothesis for item in plain.items] != [item.hypothesis for item in found.items]


def test_only_what_has_been_learned_may_be_evaluated(start):
    config = start("evaluation.domains=seen")
    experiment.adapt_all(config, ["ft"], [1], decode=True)
    errors = RunResult.load(config.home / "ft" / "1" / "results.json").errors
    assert [[count is not None for count in row] for row in errors] == [[True, False], [True, True]]
    for override in ("evaluation.domains=some", "evaluation.every=0", "evaluation.every=often"):
        name, _, value = override.partition("=")
        with pytest.raises(InputError, match=f"{name}={value}: "):
            experiment.adapt_all(start(override), ["ft"], [1])


def test_a_model_of_other_data_learns_the_first_domain_too(start):
    config = start("+scenario.learn_first=true")
    initial = load_weights(experiment.initial_path(config, 1))
    experiment.adapt_all(config, ["ft"], [1])
    first = load_weights(config.home / "ft" / "1" / "stage1" / "model.safetensors")
    assert any(not torch.equal(value, initial[name]) for name, value in first.items())


def test_a_probe_is_scored_after_every_stage_and_enters_nothing_else(start):
    config = start("scenario=probed")
    prepare_data(config)
    prepare_tokens(config)
    experiment.train(config, 1)
    experiment.adapt_all(config, ["initial", "ft", "separate"], [1], decode=True)
    ft, first, separate = (RunResult.load(config.home / m / "1" / "results.json") for m in ("ft", "initial", "separate"))
    (probe,) = ft.probes
    assert (probe.name, probe.length, ft.domains) == ("probe", 14, ["low", "high"])
    assert all(count is not None for count in probe.errors) and first.probes[0].errors[0] == probe.errors[0]
    assert (config.home / "ft" / "1" / "stage2" / "probe" / "hyp.trn").is_file()
    assert separate.probes == [], "it has no model for what is none of its domains"
    assert "every count agrees" in recount(config.home)
    (config.home / "ft" / "1" / "stage2" / "probe" / "hyp.trn").write_text("x (s0-probe-test-0)\n")
    with pytest.raises(InputError, match="stage2/probe"):
        recount(config.home)


# --- initial models that come with a recipe


@pytest.fixture
def shipped(start, monkeypatch, tmp_path):
    """A configuration whose trained initial model of seed 1 lies in a folder of its recipe."""
    config = start()
    config.tree["scenario"]["initial"] = {"models": "models", "corpus": config.tree["scenario"]["domains"][0]["corpus"]}
    monkeypatch.setattr(initial, "config_folder", lambda: tmp_path / "conf")
    monkeypatch.setattr(ship_initial, "config_folder", lambda: tmp_path / "conf")
    monkeypatch.setattr(ship_initial, "data_folder", lambda config, name: config.home / "data" / "low")
    ship_initial.ship(config, [1])
    return config


def test_a_first_model_that_came_with_the_recipe_is_taken(shipped, tmp_path):
    trained = load_weights(experiment.initial_path(shipped, 1))
    experiment.initial_path(shipped, 1).unlink()
    tokenizer_path(shipped).unlink()
    prepare_tokens(shipped)
    experiment.train(shipped, 1)
    taken = load_weights(experiment.initial_path(shipped, 1))
    assert taken.keys() == trained.keys() and all(value.dtype == trained[name].dtype for name, value in taken.items())
    assert all(torch.equal(value, trained[name].half().float()) for name, value in taken.items() if value.is_floating_point())
    record = read_json(tmp_path / "models" / "models.json")
    assert record["train"]["initial"]["epochs"] == 1 and record["trained"]["1"]["dev_loss"]
    assert "scenario.initial.models=null" in record["command"]


def test_a_seed_that_did_not_come_is_trained_with_the_tokeniser_that_did(shipped, tmp_path):
    tokenizer_path(shipped).write_bytes(b"another")
    prepare_tokens(shipped)
    assert tokenizer_path(shipped).read_bytes() == (tmp_path / "models" / "pieces.model").read_bytes()
    experiment.train(shipped, 2)
    assert "training" in read_json(experiment.initial_path(shipped, 2).with_suffix(".json"))


def test_a_model_that_came_is_not_served_with_another_tokeniser(shipped):
    tokenizer_path(shipped).write_bytes(b"another")
    with pytest.raises(InputError, match=r"pieces.model: .*seed1.safetensors"):
        experiment.train(shipped, 1)


@pytest.mark.parametrize("name", ["seed1.safetensors", "pieces.model"])
def test_a_damaged_first_model_is_refused_with_the_remedy(shipped, tmp_path, name):
    path = tmp_path / "models" / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"models/{name}: .*--train-initial"):
        prepare_tokens(shipped)
        experiment.train(shipped, 1)


@pytest.mark.parametrize(
    "path, word",
    [
        ("model.feed_forward", r"model.feed_forward=20: the trained initial models in .*models were made with 24"),
        ("scenario.tokens.size", r"scenario.tokens.size=20: the trained initial models in .* were made with 40"),
        ("scenario.features.bins", r"scenario.features.bins=20: the trained"),
    ],
)
def test_first_models_that_were_made_with_other_settings_are_refused(shipped, path, word):
    with pytest.raises(InputError, match=f"{word}.*--train-initial"):
        experiment.train(shipped.changed({path: 20}), 1)


def test_a_training_that_is_not_going_to_be_is_refused(shipped):
    asked = replace(shipped, overrides=(*shipped.overrides, "train.initial.epochs=3"))
    with pytest.raises(InputError, match=r"train.initial.epochs: .*models"):
        experiment.train(asked, 1)
    experiment.train(shipped.changed({"model.dropout": 0.3}), 1)


def test_where_the_models_were_not_installed_one_is_trained(start, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(initial, "config_folder", lambda: tmp_path / "conf")
    config = start()
    config.tree["scenario"]["initial"] = {"models": "nowhere", "corpus": config.tree["scenario"]["domains"][0]["corpus"]}
    experiment.train(config, 2)
    assert "no trained initial models there" in caplog.text
    assert "training" in read_json(experiment.initial_path(config, 2).with_suffix(".json"))


# --- parts of a domain


def test_two_corpora_of_one_domain_that_share_ids_keep_all_utterances(tones, tmp_path):
    config = load_config(tones.overrides(tmp_path / "exp"))
    low = config.tree["scenario"]["domains"][0]
    low["corpus"] = [*low["corpus"], {**low["corpus"][0]}]
    prepare_data(config, ["low"])
    store = FeatureStore(config.home / "data" / "low" / "features")
    ids = [row["id"] for split in ("train", "dev", "test") for row in store.rows(split)]
    assert len(ids) == len(set(ids)) == 6 + 2 + 3 + 6
    assert not (config.home / "data" / "low" / "broken.tsv").exists()


def test_a_topic_that_does_not_exist_is_refused_before_any_corpus_is_made(tmp_path):
    config = load_config(["scenario=accents_quick", f"exp={tmp_path}"])
    config.tree["scenario"]["domains"][4]["corpus"]["topic"] = "sports"
    with pytest.raises(InputError, match=r"domain WMI: topic .sports.: .*home"):
        prepare_data(config)
    assert not list(tmp_path.iterdir())


def test_methods_that_share_a_fine_tune_do_not_start_side_by_side(start):
    config = start()
    built = {name: experiment.configured_method(config, name) for name in ("initial", "ft", "fta", "ewc", "ihr")}
    order = experiment._apart(built)
    assert sorted(order) == sorted(built) and order[:3] == ["ihr", "ewc", "initial"]
    config = start("+variants=beyond")
    names = ("initial", "ft", "separate", "separate_selected", "lora_per_domain", "lora_calibrated", "lora_selected")
    order = experiment._apart({name: experiment.configured_method(config, name) for name in names})
    assert order[:4] == ["lora_selected", "separate_selected", "ft", "initial"] and sorted(order) == sorted(names)


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
    """A pool in each of them would start runs in different orders and wait for each other without end."""
    monkeypatch.setattr("asrcl.distributed.processes", lambda: SimpleNamespace(count=2))
    monkeypatch.setattr(launch, "ProcessPoolExecutor", None)
    config = start("launcher.jobs=4")
    runs = [(config, number) for number in (1, 2, 3)]
    assert launch.in_jobs(config, lambda _, number: 10 * number, runs) == [10, 20, 30]


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda config: experiment.adapt_all(config, ["ft", "magic"], [1]), "method magic: not in the configuration"),
        (lambda config: experiment.adapt_all(config, [], [1]), "at least one method"),
        (lambda config: experiment.adapt_all(config, ["ft"], [7]), "initial/7/model.safetensors: no such checkpoint"),
        (lambda config: searches(config, ["ft"], {"magic": [1]}), "method ft: no option magic"),
        (lambda config: searches(config, ["ft"], {"train.adapt.magic": [1]}), "adapt.magic: no such option; train.adapt has e"),
        (lambda config: searches(config, ["ft"], {"scenario.seed": [1]}), "scenario.seed: nothing that is searched depends"),
        (lambda config: searches(config, ["ft"], {"name": ["fta"]}), "name: is no option of a method"),
        (lambda config: searches(config, ["ft"], {"train.adapt.epochs": 3}), "train.adapt.epochs=3: give a list of values"),
        (lambda config: searches(config, ["ft"], {"train.adapt.epochs": ["x"]}), "train.adapt.epochs=x: expected"),
        (lambda config: searches(config, ["ft"], {"magic": [1]}), "method ft: no option magic"),
        (lambda config: searches(config, ["ft"], {"decode.kind": ["x"], "launcher.jobs": [1]}), "launcher.jobs: nothing"),
        (lambda config: searches(config, ["initial"]), "method initial: search.methods has no space for it; it has ft, fta"),
        (lambda config: search_all(config, [], [1], "best"), "--protocol best: choose first or sequence"),
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
        with pytest.raises(InputError, match=r"model.safetensors: .*tensors differ"):
            call()
    state = load_weights(path)
    save_weights({f"module.{name}": value for name, value in state.items()}, path)
    with pytest.raises(InputError, match=r"model\.safetensors has \d+ bytes, .* or remove model\.json"):
        experiment.decode_checkpoint(config, path, "low")
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"model.safetensors: .*tensors differ"):
        experiment.decode_checkpoint(config, path, "low")


@pytest.mark.parametrize(
    "override, word",
    [
        ("+model.wings=2", "wings"),
        ("model.width=15", "width (15)"),
        ("methods.ihr.curvature=median", "median"),
        ("train.adapt.optimizer=rmsprop", "train.adapt.optimizer=rmsprop"),
        ("+methods.ft.strength=3", "method ft: "),
    ],
)
def test_settings_that_do_not_exist_are_refused(override, word, start):
    with pytest.raises(InputError) as refusal:
        experiment.adapt_all(start(override), ["ft", "ihr"], [1])
    assert word in str(refusal.value)


def test_training_needs_data_and_tokens(tones, tmp_path):
    config = load_config(tones.overrides(tmp_path))
    with pytest.raises(InputError, match="data stage"):
        prepare_tokens(config)
    with pytest.raises(InputError, match="tokens stage"):
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


def test_the_scenario_of_the_page_on_adapting_is_prepared(tones, tmp_path, monkeypatch):
    (tmp_path / "my_conf" / "scenario").mkdir(parents=True)
    (tmp_path / "my_conf" / "scenario" / "mine.yaml").write_text(example("mine.yaml"))
    shutil.copytree(tones.data / "low", tmp_path / "data" / "office")
    for split in ("train", "dev", "test"):
        lines = (tones.data / "high" / split / "text").read_text().splitlines()
        rows = [
            {"audio_filepath": str(tones.data / "high" / split / f"{name}.wav"), "text": text, "duration": 0.5}
            for name, text in (line.split(maxsplit=1) for line in lines)
        ]
        (tmp_path / f"phone_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    config = load_config(["config_dir=my_conf", "scenario=mine"])
    prepare_data(config)
    sizes = {name: len(FeatureStore(data_folder(config, name) / "features").rows("train")) for name in ("office", "phone")}
    assert sizes == {"office": 6, "phone": 6}


def test_a_model_of_another_benchmark_is_refused_in_one_line(tmp_path):
    config = load_config(["scenario=accents_quick", "model=mlp", f"exp={tmp_path}"])
    with pytest.raises(InputError, match=r"model\.kind=mlp.*conformer") as caught:
        initial.shipped_models(config)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_is_not_there_is_missed_before_any_work(tmp_path):
    given = ["+scenario.initial.checkpoint=/nowhere.safetensors", "scenario.initial.models=null"]
    config = load_config(["scenario=accents_quick", f"exp={tmp_path}", *given])
    with pytest.raises(InputError, match=r"checkpoint=/nowhere\.safetensors"):
        experiment.check_runs(config, ["ft"])
    assert not list(tmp_path.iterdir())
