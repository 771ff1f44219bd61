"""Kaldi, NeMo and SpeechBrain describe the same tiny corpus; their loaders must agree."""

import doctest
import json

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech import corpora
from asrcl.speech.audio import read_audio
from asrcl.speech.corpora import (
    CORPORA,
    columns,
    load_corpus,
    load_kaldi,
    load_nemo,
    load_speechbrain,
    select,
    to_dataset,
    to_utterances,
    write_kaldi,
)

RATE = 8000
ROWS = [  # id, speaker, text, recording, start and end in samples (None: the whole file)
    ("anna-1", "anna", "one two", "rec1", None, None),
    ("anna-2", "anna", "three", "rec2", 800, 4000),
    ("bob-1", "bob", "naïve café", "rec2", 4000, 8000),
]


@pytest.fixture
def corpus(tmp_path):
    """The same three utterances as a Kaldi folder, a NeMo manifest and a SpeechBrain csv."""
    noise = np.random.default_rng(0)
    for name in ("rec1", "rec2"):
        soundfile.write(tmp_path / f"{name}.wav", noise.normal(0, 0.1, RATE), RATE)
    kaldi = tmp_path / "kaldi"
    kaldi.mkdir()
    (kaldi / "wav.scp").write_text("rec1 ../rec1.wav\nrec2 ../rec2.wav\n")
    (kaldi / "text").write_text("".join(f"{i} {t}\n" for i, _, t, *_ in ROWS), encoding="utf-8")
    (kaldi / "utt2spk").write_text("".join(f"{i} {s}\n" for i, s, *_ in ROWS))
    segments, nemo, brain = [], [], ["ID,duration,wav,spk_id,wrd,start,stop"]
    for identity, speaker, text, recording, start, end in ROWS:
        first, last = (start or 0) / RATE, (end or RATE) / RATE
        segments.append(f"{identity} {recording} {first} {last}")
        entry = {"audio_filepath": f"{recording}.wav", "text": text, "speaker": speaker, "id": identity}
        entry |= {"duration": last - first} | ({"offset": first} if start else {})
        nemo.append(json.dumps(entry))
        stop = -1 if end in (None, RATE) else end
        brain.append(
            f"{identity},{last - first},$data_root/{recording}.wav,{speaker},{text},{start or 0},{stop}"
        )
    (kaldi / "segments").write_text("\n".join(segments))
    (tmp_path / "train.jsonl").write_text("\n".join(nemo), encoding="utf-8")
    (tmp_path / "train.csv").write_text("\n".join(brain), encoding="utf-8")
    return tmp_path


def load_all(corpus):
    return (
        load_kaldi(corpus / "kaldi", domain="tiny"),
        load_nemo(corpus / "train.jsonl", domain="tiny"),
        load_speechbrain(corpus / "train.csv", domain="tiny", replacements={"data_root": str(corpus)}),
    )


def test_three_formats_agree(corpus):
    kaldi, nemo, brain = (list(to_utterances(dataset)) for dataset in load_all(corpus))
    assert kaldi == nemo == brain
    assert [(u.id, u.speaker, u.text) for u in kaldi] == [row[:3] for row in ROWS]
    assert [(u.start, u.end) for u in kaldi] == [(0, -1), (800, 4000), (4000, -1)]
    assert kaldi[0].path == str(corpus / "rec1.wav")
    assert {(u.kind, u.domain, u.split) for u in kaldi} == {("audio", "tiny", "train")}


def test_the_parts_hold_the_samples(corpus):
    second = load_kaldi(corpus / "kaldi")[1]
    whole = read_audio(corpus / "rec2.wav", rate=RATE)
    part = read_audio(second["path"], second["start"], second["end"], rate=RATE)
    np.testing.assert_array_equal(part.numpy(), whole[800:4000].numpy())


def test_columns_and_round_trip(corpus):
    assert doctest.testmod(corpora).failed == 0
    dataset = load_kaldi(corpus / "kaldi", split="dev")
    assert tuple(dataset.column_names) == columns
    assert list(to_utterances(to_dataset(to_utterances(dataset)))) == list(to_utterances(dataset))
    assert len(to_dataset([])) == 0
    assert len(select(dataset, split="dev")) == 3
    assert len(select(dataset, domain="kaldi", split="train")) == 0


def test_registry_reaches_the_loaders(corpus):
    assert len(load_corpus("kaldi", folder=corpus / "kaldi")) == 3
    assert set(CORPORA) >= {
        "kaldi",
        "nemo",
        "speechbrain",
        "hub",
        "commonvoice",
        "librispeech",
        "libri_adapt",
    }
    with pytest.raises(InputError, match=r"'kaldy': .*kaldi"):
        load_corpus("kaldy")
    with pytest.raises(InputError, match=r"kaldi: .*folder.*domain, split, root"):
        load_corpus("kaldi", dir="x")


def test_without_segments_and_speakers(corpus):
    folder = corpus / "kaldi"
    for name in ("segments", "utt2spk"):
        (folder / name).unlink()
    (folder / "text").write_text("rec1 hello there\n")
    first, second = to_utterances(load_kaldi(folder))
    assert (first.id, first.text, first.speaker, first.end) == ("rec1", "hello there", "rec1", -1)
    assert second.text == ""  # left for `validate` to list


def test_relative_paths_start_at_root(corpus):
    (corpus / "kaldi" / "wav.scp").write_text("rec1 rec1.wav\nrec2 rec2.wav\n")
    assert load_kaldi(corpus / "kaldi", root=corpus)[0]["path"] == str(corpus / "rec1.wav")


def test_write_kaldi_reads_back(corpus, tmp_path):
    whole = select(load_kaldi(corpus / "kaldi", domain="out")).select([0])
    write_kaldi(whole, tmp_path / "out")
    assert list(to_utterances(load_kaldi(tmp_path / "out"))) == list(to_utterances(whole))
    with pytest.raises(InputError, match="anna-2: "):
        write_kaldi(load_kaldi(corpus / "kaldi"), tmp_path / "out")


@pytest.mark.parametrize("change", [{"id": "a b"}, {"id": ""}, {"speaker": "a\tb"}, {"text": "a\nb"}, {"path": "/a\rb.wav"}])
def test_what_kaldi_cannot_say_is_not_written(corpus, tmp_path, change):
    whole = select(load_kaldi(corpus / "kaldi", domain="out")).select([0])
    with pytest.raises(InputError, match="cannot hold blanks"):
        write_kaldi(whole.map(lambda row: change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_audio_is_left_for_validate(corpus):
    (corpus / "rec2.wav").unlink()
    for dataset in load_all(corpus)[:2]:
        assert (dataset[1]["start"], dataset[1]["end"]) == (0, -1)


def test_segment_beyond_the_file_is_kept_for_validate(corpus):
    (corpus / "kaldi" / "segments").write_text("anna-1 rec1 0.5 1.005\nanna-2 rec1 0 3\nbob-1 rec1 0.25 -1\n")
    parts = [(u.start, u.end) for u in to_utterances(load_kaldi(corpus / "kaldi"))]
    assert parts == [(4000, -1), (0, 24000), (2000, -1)]


KALDI_FAULTS = [
    (
        "wav.scp",
        "rec1 sph2pipe -f wav a.sph |\n",
        r"wav.scp:1: a command \(sph2pipe -f wav a.sph\).*write its output",
    ),
    ("wav.scp", "rec1 flac -c -d -s a/b.flac |\n", r"wav.scp:1: a command, not a file.*name a/b.flac itself"),
    ("wav.scp", "\nrec1 data/raw.ark:17\n", r"wav.scp:2: data/raw.ark:17 is an archive"),
    ("wav.scp", "rec1\n", r"wav.scp:1: no audio file after the key"),
    ("wav.scp", "rec1 a.wav\nrec1 b.wav\n", r"wav.scp:2: rec1 appears twice \(first in line 1\)"),
    ("segments", "anna-1 rec9 0 1\n", r"segments:1: recording rec9 is not in wav.scp"),
    ("segments", "anna-1 rec1 0\n", r"segments:1: expected"),
    ("segments", "anna-1 rec1 0 one\n", r"segments:1: end is 'one', not a number"),
    ("segments", "anna-1 rec1 0.5 0.5\n", r"segments:1: the segment from 0.5 to 0.5 seconds is empty"),
    ("segments", "anna-1 rec1 nan 0.5\n", r"segments:1: start is 'nan'"),
    ("text", "nobody hello\n", r"text:1: utterance nobody has no audio; run utils/fix_data_dir.sh"),
]


@pytest.mark.parametrize(("name", "content", "words"), KALDI_FAULTS)
def test_kaldi_faults_name_file_and_line(corpus, name, content, words):
    (corpus / "kaldi" / name).write_text(content)
    with pytest.raises(InputError, match=words):
        load_kaldi(corpus / "kaldi")


def test_missing_files_are_named(corpus):
    (corpus / "kaldi" / "text").unlink()
    for load, path in (
        (load_kaldi, corpus / "kaldi"),
        (load_nemo, corpus / "x.jsonl"),
        (load_speechbrain, corpus / "x.csv"),
    ):
        with pytest.raises(InputError, match="cannot be read"):
            load(path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", r"train.jsonl:2: not JSON"),
        ("[1]", r"train.jsonl:2: not a JSON object"),
        ('{"text": "a"}', r"train.jsonl:2: 'audio_filepath' is missing"),
        ('{"audio_filepath": "a.wav", "text": 3}', r"train.jsonl:2: 'text' is missing or no text"),
        ('{"audio_filepath": "a.wav", "text": "a", "offset": "x"}', r"train.jsonl:2: offset is 'x'"),
        (
            '{"audio_filepath": "a.wav", "text": "a", "duration": -1}',
            r"train.jsonl:2: .*must not be negative",
        ),
    ],
)
def test_nemo_faults(corpus, line, words):
    path = corpus / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n" + line)
    with pytest.raises(InputError, match=words):
        load_nemo(path)


def test_nemo_names_utterances_after_files(corpus):
    lines = [
        {"audio_filepath": "rec1.wav", "text": "a"},
        {"audio_filepath": "rec1.wav", "text": "b", "offset": 0.5},
    ]
    (corpus / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = to_utterances(load_nemo(corpus / "m.jsonl"))
    assert (first.id, first.speaker, first.end) == ("rec1", "rec1", -1)
    assert (second.id, second.start, second.end, second.domain) == ("rec1-500", 4000, -1, "m")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", r"bad.csv: empty"),
        ("ID,wav\n", r"bad.csv:1: no column wrd \(found ID, wav\)"),
        ("ID,wav,wrd\na,b.wav,one,two\n", r"bad.csv:2: 4 fields where the header has 3"),
        ("ID,wav,wrd\na,$root/b.wav,one\n", r"bad.csv:2: the path \$root/b.wav holds a variable"),
        ("ID,wav,wrd,start\na,b.wav,one,soon\n", r"bad.csv:2: start is 'soon'"),
    ],
)
def test_speechbrain_faults(tmp_path, content, words):
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(InputError, match=words):
        load_speechbrain(tmp_path / "bad.csv")


def test_speechbrain_quoted_text(tmp_path):
    (tmp_path / "q.csv").write_text('ID,duration,wav,wrd\na,1.0,b.wav,"yes, ""no"""\n')
    assert load_speechbrain(tmp_path / "q.csv")[0]["text"] == 'yes, "no"'


@pytest.mark.parametrize("name", ["kaldi/text", "train.jsonl", "train.csv"])
def test_text_that_is_not_utf8_is_named_by_line(corpus, name):
    path = corpus / name
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin1", "replace").replace(b"caf", b"caf\xe9"))
    with pytest.raises(
        InputError, match=rf"{path.name}:\d: not UTF-8 \(byte 0xe[f9] at column \d+\); convert"
    ):
        if path.name == "text":
            load_kaldi(corpus / "kaldi")
        elif path.suffix == ".csv":
            load_speechbrain(path, replacements={"data_root": "x"})
        else:
            path.write_bytes(b'{"audio_filepath": "a.wav", "text": "caf\xe9"}')
            load_nemo(path)
