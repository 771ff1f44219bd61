"""Each kind of broken utterance is found, listed and counted; too many stop the run."""

import numpy as np
import pytest
import soundfile

from asrcl.exceptions import InputError
from asrcl.speech.corpora import Utterance, to_dataset, validate, write_broken
from asrcl.text import ALPHABET


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(tmp_path / "good.wav", noise, 16000)
    soundfile.write(tmp_path / "slow.wav", noise, 8000)
    soundfile.write(tmp_path / "two.wav", np.stack([noise, noise], axis=1), 16000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "cut.flac", noise, 16000)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    (tmp_path / "junk.wav").write_bytes(b"junk")
    np.save(tmp_path / "feats.npy", np.zeros((50, 13), dtype=np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((50, 39), dtype=np.float32))
    return tmp_path


def utterance(
    folder,
    name="good.wav",
    identity="u",
    start=0,
    end=-1,
    kind="audio",
    text="yes",
    domain="d",
    split="train",
):
    return Utterance(identity, str(folder / name), start, end, kind, text, "s", domain, split)


def reasons(folder, *broken, **options):
    good = utterance(folder, identity="good")
    clean, listed = validate(to_dataset([good, *broken]), max_broken_share=1, **options)
    assert clean["id"][0] == "good"
    assert len(clean) + len(listed) == 1 + len(broken)
    return [item.reason for item in listed]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "gone.wav"}, "no such audio file"),
        ({"name": "junk.wav"}, "not readable as audio"),
        ({"name": "empty.wav"}, "holds no samples"),
        ({"name": "two.wav"}, 'has 2 channels; choose one with channel=0 ... 1, or channel="mean"'),
        ({"start": 5, "end": 5}, "is empty"),
        ({"end": 16001}, "lie outside the file"),
        ({"end": 100}, "only 0.006 s long"),
        ({"text": "  "}, "empty transcript"),
        ({"text": "naïve 5"}, "characters outside the alphabet: '5' 'ï'"),
        ({"identity": "good"}, "duplicate id"),
        ({"kind": "mp3"}, "kind 'mp3' is not known"),
        ({"name": "gone.npy", "kind": "mfcc13"}, "no such feature file"),
        ({"name": "wide.npy", "kind": "mfcc13"}, "39 coefficients per frame, not 13"),
        ({"name": "feats.npy", "kind": "mfcc13", "end": 51}, "frames 0 to 51 lie outside"),
    ],
)
def test_broken_is_listed_with_its_reason(folder, change, words):
    (reason,) = reasons(folder, utterance(folder, **change), alphabet=ALPHABET)
    assert words in reason


def test_wrong_rate_and_stored_cepstra_are_fine(folder):
    fine = [utterance(folder, "slow.wav", "a"), utterance(folder, "feats.npy", "b", end=50, kind="mfcc13")]
    assert reasons(folder, *fine) == []


def test_chosen_channel_mends(folder):
    two = utterance(folder, "two.wav")
    assert reasons(folder, two, channel="mean") == reasons(folder, two, channel=1) == []
    assert "no channel 2" in reasons(folder, two, channel=2)[0]


def test_empty_transcripts_can_be_wanted(folder):
    assert reasons(folder, utterance(folder, text=""), text_required=False) == []


def test_decoding_finds_truncated_audio(folder):
    cut = utterance(folder, "cut.flac")
    assert reasons(folder, cut) == []
    (reason,) = reasons(folder, cut, decode=True)
    assert "stops after" in reason or "cannot be decoded" in reason


def test_clean_corpus_comes_back_unchanged(folder):
    dataset = to_dataset([utterance(folder)])
    clean, broken = validate(dataset)
    assert clean is dataset
    assert broken == []


def test_too_many_broken_stop_with_count_examples_and_remedy(folder):
    rows = [utterance(folder, identity=f"g{i}") for i in range(8)]
    rows += [utterance(folder, "gone.wav", f"b{i}") for i in range(4)]
    with pytest.raises(InputError) as caught:
        validate(to_dataset(rows), max_broken_share=0.3)
    message = str(caught.value)
    assert (
        "4 of 12 utterances are broken, more than max_broken_share=0.3; mend them or raise the share"
        in message
    )
    assert all(f"b{i} (" in message for i in range(3))
    assert "b3 (" not in message
    assert "\n" not in message
    clean, broken = validate(to_dataset(rows), max_broken_share=1 / 3)
    assert (len(clean), len(broken)) == (8, 4)


def test_split_with_nothing_left_is_named(folder):
    rows = [utterance(folder, identity=f"g{i}") for i in range(3)]
    rows.append(utterance(folder, "gone.wav", "t", domain="scots", split="test"))
    with pytest.raises(
        InputError, match=r"domain scots, split test: .*broken"
    ):
        validate(to_dataset(rows), max_broken_share=0.5)


def test_empty_corpus_is_refused():
    with pytest.raises(InputError, match="holds no utterances"):
        validate(to_dataset([]))


def test_list_of_broken_as_tsv(folder, tmp_path):
    rows = [utterance(folder), utterance(folder, "gone.wav", "b"), utterance(folder, text="\t", identity="c")]
    _, broken = validate(to_dataset(rows), max_broken_share=1)
    write_broken(broken, tmp_path / "out" / "broken.tsv")
    lines = (tmp_path / "out" / "broken.tsv").read_text().splitlines()
    assert lines[0] == "id\tfile\treason"
    assert [line.split("\t")[0] for line in lines[1:]] == ["b", "c"]
    assert lines[1].split("\t")[1] == str(folder / "gone.wav")
