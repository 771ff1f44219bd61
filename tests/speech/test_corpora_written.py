"""Corpora with text as it is written: manifests without splits, LJSpeech, all of Common Voice; the real ones where they are."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.experiment.config import load_config
from asrcl.speech.audio import read_audio
from asrcl.speech.corpora import load_coffee, load_commonvoice, load_corpus, load_ljspeech, load_packed, to_utterances, validate
from asrcl.speech.corpora.splits import choose
from asrcl.speech.corpora.utterance import Utterance
from asrcl.speech.features import FeatureStore
from asrcl.speech.prepare import data_folder, prepare_data
from asrcl.text import basic

DATA = Path(os.environ.get("ASRCL_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
TEXTS = ["Thank you.", "thank you", "Press 1 now!", "<beep>", "Please wait, I'm busy.", "Why?", "One: two; three.", "Goodbye."]


def utterances(speakers, texts=None, split=""):
    return [Utterance(f"u{n}", "x.wav", 0, -1, "audio", (texts or {}).get(n, f"text {n}"), speaker, "d", split)
            for n, speaker in enumerate(speakers)]  # fmt: skip


def sizes(rows):
    return Counter(row.split for row in rows)


def test_speakers_are_never_parted_where_there_are_enough():
    rows = choose(utterances([f"s{n // 3}" for n in range(60)]), {"train": None, "dev": 9, "test": 12}, seed=1, where="here")
    assert sizes(rows) == {"train": 39, "dev": 9, "test": 12} and [row.id for row in rows] == [f"u{n}" for n in range(60)]
    homes = {}
    for row in rows:
        assert homes.setdefault(row.speaker, row.split) == row.split


def test_texts_of_one_reader_are_never_parted():
    read_twice = {n: f"Same {n // 2}!" if n % 2 else f"same {n // 2}" for n in range(0, 40)}
    rows = choose(utterances(["reader"] * 40, read_twice), {"train": 20, "dev": 6, "test": 10}, seed=1, where="here")
    assert sizes(rows) == {"train": 20, "dev": 6, "test": 10}
    homes = {}
    for row in rows:
        assert homes.setdefault(basic(row.text), row.split) == row.split


def test_the_seed_decides_and_a_larger_training_set_leaves_the_others_as_they_are():
    everything = utterances(["reader"] * 50)

    def split(count, seed=1):
        return {row.id: row.split for row in choose(everything, count, seed=seed, where="here")}

    small, large = split({"train": 10, "dev": 5, "test": 5}), split({"train": 30, "dev": 5, "test": 5})
    assert small == split({"test": 5, "dev": 5, "train": 10}) and small.items() <= large.items()
    assert small != split({"train": 10, "dev": 5, "test": 5}, seed=2)
    assert Counter(split(None).values()) == {"test": 10, "dev": 5, "train": 35}


def test_given_splits_are_kept_and_limited():
    rows = [*utterances(["a"] * 9, split="train"), Utterance("t", "x.wav", 0, -1, "audio", "x", "b", "d", "test")]
    assert choose(rows, None, seed=0, where="here") == rows
    assert sizes(choose(rows, {"train": 4, "test": None}, seed=0, where="here")) == {"train": 4, "test": 1}
    assert sizes(choose(rows, {"train": 0, "test": 1}, seed=0, where="here")) == {"test": 1}


@pytest.mark.parametrize(
    ("rows", "count", "words"),
    [
        (utterances(["a"] * 5), {"train": 3, "valid": 1}, "here: count valid=1; give train, dev, test a number"),
        (utterances(["a"] * 5), {"train": -1}, "here: count train=-1"),
        (utterances(["a"] * 5), {"train": True}, "here: count train=True"),
        (utterances(["a"] * 5), {"train": None, "test": None}, "count gives the rest to several splits"),
        (utterances(["a"] * 5), {"train": 4, "test": 3}, "here: 2 utterances are left for train, of 4 asked for"),
        (utterances(["a"] * 5), {"train": None, "test": 5}, "here: 0 utterances are left for train, of any asked for"),
        (utterances(["a"] * 5, split="train"), {"train": 6}, "here: 5 utterances are left for train, of 6"),
        (utterances(["a"], split="train") + utterances(["b"]), {"train": 1}, "u0 has a split and others have none"),
    ],
)
def test_what_cannot_be_divided_is_refused(rows, count, words):
    with pytest.raises(InputError, match=words):
        choose(rows, count, seed=0, where="here")


def sounds(folder, names, rate=16000):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, rate // 4 * (number + 1)), rate)


@pytest.fixture
def prompts(tmp_path):
    """A manifest with a file per utterance, text with case and punctuation; number n has (n + 1) / 4 s."""
    sounds(tmp_path, [f"audio/p{n}.flac" for n in range(len(TEXTS))])
    rows = [f'audio/p{n}.flac,"{text}",reader' for n, text in enumerate(TEXTS)]
    (tmp_path / "manifest.csv").write_text("path,text,speaker\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_a_manifest_is_read_as_it_is_written(prompts):
    dataset = load_packed(prompts, domain="prompts", count={"train": 6, "test": 2})
    rows = list(to_utterances(dataset))
    assert [row.text for row in rows] == TEXTS and [row.id for row in rows] == [f"p{n}" for n in range(8)]
    assert sizes(rows) == {"train": 6, "test": 2} and rows[0].split == rows[1].split  # one text, written in two ways
    assert validate(dataset, max_broken_share=0, decode=True)[1] == []
    assert load_corpus("packed", folder=prompts)["split"] == load_packed(prompts)["split"]


def test_long_utterances_and_descriptions_are_left_out(prompts):
    dataset = load_packed(prompts, longest=1.5, without="[<(]", count={"train": None})
    assert dataset["text"] == [text for text in TEXTS[:6] if text != "<beep>"]
    with pytest.raises(InputError, match=r"manifest\.csv: '\[' is none .*correct the regular expression"):
        load_packed(prompts, without="[")


def test_packed_files_parts_and_splits(tmp_path):
    sounds(tmp_path, ["all.flac"] * 4)
    rows = ["all.flac,0,8000,Hello.,s1,train", "all.flac,8000,16000,Bye.,s2,test"]
    (tmp_path / "manifest.csv").write_text("path,start,end,text,speaker,split\n" + "\n".join(rows) + "\n")
    first, second = to_utterances(load_packed(tmp_path))
    assert (first.id, first.start, first.end, first.split) == ("all-0", 0, 8000, "train")
    assert (second.id, second.speaker, second.split) == ("all-8000", "s2", "test")
    assert len(load_packed(tmp_path, longest=0.4)) == 0
    (tmp_path / "manifest.csv").write_text("path,words\na,b\n")
    with pytest.raises(InputError, match=r"manifest\.csv:1: no column text"):
        load_packed(tmp_path)


def test_ljspeech_in_its_own_layout(tmp_path):
    sounds(tmp_path, ["wavs/LJ001-0001.wav", "wavs/LJ001-0002.wav"], 22050)
    lines = ['LJ001-0001|In 1455 "it" was|In fourteen fifty-five "it" was', "LJ001-0002|Mr. X.|Mister X."]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    dataset = load_ljspeech(tmp_path, domain="general", count={"train": 1, "test": 1})
    assert dataset["text"] == ['In fourteen fifty-five "it" was', "Mister X."]
    assert dataset["id"] == ["LJ001-0001", "LJ001-0002"] and set(dataset["split"]) == {"train", "test"}
    assert validate(dataset, max_broken_share=0)[1] == []
    (tmp_path / "metadata.csv").write_text("LJ001-0001|one field missing\n")
    with pytest.raises(InputError, match=r"metadata\.csv:1: 2 fields between \|, not 3"):
        load_ljspeech(tmp_path)


def test_all_of_common_voice_by_speaker(tmp_path):
    header = "client_id\tpath\tsentence\taccent\tlocale\n"
    rows = [f'c{n // 2}\tclip{n}.mp3\tHe said "yes".\t{"us" if n % 3 else ""}\ten\n' for n in range(20)]
    (tmp_path / "validated.tsv").write_text(header + "".join(rows))
    probe = load_commonvoice(tmp_path, accents=None, domain="probe", count={"test": None})
    assert set(probe["split"]) == {"test"} and len(probe) == 20 and set(probe["domain"]) == {"probe"}
    assert probe["path"][3] == str(tmp_path / "clips" / "clip3.mp3") and probe["text"][0] == 'He said "yes".'
    both = list(to_utterances(load_commonvoice(tmp_path, accents=None, count={"dev": 10, "test": None})))
    assert sizes(both) == {"dev": 10, "test": 10}
    assert not {row.speaker for row in both if row.split == "dev"} & {row.speaker for row in both if row.split == "test"}


def package(name, listing="manifest.csv"):
    folder = DATA / name
    if not (folder / listing).is_file():
        pytest.skip(f"{name} is not here; set ASRCL_DATA to the folder that holds it")
    return folder


def test_real_ljspeech_part_and_prompts():
    general = load_packed(package("ljspeech_sample"), count={"train": 130, "dev": 18, "test": 45})
    assert Counter(general["split"]) == {"train": 130, "dev": 18, "test": 45}
    assert validate(general, max_broken_share=0)[1] == []
    count = {"train": 250, "dev": 40, "test": 100}
    prompts = load_packed(package("asterisk_prompts_16k"), longest=30, without="[<(]", count=count)
    assert validate(prompts, max_broken_share=0)[1] == []
    homes = {}
    for row in to_utterances(prompts):
        assert homes.setdefault(basic(row.text), row.split) == row.split
        assert "silence)" not in row.text and "beep" not in row.text


def test_real_coffee_can_be_limited():
    dataset = load_coffee(package("s2i_coffee_16k"), count={"train": 160, "dev": 44, "test": 73})
    assert Counter(dataset["split"]) == {"train": 160, "dev": 44, "test": 73}


def test_real_common_voice_is_decoded_from_mp3():
    folder = package("commonvoice_en_sample", "validated.tsv")
    probe = load_commonvoice(folder, accents=None, count={"test": None})
    assert len(probe) == 100 and len(set(probe["speaker"])) == 95
    assert validate(probe, max_broken_share=0, decode=True)[1] == []
    row = next(to_utterances(probe))
    assert 0.5 < len(read_audio(row.path, rate=16000)) / 16000 < 15
    halves = Counter(load_commonvoice(folder, accents=None, count={"dev": 50, "test": None})["split"])
    assert halves == {"dev": 50, "test": 50}


def test_the_quick_scenario_is_made_of_the_real_recordings(tmp_path):
    for name in ("ljspeech_sample", "s2i_coffee_16k", "asterisk_prompts_16k"):
        package(name)
    package("commonvoice_en_sample", "validated.tsv")
    chosen = ["scenario=pretrained_quick", "model=conformer_tiny"]
    typed = [*chosen, f"data_dir={DATA.resolve()}", f"exp={tmp_path}", "launcher.threads=1"]
    config = load_config([*typed, "scenario.commonvoice.dev=4", "scenario.commonvoice.test=6"])
    prepare_data(config)
    names = ("general", "prompts", "commonvoice", "voices")
    stores = {name: FeatureStore(data_folder(config, name) / "features") for name in names}
    found = {name: tuple(len(store.rows(split)) for split in ("train", "dev", "test")) for name, store in stores.items()}
    assert found == {"general": (12, 4, 6), "prompts": (16, 4, 8), "commonvoice": (0, 4, 6), "voices": (0, 0, 7)}
    assert len({row["speaker"] for row in stores["general"].rows("test")}) == 6  # one reader: intervals resample utterances
    assert not list(config.home.glob("data/*/broken.tsv"))


def test_every_domain_of_languages_is_told_its_language(tmp_path):
    tree = load_config(["scenario=languages", f"data_dir={tmp_path}"]).tree
    names = [entry["name"] for entry in (*tree["scenario"]["domains"], *tree["scenario"]["probes"])]
    assert list(tree["model"]["language"]) == names == ["english", "spanish", "french", "italian", "russian"]
