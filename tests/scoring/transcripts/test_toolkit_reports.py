"""Files in the layouts of other toolkits, against what these themselves write."""

import io
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.cells import cell_len

from asrcl.scoring import Errors, count_errors, read_transcripts, score_files
from asrcl.scoring.counting.align import align_words
from asrcl.scoring.counting.confusions import confusions, most
from asrcl.scoring.transcripts.toolkit_reports import (
    icefall_errors,
    icefall_transcripts,
    sclite_alignments,
    sclite_summary,
    speechbrain_errors,
    three_lines,
    write_toolkit_reports,
)

DATA = Path(__file__).parents[1] / "data"


def cells(table: str) -> list[list[str]]:
    """Every row of a table of sclite's as words, without its boxes."""
    rows = [line.replace("|", " ").split() for line in table.splitlines() if line.strip().startswith("|")]
    return [row for row in rows if row and not re.fullmatch(r"[-+=]*", "".join(row))]


@pytest.mark.parametrize(("files", "stored"), [(("ref", "a"), "a"), (("empty_ref", "empty_hyp"), "empty")])
def test_the_summary_has_every_cell_of_sclites(files: tuple[str, str], stored: str) -> None:
    errors = score_files(DATA / f"{files[0]}.trn", DATA / f"{files[1]}.trn", "sclite")
    text = sclite_summary(errors, f"{files[1]}.trn")
    assert cells(text) == cells((DATA / f"{stored}.sys").read_text())
    assert ("* No reference words" in text) == (stored == "empty")
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_summary_of_one_speaker_and_of_none() -> None:
    assert "S.D." in sclite_summary(count_errors({"a": "x"}, {"a": "x"}), "t")
    assert "-+" in sclite_summary(count_errors({"a": ""}, {"a": "x"}), "t")


def test_sclite_alignments_read_as_sclites() -> None:
    said, heard = {"s-1": "bravo alpha echo", "s-2": ""}, {"s-1": "bravo golf alpha xi", "s-2": ""}
    errors = count_errors(said, heard, {"s-1": "s", "s-2": "s"})
    lines = sclite_alignments(errors, "hyp.trn", "sclite").splitlines()
    assert lines[2:9:2] == ["\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE", "System name:   hyp.trn", "", "    0:  s"]
    assert lines[10:16] == [
        "Speaker sentences   0:  s   #utts: 2",
        "id: (s-1)",
        "Scores: (#C #S #D #I) 2 1 0 1",
        "REF:  bravo **** alpha ECHO",
        "HYP:  bravo GOLF alpha XI",
        "Eval:       I          S",
    ]
    said = "Alignment costs: sclite (insertion 3, deletion 3, substitution 4); upper and lower case differ"
    assert lines[5] == said and sclite_summary(errors, "hyp.trn", "sclite").splitlines()[1] == said
    assert "Alignment costs: unit (insertion 1, " in sclite_summary(errors, "hyp.trn")
    assert three_lines(align_words([], [])) == "REF:\nHYP:\nEval:"


@pytest.mark.skipif(shutil.which("sctk") is None, reason="needs the Debian package sctk")
def test_the_head_of_the_alignments_is_that_of_sclite(tmp_path: Path) -> None:
    """Line for line with sclite, but for our line about costs and the spaces at the ends of its lines."""
    write_toolkit_reports(score_files(DATA / "ref.trn", DATA / "a.trn", "sclite"), tmp_path / "ours", "a", "sclite")
    for name in ("ref", "hyp"):
        shutil.copy(tmp_path / "ours" / f"{name}.trn", tmp_path)
    command = ["sctk", "sclite", "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "spu_id", "-o", "pra", "stdout"]
    theirs = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    ours = (tmp_path / "ours" / "hyp.trn.pra").read_text()
    lines = [[line.rstrip() for line in text[text.index("System name") :].splitlines()] for text in (ours, theirs)]
    assert "\n".join(line for line in lines[0] if not line.startswith("Alignment costs")).strip() == "\n".join(lines[1]).strip()


@pytest.mark.skipif(shutil.which("sctk") is None, reason="needs the Debian package sctk")
def test_sclites_costs_are_those_of_sclite_that_minds_case(tmp_path: Path) -> None:
    """What docs/scoring.md says: `sclite -s` on words that differ in case alone; without -s, sclite folds it."""
    draw = random.Random(3)
    for name in ("ref", "hyp"):
        texts = (" ".join(draw.choices(["turn", "Turn", "on", "ON", "x"], k=draw.randint(1, 9))) for _ in range(200))
        (tmp_path / f"{name}.trn").write_text("".join(f"{text} (s-{k})\n" for k, text in enumerate(texts)))
    errors = score_files(tmp_path / "ref.trn", tmp_path / "hyp.trn", "sclite")
    ours = [f"{item.substitutions} {item.deletions} {item.insertions}" for item in errors.items]
    command = ["sctk", "sclite", "-r", "ref.trn", "trn", "-h", "hyp.trn", "trn", "-i", "spu_id", "-o", "pra", "stdout"]
    for flags, same in ((["-s"], True), ([], False)):
        theirs = subprocess.run([*command, *flags], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert (re.findall(r"Scores: \(#C #S #D #I\) \d+ (.*)", theirs) == ours) == same


def test_words_that_differ_in_case_alone_stay_as_written() -> None:
    """In capitals nobody would see the error; a capital that is longer than its letter (ß) must not shift what follows."""
    said, heard = "Turn straße on groß", "turn STRASSE off gross"
    assert three_lines(align_words(said.split(), heard.split())).splitlines() == [
        "REF:  Turn straße  ON  groß",
        "HYP:  turn STRASSE OFF gross",
        "Eval: S    S       S   S",
    ]
    assert three_lines(align_words(["maß", "x"], ["masse", "x"])).splitlines() == ["REF:  MASS  x", "HYP:  MASSE x", "Eval: S"]


def test_wide_and_combining_characters_keep_the_columns() -> None:
    assert three_lines(align_words(["日本", "x", "e\u0301", "y"], ["日", "x", "o", "y", "京都"])).splitlines() == [
        "REF:  日本 x E\u0301 y ****",
        "HYP:  日   x O y 京都",
        "Eval: S      S   I",
    ]
    text = sclite_summary(count_errors({"u": "a", "v": "a"}, {"u": "a", "v": "a"}, {"u": "日本語", "v": "speaker"}), "t")
    assert len({cell_len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_icefalls_documented_example() -> None:
    errors = count_errors({"1": "I LOVE YOU", "2": "I HATE YOU"}, {"1": "i LOVE YOU", "2": "I hate YOU"})
    lines = icefall_errors(errors).splitlines()
    assert lines[:2] == ["%WER = 33.33", "Errors: 0 insertions, 0 deletions, 2 substitutions, over 6 reference words (4 correct)"]
    start = lines.index("PER-UTT DETAILS: corr or (ref->hyp)  ")
    assert lines[start + 1 : start + 3] == ["1:\t(I->i) LOVE YOU", "2:\tI (HATE->hate) YOU"]
    assert lines[start + 4 : start + 7] == ["SUBSTITUTIONS: count ref -> hyp", "1   I -> i", "1   HATE -> hate"]
    words = lines[lines.index("PER-WORD STATS: word  corr tot_errs count_in_ref count_in_hyp") + 1 :]
    assert words == ["i   0 1 0 1", "hate   0 1 0 1", "I   1 1 2 1", "HATE   0 1 1 0", "YOU   2 0 2 2", "LOVE   1 0 1 1"]
    assert icefall_transcripts(errors).splitlines()[:2] == ["1:\tref=['I', 'LOVE', 'YOU']", "1:\thyp=['i', 'LOVE', 'YOU']"]
    silent = icefall_errors(count_errors({"1": ""}, {"1": "a b"}))
    assert icefall_transcripts(errors).count("\n") == 4  # no blank lines between utterances
    assert silent.startswith("%WER = inf\nErrors: 2 insertions") and "1:\t(*->a b)" in silent


def speechbrain_file(said: dict[str, str], heard: dict[str, str]) -> str:
    """What SpeechBrain writes."""
    wer = pytest.importorskip("speechbrain.dataio.wer")
    distance = pytest.importorskip("speechbrain.utils.edit_distance")
    tokens = [{key: text.split() for key, text in side.items()} for side in (said, heard)]
    details = distance.wer_details_by_utterance(*tokens, compute_alignments=True)
    stream = io.StringIO()
    wer.print_wer_summary(distance.wer_summary(details), stream)
    wer.print_alignments(details, stream)
    return stream.getvalue()


def test_speechbrains_file_is_the_one_that_speechbrain_writes() -> None:
    """Few words make many alignments of equal cost; some references and hypotheses are empty."""
    draw = random.Random(0)
    sides = [{f"u-{k}": " ".join(draw.choices("ab日", k=draw.randint(0, 9))) for k in range(300)} for _ in range(2)]
    errors = count_errors(*sides)
    text = speechbrain_file(*sides)
    assert speechbrain_errors(errors) == text
    stated = re.match(r"%WER \S+ \[ (\d+) / (\d+), (\d+) ins, (\d+) del, (\d+) sub", text)
    assert stated is not None
    total, *shares = (int(stated[place]) for place in (1, 3, 4, 5))
    # The same errors, shared out otherwise than by jiwer's rule: what docs/scoring.md says.
    assert total == errors.total and shares != [errors.insertions, errors.deletions, errors.substitutions]
    assert speechbrain_errors(errors, "sclite") != text


@pytest.mark.parametrize("sides", [("the cat sat on mats", "the hat sat on"), ("", "it"), ("", ""), ("a a", "a"), ("a", "a a a")])
def test_speechbrains_file_of_one_utterance(sides: tuple[str, str]) -> None:
    said, heard = ({"u": side} for side in sides)
    text = speechbrain_file(said, heard)
    assert speechbrain_errors(count_errors(said, heard)) == text
    assert sides[0] or not sides[1] or ("u, %WER 100.00 [ 1 / 0, 1 ins" in text and text.startswith("%WER 0.00 [ 1 / 0"))


def test_confusions_add_up_to_the_counts() -> None:
    errors = score_files(DATA / "ref.trn", DATA / "a.trn")
    counts = confusions(errors)
    assert sum(counts.substitutions.values()) == errors.substitutions
    assert sum(counts.deletions.values()) == errors.deletions and sum(counts.insertions.values()) == errors.insertions
    assert sum(said for _, _, said, _ in counts.words().values()) == errors.length
    assert sum(right for right, _, _, _ in counts.words().values()) == errors.length - errors.substitutions - errors.deletions
    assert sum(wrong for _, wrong, _, _ in counts.words().values()) == errors.total + errors.substitutions
    assert [count for _, count in most(counts.deletions, 3)] == sorted(counts.deletions.values())[-1:-4:-1]


def test_all_files_are_written_and_what_cannot_be_is_said(tmp_path: Path) -> None:
    errors = score_files(DATA / "ref.trn", DATA / "a.trn")
    assert write_toolkit_reports(errors, tmp_path, "test") == []
    names = ["errs-test.txt", "hyp.trn", "hyp.trn.pra", "hyp.trn.sys", "recogs-test.txt", "ref.trn", "wer_test.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert read_transcripts(tmp_path / "hyp.trn") == read_transcripts(DATA / "a.trn")
    left_out = write_toolkit_reports(count_errors({"a(1)": "x"}, {"a(1)": "x"}), tmp_path / "odd", "test")
    assert len(left_out) == 2 and "use ids without parentheses" in left_out[0]
    assert not (tmp_path / "odd" / "ref.trn").exists() and (tmp_path / "odd" / "wer_test.txt").exists()


def test_an_empty_set_makes_empty_files() -> None:
    assert "%SER 0.00 [ 0 / 0 ]" in speechbrain_errors(Errors([]))
    assert icefall_errors(Errors([])).startswith("%WER = 0.00")


@pytest.mark.parametrize("costs", ["unit", "sclite"])
def test_files_hold_what_the_functions_return(tmp_path: Path, costs: str) -> None:
    """They are written line by line, so that a million utterances do not have to be one text in memory."""
    draw = random.Random(1)
    said = {f"s{n % 3}-{n}": " ".join(draw.choices("abcd", k=draw.randint(0, 9))) for n in range(60)}
    heard = {key: " ".join(draw.choices("abcd", k=draw.randint(0, 9))) for key in said}
    errors = count_errors(said, heard, costs=costs)
    write_toolkit_reports(errors, tmp_path, "x", costs)
    assert (tmp_path / "hyp.trn.pra").read_text() == sclite_alignments(errors, "hyp.trn", costs)
    assert (tmp_path / "errs-x.txt").read_text() == icefall_errors(errors, costs)
    assert (tmp_path / "recogs-x.txt").read_text() == icefall_transcripts(errors)
    assert (tmp_path / "wer_x.txt").read_text() == speechbrain_errors(errors, costs)
