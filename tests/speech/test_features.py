"""Features: right by eye for a tone, right to the digit for AN4, computed once and never half."""

import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrcl.exceptions import InputError
from asrcl.speech import features
from asrcl.speech.audio import read_audio
from asrcl.speech.corpora import Utterance, to_dataset
from asrcl.speech.features import FeatureConfig, FeatureStore, an4_cepstra, build_features, features_of, finish, log_mel

DATA = Path(os.environ.get("ASRCL_DATA", Path(__file__).resolve().parents[2] / ".." / "shared" / "data"))
AN4_TOLERANCE = 1e-4  # float32 sums in another order; the values reach 20
CONFIG = FeatureConfig(bins=20)


def sine(frequency, seconds=0.5, rate=16000):
    return 0.5 * torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * rate)) / rate)


def as_row(path, kind="audio", name="u"):
    return {"id": name, "path": str(path), "start": 0, "end": -1, "kind": kind}


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_frame_every_ten_milliseconds(rate):
    frames = log_mel(sine(440, 0.73, rate), rate, 40)
    assert frames.shape == (74, 40) and bool(torch.isfinite(frames).all())


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 3000.0, 6000.0])
def test_a_tone_is_loudest_in_the_mel_bin_around_it(frequency):
    def mel(hertz):
        return 2595 * np.log10(1 + hertz / 700)

    bins = 40
    wanted = mel(frequency) / mel(8000) * (bins + 1) - 1
    loudest = log_mel(sine(frequency), 16000, bins)[5:-5].argmax(dim=1)
    assert (loudest - wanted).abs().max() <= 1


def test_ten_times_the_amplitude_is_twenty_decibels():
    quiet, loud = (log_mel(sine(1000) * gain, 16000, 20)[10].max() for gain in (0.1, 1.0))
    assert float(loud - quiet) == pytest.approx(np.log(100), rel=1e-3)


def test_silence_is_finite():
    assert bool(torch.isfinite(finish(log_mel(torch.zeros(8000), 16000, 20), CONFIG)).all())


def test_cepstra_of_an4_are_reproduced():
    """The corpus comes as cepstra with eight recordings to check them against; each has one extra last frame."""
    folder = DATA / "an4_mfcc13"
    if not (folder / "manifest.csv").is_file():
        pytest.skip("an4_mfcc13 is not here; set ASRCL_DATA to the folder that holds it")
    with open(folder / "manifest.csv", newline="") as stream:
        rows = {row["utt_id"]: row for row in csv.DictReader(stream)}
    stored, recordings = np.load(folder / "feats.npy", mmap_mode="r"), sorted((folder / "audio_check").glob("*.flac"))
    assert len(recordings) == 8
    for recording in recordings:
        row = rows[recording.stem]
        wanted = torch.from_numpy(np.array(stored[int(row["start"]) : int(row["end"])]))
        found = an4_cepstra(read_audio(recording, rate=16000))
        assert len(found) == len(wanted) - 1
        torch.testing.assert_close(found, wanted[:-1], atol=AN4_TOLERANCE, rtol=0)


def test_normalisation():
    frames = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    both = finish(frames, FeatureConfig(bins=5))
    torch.testing.assert_close(both.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(both.std(0, correction=0), torch.ones(5))
    torch.testing.assert_close(finish(frames, FeatureConfig(bins=5, normalise="mean")), frames - frames.mean(0))
    assert torch.equal(finish(frames, FeatureConfig(bins=5, normalise="none")), frames)


def test_deltas_are_the_slope_over_time():
    ramp = torch.arange(20.0)[:, None] * torch.tensor([[1.0, -2.0]])
    config = FeatureConfig(bins=2, deltas=True, normalise="none")
    found = finish(ramp, config)
    assert found.shape == (20, 4) and config.size == 4
    torch.testing.assert_close(found[2:-2, 2:], torch.tensor([1.0, -2.0]).expand(16, 2))


def test_other_rates_are_resampled(tone, tmp_path):
    narrow, wide = (tone(tmp_path / f"{rate}.wav", rate=rate, frequency=1000) for rate in (8000, 16000))
    config = FeatureConfig(bins=20, normalise="none")
    first, second = (features_of(as_row(path), config) for path in (narrow, wide))
    assert first.shape == second.shape
    assert first[20].argmax() == second[20].argmax()


def test_stored_features_are_half_precision_of_the_computed_ones(make_corpus, tmp_path):
    corpus = make_corpus()
    store = build_features(corpus, CONFIG, tmp_path / "features")
    assert [len(store.rows(split)) for split in ("train", "dev", "test", "other")] == [3, 1, 2, 0]
    by_id = {row["id"]: row for row in corpus}
    for row in store.rows("train"):
        wanted = features_of(by_id[row["id"]], CONFIG)
        found = store.frames(row)
        assert found.dtype == torch.float32 and found.shape == (row["frames"], CONFIG.size)
        assert torch.equal(found, wanted.half().float())
        assert all(row[key] == by_id[row["id"]][key] for key in ("text", "speaker", "domain", "split"))


def test_frames_are_read_from_a_memory_map(make_corpus, tmp_path):
    store = build_features(make_corpus(), CONFIG, tmp_path / "features")
    assert isinstance(store._frames, np.memmap)
    total = sum(row["frames"] for split in ("train", "dev", "test") for row in store.rows(split))
    assert np.load(tmp_path / "features" / "features.npy").shape == (total, 20)
    assert store.meta["frames"] == total


@pytest.fixture
def computed(monkeypatch):
    """Names of the utterances whose features are computed."""
    names = []
    original = features.features_of

    def counting(row, config, speed=1.0):
        names.append(row["id"])
        return original(row, config, speed)

    monkeypatch.setattr(features, "features_of", counting)
    return names


def test_the_same_features_are_computed_once(make_corpus, computed, tmp_path):
    corpus = make_corpus()
    first = build_features(corpus, CONFIG, tmp_path / "features")
    assert len(computed) == 6
    again = build_features(corpus, CONFIG, tmp_path / "features")
    assert len(computed) == 6 and again.fingerprint("train") == first.fingerprint("train")


def change_settings(corpus):
    return corpus, replace(CONFIG, deltas=True)


def change_text(corpus):
    return corpus.map(lambda row: {"text": row["text"] + " now"}), CONFIG


def change_sound(corpus):
    path = corpus["path"][0]
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1].copy() * 0.7, rate)
    os.utime(path, ns=(0, 12345))  # of the same size: only the time tells
    return corpus, CONFIG


@pytest.mark.parametrize("change", [change_settings, change_text, change_sound])
def test_a_change_computes_them_again(change, make_corpus, computed, tmp_path):
    corpus = make_corpus()
    before = build_features(corpus, CONFIG, tmp_path / "features")
    prints = {split: before.fingerprint(split) for split in ("train", "dev")}
    after = build_features(*change(corpus), tmp_path / "features")
    assert len(computed) == 12
    assert after.fingerprint("train") != prints["train"]
    assert (after.fingerprint("dev") == prints["dev"]) == (change is change_sound)  # the sound that changed is in train


def test_fingerprint_does_not_depend_on_the_place(make_corpus, tmp_path):
    corpus = make_corpus()
    first, second = (build_features(corpus, CONFIG, tmp_path / name) for name in ("a", "b"))
    assert first.fingerprint("train") == second.fingerprint("train") != first.fingerprint("test")
    assert first.fingerprint("missing") == "empty"


def test_a_killed_build_leaves_no_half_store(make_corpus, tmp_path):
    def killed_after_two(rows):
        yield from rows[:2]
        raise KeyboardInterrupt

    corpus, folder = make_corpus(), tmp_path / "features"
    complete = build_features(corpus, CONFIG, folder).fingerprint("train")
    with pytest.raises(KeyboardInterrupt):
        build_features(corpus, replace(CONFIG, deltas=True), folder, killed_after_two)
    with pytest.raises(InputError, match="no features here"):
        FeatureStore(folder)
    assert build_features(corpus, CONFIG, folder).fingerprint("train") == complete


def test_speeds_copy_the_training_split_only(make_corpus, tmp_path):
    config = replace(CONFIG, speeds=(0.9, 1.0, 1.1))
    store = build_features(make_corpus({"train": 2, "dev": 1, "test": 1}), config, tmp_path / "features")
    names = [row["id"] for row in store.rows("train")]
    assert sorted(names) == sorted(
        prefix + f"tones-train-{number}" for number in range(2) for prefix in ("", "sp0.9-", "sp1.1-")
    )
    assert [row["id"] for split in ("dev", "test") for row in store.rows(split)] == ["tones-dev-0", "tones-test-0"]
    frames = {row["id"]: row["frames"] for row in store.rows("train")}
    assert frames["sp0.9-tones-train-0"] > frames["tones-train-0"] > frames["sp1.1-tones-train-0"]
    speaker, text = ({row[key] for row in store.rows("train") if row["id"].endswith("-0")} for key in ("speaker", "text"))
    assert len(speaker) == len(text) == 1


def cepstra_corpus(tmp_path):
    np.save(tmp_path / "feats.npy", np.random.default_rng(0).normal(size=(60, 13)).astype(np.float32))
    return to_dataset(
        Utterance(f"c{number}", str(tmp_path / "feats.npy"), 20 * number, 20 * (number + 1), "mfcc13", "yes", "s", "an4", split)
        for number, split in enumerate(("train", "dev", "test"))
    )


def test_stored_cepstra_and_audio_share_a_domain(make_corpus, tmp_path):
    config = FeatureConfig(kind="mfcc13", deltas=True, speeds=(0.9, 1.0))
    assert config.size == 26
    stored = build_features(cepstra_corpus(tmp_path), config, tmp_path / "a")
    assert [row["frames"] for row in stored.rows("train")] == [20]  # cepstra have no speeds
    computed = build_features(make_corpus({"train": 1}), config, tmp_path / "b")
    assert [store.frames(store.rows("train")[0]).shape[1] for store in (stored, computed)] == [26, 26]


def test_cepstra_cannot_become_logmel(tmp_path):
    with pytest.raises(InputError, match=r"feats.npy: .*features.kind=mfcc13"):
        build_features(cepstra_corpus(tmp_path), CONFIG, tmp_path / "features")


@pytest.mark.parametrize("config", [CONFIG, FeatureConfig(kind="mfcc13")])
def test_too_short_audio_is_refused_with_its_name(config, tone, tmp_path):
    path = tone(tmp_path / "click.wav", seconds=0.01)
    with pytest.raises(InputError, match=r"click.wav: utterance u has 160 samples"):
        features_of(as_row(path), config)


def test_channels_must_be_chosen(tone, tmp_path):
    path = tone(tmp_path / "eight.wav", channels=8)
    with pytest.raises(InputError, match=r"eight.wav: has 8 channels"):
        features_of(as_row(path), CONFIG)
    assert features_of(as_row(path), replace(CONFIG, channel=3)).shape[1] == 20


def test_a_folder_below_a_file_is_refused(make_corpus, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write here"):
        build_features(make_corpus(), CONFIG, tmp_path / "file" / "features")


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(InputError, match=r"no features here.*asrcl prepare"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "mfcc13", "rate": 8000},
        *({name: number} for name in ("rate", "bins") for number in (0, 10**9)),
        *({"speeds": speeds} for speeds in ((), (0.0,))),
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="features"):
        FeatureConfig(**settings)
