"""The tokens of a Whisper that CTranslate2 converted: `tokenizer.json` and the vocabulary file, as Transformers wants them.

The tokenizer that comes with such models ends before the time stamps, which the vocabulary file has; they are added, so that
decoding can show them. What each token means is read from its name, as `openai/whisper` (whisper/tokenizer.py) gives them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.files import read_json, reading, write_json, write_text

END, START = "<|endoftext|>", "<|startoftranscript|>"
TASKS = {"transcribe": "<|transcribe|>", "translate": "<|translate|>"}
PREVIOUS, NO_TIMES = "<|startofprev|>", "<|notimestamps|>"
MULTILINGUAL = 51865
"""Tokens from which a Whisper is multilingual (`Whisper.is_multilingual` in whisper/model.py of openai/whisper)."""
REMEDY = "give a folder with the model's own tokenizer"


@dataclass(frozen=True)
class Tokens:
    """All tokens of a model.

    Attributes:
        content: of `tokenizer.json`, with the tokens that it lacked added.
        names: of all tokens by their number.
    """

    content: dict[str, Any]
    names: list[str]

    @classmethod
    def read(cls, folder: Path, count: int) -> Tokens:
        """Read the tokens of a folder.

        Args:
            folder: with `tokenizer.json` and `vocabulary.json` or `vocabulary.txt`.
            count: rows of the embedding.

        Raises:
            InputError: a file is missing or damaged, or tokenizer, vocabulary and model do not go together.
        """
        names, where = _vocabulary(folder)
        if len(names) != count:
            raise InputError(f"{where}: {len(names)} tokens, but the model has {count}; {REMEDY}")
        path = folder / "tokenizer.json"
        content = read_json(path)
        with reading(path, REMEDY):
            known = {number: name for name, number in content["model"]["vocab"].items()}
            known |= {token["id"]: token["content"] for token in content["added_tokens"]}
            differing = next((number for number, name in known.items() if names[number : number + 1] != [name]), None)
            if content["model"]["type"] != "BPE" or not isinstance(content["model"]["merges"], list):
                raise ValueError("no byte-pair encoding")
        if differing is not None:
            raise InputError(f"{path}: token {differing} is {known[differing]!r}, but not in {where.name}; {REMEDY}")
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
        missing = [{"id": number, "content": name, **plain} for number, name in enumerate(names) if number not in known]
        found = cls({**content, "added_tokens": [*content["added_tokens"], *missing]}, names)
        for name in (END, START, PREVIOUS, NO_TIMES, *TASKS.values()):
            if name not in found.numbers:
                raise InputError(f"{path}: there is no token {name}; give the tokenizer of a Whisper")
        return found

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each token by its name."""
        return {name: number for number, name in enumerate(self.names)}

    @property
    def multilingual(self) -> bool:
        """Whether the model knows languages besides English."""
        return len(self.names) >= MULTILINGUAL

    @property
    def languages(self) -> dict[str, int]:
        """The tokens of the languages: those between the start of a transcript and the tasks."""
        first, last = self.numbers[START] + 1, min(self.numbers[name] for name in TASKS.values())
        return {self.names[number]: number for number in range(first, last)}

    def write(self, folder: Path) -> None:
        """Write the files of a fast and of a slow tokenizer.

        Raises:
            InputError: the disk.
        """
        model, added = self.content["model"], self.content["added_tokens"]
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        write_json(folder / "tokenizer.json", self.content)
        write_json(folder / "vocab.json", model["vocab"])
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
        special: dict[str, Any] = {f"{use}_token": END for use in ("bos", "eos", "pad", "unk")}
        special["additional_special_tokens"] = [token["content"] for token in added if token["special"]]
        write_json(folder / "special_tokens_map.json", special)
        settings: dict[str, Any] = {"tokenizer_class": "WhisperTokenizer", "processor_class": "WhisperProcessor"}
        settings |= {"add_prefix_space": False, "clean_up_tokenization_spaces": False, "errors": "replace"}
        decoder = {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added}
        write_json(folder / "tokenizer_config.json", {**settings, **special, "added_tokens_decoder": decoder})


def _vocabulary(folder: Path) -> tuple[list[str], Path]:
    """The names of the tokens by their number, and the file that has them."""
    path = next((folder / name for name in ("vocabulary.json", "vocabulary.txt") if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: holds neither vocabulary.json nor vocabulary.txt; copy the folder again")
    if path.suffix == ".txt":
        with reading(path, "copy the folder again"):
            return path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), path
    names = read_json(path)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: is no list of tokens; copy the folder again")
    return names, path
