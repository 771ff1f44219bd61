"""Files in other houses' habits, against what the houses themselves write."""

import io
import re
from pathlib import Path

import pytest

from asrcl.scoring import Errors, count_errors, read_transcripts, score_files
from asrcl.scoring.align import align_words
from asrcl.scoring.confusions import confusions, most
from asrcl.scoring.houses import (
    icefall_errors,
    icefall_transcripts,
    sclite_alignments,
    sclite_summary,
    speechbrain_errors,
    three_lines,
    write_houses,
)

DATA = Path(__file__).parent / "data"


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
    assert sclite_alignments(errors).splitlines()[2:6] == [
        "id: (s-1)",
        "Scores: (#C #S #D #I) 2 1 0 1",
        "REF:  bravo **** alpha ECHO",
        "HYP:  bravo GOLF alpha XI",
    ]
    assert three_lines(align_words([], [])) == "REF:\nHYP:\nEval:"


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
    assert silent.startswith("%WER = 0.00\nErrors: 2 insertions") and "1:\t(*->a b)" in silent


def test_speechbrains_file_is_the_one_that_speechbrain_writes() -> None:
    wer = pytest.importorskip("speechbrain.dataio.wer")
    distance = pytest.importorskip("speechbrain.utils.edit_distance")
    said = {"u-1": "the cat sat on mats", "u-2": "yes", "u-3": "one two three"}
    heard = {"u-1": "the hat sat on", "u-2": "yes", "u-3": "one two three four"}
    tokens = [{key: text.split() for key, text in side.items()} for side in (said, heard)]
    details = distance.wer_details_by_utterance(*tokens, compute_alignments=True)
    stream = io.StringIO()
    wer.print_wer_summary(distance.wer_summary(details), stream)
    wer.print_alignments(details, stream)
    assert speechbrain_errors(count_errors(said, heard)) == stream.getvalue()


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
    assert write_houses(errors, tmp_path, "test") == []
    names = ["errs-test.txt", "hyp.trn", "hyp.trn.pra", "hyp.trn.sys", "recogs-test.txt", "ref.trn", "wer_test.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert read_transcripts(tmp_path / "hyp.trn") == read_transcripts(DATA / "a.trn")
    left_out = write_houses(count_errors({"a(1)": "x"}, {"a(1)": "x"}), tmp_path / "odd", "test")
    assert len(left_out) == 2 and "use ids without parentheses" in left_out[0]
    assert not (tmp_path / "odd" / "ref.trn").exists() and (tmp_path / "odd" / "wer_test.txt").exists()


def test_an_empty_set_makes_empty_files() -> None:
    assert "%SER 0.00 [ 0 / 0 ]" in speechbrain_errors(Errors([]))
    assert icefall_errors(Errors([])).startswith("%WER = 0.00")
