"""The tokeniser that a pretrained model came with, behind the `asrcl.speech.tokenizer.Tokenizer` protocol."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.files import hash_file, hash_json
from asrcl.speech.hub import TOKENS


class HubTokenizer:
    """Text to token indices and back, by the tokeniser of a Hugging Face folder as it is.

    Args:
        folder: with the tokeniser's files.
        new_tokens: words that get a token of their own, after those there are, which keep their indices.
        prefix: put before every text; byte-level tokenisers write a word in another way where no space is before it, and
            Whisper was trained with one before the first.

    Attributes:
        fingerprint: hash of the tokeniser's files.

    Raises:
        InputError: Transformers cannot read it; a new token that is no single word, or a token already.
    """

    def __init__(self, folder: Path, new_tokens: Sequence[str] = (), prefix: str = "") -> None:
        from transformers import AutoTokenizer

        self.folder, self.prefix = folder, prefix
        with reading(folder, "write the folder again with save_pretrained of its tokenizer", "its tokenizer cannot be read"):
            self.model = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        files = [*TOKENS, "merges.txt", "added_tokens.json", "special_tokens_map.json"]
        facts: dict[str, Any] = {name: hash_file(folder / name) for name in files if (folder / name).is_file()}
        self.known, self._plain = len(self.model), self.model
        self._new: dict[str, int] = {}
        self._pattern: re.Pattern[str] | None = None
        if new_tokens:
            self._plain = copy.deepcopy(self.model)
            self._add([str(word) for word in new_tokens])
            facts["new_tokens"] = list(new_tokens)
        self.fingerprint = hash_json(facts)

    def _add(self, words: Sequence[str]) -> None:
        """Give words tokens, with the space before them, as byte-level tokenisers write words within a text."""
        known = self.model.get_vocab()
        for word in words:
            if len(word.split()) != 1 or word != word.strip() or words.count(word) > 1:
                raise InputError(f"model.new_tokens: {word!r} must be one word, and named once")
            if self.prefix + word in known or len(self.encode(word)) == 1:
                raise InputError(f"model.new_tokens: {word} is one token already; leave it out")
        # The tokeniser would find them within longer words, or (single_word) only where no word is before; `encode` looks itself.
        self.model.add_tokens([self.prefix + word for word in words])
        self._new = {self.prefix + word: self.known + number for number, word in enumerate(words)}
        self._pattern = re.compile(f"({'|'.join(map(re.escape, sorted(self._new, key=len, reverse=True)))})(?!\\w)")

    def __len__(self) -> int:
        return len(self.model)

    def encode(self, text: str) -> list[int]:
        """Token indices of a sentence, without start and end."""
        parts = self._pattern.split(self.prefix + text) if self._pattern else [self.prefix + text]
        return [
            token for part in parts if part
            for token in ([self._new[part]] if part in self._new else self._plain.encode(part, add_special_tokens=False))
        ]  # fmt: skip

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token indices; special tokens vanish."""
        return str(self.model.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()

    def index(self, token: str) -> int:
        """Index of a token by its name, such as `<|startoftranscript|>`.

        Raises:
            InputError: the tokeniser lacks it.
        """
        known: dict[str, int] = self.model.get_vocab()
        if token not in known:
            raise InputError(f"{self.folder}: its tokenizer lacks {token}; give the model that this setting is for")
        return known[token]


class CharacterTokenizer(HubTokenizer):
    """The tokeniser of a CTC model, whose tokens are characters, most often of one case and without punctuation.

    A text is brought to the case that the vocabulary has, and characters that it lacks are left out, as from its training texts.
    """

    def encode(self, text: str) -> list[int]:
        """Token indices of what the vocabulary can write of a sentence."""
        known = self.model.get_vocab()
        if "a" not in known or "A" not in known:
            text = text.upper() if "A" in known else text.lower()
        kept = "".join(letter for letter in text if letter in known or letter.isspace())
        return super().encode(" ".join(kept.split()))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token indices, repetitions kept."""
        return str(self.model.decode(list(tokens), skip_special_tokens=True, group_tokens=False)).strip()
