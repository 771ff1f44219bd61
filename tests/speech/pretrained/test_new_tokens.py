"""Words get tokens of their own: the old tokens and their embeddings stay as they are, the new ones begin as a mean of pieces."""

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.speech.pretrained.whisper import Whisper

pytest.importorskip("transformers")


def build(folder, words):
    tokenizer = Whisper.tokenizer(str(folder), new_tokens=words)
    return Whisper(8, len(tokenizer), pretrained=str(folder), new_tokens=words), tokenizer


def test_a_word_becomes_one_token_in_its_place_alone(whisper_folder):
    _, tokenizer = build(whisper_folder, ["cappuccino", "mocha"])
    _, before = build(whisper_folder, [])
    text = "Cappuccino, cappuccino and a mocha, not mochas."
    tokens = tokenizer.encode(text)
    first, second = len(before), len(before) + 1
    assert tokens.count(first) == 1 and tokens.count(second) == 1 and len(tokens) < len(before.encode(text))
    assert tokenizer.decode(tokens) == before.decode(before.encode(text)) == text
    other = "An espresso."
    assert tokenizer.encode(other) == before.encode(other)
    assert tokenizer.fingerprint != before.fingerprint


def test_old_rows_are_kept_to_the_bit_and_new_ones_are_means(whisper_folder):
    words = ["cappuccino", "mocha"]
    model, _ = build(whisper_folder, words)
    old, before = build(whisper_folder, [])
    rows, original = (each.model.decoder.embed_tokens.weight for each in (model, old))
    assert torch.equal(rows[: len(original)], original) and len(rows) == len(original) + 2
    for number, word in enumerate(words):
        assert torch.allclose(rows[len(before) + number], original[before.encode(word)].mean(0), atol=1e-6)
    others = [name for name in model.state_dict() if "embed_tokens" not in name]
    assert all(torch.equal(model.state_dict()[name], old.state_dict()[name]) for name in others)


@pytest.mark.parametrize("words", [["two words"], [" mocha"], ["mocha", "mocha"]])
def test_what_cannot_be_a_new_token_is_refused(whisper_folder, words):
    with pytest.raises(InputError, match=r"model\.new_tokens"):
        build(whisper_folder, words)
