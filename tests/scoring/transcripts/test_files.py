"""Reading once: formats, hashes, packed files, line ends."""

import gzip
import io
import sys
from pathlib import Path

import pytest

from asrcl.exceptions import InputError
from asrcl.files import hash_file
from asrcl.scoring.transcripts.files import Source, format_of, plain_name, read_source
from asrcl.scoring.transcripts.formats import read_utterances


@pytest.mark.parametrize(
    ("name", "named", "expected"),
    [
        ("a.trn", None, "trn"),
        ("a.trn", "csv", "trn"),  # a suffix that says what the file holds is believed
        ("a.TRN.gz", None, "trn"),
        ("a.json", None, "jsonl"),
        ("data/text", "trn", "text"),
        ("text.gz", None, "text"),
        ("a.txt", None, "text"),
        ("a.txt", "trn", "trn"),
        ("-", None, "text"),
        ("/dev/fd/63", "jsonl", "jsonl"),
        ("7.tra", "text", "text"),
        ("7.tra", None, ""),
        ("hyp.filt.gz", None, ""),
    ],
)
def test_the_suffix_names_the_format_or_else_the_caller(name: str, named: str | None, expected: str) -> None:
    assert format_of(name, named) == expected


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(InputError, match="unknown format 'stm'; choose trn, text, jsonl, csv, tsv"):
        format_of("a.trn", "stm")


def test_packed_files_are_those_that_were_packed(tmp_path: Path) -> None:
    (tmp_path / "a.trn").write_text("a b (u)\n")
    (tmp_path / "b.trn.gz").write_bytes(gzip.compress(b"a b (u)\n"))
    packed = read_source(tmp_path / "b.trn.gz")
    assert read_utterances(packed) == read_utterances(tmp_path / "a.trn")
    assert packed.digest == hash_file(tmp_path / "b.trn.gz") and plain_name("x/b.trn.gz") == Path("x/b.trn")
    (tmp_path / "b.trn.gz").write_bytes(gzip.compress(b"a b (u)\n")[:-4])
    with pytest.raises(InputError, match=r"b.trn.gz: not a whole gzip file"):
        read_source(tmp_path / "b.trn.gz")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b (u)\n")))
    source = read_source("-", "trn")
    assert [(u.id, u.text) for u in read_utterances(source)] == [("u", "a b")] and source.path == "-"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "none.trn", "No such file")):
        with pytest.raises(InputError, match=f"cannot read it .{reason}"):
            read_source(path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_every_line_end_ends_lines_and_nothing_else_does(end: str, tmp_path: Path) -> None:
    texts = {"u": "a\u2028b\u0085c", "v": "", "w": "d\x0be\x1cf"}
    (tmp_path / "a.trn").write_bytes("".join(f"{text} ({key}){end}" for key, text in texts.items()).encode() + 2 * end.encode())
    found = read_utterances(tmp_path / "a.trn")
    assert {u.id: u.text for u in found} == {"u": "a b c", "v": "", "w": "d e f"}  # white space, but no line ends
    (tmp_path / "a.csv").write_bytes(f'id,text{end}u,"a{end}b"{end}v,c'.encode())
    assert [(u.id, u.text) for u in read_utterances(tmp_path / "a.csv")] == [("u", "a b"), ("v", "c")]
    (tmp_path / "a.jsonl").write_bytes(f'{{"id": "u", "text": "a\u2028b"}}{end}{{"id": "v", "text": ""}}'.encode())
    assert [u.id for u in read_utterances(tmp_path / "a.jsonl")] == ["u", "v"]


@pytest.mark.parametrize(("code", "name"), [("utf-16", "utf-16"), ("utf-16le", "utf-16le"), ("utf-16be", "utf-16be")])
def test_utf16_is_recognised_with_and_without_a_mark(code: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("id,text\nu,naïve 日本\n".encode(code))
    with pytest.raises(InputError, match=f"line 1: UTF-16, not UTF-8; convert the file with iconv -f {name} -t utf-8"):
        read_utterances(tmp_path / "a.csv")


def test_lines_have_their_numbers() -> None:
    lines = list(Source("a", "text", b"\xef\xbb\xbfu a\n\nv\r\rw b\n \n", "").lines())
    assert lines == [(1, b"u a"), (2, b""), (3, b"v"), (4, b""), (5, b"w b")]
