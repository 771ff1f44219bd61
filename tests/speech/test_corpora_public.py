"""Common Voice, LibriSpeech and Libri-Adapt in their real layouts, a few files each."""

import doctest

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech.corpora import (
    commonvoice,
    load_commonvoice,
    load_corpus,
    load_libri_adapt,
    load_librispeech,
    select,
    to_utterances,
    validate,
)
from asrcl.speech.corpora.splits import split_speakers

CV_COLUMNS = [
    "client_id",
    "path",
    "sentence_id",
    "sentence",
    "up_votes",
    "down_votes",
    "age",
    "gender",
    "accents",
    "locale",
]
CV_STATED = {
    "US": "United States English",
    "SCO": "Scottish English",
    "IND": "India and South Asia (India, Pakistan, Sri Lanka)",
}


def cv_row(speaker, clip, accent, sentence='He said "yes".'):
    return "\t".join(
        [speaker, f"common_voice_en_{clip}.mp3", "f0", sentence, "2", "0", "twenties", "", accent, "en"]
    )


@pytest.fixture
def release(tmp_path):
    """12 speakers of 3 clips for each of three accents, and rows that belong to none."""
    folder = tmp_path / "en"
    (folder / "clips").mkdir(parents=True)
    rows, clip = ["\t".join(CV_COLUMNS)], 0
    for name, stated in CV_STATED.items():
        for speaker in range(12):
            for _ in range(3):
                rows.append(cv_row(f"{name}{speaker}", clip, stated))
                clip += 1
    rows += [
        cv_row("x", 900, ""),
        cv_row("y", 901, "Canadian English"),
        cv_row("z", 902, "Scottish English|Irish English"),
    ]
    rows.append(cv_row("US0", 903, "Scottish English"))  # three clips say US, this one is left out
    (folder / "validated.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def clips(dataset):
    return {u.id: u for u in to_utterances(dataset)}


def test_accents_become_domains_with_disjoint_speakers(release):
    dataset = load_commonvoice(release, accents=("US", "SCO", "IND"), dev_utterances=5, test_utterances=5)
    assert len(dataset) == 108
    homes = {}
    for row in to_utterances(dataset):
        assert homes.setdefault(row.speaker, (row.domain, row.split)) == (row.domain, row.split)
    for domain in ("US", "SCO", "IND"):
        sizes = {s: len(select(dataset, domain=domain, split=s)) for s in ("train", "dev", "test")}
        assert sizes == {"train": 24, "dev": 6, "test": 6}
    row = dataset[0]
    assert row["path"] == str(release / "clips" / "common_voice_en_0.mp3")
    assert row["text"] == 'He said "yes".'  # quotes in a tsv are ordinary characters


def test_split_depends_on_the_seed_alone(release):
    first, again, other = (
        load_commonvoice(release, accents=["US"], dev_utterances=5, test_utterances=5, seed=s)
        for s in (1, 1, 2)
    )
    assert first["split"] == again["split"]
    assert first["split"] != other["split"]


def test_real_mp3_clips_are_read(release):
    for clip in range(36):
        noise = np.random.default_rng(clip).normal(0, 0.1, 9600)
        soundfile.write(release / "clips" / f"common_voice_en_{clip}.mp3", noise, 48000, format="MP3")
    dataset = load_corpus("commonvoice", folder=release, accents=["US"], dev_utterances=3, test_utterances=3)
    assert validate(dataset)[1] == []


def test_lists_give_the_split(release, tmp_path):
    (tmp_path / "train.txt").write_text("common_voice_en_0 some words\nen/clips/common_voice_en_1.mp3\n")
    (tmp_path / "test.txt").write_text("common_voice_en_40.mp3\n")
    lists = {"train": tmp_path / "train.txt", "test": tmp_path / "test.txt"}
    found = clips(load_commonvoice(release, accents=["US", "SCO"], lists=lists))
    assert {key: (u.domain, u.split) for key, u in found.items()} == {
        "common_voice_en_0": ("US", "train"),
        "common_voice_en_1": ("US", "train"),
        "common_voice_en_40": ("SCO", "test"),
    }
    (tmp_path / "test.txt").write_text("common_voice_en_0.mp3\n")
    with pytest.raises(InputError, match=r"test.txt:1: .*common_voice_en_0"):
        load_commonvoice(release, accents=["US"], lists=lists)
    (tmp_path / "test.txt").write_text("\ncommon_voice_en_7777.mp3\n")
    with pytest.raises(InputError, match=r"test.txt:2: clip common_voice_en_7777 is not among"):
        load_commonvoice(release, accents=["US"], lists=lists)


def test_old_releases_with_short_codes(tmp_path):
    rows = ["client_id\tpath\tsentence\taccent"] + [f"s{i}\tclip{i}\tHi.\tengland" for i in range(6)]
    (tmp_path / "validated.tsv").write_text("\n".join(rows))
    dataset = load_commonvoice(tmp_path, accents=["ENG"])
    assert set(dataset["split"]) == {"train", "dev", "test"}
    assert dataset[0]["path"].endswith("clips/clip0.mp3")


def test_accent_names():
    assert doctest.testmod(commonvoice).failed == 0
    for name, words in commonvoice.ACCENTS.items():
        assert {commonvoice.accent_name(w.upper()) for w in words} == {name}
    assert commonvoice.accent_name("England English,slight lisp") is None
    assert commonvoice.accent_name("(" * 300_000) is None  # at once
    assert commonvoice.accent_name("England English, england") == "ENG"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accents": ["US", "NZ"]}, "accents: NZ not known; choose from US"),
        ({"accents": ["US", "AUS"]}, "validated.tsv: no clips of AUS"),
    ],
)
def test_commonvoice_refusals(release, options, words):
    with pytest.raises(InputError, match=words):
        load_commonvoice(release, **options)


def test_commonvoice_needs_its_files(tmp_path):
    with pytest.raises(InputError, match=r"validated.tsv: cannot be read"):
        load_commonvoice(tmp_path)
    (tmp_path / "validated.tsv").write_text("client_id\tpath\tsentence\na\tb\tc\n")
    with pytest.raises(InputError, match="accents"):
        load_commonvoice(tmp_path)


def test_big_talkers_stay_in_train():
    sizes = {"big": 500} | {f"s{i}": 10 for i in range(50)}
    for seed in range(5):
        home = split_speakers(sizes, dev=100, test=100, seed=seed, where="x")
        assert home["big"] == "train"
        assert sum(sizes[s] for s, split in home.items() if split == "test") == 100


def test_too_few_speakers_are_refused():
    with pytest.raises(InputError, match="x: 2 speakers cannot fill 3 splits"):
        split_speakers({"a": 1, "b": 2}, dev=1, test=1, seed=0, where="x")
    assert split_speakers({"a": 1}, dev=0, test=0, seed=0, where="x") == {"a": "train"}
    assert sorted(split_speakers({"a": 9, "b": 9, "c": 9}, dev=9, test=9, seed=0, where="x").values()) == [
        "dev",
        "test",
        "train",
    ]


@pytest.fixture
def librispeech(tmp_path):
    for part, speaker in (("train-clean-360", "100"), ("dev-clean", "84"), ("test-clean", "61")):
        folder = tmp_path / "LibriSpeech" / part / speaker / "121123"
        folder.mkdir(parents=True)
        names = [f"{speaker}-121123-000{i}" for i in range(2)]
        for name in names:
            soundfile.write(folder / f"{name}.flac", np.full(1600, 0.1), 16000)
        (folder / f"{speaker}-121123.trans.txt").write_text("".join(f"{n} GO ON\n" for n in names))
    return tmp_path / "LibriSpeech"


def test_librispeech(librispeech):
    dataset = load_librispeech(librispeech, domain="LIB")
    assert [(u.id, u.speaker, u.text, u.split) for u in to_utterances(dataset)][::2] == [
        ("100-121123-0000", "100", "GO ON", "train"),
        ("84-121123-0000", "84", "GO ON", "dev"),
        ("61-121123-0000", "61", "GO ON", "test"),
    ]
    assert validate(dataset)[1] == []
    with pytest.raises(InputError, match=r"dev-other: no SPEAKER/CHAPTER"):
        load_librispeech(librispeech, parts={"dev": "dev-other"})
    (librispeech / "dev-clean/84/121123/84-121123.trans.txt").write_text("84-121123-0000 A\n84-121123-0001\n")
    with pytest.raises(InputError, match=r"trans.txt:2: no words after 84-121123-0001"):
        load_librispeech(librispeech, parts={"dev": "dev-clean"})


def libri_adapt(root, prefix, table_dir, accent="en-gb"):
    """6 train readers of 2 sentences and 2 test readers; paths in the csv start with `prefix`."""
    (root / accent / table_dir).mkdir(parents=True, exist_ok=True)
    for split, readers in (("train", range(10, 16)), ("test", range(61, 63))):
        audio = root / accent / "clean" / split / "matrix"
        audio.mkdir(parents=True, exist_ok=True)
        lines = ["wav_filename,wav_filesize,transcript"]
        for reader in readers:
            for index in range(2):
                name = f"{reader}-1234-000{index}.wav"
                soundfile.write(audio / name, np.full(1600, 0.1), 16000)
                lines.append(f"{prefix}{accent}/clean/{split}/matrix/{name},3244,go on")
        (root / accent / table_dir / f"{split}_files_matrix.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("prefix", ["libriadapt/", "", "/home/someone/data/libriadapt/"])
@pytest.mark.parametrize("table_dir", ["clean", ".", "clean/matrix"])
def test_libri_adapt_layouts(tmp_path, prefix, table_dir):
    root = libri_adapt(tmp_path / "libriadapt", prefix, table_dir)
    dataset = load_libri_adapt(root, "en-gb", "matrix", dev_utterances=2)
    assert validate(dataset)[1] == []
    sizes = {split: len(select(dataset, split=split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 10, "dev": 2, "test": 4}
    assert set(dataset["domain"]) == {"en-gb-matrix"}
    assert set(select(dataset, split="test")["speaker"]) == {"en-gb:61", "en-gb:62"}
    assert not set(select(dataset, split="dev")["speaker"]) & set(select(dataset, split="train")["speaker"])


def test_libri_adapt_us_readers_are_the_speakers(tmp_path):
    root = libri_adapt(tmp_path / "libriadapt", "libriadapt/", "clean", accent="en-us")
    dataset = load_libri_adapt(root, "en-us", "matrix", dev_utterances=0, domain="US-M")
    assert set(select(dataset, split="test")["speaker"]) == {"61", "62"}
    assert set(dataset["split"]) == {"train", "test"}
    assert set(dataset["domain"]) == {"US-M"}


def test_libri_adapt_refusals(tmp_path):
    root = libri_adapt(tmp_path / "libriadapt", "libriadapt/", "clean")
    for options, words in (
        (("en-au", "matrix"), "accent 'en-au': not in Libri-Adapt"),
        (("en-gb", "headset"), "microphone 'headset': not in Libri-Adapt"),
        (("en-gb", "usb"), r"clean/train_files_usb.csv: no such list"),
    ):
        with pytest.raises(InputError, match=words):
            load_libri_adapt(root, *options)
    table = root / "en-gb" / "clean" / "test_files_matrix.csv"
    table.write_text("wav_filename,wav_filesize,transcript\n")
    with pytest.raises(InputError, match="lists no audio"):
        load_libri_adapt(root, "en-gb", "matrix")
    table.write_text("wav_filename,wav_filesize,transcript\nelsewhere/9-9-9.wav,1,hi\n")
    with pytest.raises(InputError, match=r"elsewhere/9-9-9.wav"):
        load_libri_adapt(root, "en-gb", "matrix")
