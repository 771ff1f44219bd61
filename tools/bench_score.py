"""Scoring speed and memory: `asrcl score` on invented transcripts, against jiwer called once per utterance.

    .venv/bin/python tools/bench_score.py                          # 1,000,000 utterances of 5 to 25 words, 10 % wrong words
    .venv/bin/python tools/bench_score.py --utterances 20000 --suffix jsonl
    .venv/bin/python tools/bench_score.py --out                    # also writes the files in the layouts of other toolkits
    .venv/bin/python tools/bench_score.py --normaliser whisper-english

Prints seconds and peak memory of the whole command (read both files, count words and characters, table per speaker) in a process
of its own, and what `jiwer.process_words` alone takes per utterance, extrapolated from 20,000. Fails if the budget is exceeded:
two minutes and 2 GiB for a million utterances.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jiwer

JIWER_SAMPLE = 20_000
BUDGET_SECONDS, BUDGET_GIB, BUDGET_UTTERANCES = 120.0, 2.0, 1_000_000


def write_corpus(folder: Path, utterances: int, suffix: str, wrong: float) -> tuple[Path, Path]:
    """Reference and hypothesis files with 500 speakers."""
    draw, words = random.Random(0), [f"word{number}" for number in range(5000)]
    paths = folder / f"ref.{suffix}", folder / f"hyp.{suffix}"
    with open(paths[0], "w", encoding="utf-8") as said, open(paths[1], "w", encoding="utf-8") as heard:
        for number in range(utterances):
            key = f"spk{number % 500:03d}-{number:07d}"
            reference = draw.choices(words, k=draw.randint(5, 25))
            kept = (word for word in reference if draw.random() > wrong / 4)
            hypothesis = [draw.choice(words) if draw.random() < wrong else word for word in kept]
            for stream, text in ((said, reference), (heard, hypothesis)):
                stream.write(as_line(key, " ".join(text), suffix))
    return paths


def as_line(key: str, text: str, suffix: str) -> str:
    """One utterance in the manner of the format."""
    if suffix == "jsonl":
        return json.dumps({"id": key, "text": text}) + "\n"
    return f"{text} ({key})\n" if suffix == "trn" else f"{key} {text}\n"


def measure(reference: Path, hypothesis: Path, normaliser: str, out: bool) -> None:
    """In a process of its own: score, print the table, then seconds and GiB on the last line."""
    started = time.perf_counter()
    from asrcl.scoring.commands.score import score_command
    from asrcl.scoring.transcripts.score import Options

    folder = reference.parent / "out" if out else None
    text = score_command(reference, hypothesis, Options(normaliser), by=["speaker"], out=folder)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("\n".join(text.splitlines()[:7]))
    print(json.dumps([seconds, peak]))


def jiwer_seconds(reference: Path, hypothesis: Path, suffix: str) -> float:
    """Seconds per utterance of `jiwer.process_words`, called once for each."""
    from asrcl.scoring import read_transcripts

    small = []
    for path in (reference, hypothesis):
        part = path.with_name(f"part_{path.name}")
        with open(path, encoding="utf-8") as stream, open(part, "w", encoding="utf-8") as out:
            out.writelines(line for _, line in zip(range(JIWER_SAMPLE), stream, strict=False))
        small.append(list(read_transcripts(part).values()))
    started = time.perf_counter()
    for said, heard in zip(*small, strict=True):
        jiwer.process_words(said, heard)
    return (time.perf_counter() - started) / len(small[0])


def _options(options: argparse.Namespace) -> str:
    chosen = [f"--normaliser {options.normaliser}"] * (options.normaliser != "none") + ["--out"] * options.out
    return f" ({' '.join(chosen)})" if chosen else ""


def main() -> int:
    """Write the corpus, run both, print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=BUDGET_UTTERANCES)
    parser.add_argument("--suffix", choices=["trn", "txt", "jsonl"], default="trn")
    parser.add_argument("--wrong", type=float, default=0.1, help="share of wrong words")
    parser.add_argument("--normaliser", default="none", help="as of asrcl score")
    parser.add_argument("--out", action="store_true", help="also write the files in the layouts of other toolkits")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure, options.normaliser, options.out)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        paths = write_corpus(Path(folder), options.utterances, options.suffix, options.wrong)
        command = [sys.executable, __file__, "--measure", *map(str, paths), f"--normaliser={options.normaliser}"]
        command += ["--out"] * options.out
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        each = jiwer_seconds(*paths, options.suffix)
    seconds, peak = json.loads(output[-1])
    print("\n".join(output[:-1]))
    alone = each * options.utterances
    cost = f"{seconds:.1f} s, {peak:.2f} GiB peak"
    print(f"\n{options.utterances} utterances (.{options.suffix}): {cost}, all of `asrcl score`{_options(options)}")
    print(f"jiwer.process_words once per utterance, words only: {alone:.1f} s; ratio {alone / seconds:.2f}")
    limit = BUDGET_SECONDS * max(options.utterances / BUDGET_UTTERANCES, 0.05)
    return 0 if seconds < limit and peak < BUDGET_GIB else 1


if __name__ == "__main__":
    sys.exit(main())
