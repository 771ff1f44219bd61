"""The tokeniser that a pretrained model came with, behind the `asrcl.speech.tokenizer.Tokenizer` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.experiment.reading import reading
from asrcl.files import hash_file, hash_json
from asrcl.speech.hub import TOKENS


class HubTokenizer:
    """Text to token indices and back, by the tokeniser of a Hugging Face folder as it is.

    Args:
        folder: with the tokeniser's files.
        prefix: put before every text; byte-level tokenisers write a word in another way where no space is before it, and
            Whisper was trained with one before the first.

    Attributes:
        fingerprint: hash of the tokeniser's files.

    Raises:
        InputError: Transformers cannot read it.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        from transformers import AutoTokenizer

        self.folder, self.prefix = folder, prefix
        with reading(folder, "write the folder again with save_pretrained of its tokenizer", "its tokenizer cannot be read"):
            self.model = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        files = [*TOKENS, "merges.txt", "added_tokens.json", "special_tokens_map.json"]
        self.fingerprint = hash_json({name: hash_file(folder / name) for name in files if (folder / name).is_file()})

    def __len__(self) -> int:
        return len(self.model)

    def encode(self, text: str) -> list[int]:
        """Token indices of a sentence, without start and end."""
        tokens: list[int] = self.model.encode(self.prefix + text, add_special_tokens=False)
        return tokens

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
