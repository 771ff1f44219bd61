from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrcl.exceptions import InputError
from asrcl.scoring import (
    Errors,
    ItemErrors,
    read_transcripts,
    score_files,
    summary_table,
    write_jsonl,
    write_kaldi_text,
    write_trn,
)
from asrcl.scoring.transcripts.read_write import cell_width, pad_cell, read_speakers, speaker_of

TEXTS = {"spk1-a/1.wav": "hello (um) world", "spk1-b": "", "spk2-ü": "naïve café"}
plain = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
trn_ids = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="()"), min_size=1).map(
    str.strip
)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.trn", write_trn), ("a.txt", write_kaldi_text), ("text", write_kaldi_text), ("a.jsonl", write_jsonl)],
)
def test_round_trip_of_every_format(tmp_path: Path, name: str, write) -> None:
    write(tmp_path / name, TEXTS)
    assert list(read_transcripts(tmp_path / name).items()) == list(TEXTS.items())


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(trn_ids.filter(bool), plain, max_size=4))
def test_trn_ids_keep_any_characters(tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.trn"
    texts = {key: " ".join(text.split()) for key, text in texts.items()}
    writable = {k: t for k, t in texts.items() if not t.startswith(";;") and "{" not in t}
    write_trn(path, writable)
    assert read_transcripts(path) == writable


def test_comments_windows_line_ends_and_byte_order_marks_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.trn").write_bytes("\ufeff;; a comment\r\nyes  sir (s-1)\r\n(s-2)\r\n\r\n".encode())
    assert read_transcripts(tmp_path / "a.trn") == {"s-1": "yes sir", "s-2": ""}
    (tmp_path / "text").write_bytes("\ufeffs-1 yes\r\n".encode())
    assert read_transcripts(tmp_path / "text") == {"s-1": "yes"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.trn", b"good (a)\nno id here\n", "line 2: expected 'text .id.'"),
        ("a.trn", b"good (a)\nempty ( )\n", "line 2: expected"),
        ("a.trn", b"good (a)\nagain (b)\nbad (a)\n", "line 3: id a is already on line 1"),
        ("a.trn", b"{ gonna / going to } (a)\n", "line 1: sclite alternatives"),
        ("a.trn", b"good (a)\nna\xefve (b)\n", "line 2: not UTF-8"),
        ("text", b"a good\n\nb good\n", "line 2: expected 'id text'"),
        ("text", b"a good\n lost\n", "line 2: expected 'id text'"),
        ("a.jsonl", b'{"id": "a", "text": "x"}\n{"id": "b"}\n', "line 2: expected the string entry 'text'"),
        ("a.jsonl", b'{"id": 3.5, "text": "x"}\n', "line 1: expected the string entry 'id'"),
        ("a.jsonl", b'{"name": "a", "text": "x"}\n', "line 1: expected the string entry 'id' for the id; the row has name, text"),
        ("a.jsonl", b'{"id": "a", "text": null}\n', "line 1: expected the string entry 'text' .null is no text"),
        ("a.jsonl", b'{"id": "", "text": "x"}\n', "line 1: the id is empty"),
        ("a.jsonl", b"a yes\n", "line 1: not JSON"),
        ("a.jsonl", b"[]\n", "line 1: expected a JSON object"),
        ("a.jsonl", b'{"id": "a", "text": "x", "speaker": []}\n', "line 1: 'speaker' must be a string"),
        ("a.xml", b"a,b\n", "unknown transcript suffix .xml"),
        ("a.csv", b"id,text\na,x,y\n", "line 2: 3 fields, the header has 2"),
        ("a.csv", b"id,id\na,x\n", "line 1: a column name occurs twice"),
        ("a.csv", b'id,text\na,"x\nb,y\n', "line 3: not a table .unexpected end of data"),
        ("a.csv", b"id,text\na,na\xefve\n", "line 2: not UTF-8 .byte 5"),
        ("a.csv", b"id,text\na,x\n\na,y\n", "line 4: id a is already on line 2"),
        ("a.tsv", b"utt\ttext\na\tx\n", "line 2: expected the string entry 'id' for the id; the row has utt, text"),
        ("a.trn", "good (a)\n".encode("utf-16"), "line 1: UTF-16, not UTF-8; convert the file with iconv -f utf-16"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_transcripts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.trn: cannot read it \(No such file"):
        read_transcripts(tmp_path / "none.trn")


@pytest.mark.parametrize(
    ("write", "texts"),
    [
        (write_trn, {"a(b)": "x"}),
        (write_trn, {"": "x"}),
        (write_trn, {"a\nb": "x"}),
        (write_trn, {"a": ";; x"}),
        (write_kaldi_text, {"a b": "x"}),
        (write_kaldi_text, {"": "x"}),
    ],
)
def test_what_cannot_be_read_back_is_not_written(tmp_path: Path, write, texts: dict[str, str]) -> None:
    with pytest.raises(InputError, match="out"):
        write(tmp_path / "out", texts)
    assert not list(tmp_path.iterdir())


def test_speakers_come_from_the_file_or_the_id(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"x-1": "a", "y-1": "b"}, {"x-1": "Ann"})
    assert read_speakers(tmp_path / "a.jsonl") == {"x-1": "Ann", "y-1": "y"}
    assert [speaker_of(key) for key in ("s1-u-2", "plain", "-odd")] == ["s1", "plain", "-odd"]


def test_score_files_matches_by_id_across_formats(tmp_path: Path) -> None:
    write_trn(tmp_path / "ref.trn", {"s-1": "a b c", "t-1": "d"})
    write_kaldi_text(tmp_path / "hyp.txt", {"t-1": "d", "s-1": "a x c"})
    errors = score_files(tmp_path / "ref.trn", tmp_path / "hyp.txt")
    assert errors.rate == 25.0 and [item.group for item in errors.items] == ["s", "t"]
    write_kaldi_text(tmp_path / "hyp.txt", {"s-1": "a x c"})
    with pytest.raises(
        InputError, match=r"hyp\.txt against .*ref\.trn: references without a hypothesis: 1 \(t-1\)"
    ):
        score_files(tmp_path / "ref.trn", tmp_path / "hyp.txt")


def test_summary_table_of_words_and_images() -> None:
    items = [ItemErrors(f"s{i % 2}-{i}", f"s{i % 2}", i, 1, 0, 10, "", "", 5, 50) for i in range(4)]
    lines = summary_table(Errors(items)).splitlines()
    assert lines[0].split() == [
        "group",
        "items",
        "length",
        "WER",
        "%",
        "CER",
        "%",
        "S",
        "D",
        "I",
        "items",
        "wrong",
        "%",
    ]
    assert lines[2].split() == ["s0", "2", "20", "20.00", "10.00", "2", "2", "0", "100.00"]
    assert lines[-1].split() == ["all", "4", "40", "25.00", "10.00", "6", "4", "0", "100.00"]
    images = Errors([ItemErrors(str(i), str(i), i % 2, 0, 0, 1) for i in range(4)], unit="image")
    lines = summary_table(images).splitlines()
    assert len(lines) == 3 and "CER" not in lines[0]
    assert lines[-1].split() == ["all", "4", "4", "50.00", "2", "0", "0", "50.00"]


def test_widths_are_those_of_a_terminal() -> None:
    assert [cell_width(text) for text in ("ab", "日本", "e\u0301", "")] == [2, 4, 1, 0] and pad_cell("日", 3, right=True) == " 日"
