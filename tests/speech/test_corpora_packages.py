"""The packed corpora: a tiny package of the same form everywhere, the real ones where they are present."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech.audio import read_audio, read_cepstra
from asrcl.speech.corpora import (
    load_an4,
    load_coffee,
    load_corpus,
    load_digits,
    select,
    to_utterances,
    validate,
)
from asrcl.text import ALPHABET

DATA = Path(os.environ.get("ASRCL_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
RATE = 8000
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPEAKERS = {
    "jackson": "USA/neutral",
    "theo": "USA/neutral",
    "lucas": "DEU/German",
    "yweweler": "DEU/German",
    "nicolas": "BEL/French",
    "george": "GRC/Greek",
}


def package(name):
    folder = DATA / name
    if not (folder / "manifest.csv").is_file():
        pytest.skip(f"{name} is not here; set ASRCL_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="module")
def fsdd(tmp_path_factory):
    """Six speakers, ten words, twelve takes; a sample's value tells speaker, word and take apart."""
    folder = tmp_path_factory.mktemp("fsdd_8k")
    (folder / "audio").mkdir()
    rows = []
    for s, (speaker, accent) in enumerate(SPEAKERS.items()):
        pieces = []
        for take in range(12):
            for w, word in enumerate(WORDS):
                start, length = sum(map(len, pieces)), 400 + 10 * w + take
                pieces.append(np.full(length, 1000 + 2000 * s + 100 * w + take, dtype=np.int16))
                rows.append((f"audio/{speaker}.flac", start, start + length, speaker, word, accent, take))
        soundfile.write(folder / "audio" / f"{speaker}.flac", np.concatenate(pieces), RATE)
    with open(folder / "manifest.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("path", "start", "end", "speaker", "text", "accent", "take"), *rows])
    return folder


def speakers(dataset):
    return {split: set(select(dataset, split=split)["speaker"]) for split in ("train", "dev", "test")}


def spoken(row):
    """The digits found in the audio itself: `[(speaker, word, take)]`."""
    samples = np.rint(read_audio(row.path, row.start, row.end, rate=RATE).numpy() * 32768).astype(int)
    runs, found = (
        np.flatnonzero(np.diff(np.concatenate([[0], (samples > 500).astype(int), [0]]))).reshape(-1, 2),
        [],
    )
    for first, last in runs:
        (value,) = set(samples[first:last])
        code = value - 1000
        found.append((list(SPEAKERS)[code // 2000], WORDS[code % 2000 // 100], code % 100))
    return found, runs, samples


def test_digit_strings_say_what_they_claim(fsdd, tmp_path):
    dataset = load_digits(fsdd, count={"train": 12, "dev": 3, "test": 4}, audio_dir=tmp_path)
    assert validate(dataset, alphabet=ALPHABET, decode=True)[1] == []
    assert Counter(dataset["split"]) == {"train": 12, "dev": 3, "test": 4}
    for row in to_utterances(dataset):
        found, runs, samples = spoken(row)
        assert " ".join(word for _, word, _ in found) == row.text
        assert {speaker for speaker, _, _ in found} == {row.speaker}
        assert 3 <= len(found) <= 7
        assert runs[0][0] == 0.1 * RATE
        gaps = np.append(runs[1:, 0], len(samples)) - runs[:, 1]
        assert gaps.min() >= 0.06 * RATE - 1
        assert gaps.max() <= 0.16 * RATE + 1
        assert samples[: runs[0][0]].std() > 0.5  # never digital silence


def test_test_speakers_are_unseen(fsdd, tmp_path):
    everyone = load_digits(fsdd, audio_dir=tmp_path, count={"train": 9, "dev": 3, "test": 4})
    assert speakers(everyone) == {
        "train": {"jackson", "lucas", "george"},
        "dev": {"nicolas"},
        "test": {"theo", "yweweler"},
    }
    german = load_digits(fsdd, ["deu"], audio_dir=tmp_path, count={"train": 9, "dev": 3, "test": 3})
    assert speakers(german) == {"train": {"lucas"}, "dev": {"lucas"}, "test": {"yweweler"}}
    assert set(german["domain"]) == {"digits_deu"}
    other = load_digits(fsdd, ["USA/neutral"], audio_dir=tmp_path, test_speakers=["jackson"], domain="us")
    assert speakers(other) == {"train": {"theo"}, "dev": {"theo"}, "test": {"jackson"}}
    chosen = load_digits(fsdd, audio_dir=tmp_path, test_speakers=["george"], dev_speakers=["theo"])
    assert speakers(chosen)["test"] == {"george"}
    assert speakers(chosen)["dev"] == {"theo"}
    assert Counter(chosen["split"]) == {"train": 600, "dev": 60, "test": 60}


def takes(dataset, split):
    return {take for row in to_utterances(select(dataset, split=split)) for _, _, take in spoken(row)[0]}


def test_dev_and_shared_splits_never_share_a_recording(fsdd, tmp_path):
    german = load_digits(fsdd, ["DEU"], {"train": 20, "dev": 10, "test": 10}, audio_dir=tmp_path)
    assert takes(german, "dev") <= set(range(5))
    assert takes(german, "train") <= set(range(5, 12))
    greek = load_digits(fsdd, ["GRC"], {"train": 20, "dev": 10, "test": 10}, audio_dir=tmp_path, shared=True)
    assert takes(greek, "test") <= set(range(5))
    assert takes(greek, "dev") <= set(range(5, 10))
    assert takes(greek, "train") <= set(range(10, 12))


def test_written_once_and_reproducible(fsdd, tmp_path):
    first = load_digits(fsdd, ["DEU"], {"train": 4}, audio_dir=tmp_path / "a")
    path = Path(first[0]["path"])
    stamp, content = path.stat().st_mtime_ns, path.read_bytes()
    load_digits(fsdd, ["DEU"], {"train": 4}, audio_dir=tmp_path / "a")
    assert path.stat().st_mtime_ns == stamp
    again = load_digits(fsdd, ["DEU"], {"train": 4}, audio_dir=tmp_path / "b")
    assert Path(again[0]["path"]).read_bytes() == content
    other = load_digits(fsdd, ["DEU"], {"train": 4}, seed=1, audio_dir=tmp_path / "a")
    assert other["path"] != first["path"]
    assert other["text"] != first["text"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"accents": ["GRC"]}, "only george speaks with this accent.*shared=True"),
        ({"accents": ["SCO"]}, "no accent sco; choose from BEL/French"),
        ({"accents": "USA"}, r'give a list, e.g. \["USA"\]'),
        ({"test_speakers": ["anna"]}, "no speaker anna here; choose from george"),
        ({"accents": ["DEU"], "test_speakers": ["lucas", "yweweler"]}, "must serve train and test apart"),
        ({"accents": ["DEU"], "test_speakers": []}, "must serve train and test apart"),
        ({"test_speakers": ["theo"], "dev_speakers": ["theo"]}, "must serve train and test apart"),
        ({"count": {"valid": 3}}, "count: no split valid; the splits are train, dev, test"),
    ],
)
def test_digit_refusals(fsdd, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        load_digits(fsdd, audio_dir=tmp_path, **options)


def test_an4_parts_and_bad_part(tmp_path):
    np.save(tmp_path / "feats.npy", np.arange(39, dtype=np.float32).reshape(3, 13))
    header = "utt_id,path,start,end,speaker,text,domain,split\n"
    (tmp_path / "manifest.csv").write_text(
        header + "a,feats.npy,0,2,s,yes,an,train\nb,feats.npy,2,3,t,a b,cen,test\n"
    )
    assert load_an4(tmp_path)["id"] == ["a", "b"]
    (row,) = to_utterances(load_an4(tmp_path, "cen"))
    assert (row.kind, row.domain, row.split, row.start, row.end) == ("mfcc13", "an4_cen", "test", 2, 3)
    assert read_cepstra(row.path, row.start, row.end).shape == (1, 13)
    with pytest.raises(InputError, match="an4 part 'names': not known"):
        load_an4(tmp_path, "names")
    (tmp_path / "manifest.csv").write_text(header + "a,feats.npy,zero,2,s,yes,an,train\n")
    with pytest.raises(InputError, match=r"manifest.csv:2: start is 'zero'"):
        load_an4(tmp_path)


def test_coffee_keeps_doubtful_transcripts_out_of_test(tmp_path):
    rows = [f"u{i},a.flac,0,9,c{i},tea,{level},{split}" for i, (level, split) in enumerate(
        [("A", "train"), ("C", "train"), ("C", "dev"), ("B", "test"), ("C", "test"), ("A", "dev")]
    )]  # fmt: skip
    (tmp_path / "manifest.csv").write_text(
        "utt_id,path,start,end,cluster,text,level,split\n" + "\n".join(rows)
    )
    assert load_coffee(tmp_path)["id"] == ["u0", "u1", "u3", "u5"]


def test_real_an4():
    folder = package("an4_mfcc13")
    cen, an = load_corpus("an4", folder=folder, part="cen"), load_corpus("an4", folder=folder, part="an")
    assert Counter(cen["split"]) == {"train": 515, "dev": 64, "test": 80}
    assert Counter(an["split"]) == {"train": 328, "dev": 41, "test": 50}
    both = load_an4(folder)
    found = speakers(both)
    assert [len(found[s]) for s in ("train", "dev", "test")] == [66, 8, 10]
    assert len(set.union(*found.values())) == 84
    assert validate(both, alphabet=ALPHABET, max_broken_share=0)[1] == []


def test_real_coffee():
    dataset = load_coffee(package("s2i_coffee_16k"))
    assert Counter(dataset["split"]) == {"train": 451, "dev": 44, "test": 73}
    found = speakers(dataset)
    assert sum(map(len, found.values())) == len(set.union(*found.values()))
    assert validate(dataset, alphabet=ALPHABET, max_broken_share=0)[1] == []


def test_real_digits(tmp_path):
    dataset = load_digits(package("fsdd_8k"), count={"train": 9, "dev": 3, "test": 4}, audio_dir=tmp_path)
    assert speakers(dataset) == {
        "train": {"jackson", "lucas", "george"},
        "dev": {"nicolas"},
        "test": {"theo", "yweweler"},
    }
    assert validate(dataset, alphabet=ALPHABET, max_broken_share=0, decode=True)[1] == []
    row = next(to_utterances(dataset))
    seconds = (row.end - row.start) / RATE
    assert len(read_audio(row.path, row.start, row.end, rate=16000)) == pytest.approx(seconds * 16000, abs=2)
    assert 1 < seconds < 8
