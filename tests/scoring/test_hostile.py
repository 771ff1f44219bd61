"""Files that nobody meant: whatever is in them, a reader gives what it can or one line that names the file. No traceback.

`ASRCL_FUZZ=20` tries twenty times more.
"""

import gzip
import io
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_runs import write_runs

from asrcl.exceptions import InputError
from asrcl.files import MAX_DEPTH, parse_json, reading
from asrcl.scoring import Errors, RunResult, count_errors
from asrcl.scoring.commands.report import list_results, make_report
from asrcl.scoring.commands.score import compare_command, score_command
from asrcl.scoring.display.table import comma_separated, escape_latex, markdown_text
from asrcl.scoring.report.html.labels import short_paths
from asrcl.scoring.results.discovery import scan_results
from asrcl.scoring.transcripts import files
from asrcl.scoring.transcripts.files import FORMATS, read_source
from asrcl.scoring.transcripts.formats import Problems, Reading, read_table, read_utterances
from asrcl.text import normaliser

UNHEALTHY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
MANY = int(os.environ.get("ASRCL_FUZZ", "1"))
LONG = 60_000
LINES = ["/", "{/", "(", ")", "(a", " (a)", "(a) ", " ", "\u00a0", "{", "}", "@ ", "'", "a'", "\u0301", "1", "-", "a.b", "_a"]
LINES += ["_1", ".", "\\", '"', "[[", '{"a":', "<", "](", "\x1b[", "\n", ";", ",a", "\t", "IGNORE_TIME"]


def harmless(act: Callable[[], object], path: Path | str) -> None:
    """An act that works, or is refused in one line that names the file."""
    try:
        act()
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", [*LINES, "{" + "/" * LONG, "x." + "1" * LONG + "b.y"], ids=lambda piece: repr(piece[:6]))
def test_no_rule_takes_the_square_of_a_line(tmp_path: Path, piece: str) -> None:
    """What took the square took a minute for these; all of it takes less than a second."""
    line, path, rules = piece * (LONG // len(piece) or 1), tmp_path / "x.txt", normaliser("basic")
    for name in FORMATS:
        header = {"csv": "id,text\n", "tsv": "id\ttext\n"}.get(name, "")
        path.write_text(f"{header}{line}{' (id)' * (name == 'trn')}\n", encoding="utf-8")
        for act in (read_utterances, read_table):
            harmless(lambda name=name, act=act: act(read_source(path, name)), path)
    for act in (read_utterances, Errors.load):
        harmless(lambda act=act: act(path), path)
    rules(line), markdown_text(line), escape_latex(line), comma_separated([line], [[line]])
    assert all(len(name) <= 26 for name in short_paths([line, "layers.0.weight" * 3], 26))
    if " " not in line and "\n" not in line:
        assert count_errors({"u": line}, {"u": line[1:]}).length == len(line.split())


def test_gzip_bombs_are_refused_after_a_small_part(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb") as packed:
        for _ in range(100):
            packed.write(bytes(2**20))
    (tmp_path / "a.trn.gz").write_bytes(stream.getvalue())
    with pytest.raises(InputError, match=r"a.trn.gz: \d+ bytes unpack to more than 6\d MiB, which no transcript does"):
        read_source(tmp_path / "a.trn.gz")


def test_packed_files_within_the_limits_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    text = "".join(f"w{draw.randrange(10**6)} w (u-{number})\n" for number in range(20_000)).encode()
    monkeypatch.setattr(files, "FREELY_UNPACKED", 1000)
    (tmp_path / "a.trn.gz").write_bytes(gzip.compress(text[:7]) + gzip.compress(text[7:]))
    assert read_source(tmp_path / "a.trn.gz").content == text
    monkeypatch.setattr(files, "MAX_PIPED", len(text))
    for limit, fits in ((len(text), True), (len(text) - 1, False)):
        monkeypatch.setattr(files, "MAX_PIPED", limit)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        if fits:
            assert read_source("-", "trn").content == text
        else:
            with pytest.raises(InputError, match="-: more than 0 MiB through a pipe; save it to a file and give its name"):
                read_source("-", "trn")
    (tmp_path / "a.trn").write_bytes(text)
    assert read_source(tmp_path / "a.trn").content == text  # a file has a size, whatever it is


def test_devices_without_an_end_are_refused() -> None:
    with pytest.raises(InputError, match="/dev/zero: more than 64 MiB through a pipe"):
        read_source("/dev/zero", "trn")


def test_json_is_limited_in_depth_and_digits() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH) and parse_json('{"a":[' * 50 + "]}" * 50)
    for text in ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), '{"a":[' * 51 + "]}" * 51, "[" * 10**6):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    with pytest.raises(ValueError, match="too many digits"):
        parse_json("9" * 5000)
    assert len(parse_json(json.dumps([[]] * 500))) == 500  # wide is not deep


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("a"), r"f: not what is expected here \(KeyError: 'a'\); give another"),
        (OverflowError("int too large"), "f: not what is expected here"),
        (RecursionError(), "f: not what is expected here"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "f: not what is expected here"),
        (PermissionError(13, "Permission denied"), r"f: cannot read it \(Permission denied\)"),
        (IsADirectoryError(21, "Is a directory"), r"f: cannot read it \(Is a directory\)"),
        (FileNotFoundError(2, "No such file"), "f: no such file; give another"),
        (InputError("line 3: bad\x1b"), r"^line 3: bad\\x1b$"),
    ],
)
def test_the_boundary_names_the_file(error: Exception, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught, reading("f", "give another"):
        raise error
    assert "\n" not in str(caught.value)
    with pytest.raises(MemoryError), reading("f"):
        raise MemoryError


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file or directory")])
def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Locked ones, and those that were deleted after they were listed; as root no file is locked, so the system is played."""
    path = tmp_path / "a.jsonl"
    path.write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    for act in (read_utterances, read_table, Errors.load, RunResult.load):
        with pytest.raises(InputError, match=r"a\.jsonl: (cannot read it|no such file)"):
            act(path)


def test_folders_in_place_of_files_are_named(tmp_path: Path) -> None:
    for act in (read_utterances, read_table, Errors.load, RunResult.load):
        with pytest.raises(InputError, match=r"cannot read it \(Is a directory\)"):
            act(tmp_path)
    with pytest.raises(InputError, match="cannot read it"):
        read_utterances("a\0b.trn")


NAMES = ["id", "audio_filepath", "audio", "text", "pred_text", "speaker", "offset", "start", "path", "x", "format", "items"]
names = st.sampled_from(NAMES)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
row_lines = st.dictionaries(names, json_values).map(json.dumps) | json_values.map(json.dumps)
pieces = st.sampled_from([*LINES, "u-1 ", "text", "id,text", "id\ttext", '{"id": "a", "text": "b"}', "\ufeff", "\x00", "\r", "é"])
contents = (
    st.binary(max_size=60)
    | st.lists(pieces | st.text(max_size=4), max_size=12).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass"))
    | st.lists(row_lines, max_size=4).map(lambda rows: "\n".join(rows).encode())
    | st.binary(max_size=30).map(gzip.compress)
    | st.binary(max_size=30).map(lambda tail: b"\x1f\x8b" + tail)
)


@settings(max_examples=400 * MANY, derandomize=MANY == 1, deadline=None, suppress_health_check=UNHEALTHY)
@given(content=contents, name=st.sampled_from(FORMATS), both=st.booleans(), skip=st.booleans())
def test_transcripts_of_any_bytes(tmp_path: Path, content: bytes, name: str, both: bool, skip: bool) -> None:
    path = tmp_path / "any"
    path.write_bytes(content)
    problems = Problems() if skip else None
    for role in ("reference", "hypothesis"):
        how = Reading(role, keep=["x"], both=both)
        harmless(lambda how=how: read_utterances(read_source(path, name), how, problems), path)
    harmless(lambda: read_utterances(path, problems=problems), path)
    harmless(lambda: read_table(read_source(path, name)), path)
    harmless(lambda: Errors.load(path), path)
    harmless(lambda: RunResult.load(path), path)


HEADER = {"format": "asrcl-errors/1", "unit": "word", "items": 1}
ITEM = {"id": "a", "group": "a", "substitutions": 1, "deletions": 0, "insertions": 0, "length": 2, "reference": "a b"}


@settings(max_examples=200 * MANY, derandomize=MANY == 1, deadline=None, suppress_health_check=UNHEALTHY)
@given(key=st.sampled_from([*HEADER, *ITEM]), value=json_values)
def test_stored_counts_with_one_odd_value(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "errors.jsonl"
    rows = [row | ({key: value} if key in row else {}) for row in (HEADER, ITEM)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def use() -> None:
        errors = Errors.load(path)
        assert errors.rate >= 0 and errors.by_group()
        score_like = compare_command([f"a={path}", f"b={path}"], tests=["sign"], draws=100)
        assert "2 systems" in score_like

    harmless(use, path)


ODD = [None, True, -1, 0, 10**400, -(10**400), 2**70, 1e308, float("nan"), float("inf"), "", "x", "a\nb", "[/]", [], {}, [[]]]
ODD += [[None], ["x"], [1], [{}], {"a": 1}, {"rows": 3}, {"rows": [{"old": 1, "new": 2}]}, {"rows": [{"old": 1, "new": [2]}]}]
ODD += [json.loads("[" * 60 + "]" * 60), {"": None}, "\ud800", "../..", "initial"]


def places(value: object, path: tuple = ()) -> list[tuple]:
    """The way to every value inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in places(child, (*path, key)))]


def changed(value: object, place: tuple, new: object) -> object:
    if not place:
        return new
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = new
    return value


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("hostile"), ("initial", "ihr"), 1, 3)


@pytest.mark.parametrize("seed", range(8))
def test_reports_of_runs_with_one_odd_value(exp: Path, tmp_path: Path, seed: int) -> None:
    """In any JSON file of a run, at any depth: shown, left out by name, or refused by name."""
    draw, files = random.Random(seed), sorted(exp.rglob("*.json"))
    for _ in range(6):
        path = draw.choice(files)
        before = path.read_bytes()
        content = json.loads(before)
        place = draw.choice(places(content))[: draw.choice([1, 2, 3, 9])]
        path.write_text(json.dumps(changed(content, place, draw.choice(ODD))))
        try:
            for act in (
                lambda: list_results([exp], say=str.encode, every_stage=True, out=tmp_path / "r.csv"),
                lambda: make_report([exp], out=tmp_path / "out", views=["html", "tables"], say=str.encode, skip_bad=True),
                lambda: score_command(exp),
            ):
                try:
                    act()
                except InputError as error:
                    assert "\n" not in str(error)
            assert {run.folder for run in scan_results([exp]).runs} <= {file.parent for file in files}
        finally:
            path.write_bytes(before)


def test_a_name_that_is_no_unicode_is_shown(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.trn")
    with pytest.raises(InputError, match=r"a\\udcff.trn: cannot read it") as caught:
        read_utterances(path)
    assert str(caught.value).encode("utf-8")


def test_names_too_long_for_a_file_are_refused() -> None:
    long = "a" * 5000
    for act in (
        lambda: score_command(Path(long)),
        lambda: compare_command([long, f"n={long}"]),
        lambda: make_report([Path(long)], say=str.encode),
        lambda: list_results([Path(long)], say=str.encode),
    ):
        with pytest.raises(InputError, match="aaaa: "):
            act()


def test_settings_of_many_digits_are_filtered_and_written(exp: Path, tmp_path: Path) -> None:
    path = sorted(exp.rglob("results.json"))[0]
    before = path.read_bytes()
    content = json.loads(before)
    path.write_text(json.dumps(content | {"config": {"huge": 10**400, "odd": 2**64}}))
    try:
        options = {"settings": ["huge", "odd"], "say": str.encode}
        rows = list_results([exp], out=tmp_path / "r.parquet", **options)
        assert (tmp_path / "r.parquet").stat().st_size and 10**400 in list(rows["huge"])
        with pytest.raises(InputError, match=r"condition 'huge>5': 1000.* is not a number"):
            list_results([exp], where=["huge>5"], **options)
    finally:
        path.write_bytes(before)


def test_a_report_of_nothing_usable_says_why(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match=r"no usable results.json .*1 other version.*found None; run it again"):
        list_results([tmp_path], skip_bad=True, say=str.encode)
