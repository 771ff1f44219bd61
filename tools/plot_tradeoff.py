r"""What is learned of a new domain against what it costs on a probe: a curve per method over its strength.

    tools/plot_tradeoff.py exp/pretrained_coffee --domains coffee --probe commonvoice --out tradeoff.png \
        --curve "averaging: initial fta_25 fta_50 fta_75 ft" --curve "IHR: ihr_d03 ihr_d1 ihr_d3 ihr_d10" --reference fta_50

Means over seeds after the last stage: word errors on the domain (or the mean over several) across, on the probe the error rate
and, where texts were scored as written, that of the texts as written and the F1 of punctuation. Printed is the table of the same
numbers with 95 % intervals: the probe's speakers are resampled, alike for all methods and seeds; differences are those to the
reference, on the same resamples.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np

from asrcl.exceptions import InputError
from asrcl.scoring import RunResult, count_written, find_results, marks_by_group
from asrcl.scoring.display.table import markdown, plain

mpl.use("Agg")
import matplotlib.pyplot as plt

RESAMPLES, SEED = 2000, 0


@dataclass
class Measured:
    """One method: rates on the domain, and what was counted of every speaker of the probe, added over seeds.

    Attributes:
        label: of tables.
        seeds: number of runs.
        learned: error rate on the domains in percent, mean over seeds and domains.
        counts: `[speakers, 7]`: errors, words, errors and words as written, marks that are right, marks of the reference and of
            the hypothesis.
    """

    label: str
    seeds: int
    learned: float
    counts: np.ndarray


MEASURES = ("WER", "WER as written", "punctuation F1")


def measure(runs: Sequence[RunResult], domains: Sequence[str], probe: str) -> Measured:
    """The runs of one method, a seed each.

    Raises:
        InputError: a run lacks the domain or the probe, or kept no items of it.
    """
    totals: dict[str, np.ndarray] = {}
    learned = []
    for run in runs:
        names = [each.name for each in run.probes]
        if probe not in names or set(domains) - set(run.domains):
            known = ", ".join([*run.domains, *names])
            raise InputError(f"{run.folder}: has no domain {' or '.join(domains)}, or no probe {probe}; it has {known}")
        items = run.probe_items(names.index(probe))
        for place in map(run.domains.index, domains):
            count = run.errors[run.final_stage(place)][place]
            if count is None or items is None:
                where = f"{run.domains[place]} or {probe}"
                raise InputError(f"{run.folder}: {where} was not decoded after the last stage; decode the run again")
            learned.append(100 * count / run.lengths[place])
        assert items is not None
        marks = marks_by_group(items) if items.scoring else {}
        for speaker, own in items.by_group().items():
            written = count_written(own)
            raw = (written.errors, written.length) if written else (0, 0)
            counts = np.array([own.total, own.length, *raw, *marks.get(speaker, (0, 0, 0))], dtype=float)
            totals[speaker] = totals.get(speaker, np.zeros(7)) + counts
    return Measured(runs[0].label, len(runs), float(np.mean(learned)), np.stack([totals[name] for name in sorted(totals)]))


def rates(counts: np.ndarray) -> np.ndarray:
    """The measures in percent, `[..., 3]`, of counts `[..., 7]`; nan where there is nothing to count."""
    errors, words, raw_errors, raw_words, right, reference, hypothesis = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 200 * right / (reference + hypothesis)
        return np.stack([100 * errors / words, 100 * raw_errors / raw_words, f1], axis=-1)


def resampled(measured: Mapping[str, Measured]) -> dict[str, np.ndarray]:
    """Per method `[RESAMPLES, 3]` rates of the probe, the same speakers drawn for all.

    Raises:
        InputError: methods were decoded on different speakers.
    """
    sizes = {len(one.counts) for one in measured.values()}
    if len(sizes) > 1:
        raise InputError("the methods were decoded on different speakers of the probe; decode them alike")
    count = sizes.pop()
    draws = np.random.default_rng(SEED).multinomial(count, [1 / count] * count, RESAMPLES)
    return {name: rates(draws @ one.counts) for name, one in measured.items()}


def table(measured: Mapping[str, Measured], learned: str, probe: str, reference: str) -> str:
    """Rates with intervals, and differences to the reference."""
    drawn = resampled(measured)
    rows = []
    for name, one in measured.items():
        found, cells = rates(one.counts.sum(0)), [one.label, str(one.seeds), f"{one.learned:.2f}"]
        for kind in range(len(MEASURES)):
            low, high = np.quantile(drawn[name][:, kind], [0.025, 0.975])
            apart = np.quantile(drawn[name][:, kind] - drawn[reference][:, kind], [0.025, 0.975])
            difference = found[kind] - rates(measured[reference].counts.sum(0))[kind]
            against = "reference" if name == reference else f"{difference:+.2f} ({apart[0]:+.2f} to {apart[1]:+.2f})"
            cells += [f"{found[kind]:.2f} ({low:.2f}–{high:.2f})", against]
        rows.append(cells)
    against = f"minus {measured[reference].label}"
    columns = [name for what in MEASURES for name in (f"{probe}, {what}", against)]
    return markdown(plain(["Method", "seeds", learned, *columns], rows))


def plot(measured: Mapping[str, Measured], curves: Sequence[tuple[str, list[str]]], learned: str, probe: str, out: Path) -> None:
    """A panel for every measure of the probe."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(14, 4.2), constrained_layout=True)
    for kind, (axis, what) in enumerate(zip(axes, MEASURES, strict=True)):
        for (title, names), marker in zip(curves, "osD^v", strict=False):
            points = np.array([[measured[name].learned, rates(measured[name].counts.sum(0))[kind]] for name in names])
            axis.plot(*points.T, marker=marker, label=title)
            middle = (min(one.learned for one in measured.values()) + max(one.learned for one in measured.values())) / 2
            for name, point in zip(names, points, strict=True):
                side, shift = ("right", -6) if point[0] > middle else ("left", 6)
                label = _short(measured[name].label, title)
                axis.annotate(label, point, textcoords="offset points", xytext=(shift, 5), ha=side, fontsize=8)
        axis.set_xlabel(f"{learned}, WER (%)")
        axis.set_ylabel(f"{probe}, {what} (%)")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(out, dpi=130)


def _short(label: str, title: str) -> str:
    return label.removeprefix(title).strip(" ,") or label


def main() -> None:
    """Draw the picture and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a scenario's runs")
    parser.add_argument("--domains", required=True, help="that were learned: one, or the mean over 'coffee prompts digits'")
    parser.add_argument("--probe", required=True)
    parser.add_argument("--curve", action="append", required=True, help="TITLE: METHOD METHOD ..., in the order of strengths")
    parser.add_argument("--also", default="", help="methods that the table has and the picture has not")
    parser.add_argument("--reference", required=True, help="method that others are held against")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    curves = [(title.strip(), names.split()) for title, _, names in (text.partition(":") for text in options.curve)]
    drawn = [name for _, names in curves for name in names]
    wanted = list(dict.fromkeys([options.reference, *drawn, *options.also.split()]))
    runs = {name: find_results(options.folder / name) for name in wanted}
    if missing := [name for name, found in runs.items() if not found]:
        raise InputError(f"{options.folder}: no results of {', '.join(missing)}; run them, or leave them out")
    domains = options.domains.split()
    learned = domains[0] if len(domains) == 1 else f"mean of {', '.join(domains)}"
    measured = {name: measure(found, domains, options.probe) for name, found in runs.items()}
    plot(measured, curves, learned, options.probe, options.out)
    print(table(measured, learned, options.probe, options.reference))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"plot_tradeoff: {error}")
