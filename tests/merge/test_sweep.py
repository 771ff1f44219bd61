"""A sweep serves earlier scores only where they are those of the same models, options and evaluation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asrcl.exceptions import InputError
from asrcl.merge import MergeSpec
from asrcl.merge.sweep import CommandEvaluation, sweep

SPEC, GRID = MergeSpec("interpolate"), {"strength": [0.2, 0.6]}


@pytest.fixture
def models(tmp_path):
    """Two models as folders, as Hugging Face has them."""
    for name, value in (("old", 0.0), ("new", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2, 3), value)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    return tmp_path / "old", tmp_path / "new"


class Scores:
    """Counts its calls; the errors are its own numbers."""

    def __init__(self, old, new, identity):
        self.values, self.identity, self.calls = {"old": old, "new": new}, identity, 0

    def __call__(self, model):
        self.calls += 1
        return dict(self.values)


def run(models, folder, evaluate, spec=SPEC, **options):
    return sweep(models[0], [models[1]], folder, spec, GRID, evaluate, **options)


def test_the_same_evaluation_is_served(models, tmp_path):
    scores = Scores(1.0, 2.0, "dev sets")
    rows = run(models, tmp_path / "out", scores)
    assert run(models, tmp_path / "out", Scores(9.0, 9.0, "dev sets")) == rows
    assert scores.calls == 2


def test_another_evaluation_is_not(models, tmp_path):
    run(models, tmp_path / "out", Scores(1.0, 2.0, "dev sets"))
    with pytest.raises(InputError, match="another sweep \\(other evaluation\\)"):
        run(models, tmp_path / "out", Scores(1.0, 2.0, "test sets"))
    with pytest.raises(InputError, match="another sweep \\(other evaluation\\)"):
        run(models, tmp_path / "out", None)


@pytest.mark.parametrize("which", [0, 1])
def test_weights_changed_in_place(models, tmp_path, which):
    run(models, tmp_path / "out", None)
    file = models[which] / "model.safetensors"
    stat, content = os.stat(file), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(InputError, match="another sweep \\(other models\\)"):
        run(models, tmp_path / "out", None)


def test_models_of_the_same_content_elsewhere(models, tmp_path):
    rows = run(models, tmp_path / "out", Scores(1.0, 2.0, "x"))
    os.rename(models[1], tmp_path / "moved")
    (tmp_path / "moved" / "new").mkdir()
    for file in ("model.safetensors", "config.json"):
        os.rename(tmp_path / "moved" / file, tmp_path / "moved" / "new" / file)
    assert run((models[0], tmp_path / "moved" / "new"), tmp_path / "out", Scores(9.0, 9.0, "x")) == rows


@pytest.mark.parametrize(
    "spec", [MergeSpec("average"), MergeSpec("interpolate", rest=0.5), MergeSpec("interpolate", vocabulary="union")]
)
def test_other_options(models, tmp_path, spec):
    run(models, tmp_path / "out", None)
    with pytest.raises(InputError, match="another sweep \\(other fixed options\\)"):
        run(models, tmp_path / "out", None, spec)


def test_functions_are_told_apart(models, tmp_path):
    def scorer(bias):
        return lambda model: {"old": bias, "new": bias}

    rows = run(models, tmp_path / "out", scorer(1.0))
    assert run(models, tmp_path / "out", scorer(1.0)) == rows
    for other in (scorer(2.0), lambda model: {"old": 3.0, "new": 3.0}):
        with pytest.raises(InputError, match="other evaluation"):
            run(models, tmp_path / "out", other)


@pytest.mark.parametrize("damage", [
    lambda path: path.write_text(path.read_text().replace("1.5", "0.5")),
    lambda path: path.write_text("{"),
    lambda path: path.write_text(json.dumps({"key": "3fa4", "rows": {}})),
    lambda path: (path.unlink(), path.mkdir()),
])  # fmt: skip
def test_damaged_scores_are_made_again(models, tmp_path, caplog, damage):
    rows = run(models, tmp_path / "out", Scores(1.5, 2.0, "x"))
    damage(tmp_path / "out" / "sweep.json")
    scores = Scores(1.5, 2.0, "x")
    assert run(models, tmp_path / "out", scores) == rows
    assert scores.calls == 2 and "sweep.json" in caplog.text and "made again" in caplog.text


def test_kept_models(models, tmp_path):
    """Asked for later, damaged or gone: they are there in the end, as merging made them."""
    run(models, tmp_path / "out", None)
    first = run(models, tmp_path / "out", None, keep=True)
    files = [Path(row.model) / "model.safetensors" for row in first]
    content = [file.read_bytes() for file in files]
    os.truncate(files[0], 20)
    assert run(models, tmp_path / "out", None, keep=True) == first
    assert [file.read_bytes() for file in files] == content


SCORER = "import sys\nprint(%s)\n"


def scorer(tmp_path, text):
    (tmp_path / "score.py").write_text(SCORER % text)
    return CommandEvaluation(f"{sys.executable} {tmp_path / 'score.py'} {{model}}")


def test_commands(models, tmp_path):
    rows = run(models, tmp_path / "out", scorer(tmp_path, "'1 2'"))
    assert rows[0].scores == {"old": 1.0, "new": 2.0}
    assert run(models, tmp_path / "out", scorer(tmp_path, "'1 2'")) == rows
    with pytest.raises(InputError, match="other evaluation"):
        run(models, tmp_path / "out", CommandEvaluation(f"{sys.executable} {tmp_path / 'score.py'} {{model}} --more"))
    with pytest.raises(InputError, match="other evaluation"):  # the script was changed in place
        run(models, tmp_path / "out", scorer(tmp_path, "'3 4'"))


@pytest.mark.parametrize("text", [
    "'1'", "''", "'one two'", "'nan 1'", "'1 inf'", "'{\"old\": 1}'", "'[' * 20000",
    "'{\"old\": ' + '9' * 9999 + ', \"new\": 1}'",
    "'{\"old\": [], \"new\": {}}'", "'\\x1b[31m'", "'x' * 99999", "'{\"old\": 1e999, \"new\": 1}'",
])  # fmt: skip
def test_odd_output_is_refused_in_one_short_line(models, tmp_path, text):
    with pytest.raises(InputError) as caught:
        scorer(tmp_path, text)(models[0])
    message = str(caught.value)
    assert message.startswith("--evaluate: its last line is ") and message.isprintable() and len(message) < 500


def test_output_that_is_no_text(models, tmp_path):
    script = tmp_path / "score.py"
    script.write_text("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe\\n1 2\\n')\n")
    assert CommandEvaluation(f"{sys.executable} {script} {{model}}")(models[0]) == {"old": 1.0, "new": 2.0}
    script.write_text("import sys\nsys.stderr.buffer.write(b'\\x1b]0;title\\x07 \\xff\\n')\nsys.exit(3)\n")
    with pytest.raises(InputError, match="exit code 3") as caught:
        CommandEvaluation(f"{sys.executable} {script} {{model}}")(models[0])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("command", ["", "score.py", "python 'score.py {model}", 'python "score.py {model}', "score {model} \\"])
def test_commands_that_cannot_be(command):
    with pytest.raises(InputError, match="--evaluate") as caught:
        CommandEvaluation(command)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["/nowhere/score {model}", "score\0 {model}", "false {model}"])
def test_commands_that_do_not_run(models, command):
    with pytest.raises(InputError, match="--evaluate"):
        CommandEvaluation(command)(models[0])


def test_two_sweeps_at_once(models, tmp_path):
    """The second waits, and is served."""
    program = (
        "import sys, time\nfrom asrcl.merge import MergeSpec\nfrom asrcl.merge.sweep import sweep\n"
        "def score(model):\n    time.sleep(0.3)\n    print('scored')\n    return {'old': 1.0, 'new': 2.0}\n"
        f"sweep({str(models[0])!r}, [{str(models[1])!r}], {str(tmp_path / 'out')!r}, MergeSpec('interpolate'), {GRID!r}, score)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(text.count("scored") for text in printed) == 2
