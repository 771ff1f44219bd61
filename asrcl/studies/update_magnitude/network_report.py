"""Table and figure of the small networks, and the table of what tells similar from dissimilar tasks apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from asrcl.scoring.display.figure import new_figure
from asrcl.scoring.display.numbers import NONE, decimal
from asrcl.scoring.display.table import Table, plain
from asrcl.scoring.report.looks import COLOURS, GREY, MARKERS
from asrcl.studies.update_magnitude.networks import MIXED, PIXELS, measures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[dict[str, Any]]
COLUMNS: Final = {
    "average": "average accuracy",
    "task": "accuracy when learned",
    "forgetting": "forgetting",
    "forgetting_max": "forgetting (max)",
}
DRAWN: Final = ("initialised", "frozen", "hybrid")


def sequence_name(kind: str) -> str:
    """What a sequence is called."""
    return "pairs of similar tasks" if kind == MIXED else f"{kind} of {PIXELS} pixels permuted"


def chosen(records: Records, kind: str, method: str) -> list[dict[str, Any]]:
    """The records of a sequence and a method, one for each seed."""
    return [record for record in records if (record["sequence"], record["method"]) == (kind, method)]


def networks_table(records: Records) -> Table:
    """Every sequence and method: the paper's measures, the similarities, and how often all blocks were trained."""
    pairs = dict.fromkeys((record["sequence"], record["method"]) for record in records)
    rows = []
    for kind, method in pairs:
        found = chosen(records, kind, method)
        values = [measures(record["accuracy"]) for record in found]
        said = [value for record in found for value in record.get("similarity", [])]
        trained = [value is None for record in found for value in record.get("trained_blocks", [])]
        measured = [_spread([value[column] for value in values], 1) for column in COLUMNS]
        decided = [_spread(said, 2), f"{sum(trained)} of {len(trained)}"] if said else [NONE, NONE]
        rows.append([sequence_name(kind), method, *measured, *decided])
    return plain(["tasks", "trained", *COLUMNS.values(), "similarity", "stages that train all"], rows)


def cosine_table(records: Records, similar: str, dissimilar: str) -> Table:
    """Per kind of reference: similarities of consecutive tasks in both sequences, and how well they tell these apart."""
    rows = []
    for name in dict.fromkeys(record["method"] for record in records):
        alike, apart = (similarities(records, kind, name) for kind in (similar, dissimilar))
        rows.append([name, _spread(alike, 2), _spread(apart, 2), decimal(separation(alike, apart))])
    return plain(["compared", sequence_name(similar), sequence_name(dissimilar), "told apart"], rows)


def similarities(records: Records, kind: str, method: str) -> list[float]:
    """All similarities of a sequence, over stages and seeds."""
    return [value for record in chosen(records, kind, method) for value in record["similarity"]]


def separation(alike: Sequence[float], apart: Sequence[float]) -> float:
    """The share of pairs in which the similar tasks have the larger value: 1 told apart always, 0.5 by chance."""
    return float((np.array(alike)[:, None] > np.array(apart)).mean())


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    deviation = decimal(float(np.std(values, ddof=1)), digits) if len(values) > 1 else NONE
    return f"{decimal(float(np.mean(values)), digits)} ± {deviation}"


def networks_figure(records: Records, threshold: float) -> Figure:
    """Accuracy when learned and at the end, forgetting, and similarity, by sequence."""
    kinds = list(dict.fromkeys(record["sequence"] for record in records))
    names = ["pairs" if kind == MIXED else kind for kind in kinds]
    figure = new_figure(9.6, 6.4)
    axes = figure.subplots(2, 2, sharex=True)
    titles = ("accuracy on a task when it was learned (%)", "average accuracy at the end (%)", "forgetting (points)")
    for place, column in zip(axes.flat, ("task", "average", "forgetting"), strict=False):
        _lines(place, records, kinds, column)
    last = axes[1, 1]
    look: dict[str, Any] = {"color": COLOURS[2], "marker": MARKERS[2]}
    for number, kind in enumerate(kinds):
        values = similarities(records, kind, "hybrid")
        last.plot(number + np.linspace(-0.12, 0.12, len(values)), values, linestyle="none", markersize=4, alpha=0.7, **look)
    last.axhline(threshold, color=GREY, linestyle="--", linewidth=1.2)
    last.annotate(f"threshold {threshold:g}: below it all blocks are trained", (0.02, threshold), fontsize=8, color="#555555",
                  xycoords=("axes fraction", "data"), xytext=(0, -11), textcoords="offset points")  # fmt: skip
    for place, title in zip(axes.flat, (*titles, "similarity of consecutive tasks"), strict=True):
        place.set_title(title, fontsize=10)
        place.grid(alpha=0.25)
        place.set_xticks(range(len(kinds)), names)
    for place in axes[1]:
        place.set_xlabel("pixels that a task permutes; pairs: of similar tasks")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return figure


def _lines(axes: Axes, records: Records, kinds: Sequence[str], column: str) -> None:
    """Mean and standard deviation over seeds of every method that is drawn; the sequence of pairs stands apart."""
    for number, method in enumerate(DRAWN):
        found = [[measures(record["accuracy"])[column] for record in chosen(records, kind, method)] for kind in kinds]
        means = np.array([np.mean(values) for values in found])
        spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in found])
        places = np.arange(len(kinds)) + 0.06 * (number - 1)
        look = {"color": COLOURS[number], "marker": MARKERS[number]}
        style: dict[str, Any] = {**look, "markersize": 5, "linewidth": 1.6, "capsize": 2}
        plain_ones = [place for place, kind in enumerate(kinds) if kind != MIXED]
        apart = [place for place, kind in enumerate(kinds) if kind == MIXED]
        for part in (plain_ones, apart):
            label = {"frozen": "frozen: last block and head"}.get(method, method) if part is plain_ones else None
            axes.errorbar(places[part], means[part], spread[part], label=label, **style)
