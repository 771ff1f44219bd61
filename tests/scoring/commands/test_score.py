"""The command `asrcl score`: what it prints and writes, and what it refuses. (Its numbers are tested beside the functions.)"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from asrcl.cli import app
from asrcl.exceptions import InputError
from asrcl.scoring.commands.score import compare_command, score_command
from asrcl.scoring.transcripts.score import Options

DATA = Path(__file__).parents[1] / "data"
PAIR = str(DATA / "ref.trn"), str(DATA / "a.trn")


def run(*arguments: str, stdin: bytes | None = None) -> str:
    """The output; errors are raised as they are."""
    result = CliRunner().invoke(app, ["score", *arguments], input=stdin, catch_exceptions=False, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--by", "speaker"], "--by"),
        (["--out", "o"], "--out"),
        (["-n", "basic", "--costs", "sclite"], "--normaliser, --costs"),
        (["--output", "json", "--top", "3", "--worst", "1"], "--output, --top, --worst"),
        (["--meta", "m.csv", "--skip", "--format", "trn"], "--meta, --skip, --format"),
        (["--id-key", "a", "--ref-key", "b", "--hyp-key", "c"], "--id-key, --ref-key, --hyp-key"),
    ],
)
def test_a_folder_takes_no_options(given: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"only counted again, which takes no {named}; leave that out"):
        run(str(tmp_path), *given)
    with pytest.raises(InputError, match=r"no results\.json below it"):
        run(str(tmp_path), "--costs", "unit")


def test_formats_standard_input_and_packed_files(tmp_path: Path) -> None:
    lines = (DATA / "a.trn").read_bytes()
    found = json.loads(run(PAIR[0], "-", "--format", "trn", "--output", "json", stdin=lines))
    assert found["rows"] == json.loads(run(*PAIR, "--output", "json"))["rows"]
    assert list(found["files"]) == [PAIR[0], "-"]
    (tmp_path / "hyp.filt").write_bytes(lines)
    assert run(PAIR[0], str(tmp_path / "hyp.filt"), "--format", "trn", "--output", "csv") == run(*PAIR, "--output", "csv")
    with pytest.raises(InputError, match=r"unknown transcript suffix .filt; .*--format"):
        run(PAIR[0], str(tmp_path / "hyp.filt"))
    run(PAIR[0], "-", "--format", "trn", "--out", str(tmp_path / "out"), stdin=lines)
    assert (tmp_path / "out" / "wer_stdin.txt").exists()


def test_a_pipe_of_the_shell(tmp_path: Path) -> None:
    command = f"{sys.executable} -m asrcl.cli score --format trn --output json <(cat {PAIR[0]}) <(cat {PAIR[1]})"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert list(json.loads(result.stdout)["files"].values()) == list(json.loads(run(*PAIR, "--output", "json"))["files"].values())


def test_json_holds_confusions_and_alignments_and_csv_refuses_them() -> None:
    plain = json.loads(run(*PAIR, "--output", "json"))
    assert "confusions" not in plain and "worst" not in plain
    found = json.loads(run(*PAIR, "--output", "json", "--top", "2", "--worst", "3", "-n", "basic"))
    assert list(found["confusions"]) == ["raw", "basic"]
    assert [len(rows) for rows in found["confusions"]["raw"].values()] == [2, 2, 2]
    first = found["worst"]["raw"][0]
    assert first["id"] == "spk3-12" and len(found["worst"]["basic"]) == 3
    kinds = [kind for kind, _, _ in first["steps"]]
    shares = [first[name] for name in ("substitutions", "deletions", "insertions")]
    assert [kinds.count(kind) for kind in "SDI"] == shares and sum(shares) == first["errors"]
    with pytest.raises(InputError, match="--top and --worst do not fit into rows of counts"):
        run(*PAIR, "--output", "csv", "--top", "1")


def test_every_skipped_utterance_is_in_score_json(tmp_path: Path) -> None:
    (tmp_path / "ref.trn").write_text("".join(f"a (u-{k})\n" for k in range(60)))
    (tmp_path / "hyp.trn").write_text("a (u-0)\n")
    files = str(tmp_path / "ref.trn"), str(tmp_path / "hyp.trn"), "--skip"
    text = run(*files)
    assert "skipped (59):" in text and "  ... and 19 more; --out FOLDER lists all in score.json" in text
    assert "... and 19 more; all in score.json" in run(*files, "--out", str(tmp_path / "out"))
    assert len(json.loads((tmp_path / "out" / "score.json").read_text())["skipped"]) == 59


def test_case_errors_can_be_seen_and_nothing_dangles(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "u-1", "text": "Turn on", "pred_text": "turn on"}\n')
    text = run(str(tmp_path / "a.jsonl"), "--worst", "1", "--top", "1", "-n", "basic")
    assert re.search(r"REF:  Turn on\nHYP:  turn on\nEval: S", text) and "Turn -> turn" in text
    assert "most frequent, basic: no errors" in text and "most errors, basic: no errors" in text
    (tmp_path / "a.jsonl").write_text('{"id": "u-1", "text": "...", "pred_text": "a"}\n')
    assert "leaves 1 reference without a word" in run(str(tmp_path / "a.jsonl"), "-n", "basic")


def test_confusions_are_counted_once_per_variant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from asrcl.scoring.transcripts import score

    calls, count = [], score.confusions
    monkeypatch.setattr(score, "confusions", lambda *given: calls.append(1) or count(*given))
    monkeypatch.setattr("asrcl.scoring.transcripts.toolkit_reports.confusions", lambda *_: pytest.fail("counted again"))
    score_command(Path(PAIR[0]), Path(PAIR[1]), Options("basic"), out=tmp_path, top=2)
    assert len(calls) == 2


def test_transcripts_and_ids_cannot_drive_the_terminal(tmp_path: Path) -> None:
    """Escapes, bells and overrides in words, ids, speakers and columns are written out; JSON and csv hold them as they can."""
    same = {"room": "=1+1", "text": "a\x1b]0;t\x07 b"}
    rows = [{"id": f"s-{n}\x1b[2J\n", "speaker": f"[red]x\x9b\u202e{n % 2}", **same} for n in range(4)]
    paths = [tmp_path / "r\x1b.jsonl", tmp_path / "h.jsonl"]
    for path, more in zip(paths, ([{**rows[0], "id": "only\x07\nhere"}], []), strict=True):
        path.write_text("".join(json.dumps(row | ({"text": "a"} if not more else {})) + "\n" for row in [*rows, *more]))
    options = Options(skip=True, columns=["room"])
    shown = {name: score_command(*paths, options, by=["speaker", "room"], output=name, **more) for name, more in OUTPUTS.items()}
    table = compare_command([f"a={paths[1]}", f"b\x1b={paths[1]}"], paths[0], Options(skip=True), tests=["sign"], draws=100)
    for text in (*shown.values(), table):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert r"[red]x\x9b\u202e0" in shown["text"] and r"b\x1b" in table and r"s-0\x1b[2J\n (2 of 2" in shown["text"]
    assert r"A\x1b]0;T\x07".lower() in shown["text"].lower() and "only\\x07\\nhere" in shown["text"] and "'=1+1" in shown["csv"]
    values = {row["value"] for row in json.loads(shown["json"])["rows"]}
    assert {"[red]x\x9b\u202e0", "=1+1"} <= values
    with pytest.raises(InputError, match=r"r\\x1b.jsonl: references without a hypothesis: 1 \(only\\x07\\nhere\)") as caught:
        score_command(*paths)
    assert "\n" not in str(caught.value)


OUTPUTS: dict[str, dict] = {"text": {"worst": 2, "top": 2}, "json": {"worst": 2, "top": 2}, "csv": {}}
