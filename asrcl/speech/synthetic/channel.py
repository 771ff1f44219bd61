"""Channels between mouth and recogniser: a telephone, a noisy room, an echoing room.

Pure functions of float32 ``[samples]`` tensors; what is random comes from the `torch.Generator` given.
The number of samples never changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torchaudio.functional as audio
from torch import Tensor

from asrcl.exceptions import InputError

TELEPHONE_BAND = (300.0, 3400.0)
"""Hz."""


def telephone(wave: Tensor, rate: int = 16000) -> Tensor:
    """A narrow-band telephone line: 300 to 3,400 Hz, 8 kHz, 8-bit mu-law (ITU-T G.711's law, mu = 255).

    Args:
        wave: float ``[samples]`` in [-1, 1].
        rate: samples per second.

    Raises:
        InputError: not a mono wave, or its rate is below 8 kHz.
    """
    _check(wave, rate)
    if rate < 8000:
        raise InputError(f"rate {rate}: a telephone line needs 8000 samples per second or more")
    narrow = audio.resample(_band(wave, rate, *TELEPHONE_BAND), rate, 8000).clamp(-1.0, 1.0)
    line = audio.mu_law_decoding(audio.mu_law_encoding(narrow, 256), 256)
    return _fit(audio.resample(line, 8000, rate), wave.numel())


def _band(wave: Tensor, rate: int, low: float, high: float) -> Tensor:
    """Fourth-order high-pass and low-pass (two biquads each; these Q make a Butterworth response)."""
    for quality in (0.5412, 1.3066):
        wave = audio.highpass_biquad(wave, rate, low, quality)
        wave = audio.lowpass_biquad(wave, rate, high, quality)
    return wave


def noise(
    wave: Tensor, rate: int = 16000, *, generator: torch.Generator, snr_db: tuple[float, float] = (5.0, 15.0)
) -> Tensor:
    """Add babble-like noise at a random signal-to-noise ratio.

    The noise has about the long-term spectrum of speech (flat to 500 Hz, then -9 dB per octave; compare Byrne
    et al., 1994) and swells and fades at the rate of syllables, as several voices at once do.

    Args:
        wave: float ``[samples]``, not silent.
        rate: samples per second.
        generator: source of the noise and of the ratio.
        snr_db: the ratio is drawn uniformly from this range; it is over the whole of `wave`.

    Raises:
        InputError: not a mono wave, or the range is upside down.
    """
    _check(wave, rate)
    ratio = torch.tensor([_uniform(snr_db, "snr_db", generator)]).to(wave)
    voices = babble(wave.numel(), rate, generator).to(wave)
    return audio.add_noise(wave[None], voices[None], ratio)[0]


def babble(samples: int, rate: int, generator: torch.Generator) -> Tensor:
    """Speech-shaped, syllable-modulated noise of unit power, ``[samples]``."""
    white = torch.randn(samples, generator=generator)
    frequency = torch.fft.rfftfreq(samples, 1.0 / rate)
    shape = (frequency.clamp(min=500.0) / 500.0) ** -1.5 * (frequency > 60.0)
    coloured = torch.fft.irfft(torch.fft.rfft(white) * shape, n=samples)
    slow = torch.fft.rfft(torch.randn(samples, generator=generator)) * ((frequency > 0) & (frequency < 4.0))
    swell = torch.fft.irfft(slow, n=samples)
    swell = 1.0 + 0.4 * swell / swell.std(correction=0).clamp(min=1e-9)
    modulated = coloured * swell.clamp(min=0.2)
    return modulated / modulated.square().mean().sqrt().clamp(min=1e-9)


def reverberation(
    wave: Tensor, rate: int = 16000, *, generator: torch.Generator, rt60: tuple[float, float] = (0.3, 0.8)
) -> Tensor:
    """Put the speaker into an echoing room.

    Args:
        wave: float ``[samples]``.
        rate: samples per second.
        generator: source of the room.
        rt60: the reverberation time (seconds until the sound has fallen by 60 dB) is drawn from this range.

    Returns:
        float ``[samples]`` with the energy of `wave`; what rings on past its end is cut.

    Raises:
        InputError: not a mono wave, or the range is upside down or not positive.
    """
    _check(wave, rate)
    if rt60[0] <= 0.0:
        raise InputError(f"rt60 {rt60}: must be positive seconds")
    response = room(_uniform(rt60, "rt60", generator), rate, generator).to(wave)
    wet = audio.fftconvolve(wave, response)[: wave.numel()]
    return wet * (wave.square().sum() / wet.square().sum().clamp(min=1e-12)).sqrt()


def room(rt60: float, rate: int, generator: torch.Generator, *, direct_db: float = 3.0) -> Tensor:
    """An impulse response: the direct sound, then noise that decays exponentially (Polack's model, 1988).

    Args:
        rt60: reverberation time in seconds.
        rate: samples per second.
        generator: source of the noise.
        direct_db: energy of the direct sound over that of all reflections.

    Returns:
        float32 ``[ceil(rt60 * rate)]``; the first sample is the direct sound, 1.
    """
    seconds = torch.arange(math.ceil(rt60 * rate)) / rate
    tail = torch.randn(len(seconds), generator=generator) * torch.exp(-3.0 * math.log(10.0) * seconds / rt60)
    # The first reflections need a few milliseconds on their way.
    tail[seconds < 0.003] = 0.0
    tail *= 10.0 ** (-direct_db / 20.0) / tail.square().sum().sqrt().clamp(min=1e-9)
    tail[0] = 1.0
    return tail


def apply_channel(name: str | None, wave: Tensor, rate: int, generator: torch.Generator) -> Tensor:
    """Send a wave through the channel of that name, with its default ranges; None leaves it as it is.

    Raises:
        InputError: no such channel, or the wave does not suit it.
    """
    if name is None:
        return wave
    check_channel(name)
    return _CHANNELS[name](wave, rate, generator)


def check_channel(name: str | None) -> None:
    """Refuse a name that is no channel.

    Raises:
        InputError: no such channel.
    """
    if name is not None and name not in CHANNELS:
        raise InputError(f"channel {name!r}: no such channel; choose one of {', '.join(CHANNELS)}")


_CHANNELS: dict[str, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    "telephone": lambda wave, rate, generator: telephone(wave, rate),
    "noise": lambda wave, rate, generator: noise(wave, rate, generator=generator),
    "reverberation": lambda wave, rate, generator: reverberation(wave, rate, generator=generator),
}
CHANNELS: tuple[str, ...] = tuple(_CHANNELS)
"""Names that `apply_channel` knows."""


def _check(wave: Tensor, rate: int) -> None:
    if wave.ndim != 1 or wave.numel() < 2 or not wave.is_floating_point():
        raise InputError(f"wave {list(wave.shape)}, {wave.dtype}: give float [samples] of one channel")
    if rate <= 0:
        raise InputError(f"rate {rate}: must be samples per second")


def _uniform(bounds: tuple[float, float], name: str, generator: torch.Generator) -> float:
    low, high = bounds
    if not low <= high:
        raise InputError(f"{name} {bounds}: the first number must not exceed the second")
    return low + (high - low) * float(torch.rand((), generator=generator))


def _fit(wave: Tensor, samples: int) -> Tensor:
    return torch.nn.functional.pad(wave[:samples], (0, max(0, samples - wave.numel())))
