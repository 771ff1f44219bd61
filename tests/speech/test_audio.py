"""Reading parts of files, resampling, channels, and every refusal."""

import math

import numpy as np
import pytest
import soundfile
import torch

from asrcl.exceptions import InputError
from asrcl.speech.audio import audio_info, open_cepstra, read_audio, read_cepstra


def tone(rate, seconds=0.5, frequency=440.0):
    return 0.5 * np.sin(2 * math.pi * frequency * np.arange(int(rate * seconds)) / rate)


@pytest.fixture
def mono(tmp_path):
    path = tmp_path / "mono.wav"
    soundfile.write(path, tone(16000), 16000)
    return path


@pytest.fixture
def stereo(tmp_path):
    path = tmp_path / "stereo.flac"
    soundfile.write(path, np.stack([tone(16000), np.zeros(8000)], axis=1), 16000)
    return path


def test_whole_file_is_float32_mono(mono):
    wave = read_audio(mono, rate=16000)
    assert wave.dtype == torch.float32
    assert wave.shape == (8000,)
    np.testing.assert_allclose(wave.numpy(), tone(16000), atol=1e-4)


def test_part_of_file_counts_samples_of_the_file(mono):
    whole = read_audio(mono, rate=16000)
    assert torch.equal(read_audio(mono, 100, 300, rate=16000), whole[100:300])
    assert torch.equal(read_audio(mono, 100, -1, rate=16000), whole[100:])


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path, rate):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate), rate)
    wave = read_audio(path, rate=16000).numpy()
    assert len(wave) == 8000
    middle = slice(1000, 7000)  # the filter rings at the ends
    np.testing.assert_allclose(wave[middle], tone(16000)[middle], atol=2e-3)


def test_part_is_cut_before_resampling(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(8000), 8000)
    assert len(read_audio(path, 1000, 3000, rate=16000)) == 4000


def test_several_channels_need_a_choice(stereo):
    with pytest.raises(InputError, match=r'stereo.flac: has 2 channels.*channel="mean"'):
        read_audio(stereo, rate=16000)
    left, right = (read_audio(stereo, rate=16000, channel=index) for index in (0, 1))
    assert left.abs().max() > 0.4
    assert right.abs().max() == 0
    torch.testing.assert_close(read_audio(stereo, rate=16000, channel="mean"), left / 2)


def test_absent_channel_is_refused(stereo, mono):
    with pytest.raises(InputError, match="no channel 2, only 0 to 1"):
        read_audio(stereo, rate=16000, channel=2)
    assert len(read_audio(mono, rate=16000, channel=0)) == 8000
    assert len(read_audio(mono, rate=16000, channel="mean")) == 8000


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [(0, 8001, "lie outside the file"), (9000, -1, "lie outside"), (5, 5, "is empty"), (7, 5, "lie outside")],
)
def test_part_outside_the_file_is_refused(mono, start, end, words):
    with pytest.raises(InputError, match=words):
        read_audio(mono, start, end, rate=16000)


def test_missing_empty_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"gone.wav: "):
        read_audio(tmp_path / "gone.wav", rate=16000)
    (tmp_path / "noise.wav").write_bytes(b"this is not audio at all")
    with pytest.raises(InputError, match=r"noise.wav: "):
        read_audio(tmp_path / "noise.wav", rate=16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(InputError, match=r"empty.wav: holds no samples"):
        read_audio(tmp_path / "empty.wav", rate=16000)


def test_truncated_flac_is_refused(tmp_path):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    path.write_bytes(path.read_bytes()[:8000])
    assert audio_info(path).frames == 16000  # the header still promises everything
    with pytest.raises(InputError, match=r"cut.flac: .*(stops after|cannot be decoded)"):
        read_audio(path, rate=16000)


def test_samples_that_are_no_numbers_are_refused(tmp_path):
    path = tmp_path / "nan.wav"
    soundfile.write(path, np.array([0.1, np.nan, 0.2]), 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not finite"):
        read_audio(path, rate=16000)


def test_messages_are_one_line(tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"nothing")
    for name in ("noise.wav", "gone.wav"):
        with pytest.raises(InputError) as caught:
            read_audio(tmp_path / name, rate=16000)
        assert "\n" not in str(caught.value)


def test_cepstra_by_frames(tmp_path):
    table = np.arange(130, dtype=np.float32).reshape(10, 13)
    np.save(tmp_path / "feats.npy", table)
    path = str(tmp_path / "feats.npy")
    np.testing.assert_array_equal(read_cepstra(path, 2, 5).numpy(), table[2:5])
    np.testing.assert_array_equal(read_cepstra(path, 8).numpy(), table[8:])
    with pytest.raises(InputError, match="frames 0 to 11 lie outside"):
        read_cepstra(path, 0, 11)


def test_bad_cepstra_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="feature file"):
        open_cepstra(str(tmp_path / "gone.npy"))
    np.save(tmp_path / "flat.npy", np.zeros(5))
    with pytest.raises(InputError, match="array"):
        open_cepstra(str(tmp_path / "flat.npy"))
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a plain npy array"):
        open_cepstra(str(tmp_path / "pickle.npy"))
