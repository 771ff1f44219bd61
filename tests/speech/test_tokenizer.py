"""Word pieces: what is encoded comes back, letters never miss, refusals say what to do."""

import pytest

from asrcl.exceptions import InputError
from asrcl.speech.tokenizer import BLANK, BOS, EOS, LETTERS, UNKNOWN, PieceTokenizer, train_tokenizer

TEXT = ["turn on the light", "play some jazz", "what is the time", "turn off the radio", "the light is on"]


@pytest.mark.parametrize("kind, size", [("unigram", 45), ("bpe", 45), ("char", 40)])
def test_round_trip(kind, size, tmp_path):
    tokenizer = train_tokenizer(TEXT, tmp_path / "pieces.model", size=size, kind=kind)
    for sentence in TEXT:
        tokens = tokenizer.encode(sentence)
        assert tokenizer.decode(tokens) == sentence
        assert not {BLANK, BOS, EOS, UNKNOWN} & set(tokens)
        assert max(tokens) < len(tokenizer) <= size


@pytest.mark.parametrize("kind, size", [("unigram", 45), ("bpe", 40), ("char", 40)])
def test_letters_that_the_text_lacks_are_covered(kind, size, tmp_path):
    tokenizer = train_tokenizer(["aa bb aa bb ab ba aab"] * 20, tmp_path / "pieces.model", size=size, kind=kind)
    tokens = tokenizer.encode(LETTERS)
    assert UNKNOWN not in tokens and tokenizer.decode(tokens) == LETTERS


def test_special_tokens_vanish(tokenizer):
    tokens = tokenizer.encode("stop")
    assert tokenizer.decode([BOS, *tokens, EOS, BLANK]) == "stop"
    assert tokenizer.decode([]) == ""


def test_training_is_repeatable(tmp_path):
    first, second = (train_tokenizer(TEXT, tmp_path / name, size=45) for name in ("a.model", "b.model"))
    other = train_tokenizer(TEXT[:-1], tmp_path / "c.model", size=45)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_more_pieces_than_the_text_gives(tmp_path):
    """Byte pairs are refused with the size that would do; the other kinds take what there is."""
    with pytest.raises(InputError, match=r"5000 pieces.*<= \d+.*tokens.size"):
        train_tokenizer(TEXT, tmp_path / "bpe.model", size=5000, kind="bpe")
    assert not (tmp_path / "bpe.model").exists()
    assert 30 < len(train_tokenizer(TEXT, tmp_path / "pieces.model", size=5000)) < 200


def test_fewer_pieces_than_letters_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"refused 10 pieces.*tokens.size"):
        train_tokenizer(TEXT, tmp_path / "pieces.model", size=10)


@pytest.mark.parametrize("text", [[], ["", "  "]])
def test_no_text_is_refused(text, tmp_path):
    with pytest.raises(InputError, match="no transcripts"):
        train_tokenizer(text, tmp_path / "pieces.model", size=40)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.model: no tokenizer here.*asrcl prepare"):
        PieceTokenizer(tmp_path / "none.model")


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "odd.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"odd.model: not a SentencePiece model"):
        PieceTokenizer(tmp_path / "odd.model")


def test_model_with_other_special_pieces_is_refused(tmp_path):
    import sentencepiece

    with open(tmp_path / "foreign.model", "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT), model_writer=stream, vocab_size=30, hard_vocab_limit=False, minloglevel=2
        )
    with pytest.raises(InputError, match=r"foreign.model: pad/bos/eos"):
        PieceTokenizer(tmp_path / "foreign.model")
