"""A hundred ways to damage a finished run: it is rebuilt to the same results, or refused in a line that leads to a repair.

`ASRCL_DAMAGES=10` tries only so many.
"""

import os
import random
import re
import shutil
from pathlib import Path

import pytest
from damage_cases import DAMAGE, files_by_kind, outcome, restore, run_stages, views

from asrcl.testing import run_in_processes

COUNT = int(os.environ.get("ASRCL_DAMAGES", "100"))
TIMES = re.compile(r"[\d.]+ (s|min|h)\b")


def alone(function, *arguments):
    """In a process of its own, as a user would: it remembers nothing of the run before."""
    return run_in_processes(function, 1, *arguments, start="forkserver", timeout=300)[0]


@pytest.fixture(scope="module")
def run(tones, tmp_path_factory):
    """A finished run: its place, a copy of it, the overrides, what it left and what is reported of it."""
    place = tmp_path_factory.mktemp("run") / "exp"
    overrides = tones.overrides(place)
    code, said = alone(run_stages, overrides)
    assert code == 0, said
    finished = place.with_name("finished")
    shutil.copytree(place, finished)
    code, page = alone(views, str(place / "tones"))
    assert code == 0, page
    return place, finished, overrides, outcome(place / "tones"), TIMES.sub("", page)


def cases(finished: Path):
    """Every kind of file in turn, each with another damage."""
    chance, kinds = random.Random(0), files_by_kind(finished)
    names, damages = sorted(kinds), sorted(DAMAGE)
    for number in range(COUNT):
        name = names[number % len(names)]
        yield number, chance.choice(kinds[name]).relative_to(finished), damages[(number + number // len(names)) % len(damages)]


def repair(said: str, place: Path) -> None:
    """Do what the line says: remove what it names below the run."""
    line = next(line for line in reversed(said.splitlines()) if line.startswith("asrcl: "))
    named = [Path(word) for word in re.findall(rf"{re.escape(str(place))}[^\s:;,)]*", line)]
    assert named, line
    chosen = max((path for path in named if os.path.lexists(path)), key=lambda path: len(path.parts), default=None)
    if chosen is not None and chosen != place:
        shutil.rmtree(chosen) if chosen.is_dir() else chosen.unlink()


def _may_change(name: Path, damage: str) -> bool:
    """Times are no results; and a run whose results are gone is not one that is reported."""
    return name.name == "costs.json" or (name.name == "results.json" and damage in ("deleted", "folder"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_damaged_runs(run):
    place, finished, overrides, expected, page = run
    wrong = []
    for number, name, damage in cases(finished):
        what = f"{number}: {name} {damage}"
        restore(finished, place)
        DAMAGE[damage](place / name, random.Random(number))
        code, said = alone(views, str(place / "tones"))
        differs = code == 0 and TIMES.sub("", said) != page and not _may_change(name, damage)
        if "Traceback" in said or code not in (0, 2) or differs:
            wrong.append(f"{what}: reported as if nothing were wrong, or with a traceback ({code}): {said[-300:]}")
        code, said = alone(run_stages, overrides)
        if code == 2 and "Traceback" not in said and said.splitlines()[-1].startswith("asrcl: "):
            repair(said, place)
            code, said = alone(run_stages, overrides)
        if code or "Traceback" in said:
            wrong.append(f"{what}: not repaired ({code}): {said[-400:]}")
        elif outcome(place / "tones") != expected:
            found = outcome(place / "tones")
            differing = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
            wrong.append(f"{what}: other results without a word: {differing[:4]}")
    assert not wrong, "\n".join(wrong)
