"""Text with case and punctuation from the corpus to the results of an experiment on tones; what its scoring refuses."""

import shutil

import pytest

from asrcl.exceptions import InputError
from asrcl.experiment import run as experiment
from asrcl.experiment.config import load_config
from asrcl.scoring import RunResult
from asrcl.scoring.commands.verify import recount
from asrcl.speech.features import FeatureStore
from asrcl.speech.prepare import data_folder, prepare_data, prepare_tokens


@pytest.fixture
def spoken(tones, tmp_path):
    """The scenario with a probe, its texts with case and punctuation, scored without: (*overrides)."""
    shutil.copytree(tones.data, tmp_path / "data")
    shutil.copytree(tones.conf, tmp_path / "conf")
    for path in (tmp_path / "data").glob("*/*/text"):
        lines = [line.partition(" ") for line in path.read_text().splitlines()]
        path.write_text("".join(f"{name} {text.capitalize()}, please.\n" for name, _, text in lines))
    more = ["defaults: [probed, _self_]", "name: spoken", "tokens: {size: 40, kind: char}"]
    more += ["text: {normaliser: written, alphabet: any}", "scoring: {normaliser: basic}"]
    (tmp_path / "conf" / "scenario" / "spoken.yaml").write_text("\n".join(more) + "\n")

    def configure(*overrides):
        typed = [f"config_dir={tmp_path / 'conf'}", f"data_dir={tmp_path / 'data'}", "scenario=spoken", *overrides]
        return load_config([*tones.overrides(tmp_path / "exp"), *typed])

    return configure


def test_text_as_written_from_the_corpus_to_the_results(spoken, tmp_path):
    config = spoken()
    prepare_data(config)
    assert {row["text"] for row in FeatureStore(data_folder(config, "low") / "features").rows("test")} == {
        "Turn on the light, please.", "Play some jazz, please.", "What is the time, please.",
    }  # fmt: skip
    prepare_tokens(config)
    experiment.train(config, 1)
    experiment.adapt_all(config, ["initial", "ft"], [1], decode=True)
    run = RunResult.load(config.home / "ft" / "1" / "results.json")
    assert run.lengths == [14, 14] and set(run.final_written()) == {"low", "high", "probe"}
    assert run.written[1][1].marks_reference == 6 and run.written[1][1].length == 14
    item = run.items(1, 1).items[0]
    assert item.reference == "turn on the light please" and item.raw_reference == "Turn on the light, please."
    assert "every count agrees with its results.json" in recount(config.home)
    other = spoken("scenario.scoring.normaliser=spaced")
    before = len(list((config.home / "cache").glob("errors/*")))
    experiment.adapt_all(other, ["initial"], [1], decode=True)
    assert len(list((config.home / "cache").glob("errors/*"))) > before  # counted anew


def test_one_readers_utterances_are_speakers_of_their_own(spoken, tmp_path):
    path = tmp_path / "conf" / "scenario" / "tones.yaml"
    path.write_text(path.read_text().replace("split: test}", "split: test, by_utterance: true}"))
    config = spoken()
    prepare_data(config, ["low"])
    store = FeatureStore(data_folder(config, "low") / "features")
    assert [row["speaker"] for row in store.rows("test")] == [row["id"] for row in store.rows("test")]
    assert {row["speaker"] for row in store.rows("train")} == {"s0", "s1"}
    path.write_text(path.read_text().replace("by_utterance: true", "by_utterance: 1"))
    with pytest.raises(InputError, match="domain low: by_utterance=1: expected true or false"):
        prepare_data(spoken(), ["low"])


def test_a_normaliser_that_leaves_references_empty_is_named(spoken, tmp_path, caplog):
    text = tmp_path / "data" / "high" / "test" / "text"
    lines = text.read_text().splitlines()
    text.write_text("\n".join([f"{lines[0].split()[0]} ...", *lines[1:]]) + "\n")
    with caplog.at_level("WARNING"):
        prepare_data(spoken(), ["high"])
    assert "domain high, split test: the normaliser basic leaves no word of the references 1 (s0-high-test-0)" in caplog.text
    text.write_text("".join(f"{line.split()[0]} ...\n" for line in lines))
    with pytest.raises(InputError, match="high, split test: the normaliser basic leaves no word of any reference"):
        prepare_data(spoken(), ["high"])


def test_text_with_other_characters_needs_an_alphabet_that_allows_them(spoken):
    with pytest.raises(InputError, match=r"broken.*characters outside the alphabet: ',' '\.'"):
        prepare_data(spoken("scenario.text.alphabet=letters"), ["low"])
    with pytest.raises(InputError, match=r"scenario\.text\.alphabet=greek"):
        prepare_data(spoken("scenario.text.alphabet=greek"), ["low"])
