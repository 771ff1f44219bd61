"""The examples run and keep what they promise: the merged model is better than the new one on the old domain."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name, merged, better", [
    ("plain_pytorch", "ihr", lambda merged, new: merged > new),
    ("transformers_whisper", "merged", lambda merged, new: merged < new),
    ("speechbrain_brain", "merged", lambda merged, new: merged < new),
])  # fmt: skip
def test_examples(name, merged, better, tmp_path):
    pytest.importorskip({"transformers_whisper": "transformers", "speechbrain_brain": "speechbrain"}.get(name, "torch"))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: re.findall(r"[\d.]+", line) for line in done.stdout.splitlines() if re.search(r"\d\.\d", line)}
    new = rows.get("fine-tuned") or rows["new"]
    assert better(float(rows[merged][0]), float(new[0])), done.stdout


def test_the_table_of_the_trainer(tmp_path):
    pytest.importorskip("accelerate", reason="Transformers' Trainer needs accelerate")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, EXAMPLES / "hf_seq2seq.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = {found[1]: found[2].split() for found in re.finditer(r"^ +(old|new) +loss +(.*)$", done.stdout, re.MULTILINE)}
    (before, tuned, merged), (unlearned, _, learned) = (map(float, rows[name]) for name in ("old", "new"))
    assert before < merged < tuned and learned < unlearned, done.stdout


def test_every_example_is_tested():
    tested = {"plain_pytorch", "transformers_whisper", "speechbrain_brain", "hf_seq2seq"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
