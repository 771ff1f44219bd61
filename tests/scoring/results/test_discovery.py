import json
import os
import shutil
from pathlib import Path

import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import find_results
from asrcl.scoring.commands.report import make_report
from asrcl.scoring.commands.verify import recount
from asrcl.scoring.results.discovery import different_tests, look_below, scan_results, with_same_tests


@pytest.fixture
def exp(tmp_path: Path, fake_run) -> Path:
    """Three good runs; then one of another version, one cut short, one copied, one with other test sets."""
    for seed in (0, 1, 2):
        fake_run(tmp_path, "ft", seed, keep_items=False)
    good = tmp_path / "accents/ft/0/results.json"
    content = json.loads(good.read_text())
    unsealed = {name: value for name, value in content.items() if name not in ("files", "seal")}  # as others write them
    for name, text in (
        ("a-old", json.dumps(content | {"format": "asrcl-results/0"})),
        ("b-cut", good.read_text()[:200]),
        ("c-odd", json.dumps(content | {"seed": 7, "errors": [[1]]})),
        ("d-other", json.dumps(unsealed | {"seed": 9, "lengths": [1, 2, 3, 4, 5]})),
    ):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "results.json").write_text(text)
    shutil.copytree(tmp_path / "accents/ft/1", tmp_path / "copy")
    return tmp_path


def test_every_file_is_used_or_named_with_its_reason(exp: Path) -> None:
    scan = with_same_tests(scan_results([exp]))
    assert [run.seed for run in scan.runs] == [0, 1, 2]
    found = {str(problem.path.relative_to(exp)): problem for problem in scan.problems}
    assert {name: problem.kind for name, problem in found.items()} == {
        "bad/a-old/results.json": "other version",
        "bad/b-cut/results.json": "damaged",
        "bad/c-odd/results.json": "damaged",
        "copy/results.json": "duplicate",
        "bad/d-other/results.json": "other test sets",
    }
    assert all(name in problem.reason for name, problem in found.items() if problem.kind != "other test sets")
    assert "accents/ft/1 is also in" in found["copy/results.json"].reason
    assert "lengths of accents/ft/9 differ from those of accents/ft/0" in found["bad/d-other/results.json"].reason
    assert scan.count() == "5 results files not used: 1 other version, 2 damaged, 1 duplicate, 1 other test sets"


def test_they_are_refused_unless_skipped(exp: Path) -> None:
    scan = scan_results([exp])
    with pytest.raises(InputError, match="4 results files not used") as caught:
        scan.require()
    assert all(name in str(caught.value) for name in ("a-old", "b-cut", "c-odd", "copy", "--skip-bad"))
    assert sorted(run.seed for run in scan.require(skip=True)) == [0, 1, 2, 9]
    assert len(scan.lines()) == 5


def test_long_lists_are_cut_with_their_count(tmp_path: Path) -> None:
    for index in range(25):
        (tmp_path / f"{index:02d}").mkdir()
        (tmp_path / f"{index:02d}" / "results.json").write_text("{}")
    lines = scan_results([tmp_path]).lines()
    assert lines[0] == "25 results files not used: 25 other version" and len(lines) == 22 and lines[-1] == "and 5 more"


def test_a_file_found_twice_counts_once(exp: Path) -> None:
    one = exp / "accents/ft/0"
    scan = scan_results([one, one / "results.json", exp / "accents"])
    assert len(scan.runs) == 3 and not scan.problems and scan.count() == "" and scan.lines() == []


def test_nothing_and_nowhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no usable results\.json"):
        scan_results([tmp_path]).require()
    with pytest.raises(InputError, match="none: no such folder"):
        scan_results([tmp_path / "none"])


def test_which_part_of_the_tests_differs(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ft", 0, keep_items=False)
    other = fake_run(tmp_path, "ihr", 0, keep_items=False)
    assert different_tests(run, other) is None
    other.unit = "character"
    assert different_tests(run, other) == "unit"


def test_runs_whose_files_are_missing_or_torn_are_named_and_skipped(tmp_path: Path, fake_run) -> None:
    kept, lost, torn = (fake_run(tmp_path, "ft", seed) for seed in (0, 1, 2))
    names = [name for row in lost.item_files for name in row if name]
    (lost.folder / names[0]).unlink()
    (torn.folder / "costs.json").write_text("[{")
    scan = scan_results([tmp_path])
    assert [(problem.kind, problem.path.parent) for problem in scan.problems] == [
        ("incomplete", lost.folder), ("damaged", torn.folder),
    ]  # fmt: skip
    assert names[0] in scan.problems[0].reason and f"1 of {len(names)} files of items" in scan.problems[0].reason
    assert "costs.json" in scan.problems[1].reason
    assert [run.folder for run in scan.require(skip=True)] == [kept.folder]


def test_linked_folders_are_searched_once_and_loops_end(tmp_path: Path, fake_run) -> None:
    for seed in (0, 1):
        fake_run(tmp_path / "disk", "ft", seed, keep_items=False)
    exp = tmp_path / "exp"
    (exp / "accents").mkdir(parents=True)
    (exp / "accents" / "ft").symlink_to(tmp_path / "disk/accents/ft")
    (exp / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/accents/loop").symlink_to(exp)
    (exp / "lost").symlink_to(tmp_path / "nowhere")
    scan = scan_results([exp, tmp_path / "disk"])
    assert sorted(run.seed for run in scan.runs) == [0, 1] == sorted(run.seed for run in find_results(exp)) and not scan.problems
    fake_run(exp, "ihr", 0, keep_items=False)
    (exp / "accents/a-link").symlink_to(exp / "accents/ihr")
    assert next(str(path.relative_to(exp)) for path in look_below(exp).results) == "accents/ihr/0/results.json"


def test_decodes_without_their_results_are_named(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ft", 0)
    for home in (run.folder / "stage1/us", tmp_path / "accents/ihr/1/stage1/us", tmp_path / "accents/ihr/1/stage1/nz"):
        home.mkdir(parents=True)
        (home / "hyp.trn").write_text("a (u-1)\n")
    scan = scan_results([tmp_path])
    strays = [str(tmp_path / "accents/ihr/1/stage1" / name) for name in ("nz", "us")]
    (line,) = scan.lines()
    assert line.startswith(f"decodes without a results.json, not used: 2 ({', '.join(strays)}); finish their runs")
    assert scan.require() == scan.runs and len(scan.runs) == 1 and with_same_tests(scan).remarks == [line]
    said: list[str] = []
    make_report([tmp_path], out=tmp_path / "out", views=["html"], say=said.append)
    assert line in said and strays[0] in (tmp_path / "out/report.html").read_text()
    with pytest.raises(InputError, match=r"no usable results.json below the given folders .decodes without"):
        scan_results([tmp_path / "accents/ihr"]).require()
    with pytest.raises(InputError, match=r"no results.json below it .decodes without"):
        recount(tmp_path / "accents/ihr")
    assert look_below(run.folder / "stage1").strays == []  # its results lie above


def test_folders_and_files_that_cannot_be_read_are_named(tmp_path: Path, fake_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is gone between listing and reading."""
    runs = [fake_run(tmp_path, "ft", seed, keep_items=False) for seed in (0, 1, 2)]
    (tmp_path / "results.json").mkdir()
    scandir, shut = os.scandir, str(runs[1].folder)

    def refuse(path="."):
        if os.fspath(path) == shut:
            raise PermissionError(13, "Permission denied", shut)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    read_text = Path.read_text

    def gone(path: Path, *rest, **more):
        if path == runs[2].folder / "results.json":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return read_text(path, *rest, **more)

    monkeypatch.setattr(Path, "read_text", gone)
    scan = scan_results([tmp_path])
    assert [run.seed for run in scan.runs] == [0]
    found = {problem.kind: problem.reason for problem in scan.problems if problem.path != tmp_path / "results.json"}
    assert found == {"unreadable": f"{shut}: cannot be listed (Permission denied)", "damaged": found["damaged"]}
    assert found["damaged"].endswith("results.json: no such file")
    (folder,) = [problem.reason for problem in scan.problems if problem.path == tmp_path / "results.json"]
    assert "cannot read it (Is a directory)" in folder
    with pytest.raises(InputError, match=r"cannot be listed .Permission denied.; make it readable"):
        find_results(tmp_path)
