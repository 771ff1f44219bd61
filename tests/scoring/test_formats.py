import json
from pathlib import Path

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring.formats import Problems, Reading, read_table, read_utterances


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_nemo_manifest_holds_both_sides(tmp_path: Path) -> None:
    rows = [{"audio_filepath": f"wav/{k}.wav", "duration": 1.5, "text": "a b", "pred_text": "a"} for k in "xy"]
    path = write(tmp_path / "predictions.json", *rows)
    said = read_utterances(path, Reading(keep=["duration", "none"]))
    assert (said[0].id, said[0].text, dict(said[0].meta)) == ("wav/x.wav", "a b", {"duration": "1.5"})
    assert [u.text for u in read_utterances(path, Reading("hypothesis"))] == ["a", "a"]


def test_hugging_face_predictions_without_ids_are_named_after_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"reference": "a", "hypothesis": "b"}, {"reference": "c", "hypothesis": ""})
    assert [(u.id, u.text) for u in read_utterances(path, Reading(both=True))] == [("line-1", "a"), ("line-2", "c")]
    assert [u.text for u in read_utterances(path, Reading("hypothesis", both=True))] == ["b", ""]
    with pytest.raises(InputError, match="for the id; the row has reference, hypothesis"):
        read_utterances(path)


def test_a_reference_never_stands_in_for_a_missing_prediction(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", {"id": "a", "text": "x", "pred_text": "y"}, {"id": "b", "text": "z"})
    with pytest.raises(InputError, match="line 2: expected the string entry 'pred_text'"):
        read_utterances(path, Reading("hypothesis"))
    alone = write(tmp_path / "q.jsonl", {"id": "a", "text": "x"})
    with pytest.raises(InputError, match="line 1: expected the string entry 'pred_text' for the text"):
        read_utterances(alone, Reading("hypothesis", both=True))


def test_tables_with_quotes_line_breaks_and_other_separators(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufeffid,speaker,sentence\r\nu1,s,"yes, ""sir""\nno"\r\n\r\nu2,t,\r\n'.encode())
    found = read_utterances(tmp_path / "a.csv")
    assert [(u.id, u.text, u.speaker) for u in found] == [("u1", 'yes, "sir" no', "s"), ("u2", "", "t")]
    (tmp_path / "a.tsv").write_text("text\tpath\nhello, you\tx-1.wav\n")
    assert [(u.id, u.text, u.speaker) for u in read_utterances(tmp_path / "a.tsv")] == [("x-1.wav", "hello, you", "x")]


def test_names_can_be_given_and_numbers_serve_as_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"key": 7, "text": "old", "words": "a  b", "spk_id": 3})
    found = read_utterances(path, Reading(id_key="key", text_key="words"))
    assert [(u.id, u.text, u.speaker) for u in found] == [("7", "a b", "3")]
    with pytest.raises(InputError, match="expected the string entry 'name' for the id"):
        read_utterances(path, Reading(id_key="name"))


def test_bad_lines_are_listed_and_left_out_where_skipping_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.trn").write_bytes(b"good (a)\nno id\nna\xefve (b)\nagain (a)\nfine (c)\n")
    problems = Problems()
    assert [u.id for u in read_utterances(tmp_path / "a.trn", problems=problems)] == ["a", "c"]
    assert [line.split(": ", 1)[1][:24] for line in problems.found] == [
        "line 2: expected 'text (",
        "line 3: not UTF-8 (byte ",
        "line 4: id a is already ",
    ]
    assert all(str(tmp_path / "a.trn") in line for line in problems.found)


def test_empty_and_blank_files(tmp_path: Path) -> None:
    for name, content in (("a.trn", b""), ("b.jsonl", b"\n\n"), ("c.csv", b"id,text\n")):
        (tmp_path / name).write_bytes(content)
        assert read_utterances(tmp_path / name) == []


def test_metadata_tables(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,age,room\nu1,30,a\nu2,,b\n")
    assert read_table(tmp_path / "m.csv")["u2"] == {"id": "u2", "age": "", "room": "b"}
    path = write(tmp_path / "m.jsonl", {"id": "u1", "age": 30, "tags": ["x"], "none": None})
    assert read_table(path)["u1"] == {"id": "u1", "age": "30", "tags": '["x"]', "none": ""}
    (tmp_path / "m.csv").write_text("id,age\nu1,30\nu1,31\n")
    with pytest.raises(InputError, match="line 3: id u1 occurs a second time"):
        read_table(tmp_path / "m.csv")
