import json
from pathlib import Path

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring.transcripts.files import read_source
from asrcl.scoring.transcripts.formats import Problems, Reading, is_table, name_segments, read_table, read_utterances


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


def test_two_columns_are_named_after_their_file(tmp_path: Path) -> None:
    for name, column in (("utt2spk", "speaker"), ("utt2dom", "dom"), ("utt2spk.txt", "speaker"), ("rooms.map", "rooms")):
        (tmp_path / name).write_text("u1 a\nu2  b\n")
        assert read_table(tmp_path / name) == {"u1": {"id": "u1", column: "a"}, "u2": {"id": "u2", column: "b"}}
    assert read_table(tmp_path / "utt2spk", id_key="key").keys() == {"u1", "u2"}  # the id of the other files
    (tmp_path / "utt2spk").write_text("u1 a\nu2 b c\n")
    with pytest.raises(InputError, match=r"utt2spk: line 2: 3 fields; a table is .csv, .tsv or .jsonl, or has 'id value' lines"):
        read_table(tmp_path / "utt2spk")


def test_the_speaker_of_an_audio_path_is_in_its_file_name(tmp_path: Path) -> None:
    """Not in a folder with a hyphen: LibriSpeech lies in dev-clean."""
    paths = ["/data/dev-clean/84/84-121-00.wav", "C:\\dev-clean\\174-2.flac", "dev-clean/common_voice_1.mp3"]
    path = write(tmp_path / "m.json", *({"audio_filepath": name, "text": "a"} for name in paths))
    assert [(u.id, u.speaker) for u in read_utterances(path)] == list(zip(paths, ["84", "174", "common_voice_1"], strict=True))
    named = write(tmp_path / "n.json", {"audio_filepath": paths[0], "text": "a", "speaker": "x"})
    assert read_utterances(named)[0].speaker == "x"
    assert read_utterances(write(tmp_path / "o.json", {"id": "a/b-c", "text": "a"}))[0].speaker == "a/b"


def test_hugging_face_audio_and_names_in_the_plural(tmp_path: Path) -> None:
    rows = [{"audio": {"path": f"d-1/{k}-0.wav", "array": [0.5]}, "references": "a", "predictions": "b"} for k in "xy"]
    path = write(tmp_path / "p.jsonl", *rows)
    assert [(u.id, u.speaker, u.text) for u in read_utterances(path)] == [("d-1/x-0.wav", "x", "a"), ("d-1/y-0.wav", "y", "a")]
    assert [u.text for u in read_utterances(path, Reading("hypothesis", both=True))] == ["b", "b"]
    with pytest.raises(InputError, match="expected the string entry 'audio'"):
        read_utterances(write(tmp_path / "q.jsonl", {"audio": {"path": None}, "text": "a"}))


def test_the_header_says_what_separates(tmp_path: Path) -> None:
    for name, mark in (("a.csv", ";"), ("b.csv", "\t"), ("c.csv", ","), ("d.tsv", "\t"), ("e.tsv", ",")):
        (tmp_path / name).write_text(f'id{mark}text{mark}x\nu{mark}"a{mark} b"{mark}\n')
        assert [(u.id, u.text) for u in read_utterances(tmp_path / name)] == [("u", " ".join(f"a{mark} b".split()))]


def test_long_fields_of_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\nu," + "ab " * 100_000 + "\n")
    assert len(read_utterances(tmp_path / "a.csv")[0].text) == 299_999
    (tmp_path / "a.csv").write_text('id,text\nu,"' + "a" * (2**24 + 2) + "\n")
    with pytest.raises(InputError, match="line 2: a field of more than 16777216 characters; close the quote before it"):
        read_utterances(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "u", "text": "\\ud800"}', r"line 2: not JSON \(\\ud800 is half of a surrogate pair"),
        ('{"id": "\\uDC00", "text": ""}', r"line 2: not JSON \(\\udc00 is half"),
        ('{"a":' * 100_000, r"line 2: not JSON \(nested too deeply\)"),
    ],
)
def test_json_that_no_file_can_hold_is_refused(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "v", "text": "\\ud83d\\ude00"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        read_utterances(tmp_path / "a.jsonl")
    problems = Problems()
    assert read_utterances(tmp_path / "a.jsonl", problems=problems)[0].text == "\U0001f600" and len(problems.found) == 1


def test_unknown_suffixes_name_the_option_and_a_read_source_has_its_format(tmp_path: Path) -> None:
    (tmp_path / "7.tra").write_text("u a b\n")
    with pytest.raises(InputError, match=r"unknown transcript suffix .tra; .*--format trn\|text\|jsonl\|csv\|tsv"):
        read_utterances(tmp_path / "7.tra")
    source = read_source(tmp_path / "7.tra", "text")
    assert [(u.id, u.text) for u in read_utterances(source)] == [("u", "a b")] and not is_table(source)
    assert is_table(tmp_path / "7.tra", "csv") and not is_table(tmp_path / "7.tra")


def test_segments_of_one_recording_are_told_apart_by_their_offset(tmp_path: Path) -> None:
    rows = [("/d/a-1.wav", 0.0, "x"), ("/d/a-1.wav", 2, "y"), ("/e/a-1.wav", 7.25, "z"), ("/d/b.wav", None, "w")]
    path = write(tmp_path / "m.json", *({"audio_filepath": f, "offset": o, "text": t} for f, o, t in rows))
    found = read_utterances(path)
    assert [u.id for u in found] == ["/d/a-1.wav@0.0", "/d/a-1.wav@2.0", "/e/a-1.wav", "/d/b.wav"]
    assert [u.recording for u in found] == [row[0] for row in rows] and {u.speaker for u in found} == {"a", "b"}
    (tmp_path / "m.csv").write_text("text,path,offset\nx,a.wav,0\ny,a.wav,2.50\nz,b.wav,later\n")
    assert [u.id for u in read_utterances(tmp_path / "m.csv")] == ["a.wav@0.0", "a.wav@2.5", "b.wav"]
    with pytest.raises(InputError, match=r"line 2: id a.wav@1.0 is already on line 1; keep one of them"):
        read_utterances(write(tmp_path / "n.json", *[{"audio_filepath": "a.wav", "offset": 1.0, "text": "x"}] * 2))
    named = write(tmp_path / "o.json", {"id": "a", "offset": 0, "text": "x"}, {"id": "a", "offset": 1, "text": "x"})
    with pytest.raises(InputError, match="line 2: id a is already on line 1"):
        read_utterances(named)


def test_both_sides_name_the_segments_alike(tmp_path: Path) -> None:
    """Also where one of them has a single segment of the recording."""
    several = read_utterances(write(tmp_path / "r.json", *({"path": "a.wav", "start": n, "text": ""} for n in (0, 2))))
    one = read_utterances(write(tmp_path / "h.json", {"path": "a.wav", "start": 2.0, "text": ""}))
    assert [u.id for u in one] == ["a.wav"]
    assert [[u.id for u in side] for side in name_segments(several, one)] == [["a.wav@0.0", "a.wav@2.0"], ["a.wav@2.0"]]


def test_texts_without_ids_are_read_line_by_line_where_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "ref.txt").write_bytes("\ufeffturn it off\r\n\r\nwho  is there\n\n".encode())
    found = read_utterances(read_source(tmp_path / "ref.txt", "lines"))
    assert [u.id for u in found] == [u.speaker for u in found] == ["line-1", "line-2", "line-3", "line-4"]
    assert [u.text for u in found] == ["turn it off", "", "who is there", ""]
    (tmp_path / "a.text").write_text("a b\n")
    assert read_utterances(read_source(tmp_path / "a.text", "lines"))[0].text == "a b"


@pytest.mark.parametrize("name", ["ref.txt", "ref", "text", "ref.text"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("turn it off\nplease call me\nwho is there\n", r"words \(turn, please, who; 3 of 3\), not ids; say --format lines"),
        ("the cat\nthe dog\nthe well-known end\n", "say --format lines"),  # not: id `the` is already on line 1
        ("3 5 7\n5 7\n7 3\n", r"\(3, 5, 7; 3 of 3\)"),
        ("你好吗\n今天很好\n", "say --format lines"),
        ("hello there (spk-1)\ngood bye (spk-2)\n", "look like those of a .trn; say --format trn"),
        ('{"id": "u1", "text": "hello"}\n', "say --format jsonl"),
        ("id,text\nu1,hello there\n", "say --format csv"),
        ("text\tpath\nhello\tu1.wav\n", "say --format tsv"),
        ("f1 A spk 0.00 1.50 <o,f0> hello\nf2 A spk 0.00 2.10 <o,f0> hi\n", "lines have times, as in an .stm"),
    ],
)
def test_no_first_word_is_lost_to_an_id(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    for problems in (None, Problems()):
        with pytest.raises(InputError, match=message):
            read_utterances(tmp_path / name, problems=problems)
    source = read_source(tmp_path / name, "text")
    assert len({u.id for u in read_utterances(source, problems=Problems())}) >= 1
    assert len(read_utterances(read_source(tmp_path / name, "lines"))) == content.count("\n")


def test_ids_are_taken_for_ids(tmp_path: Path) -> None:
    for first in ("u1 ", "spk-a ", "84_121 ", "wav/a.wav ", "1 "):
        (tmp_path / "ref.txt").write_text("".join(f"{first.strip()}{n} hello u{n} you\n" for n in range(3)))
        assert len(read_utterances(tmp_path / "ref.txt")) == 3


@pytest.mark.parametrize("name", ["a.stm", "a.CTM", "stm", "ctm", "a.stm.gz"])
def test_words_with_times_are_refused_whatever_is_named(tmp_path: Path, name: str) -> None:
    for named in (None, "text"):
        with pytest.raises(InputError, match=r"words with times are not read; give utterances, as 'text \(id\)' lines"):
            read_source(tmp_path / name, named)


@pytest.mark.parametrize("mark", ["IGNORE_TIME_SEGMENT_IN_SCORING", "ignore_time_segment_in_scoring"])
def test_utterances_that_do_not_count_are_refused_or_skipped(tmp_path: Path, mark: str) -> None:
    (tmp_path / "ref.trn").write_text(f"good (a-1)\n{mark} (a-2)\n")
    with pytest.raises(InputError, match="line 2: IGNORE_TIME_SEGMENT_IN_SCORING: to sclite this utterance does not count"):
        read_utterances(tmp_path / "ref.trn")
    assert [u.id for u in read_utterances(tmp_path / "ref.trn", problems=Problems())] == ["a-1"]
