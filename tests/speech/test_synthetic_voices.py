"""The synthesiser, its speakers and its sentences."""

import random
from collections import Counter

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.speech.synthetic import (
    ACCENTS,
    POOLS,
    TOPIC_OF,
    TOPICS,
    VARIANTS,
    Synthesizer,
    sentence,
    sentences,
    speaker,
    speakers,
    split_of,
    vocabulary,
)
from asrcl.speech.synthetic import espeak as espeak_module
from asrcl.speech.synthetic.espeak import variants_installed
from asrcl.speech.synthetic.grammar import SHARED, _words

TEXT = "book a cheap ticket to birmingham"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def voice():
    with Synthesizer() as synthesizer:
        yield synthesizer


def test_wave_is_plausible_speech(voice):
    wave = voice.say(TEXT, "en-us+f1")
    assert wave.dtype == torch.float32 and wave.ndim == 1
    assert 1.0 < len(wave) / 22050 < 4.0
    assert 0.05 < wave.abs().max() < 1.0


def test_each_accent_says_the_same_text_differently(voice):
    waves = [voice.say(TEXT, language) for language in ACCENTS.values()]
    starts = [wave[:20000] for wave in waves]
    for i, first in enumerate(starts):
        for second in starts[:i]:
            assert (first - second).square().mean() > 0.01 * first.square().mean()


def test_rate_and_pitch_are_obeyed(voice):
    assert len(voice.say(TEXT, "en-us", rate=220)) < 0.85 * len(voice.say(TEXT, "en-us", rate=150))
    low, high = (_pitch(voice.say(TEXT, "en-us", pitch=pitch)) for pitch in (30, 70))
    assert high > 1.15 * low


def _pitch(wave: torch.Tensor) -> float:
    """Median over loud frames of the lag at which the autocorrelation peaks, as Hz."""
    frames = wave.unfold(0, 1024, 512)
    frames = frames[frames.square().mean(1) > frames.square().mean()]
    correlation = torch.fft.irfft(torch.fft.rfft(frames, 2048).abs().square())[:, 80:350]
    return 22050 / float((correlation.argmax(1) + 80).float().median())


def test_fresh_synthesisers_agree_to_the_sample_and_do_not_disturb_each_other():
    order = ["en-us+f5", "en-029+klatt2", "en-gb-scotland+m1", "en-us+f5"]
    with Synthesizer() as first, Synthesizer() as second:
        said = []
        for name in order:
            said.append(first.say(TEXT, name))
            first_again = second.say(TEXT, name)
            assert torch.equal(said[-1], first_again)
    assert not torch.equal(said[0], said[3]), "history matters, which is the reason for private copies"


def test_closing_twice_is_harmless_and_a_closed_one_is_refused():
    synthesizer = Synthesizer()
    synthesizer.close()
    synthesizer.close()
    with pytest.raises(InputError, match="closed"):
        synthesizer.say(TEXT, "en-us")


@pytest.mark.parametrize("name", ["en-gb", "zz", "", "en-us+nobody", "en-us+../f1"])
def test_refused_voices(voice, name):
    with pytest.raises(InputError, match="voice"):
        voice.say(TEXT, name)


@pytest.mark.parametrize("setting", [{"rate": 20}, {"pitch": 100}, {"pitch_range": -1}])
def test_settings_out_of_range(voice, setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        voice.say(TEXT, "en-us", **setting)


def test_text_without_words(voice):
    with pytest.raises(InputError, match="says nothing"):
        voice.say("", "en-us")


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(InputError, match="pip install"):
        espeak_module.Synthesizer()


def test_pools_are_disjoint_and_installed():
    assert len(set(VARIANTS)) == len(VARIANTS) >= 40
    assert set(VARIANTS) <= variants_installed()
    assert {split: len(pool) for split, pool in POOLS.items()} == {"train": 29, "dev": 6, "test": 10}


def test_all_variants_sound_distinct(voice):
    names = [f"en-us+{variant}" for variant in VARIANTS]
    once, twice = (torch.stack([_voice_print(voice.say(TEXT, name)) for name in names]) for _ in range(2))
    distance = torch.cdist(once, twice)
    own = distance.diagonal().clone()
    nearest_other = distance.fill_diagonal_(float("inf")).min(1).values
    assert (nearest_other > 1.5 * own).all()


def _voice_print(wave: torch.Tensor) -> torch.Tensor:
    """Long-term spectrum in natural units, length and pitch."""
    frames = wave.unfold(0, 512, 256) * torch.hann_window(512)
    power = torch.fft.rfft(frames).abs().square().mean(0)[1:193].reshape(48, 4).mean(1)
    spectrum = (power + 1e-8).log() - (power + 1e-8).log().mean()
    return torch.cat([spectrum / 48**0.5, torch.tensor([3 * len(wave) / 22050, 3 * _pitch(wave) / 100])])


def test_speakers_have_their_own_pitch_and_pace():
    cast = speakers("SCO", "train")
    assert cast == speakers("SCO", "train")
    assert len({each.name for each in cast}) == len(cast)
    assert len({(each.rate, each.pitch) for each in cast}) > 20
    assert speaker("US", "Mr serious").name == "us-mr_serious"
    with pytest.raises(InputError, match="accent"):
        speaker("XX", "m1")
    with pytest.raises(InputError, match="split"):
        speakers("US", "valid")


def test_vocabulary_is_closed_and_of_useful_size():
    words = vocabulary()
    assert 150 <= len(words) <= 450
    rng = random.Random(0)
    said = {word for _ in range(20000) for word in sentence(rng).split()}
    assert said == words
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


def test_each_topic_has_words_of_its_own():
    assert sorted(TOPIC_OF.values()) == sorted(TOPICS) and set(TOPIC_OF) == set(ACCENTS)
    shared = _words(SHARED)
    for name in TOPICS:
        others = shared.union(*(vocabulary(other) for other in TOPICS if other != name))
        assert len(vocabulary(name) - others) >= 20, name


def test_sentences_are_short():
    rng = random.Random(0)
    lengths = Counter(len(sentence(rng).split()) for _ in range(3000))
    assert min(lengths) >= 3 and max(lengths) <= 11
    assert sum(count for length, count in lengths.items() if 3 <= length <= 9) > 0.95 * 3000


def test_topic_share():
    rng = random.Random(0)
    own = vocabulary("music") - _words(SHARED)
    share = sum(bool(own & set(sentence(rng, "music", topic_share=0.3).split())) for _ in range(4000)) / 4000
    assert abs(share - 0.3) < 0.03


def test_splits_share_no_sentence_and_lists_extend():
    lists = {split: sentences(random.Random(3), 120, split, "home") for split in POOLS}
    for split, texts in lists.items():
        assert {split_of(text) for text in texts} == {split}
        assert len(set(texts)) == 120
    assert sentences(random.Random(3), 50, "test", "home") == lists["test"][:50]


def test_an_exhausted_grammar_repeats_itself():
    texts = sentences(random.Random(0), 400, "test", "sport", topic_share=1.0)
    assert len(texts) == 400 > len(set(texts)) > 50


def test_grammar_refusals():
    with pytest.raises(InputError, match="topic 'gossip'"):
        sentence(random.Random(0), "gossip")
    with pytest.raises(InputError, match="topic_share"):
        sentence(random.Random(0), topic_share=1.5)
    with pytest.raises(InputError, match="split"):
        sentences(random.Random(0), 1, "valid")
    with pytest.raises(InputError, match="topic"):
        vocabulary("gossip")


def test_every_voice_may_make_several_speakers():
    once, thrice = speakers("SCO", "test"), speakers("SCO", "test", takes=3)
    assert thrice[: len(once)] == once and len(thrice) == 3 * len(once)
    assert len({each.name for each in thrice}) == len(thrice)
    assert {each.voice for each in thrice} == {each.voice for each in once}
    for n in range(len(once)):
        same = thrice[n :: len(once)]
        assert len({(each.rate, each.pitch, each.pitch_range) for each in same}) == 3
    assert speaker("SCO", "m8", 2).name == "sco-m8.2"
    with pytest.raises(InputError, match="speaker"):
        speakers("SCO", "test", takes=0)
    with pytest.raises(InputError, match="count from 1"):
        speaker("SCO", "m8", 0)
