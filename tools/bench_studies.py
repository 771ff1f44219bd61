"""What a study gains from training its seeds side by side: beside a Python loop over seeds that does the same steps.

    python tools/bench_studies.py --case plasticity --out studies.json --markdown

Every round runs all rows, one after the other in one process; shown is the median over rounds of the seconds for all seeds, and
their ratio to the first row, with the smallest and the largest. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asrcl.adapt.environment import environment
from asrcl.files import write_json
from asrcl.studies.plasticity.networks import Networks, generator_of
from asrcl.studies.plasticity.regularisers import Plain
from asrcl.studies.plasticity.streams import stream_of
from asrcl.studies.plasticity.training import Training, learn
from asrcl.studies.quadratic.networks import Perceptrons
from asrcl.studies.quadratic.tasks import sine_bands
from asrcl.studies.quadratic.training import PUBLISHED, Plan, train

Row = dict[str, Any]
Runs = dict[str, Callable[[], Any]]


def plasticity(seeds: int, steps: int) -> Runs:
    """Single samples of permuted digits, learned by networks with L2: side by side, one by one, and as modules by autograd."""
    stream, widths, how, decay = stream_of("permuted_digits", None), (64, 100, 100, 100, 10), Training(), 1e-3
    pairs = [stream.task(0, seed) for seed in range(seeds)]
    samples, labels = torch.stack([x[:steps] for x, _ in pairs]), torch.stack([y[:steps] for _, y in pairs])

    def fresh() -> Networks:
        return Networks(widths, [generator_of(seed) for seed in range(seeds)])

    def together() -> None:
        learn(fresh(), Plain(decay=decay), samples, labels, how)

    def alone() -> None:
        for seed in range(seeds):
            own = Networks(widths, [generator_of(seed)])
            learn(own, Plain(decay=decay), samples[seed : seed + 1], labels[seed : seed + 1], how)

    def modules() -> None:
        for seed in range(seeds):
            module = fresh().member(seed)
            optimizer = torch.optim.SGD(module.parameters(), lr=how.rate, weight_decay=decay)
            for x, y in zip(samples[seed].split(1), labels[seed].split(1), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x), y).backward()
                optimizer.step()

    return {
        "side by side": together,
        "the same, a loop over seeds": alone,
        "modules and autograd, a loop over seeds": modules,
    }


def quadratic(seeds: int, steps: int) -> Runs:
    """Three sine bands with a penalty and all that is measured along the way: side by side, and one by one."""
    how, plan = replace(PUBLISHED, steps=max(1, steps // 3)), Plan("regularised", "refresh")

    def run(numbers: Sequence[int]) -> None:
        train(sine_bands(numbers, tasks=3), Perceptrons(numbers), numbers, how, plan)

    def alone() -> None:
        for seed in range(seeds):
            run([seed])

    return {"side by side": lambda: run(range(seeds)), "the same, a loop over seeds": alone}


CASES: dict[str, Callable[[int, int], Runs]] = {"plasticity": plasticity, "quadratic": quadratic}


def measure(case: str, seeds: int, steps: int, rounds: int) -> list[Row]:
    """Rows of one case for a number of seeds."""
    runs = CASES[case](seeds, steps)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    first = next(iter(times.values()))
    rows = []
    for name, spent in times.items():
        ratios = sorted(own / reference for own, reference in zip(spent, first, strict=True))
        row = {"case": case, "seeds": seeds, "steps": steps, "way": name, "seconds": statistics.median(spent)}
        rows.append(row | {"ratio": [statistics.median(ratios), ratios[0], ratios[-1]]})
    return rows


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| case | seeds | way | µs per step of all seeds | times side by side |", "|---|---:|---|---:|---:|"]
    for row in rows:
        median, low, high = row["ratio"]
        each = 1e6 * row["seconds"] / row["steps"]
        lines.append(f"| {row['case']} | {row['seeds']} | {row['way']} | {each:,.0f} | {median:.1f} ({low:.1f}–{high:.1f}) |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print or write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="plasticity")
    parser.add_argument("--seeds", default="5,30", help="numbers of seeds, with commas")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seeds in options.seeds.split(",") for row in measure(options.case, int(seeds), options.steps, options.rounds)]
    if options.out:
        write_json(options.out, {"environment": environment(), "rows": rows})
    if options.markdown or not options.out:
        print(table(rows))


if __name__ == "__main__":
    main()
