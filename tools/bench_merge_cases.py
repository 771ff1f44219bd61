"""What `bench_merge` measures: merges of all maps, and sweeps of damping over one map of every shape."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_merge_data import Map, Size, curvature, maps, weights
from safetensors import safe_open
from torch import Tensor

from asrcl.curvature import Curvature, kron
from asrcl.curvature.blocks import KroneckerBlock
from asrcl.curvature.solver import Solver, Sweep

Row = dict[str, Any]
SWEEP = tuple(float(damping) for damping in torch.logspace(-2, 2, 20, dtype=torch.float64))
"""Dampings of a sweep."""


def reference(G_OO: Tensor, A_II: Tensor, delta_OI: Tensor, damping: float) -> Tensor:
    """The solve of the authors' release, written anew: both factors damped alike and factorised, all in float32."""
    damped = [(M_DD + M_DD.mT) / 2 + damping * torch.eye(len(M_DD)) for M_DD in (G_OO, A_II)]
    left_OI = torch.cholesky_solve(delta_OI, torch.linalg.cholesky(damped[0]))
    return torch.cholesky_solve(left_OI.mT, torch.linalg.cholesky(damped[1])).mT


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Time of a call, and what it gave: of the processor on one thread (others hardly disturb it), else by the wall clock."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    result = run()
    return clock() - start, result


def speeds() -> dict[str, float]:
    """Operations per second of a square product in float32 and float64."""
    found = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        X = torch.randn(1536, 1536, dtype=dtype)
        X @ X
        found[name] = 2 * 1536**3 / min(seconds(lambda X=X: X @ X)[0] for _ in range(5))
    return found


def first_merges(size: Size, dampings: Sequence[float], rounds: int) -> list[Row]:
    """Reference and ours on every map in turn, once a round, for every damping; errors for one map of every shape."""
    held, deltas = curvature(size), {name: delta for name, _, delta in weights(size)}
    return [_first_merge(size, held, deltas, damping, rounds) for damping in dampings]


def _first_merge(size: Size, held: Curvature, deltas: dict[str, Tensor], damping: float, rounds: int) -> Row:
    totals: list[tuple[float, float, float]] = []
    errors: dict[str, list[float]] = {"reference": [], "ours": []}
    seen: set[torch.Size] = set()
    for number in range(rounds):
        solver, spent = Solver(damping, "absolute"), [0.0, 0.0, 0.0]
        solver.expect(held.blocks)
        for place, (key, block) in enumerate(held.blocks.items()):
            assert isinstance(block, KroneckerBlock)
            delta = deltas[key.name]
            G_OO, A_II = block.output.matrix, block.input.matrix  # type: ignore[attr-defined] # dense
            runs = [lambda: reference(G_OO, A_II, delta, damping), lambda: solver.solve(block, delta, key)]  # noqa: B023
            found: list[Tensor] = [delta, delta]
            for which in (0, 1) if (place + number) % 2 else (1, 0):
                took, found[which] = seconds(runs[which])
                spent[which] += took
            spent[2] += seconds(lambda: 0.7 * found[1])[0]  # noqa: B023
            if not number and delta.shape not in seen:
                seen.add(delta.shape)
                exact = kron.solve(G_OO, A_II, delta, damping, "absolute")
                for name, result in zip(errors, found, strict=True):
                    errors[name].append(float((result.double() - exact).norm() / exact.norm()))
        totals.append((spent[0], spent[1], spent[2]))
    base, ours, tau = (statistics.median(column) for column in zip(*totals, strict=True))
    ratios = [first / second for first, second, _ in totals]
    row: Row = {"damping": damping, "maps": len(held.blocks), "rounds": rounds, "reference_seconds": base, "seconds": ours}
    row |= {"ratio": _spread(ratios), "further_tau": tau / ours, "work": vars(solver.work)}
    return row | {f"error_{name}": max(values) for name, values in errors.items()} | {"flops": _flops(maps(size))}


def _flops(found: Sequence[Map]) -> dict[str, float]:
    factorised, solved = (sum(column) for column in zip(*(each.solve_flops() for each in found), strict=True))
    return {"factorise": factorised, "solve": solved}


def sweeps(size: Size, rounds: int, largest: int) -> list[Row]:
    """For one map of every shape: a solve, further dampings in stored bases, and sweeps without them."""
    stored, plain = curvature(size, decomposed=True), curvature(size)
    counts, rows, seen = Counter(each.shape for each in maps(size)), [], set()
    for (key, block), (_, _, delta) in zip(plain.blocks.items(), weights(size), strict=True):
        shape = tuple(delta.shape)
        if shape not in seen:
            seen.add(shape)
            row = _sweep(block, stored.blocks[key], delta, rounds, max(shape) <= largest)
            rows.append({"shape": list(shape), "count": counts[shape]} | row)
    return rows


def _sweep(block: Any, stored: Any, delta: Tensor, rounds: int, decompose: bool) -> Row:
    times: dict[str, list[float]] = {}
    sweep = Sweep(stored, delta)
    forms = ("tridiagonal", "eigen") if decompose else ("tridiagonal",)
    for number in range(rounds):
        damping = 10 * (1 + 1e-9 * number)  # another one, or the last solution would be given again
        runs: dict[str, Callable[[], Any]] = {
            "reference": lambda: reference(block.output.matrix, block.input.matrix, delta, damping),  # noqa: B023
            "solve": lambda: Solver(damping, "absolute").solve(block, delta),  # noqa: B023
            "stored": lambda: sweep.solution(damping, "absolute"),  # noqa: B023
            "stored_numbers": lambda: (sweep.norm(damping, "absolute"), sweep.predicted(damping, "absolute")),  # noqa: B023
        }
        for name, run in runs.items():
            times.setdefault(name, []).append(seconds(run)[0])
    for form in forms:
        made, fresh = seconds(lambda form=form: Sweep(block, delta, form))
        times[f"{form}_once"] = [made]
        times[form] = [seconds(lambda d=d: fresh.solution(d, "absolute"))[0] for d in SWEEP]  # noqa: B023
        pairs = [seconds(lambda d=d: (fresh.norm(d, "absolute"), fresh.predicted(d, "absolute")))[0] for d in SWEEP]  # noqa: B023
        times[f"{form}_numbers"] = pairs
        last = kron.solve(block.output.matrix, block.input.matrix, delta, SWEEP[-1], "absolute")
        times[f"{form}_error"] = [float((fresh.solution(SWEEP[-1], "absolute").double() - last).norm() / last.norm())]
    exact = kron.solve(block.output.matrix, block.input.matrix, delta, 1.0, "absolute")
    error = float((sweep.solution(1.0, "absolute").double() - exact).norm() / exact.norm())
    return {"seconds": {name: statistics.median(found) for name, found in times.items()}, "stored_error": error}


# ---- whole merges from files, each in a process of its own


def merge_reference(folder: Path, damping: float) -> None:
    """Everything resident, as the release does: factors, both models, the merged one."""
    held = Curvature.load(folder, lazy=False)
    models = [_read(folder / f"{which}.safetensors") for which in ("old", "new")]
    merged = {}
    for key, block in held.blocks.items():
        assert isinstance(block, KroneckerBlock)
        old, delta = models[0][key.name], models[1][key.name] - models[0][key.name]
        turned = reference(block.output.matrix, block.input.matrix, delta, damping)  # type: ignore[attr-defined] # dense
        merged[key.name] = old + delta.norm() / turned.norm() * turned


def merge_layers(folder: Path, damping: float) -> None:
    """The solver, one map in memory after the other; nothing is written."""
    solver, blocks = Solver(damping, "absolute"), Curvature.load(folder).blocks
    solver.expect(blocks)
    with safe_open(folder / "old.safetensors", "pt") as old_file, safe_open(folder / "new.safetensors", "pt") as new_file:
        for key in blocks:
            old = old_file.get_tensor(key.name)
            delta = new_file.get_tensor(key.name) - old
            turned = solver.solve(blocks[key], delta, key)
            old.add_(turned, alpha=float(delta.norm() / turned.norm()))


def merge_whole(folder: Path, damping: float) -> None:
    """`asrcl.merge.merge` from file to file."""
    from asrcl.merge import merge

    models = (folder / "old.safetensors", folder / "new.safetensors")
    merge(*models, method="ihr", curvature=Curvature.load(folder), damping=damping, damping_kind="absolute")


MERGES: dict[str, Callable[[Path, float], None]] = {
    "reference": merge_reference,
    "layers": merge_layers,
    "asrcl.merge": merge_whole,
}
"""From the files of `bench_merge_data.write`; a new way of merging is one entry."""


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)


def _spread(values: Sequence[float]) -> Row:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
