"""The table of trade-offs: the rates are those of the runs, intervals hold them, and the reference stands against itself."""

import subprocess
import sys
from pathlib import Path

from asrcl.scoring import ProbeCounts, RunResult, Scoring, count_normalised, count_written

TOOL = Path(__file__).resolve().parents[1] / "tools" / "plot_tradeoff.py"
TEXTS = {f"{speaker}-{n}": f"It is {n}, no doubt." for speaker in "abcd" for n in ("one", "two")}
SPEAKERS = {name: name[0] for name in TEXTS}
LOSSES = {"initial": {}, "ft": {"a-one": "it is", "b-one": "it is one no doubt"}, "ihr": {"a-one": "It is one, no"}}


def write_run(folder, method, losses):
    errors = count_normalised(TEXTS, TEXTS | losses, SPEAKERS, Scoring("basic"))
    written = count_written(errors)
    place = folder / method / "1"
    errors.save(place / "stage1" / "probe" / "utterances.jsonl")
    assert written is not None
    file = "stage1/probe/utterances.jsonl"
    probe = ProbeCounts("probe", [errors.total], errors.length, [None], 0, [file], written=[written])
    wrong = 10 * len(losses)
    result = RunResult("toy", method, 1, "word", ["new"], [[wrong]], [100], label=method.upper(), probes=[probe])
    result.save(place / "results.json")
    return errors


def test_rates_and_differences(tmp_path):
    errors = {method: write_run(tmp_path / "exp", method, losses) for method, losses in LOSSES.items()}
    command = [sys.executable, str(TOOL), str(tmp_path / "exp"), "--domains", "new", "--probe", "probe", "--reference", "ihr"]
    more = ["--curve", "all: initial ihr", "--also", "ft", "--out", str(tmp_path / "a.png")]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines() if "|" in line]
    rows = {line[0]: line[1:] for line in lines}
    for method, found in errors.items():
        rate, raw, marks = rows[method.upper()][2:8:2]
        written = count_written(found)
        assert rate.startswith(f"{found.rate:.2f} (") and marks.startswith(f"{written.rates(1)['punctuation']:.2f} (")
        assert raw.startswith(f"{100 * written.errors / written.length:.2f} (")
    assert rows["IHR"][3] == rows["IHR"][5] == rows["IHR"][7] == "reference"
    assert rows["FT"][3].startswith("+") and rows["FT"][5].startswith("+") and rows["INITIAL"][7].startswith("+")
    assert (tmp_path / "a.png").stat().st_size > 1000
