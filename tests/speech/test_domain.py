"""Batches of a domain: bounded, repeatable, and cut back to single utterances."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asrcl.contract.protocols import Batch, Domain
from asrcl.exceptions import InputError
from asrcl.speech.domain import SpeechDomain, bucket
from asrcl.speech.features import FeatureConfig, build_features
from asrcl.speech.tokenizer import train_tokenizer

CONFIG = FeatureConfig(bins=8)


@pytest.fixture
def store(make_corpus, tmp_path):
    return build_features(make_corpus({"train": 12, "dev": 2, "test": 3}), CONFIG, tmp_path / "features")


@given(
    lengths=st.lists(st.integers(1, 300), max_size=40),
    max_frames=st.integers(50, 1000),
    max_items=st.integers(1, 8),
    seed=st.none() | st.integers(0, 99),
)
def test_groups_are_bounded_and_hold_everything_once(lengths, max_frames, max_items, seed):
    generator = None if seed is None else random.Random(seed)
    groups = bucket(lengths, max_frames, max_items, generator)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        padded = max(lengths[position] for position in group) * len(group)
        assert len(group) <= max_items and (padded <= max_frames or len(group) == 1)


def test_groups_hold_similar_lengths():
    lengths = list(range(1, 101))
    random.Random(0).shuffle(lengths)
    spans = [[lengths[position] for position in group] for group in bucket(lengths, 10**6, 10)]
    assert all(max(span) - min(span) == 9 for span in spans)


def test_it_is_a_domain(store, tokenizer):
    domain = SpeechDomain("tones", store, tokenizer)
    assert isinstance(domain, Domain)
    assert all(isinstance(batch, Batch) for batch in domain.batches("dev", shuffle=False, seed=0))
    assert [domain.size(split) for split in ("train", "dev", "test")] == [12, 2, 3]


def test_batches_hold_every_utterance_with_its_features_and_tokens(store, tokenizer):
    domain = SpeechDomain("tones", store, tokenizer, max_frames=400, max_items=4)
    rows = {row["id"]: row for row in store.rows("train")}
    seen = []
    for batch in domain.batches("train", shuffle=True, seed=3):
        assert len(batch) <= 4 and batch.features.shape[:2].numel() <= 400
        assert batch.features.shape == (len(batch), int(batch.lengths.max()), 8)
        for number, name in enumerate(batch.ids):
            row, length, size = rows[name], int(batch.lengths[number]), int(batch.token_lengths[number])
            assert torch.equal(batch.features[number, :length], store.frames(row))
            assert not batch.features[number, length:].any() and not batch.tokens[number, size:].any()
            assert batch.tokens[number, :size].tolist() == tokenizer.encode(row["text"])
            assert (batch.references[number], batch.speakers[number]) == (row["text"], row["speaker"])
        seen += batch.ids
    assert sorted(seen) == sorted(rows)


def orders(domain, seed, shuffle=True):
    return [batch.ids for batch in domain.batches("train", shuffle=shuffle, seed=seed)]


def test_order_depends_on_the_seed_alone(store, tokenizer):
    first = SpeechDomain("tones", store, tokenizer, max_items=3)
    second = SpeechDomain("tones", store, tokenizer, max_items=3)
    wanted = orders(first, 5)
    random.seed(99)
    torch.manual_seed(99)
    assert orders(first, 5) == orders(second, 5) == wanted
    assert orders(first, 6) != wanted
    assert orders(first, 1, shuffle=False) == orders(first, 2, shuffle=False)


def test_items_are_the_utterances_without_padding(store, tokenizer):
    domain = SpeechDomain("tones", store, tokenizer)
    (batch,) = domain.batches("test", shuffle=False, seed=0)
    items = list(batch.items())
    assert [item.ids[0] for item in items] == list(batch.ids) and all(len(item) == 1 for item in items)
    for number, item in enumerate(items):
        assert item.features.shape[1] == int(item.lengths[0]) == int(batch.lengths[number])
        assert item.tokens.shape[1] == int(item.token_lengths[0])
        assert torch.equal(item.features[0], batch.features[number, : item.features.shape[1]])


def test_moving_a_batch_keeps_its_words(store, tokenizer):
    (batch,) = SpeechDomain("tones", store, tokenizer).batches("dev", shuffle=False, seed=0)
    moved = batch.to("meta")
    assert moved.features.device.type == moved.token_lengths.device.type == "meta"
    assert (moved.ids, moved.speakers, moved.references) == (batch.ids, batch.speakers, batch.references)


@pytest.mark.parametrize("missing", ["train", "dev", "test"])
def test_a_missing_split_is_named_with_its_domain(missing, make_corpus, tokenizer, tmp_path):
    sizes = {split: 1 for split in ("train", "dev", "test") if split != missing}
    store = build_features(make_corpus(sizes), CONFIG, tmp_path / "features")
    with pytest.raises(InputError, match=f"domain tones has no {missing} utterances"):
        SpeechDomain("tones", store, tokenizer)


def test_fingerprint_changes_with_what_training_sees(store, tokenizer, tmp_path):
    base = SpeechDomain("tones", store, tokenizer)
    other_tokens = train_tokenizer(["abc"], tmp_path / "other.model", size=40, kind="char")
    prints = [
        base.fingerprint("train"),
        base.fingerprint("dev"),
        SpeechDomain("tones", store, tokenizer, max_items=3).fingerprint("train"),
        SpeechDomain("tones", store, tokenizer, max_frames=99).fingerprint("train"),
        SpeechDomain("tones", store, other_tokens).fingerprint("train"),
    ]
    assert len(set(prints)) == len(prints)
    assert SpeechDomain("renamed", store, tokenizer).fingerprint("train") == prints[0]


def test_a_split_that_does_not_exist_is_refused(store, tokenizer):
    domain = SpeechDomain("tones", store, tokenizer)
    assert domain.size("exam") == 0
    with pytest.raises(InputError, match="domain tones: no split exam"):
        list(domain.batches("exam", shuffle=False, seed=0))
