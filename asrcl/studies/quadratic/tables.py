"""The tables of the study: mean and standard deviation over seeds, beside what was published.

Each function gives a caption and a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from scipy import stats
from torch import Tensor

from asrcl.scoring.display.numbers import NONE, decimal
from asrcl.scoring.display.table import Table, plain
from asrcl.studies.quadratic.landscape import MODELS, TrustRegion
from asrcl.studies.quadratic.monitor import KEEPINGS
from asrcl.studies.quadratic.training import Trajectory

Found = dict[str, Tensor]
"""Name of a measure -> its value for each seed, `[S]`."""
Captioned = tuple[str, Table]

PUBLISHED_TABLE: Final[dict[tuple[str, str], tuple[tuple[float, float], ...]]] = {
    ("Final", "accumulate"): ((0.688, 0.053), (0.654, 0.051), (3.382, 1.015), (6.354, 0.334)),
    ("Final", "refresh"): ((0.742, 0.037), (0.725, 0.025), (0.056, 0.064), (5.522, 0.593)),
    ("Trajectory", "accumulate"): ((0.668, 0.053), (0.662, 0.026), (2.845, 0.872), (6.379, 0.571)),
    ("Trajectory", "refresh"): ((0.710, 0.069), (0.705, 0.021), (0.407, 0.134), (5.825, 0.392)),
}
"""Table 1 of q2reg's notes, commit 3945073 (7 January 2026): (mean, ±) of All Acc, Reg Acc, kappa loss, kappa grad."""
PUBLISHED_SEEDS: Final = 3
TABLE1: Final = ("all", "stored", "{}.kappa", "{}.gamma")


def published_table(runs: Mapping[str, Trajectory]) -> Captioned:
    """Our runs of the published setting beside the published Table 1."""
    rows = []
    for (part, keeping), published in PUBLISHED_TABLE.items():
        run = runs[keeping]
        ours = [(run.final if part == "Final" else run.average)(name.format(keeping)) for name in TABLE1]
        gaps = [(abs(float(own.mean()) - mean), bar, float(own.std())) for own, (mean, bar) in zip(ours, published, strict=True)]
        inside = sum(gap <= bar for gap, bar, _ in gaps)
        touching = sum(gap <= bar + own for gap, bar, own in gaps)
        theirs = [f"{mean:.3f} ± {bar:.3f}" for mean, bar in published]
        rows.append([f"{part}, {keeping}: published", str(PUBLISHED_SEEDS), *theirs, NONE, NONE])
        here = [str(len(ours[0])), *map(spread, ours), f"{inside} of 4", f"{touching} of 4"]
        rows.append([f"{part}, {keeping}: here", *here])
    gain = {name: paired(runs["refresh"].final(name), runs["accumulate"].final(name)) for name in ("all", "stored")}
    caption = (
        "The published setting (Adam 0.01, weight decay, 100 steps a task, one cosine, strength 1, full Fisher information). "
        "All Acc: accuracy on the test sets of all tasks met; Reg Acc: on stored samples; kappa: mean of actual minus predicted "
        "increase of a stored sample's loss; gamma: mean norm of actual minus predicted gradient (kappa grad in the source). "
        "Trajectory: mean over the run from the second task on. Mean ± standard deviation over seeds (the source does not say "
        "which deviation); inside: means within the published bars; overlap: bars that overlap. "
        f"Refreshing minus accumulating at the end, same seeds: All Acc {gain['all']}, Reg Acc {gain['stored']}."
    )
    return caption, plain(["", "seeds", "All Acc", "Reg Acc", "kappa", "gamma", "inside", "overlap"], rows)


def mode_table(runs: Mapping[str, Mapping[str, Trajectory]]) -> Captioned:
    """Both settings in four modes."""
    names = ("all", "past", "stored", "accumulate.kappa", "accumulate.gamma", "refresh.kappa", "refresh.gamma", "distance")
    rows = [
        [f"{setting}: {mode}", *(spread(run.final(name)) for name in names)]
        for setting, modes in runs.items()
        for mode, run in modes.items()
    ]
    gains = [
        f"{setting}, {keeping} {paired(modes[keeping].final('all'), modes['sequential'].final('all'))}"
        for setting, modes in runs.items()
        for keeping in KEEPINGS
    ]
    caption = (
        "Four trajectories in both settings, after the last task. Both approximations are measured along each, whatever it "
        "uses. distance: from the end of the task before. All Acc minus that of sequential, same seeds: "
        f"{'; '.join(gains)}. {over(runs)}"
    )
    header = ["", "All", "Past", "Reg", "kappa, accum.", "gamma, accum.", "kappa, refr.", "gamma, refr.", "distance"]
    return caption, plain(header, rows)


def fidelity_table(runs: Mapping[str, Mapping[str, Trajectory]]) -> Captioned:
    """Fidelity of the accumulated and the refreshed approximation by trajectory."""
    rows = []
    for setting, modes in runs.items():
        for mode, run in modes.items():
            for keeping in KEEPINGS:
                final = {name: run.final(f"{keeping}.{name}") for name in ("kappa", "gamma", "alpha", "rho")}
                along = run.measures[f"{keeping}.kappa"]
                rows.append([
                    f"{setting}: {mode}",
                    keeping,
                    spread(final["kappa"]),
                    spread(along.abs().mean(0)),
                    spread(final["gamma"]),
                    spread(run.average(f"{keeping}.gamma")),
                    spread(final["alpha"]),
                    decimal(float(final["rho"].median())),
                ])  # fmt: skip
    caption = (
        "How faithful an approximation is, by trajectory: accumulated ones, which go stale, and refreshed ones. |kappa|: mean "
        "over the run of the magnitude of kappa, whose signs cancel along a run; alpha: cosine of actual and predicted "
        f"gradient; rho: actual over predicted increase, median over seeds. {over(runs)}"
    )
    header = ["", "approximation", "kappa", "|kappa| along", "gamma", "gamma along", "alpha", "rho"]
    return caption, plain(header, rows)


def grid_table(grid: Mapping[tuple[str, ...], Found]) -> Captioned:
    """Kinds and structures of curvature, accumulated and refreshed."""
    rows = []
    for (kind, structure, keeping), found in grid.items():
        measures = ("kappa", "gamma_mean", "gamma", "alpha") if kind in ("fisher", "empirical") else ("kappa", "gamma_mean")
        names = ["past", "stored", *(f"{keeping}.{measure}" for measure in measures)]
        texts = [spread(found[name]) for name in names] + [NONE] * (4 - len(measures))
        rows.append([f"{kind}, {structure}", keeping, *texts])
    caption = (
        "Kinds and structures of curvature in the published setting, after the last task; each row is a run that is regularised "
        "with it and measured by it. fisher is the generalised Gauss-Newton matrix, too; blocks and diagonals of this network's "
        "Hessian are those of fisher. gamma mean: norm of the mean actual minus the mean predicted gradient; gamma and alpha "
        "exist where a single sample has a curvature. hessian may be indefinite: then the penalty has no lower bound. "
        f"{over(grid)}"
    )
    return caption, plain(["curvature", "approximation", "Past", "Reg", "kappa", "gamma mean", "gamma", "alpha"], rows)


def strength_table(found: Mapping[tuple[str, str, float], Found]) -> Captioned:
    """Accuracy against strength, for both optimisers."""
    columns = list(dict.fromkeys((setting, keeping) for setting, keeping, _ in found))
    rows = [
        [f"{strength:g}", *(spread(found[*column, strength]["all"]) for column in columns)]
        for strength in dict.fromkeys(strength for _, _, strength in found)
    ]
    caption = f"All Acc after the last task against the strength of the penalty, in both settings. {over(found)}"
    return caption, plain(["strength", *(f"{setting}: {keeping}" for setting, keeping in columns)], rows)


def trust_table(regions: Mapping[str, TrustRegion]) -> Captioned:
    """How far predictions hold, against how far training goes."""
    rows = []
    for setting, region in regions.items():
        for name in MODELS:
            radius, near, far = region.radius(name), region.distances[0], region.distances[-1]
            text = f"{'> ' if radius.median() >= far else ''}{decimal(float(radius.median()))}"
            rows.append([setting, name, text, spread(region.steps, 2)])
    caption = (
        "Distance up to which the predicted increase of the old tasks' loss is within a factor of two of the actual one, on "
        "the straight line to the end of the next task of the sequential run (means over tasks, median over seeds; 0: not even "
        f"at the shortest, {decimal(float(near))}), and how long that task's step is. {over(regions)}"
    )
    return caption, plain(["setting", "prediction", "within a factor 2 up to", "length of a task's step"], rows)


def landscape_table(ends: Mapping[str, Found]) -> Captioned:
    """Sharpness at the end, and drift of the curvature from task to task."""
    rows = [
        [
            mode,
            *(spread(found[name][-1], digits) for name, digits in (("sharpness", 2), ("trace", 2), ("rank", 0))),
            *(spread(found[name].mean(0), 2) for name in ("trace_ratio", "overlap")),
        ]
        for mode, found in ends.items()
    ]
    caption = (
        "The published setting. Hessian of the mean loss of the last task's training set at its end: largest eigenvalue, "
        "trace, and number of eigenvalues above 1e-6 of the largest. Fisher information of the stored samples of earlier tasks "
        "from one anchor to the next, mean over tasks: trace, new over old, and overlap of up to 50 leading directions. "
        f"{over(ends)}"
    )
    return caption, plain(["trajectory", "sharpness", "trace", "rank", "trace ratio", "overlap"], rows)


def projection_table(held: Mapping[str, tuple[Mapping[str, Found], Found]]) -> Captioned:
    """Penalties with and without their linear terms, the spectral override and hard projections, in each setting."""
    rows = [
        [
            f"{setting}: {name}",
            decimal(float(found["directions"].mean()), 0) if "directions" in found else NONE,
            *(spread(found[key]) for key in ("all", "past", "current", "stored")),
            spread(found["moved"], 2) if found["moved"].mean() > 0.01 else f"{float(found['moved'].max()):.0e}",
        ]
        for setting, (holders, _) in held.items()
        for name, found in holders.items()
    ]
    lost = [
        f"{float(leaks['in_turn'].mean()):.1%} of its length in those of the first anchor ({setting}; off the common basis, "
        f"{float(leaks['common'].mean()):.0e})"
        for setting, (_, leaks) in held.items()
    ]
    caption = (
        "What holds the weights, after the last task. and gradient: the quadratic keeps the linear "
        "term at its anchor. moved: distance from the end of the first task. "
        "Projections take from every step, after the optimiser, its part in one basis of all anchors' directions (their "
        "number in the last task: directions). Projected off one anchor's directions after the other's instead, the last step "
        f"of the free run keeps {' and '.join(lost)}. {over(dict(held[next(iter(held))][0]))}"
    )
    return caption, plain(["held by", "directions", "All", "Past", "Curr.", "Reg", "moved"], rows)


def spread(values: Tensor, digits: int = 3) -> str:
    """Mean ± standard deviation (n - 1) over seeds."""
    return f"{decimal(float(values.mean()), digits)} ± {decimal(float(values.std()), digits)}"


def paired(first: Tensor, second: Tensor, digits: int = 3) -> str:
    """The mean difference over seeds with Student's 95 % interval."""
    gap = first - second
    half = float(gap.std()) / math.sqrt(len(gap)) * float(stats.t.ppf(0.975, len(gap) - 1))
    low, high = (decimal(float(gap.mean()) + sign * half, digits, signed=True) for sign in (-1, 1))
    return f"{decimal(float(gap.mean()), digits, signed=True)} ({low} to {high})"


def over(found: object) -> str:
    """How many seeds results are means of."""
    while isinstance(found, Mapping):
        found = next(iter(found.values()))
    if isinstance(found, Trajectory):
        found = found.final("all")
    elif isinstance(found, TrustRegion):
        found = found.steps
    assert isinstance(found, torch.Tensor)
    return f"Mean ± standard deviation over {found.shape[-1]} seeds."
