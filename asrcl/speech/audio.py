"""Reading audio (and stored cepstra) as tensors: any rate, any channel count, any part of a file.

Samples are float32 in [-1, 1). Positions are counted in samples **of the file**, before any resampling.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from io import FileIO
from typing import Literal, NamedTuple

import numpy as np
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.speech.headers import mp3_says_its_length, whole_file

Channel = int | Literal["mean"] | None

LOWEST_RATE = 1000  # samples per second
MOST_SAMPLES = 2**29  # of all channels in one utterance: 9 hours at 16 kHz
MP3_EXCESS = 2 * 1152  # samples by which the length of an MP3 is overestimated where no header says it
_UNKNOWN = 2**62  # frames that libsndfile reports where a header has none
_PIECE = 2**22  # samples decoded at a time
_LARGEST_FILTER = 2**22  # coefficients, of which the resampler keeps several copies


class AudioInfo(NamedTuple):
    """What the header of an audio file says."""

    rate: int  # samples per second
    frames: int  # samples per channel
    channels: int


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        InputError: the file is missing, empty or not audio.
    """
    with _opened(path) as stream:
        return _info(path, stream)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """An audio file; whatever goes wrong while it is read is said in one line."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such audio file; correct the path or fetch the corpus again")
    with ExitStack() as stack:
        with reading(path, "convert it to WAV or FLAC", "not readable as audio"):
            source = whole_file(path)
            if isinstance(source, FileIO):
                stack.enter_context(source)
            stream = stack.enter_context(soundfile.SoundFile(source))
        with reading(path, "fetch or convert the file again", "cannot be decoded"):
            yield stream


def _info(path: str | os.PathLike[str], stream: soundfile.SoundFile) -> AudioInfo:
    info = AudioInfo(stream.samplerate, stream.frames, stream.channels)
    if info.frames >= _UNKNOWN:
        raise InputError(f"{path}: its header does not say how long it is; convert it to WAV or FLAC again")
    if info.rate < LOWEST_RATE:
        raise InputError(f"{path}: has {info.rate} samples per second, fewer than {LOWEST_RATE}; mend its header")
    return info


def read_audio(
    path: str | os.PathLike[str], start: int = 0, end: int = -1, *, rate: int, channel: Channel = None
) -> Tensor:
    """Read one utterance as mono samples at the wanted rate.

    Args:
        path: any format that libsndfile reads (WAV, FLAC, OGG, MP3, NIST SPHERE ...).
        start: first sample of the utterance in the file.
        end: one past the last sample; -1 reads to the end of the file.
        rate: samples per second of the result; a file at another rate is resampled.
        channel: which channel of a multi-channel file to take (0 is the first), or "mean" of all of them.

    Returns:
        float32 ``[samples]``.

    Raises:
        InputError: the file is missing or unreadable, has several channels while `channel` is None, lacks the
            channel, or the part asked for is empty or reaches past the end of the file.
    """
    with _opened(path) as stream:
        info = _info(path, stream)
        stop = check_part(path, start, end, info.frames)
        _check_sizes(path, info, stop - start, rate)
        samples = _decode(stream, start, stop)
        estimated = stream.format == "MP3" and stop == info.frames and not mp3_says_its_length(path)
        tolerated = MP3_EXCESS if estimated else 0
    if len(samples) < stop - start - tolerated or not len(samples):
        raise InputError(f"{path}: the audio stops after {start + len(samples)} of {stop} samples; fetch it again")
    mono = torch.from_numpy(_one_channel(path, samples, channel))
    if not bool(torch.isfinite(mono).all()):
        raise InputError(f"{path}: holds samples that are not finite numbers; write the file again")
    return mono if info.rate == rate else torchaudio.functional.resample(mono, info.rate, rate)


def _check_sizes(path: str | os.PathLike[str], info: AudioInfo, frames: int, rate: int) -> None:
    """Refuse what would fill the memory: hours in one utterance, a rate whose resampling filter has no end."""
    if frames * info.channels > MOST_SAMPLES:
        raise InputError(
            f"{path}: {frames} samples of {info.channels} channels are too long for one utterance; cut it, or list its segments"
        )
    common = math.gcd(info.rate, rate)
    if (info.rate // common) * (rate // common) > _LARGEST_FILTER:
        raise InputError(
            f"{path}: its rate of {info.rate} Hz has no simple ratio to {rate} Hz; resample it first, e.g. sox IN -r {rate} OUT"
        )


def _decode(stream: soundfile.SoundFile, start: int, stop: int) -> np.ndarray:
    """The part `[start, stop)`, float32 `[samples, channels]`, shorter where the file ends early.

    It is read piece by piece, so that what a header promises takes no memory before it is there.
    """
    pieces, left = [], stop - start
    if stream.seekable():
        stream.seek(start)
    while left > 0:
        wanted = min(left, max(1, _PIECE // stream.channels))
        pieces.append(stream.read(wanted, dtype="float32", always_2d=True))
        left = left - wanted if len(pieces[-1]) == wanted else 0
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def read_cepstra(path: str | os.PathLike[str], start: int = 0, end: int = -1) -> Tensor:
    """Read one utterance of stored cepstra (kind "mfcc13"), positions in frames.

    Returns:
        float32 ``[frames, coefficients]``.

    Raises:
        InputError: the file is missing, is not a plain two-dimensional npy, or the part does not lie inside
            it.
    """
    table = open_cepstra(os.fspath(path))
    stop = check_part(path, start, end, len(table), unit="frames")
    return torch.from_numpy(np.array(table[start:stop], dtype=np.float32))


@lru_cache(maxsize=16)
def open_cepstra(path: str) -> np.ndarray:
    """Map a npy file of cepstra ``[frames, coefficients]`` into memory; nothing is unpickled.

    Raises:
        InputError: the file is missing or is not a two-dimensional array of numbers.
    """
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such feature file; correct the path or fetch the corpus again")
    with reading(path, "write it with numpy.save", "not a plain npy array"):
        table = np.lib.format.open_memmap(path, mode="r")  # unlike numpy.load, of this format alone
    if table.ndim != 2 or table.dtype.kind not in "fiu":
        raise InputError(f"{path}: cepstra must be one array [frames, coefficients]; write it with numpy.save")
    return table


def check_part(path: str | os.PathLike[str], start: int, end: int, length: int, unit: str = "samples") -> int:
    """The end of the part `[start, end)` of a file of `length` units, with -1 resolved.

    Raises:
        InputError: the part is empty or does not lie inside the file.
    """
    stop = length if end == -1 else end
    if length == 0:
        raise InputError(f"{path}: holds no {unit}; fetch or record it again")
    if not 0 <= start <= stop <= length:
        raise InputError(
            f"{path}: {unit} {start} to {stop} lie outside the file (it has {length}); correct the manifest"
        )
    if start == stop:
        raise InputError(f"{path}: the part from {unit} {start} to {stop} is empty; correct the manifest")
    return stop


def _one_channel(path: str | os.PathLike[str], samples: np.ndarray, channel: Channel) -> np.ndarray:
    count = samples.shape[1]
    if channel == "mean":
        return samples.mean(axis=1)
    if channel is None and count > 1:
        raise InputError(f'{path}: has {count} channels; choose one with channel=0 ... {count - 1}, or channel="mean"')
    index = 0 if channel is None else channel
    if not 0 <= index < count:
        raise InputError(f'{path}: has no channel {index}, only 0 to {count - 1}; use one of these or channel="mean"')
    return np.ascontiguousarray(samples[:, index])
