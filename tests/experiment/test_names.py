"""Names never lead out of their folder, whatever kind of corpus they name."""

import doctest

import pytest
import yaml

from asrcl.exceptions import InputError
from asrcl.experiment import config as configuration
from asrcl.experiment import names as names_module
from asrcl.experiment.config import load_config
from asrcl.experiment.names import LONGEST, check_distinct, check_name, file_stem
from asrcl.speech.corpora import utterance
from asrcl.speech.prepare import prepare_data
from asrcl.speech.synthetic import synthesise

GOOD = ["US", "en-gb", "a.b+c_d", "Scottish English", "français", "日本", "data", "tokens", "[red]", "_own", "50%", "a=b"]
BAD = [
    "", " ", "/tmp/x", "../x", "..", ".", "a/b", "a\\b", "a/../../b", ".hidden", "-x", "~root", " US", "US ", "US.", "a\nb",
    "a\x1b[31m", "a\x00b", "a\u202eb", "a\u2028b", "\ud800", "x" * (LONGEST + 1), "é" * LONGEST,
    "_initial", "_Initial", "model.safetensors",
    "costs.json", ".US.lock", "a.part", 5, 1.5, True, ["a"], {"a": 1},
]  # fmt: skip
KINDS = {
    "kaldi": {"kind": "kaldi", "folder": "/data"},
    "nemo": {"kind": "nemo", "manifest": "/data/m.json"},
    "commonvoice": {"kind": "commonvoice", "folder": "/data"},
    "synthetic": {"kind": "synthetic", "accent": "US", "sizes": {"test": 2}, "seed": 1},
}


@pytest.mark.parametrize("name", [*GOOD, "x" * LONGEST])
def test_good_names(name):
    assert check_name(name, "domain") == name


@pytest.mark.parametrize("name", BAD)
def test_bad_names(name):
    with pytest.raises(InputError, match=r"^domain .*; name it with") as caught:
        check_name(name, "domain")
    assert str(caught.value).isprintable()


def write(tmp_path, scenario):
    folder = tmp_path / "conf" / "scenario"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(scenario))
    return [f"config_dir={tmp_path / 'conf'}", "scenario=mine", f"exp={tmp_path / 'exp'}", "data_dir=/data"]


def scenario(*names, kind="kaldi", name="mine", probes=()):
    entries = [{"name": each, "corpus": KINDS[kind]} for each in names]
    others = [{"name": each, "corpus": {**KINDS["kaldi"], "folder": f"/other/{n}"}} for n, each in enumerate(probes)]
    return {"name": name, "domains": entries, "probes": others}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../../gone", "/tmp/x", "a/b", "..", "", "a\x07", "x" * 300])
def test_every_kind_of_corpus_and_every_place_is_checked(tmp_path, kind, name):
    for content in (scenario(name, kind=kind), scenario("US", kind=kind, name=name), scenario("US", kind=kind, probes=[name])):
        overrides = write(tmp_path, content)
        with pytest.raises(InputError, match=r"(domain|scenario|probe) '"):
            load_config(overrides)
    assert not (tmp_path / "exp").exists()


def test_the_library_checks_too(tmp_path):
    with pytest.raises(InputError, match=r"domain '../up'"):
        synthesise("../up", accent="US", sizes={"test": 1}, seed=1, folder=tmp_path / "in")
    assert not list(tmp_path.iterdir())
    synthesise("Scottish English", accent="SCO", sizes={"test": 1}, seed=1, folder=tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("names", "probes", "words"),
    [
        (["US", "us"], [], "some file systems take it and 'US' for one"),
        (["caf\u00e9", "cafe\u0301"], [], "for one"),
        (["US", "US"], [], "two domains have the name US"),
        (["US"], ["p", "p"], "two probes have the name p"),
        (["US"], ["Us"], "for one"),
    ],
)
def test_names_that_meet_in_one_folder(tmp_path, names, probes, words):
    with pytest.raises(InputError, match=words):
        load_config(write(tmp_path, scenario(*names, probes=probes)))
    check_distinct(["US", "en", "US"], "domain")


@pytest.mark.parametrize(
    ("name", "words"),
    [("data", "keeps a folder of that name"), ("Cache", "keeps a folder"), ("../x", "leads to another folder"), ("a b", None)],
)
def test_names_of_methods(tmp_path, name, words):
    overrides = write(tmp_path, scenario("US"))
    folder = tmp_path / "conf" / "tuned"
    folder.mkdir()
    (folder / "own.yaml").write_text(f"# @package _global_\nmethods: {{'{name}': {{name: ft}}}}\n")
    if words is None:
        assert name in load_config([*overrides, "tuned=own"]).tree["methods"]
    else:
        with pytest.raises(InputError, match=words):
            load_config([*overrides, "tuned=own"])


def test_documented_examples():
    for module in (names_module, utterance):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


def test_file_stems():
    names = ["a", "a/b", "a_b", "../a", "..", ".", "", "é", "x" * 500, "x" * 501, "\ud800", "a b", "a\nb"]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names) and stems[0] == "a" and stems[2] == "a_b"
    assert all(stem.isascii() and 0 < len(stem) < 120 and stem[0] != "." and not set(stem) & set("/ \n") for stem in stems)


# Limits of configuration files

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


LONG = ["a: " + "[" * 5000 + "]" * 5000, "a: " + "x" * 2_000_000, "a: [" + "x, " * 200_000 + "]"]


@pytest.mark.parametrize("content", [BOMB, *LONG, "a: &a [*a]\n", "a: [\x00]", "a: {"])
def test_a_configuration_that_has_no_end_is_refused_at_once(tmp_path, content):
    overrides = write(tmp_path, scenario("US"))
    (tmp_path / "conf" / "scenario" / "mine.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        load_config(overrides)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [
        "a0: xxxxxxxxxx\n" + "".join(f"a{n}: '${{scenario.a{n - 1}}}${{scenario.a{n - 1}}}'\n" for n in range(1, 40)),
        "a0: xxxxxxxxxx\n" + "".join(f"a{n}: '${{.a{n - 1}}}${{.a{n - 1}}}'\n" for n in range(1, 40)),
        "a0: {x: 1}\n" + "".join(f"a{n}: {{x: '${{scenario.a{n - 1}}}', y: '${{..a{n - 1}}}'}}\n" for n in range(1, 40)),
        "a0: '${scenario.a1}'\na1: '${scenario.a0}'\n",
        "a0: '${scenario.nowhere.at.all}'\n",
    ],
)
def test_references_that_have_no_end_are_refused_at_once(tmp_path, content):
    overrides = write(tmp_path, scenario("US"))
    path = tmp_path / "conf" / "scenario" / "mine.yaml"
    path.write_text(path.read_text() + content)
    with pytest.raises(InputError) as caught:
        load_config(overrides)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_aliases_that_are_meant_are_fine(tmp_path):
    overrides = write(tmp_path, scenario("US"))
    text = "name: mine\ncommon: &c {kind: kaldi, folder: /x}\ndomains: [{name: US, corpus: *c}]\n"
    (tmp_path / "conf" / "scenario" / "mine.yaml").write_text(text)
    assert load_config(overrides).tree["scenario"]["domains"][0]["corpus"]["folder"] == "/x"
    (tmp_path / "conf" / "scenario" / "other.yaml").write_text("a: {")  # not asked for
    load_config(overrides)


NULL = ["launcher", "train", "model", "decode", "methods", "search", "exp", "train.max_items", "scenario", "curvature"]
TYPES = [
    "imports=5", "exp=5", "device=7", "launcher.jobs=two", "launcher.threads=two", "train.max_frames=1.5", "train.ctc_weight=x",
    "train.adapt=3", "scenario.domains=5", "scenario.initial=7", "scenario.name=5", "~train.max_items", "methods.ft=3",
    "+methods.x={a: 1}", "a=[" + "[" * 3000, "a=${a}", "exp=${b", "=", "x", "~",
]  # fmt: skip


@pytest.mark.parametrize("override", [*(f"{name}=null" for name in NULL), *TYPES])
def test_values_of_another_type_are_one_line(override):
    with pytest.raises(InputError) as caught:
        load_config([override])
    assert "\n" not in str(caught.value)


SYNTHETIC = {"kind": "synthetic", "accent": "US", "sizes": {"test": 1}, "seed": 1}
CORPORA = [
    {"kind": 5}, {"kind": ["kaldi"]}, {"kind": "kaldi", "folder": [1]}, {"kind": "kaldi", "folder": 5},
    {"kind": "nemo", "manifest": None}, {"kind": "commonvoice", "folder": "/x", "accents": 5},
    {"kind": "digits", "folder": "/x", "count": 3, "audio_dir": ""},
    {"kind": "hub", "name": "x", "limit": "two", "audio_dir": "", "streaming": False, 5: 6},
    {**SYNTHETIC, "accent": ["US"]}, {**SYNTHETIC, "sizes": 7}, {**SYNTHETIC, "sizes": {"test": "x"}},
    {**SYNTHETIC, "takes": "x"}, {**SYNTHETIC, "rate": "x"},
]  # fmt: skip


@pytest.mark.parametrize("corpus", CORPORA)
def test_options_of_another_type_are_one_line(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    content = {"name": "mine", "features": {"bins": 8}, "domains": [{"name": "US", "corpus": corpus}]}
    with pytest.raises(InputError) as caught:
        prepare_data(load_config(write(tmp_path, content)))
    assert "\n" not in str(caught.value)


def test_the_types_are_those_of_the_shipped_configuration():
    configuration.check_types(load_config().tree, configuration._TYPES)
