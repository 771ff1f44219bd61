r"""How general must the initial model be? Error rates by method over runs that differ in what their initial model has seen.

    for n in 1200 2000; do
        recipes/accents/run.sh --train-initial --methods "initial ft fta ihr separate" scenario.name=accents_first$n \
            scenario.initial.corpus.sizes.train=$n scenario.initial.train.epochs=14
    done
    tools/compare_first_models.py recipes/accents 1200=exp/accents_first1200 2000=exp/accents_first2000 8000=exp/accents

Writes recipes/accents/results/first_models.png and refreshes `<!-- results:first_models -->` in the recipe's README.md. Of
several seeds those that all folders have are taken.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from publish_results import refresh

from asrcl.exceptions import InputError
from asrcl.scoring import find_results
from asrcl.scoring.display.table import markdown, plain
from asrcl.scoring.report.summary import MethodSummary, ScenarioSummary, summarise

METHODS = ("initial", "ft", "fta", "ihr", "separate")


def load(folders: Sequence[str]) -> dict[int, ScenarioSummary]:
    """Summaries by the number of utterances that the initial model has seen, with the same methods and seeds everywhere.

    Raises:
        InputError: a folder without runs, or no seed that all of them have.
    """
    runs = {}
    for word in folders:
        size, _, folder = word.partition("=")
        if not size.isdecimal() or not folder:
            raise InputError(f"{word}: write NUMBER=FOLDER, the number of utterances that the initial model of the runs has seen")
        runs[int(size)] = [run for run in find_results(folder) if run.method in METHODS]
    seeds = set.intersection(*({r.seed for r in found if r.method == m} for found in runs.values() for m in METHODS))
    if not seeds:
        raise InputError(f"{', '.join(folders)}: no seed that all of {', '.join(METHODS)} have in all of them")
    return {size: summarise([run for run in found if run.seed in seeds])[0] for size, found in sorted(runs.items())}


def table(summaries: dict[int, ScenarioSummary]) -> str:
    """Markdown: one row per method, AVG, COV and the probe by initial model."""
    header = ["Method", *(f"{what}, {size:,}" for what in ("AVG", "COV", "probe") for size in summaries)]
    rows = []
    for name in METHODS:
        found = [next((m for m in summary.methods if m.method == name), None) for summary in summaries.values()]
        cells = [_number(m and m.mean("avg")) for m in found] + [_number(m and m.mean("cov"), 1) for m in found]
        rows.append([next(m.label for m in found if m), *cells, *(_number(m and _probe(m)) for m in found)])
    seeds = ", ".join(map(str, next(iter(summaries.values())).methods[0].seeds))
    note = f"AVG and probe in %, COV in %, by the number of utterances that the initial model was trained on; seeds {seeds}."
    return f"{note}\n\n{markdown(plain(header, rows)).strip()}"


def draw(summaries: dict[int, ScenarioSummary], path: Path) -> None:
    """AVG, and the probe, over the size of the initial model's training set; a line per method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    sizes = list(summaries)
    for axes, title, value in zip(panels, ("mean over domains", "never trained on"), (_average, _probe), strict=True):
        for name in METHODS:
            found = [next((m for m in summary.methods if m.method == name), None) for summary in summaries.values()]
            rates = [value(m) if m else math.nan for m in found]
            if not all(map(math.isnan, rates)):
                axes.plot(sizes, rates, marker="o", label=next(m.label for m in found if m))
        axes.set(xscale="log", xlabel="utterances that the initial model has seen", ylabel="WER (%)", title=title)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _average(method: MethodSummary) -> float:
    return method.mean("avg")


def _probe(method: MethodSummary) -> float:
    return float(method.probes[:, -1].mean()) if method.probes.shape[-1] else math.nan


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    recipe, found = Path(sys.argv[1]), load(sys.argv[2:])
    draw(found, recipe / "results" / "first_models.png")
    refresh(recipe / "README.md", "first_models", table(found))
    print(table(found))
