"""Whatever happens to stored work on the disk: it is made again, and said, or never used."""

import os
import shutil
from pathlib import Path

import pytest
from adapt_cases import QUICK, CountingTask
from damage import flip, half_zeroed, to_folder, truncated

from asrcl.adapt import run_method
from asrcl.files import read_json, write_json
from asrcl.methods import build_method
from asrcl.testing import tiny_learner, tiny_scenario

KINDS = ("train", "curvature", "errors", "loss", "card")
FILES = {
    "train": ("model.safetensors", "training.json", "cost.json", "key.json"),
    "curvature": ("curvature.safetensors", "cost.json", "key.json"),
    "errors": ("errors.jsonl", "key.json"),
    "loss": ("loss.json", "key.json"),
    "card": ("card.json", "key.json"),
}


DAMAGE = {
    "bit": flip,
    "half zeroed": half_zeroed,
    "truncated": truncated,
    "deleted": Path.unlink,
    "folder": to_folder,
}


def run(folder: Path, number: int = 2) -> dict[str, bytes]:
    """A run with several domains, of which the last comes twice; what it left, but for costs."""
    scenario = tiny_scenario(number, task=CountingTask())
    run_method(tiny_learner(folder, scenario, QUICK), build_method("ihr"), folder / "run")
    files = [path for path in (folder / "run").rglob("*") if path.is_file() and path.name not in ("costs.json", "tracking.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and what it left."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def entry(folder: Path, kind: str) -> Path:
    return next(path for path in sorted((folder / "cache" / kind).iterdir()) if path.is_dir())


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind, name", [(kind, name) for kind in KINDS for name in FILES[kind]])
def test_a_damaged_entry_is_made_again(copy, finished, caplog, kind, name, damage):
    place = entry(copy, kind)
    DAMAGE[damage](place / name)
    assert run(copy) == finished[1]
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 1 and str(place) in lines[0] and name in lines[0] and lines[0].endswith("made again")
    caplog.clear()
    assert run(copy) == finished[1] and not caplog.records  # and that was all


@pytest.mark.parametrize("kind, name, change", [
    ("loss", "loss.json", lambda found: {"loss": found["loss"] + 0.1}),
    ("train", "training.json", lambda found: {**found, "steps": 1}),
    ("card", "card.json", lambda found: {}),
    ("train", "key.json", lambda found: {**found, "seed": 1}),
    ("errors", "cost.json", lambda found: {**found, "seconds": 0.0}),
])  # fmt: skip
def test_changed_numbers_are_not_used(copy, finished, caplog, kind, name, change):
    path = entry(copy, kind) / name
    write_json(path, change(read_json(path)))
    assert run(copy) == finished[1]
    assert "was changed after it was written" in caplog.text or "bytes, not the" in caplog.text


def test_an_entry_in_the_place_of_another(copy, finished, caplog):
    first, second = [path for path in sorted((copy / "cache" / "errors").iterdir()) if path.is_dir()][:2]
    shutil.rmtree(second)
    shutil.copytree(first, second)
    assert run(copy) == finished[1]
    assert f"{second}: key.json is that of another entry; made again" in caplog.text


@pytest.mark.parametrize("what", ["file", "link", "empty folder"])
def test_something_else_in_the_place_of_an_entry(copy, finished, tmp_path, what):
    place = entry(copy, "train")
    os.rename(place, tmp_path / "elsewhere")
    if what == "file":
        place.write_text("no folder")
    elif what == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.mkdir()
    assert run(copy) == finished[1]
    assert place.is_dir() and not place.is_symlink() and (tmp_path / "elsewhere").is_dir()


def test_something_else_in_the_place_of_unfinished_work(copy, finished):
    place = entry(copy, "train")
    shutil.rmtree(place)
    place.with_suffix(".work").write_text("no folder")
    assert run(copy) == finished[1]


def test_unfinished_work_that_is_damaged(copy, finished, caplog):
    """What a killed estimate left is not gone on from when it is damaged."""
    place = entry(copy, "curvature")
    shutil.rmtree(place)
    place.with_suffix(".work").mkdir()
    (place.with_suffix(".work") / "partial.safetensors").write_bytes(b"torn")
    assert run(copy) == finished[1]
    assert "partial.safetensors" in caplog.text


def test_entries_of_an_older_version_are_made_again(copy, finished, caplog):
    for path in (copy / "cache").glob("*/*/key.json"):
        content = read_json(path)
        write_json(path, {name: value for name, value in content.items() if name not in ("files", "seal")})
    assert run(copy) == finished[1]
    assert "has no hashes (an older version wrote it); made again" in caplog.text


def test_whole_caches_can_be_moved(copy, finished):
    task = CountingTask()
    scenario = tiny_scenario(2, task=task)
    run_method(tiny_learner(copy, scenario, QUICK), build_method("ihr"), copy / "run")
    assert task.calls == {}


def test_tracking_notes_may_change(copy, finished, caplog):
    """They are written while and after an entry is made, and nothing depends on them."""
    for path in (copy / "cache" / "train").glob("*/tracking.json"):
        path.write_text("{}")
    assert run(copy) == finished[1] and not caplog.records
