"""Made the files beside it: python make_sctk_vectors.py, with the Debian package sctk (sclite 2.4.10, sc_stats 1.3).

ref.trn and three systems are invented (seeded). What SCTK says about them is kept as it wrote it, or as numbers cut out of it:

    a.sys, empty.sys  sclite -o sum
    steps.txt         per system and utterance the operations of sclite's alignment (from -o sgml)
    sc_stats.json     per pair what sc_stats -t mapsswe wilc sign mcn -v prints
"""

import json
import random
import re
import subprocess
from pathlib import Path

HERE, SCTK = Path(__file__).parent, Path("/usr/lib/sctk/bin")
WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
SYSTEMS = {"a": (0.1, 0.4, 0.9), "b": (0.05, 0.3, 0.6), "c": (0.05, 0.2, 0.4)}
EMPTY = {"empty_ref.trn": "one two (p-1)\n(q-1)\n(q-2)\n", "empty_hyp.trn": "one two three (p-1)\nword (q-1)\n(q-2)\n"}


def corrupt(words: list[str], share: float, draw: random.Random) -> list[str]:
    out = []
    for word in words:
        chance = draw.random()
        if chance < share / 3:
            continue
        out.append(draw.choice(WORDS) if chance < 2 * share / 3 else word)
        if 2 * share / 3 <= chance < share:
            out.append(draw.choice(WORDS))
    return out


def write(name: str, texts: dict[str, list[str]]) -> None:
    (HERE / name).write_text("".join(" ".join([*words, f"({key})"]) + "\n" for key, words in texts.items()))


def sclite(reference: str, hypothesis: str, output: str) -> str:
    command = [SCTK / "sclite", "-r", reference, "trn", "-h", hypothesis, "trn", "-i", "spu_id", "-o", output, "stdout"]
    return subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True).stdout


def find(pattern: str, text: str) -> list[float]:
    match = re.search(pattern, text)
    return [float(group) for group in match.groups()] if match else []


def statistics(alignments: str) -> dict[str, list[float]]:
    command = [SCTK / "sc_stats", "-p", "-t", "mapsswe", "wilc", "sign", "mcn", "-v", "-n", "-"]
    text = subprocess.run(command, cwd=HERE, input=alignments, check=True, capture_output=True, text=True).stdout
    table = text[text.index("McNemar (Sentence Error)") :]
    return {
        "mapsswe": find(r"# segs: (\d+)\).*mean: (\S+)\) \(std dev: (\S+)\) \(Z Stat: (\S+)\)", text),
        "mapsswe_errors": find(r"Totals +\d+ +(\d+) +(\d+)", text),
        "wilcoxon_ranks": find(r"positive ranks = +(\S+)", text) + find(r"negative ranks = +(\S+)", text),
        "sign": find(r"N\(\+\) = +(\d+)", text) + find(r"N\(-\) = +(\d+)", text),
        "mcnemar": find(r"corr +(\d+) +(\d+)\s+.*incorr +(\d+) +(\d+)", table),
    }


def main() -> None:
    draw, reference = random.Random(7), {}
    for speaker in range(10):
        for utterance in range(14):
            words = WORDS[: draw.choice([2, 3, 5, 8])]
            reference[f"spk{speaker}-{utterance:02d}"] = draw.choices(words, k=draw.randint(1, 13))
    write("ref.trn", reference)
    kept, steps = {}, []
    for system, shares in SYSTEMS.items():
        write(f"{system}.trn", {key: corrupt(words, draw.choice(shares), draw) for key, words in reference.items()})
        kept[system] = sclite("ref.trn", f"{system}.trn", "sgml")
        for key, path in re.findall(r'<PATH id="\(([^"]+)\)"[^>]*>\n(.*)\n</PATH>', kept[system]):
            steps.append(f"{system} {key} {''.join(step[0] for step in path.split(':') if step)}".rstrip() + "\n")
    (HERE / "steps.txt").write_text("".join(steps))
    (HERE / "a.sys").write_text(sclite("ref.trn", "a.trn", "sum"))
    for name, text in EMPTY.items():
        (HERE / name).write_text(text)
    (HERE / "empty.sys").write_text(sclite("empty_ref.trn", "empty_hyp.trn", "sum"))
    pairs = {f"{x} {y}": statistics(kept[x] + kept[y]) for x, y in (("a", "b"), ("a", "c"), ("b", "c"))}
    (HERE / "sc_stats.json").write_text(json.dumps(pairs, indent=1) + "\n")


if __name__ == "__main__":
    main()
