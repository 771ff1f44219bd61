"""Intervals of the accents recipe that resample its few voices in place of its speakers.

    tools/compare_voices.py exp/accents ihr ft fta ewc laplace

Every voice of espeak-ng makes several speakers in every accent, and those resemble each other. Here all speakers of a voice are
drawn or left out together, over all accents and seeds: wider intervals of AVG, and a test of differences for other voices.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from asrcl.scoring import Errors, find_results
from asrcl.scoring.display.table import markdown, plain
from asrcl.scoring.significance.intervals import average_interval, difference_interval


def voice(speaker: str) -> str:
    """`us-m8.2` to `m8`: without the accent and the number of the speaker."""
    return speaker.partition("-")[2].partition(".")[0]


def by_voice(errors: Errors) -> Errors:
    """The same items, grouped by voice."""
    return Errors([replace(item, group=voice(item.group)) for item in errors.items], errors.unit)


def load(folder: str, method: str) -> list[list[Errors]]:
    """Per seed the items of every domain after the last stage, grouped by voice."""
    seeds = [run.final_items() for run in find_results(f"{folder}/{method}")]
    return [[by_voice(part) for part in seed] for seed in seeds if seed is not None]


def main(folder: str, methods: Sequence[str]) -> None:
    """Print AVG of every method, and the first against each."""
    found = {method: load(folder, method) for method in methods}
    rows = []
    for method, seeds in found.items():
        own = average_interval(seeds)
        row = [method, f"{own.estimate:.2f}", f"{own.low:.2f}–{own.high:.2f}"]
        if method != methods[0]:
            against = difference_interval(found[methods[0]], seeds)
            row += [f"{against.estimate:+.2f}", f"{against.low:+.2f} to {against.high:+.2f}", f"{against.p_better:.3f}"]
        rows.append([*row, *[""] * (6 - len(row))])
    first = methods[0]
    print(markdown(plain(["method", "AVG", "CI95", f"{first} minus it", "CI95", f"P({first} better)"], rows)))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
