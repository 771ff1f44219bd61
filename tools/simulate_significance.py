"""False-positive rates and power of the significance tests, on simulated systems.

    .venv/bin/python tools/simulate_significance.py                       # 10,000 simulations a row: five minutes, one core
    .venv/bin/python tools/simulate_significance.py --simulations 200     # a look

Writes docs/figures/significance.json (every number that docs/significance.md quotes) and docs/figures/power.svg.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from asrcl.files import atomic_path, read_json, write_json
from asrcl.scoring.significance.paired_tests import TESTS
from asrcl.scoring.significance.power import World, power, rejections

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "figures"
NULLS = {
    "no difference": World(utterances=10),
    "no difference, few speakers": World(speakers=8, utterances=50),
    "no difference on average, speakers differ": World(utterances=10, taste=0.5),
    "the same, all of it in one system": World(utterances=10, taste=0.5, lopsided=True),
}
POWERS = {
    "200 utterances, 40 speakers": World(utterances=5),
    "800 utterances, 40 speakers": World(utterances=20),
    "800 utterances, 40 speakers that differ": World(utterances=20, taste=0.3),
}
GAINS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.3]
STYLES = {
    "wilcoxon": ("#0072B2", "o"),
    "mapsswe": ("#D55E00", "s"),
    "bootstrap": ("#009E73", "^"),
    "sign": ("#CC79A7", "v"),
    "mcnemar": ("#7F7F7F", "x"),
}


def measure(simulations: int, power_simulations: int) -> dict[str, Any]:
    """Both tables, with the worlds they were made in."""
    started, nulls, powers = time.perf_counter(), {}, {}
    for name, world in NULLS.items():
        nulls[name] = {"world": asdict(world), "rejections": rejections(world, simulations, seed=1)}
        print(name, nulls[name]["rejections"], f"{time.perf_counter() - started:.0f} s", flush=True)
    for name, world in POWERS.items():
        powers[name] = {"world": asdict(world), "gains": GAINS, "rejections": power(world, GAINS, power_simulations, seed=100)}
        print(name, powers[name]["rejections"], f"{time.perf_counter() - started:.0f} s", flush=True)
    sizes = {"simulations": simulations, "power_simulations": power_simulations, "level": 0.05}
    return {"command": "tools/simulate_significance.py", **sizes, "null": nulls, "power": powers}


def draw(found: dict[str, Any], path: Path) -> None:
    """One panel per world: share of rejections against the relative gain."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "asrcl", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found["power"]), figsize=(10, 3.2), sharey=True, layout="constrained")
    for axis, (name, entry) in zip(axes, found["power"].items(), strict=True):
        for test in TESTS:
            colour, marker = STYLES[test]
            gains = [100 * gain for gain in entry["gains"]]
            axis.plot(gains, [100 * share for share in entry["rejections"][test]], color=colour, marker=marker, ms=4, label=test)
        axis.axhline(5, color="0.6", lw=0.8, ls=":")
        axis.set(title=name, xlabel="errors of b above those of a, % relative")
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("rejections, %")
    axes[0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure unless told to draw what was measured, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=10_000, help="per null")
    parser.add_argument("--power-simulations", type=int, default=1000, help="per point of a power curve")
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--draw-only", action="store_true", help="from the significance.json that is there")
    options = parser.parse_args()
    if not options.draw_only:
        write_json(options.out / "significance.json", measure(options.simulations, options.power_simulations))
    draw(read_json(options.out / "significance.json"), options.out / "power.svg")
    print(options.out / "power.svg")


if __name__ == "__main__":
    main()
