"""What the driver of damaged runs does in processes of its own."""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from asrcl import cli

STAGES = ("prepare", "train", "adapt", "decode")
VIEWS = ("score", "report")


def flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def half_zeroed(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))


def truncated(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(path.stat().st_size))


def deleted(path: Path, chance: random.Random) -> None:
    path.unlink()


def folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {"bit": flip, "half zeroed": half_zeroed, "truncated": truncated, "deleted": deleted, "folder": folder}


def kind(path: Path, home: Path) -> str:
    """The sort of a file: its place without numbers, hashes and the names of domains and methods."""
    name = path.relative_to(home).as_posix()
    name = re.sub(r"[0-9a-f]{16}", "*", name)
    return re.sub(r"\d+|low|high|ihr|ft", "*", name)


def files_by_kind(home: Path) -> dict[str, list[Path]]:
    """All files of a run that hold anything, sorted by kind; locks and what dashboards and reports have are no part of it."""
    found: dict[str, list[Path]] = {}
    for path in sorted(home.rglob("*")):
        views = path.name in ("report.html", "RESULTS.md", "tracking.json") or path.suffix in (".png", ".lock")
        if path.is_file() and not path.is_symlink() and path.stat().st_size and not views and "tensorboard" not in path.parts:
            found.setdefault(kind(path, home), []).append(path)
    return found


def outcome(home: Path) -> dict[str, bytes]:
    """What a run is for: models, decodes and results, by their place."""
    wanted = ("model.safetensors", "results.json", "hyp.trn", "ref.trn", "utterances.jsonl")
    files = [path for path in home.rglob("*") if path.name in wanted and "cache" not in path.parts]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files if path.is_file()}


def call(*arguments: str) -> tuple[int, str]:
    """One command; its exit code and what it said on standard error."""
    said, argv = io.StringIO(), sys.argv
    sys.argv = ["asrcl", *arguments]
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            cli.main()
    except SystemExit as stop:
        return int(stop.code or 0), said.getvalue()
    finally:
        sys.argv = argv
    return 0, said.getvalue()


def run_stages(overrides: Sequence[str]) -> tuple[int, str]:
    """All stages that compute, until one is refused."""
    os.environ["PATH"] = ""  # the state of the source tree, which git tells, may change between two runs
    said = ""
    for stage in STAGES:
        methods = ["--methods", "ft ihr"] if stage in ("adapt", "decode") else []
        code, more = call(stage, *methods, *overrides)
        said += more
        if code:
            return code, said
    return 0, said


def views(home: str) -> tuple[int, str]:
    """Score and report as things are; the exit code of the first that is refused, and what was said, or else the page."""
    for view in VIEWS:
        code, said = call(view, home)
        if code:
            return code, said
    page = (Path(home) / "RESULTS.md").read_text(encoding="utf-8")
    for made in ("RESULTS.md", "report.html"):
        (Path(home) / made).unlink()
    return 0, page


def restore(finished: Path, place: Path) -> None:
    """A fresh copy of a finished run in the place where it was made, for its settings name it."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(finished, place, symlinks=True)
