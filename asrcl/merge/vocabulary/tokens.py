"""The tokens of a model in the order of its outputs, from the files that speech toolkits keep them in.

The kinds of files:
    kind             file                                        whose
    sentencepiece    *.model                                     SpeechBrain, NeMo, ESPnet, icefall, WeNet
    pieces           *.vocab, a piece and its score per line     written beside *.model
    tokenizer        tokenizer.json                              Hugging Face
    vocab            vocab.json (with added_tokens.json)         Hugging Face
    table            a token and its id per line                 icefall tokens.txt, WeNet units.txt
    espnet           config.yaml, entry `token_list`             ESPnet
    plain            one token per line                          anybody
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.merge.vocabulary.pieces import pieces_of
from asrcl.merge.yamls import compose_yaml, read_structure, read_text, yaml_module

USUAL = (
    "tokenizer.json", "vocab.json", "tokens.txt", "units.txt", "token_list.txt", "vocab.txt", "*.model", "*.vocab", "config.yaml",
)  # fmt: skip
"""Where tokens are looked for in a folder, in this order."""
ROLES = {
    "blank": ("<blank>", "<blk>", "[blank]", "<ctc_blank>"),
    "unknown": ("<unk>", "[unk]", "<unknown>"),
    "start": ("<s>", "<sos>", "<bos>", "[bos]"),
    "end": ("</s>", "<eos>", "[eos]"),
    "start and end": ("<sos/eos>", "<sos_eos>"),
    "padding": ("<pad>", "[pad]"),
}
"""Names that tokens with a part of their own go by, in any case."""
LONGEST_ID = 18
"""Digits of an id; a longer number is text."""
_DISAMBIGUATION = re.compile(r"#\d+")
_PAIR = re.compile(r"(.+?)[ \t]+(\d+)[ \t]*")


@dataclass(frozen=True)
class TokenList:
    """Tokens by id.

    Attributes:
        tokens: each one once.
        path: the file they are from; None where they were given.
        kind: of the file, see the head of this module.
        symbols: disambiguation symbols of decoding graphs (`#0`) that the file lists behind the tokens; models have no outputs
            for them.
    """

    tokens: tuple[str, ...]
    path: Path | None = None
    kind: str = "plain"
    symbols: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tokens:
            raise InputError(f"{self.where}: there are no tokens")
        twice = [token for token, count in Counter(self.tokens).items() if count > 1]
        if twice:
            shown = ", ".join(repr(token) for token in twice[:5])
            raise InputError(f"{self.where}: {len(twice)} token(s) come twice: {shown}; every token needs one place of its own")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def where(self) -> str:
        """What messages call the source of the tokens."""
        return str(self.path) if self.path else "the given list of tokens"


Tokens = Sequence[str] | str | os.PathLike[str] | TokenList


def role_of(token: str) -> str | None:
    """The part a token plays (see `ROLES`); None for those that stand for text."""
    name = token.lower()
    return next((role for role, names in ROLES.items() if name in names), None)


def as_tokens(source: Tokens) -> TokenList:
    """A list of tokens, or a path to one.

    Raises:
        InputError: see `read_tokens`.
    """
    if isinstance(source, TokenList):
        return source
    if isinstance(source, str | os.PathLike):
        return read_tokens(source)
    strangers = [token for token in source if not isinstance(token, str)]
    if strangers:
        raise InputError(f"tokens are text, not {type(strangers[0]).__name__} ({strangers[0]!r})")
    return TokenList(tuple(source))


def read_tokens(path: str | os.PathLike[str]) -> TokenList:
    """Read tokens from a file of any kind above, or from the one that is usual in a folder.

    Raises:
        InputError: no such file, none in the folder, damaged, tokens that come twice, or ids without a token.
    """
    file = _usual(Path(path)) if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    if file.suffix == ".model":
        return _sentencepiece(file)
    if file.suffix == ".json":
        return _hugging_face(file)
    if file.suffix in (".yaml", ".yml"):
        return TokenList(_espnet(file), file, "espnet")
    return _lines(file)


def _usual(folder: Path) -> Path:
    found = next((file for pattern in USUAL for file in sorted(folder.glob(pattern))), None)
    if found is None:
        raise InputError(f"{folder}: no file with tokens in it ({', '.join(USUAL)}); name the file")
    return found


def _sentencepiece(path: Path) -> TokenList:
    try:
        return TokenList(tuple(piece.text for piece in pieces_of(path.read_bytes())), path, "sentencepiece")
    except (ValueError, OSError, struct.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as a SentencePiece model ({error})") from error


def _hugging_face(path: Path) -> TokenList:
    content, _ = read_structure(path)
    if isinstance(content, list):
        return TokenList(tuple(map(str, content)), path, "plain")
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: no tokens by id in it")
    if isinstance(content.get("model"), Mapping):
        return TokenList(_by_id(path, _tokenizer_ids(path, content)), path, "tokenizer")
    added = path.with_name("added_tokens.json")
    more = read_structure(added)[0] if path.name == "vocab.json" and added.is_file() else {}
    return TokenList(_by_id(path, [*content.items(), *more.items()]), path, "vocab")


def _tokenizer_ids(path: Path, content: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    vocab = content["model"].get("vocab")
    if isinstance(vocab, Mapping):
        pairs: list[tuple[Any, Any]] = list(vocab.items())
    elif isinstance(vocab, list):  # unigram models: pairs of token and score
        pairs = [(entry[0], number) for number, entry in enumerate(vocab)]
    else:
        raise InputError(f"{path}: the entry model.vocab is missing")
    return pairs + [(entry.get("content"), entry.get("id")) for entry in content.get("added_tokens", [])]


def _by_id(path: Path, pairs: Iterable[tuple[Any, Any]]) -> tuple[str, ...]:
    """Tokens in the order of their ids, which must go from 0 up without a gap."""
    found: dict[int, str] = {}
    for token, number in pairs:
        if not isinstance(token, str) or not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"{path}: {token!r} has no id; a vocabulary by language is to be cut out first")
        if found.setdefault(number, token) != token:
            raise InputError(f"{path}: id {number} belongs to {found[number]!r} and to {token!r}")
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise InputError(f"{path}: id {missing} has no token, though ids go up to {max(found)}")
    return tuple(found[number] for number in range(len(found)))


def _espnet(path: Path) -> tuple[str, ...]:
    tokens = espnet_tokens(path, read_text(path))
    return tuple(node.value for node in tokens.value)


def espnet_tokens(path: Path, text: str) -> Any:
    """The YAML node of the entry `token_list`, whose tokens are all text (`no` and `1` are words here).

    Raises:
        InputError: it is missing or no list.
    """
    top, yaml = compose_yaml(path, text), yaml_module(path)
    entries = {key.value: value for key, value in top.value} if isinstance(top, yaml.MappingNode) else {}
    node = entries.get("token_list")
    if isinstance(node, yaml.ScalarNode):
        raise InputError(f"{path}: token_list names the file {node.value}; give that file")
    if node is None or not all(isinstance(token, yaml.ScalarNode) for token in node.value):
        raise InputError(f"{path}: no entry token_list with tokens in it")
    return node


def _lines(path: Path) -> TokenList:
    lines = read_text(path).split("\n")
    while lines and not lines[-1].strip("\r"):
        lines.pop()
    lines = [line.rstrip("\r") for line in lines]
    empty = next((number for number, line in enumerate(lines, 1) if not line), None)
    if empty:
        raise InputError(f"{path} line {empty}: empty, where a token should be")
    if path.suffix == ".vocab" and all("\t" in line for line in lines):
        return TokenList(tuple(line.rpartition("\t")[0] for line in lines), path, "pieces")
    pairs = [_token_and_id(line) for line in lines]
    if not lines or None in pairs:
        return TokenList(tuple(lines), path, "plain")
    tokens = _by_id(path, [pair for pair in pairs if pair])
    if len(tokens) < len(pairs):
        raise InputError(f"{path}: the same line comes twice")
    last = next((n for n in range(len(tokens), 0, -1) if not _DISAMBIGUATION.fullmatch(tokens[n - 1])), 0)
    return TokenList(tokens[:last], path, "table", tokens[last:])


def _token_and_id(line: str) -> tuple[str, int] | None:
    found = _PAIR.fullmatch(line)
    return (found[1], int(found[2])) if found and len(found[2]) <= LONGEST_ID else None
