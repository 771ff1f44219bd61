"""`load_hub` with the builders that need no network: the code path is the Hub's."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset

from asrcl.exceptions import InputError
from asrcl.speech.audio import read_audio
from asrcl.speech.corpora import hub, load_hub, to_utterances, validate


def encoded(format_, seed=0):
    stream = io.BytesIO()
    soundfile.write(stream, np.random.default_rng(seed).normal(0, 0.1, 1600), 16000, format=format_)
    return stream.getvalue()


@pytest.fixture
def parquet(tmp_path):
    """Four rows in Common Voice's columns, audio as bytes inside the table."""
    formats = ["FLAC", "MP3", "OGG", "WAV"]
    table = {
        "client_id": ["a", "a", "b", "c"],
        "audio": [{"bytes": encoded(f, i), "path": f"clip{i}.{f.lower()}"} for i, f in enumerate(formats)],
        "sentence": ["one", "two", "three", None],
        "accent": ["scotland", "us", "scotland", ""],
    }
    path = tmp_path / "rows.parquet"
    Dataset.from_dict(table).to_parquet(path)
    return str(path)


def load(parquet, tmp_path, **options):
    defaults = {"text_column": "sentence", "speaker_column": "client_id", "audio_dir": tmp_path / "audio"}
    return load_hub("parquet", data_files=parquet, cache_dir=str(tmp_path / "cache"), **(defaults | options))


@pytest.mark.parametrize("streaming", [True, False])
def test_bytes_become_files_once(parquet, tmp_path, streaming):
    dataset = load(parquet, tmp_path, streaming=streaming, domain="cv")
    rows = list(to_utterances(dataset))
    assert [(r.id, r.speaker, r.text) for r in rows] == [
        ("clip0", "a", "one"),
        ("clip1", "a", "two"),
        ("clip2", "b", "three"),
        ("clip3", "c", ""),
    ]
    assert [r.path.rsplit(".", 1)[1] for r in rows] == ["flac", "mp3", "ogg", "wav"]
    assert {(r.domain, r.split, r.start, r.end) for r in rows} == {("cv", "train", 0, -1)}
    for row in rows:
        assert len(read_audio(row.path, rate=16000)) >= 1600
    files = sorted((tmp_path / "audio").iterdir())
    assert len(files) == 4
    stamps = [f.stat().st_mtime_ns for f in files]
    load(parquet, tmp_path, streaming=streaming)
    assert [f.stat().st_mtime_ns for f in sorted((tmp_path / "audio").iterdir())] == stamps


def test_half_written_file_is_written_again(parquet, tmp_path):
    path = Path(load(parquet, tmp_path)[0]["path"])
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    load(parquet, tmp_path)
    assert path.read_bytes() == whole


def test_where_and_domain_column(parquet, tmp_path):
    scots = load(parquet, tmp_path, where={"accent": "scotland"}, domain_column="accent")
    assert [(r.id, r.domain) for r in to_utterances(scots)] == [("clip0", "scotland"), ("clip2", "scotland")]
    assert len(list((tmp_path / "audio").iterdir())) == 2  # nothing is written for rows passed over
    both = load(parquet, tmp_path, where={"accent": ["scotland", "us"]}, limit=2)
    assert both["id"] == ["clip0", "clip1"]


def test_stored_audio_feature(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.full(1600, 0.25), 16000)
    content = (tmp_path / "a.wav").read_bytes()
    table = Dataset.from_dict(
        {"audio": [{"bytes": content, "path": "a.wav"}], "text": ["yes"], "id": ["7/8"]}
    )
    table.cast_column("audio", Audio(sampling_rate=16000)).to_parquet(tmp_path / "t.parquet")
    dataset = load_hub(
        "parquet", data_files=str(tmp_path / "t.parquet"), audio_dir=tmp_path / "out", id_column="id",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert dataset[0]["id"] == "7/8"
    assert dataset[0]["path"].startswith(str(tmp_path / "out" / "7_8-"))
    assert float(read_audio(dataset[0]["path"], rate=16000).mean()) == pytest.approx(0.25, abs=1e-4)


def test_json_with_local_files_and_preset_split(tmp_path):
    soundfile.write(tmp_path / "x.flac", np.full(1600, 0.1), 16000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": str(tmp_path / "x.flac"), "text": "hello"}))
    files = {"validation": str(tmp_path / "m.jsonl")}
    dataset = load_hub("json", data_files=files, split="validation", audio_dir=tmp_path / "out")
    (row,) = to_utterances(dataset)
    assert (row.split, row.path, row.id, row.domain) == ("dev", str(tmp_path / "x.flac"), "x", "json")
    assert not (tmp_path / "out").exists()  # a local original is used in place


def test_audiofolder(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", np.full(1600, 0.1), 16000)
    (folder / "metadata.csv").write_text("file_name,transcription,who\na.wav,yes,ann\nb.wav,no,ben\n")
    dataset = load_hub(
        "audiofolder", data_dir=str(folder), text_column="transcription", speaker_column="who", domain="af",
        audio_dir=tmp_path / "out",
    )  # fmt: skip
    found = sorted((r.id, r.text, r.speaker) for r in to_utterances(dataset))
    assert found == [
        ("a", "yes", "ann"),
        ("b", "no", "ben"),
    ]
    assert validate(dataset)[1] == []


def test_presets_fill_in_columns(parquet, tmp_path, monkeypatch):
    monkeypatch.setitem(hub.PRESETS["commonvoice"], "name", "parquet")
    monkeypatch.setitem(hub.PRESETS["commonvoice"], "config", None)
    dataset = load_hub("commonvoice", data_files=parquet, audio_dir=tmp_path / "o", domain_column="accent")
    assert [(r.text, r.speaker, r.domain) for r in to_utterances(dataset)][:2] == [
        ("one", "a", "scotland"),
        ("two", "a", "us"),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"audio_column": "wave"}, "no column 'wave' .*set audio_column"),
        ({"text_column": "words"}, r"no column words \(found client_id, audio, sentence, accent\)"),
        ({"where": {"age": "40"}}, "no column age"),
        ({"split": "nowhere"}, "cannot be loaded .*use a local loader"),
    ],
)
def test_faults_of_the_request(parquet, tmp_path, options, words):
    with pytest.raises(InputError, match=words) as caught:
        load(parquet, tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_dataset_that_cannot_be_reached(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(hub, "load_dataset", refuse)
    with pytest.raises(
        InputError, match=r"someone/corpus \(.*en.*train\).*no route.*hf auth login"
    ):
        load_hub("someone/corpus", "en", audio_dir=tmp_path)


def test_row_without_audio(tmp_path):
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": str(tmp_path / "gone.flac"), "text": "hello"}))
    with pytest.raises(InputError, match=r"json row 0: no audio at .*gone.flac"):
        load_hub("json", data_files=str(tmp_path / "m.jsonl"), audio_dir=tmp_path)


def test_files_inside_archives_are_written_out(tmp_path):
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("a.flac", encoded("FLAC"))
    url = f"zip://a.flac::{tmp_path / 'clips.zip'}"
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": url, "text": "hello"}))
    dataset = load_hub("json", data_files=str(tmp_path / "m.jsonl"), audio_dir=tmp_path / "out")
    assert dataset[0]["id"] == "a" and dataset[0]["path"].startswith(str(tmp_path / "out" / "a-"))
    assert len(read_audio(dataset[0]["path"], rate=16000)) == 1600


def test_audiofolder_without_streaming_names_the_way_out(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ImportError("torchcodec")

    monkeypatch.setattr(hub, "load_dataset", refuse)
    with pytest.raises(InputError, match="streaming=True"):
        load_hub("audiofolder", audio_dir=tmp_path, streaming=False)
