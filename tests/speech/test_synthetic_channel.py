"""Channels do what their names say."""

import math

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.speech.synthetic.channel import (
    CHANNELS,
    apply_channel,
    babble,
    noise,
    reverberation,
    room,
    telephone,
)

RATE = 16000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def white(seconds: float = 2.0) -> torch.Tensor:
    return 0.1 * torch.randn(int(seconds * RATE), generator=generator(9))


def band_power(wave: torch.Tensor, low: float, high: float) -> float:
    """Mean power per frequency bin between two frequencies (Hz)."""
    frequency = torch.fft.rfftfreq(len(wave), 1 / RATE)
    return float(torch.fft.rfft(wave).abs().square()[(frequency >= low) & (frequency < high)].mean())


def test_telephone_keeps_the_band_and_nothing_else():
    before, after = white(), telephone(white(), RATE)
    gain = {
        band: 10 * math.log10(band_power(after, *band) / band_power(before, *band))
        for band in ((20, 120), (600, 2500), (4300, 8000))
    }
    assert abs(gain[600, 2500]) < 1.0
    assert gain[20, 120] < -20.0
    assert gain[4300, 8000] < -30.0


def test_telephone_quantises_to_eight_bits():
    tone = torch.sin(torch.arange(RATE) * 2 * math.pi * 1000 / RATE)
    error = telephone(0.5 * tone, RATE) - 0.5 * tone
    steady = slice(2000, 14000)
    a, b = 0.5 * tone[steady], telephone(0.5 * tone, RATE)[steady]
    scale = (torch.fft.rfft(b).abs().max() / torch.fft.rfft(a).abs().max()).item()
    spectrum = torch.fft.rfft(b).abs().square()
    peak = int(spectrum.argmax())
    distortion = (spectrum.sum() - spectrum[peak - 2 : peak + 3].sum()) / spectrum.sum()
    assert 0.9 < scale < 1.1 and error.abs().max() > 0
    assert -50 < 10 * math.log10(float(distortion)) < -25, "mu-law gives about 38 dB"


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
def test_noise_has_the_asked_ratio(snr):
    wave = white()
    added = noise(wave, RATE, generator=generator(), snr_db=(snr, snr)) - wave
    measured = 10 * math.log10(float(wave.square().sum() / added.square().sum()))
    assert abs(measured - snr) < 0.5


def test_noise_ratio_is_drawn_from_the_range():
    wave, ratios = white(0.5), []
    for seed in range(30):
        added = noise(wave, RATE, generator=generator(seed), snr_db=(5.0, 15.0)) - wave
        ratios.append(10 * math.log10(float(wave.square().sum() / added.square().sum())))
    assert 4.5 < min(ratios) < 8.0 and 12.0 < max(ratios) < 15.5


def test_babble_is_shaped_and_modulated():
    sound = babble(8 * RATE, RATE, generator())
    assert sound.square().mean().item() == pytest.approx(1.0, rel=1e-3)
    fall = 10 * math.log10(band_power(sound, 900, 1100) / band_power(sound, 3600, 4400))
    assert abs(fall - 18.0) < 2.0, "two octaves at 9 dB"
    envelope = sound.square().unfold(0, 1600, 1600).mean(1)
    assert envelope.std() / envelope.mean() > 0.4


@pytest.mark.parametrize("rt60", [0.3, 0.8])
def test_room_decays_by_sixty_decibels_in_its_time(rt60):
    response = room(rt60, RATE, generator())
    assert response[0] == 1.0
    remaining = response[200:].square().flip(0).cumsum(0).flip(0)  # Schroeder's backward integral
    level = 10 * torch.log10(remaining / remaining[0])
    start, stop = (int((level < bound).nonzero()[0]) for bound in (-5.0, -25.0))
    assert 3 * (stop - start) / RATE == pytest.approx(rt60, rel=0.1)


def test_room_has_the_asked_direct_sound():
    response = room(0.5, RATE, generator(), direct_db=6.0)
    assert 10 * math.log10(1.0 / float(response[1:].square().sum())) == pytest.approx(6.0, abs=0.1)


def test_reverberation_rings_on_after_a_burst():
    wave = torch.zeros(RATE)
    wave[1000:2000] = white()[:1000]
    wet = reverberation(wave, RATE, generator=generator(), rt60=(0.5, 0.5))
    assert float(wet.square().sum()) == pytest.approx(float(wave.square().sum()), rel=1e-3)
    assert wet[:1000].abs().max() < 1e-4, "nothing sounds before the burst"
    early, late = wet[2500:3500].square().mean(), wet[2500 + RATE // 4 : 3500 + RATE // 4].square().mean()
    assert 10 * math.log10(float(early / late)) == pytest.approx(30.0, abs=3.0), "60 dB in 0.5 s"


@pytest.mark.parametrize("name", CHANNELS)
def test_every_channel_is_pure_and_seeded(name):
    wave = white(0.7)
    kept = wave.clone()
    first, second = (apply_channel(name, wave, RATE, generator(4)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(wave, kept)
    assert first.shape == wave.shape and first.dtype == wave.dtype and not torch.equal(first, wave)
    assert torch.isfinite(first).all()


def test_no_channel_is_the_identity():
    assert torch.equal(apply_channel(None, white(), RATE, generator()), white())


def test_refusals():
    with pytest.raises(InputError, match="channel 'radio'"):
        apply_channel("radio", white(), RATE, generator())
    with pytest.raises(InputError, match="one channel"):
        telephone(white()[None])
    with pytest.raises(InputError, match="8000"):
        telephone(white(), 4000)
    with pytest.raises(InputError, match="snr_db"):
        noise(white(), generator=generator(), snr_db=(9.0, 3.0))
    with pytest.raises(InputError, match="rt60"):
        reverberation(white(), generator=generator(), rt60=(0.0, 0.5))
