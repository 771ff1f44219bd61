"""Synthetic corpora on disk."""

import hashlib
import random
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from asrcl.exceptions import InputError
from asrcl.speech.synthetic import POOLS, Synthesizer, corpus, general_sentence, synthesise, vocabulary
from asrcl.speech.synthetic.corpus import _key, check_settings, trim
from asrcl.speech.synthetic.grammar import SHARED, _words

SIZES = {"train": 12, "dev": 3, "test": 6}


def make(folder, domain="SCO", **changes):
    settings = {"accent": "SCO", "sizes": SIZES, "seed": 1, "folder": folder, **changes}
    return synthesise(domain, **settings)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(row):
    return soundfile.read(row["path"], start=row["start"], stop=row["end"], dtype="float32")[0]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return make(tmp_path_factory.mktemp("corpus"))


def test_rows_describe_the_audio(rows):
    assert set(rows[0]) == {"id", "path", "start", "end", "kind", "text", "speaker", "domain", "split"}
    assert [row["split"] for row in rows] == ["train"] * 12 + ["dev"] * 3 + ["test"] * 6
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        info = soundfile.info(row["path"])
        assert Path(row["path"]).is_absolute() and info.samplerate == 16000 and info.subtype == "PCM_16"
        assert 0 <= row["start"] < row["end"] <= info.frames
        assert 0.7 < (row["end"] - row["start"]) / 16000 < 5.0


def test_utterances_are_trimmed_and_levelled(rows):
    levels = []
    for row in rows:
        wave = torch.from_numpy(read(row))
        levels.append(10 * torch.log10(wave.square().mean()).item())
        assert wave[:600].abs().max() < 0.02 * wave.abs().max() < 0.0196
        assert wave[-600:].abs().max() < 0.02 * wave.abs().max()
    assert -34.0 < min(levels) < max(levels) < -19.9 and max(levels) - min(levels) > 4.0


def test_speakers_and_sentences_of_the_splits_are_disjoint(rows):
    for key in ("speaker", "text"):
        seen = [{row[key] for row in rows if row["split"] == split} for split in POOLS]
        assert len(set.union(*seen)) == sum(map(len, seen))


def test_same_seed_same_bytes_another_seed_other_ones(rows, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        make(tmp_path / "same")
        assert torch.get_num_threads() != threads, "the caller's setting comes back"
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "same") == contents(Path(rows[0]["path"]).parent.parent)
    other = make(tmp_path / "other", seed=2)
    assert [row["text"] for row in other] != [row["text"] for row in rows]


def test_rerun_is_free_and_a_moved_corpus_is_still_one(tmp_path, monkeypatch):
    first = make(tmp_path / "a", sizes={"test": 2})
    before = contents(tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")

    def refuse() -> Synthesizer:
        raise AssertionError("synthesised again")

    monkeypatch.setattr(corpus, "Synthesizer", refuse)
    second = make(tmp_path / "b", sizes={"test": 2, "train": 0})
    assert contents(tmp_path / "b") == before
    assert [Path(row["path"]).parts[-2:] for row in second] == [Path(row["path"]).parts[-2:] for row in first]
    assert all(Path(row["path"]).exists() for row in second)


def test_a_lost_file_is_made_again_and_other_settings_do_not_disturb(tmp_path):
    rows = make(tmp_path, sizes={"test": 2})
    before = contents(tmp_path)
    make(tmp_path, sizes={"test": 2}, channel="telephone")
    Path(rows[0]["path"]).unlink()
    make(tmp_path, sizes={"test": 2})
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before and len(after) > len(before)


def test_a_killed_run_leaves_no_record(tmp_path, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, sizes={"test": 2})
    assert not list(tmp_path.rglob("settings.json")) and not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert len(make(tmp_path, sizes={"test": 2})) == 2


def test_a_larger_split_begins_with_the_smaller(rows, tmp_path):
    fewer = make(tmp_path, sizes={"test": 4})
    larger = [row for row in rows if row["split"] == "test"][:4]
    for few, more in zip(fewer, larger, strict=True):
        assert (few["text"], few["speaker"], few["start"]) == (more["text"], more["speaker"], more["start"])
        assert (read(few) == read(more)).all()


def test_topics_off_gives_every_domain_the_same_sentences(tmp_path):
    sizes = {"train": 6, "test": 3}
    texts = [
        [row["text"] for row in make(tmp_path, name, accent=name, sizes=sizes, topics=False)]
        for name in ("US", "CAR")
    ]
    assert texts[0] == texts[1]


def test_topics_on_gives_every_domain_its_own(rows, tmp_path):
    own = {name: vocabulary(name) - _words(SHARED) for name in ("music", "shopping")}
    own = {"music": own["music"] - own["shopping"], "shopping": own["shopping"] - own["music"]}
    there = {row["text"] for row in make(tmp_path, "CAR", accent="CAR", sizes={"train": 12})}
    here = {row["text"] for row in rows}

    def touched(texts: set[str], topic: str) -> int:
        return sum(bool(own[topic] & set(text.split())) for text in texts)

    assert touched(here, "music") > 5 and touched(here, "shopping") == 0
    assert touched(there, "shopping") > 3 and touched(there, "music") == 0
    picked = make(tmp_path, "X", topic="shopping", topic_share=1.0, sizes={"train": 4})
    assert touched({row["text"] for row in picked}, "shopping") == 4


def test_a_channel_changes_the_sound_only(rows, tmp_path):
    noisy = make(tmp_path, "SCO", channel="noise", sizes={"test": 2})
    clean = [row for row in rows if row["split"] == "test"][:2]
    for one, other in zip(noisy, clean, strict=True):
        assert (one["text"], one["end"] - one["start"]) == (other["text"], other["end"] - other["start"])
    pauses = [abs(read(row)[:700]).mean() for row in (noisy[0], clean[0])]
    assert pauses[0] > 3 * pauses[1], "the pause before the first word is no longer silent"


def test_trim_keeps_fifty_milliseconds():
    wave = torch.zeros(16000)
    wave[5000:9000] = 0.5
    assert len(trim(wave, 16000)) == 4000 + 2 * 800
    assert torch.equal(trim(wave, 16000)[800:4800], wave[5000:9000])
    assert len(trim(torch.zeros(100), 16000)) == 100


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"accent": "XX"}, "accent"),
        ({"topic": "gossip"}, "topic"),
        ({"channel": "radio"}, "channel"),
        ({"sizes": {"valid": 3}}, "sizes valid"),
        ({"sizes": {"train": -1}}, "sizes train"),
        ({"sizes": {"train": 2.5}}, "sizes train"),
        ({"sizes": {}}, "sizes"),
        ({"rate": 4000}, "rate"),
        ({"topic_share": 2.0}, "topic_share"),
        ({"domain": "../up"}, "domain"),
    ],
)
def test_refusals(tmp_path, changes, word):
    with pytest.raises(InputError, match=word):
        make(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_generators_do_not_depend_on_global_seeds(tmp_path):
    random.seed(1)
    torch.manual_seed(1)
    make(tmp_path / "a", sizes={"test": 2}, channel="noise")
    random.seed(2)
    torch.manual_seed(2)
    make(tmp_path / "b", sizes={"test": 2}, channel="noise")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_corpora_of_one_domain_and_accent_share_no_id(tmp_path):
    """Whatever tells them apart: topic, none at all, channel, accent, seed."""
    sizes = {"test": 2}
    different = [
        {}, {"topic": "calls"}, {"topics": False}, {"channel": "telephone"}, {"accent": "US", "topic": "music"}, {"seed": 2},
    ]  # fmt: skip
    ids = [row["id"] for changes in different for row in make(tmp_path, sizes=sizes, **changes)]
    assert len(ids) == len(set(ids)) == 2 * len(different)
    assert make(tmp_path, sizes={"test": 3})[0]["id"] == ids[0]


def test_more_takes_bring_more_speakers(tmp_path):
    rows = make(tmp_path, sizes={"test": 21}, takes=2)
    assert len({row["speaker"] for row in rows}) == 20
    assert rows[20]["speaker"] == rows[0]["speaker"]


@pytest.mark.parametrize("topics", [True, False])
def test_a_topic_that_does_not_exist_is_refused_with_those_that_do(topics, tmp_path):
    with pytest.raises(InputError, match=r"'sports': .*sport"):
        make(tmp_path, topic="sports", topics=topics)
    assert not list(tmp_path.iterdir())


def test_general_sentences_are_written_and_distinct():
    rng = random.Random(0)
    texts = [general_sentence(rng) for _ in range(2000)]
    assert len(set(texts)) > 1500
    for text in texts:
        assert text[0].isupper() and text[-1] in ".?!" and "<" not in text and "  " not in text
        assert not any(map(str.isdigit, text))
    assert {mark for text in texts for mark in text if not mark.isalnum()} == set(" .,?!;:'")
    assert [general_sentence(random.Random(7)) for _ in range(2)] == [general_sentence(random.Random(7))] * 2


def test_prose_by_many_voices_and_by_one(tmp_path):
    many = make(tmp_path, style="prose", sizes={"dev": 2, "test": 4})
    texts = {split: [row["text"] for row in many if row["split"] == split] for split in ("dev", "test")}
    assert not set(texts["dev"]) & set(texts["test"]) and len({row["speaker"] for row in many}) == 6
    assert all(row["text"][0].isupper() for row in many)
    one = make(tmp_path, "reader", style="prose", one_voice=True, sizes={"train": 2, "dev": 2, "test": 4})
    assert {row["speaker"] for row in one} == {"sco-own_voice"}
    assert [row["text"] for row in one if row["split"] == "test"] == texts["test"]  # the same list in every domain
    with pytest.raises(InputError, match="style 'verse': choose assistant or prose"):
        make(tmp_path, style="verse")


def test_corpora_of_before_keep_their_keys():
    key = _key(check_settings("SCO", accent="SCO", sizes=SIZES, seed=1))
    settings = {"domain", "accent", "topic", "topic_share", "channel", "sizes", "seed", "rate", "takes"}
    assert set(key) == settings | {"recipe", "espeakng-loader", "grammar", "speakers"}
    assert _key(check_settings("SCO", accent="SCO", sizes=SIZES, seed=1, one_voice=True)) != key
    assert _key(check_settings("SCO", accent="SCO", sizes=SIZES, seed=1, style="prose"))["grammar"] != key["grammar"]
