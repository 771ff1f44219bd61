"""Prepared data that changed on disk is made again with one line, to the same content; killed runs leave no trace."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.experiment import run as experiment
from asrcl.experiment.config import load_config
from asrcl.files import file_lock, read_json
from asrcl.speech import stored
from asrcl.speech.corpora import load_digits, load_hub, to_utterances
from asrcl.speech.features import FeatureStore
from asrcl.speech.prepare import load_domains, open_tokenizer, prepare_data, prepare_tokens, tokenizer_path
from asrcl.speech.synthetic import synthesise


@pytest.fixture
def config(start):
    """An experiment with its data, tokeniser and initial model."""
    return start()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + bytes(path.stat().st_size // 2)),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "gone": Path.unlink,
    "folder": damage_folder,
}
FEATURES = ["features.npy", "meta.json", "sources.json", "utterances/data-00000-of-00001.arrow", "utterances/state.json"]


def content_of(store):
    return {
        split: [(row["id"], row["text"], store.frames(row).numpy().tobytes()) for row in store.rows(split)]
        for split in ("train", "dev", "test")
    }


def damages(files, *records):
    """Every damage of every file, but for a blank line behind a record, which changes nothing that it says."""
    return [(name, damage) for name in files for damage in DAMAGES if damage != "longer" or name not in records]


@pytest.mark.parametrize(("name", "damage"), damages(FEATURES, "meta.json"))
def test_damaged_features_are_made_again(config, name, damage, caplog):
    folder = config.home / "data" / "low" / "features"
    whole = content_of(FeatureStore(folder))
    DAMAGES[damage](folder / name)
    with pytest.raises(InputError, match="data stage") as caught:
        FeatureStore(folder)
    assert "\n" not in str(caught.value)
    prepare_data(config, ["low"])
    assert caplog.text.count("made again") == 1
    assert content_of(FeatureStore(folder)) == whole


@pytest.mark.parametrize("name", ["features.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "folder", "gone"])
def test_later_stages_make_damaged_features_again_too(config, name, damage, caplog):
    folder = config.home / "data" / "low" / "features"
    fingerprint = load_domains(config)[0].fingerprint("train")
    DAMAGES[damage](folder / name)
    assert load_domains(config)[0].fingerprint("train") == fingerprint
    assert caplog.text.count("made again") == 1


@pytest.mark.parametrize(("name", "damage"), damages(["pieces.model", "key.json"], "key.json"))
def test_a_damaged_tokeniser_is_made_again(config, name, damage, caplog):
    path = tokenizer_path(config)
    whole = path.read_bytes()
    DAMAGES[damage](path.with_name(name))
    open_tokenizer(config)
    if (name, damage) != ("key.json", "gone"):  # a tokeniser without a record may be the user's own
        assert caplog.text.count("made again") == 1
    prepare_tokens(config)
    assert path.read_bytes() == whole and set(read_json(path.with_name("key.json"))["files"]) == {"pieces.model"}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_first_model_is_refused_until_it_is_trained_again(config, damage):
    path = experiment.initial_path(config, 1)
    whole = path.read_bytes()
    DAMAGES[damage](path)
    with pytest.raises(InputError, match=r"model\.safetensors.*(asrcl train|stage)"):
        experiment.build_scenario(config, 1)
    if damage == "folder":
        path.rmdir()
    experiment.train(config, 1)
    assert path.read_bytes() == whole
    experiment.build_scenario(config, 1)


def test_what_else_lies_beside_the_tokeniser_stays(config, tones):
    note = tokenizer_path(config).with_name("note.txt")
    note.write_text("mine")
    flip(tokenizer_path(config))
    prepare_tokens(config)
    prepare_tokens(load_config([*config.overrides, "scenario.tokens.size=39"]))
    assert note.read_text() == "mine"


def test_a_first_model_of_the_users_own_needs_no_record(config):
    path = experiment.initial_path(config, 1)
    path.with_suffix(".json").unlink()
    experiment.build_scenario(config, 1)


def test_features_of_an_older_version_are_made_again_with_a_line(config, caplog):
    meta = config.home / "data" / "low" / "features" / "meta.json"
    old = {key: value for key, value in read_json(meta).items() if key not in ("files", "seal")}
    meta.write_text(json.dumps(old))
    prepare_data(config, ["low"])
    assert "meta.json has no hashes (an older version wrote it); made again" in caplog.text


def test_what_is_whole_is_not_made_again(config, caplog):
    files = [path for path in config.home.rglob("*") if path.is_file() and path.suffix != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    prepare_data(config)
    prepare_tokens(config)
    load_domains(config)
    assert {path: path.stat().st_mtime_ns for path in files} == before and "made again" not in caplog.text


def test_a_recording_that_was_replaced_under_its_size_and_date_is_heard(tones, tmp_path):
    shutil.copytree(tones.data, tmp_path / "data")
    config = load_config(tones.overrides(tmp_path / "exp", f"data_dir={tmp_path / 'data'}"))
    prepare_data(config, ["low"])
    store = FeatureStore(config.home / "data" / "low" / "features")
    before, path = store.fingerprint("train"), tmp_path / "data" / "low" / "train" / "s0-low-train-0.wav"
    state, samples = path.stat(), soundfile.read(path, dtype="int16")[0]
    soundfile.write(tmp_path / "new.wav", samples[::-1].copy(), 16000)
    assert (tmp_path / "new.wav").stat().st_size == state.st_size
    os.utime(tmp_path / "new.wav", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(tmp_path / "new.wav", path)
    prepare_data(config, ["low"])
    assert FeatureStore(store.folder).fingerprint("train") != before


def test_a_recording_that_was_only_copied_costs_nothing(tones, tmp_path):
    shutil.copytree(tones.data, tmp_path / "data")
    config = load_config(tones.overrides(tmp_path / "exp", f"data_dir={tmp_path / 'data'}"))
    prepare_data(config, ["low"])
    features = config.home / "data" / "low" / "features" / "features.npy"
    before = features.stat().st_mtime_ns
    for path in (tmp_path / "data").rglob("*.wav"):
        path.write_bytes(path.read_bytes())
    prepare_data(config, ["low"])
    assert features.stat().st_mtime_ns == before


# Synthetic corpora and joined digits


@pytest.mark.parametrize(("suffix", "damage"), damages(["flac", "jsonl", "json"], "json"))
def test_damaged_synthetic_corpora_are_made_again(tmp_path, damage, suffix, caplog):
    def make():
        return synthesise("SCO", accent="SCO", sizes={"test": 2}, seed=1, folder=tmp_path)

    rows = make()
    (home,) = (path for path in tmp_path.iterdir() if path.is_dir())
    whole = {path.name: path.read_bytes() for path in home.iterdir()}
    DAMAGES[damage](sorted(home.glob(f"*.{suffix}"))[0])
    assert make() == rows and {path.name: path.read_bytes() for path in home.iterdir()} == whole
    assert caplog.text.count("made again") == 1


def digits(folder, audio_dir, rate=8000):
    """A package of two speakers, one with a name that leads out of the folder."""
    folder.mkdir(exist_ok=True)
    lines = ["path,start,end,speaker,text,accent,take"]
    for n, speaker in enumerate(("../../out", "theo")):
        soundfile.write(folder / f"{n}.flac", np.sin(np.arange(12000) / (5 + n)) * 0.3, rate)
        lines += [f"{n}.flac,{take * 500},{take * 500 + 500},{speaker},one,USA/x,{take}" for take in range(24)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return load_digits(folder, count={"train": 2, "dev": 1, "test": 1}, audio_dir=audio_dir)


def test_joined_digits_stay_in_their_folder_and_are_checked(tmp_path, caplog):
    corpus = digits(tmp_path / "package", tmp_path / "in" / "audio")
    assert {Path(path).parent.parent for path in corpus["path"]} == {tmp_path / "in" / "audio"}
    assert len({row.speaker for row in to_utterances(corpus)}) == 2
    path = Path(corpus[0]["path"])
    whole = path.read_bytes()
    flip(path)
    assert digits(tmp_path / "package", tmp_path / "in" / "audio")[0] == corpus[0]
    assert path.read_bytes() == whole and caplog.text.count("made again") == 1


# Hubs


def splits_of_one_name(tmp_path, text_of):
    """Two splits, each with a clip a.wav of its own but of the same size."""
    from datasets import Dataset

    files = {}
    for n, split in enumerate(("train", "test")):
        soundfile.write(tmp_path / "a.wav", np.full(1600, 0.1 + 0.2 * n), 16000)
        content = (tmp_path / "a.wav").read_bytes()
        table = {"audio": [{"bytes": content, "path": "a.wav"}], "text": [text_of(split)]}
        Dataset.from_dict(table).to_parquet(tmp_path / f"{split}.parquet")
        files[split] = str(tmp_path / f"{split}.parquet")
        (tmp_path / "a.wav").unlink()
    return files


def level(path):
    return round(float(soundfile.read(path)[0].mean()), 1)


def test_splits_with_equal_file_names_keep_their_own_audio(tmp_path):
    files = splits_of_one_name(tmp_path, str)
    options = {"data_files": files, "audio_dir": tmp_path / "o", "cache_dir": str(tmp_path / "c")}
    read = [load_hub("parquet", split=split, **options) for split in files]
    assert [level(dataset[0]["path"]) for dataset in read] == [0.1, 0.3]


def test_they_do_so_in_one_domain_too_with_ids_of_their_own(tones, tmp_path):
    files = splits_of_one_name(tmp_path, lambda split: f"{split} yes")
    config = load_config(tones.overrides(tmp_path / "exp"))
    options = {"kind": "hub", "name": "parquet", "data_files": files, "cache_dir": str(tmp_path / "c"), "audio_dir": ""}
    config.tree["scenario"]["domains"][0]["corpus"] = [{**options, "split": split} for split in files]
    prepare_data(config, ["low"])
    store = FeatureStore(config.home / "data" / "low" / "features")
    rows = [row for split in files for row in store.rows(split)]
    assert [row["text"] for row in rows] == ["train yes", "test yes"] and len({row["id"] for row in rows}) == 2


def test_rows_with_equal_file_names_are_told_apart(tmp_path, caplog):
    from datasets import Dataset

    clips = []
    for n in range(3):
        soundfile.write(tmp_path / "x.wav", np.full(1600, 0.1 * (1 + n % 2)), 16000)
        clips.append({"bytes": (tmp_path / "x.wav").read_bytes(), "path": "a.wav" if n < 2 else "../../b?.wav"})
    Dataset.from_dict({"audio": clips, "text": ["yes"] * 3}).to_parquet(tmp_path / "t.parquet")
    options = {"data_files": str(tmp_path / "t.parquet"), "audio_dir": tmp_path / "o", "cache_dir": str(tmp_path / "c")}
    rows = list(to_utterances(load_hub("parquet", **options)))
    assert len({row.id for row in rows}) == 3 and [level(row.path) for row in rows] == [0.1, 0.2, 0.1]
    assert {Path(row.path).parent for row in rows} == {tmp_path / "o"}
    flip(Path(rows[0].path))
    assert level(load_hub("parquet", **options)[0]["path"]) == 0.1
    assert caplog.text.count("made again") == 1


# Kills and neighbours


def test_what_killed_writes_left_is_swept(config):
    torn = [config.home / "data" / "low" / "audio" / ".a.wav.x1.part", config.home / "data" / "low" / ".broken.tsv.x2.part"]
    torn[0].parent.mkdir(exist_ok=True)
    for path in torn:
        path.write_bytes(b"half")
    prepare_data(config, ["low"])
    assert not any(path.exists() for path in torn)


def test_a_second_preparation_waits_for_the_first(config):
    features = config.home / "data" / "low" / "features" / "features.npy"
    flip(features)
    damaged = features.read_bytes()
    second = threading.Thread(target=prepare_data, args=(config, ["low"]))
    with file_lock(config.home / "data" / ".low.lock"):
        second.start()
        second.join(1.0)
        assert second.is_alive() and features.read_bytes() == damaged
    second.join()
    FeatureStore(features.parent)


def test_a_full_disk_is_one_line(config, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    flip(config.home / "data" / "low" / "features" / "features.npy")
    monkeypatch.setattr("asrcl.speech.features._write_frames", full)
    with pytest.raises(InputError, match=r"features: .*No space left"):
        prepare_data(config, ["low"])


def test_a_record_is_written_last(tmp_path, monkeypatch):
    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    folder, made = tmp_path / "entry", []

    def make():
        made.append((folder / "key.json").exists())
        (folder / "a").write_bytes(b"content")

    monkeypatch.setattr(stored, "seal", die)
    with pytest.raises(KeyboardInterrupt):
        stored.made_once(folder, {"key": 1}, make)
    monkeypatch.undo()
    for key in ({"key": 1}, {"key": 1}, {"key": (2,)}, {"key": (2,)}):
        stored.made_once(folder, key, make)
    assert made == [False, False, False]
