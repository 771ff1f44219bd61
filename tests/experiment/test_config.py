"""The configuration: every shipped file composes, a user's own is found, mistakes are named in one line."""

import inspect
import re
from dataclasses import dataclass

import pytest
import torch
import yaml

from asrcl.adapt import CurvatureConfig, TrainConfig
from asrcl.curvature import EstimateOptions
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config, config_folder, load_config
from asrcl.experiment.run import configured_method
from asrcl.experiment.tuning import searches
from asrcl.images.models import build_classifier
from asrcl.merge import methods as merge_methods
from asrcl.methods import build_method
from asrcl.search import grid
from asrcl.speech.corpora import CORPORA
from asrcl.speech.decoding import DecodeConfig
from asrcl.speech.features import FeatureConfig
from asrcl.speech.model import ConformerASR
from asrcl.speech.prepare import TokenConfig
from asrcl.speech.task import SpecAugmentConfig

OWN = """
name: mine
features: {bins: 8}
domains:
  - {name: home, corpus: {kind: kaldi, folder: "${data_dir}/home"}}
"""


def shipped(group):
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def refusal(*overrides):
    with pytest.raises(InputError) as caught:
        load_config(list(overrides))
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("name", shipped("scenario"))
def test_every_scenario_composes(name):
    config = load_config([f"scenario={name}", "data_dir=/data"])
    scenario = config.tree["scenario"]
    assert scenario["name"] == name == config.home.name
    assert len(scenario["domains"]) >= 2
    if scenario.get("benchmark") == "images":  # which chooses the groups that go with it
        assert config.tree["model"]["kind"] in ("mlp", "lenet", "alexnet_small") and config.tree["train"]["batch_size"] == 32
        return
    for domain in scenario["domains"]:
        assert domain["corpus"]["kind"] in {*CORPORA, "synthetic"}
    assert config.settings(FeatureConfig, "scenario", "features").size > 0


@pytest.mark.parametrize("name", shipped("train"))
def test_every_training_composes(name):
    config = load_config([f"train={name}", *(["scenario=permuted_digits"] if name == "images" else [])])
    for part in ("initial", "adapt"):
        assert config.settings(TrainConfig, "train", part).epochs >= 1
    if config.tree["train"]["augment"]:
        config.settings(SpecAugmentConfig, "train", "augment")


@pytest.mark.parametrize("name", [name for name in shipped("model") if not name.startswith("pretrained")])  # that is fetched
def test_every_model_composes(name):
    settings = load_config([f"model={name}"]).tree["model"]
    with torch.device("meta"):
        if "kind" in settings:
            assert len(build_classifier(settings, (3, 32, 32), {"": 10}).heads) == 1
        else:
            assert ConformerASR(80, 100, **settings).attention_head is not None


@pytest.mark.parametrize("name", ["real_speech", "digits_accents", "commonvoice", "libri_adapt"])
def test_the_training_of_a_scenario_is_its_own_choice_which_leaves_a_search_its_word(name):
    """What a recipe types stands above what a search chose for a method; what the scenario chooses does not."""
    config = load_config([f"scenario={name}", "data_dir=/data", "+methods.ft.run.train.adapt.learning_rate=7e-4"])
    assert config.tree["train"] != load_config().tree["train"]
    for_ft, _ = configured_method(config, "ft")
    assert for_ft.settings(TrainConfig, "train", "adapt").learning_rate == 7e-4
    recipes = config_folder().parent / "recipes"
    lines = "\n".join(path.read_text() for path in recipes.glob("*/run.sh") if path.parent.name in (name, "real_speech"))
    assert not re.search(r"^(run_recipe|settings=).*\b(model|train|decode)=", lines, re.MULTILINE)


def test_what_is_typed_goes_before_what_a_scenario_chooses():
    assert load_config(["scenario=permuted_digits", "model=lenet"]).tree["model"]["kind"] == "lenet"
    assert "kind" not in load_config(["scenario=accents_quick"]).tree["model"]


@pytest.mark.parametrize("name", shipped("decode"))
def test_every_decoding_composes(name):
    assert name.startswith(load_config([f"decode={name}"]).settings(DecodeConfig, "decode").kind)


def test_defaults_compose_with_all_methods():
    config = load_config()
    config.settings(CurvatureConfig, "curvature")
    assert set(config.tree["methods"]) == set(shipped("method"))
    for options in config.tree["methods"].values():
        own = {key: value for key, value in options.items() if key not in ("name", "run", "label", "chosen")}
        build_method(options["name"], **own)


def test_what_was_chosen_is_told_as_changed_where_something_of_it_is_typed():
    def chosen(*overrides):
        methods = load_config(overrides).tree["methods"]
        return {name: methods[name].get("chosen") for name in ("ewc", "ihr", "lora_selected", "si")}

    search = "sequence, 6 settings, seeds 1"
    assert chosen() == {"ewc": search, "ihr": search, "lora_selected": "as lora_per_domain", "si": None}
    typed = chosen("methods.ewc.strength=7", "+methods.ihr.label=mine")
    assert (typed["ewc"], typed["ihr"]) == (f"{search}, changed", search)
    assert chosen("train.adapt.epochs=4")["ihr"] == f"{search}, changed"
    assert chosen("tuned=none")["ihr"] is None and chosen("decode=ctc_greedy")["ihr"] == search


def test_what_was_chosen_is_told_as_changed_where_a_file_of_variants_has_options_of_it(tmp_path):
    (tmp_path / "tuned").mkdir()
    told = "{name: ft, merge: slerp, chosen: 'first, 2 settings, seeds 1'}"
    (tmp_path / "tuned" / "mine.yaml").write_text(f"# @package _global_\nmethods: {{slerp: {told}, own: {told}}}\n")

    def chosen(*overrides):
        methods = load_config([f"config_dir={tmp_path}", "tuned=mine", *overrides]).tree["methods"]
        return {name: methods[name]["chosen"] for name in ("slerp", "own")}

    search = "first, 2 settings, seeds 1"
    assert chosen() == {"slerp": search, "own": search}
    for typed in ("+variants=merges", "+variants=[tradeoff,merges]"):
        assert chosen(typed) == {"slerp": f"{search}, changed", "own": search}
    beyond = load_config(["+variants=beyond"]).tree["methods"]
    assert beyond["lora_calibrated"]["chosen"] == "as lora_per_domain"


def test_a_method_like_another_takes_what_was_chosen_for_that():
    like = "+methods.mine={like: ewc, mode: sum}"
    tree = load_config([like, "methods.ewc.strength=7", "+methods.ewc.run={train: {adapt: {epochs: 2}}}"]).tree
    assert tree["methods"]["mine"] == {**tree["methods"]["ewc"], "mode": "sum", "chosen": "as ewc, changed"}
    own = "+methods.mine={like: ewc, run: {keep: 'probe:+1', train: {adapt: {learning_rate: 3e-5}}}}"
    tree = load_config([own, "+methods.ewc.run={train: {adapt: {epochs: 2}}}"]).tree
    theirs = tree["methods"]["ewc"]["run"]
    train = {"adapt": {**theirs["train"]["adapt"], "learning_rate": 3e-5}}
    assert tree["methods"]["mine"]["run"] == {**theirs, "keep": "probe:+1", "train": train}
    assert train["adapt"]["epochs"] == 2 and theirs["train"]["adapt"].get("learning_rate") != 3e-5 and "keep" not in theirs


@pytest.mark.parametrize("like", ["nobody", "other"])
def test_a_method_like_one_that_has_no_options_of_its_own(like):
    with pytest.raises(InputError, match=rf"methods\.mine\.like={like}: no method of the configuration"):
        load_config(["+methods.other={like: ewc}", f"+methods.mine={{like: {like}}}"])


@pytest.mark.parametrize("name", ["ihr", "laplace"])
def test_library_methods_and_configuration_have_the_same_defaults(name):
    options = load_config(["tuned=none"]).tree["methods"][name]
    defaults = {key: entry.default for key, entry in inspect.signature(type(build_method(name))).parameters.items()}
    assert {**options, "layers": tuple(options["layers"])} == {"name": name, **defaults}
    knobs = merge_methods()[name].knobs
    assert {key: options[key] for key in knobs} == knobs
    assert load_config(["tuned=none"]).tree["curvature"]["fisher"] == EstimateOptions().fisher


def test_the_settings_of_the_paper_have_a_name():
    config, method = configured_method(load_config(), "ihr_paper")
    assert method.options | {"tau": 1.0, "damping": 1e-3, "damping_kind": "absolute", "rest": "1/t"} == method.options
    assert config.tree["curvature"]["fisher"] == "empirical"


def test_overrides_arrive_and_the_last_one_counts():
    config = load_config(["train.adapt.epochs=3", "train=quick", "train=cpu", "train.adapt.epochs=8", "methods.ihr.tau=2"])
    assert config.tree["train"]["adapt"]["epochs"] == 8
    assert config.tree["train"]["max_items"] == load_config().tree["train"]["max_items"]
    assert config.tree["methods"]["ihr"]["tau"] == 2
    assert "train=quick" in config.overrides


def test_a_folder_of_own_files_is_found(tmp_path):
    folder = tmp_path / "my conf, (1)"
    (folder / "scenario").mkdir(parents=True)
    (folder / "scenario" / "mine.yaml").write_text(OWN)
    (folder / "scenario" / "variant.yaml").write_text("defaults: [accents, _self_]\nname: variant\ntopics: false\n")
    config = load_config([f"config_dir={folder}", "scenario=mine", "data_dir=/data", "exp=out"])
    assert config.tree["scenario"]["domains"][0]["corpus"]["folder"] == "/data/home"
    assert str(config.home) == "out/mine"
    assert config.settings(FeatureConfig, "scenario", "features") == FeatureConfig(bins=8)
    assert config.settings(TokenConfig, "scenario", "tokens") == TokenConfig()
    variant = load_config(["scenario=variant", f"config_dir={folder}"]).tree["scenario"]
    assert variant["topics"] is False and len(variant["domains"]) == 5


def own(tmp_path, text):
    (tmp_path / "scenario").mkdir()
    (tmp_path / "scenario" / "mine.yaml").write_text(text)
    return refusal(f"config_dir={tmp_path}", "scenario=mine")


@pytest.mark.parametrize("key", ["name", "domains"])
def test_an_own_scenario_that_lacks_something_is_refused(key, tmp_path):
    content = yaml.safe_load(OWN)
    del content[key]
    assert "lacks a name or its domains" in own(tmp_path, yaml.safe_dump(content))


@pytest.mark.parametrize(
    "domains, word",
    [
        ("{home: x}", "not a list"),
        ("[home]", "entry 1"),
        ("[{name: a, corpus: {kind: kaldi}}, {name: b}]", "entry 2"),
        ("[{name: a, corpus: {folder: x}}]", "entry 1"),
        ("[{name: a, corpus: [{kind: kaldi}, {}]}]", "entry 1"),
    ],
)
def test_malformed_domains_are_refused(domains, word, tmp_path):
    text = OWN.partition("domains:")[0] + f"domains: {domains}\n"
    assert word in own(tmp_path, text)


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    assert "mine.yaml" in own(tmp_path, "name: [mine\n")


@pytest.mark.parametrize(
    "override, word",
    [
        ("scenario=nowhere", "scenario/nowhere"),
        ("trian.adapt.epochs=3", "trian"),
        ("train.adapt.epoch=3", "epoch"),
        ("nonsense", "nonsense: not an override"),
        ("exp=${nowhere}", "nowhere"),
        ("train.adapt.epochs=[1", "[1"),
        ("scenario=null", "scenario"),
        ("model=null", "model"),
        ("scenario.name=???", "scenario.name"),
        ("config_dir=/nowhere/at/all", "config_dir=/nowhere/at/all: no such folder"),
    ],
)
def test_mistakes_are_refused_in_one_line(override, word):
    assert word in refusal(override)


@pytest.mark.parametrize(
    "override, word",
    [
        ("scenario.features.kind=fbank", "scenario.features.kind=fbank: expected 'logmel', 'mfcc13', 'whisper' or 'waveform'"),
        ("scenario.features.normalise=yes", "mean_variance"),
        ("scenario.features.bins=many", "scenario.features.bins=many: expected a valid integer"),
        ("scenario.features.bins=2.5", "integer"),
        ("scenario.features.speeds=1.0", "scenario.features.speeds=1.0: expected a valid array"),
        ("+scenario.features.channel=left", "integer or 'mean'"),
        ("+scenario.features.pitch=true", "unknown settings pitch; known are bins"),
        ("scenario.features=3", "scenario.features=3"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(override, word):
    config = load_config([override])
    with pytest.raises(InputError) as caught:
        config.settings(FeatureConfig, "scenario", "features")
    assert word in str(caught.value)


@pytest.mark.parametrize("override", ["train.adapt.optimizer=rmsprop", "train.adapt.schedule=cosine", "train.adapt.epochs=0"])
def test_training_that_does_not_exist_is_refused(override):
    with pytest.raises(InputError):
        load_config([override]).settings(TrainConfig, "train", "adapt")


def test_settings_take_lists_whole_numbers_for_floats_and_null():
    @dataclass(frozen=True)
    class Example:
        ratio: float = 0.5
        widths: tuple[int, ...] = ()
        limit: int | None = None

    config = Config({"part": {"ratio": 2, "widths": [1, 2], "limit": None}})
    assert config.settings(Example, "part") == Example(2, (1, 2), None)
    with pytest.raises(InputError, match=r"part\.ratio=True: expected a valid number"):
        Config({"part": {"ratio": True}}).settings(Example, "part")


def test_device():
    assert Config({"device": "cpu"}).device == "cpu"
    assert Config({"device": "auto"}).device == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device=cuda: no GPU"):
            _ = Config({"device": "cuda"}).device


# --- the initial model and probes of a scenario

PROBE = """
name: mine
domains:
  - {name: US, corpus: {kind: synthetic, accent: US, sizes: {train: 4}}}
  - {name: phone, corpus: [{kind: kaldi, folder: /data/phone, split: train}, {kind: kaldi, folder: /data/phone, split: dev}]}
"""


@pytest.mark.parametrize(
    "probe, word",
    [
        ("{name: US, corpus: {kind: an4}}", "probe US: a domain has that name; choose one that is not among US, phone"),
        ("{name: p, corpus: {kind: synthetic, accent: US, seed: 9}}", "(kind synthetic, accent US) is what domain US is trained"),
        ("{name: p, corpus: [{kind: an4}, {kind: kaldi, folder: /data/phone, split: test}]}", "is what domain phone is trained"),
        ("{name: p}", "scenario.probes: entry 1 (p) needs a corpus"),
        ("p", "scenario.probes: entry 1 needs"),
    ],
)
def test_a_probe_that_is_also_trained_on_is_refused(probe, word, tmp_path):
    assert word in own(tmp_path, f"{PROBE}probes: [{probe}]\n")


def test_a_probe_of_another_channel_is_none_of_the_domains(tmp_path):
    (tmp_path / "scenario").mkdir()
    text = f"{PROBE}probes: [{{name: p, corpus: {{kind: synthetic, accent: US, channel: noise}}}}]\n"
    (tmp_path / "scenario" / "mine.yaml").write_text(text)
    assert [p["name"] for p in load_config([f"config_dir={tmp_path}", "scenario=mine"]).tree["scenario"]["probes"]] == ["p"]


@pytest.mark.parametrize(
    "initial, word",
    [
        ("{models: x}", "models without a corpus"),
        ("{corpus: {folder: x}}", "its corpus needs a kind"),
        ("{corpora: {}}", "(not corpora)"),
        ("{checkpoint: a.safetensors, models: b}", "models and checkpoint"),
        ("{checkpoint: 3}", "scenario.initial.checkpoint=3: expected text"),
        ("{corpus: {kind: synthetic, accent: RP}}", "(kind synthetic, accent RP) is not that of the first domain, US ("),
    ],
)
def test_a_first_model_of_other_data_is_refused(initial, word, tmp_path):
    assert word in own(tmp_path, f"{PROBE}initial: {initial}\n")


def test_a_first_model_of_other_data_may_learn_the_first_domain(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "scenario").mkdir()
    text = f"{PROBE}learn_first: true\ninitial: {{corpus: {{kind: synthetic, accent: RP}}}}\n"
    (tmp_path / "scenario" / "mine.yaml").write_text(text)
    assert load_config([f"config_dir={tmp_path}", "scenario=mine"]).tree["scenario"]["learn_first"] is True
    assert "accent RP" in caplog.text and "scenario.learn_first" in caplog.text
    assert "scenario.learn_first=perhaps" in refusal(f"config_dir={tmp_path}", "scenario=mine", "scenario.learn_first=perhaps")


def test_own_domains_do_not_inherit_the_first_model_of_a_shipped_scenario(tmp_path):
    text = "defaults: [accents, _self_]\n" + PROBE.replace("name: US", "name: R").replace("accent: US", "accent: RP")
    assert "initial: null" in own(tmp_path, text + "probes: []\n")
    (tmp_path / "scenario" / "mine.yaml").write_text(text + "probes: []\ninitial: null\n")
    assert load_config([f"config_dir={tmp_path}", "scenario=mine"]).tree["scenario"]["initial"] == {}


# --- changed settings, hyper-parameters of a scenario, search spaces


def test_settings_are_changed_where_they_exist():
    config = load_config(["train.adapt.epochs=3"])
    changed = config.changed({"train": {"adapt": {"learning_rate": 1e-5, "epochs": 7}}, "curvature.fisher": "mc"})
    assert changed.tree["train"]["adapt"]["learning_rate"] == 1e-5 and changed.tree["curvature"]["fisher"] == "mc"
    assert changed.tree["train"]["adapt"]["epochs"] == 7 and config.tree["train"]["adapt"]["epochs"] == 3
    group = load_config(["train=quick"])
    assert group.changed({"train.adapt.epochs": 7}, keep_typed=True).tree["train"]["adapt"]["epochs"] == 2
    kept = config.changed({"train.adapt.epochs": 7, "train.adapt.learning_rate": 1e-5}, keep_typed=True)
    assert kept.tree["train"]["adapt"]["epochs"] == 3 and kept.tree["train"]["adapt"]["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    "path, word",
    [
        ("train.adapt.epoch", "here: train.adapt.epoch: no such option; train.adapt has epochs, optimizer"),
        ("trane.adapt.epochs", "trane.adapt.epochs: no such option; the configuration has model, train"),
        ("train.adapt.epochs.more", "train.adapt.epochs has 8, a value"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_with_those_that_do(path, word):
    with pytest.raises(InputError) as refused:
        load_config(["scenario=accents_topics"]).changed({path: 1}, "here")
    assert word in str(refused.value)


def test_hyper_parameters_chosen_for_a_scenario_come_with_it():
    chosen = yaml.safe_load((config_folder() / "tuned" / "accents_topics.yaml").read_text())["methods"]
    tuned = load_config(["scenario=accents_topics"]).tree["methods"]
    assert all(tuned[method][name] == value for method, options in chosen.items() for name, value in options.items())
    plain = load_config(["scenario=accents_topics", "tuned=none"]).tree["methods"]
    assert plain == load_config(["scenario=accents_mild"]).tree["methods"] != tuned


def test_a_choice_that_does_not_exist_is_refused(tmp_path):
    assert "tuned=accents_topic: no such choice of hyper-parameters; there are accents" in refusal("tuned=accents_topic")
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "mine.yaml").write_text("# @package _global_\nmethods: {ihr: {tau: 0.25}}\n")
    assert load_config([f"config_dir={tmp_path}", "tuned=mine"]).tree["methods"]["ihr"]["tau"] == 0.25


@pytest.mark.parametrize("name", shipped("tuned"))
def test_every_choice_of_hyper_parameters_names_options_that_exist(name):
    scenario = [f"scenario={name}"] if name in shipped("scenario") else []
    config = load_config([*scenario, f"tuned={name}", "data_dir=/data"])
    for method in config.tree["methods"]:
        configured_method(config, method)


@pytest.mark.parametrize(
    "chosen",
    [[], ["scenario=split_digits"], ["+variants=merges"], ["+variants=beyond"], ["+variants=apart"]],
    ids=["speech", "images", "merges", "beyond", "apart"],
)
def test_every_method_of_the_search_gets_as_many_settings(chosen):
    """Or all of its space where that has no more; a space names options that exist."""
    config = load_config(chosen)
    found = searches(config, list(config.tree["search"]["methods"]))
    settings = config.tree["search"]["settings"]
    assert all(len(search.settings) == min(settings, len(grid(search.space))) for search in found)
    assert all(set(config.tree["search"]["shared"]) <= set(search.space) for search in found)
    of_speech = {"uoe"} if "scenario=split_digits" in chosen else set()  # parts of a Conformer
    unsearched = {"initial", "ihr_paper", "separate", "single", "joint"} | of_speech
    assert {search.method for search in found} >= set(config.tree["methods"]) - unsearched


def test_every_merge_is_a_method_by_name():
    """As a method of its own, or with `+variants=merges` behind plain fine-tuning."""
    tree = load_config(["+variants=merges"]).tree["methods"]
    merges = [options["merge"] for options in tree.values() if options.get("merge")]
    behind = {merge if isinstance(merge, str) else merge["method"] for merge in merges}
    as_methods = {"fta": "average", "ihr": "ihr", "laplace": "laplace"}
    assert set(as_methods) <= set(tree) and not behind & set(as_methods.values())
    assert behind | set(as_methods.values()) == {name for name, method in merge_methods().items() if method.takes is None}
