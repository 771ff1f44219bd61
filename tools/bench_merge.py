"""What an IHR merge costs: time, error and memory beside a straightforward merge, and what further dampings cost.

    python tools/bench_merge.py --threads 1,2 --out merge.json --markdown
    python tools/bench_merge.py --read merge.json --markdown                  (the tables of an earlier run)
    python tools/bench_merge.py --size tiny --markdown                        (to try the benchmark itself)

The model has the 171 linear maps of a Conformer with attention decoder of 47 M parameters (12 x 256 encoder with macaron
feed-forward 2048, 6 decoder blocks, 5,000 outputs); factors and updates are random, the factors with eigenvalues i^-1.5 and
mean 1, so that absolute and relative damping are the same. The straightforward merge is the authors' release written anew: for
each map two factorisations and two solves in float32, everything resident.

First merges: both solve every map in turn in one process, factors in memory, and a ratio is the time of the reference over ours.
On one thread that is time of the processor, with more it is the wall clock's, which needs a machine that does nothing else.
Errors are relative to float64, the worst of one map of every shape. The floor is the time of the operations that a merge cannot
do without (factorise and solve once) at the measured speed of a square product in float32; "refined" adds what an error of 1e-6
costs where float32 does not reach it: residuals in float64 and a second solve.

Sweeps: one map of every shape, times weighted by how many there are. "stored" has eigenbases in the curvature
(`decompose_blocks`), "tridiagonal" and "eigen" compute theirs, which is counted. "numbers" stands for the norm of the solution
and the predicted increase: what choosing a damping needs, without the solution itself.

Memory: the peak of a merge from files in a fresh process, minus what was there before it. "own" leaves out pages of files that
are mapped while they are read, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from bench_curvature import _status
from bench_merge_cases import MERGES, SWEEP, first_merges, seconds, speeds, sweeps
from bench_merge_data import SIZES, write

from asrcl.adapt.environment import environment
from asrcl.files import read_json, write_json

Row = dict[str, Any]
PARTS = ("first", "sweeps", "memory")


def measure_times(options: argparse.Namespace) -> Row:
    """First merges and sweeps on one number of threads; meant for a process of its own."""
    torch.set_num_threads(int(options.threads))
    size, parts = SIZES[options.size], options.parts.split(",")
    found: Row = {"threads": int(options.threads), "speeds": speeds()}
    if "first" in parts:
        found["first"] = first_merges(size, [float(damping) for damping in options.dampings.split(",")], options.rounds)
    if "sweeps" in parts:
        found["sweeps"] = sweeps(size, options.rounds, options.largest)
    return found


def measure_memory(options: argparse.Namespace) -> Row:
    """Bytes before and at the peak of one merge, and its time; meant for a process of its own."""
    torch.set_num_threads(int(options.threads))
    torch.linalg.cholesky(torch.eye(64))  # what the libraries allocate once
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before, own = _status("VmRSS"), OwnMemory()
    with own:
        took, _ = seconds(lambda: MERGES[options.case](options.folder, float(options.dampings.split(",")[0])))
    return {"before": before, "peak": _status("VmHWM"), "own": own.peak, "seconds": took}


class OwnMemory:
    """Samples the process's own memory (Linux: resident and not a file's) every 5 ms; `peak` is the most above the start."""

    def __enter__(self) -> None:
        self._done, self._start, self.peak = threading.Event(), _status("RssAnon"), 0
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, _status("RssAnon") - self._start)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def measure_write(options: argparse.Namespace) -> Row:
    """The files that merges read."""
    write(SIZES[options.size], options.folder)
    return {"bytes": (options.folder / "curvature.safetensors").stat().st_size}


WORKERS = {"times": measure_times, "memory": measure_memory, "write": measure_write}


def in_process(worker: str, options: argparse.Namespace, **changes: Any) -> Row | None:
    """What a worker finds in a process of its own, which has the number of threads from its start; None if it fails."""
    names = ("rounds", "size", "dampings", "parts", "largest", "threads")
    settings = {name: getattr(options, name) for name in names} | changes
    threads = str(settings["threads"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, __file__, f"--worker={worker}", f"--out={out}"]
        command += [*(f"--{name}={v}" for name, v in settings.items())]
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        done = subprocess.run(command, env={**os.environ, **variables})
        return json.loads(out.read_text()) if done.returncode == 0 else None


def measure(options: argparse.Namespace) -> Row:
    """All parts on all numbers of threads; memory on the first of them."""
    result: Row = {"environment": environment() | {"size": options.size}, "times": [], "memory": {}, "skipped": []}
    first, *_ = threads = options.threads.split(",")
    if set(options.parts.split(",")) & {"first", "sweeps"}:
        for count in threads:
            found = in_process("times", options, threads=count)
            result["times" if found else "skipped"].append(found or f"times on {count} thread(s) failed, see above")
    if "memory" in options.parts.split(","):
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            in_process("write", options, folder=folder, threads=first)
            for case in options.cases.split(","):
                found = in_process("memory", options, folder=folder, case=case, threads=first)
                if found:
                    result["memory"][case] = found
                else:
                    result["skipped"].append(f"memory of {case} failed, see above")
    return result


# ---- tables


def markdown(result: Row) -> str:
    """Tables for docs/benchmarks.md."""
    about = result["environment"]
    parts = [f"{about['processor']}; torch {about['torch']}; size {about['size']}."]
    parts += [table for found in result["times"] for table in _time_tables(found)]
    if result["memory"]:
        parts.append(_memory_table(result["memory"]))
    return "\n\n".join([*parts, *(f"Skipped: {why}" for why in result["skipped"])])


def _time_tables(found: Row) -> list[str]:
    rates = ", ".join(f"{name} {speed / 1e9:.0f} GFLOP/s" for name, speed in found["speeds"].items())
    title = f"{found['threads']} thread(s), products: {rates}"
    tables = [title]
    if "first" in found:
        tables.append(_first_table(found["first"], found["speeds"]))
    if "sweeps" in found:
        tables.append(_sweep_table(found["sweeps"], found["speeds"]["float32"]))
    return tables


def _first_table(rows: Sequence[Row], rate: Row) -> str:
    head = ["damping", "reference, s", "ours, s", "ratio (min-max)", "ratio at the floor", "at the floor, refined"]
    head += ["error of the reference", "error of ours", "a further tau", "refined of maps"]
    lines = []
    for row in rows:
        flops, base = row["flops"], row["reference_seconds"]
        floor = (flops["factorise"] + flops["solve"]) / rate["float32"]
        refined = floor + flops["solve"] / rate["float32"] + flops["solve"] / rate["float64"]
        cells = [f"{row['damping']:g}", f"{base:.2f}", f"{row['seconds']:.2f}", _spread(row["ratio"])]
        cells += [f"{base / floor:.2f}", f"{base / refined:.2f}", f"{row['error_reference']:.1e}", f"{row['error_ours']:.1e}"]
        lines.append([*cells, f"{row['further_tau']:.2%}", f"{row['work']['refined']} of {row['maps']}"])
    return _table(head, lines)


def _sweep_table(rows: Sequence[Row], rate: float) -> str:
    """Ratios to the reference's solve and to ours, each shape and all together, and whole sweeps."""
    total: Row = {"shape": "all", "count": sum(row["count"] for row in rows), "seconds": {}, "stored_error": 0.0, "flops": 0.0}
    complete = set.intersection(*(set(row["seconds"]) for row in rows))
    for row in rows:
        row["flops"] = 2.0 * row["shape"][0] * row["shape"][1] * sum(row["shape"])
        total["stored_error"] = max(total["stored_error"], row["stored_error"])
        total["flops"] += row["count"] * row["flops"]
        for name in complete:
            total["seconds"][name] = total["seconds"].get(name, 0.0) + row["count"] * row["seconds"][name]
    head = ["shape", "maps", "reference solve, ms", "our solve, ms", "stored: a damping, x reference", "floor of that", "x ours"]
    head += ["error", "numbers only, x reference", "tridiagonal: sweep x reference", "x ours", "numbers only"]
    head.append("eigen: sweep x reference")
    return _table([*head, "numbers only"], [_sweep_cells(row, rate) for row in [*rows, total]])


def _sweep_cells(row: Row, rate: float) -> list[str]:
    took, count = row["seconds"], len(SWEEP)
    base, ours = took["reference"], took["solve"]
    shape = row["shape"] if isinstance(row["shape"], str) else " x ".join(map(str, row["shape"]))
    cells = [shape, str(row["count"]), f"{1e3 * base:.1f}", f"{1e3 * ours:.1f}", f"{base / took['stored']:.1f}"]
    cells += [f"{base / (row['flops'] / rate):.1f}", f"{ours / took['stored']:.1f}", f"{row['stored_error']:.1e}"]
    cells.append(f"{base / took['stored_numbers']:.0f}")
    for form in ("tridiagonal", "eigen"):
        if form in took:
            whole, numbers = (took[f"{form}_once"] + count * took[name] for name in (form, f"{form}_numbers"))
            cells.append(f"{count * base / whole:.2f}")
            cells += [f"{count * ours / whole:.2f}"] if form == "tridiagonal" else []
            cells.append(f"{count * base / numbers:.2f}")
        else:
            cells += ["", ""]
    return cells


def _memory_table(found: Row) -> str:
    base = found.get("reference")
    lines = []
    for case, row in found.items():
        share = f"{row['own'] / base['own']:.2f}" if base and base["own"] else ""
        resident = (row["peak"] - row["before"]) / 2**20
        lines.append([case, f"{row['own'] / 2**20:.0f}", share, f"{resident:.0f}", f"{row['seconds']:.1f}"])
    return _table(["merge from files", "own memory, MiB", "of the reference", "with mapped files, MiB", "with reading, s"], lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _spread(ratio: Row) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), default="full")
    parser.add_argument("--threads", default="1", help="numbers of threads, each in a process of its own: 1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dampings", default="10,0.001", help="of the first merges; memory takes the first of them")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of the default")
    parser.add_argument("--cases", default=",".join(MERGES), help="merges whose memory is measured, of the default")
    parser.add_argument("--largest", type=int, default=2048, help="the largest factor whose eigendecomposition is measured")
    parser.add_argument("--scratch", type=Path, help="folder for a gigabyte of files; the system's if not given")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--read", type=Path, help="measure nothing, take this JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables")
    parser.add_argument("--worker", choices=tuple(WORKERS), help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts.split(",") if part not in PARTS]
    unknown += [case for case in options.cases.split(",") if case not in MERGES]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; parts are {', '.join(PARTS)}, cases {', '.join(MERGES)}")
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def main() -> None:
    """Measure or read, then write and print what was asked for."""
    options = parse()
    if options.worker:
        write_json(options.out, WORKERS[options.worker](options))
        return
    result = read_json(options.read) if options.read else measure(options)
    if options.out:
        write_json(options.out, result)
    if options.markdown or not options.out:
        print(markdown(result))


if __name__ == "__main__":
    main()
