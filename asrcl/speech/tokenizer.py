"""From text to tokens and back: what a tokeniser offers, and SentencePiece's, trained on the first domain and kept for all."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import sentencepiece

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, hash_file

BLANK, BOS, EOS, UNKNOWN = 0, 1, 2, 3
"""Token indices: 0 is the CTC blank and the padding, 1 starts and 2 ends a sentence, 3 stands for what has no piece."""
LETTERS = "abcdefghijklmnopqrstuvwxyz'"


class Tokenizer(Protocol):
    """Text to token indices and back; one for all domains of a scenario.

    Attributes:
        fingerprint: hash of what it does, for cache keys.
    """

    fingerprint: str

    def __len__(self) -> int:
        """Number of tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token indices of a sentence, without start and end."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token indices; special tokens vanish."""
        ...


class PieceTokenizer:
    """Word pieces by SentencePiece, behind the `Tokenizer` protocol.

    Args:
        path: a SentencePiece model whose pieces 0, 1, 2 are padding (the CTC blank), start and end of sentence.

    Raises:
        InputError: the file is missing, is no SentencePiece model, or has other special pieces.
    """

    def __init__(self, path: str | Path) -> None:
        if not Path(path).is_file():
            raise InputError(f"{path}: no tokenizer here; run the tokens stage (asrcl prepare) first")
        self.path = Path(path)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise InputError(f"{path}: not a SentencePiece model; delete it and run the tokens stage again") from error
        if (self._model.pad_id(), self._model.bos_id(), self._model.eos_id()) != (BLANK, BOS, EOS):
            raise InputError(f"{path}: pad/bos/eos are not pieces 0/1/2; train it with `asrcl prepare`")
        self.fingerprint = hash_file(path)

    def __len__(self) -> int:
        return self._model.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token indices of a sentence, without start and end."""
        return self._model.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token indices; special tokens vanish."""
        return self._model.decode([token for token in tokens if token > EOS])


def train_tokenizer(
    sentences: Iterable[str],
    path: str | Path,
    *,
    size: int,
    kind: Literal["unigram", "bpe", "char"] = "unigram",
    characters: str = LETTERS,
) -> PieceTokenizer:
    """Train word pieces and write them to `path`.

    Args:
        sentences: normalised transcripts of the first domain's training set.
        path: where the model goes; written atomically.
        size: number of pieces, the four special ones included.
        kind: SentencePiece model type.
        characters: always covered, so that the words of later domains can be spelled even where the first lacks a letter.

    Raises:
        InputError: `size` does not fit the sentences; the message says which sizes do.
    """
    text = [sentence for sentence in sentences if sentence.strip()]
    if not text:
        raise InputError(f"{path}: no transcripts to train the tokenizer on; the first domain's training set is empty")
    stream = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=stream,
            vocab_size=size,
            model_type=kind,
            required_chars=characters,
            character_coverage=1.0,
            pad_id=BLANK,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNKNOWN,
            hard_vocab_limit=kind == "bpe",
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path}: SentencePiece refused {size} pieces ({reason}); change tokens.size") from error
    with atomic_path(path) as temporary:
        temporary.write_bytes(stream.getvalue())
    return PieceTokenizer(path)
