"""Writing tokens back in the form they came in, with new ones behind the old.

What a file says beside the tokens stays: the model of a SentencePiece file, the merges of a tokenizer.json, the rest of a
config.yaml.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.files import atomic_path, write_json, write_text
from asrcl.merge.vocabulary.pieces import CONTROL, NORMAL, USER_DEFINED, with_pieces
from asrcl.merge.vocabulary.tokens import TokenList, espnet_tokens, role_of
from asrcl.merge.yamls import read_structure, read_text

_IN_BRACKETS = re.compile(r"<[^<>]+>|\[[^\[\]]+\]")


def write_tokens(old: TokenList, added: Sequence[str], path: str | os.PathLike[str]) -> list[Path]:
    """Write old tokens and new ones in the form of the old file.

    Without an old file they go to `tokens.txt`, a token and its id per line. In a folder with a Hugging Face `config.json` its
    `vocab_size` grows too. The old files are never written to: in their own folder the new ones go to a folder `merged_tokens`.

    Args:
        old: tokens, whose file is read again.
        added: new ones, that take the next ids.
        path: a file, or a folder (existing, or without a suffix), where the file gets its old name.

    Returns:
        The files written.

    Raises:
        InputError: the old file is gone, or nothing can be written there.
    """
    target = Path(path)
    if target.is_dir() or not target.suffix:
        own = old.path is not None and target.resolve() == old.path.parent.resolve()
        target = target / ("merged_tokens" if own else "") / (old.path.name if old.path else "tokens.txt")
    elif old.path is not None and target.parent.resolve() == old.path.parent.resolve() and target.name == old.path.name:
        raise InputError(f"{target}: these are the tokens of the old model, which stay; write to another file")
    written = _WRITERS[old.kind if old.path else "table"](old, list(added), target)
    if old.path is not None and old.kind in ("tokenizer", "vocab") and target.parent.resolve() != old.path.parent.resolve():
        written += _grow_config(target.with_name("config.json"), len(old), len(old) + len(added))
    return written


def remarks(old: TokenList, added: Sequence[str]) -> list[str]:
    """What a user should know about the new file of tokens."""
    if not added:
        return []
    name, size = old.path.name if old.path else "tokens.txt", len(old) + len(added)
    found = [f"the configuration of the merged model must say {size} outputs wherever it says {len(old)}"]
    if old.kind == "sentencepiece":
        found.append(f"{name}: new pieces come behind the old ones with the lowest score, so that some old texts may be cut anew")
    elif old.kind == "tokenizer" or (old.kind == "vocab" and _has_merges(old)):
        found.append(f"{name}: new tokens are added tokens, which are found in a text before all others")
    elif old.kind in ("espnet", "table", "plain", "pieces"):
        found.append(f"{name} lists the tokens only; a SentencePiece model that cuts the text must get the new pieces as well")
    last = old.tokens[-1]
    if old.kind in ("table", "espnet") and role_of(last) == "start and end":
        found.append(
            f"{last} stays number {len(old) - 1} and is no longer the last: a toolkit that takes the last output for it "
            "must be told (WeNet: special_tokens in train.yaml)"
        )
    return found


def _sentencepiece(old: TokenList, added: list[str], target: Path) -> list[Path]:
    try:
        data = with_pieces(_source(old).read_bytes(), [(token, _type(token)) for token in added])
    except (ValueError, OSError) as error:
        raise InputError(f"{old.path}: not readable as a SentencePiece model ({error})") from error
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    return [target]


def _type(token: str) -> int:
    if role_of(token):
        return CONTROL
    return USER_DEFINED if _IN_BRACKETS.fullmatch(token) else NORMAL


def _pieces(old: TokenList, added: list[str], target: Path) -> list[Path]:
    lines = _read(old).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    lowest = min(_score(line) for line in lines)
    return _write_lines(target, lines + [f"{token}\t{lowest:g}" for token in added])


def _score(line: str) -> float:
    try:
        return float(line.rpartition("\t")[2])
    except ValueError:
        return 0.0


def _tokenizer(old: TokenList, added: list[str], target: Path) -> list[Path]:
    """Unigram vocabularies grow; elsewhere the ids of the added tokens follow those of the vocabulary, so that only these can."""
    content, _ = read_structure(_source(old))
    vocab, known = content["model"]["vocab"], content.get("added_tokens", [])
    if isinstance(vocab, list) and len(vocab) == len(old):
        lowest = min(score for _, score in vocab)
        vocab.extend([token, lowest] for token in added)
    else:
        plain = _from_bytes if "ByteLevel" in json.dumps([content.get("pre_tokenizer"), content.get("decoder")]) else str
        content["added_tokens"] = [*known, *(_added_token(len(old) + n, plain(t), t) for n, t in enumerate(added))]
    write_json(target, content)
    return [target]


def _added_token(number: int, content: str, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": content, **flags, "special": role_of(token) is not None}


def _from_bytes(token: str) -> str:
    """The text behind a token of bytes (`Ġthe` is ` the`); the token itself where its bytes are no whole text.

    The letters that stand for bytes are those of Radford et al. 2019 (GPT-2): printable Latin-1 stands for itself, all others for
    the letters from 256 on.
    """
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in own}
    letters |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in own)}
    try:
        return bytes(letters[letter] for letter in token).decode()
    except (KeyError, UnicodeDecodeError):
        return token


def _vocab(old: TokenList, added: list[str], target: Path) -> list[Path]:
    """CTC vocabularies grow; beside merges a token would never be found, so that it becomes an added token."""
    content, _ = read_structure(_source(old))
    new = {token: len(old) + n for n, token in enumerate(added)}
    if not _has_merges(old):
        write_json(target, {**content, **new})
        return [target]
    before = _source(old).with_name("added_tokens.json")
    more = read_structure(before)[0] if before.is_file() else {}
    write_json(target, content)
    write_json(target.with_name(before.name), {**more, **new})
    return [target, target.with_name(before.name)]


def _has_merges(old: TokenList) -> bool:
    return old.path is not None and old.path.with_name("merges.txt").is_file()


def _espnet(old: TokenList, added: list[str], target: Path) -> list[Path]:
    """The text of the old file, with entries behind the last of `token_list`."""
    path, text = _source(old), _read(old)
    node = espnet_tokens(path, text)
    end, column = node.value[-1].end_mark.index, node.start_mark.column
    before = ", " if node.flow_style else "\n" + " " * column + "- "
    write_text(target, text[:end] + "".join(before + json.dumps(token, ensure_ascii=False) for token in added) + text[end:])
    return [target]


def _table(old: TokenList, added: list[str], target: Path) -> list[Path]:
    tokens = [*old.tokens, *added, *old.symbols]
    return _write_lines(target, [f"{token} {number}" for number, token in enumerate(tokens)])


def _plain(old: TokenList, added: list[str], target: Path) -> list[Path]:
    if target.suffix == ".json":
        write_json(target, [*old.tokens, *added])
        return [target]
    return _write_lines(target, [*old.tokens, *added])


_WRITERS = {
    "sentencepiece": _sentencepiece,
    "pieces": _pieces,
    "tokenizer": _tokenizer,
    "vocab": _vocab,
    "table": _table,
    "espnet": _espnet,
    "plain": _plain,
}


def _source(old: TokenList) -> Path:
    if old.path is None or not old.path.is_file():
        raise InputError(f"{old.where}: the file is gone that the tokens were read from; the new tokens are written in its form")
    return old.path


def _read(old: TokenList) -> str:
    return read_text(_source(old))


def _write_lines(target: Path, lines: list[str]) -> list[Path]:
    write_text(target, "".join(line + "\n" for line in lines))
    return [target]


def _grow_config(path: Path, old: int, new: int) -> list[Path]:
    """Every `vocab_size` of the old size in a Hugging Face configuration, also of a decoder inside."""
    if not path.is_file() or old == new:
        return []
    content, _ = read_structure(path)
    grown = _grown(content, old, new)
    if grown == content:
        return []
    write_json(path, grown)
    return [path]


def _grown(value: Any, old: int, new: int) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: new if key == "vocab_size" and entry == old else _grown(entry, old, new) for key, entry in value.items()}
