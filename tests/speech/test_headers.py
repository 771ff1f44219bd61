"""Files that were cut off are broken; files that were written into a pipe are read whole; whole ones are as they were."""

import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.speech import audio
from asrcl.speech.audio import audio_info, read_audio
from asrcl.speech.corpora import Utterance, to_dataset, validate
from asrcl.speech.headers import mp3_says_its_length, samples_of

WAVE = np.sin(np.arange(8001) / 7) * 0.3  # an odd number of samples
STORED = [
    *(("WAV", kind) for kind in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM")),
    *(("WAVEX", kind) for kind in ("PCM_16", "PCM_24")), *(("RF64", kind) for kind in ("PCM_16", "PCM_24", "FLOAT")),
    *(("AIFF", kind) for kind in ("PCM_16", "PCM_S8", "PCM_24", "FLOAT", "ALAW")), *(("AU", kind) for kind in ("PCM_16", "ULAW")),
    *(("W64", kind) for kind in ("PCM_16", "ALAW")), *(("NIST", kind) for kind in ("PCM_16", "ULAW")),
]  # fmt: skip
CODED = [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")]


def written(path, form, kind, channels=1, rate=16000):
    soundfile.write(path, np.repeat(WAVE[:, None], channels, axis=1), rate, format=form, subtype=kind)
    return path.read_bytes()


def read_samples(path, rate=16000):
    return read_audio(path, rate=rate, channel=0).numpy()


@pytest.mark.parametrize(("form", "kind"), STORED + CODED)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_cut_file_is_refused_and_a_whole_one_is_not(tmp_path, form, kind, channels):
    path = tmp_path / "a.audio"
    whole = written(path, form, kind, channels)
    wanted, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(read_samples(path), wanted[:, 0])
    for share in (0.3, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=r"a.audio: (was cut off|cannot be decoded|the audio stops|not readable)"):
            read_samples(path)


def test_an_mp3_that_does_not_say_its_length_is_read_to_its_end(tmp_path):
    """Its length is then an estimate from its size, as of the clips of Common Voice; with a tag a frame more."""
    path, wave = tmp_path / "a.mp3", np.random.default_rng(0).normal(0, 0.1, 48000)
    soundfile.write(path, wave, 48000, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
    content = path.read_bytes()
    assert mp3_says_its_length(path)
    tag, second = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256), content.index(content[:2], 4)
    path.write_bytes(tag + content[second:])
    assert not mp3_says_its_length(path) and audio_info(path).frames > len(soundfile.read(path)[0])
    assert len(read_audio(path, rate=48000)) == len(soundfile.read(path)[0])
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(InputError, match="the audio stops"):
        read_audio(path, rate=48000)


@pytest.mark.parametrize(("form", "kind"), [pair for pair in STORED if "ADPCM" not in pair[1]])
def test_stored_samples_are_found_to_the_byte(tmp_path, form, kind):
    path = tmp_path / "a.audio"
    size = len(written(path, form, kind))
    found = samples_of(path)
    width = {"PCM_24": 3, "FLOAT": 4, "DOUBLE": 8, "PCM_16": 2}.get(kind, 1)
    extra = 8 if form == "AIFF" else 0
    assert found is not None and not found.streamed
    assert 0 <= found.promised - extra - 8001 * width <= 1 and found.promised <= found.there <= size


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["WAV", "AIFF", "RF64", "NIST", "OGG", "FLAC"]), st.integers(1, 20000))
def test_no_cut_changes_what_is_heard(tmp_path_factory, form, missing):
    path = tmp_path_factory.mktemp("cut") / "a.audio"
    kind = "VORBIS" if form == "OGG" else "PCM_16"
    whole = written(path, form, kind)
    wanted = read_samples(path)
    path.write_bytes(whole[: max(0, len(whole) - missing)])
    try:
        found = read_samples(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["PCM_16", "PCM_24", "ALAW", "FLOAT"])
@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFDB, 0x80000000])
@pytest.mark.parametrize("outer", [0, 36, 0xFFFFFFFF, 0x7FFFFFFF, None])
def test_a_streamed_wav_is_read_whole(tmp_path, kind, size, outer):
    path = tmp_path / "pipe.wav"
    whole = written(path, "WAV", kind)
    wanted = read_samples(path)
    field = whole.index(b"data") + 4
    mended = whole[:field] + struct.pack("<I", size) + whole[field + 4 :][: samples_of(path).promised]  # without a pad byte
    if outer is not None:
        mended = mended[:4] + struct.pack("<I", outer) + mended[8:]
    path.write_bytes(mended)
    assert audio_info(path).frames == 8001
    np.testing.assert_array_equal(read_samples(path), wanted)
    np.testing.assert_array_equal(read_audio(path, 17, 4000, rate=16000).numpy(), wanted[17:4000])
    path.write_bytes(mended[:-4000])  # nothing says that it was longer
    assert 0 < audio_info(path).frames < 8001


@pytest.mark.parametrize(
    ("form", "field", "unknown"),
    [("RF64", 28, bytes(8)), ("AU", 8, b"\xff" * 4), ("AU", 8, bytes(4)), ("AIFF", 42, bytes(4)), ("W64", 96, b"\xff" * 8)],
)
def test_other_streamed_files_are_read_whole(tmp_path, form, field, unknown):
    path = tmp_path / "pipe.audio"
    whole = written(path, form, "PCM_16")
    wanted = read_samples(path)
    path.write_bytes(whole[:field] + unknown + whole[field + len(unknown) :])
    np.testing.assert_array_equal(read_samples(path), wanted)


def test_chunks_before_and_after_the_samples(tmp_path):
    """One of an odd size with its pad byte before, one after: both as other programs write them."""
    path = tmp_path / "a.wav"
    whole = written(path, "WAV", "PCM_U8")
    wanted, field = read_samples(path), whole.index(b"data")
    odd, last = b"LIST" + struct.pack("<I", 5) + b"INFO\0\0", b"id3 " + struct.pack("<I", 4) + b"ID3\0"
    body = whole[12:field] + odd + whole[field:] + last
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body)
    np.testing.assert_array_equal(read_samples(path), wanted)
    path.write_bytes(path.read_bytes()[: -len(last) - 1])  # neither that chunk nor the pad byte: no sample is missing
    np.testing.assert_array_equal(read_samples(path), wanted)


def test_an_empty_chunk_of_samples_may_be_meant(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(0), 16000)
    content = path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO"
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    with pytest.raises(InputError, match="holds no samples"):
        read_samples(path)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF", "NIST"])
def test_a_file_of_no_bytes_or_of_a_header_alone(tmp_path, form):
    path = tmp_path / "a.audio"
    whole = written(path, form, "PCM_16")
    for length in (0, 3, 11, 20, 44, 100):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_samples(path)


@pytest.mark.parametrize(
    ("total", "words"), [(0, "does not say how long"), (2**36 - 1, "too long for one"), (2**28, "cannot be decoded|stops after")]
)
def test_a_flac_whose_header_is_wrong_takes_no_memory(tmp_path, total, words):
    path = tmp_path / "a.flac"
    whole = bytearray(written(path, "FLAC", "PCM_16"))
    whole[21] = (whole[21] & 0xF0) | total >> 32
    whole[22:26] = struct.pack(">I", total & 0xFFFFFFFF)
    path.write_bytes(whole)
    with pytest.raises(InputError, match=words):
        read_samples(path)


@pytest.mark.parametrize(("rate", "words"), [(1, "fewer than 1000"), (44101, "no simple ratio to 16000"), (2**31 - 1, "ratio")])
def test_rates_that_no_recorder_has(tmp_path, rate, words):
    path = tmp_path / "a.wav"
    written(path, "WAV", "PCM_16", rate=rate)
    with pytest.raises(InputError, match=words):
        read_samples(path)


def test_long_audio_is_decoded_piece_by_piece_to_the_same_samples(tmp_path, monkeypatch):
    path = tmp_path / "a.flac"
    written(path, "FLAC", "PCM_16", channels=2)
    wanted = read_audio(path, 5, 8000, rate=16000, channel="mean")
    monkeypatch.setattr(audio, "_PIECE", 1000)
    np.testing.assert_array_equal(read_audio(path, 5, 8000, rate=16000, channel="mean").numpy(), wanted.numpy())


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "AIFF"])
def test_validation_lists_a_cut_file(tmp_path, form):
    cut, good = tmp_path / "cut.audio", tmp_path / "good.wav"
    whole = written(cut, form, "VORBIS" if form == "OGG" else "PCM_16")
    cut.write_bytes(whole[: len(whole) // 2])
    written(good, "WAV", "PCM_16")
    rows = [Utterance(path.stem, str(path), 0, -1, "audio", "yes", "s", "d", "train") for path in (cut, good)]
    clean, broken = validate(to_dataset(rows), max_broken_share=1, decode=True)
    assert clean["id"] == ["good"] and [item.id for item in broken] == ["cut"]
