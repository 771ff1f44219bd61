"""Whatever is in a file, its reader gives a result or one line: no other exception, no endless work.

Valid files of every kind are changed at random. `ASRCL_FUZZ=20` takes twenty times as many examples.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.experiment.config import load_config
from asrcl.speech import initial
from asrcl.speech.audio import audio_info, open_cepstra, read_audio, read_cepstra
from asrcl.speech.corpora import (
    load_an4,
    load_coffee,
    load_commonvoice,
    load_digits,
    load_hub,
    load_kaldi,
    load_libri_adapt,
    load_librispeech,
    load_nemo,
    load_speechbrain,
    validate,
)
from asrcl.speech.features import FeatureConfig, FeatureStore, build_features
from asrcl.speech.tokenizer import PieceTokenizer, train_tokenizer

MANY = int(os.environ.get("ASRCL_FUZZ", "1"))
MANIFESTS = {
    "wav.scp": "r1 a.wav\nr2 sub/b.wav\n",
    "segments": "u1 r1 0.0 0.5\nu2 r2 0.1 -1\n",
    "text": "u1 turn on the light\nu2 yes\n",
    "utt2spk": "u1 anna\nu2 bob\n",
    "reco2file_and_channel": "r1 a A\n",
    "nemo.json": '{"audio_filepath": "a.wav", "text": "yes", "offset": 0.1, "duration": 0.3, "speaker": "s", "id": 1}\n' * 2
    + '{"audio_filepath": "sub/b.wav", "text": "no", "shard_id": 0, "channel": 0}\n',
    "sb.csv": 'ID, duration, wav, spk_id, wrd, start, stop\nu1, 1.0, $data_root/a.wav, s1, "HELLO, YOU", 0, 4000\n',
    "validated.tsv": "client_id\tpath\tsentence\taccents\n"
    + "".join(f"s{n}\tc{n}.mp3\tyes\tScottish English (Scots)\n" for n in range(5)),
    "list.txt": "c1.mp3 yes\n",
    "train-clean-360/1/2/1-2.trans.txt": "1-2-0000 YES\n1-2-0001 NO NO\n",
    "en-us/clean/train_files_usb.csv": "wav_filename,wav_filesize,transcript\na.wav,1,yes\nsub/b.wav,1,no\n",
    "en-us/clean/test_files_usb.csv": "wav_filename,wav_filesize,transcript\na.wav,1,yes\n",
    "manifest.csv": "utt_id,path,start,end,speaker,text,domain,split,cluster,level,accent,take\n"
    + "".join(f"u{n},a.wav,{n},{n + 900},s{n % 2},yes,cen,train,c,A,USA/x,{n}\n" for n in range(12)),
    "hub.json": '{"audio": "a.wav", "text": "yes"}\n',
}
READERS: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("wav.scp", "segments", "text", "utt2spk", "reco2file_and_channel"), load_kaldi),
    "nemo.json": lambda folder: load_nemo(folder / "nemo.json"),
    "sb.csv": lambda folder: load_speechbrain(folder / "sb.csv", replacements={"data_root": str(folder)}),
    "validated.tsv": lambda folder: load_commonvoice(folder, accents=["SCO"], dev_utterances=1, test_utterances=1),
    "list.txt": lambda folder: load_commonvoice(folder, accents=["SCO"], lists={"train": folder / "list.txt"}),
    "train-clean-360/1/2/1-2.trans.txt": lambda folder: load_librispeech(folder, parts={"train": "train-clean-360"}),
    "en-us/clean/train_files_usb.csv": lambda folder: load_libri_adapt(folder, "en-us", "usb", dev_utterances=0),
    "en-us/clean/test_files_usb.csv": lambda folder: load_libri_adapt(folder, "en-us", "usb", dev_utterances=0),
    "manifest.csv": lambda folder: (load_an4(folder), load_coffee(folder), load_digits(folder, audio_dir=folder / "out"))[1],
}
TOKENS = [
    "", "\0", "\n", "\r", "\t", '"', "'", ",", "$data", "$", "|", ".ark:3", "\ufeff", "\u2028", "\ud800", "é", "-1", "nan",
    "1e309", "1e18", "9" * 5000, "[" * 2000, '{"a":', "null", "true", "/", "../", "~x/", "x" * 300, "\x1b[31m", "(" * 3000,
    '"id": ""', "0",
]  # fmt: skip

edits = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "token", "swap"]),
        st.one_of(st.binary(max_size=8), st.sampled_from(TOKENS).map(lambda text: text.encode("utf-8", "surrogatepass"))),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, steps) -> bytes:
    """The content after some edits."""
    for where, kind, more, size in steps:
        place = int(where * (len(content) + 1))
        part, tail = content[place : place + size], content[place + size :]
        content = content[:place] + {
            "flip": bytes(byte ^ (1 << size % 8) for byte in part[:1]) + part[1:] + tail,
            "cut": b"",
            "drop": tail,
            "repeat": part * 3 + tail,
            "insert": more + part + tail,
            "token": more + tail,
            "swap": part[::-1] + tail,
        }[kind]
    return content


def examples(count):
    return settings(max_examples=count * MANY, derandomize=MANY == 1, deadline=None, suppress_health_check=list(HealthCheck))


def one_line(read: Callable[[], object]) -> None:
    """A result, or one line for the user."""
    try:
        read()
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 20_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All kinds of manifests in one folder, with two recordings."""
    home = tmp_path_factory.mktemp("corpora")
    (home / "sub").mkdir()
    for name in ("a.wav", "sub/b.wav"):
        soundfile.write(home / name, np.sin(np.arange(8000) / 9) * 0.3, 8000)
    for name, text in MANIFESTS.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
    return home


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_are_changed_are_valid(folder, name):
    READERS[name](folder)


@pytest.mark.parametrize("name", READERS)
def test_manifests(folder, name):
    @examples(40)
    @given(edits)
    def hold(steps):
        (folder / name).write_bytes(changed(MANIFESTS[name].encode(), steps))

        def read():
            corpus = READERS[name](folder)
            if isinstance(corpus, Dataset):
                validate(corpus, max_broken_share=1)

        one_line(read)

    try:
        hold()
    finally:
        (folder / name).write_text(MANIFESTS[name])


SOUNDS = {"WAV": "PCM_16", "WAVEX": "PCM_24", "RF64": "PCM_16", "W64": "PCM_16", "AIFF": "PCM_16", "AU": "ULAW", "NIST": "PCM_16",
          "FLAC": "PCM_16", "OGG": "VORBIS", "MP3": "MPEG_LAYER_III", "CAF": "PCM_16", "SVX": "PCM_16"}  # fmt: skip


@pytest.mark.parametrize("form", SOUNDS)
def test_audio(tmp_path, form):
    path = tmp_path / "a.audio"
    soundfile.write(path, np.sin(np.arange(3000) / 9) * 0.3, 16000, format=form, subtype=SOUNDS[form])
    whole = path.read_bytes()

    @examples(60)
    @given(edits, st.booleans())
    def hold(steps, early):
        path.write_bytes(changed(whole[:150], steps) + whole[150:] if early else changed(whole, steps))
        one_line(lambda: audio_info(path))
        one_line(lambda: read_audio(path, rate=16000, channel=0))

    hold()


def test_cepstra(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((20, 13), dtype=np.float32))
    whole = path.read_bytes()

    @examples(80)
    @given(edits, st.booleans())
    def hold(steps, early):
        path.write_bytes(changed(whole[:128], steps) + whole[128:] if early else changed(whole, steps))
        open_cepstra.cache_clear()
        one_line(lambda: read_cepstra(str(path)))

    hold()


def test_tokenisers(tmp_path):
    path = tmp_path / "pieces.model"
    train_tokenizer(["turn on the light", "yes"], path, size=40, kind="char")
    whole = path.read_bytes()

    @examples(60)
    @given(edits)
    def hold(steps):
        path.write_bytes(changed(whole, steps))
        one_line(lambda: PieceTokenizer(path).encode("turn on"))

    hold()


def test_stored_features(tmp_path, make_corpus):
    store = build_features(make_corpus({"train": 1}), FeatureConfig(bins=8), tmp_path / "features")
    files = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}

    @examples(80)
    @given(st.sampled_from(sorted(files)), edits)
    def hold(path, steps):
        path.write_bytes(changed(files[path], steps))
        try:
            one_line(lambda: FeatureStore(store.folder).frames(store.rows("train")[0]))
        finally:
            path.write_bytes(files[path])

    hold()


def test_records_of_first_models(tmp_path, monkeypatch):
    config = load_config(["scenario=accents"])
    record = {"settings": initial.what_it_depends_on(config), "files": {"pieces.model": {"hash": "0"}}}
    folder = tmp_path / config.tree["scenario"]["initial"]["models"]
    folder.mkdir(parents=True)
    monkeypatch.setattr(initial, "config_folder", lambda: tmp_path / "conf")

    @examples(60)
    @given(edits)
    def hold(steps):
        (folder / "models.json").write_bytes(changed(json.dumps(record).encode(), steps))
        one_line(lambda: initial.shipped_model(config, 1))

    hold()


def test_configuration(tmp_path):
    (tmp_path / "scenario").mkdir()
    text = "name: mine\nfeatures: {bins: 8}\ndomains:\n  - {name: home, corpus: {kind: kaldi, folder: '${data_dir}/home'}}\n"

    @examples(15)
    @given(edits, st.sampled_from(["data_dir=/x", "train.adapt.epochs=3", "+scenario.tokens={size: 30}"]), edits)
    def hold(steps, override, more):
        (tmp_path / "scenario" / "mine.yaml").write_bytes(changed(text.encode(), steps))
        typed = changed(override.encode(), more[:1]).decode("utf-8", "replace")
        one_line(lambda: load_config([f"config_dir={tmp_path}", "scenario=mine", "data_dir=/data"]))
        if not typed.startswith("config_dir"):
            one_line(lambda: load_config([typed]))

    hold()


def test_local_datasets(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(800), 8000)
    text = json.dumps({"audio": str(tmp_path / "a.wav"), "text": "yes"})

    @examples(10)
    @given(edits)
    def hold(steps):
        (tmp_path / "m.json").write_bytes(changed(text.encode(), steps))
        places = {"data_files": str(tmp_path / "m.json"), "audio_dir": tmp_path / "o", "cache_dir": str(tmp_path / "c")}
        one_line(lambda: load_hub("json", **places))

    hold()
