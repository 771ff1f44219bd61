import json
import os
import threading
from pathlib import Path

import pytest

from asrcl.exceptions import InputError
from asrcl.files import hash_file
from asrcl.scoring import Errors, count_errors
from asrcl.scoring.transcripts.score import Options, normalise_errors, score

FULL, SHORT = "Turn it OFF, please", "turn it off"
ROWS = [
    {
        "id": f"s{k % 3}-{k}",
        "text": FULL,
        "pred_text": SHORT if k % 2 else FULL,
        "room": "ab"[k % 2],
        "duration": k / 10,
        "domain": "home" if k < 10 else "car",
    }
    for k in range(20)
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_raw_and_normalised_figures_are_both_kept(manifest: Path) -> None:
    found = score(manifest, options=Options(normaliser="basic"))
    assert list(found.variants) == ["raw", "basic"]
    # Raw: three of four words wrong in every second row (case, comma); normalised: "please" is missing there.
    assert (found.raw.total, found.raw.length) == (30, 80)
    assert found.normalised is not None and (found.normalised.total, found.normalised.deletions) == (10, 10)
    assert found.raw == score(manifest).raw and score(manifest).normalised is None
    assert found.raw.items[1].reference == "Turn it OFF, please" and found.normalised.items[1].reference == "turn it off please"


def test_breakdown_by_speaker_domain_and_any_column(manifest: Path) -> None:
    found = score(manifest, options=Options(columns=["room", "duration"]))
    assert {name: (len(part), part.total) for name, part in found.breakdown("room").items()} == {"a": (10, 0), "b": (10, 30)}
    assert list(found.breakdown("domain")) == ["car", "home"] and list(found.breakdown("speaker")) == ["s0", "s1", "s2"]
    quartiles = found.breakdown("duration")
    assert list(quartiles) == ["q1: 0 to 0.4", "q2: above 0.4 to 0.9", "q3: above 0.9 to 1.4", "q4: above 1.4 to 1.9"]
    assert [len(part) for part in quartiles.values()] == [5, 5, 5, 5]
    for column in ("speaker", "domain", "room", "duration"):
        parts = found.breakdown(column).values()
        assert sum(part.total for part in parts) == found.raw.total and sum(len(part) for part in parts) == 20
    with pytest.raises(InputError, match="no column 'city'; there are speaker, room, duration, domain"):
        found.breakdown("city")
    with pytest.raises(InputError, match="no utterance has the column 'city'"):
        score(manifest, options=Options(columns=["city"]))


def test_a_table_of_metadata_adds_columns_and_gaps_are_shown(manifest: Path, tmp_path: Path) -> None:
    table = tmp_path / "meta.csv"
    table.write_text("id,age,room\n" + "".join(f"{row['id']},{30 + k % 2},z\n" for k, row in enumerate(ROWS[:15])))
    found = score(manifest, options=Options(columns=["age", "room"], meta=table))
    assert {name: len(part) for name, part in found.breakdown("age").items()} == {"30": 8, "31": 7, "-": 5}
    assert {name: len(part) for name, part in found.breakdown("room").items()} == {"a": 2, "b": 3, "z": 15}
    assert set(found.files) == {str(manifest), str(table)}
    table.write_text("id,age\nother,3\n")
    with pytest.raises(InputError, match=r"none of its ids is in the reference \(1 \(other\)\)"):
        score(manifest, options=Options(columns=["age"], meta=table))
    with pytest.raises(InputError, match=r"lost.csv: cannot read it \(No such file"):
        score(manifest, options=Options(meta=tmp_path / "lost.csv"))


def test_speakers_of_a_table_replace_those_of_the_ids(manifest: Path, tmp_path: Path) -> None:
    """Who is not in a table that names speakers is under "-", not under a name made of its id."""
    pairs = [(row["id"], f"p{k % 2}") for k, row in enumerate(ROWS[:18])]
    (tmp_path / "meta.csv").write_text("id,spk_id\n" + "".join(f"{key},{name}\n" for key, name in pairs))
    (tmp_path / "utt2spk").write_text("".join(f"{key} {name}\n" for key, name in pairs))
    for name in ("meta.csv", "utt2spk"):
        found = score(manifest, options=Options(meta=tmp_path / name))
        assert {name: len(part) for name, part in found.breakdown("speaker").items()} == {"-": 2, "p0": 9, "p1": 9}
        assert [item.group for item in found.raw.items[:2]] == ["p0", "p1"] and found.columns.keys() == {"domain"}
    (tmp_path / "utt2dom").write_text("".join(f"{key} far\n" for key, _ in pairs))
    found = score(manifest, options=Options(meta=tmp_path / "utt2dom", columns=["dom"]))
    assert list(found.breakdown("dom")) == ["far", "-"] and list(found.breakdown("speaker")) == ["s0", "s1", "s2"]


def test_integers_that_may_be_names_are_kept_apart(tmp_path: Path) -> None:
    def values(column: list[str]) -> list[str]:
        rows = [{"id": f"u{k}", "text": "a", "pred_text": "a", "x": value} for k, value in enumerate(column)]
        path = tmp_path / "m.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(score(path, options=Options(columns=["x"])).breakdown("x"))

    assert values([str(k % 100) for k in range(200)]) == [str(k) for k in range(100)]
    assert values([str(k) for k in range(101)])[::3] == ["q1: 0 to 25", "q4: above 75 to 100"]
    assert len(values([f"{k}.0" for k in range(20)])) == 4
    assert values(["a", "", "b"]) == ["a", "b", "-"]  # an empty value is none


def test_a_pipe_is_read_once_and_hashed_as_it_was_read(manifest: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(manifest.read_bytes()))
    writer.start()
    found = score(pipe, options=Options(format="jsonl"))
    writer.join()
    assert found.raw == score(manifest).raw and found.files == {str(pipe): hash_file(manifest)}
    with pytest.raises(InputError, match="reference and hypothesis cannot both be standard input"):
        score("-", "-")


@pytest.mark.parametrize(
    ("reference", "hypothesis", "message"),
    [
        ("a (x)\nb (y)\n", "a (x)\n", r"hyp.trn against .*ref.trn: references without a hypothesis: 1 \(y\).*add --skip"),
        ("a (x)\n", "a (x)\nb (y)\n", r"hypotheses without a reference: 1 \(y\)"),
        ("a (x)\na (x)\n", "a (x)\n", r"ref.trn: line 2: id x is already on line 1"),
        ("", "a (x)\n", r"ref.trn: no utterances, it is empty"),
        ("a (x)\n", "\n", r"hyp.trn: no utterances, it is empty"),
    ],
)
def test_what_does_not_fit_is_refused_with_file_and_name(tmp_path: Path, reference, hypothesis, message: str) -> None:
    (tmp_path / "ref.trn").write_text(reference)
    (tmp_path / "hyp.trn").write_text(hypothesis)
    with pytest.raises(InputError, match=message):
        score(tmp_path / "ref.trn", tmp_path / "hyp.trn")


def test_skipping_leaves_out_lists_and_counts(tmp_path: Path) -> None:
    (tmp_path / "ref.trn").write_bytes(b"a (x)\nb (y)\nb (y)\nna\xefve (w)\nc (z)\n")
    (tmp_path / "hyp.trn").write_text("a (x)\nb (y)\nq (v)\n")
    found = score(tmp_path / "ref.trn", tmp_path / "hyp.trn", Options(skip=True))
    assert found.raw.ids == ["x", "y"] and found.raw.total == 0
    assert [line.split(".trn", 1)[1][:18] for line in found.skipped[:2]] == [": line 3: id y is ", ": line 4: not UTF-"]
    assert found.skipped[2].endswith("references without a hypothesis: 1 (z)") and len(found.skipped) == 4
    (tmp_path / "ref.trn").write_text("".join(f"a (x{k})\n" for k in range(9)))
    (tmp_path / "hyp.trn").write_text("a (x8)\na (y)\n")
    found = score(tmp_path / "ref.trn", tmp_path / "hyp.trn", Options(skip=True))
    names = [line.rsplit(": ", 2)[1:] for line in found.as_json(found.rows())["skipped"]]
    assert names[:8] == [["references without a hypothesis", f"x{k}"] for k in range(8)]
    assert names[8:] == [["hypotheses without a reference", "y"]] and len(found.skipped) == 2
    (tmp_path / "hyp.trn").write_text("q (v)\n")
    with pytest.raises(InputError, match="no id is in both"):
        score(tmp_path / "ref.trn", tmp_path / "hyp.trn", Options(skip=True))
    (tmp_path / "hyp.trn").write_text("no id\n")
    with pytest.raises(InputError, match=r"none of its lines can be used \(.*line 1: expected 'text"):
        score(tmp_path / "ref.trn", tmp_path / "hyp.trn", Options(skip=True))


def test_one_file_needs_both_texts(tmp_path: Path, manifest: Path) -> None:
    (tmp_path / "ref.trn").write_text("a (x)\n")
    with pytest.raises(InputError, match="one text per line; give the hypothesis file too"):
        score(tmp_path / "ref.trn")
    manifest.write_text('{"id": "a", "text": "x", "pred_text": 3}\n{"id": "b", "text": "y", "pred_text": "y"}\n[]\n')
    found = score(manifest, options=Options(skip=True))
    assert found.raw.ids == ["b"] and len(found.skipped) == 3  # the broken line once, the bad prediction, the lone reference


def test_references_that_a_normaliser_empties_are_counted(tmp_path: Path) -> None:
    (tmp_path / "ref.trn").write_text("... (x)\nyes (y)\n(z)\n")
    (tmp_path / "hyp.trn").write_text("uh (x)\nyes (y)\n(z)\n")
    found = score(tmp_path / "ref.trn", tmp_path / "hyp.trn", Options(normaliser="basic"))
    assert found.emptied == 1 and found.normalised is not None
    assert (found.raw.rate, found.normalised.rate) == (50.0, 100.0)


def test_saved_scores_hold_every_figure(manifest: Path, tmp_path: Path) -> None:
    found = score(manifest, options=Options(normaliser="basic", columns=["room"], costs="sclite"))
    found.save(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "score.json").read_text())
    assert stored["format"] == "asrcl-score/1" and stored["costs"] == "sclite"
    assert stored["normaliser"]["name"] == "basic" and stored["files"].keys() == {str(manifest)}
    whole = [row for row in stored["rows"] if row["column"] == "all"]
    assert [(row["text"], row["substitutions"] + row["deletions"]) for row in whole] == [("raw", 30), ("basic", 10)]
    frequent = stored["confusions"]["raw"]
    assert frequent["substitutions"][0] == {"reference": "Turn", "hypothesis": "turn", "count": 10}
    assert frequent["deletions"] == [{"reference": "OFF,", "count": 10}] and frequent["insertions"] == []
    lines = (tmp_path / "out" / "score.csv").read_text().splitlines()
    assert len(lines) == 1 + len(stored["rows"]) == 1 + 2 * (1 + 3 + 2 + 2)
    assert Errors.load(tmp_path / "out" / "errors.jsonl") == found.raw
    assert Errors.load(tmp_path / "out" / "basic" / "errors.jsonl") == found.normalised
    (tmp_path / "silent.jsonl").write_text('{"id": "a", "text": "", "pred_text": "x"}\n')
    assert score(tmp_path / "silent.jsonl").as_json(score(tmp_path / "silent.jsonl").rows())["rows"][0]["rate"] is None


def test_normalising_counts_keeps_groups() -> None:
    from asrcl.text import normaliser

    errors = normalise_errors(count_errors({"a": "X y."}, {"a": "x Y"}, {"a": "s"}), normaliser("basic"))
    assert (errors.total, errors.items[0].group) == (0, "s")


def trn(path: Path, *texts: str) -> Path:
    path.write_text("".join(f"{text} (spk-{number})\n" for number, text in enumerate(texts)))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("i (uh) want tea", r"reference of spk-0: to sclite \(uh\) is a word that may be left out .*; write uh without them"),
        ("i want (wor-) tea", r"to sclite \(wor-\) is a word"),
        ("i want @ tea", "to sclite @ is no word"),
        ("() tea", r"to sclite \(\) is a word that may be left out"),
    ],
)
def test_marks_of_sclite_are_refused_with_its_costs_alone(tmp_path: Path, text: str, message: str) -> None:
    reference, hypothesis = trn(tmp_path / "ref.trn", text), trn(tmp_path / "hyp.trn", "i want tea")
    with pytest.raises(InputError, match=f"hyp.trn against .*ref.trn: .*{message}"):
        score(reference, hypothesis, Options(costs="sclite"))
    with pytest.raises(InputError, match="hypothesis of spk-0"):
        score(hypothesis, reference, Options(costs="sclite"))
    assert score(reference, hypothesis).raw.length == len(text.split())  # every word counts as it is written


def test_what_sclite_reads_literally_is_counted_with_its_costs(tmp_path: Path) -> None:
    text = "wor- word %HESITATION <noise> (uh huh) a@b {x}"
    found = score(trn(tmp_path / "ref.trn", text), trn(tmp_path / "hyp.trn", text), Options(costs="sclite"))
    assert (found.raw.length, found.raw.total) == (8, 0)
    rows = [{"id": "u", "text": "{ gonna / going to }", "pred_text": "gonna"}]
    (tmp_path / "p.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InputError, match="reference of u: sclite alternatives"):
        score(tmp_path / "p.jsonl", options=Options(costs="sclite"))


def test_segments_of_one_recording_are_scored_with_what_a_table_says_of_it(tmp_path: Path) -> None:
    rows = [("hello there", "hello there"), ("good bye", "good buy")]
    path = "/d/c-1.wav"
    lines = [{"audio_filepath": path, "offset": 2.0 * n, "text": a, "pred_text": b} for n, (a, b) in enumerate(rows)]
    (tmp_path / "p.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "m.csv").write_text("path,room\n/d/c-1.wav,hall\n")
    found = score(tmp_path / "p.json", options=Options(meta=tmp_path / "m.csv", columns=["room"]))
    assert (found.raw.total, found.raw.length) == (1, 4) and found.raw.ids == ["/d/c-1.wav@0.0", "/d/c-1.wav@2.0"]
    assert found.columns["room"] == dict.fromkeys(found.raw.ids, "hall")
    (tmp_path / "m.csv").write_text("path,offset,room\n/d/c-1.wav,0,hall\n/d/c-1.wav,2,den\n")
    found = score(tmp_path / "p.json", options=Options(meta=tmp_path / "m.csv", columns=["room"]))
    assert [*found.columns["room"].values()] == ["hall", "den"]
    (tmp_path / "h.json").write_text(json.dumps(lines[1]) + "\n")
    partly = score(tmp_path / "p.json", tmp_path / "h.json", Options(skip=True))
    assert (partly.raw.total, partly.raw.length, partly.raw.ids) == (1, 2, ["/d/c-1.wav@2.0"])


def test_lines_without_ids_are_scored_as_jiwer_scores_them(tmp_path: Path) -> None:
    (tmp_path / "ref.txt").write_text("turn it off\nplease call me\nwho is there\n")
    (tmp_path / "hyp.txt").write_text("turn it of\nplease call me\nwho was there\n")
    found = score(tmp_path / "ref.txt", tmp_path / "hyp.txt", Options(format="lines"))
    assert (found.raw.total, found.raw.length) == (2, 9)
    (tmp_path / "hyp.txt").write_text("turn it of\nplease call me\n")
    with pytest.raises(InputError, match=r"references without a hypothesis: 1 \(line-3\)"):
        score(tmp_path / "ref.txt", tmp_path / "hyp.txt", Options(format="lines"))
