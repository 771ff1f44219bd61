"""What curvature costs: time and memory of forward + backward + factors, beside a plain training pass on the same batches.

    python tools/bench_curvature.py --models toy,widths --threads 1,2 --out curvature.json --markdown
    python tools/bench_curvature.py --device cuda --models toy,widths,paper --out curvature_cuda.json --markdown
    python tools/bench_curvature.py --read curvature.json --markdown          (the table of an earlier run)
    python tools/bench_curvature.py --accuracy --models ""                    (only what the cheap variants lose)

Every round runs each case on 1 and on B equal batches, one case after the other in one process, and B plain passes (forward,
backward with weight gradients). A ratio is (time of B - time of 1) / (B - 1) over the plain time of one batch, so that what a
call costs once (hashing the model, finishing the factors, setting a peer up) stands apart, as `fixed_seconds`. Shown is the
median over the rounds with the smallest and the largest. CPU time is that of the process, and the one to trust on a shared
machine with one thread; with several it includes threads that wait for others. Cuda is timed by the wall clock between two
synchronisations.

The floor is what a case hardly goes below: the measured pass with gradients of activations only, plus its products at the speed
of the plain pass (symmetric ones at half of a GEMM). Processors run large products faster than the rest of a model, so that a
case may lie below its floor all the same.

Memory is measured in a fresh process for every case: the peak of the resident set over three batches, minus the resident set
before them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_accuracy import accuracy, accuracy_table
from bench_cases import CASES, factor_bytes, plain
from bench_models import Work, build, products_of
from bench_peers import Run

from asrcl.adapt.environment import environment
from asrcl.files import read_json, write_json

MODELS = ("toy", "widths", "paper")
Row = dict[str, Any]


@dataclass(frozen=True)
class Clock:
    """Reads CPU and wall time in seconds; on cuda only after all work has ended."""

    device: str

    def time(self, run: Run, batches: int) -> tuple[float, float]:
        """CPU and wall seconds of `run(batches)`."""
        gc.collect()
        self._settle()
        cpu, wall = time.process_time(), time.perf_counter()
        run(batches)
        self._settle()
        return time.process_time() - cpu, time.perf_counter() - wall

    def _settle(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def prepare(names: Sequence[str], work: Work) -> tuple[dict[str, Run], dict[str, int], list[Row]]:
    """Get cases ready and run each once: the runs, the bytes of their factors, and what is skipped and why."""
    runs, sizes, skipped = {}, {}, []
    for name in names:
        try:
            run = CASES[name].prepare(work)
            sizes[name] = factor_bytes(run(1))
            runs[name] = run
        except Exception as error:  # a library may fail in any way; the other cases go on
            reason = f"{type(error).__name__}: {error}"
            print(f"skipped {name}: {reason}", file=sys.stderr)
            skipped.append({"case": name, "reason": reason})
    return runs, sizes, skipped


def measure_times(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of one model on one number of threads."""
    torch.set_num_threads(int(options.threads))
    work = build(options.models, options.size, options.device)
    about, shares = _describe(work)
    about |= {"model": options.models, "threads": int(options.threads), "device": options.device}
    names = list(dict.fromkeys(["activations", *options.cases.split(",")]))
    runs, sizes, skipped = prepare(names, work)
    rounds = _rounds(options, work, runs)
    seconds = statistics.median(found["plain"]["seconds"] for found in rounds)
    about |= {"plain_seconds": seconds, "plain_items_per_second": len(work.batch) / seconds}
    rows = [about | _row(name, rounds, len(work.batch)) | {"factor_bytes": sizes[name]} for name in runs]
    cuda = options.device.startswith("cuda")
    base = next(row for row in rows if row["case"] == "activations")["ratio_wall" if cuda else "ratio_cpu"]["median"]
    for row in rows:
        row["floor"] = base + shares[row["case"]] if row["case"] in shares else None
        row["memory"] = _cuda_memory(work, runs[row["case"]]) - _cuda_memory(work, plain(work)) if cuda else None
    return {"rows": rows, "skipped": [{"model": options.models} | row for row in skipped]}


def _describe(work: Work) -> tuple[Row, dict[str, float]]:
    """Facts about the model, and the products of every case relative to those of a plain pass."""
    products = products_of(work)
    about = {"linear_maps": len(products.weights), "largest_activation_bytes": products.largest_activation}
    return about, {name: case.products(products) for name, case in CASES.items() if case.products}


def _rounds(options: argparse.Namespace, work: Work, runs: dict[str, Run]) -> list[dict[str, dict[str, float]]]:
    """What every round found for every case; the order of the cases moves on by one from round to round."""
    training, clock, rounds = plain(work), Clock(options.device), []
    training(1)
    for number in range(options.rounds):
        base = [seconds / options.batches for seconds in clock.time(training, options.batches)]
        found = {"plain": {"seconds": base[1]}}
        first = number % len(runs)
        for name in [*runs][first:] + [*runs][:first]:
            one, many = clock.time(runs[name], 1), clock.time(runs[name], options.batches)
            found[name] = _ratios(one, many, base, options.batches)
        rounds.append(found)
        where = f"{options.models}, {options.threads} thread(s)"
        print(f"{where}: round {number + 1} of {options.rounds}", file=sys.stderr)
    return rounds


def _ratios(one: Sequence[float], many: Sequence[float], base: Sequence[float], batches: int) -> dict[str, float]:
    each = [(long - short) / (batches - 1) for short, long in zip(one, many, strict=True)]
    return {
        "ratio_cpu": each[0] / base[0],
        "ratio_wall": each[1] / base[1],
        "fixed_seconds": one[1] - each[1],
        "seconds": each[1],
    }


def _row(name: str, rounds: Sequence[dict[str, dict[str, float]]], items: int) -> Row:
    row: Row = {"case": name, "title": CASES[name].title, "rounds": len(rounds)}
    for key in ("ratio_cpu", "ratio_wall", "fixed_seconds", "seconds"):
        values = [found[name][key] for found in rounds]
        row[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return row | {"items_per_second": items / row["seconds"]["median"]}


def _cuda_memory(work: Work, run: Run) -> int:
    work.model.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(3)
    return torch.cuda.max_memory_allocated() - before


def measure_memory(options: argparse.Namespace) -> dict[str, int]:
    """Bytes of the resident set before and at the peak of one case; meant for a process of its own."""
    torch.set_num_threads(int(options.threads))
    work = build(options.models, options.size, options.device)
    run = plain(work) if options.cases == "plain" else CASES[options.cases].prepare(work)
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    before = _status("VmRSS")
    run(3)
    return {"before": before, "peak": _status("VmHWM")}


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; elsewhere the peak that `getrusage` knows (kilobytes, on macOS bytes)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


WORKERS = {"times": measure_times, "memory": measure_memory}


def in_process(worker: str, options: argparse.Namespace, **changes: Any) -> Any:
    """What a worker finds in a process of its own, which has the number of threads from its start; None if it fails."""
    settings = {name: getattr(options, name) for name in ("rounds", "batches", "size", "device", "cases")} | changes
    threads = str(changes["threads"])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, __file__, f"--worker={worker}", f"--out={out}", *flags]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads})
        return json.loads(out.read_text()) if done.returncode == 0 else None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All models on all numbers of threads, and the memory of every case on the first of them."""
    rows: list[Row] = []
    skipped: list[Row] = []
    for model in filter(None, options.models.split(",")):
        if model == "paper" and not (options.device.startswith("cuda") or options.force):
            skipped.append({"model": model, "case": "all", "reason": "47 M parameters; give --device cuda or --force"})
            continue
        peaks: dict[str, Row | None] = {}
        for threads in options.threads.split(","):
            found = in_process("times", options, models=model, threads=threads)
            if found is None:
                skipped.append({"model": model, "case": "all", "reason": f"failed on {threads} thread(s), see above"})
                continue
            skipped += [row for row in found["skipped"] if row not in skipped]
            if options.memory and not peaks and not options.device.startswith("cuda"):
                names = ["plain", *(row["case"] for row in found["rows"])]
                peaks = {name: in_process("memory", options, models=model, threads=threads, cases=name) for name in names}
            rows += [_with_memory(row, peaks) for row in found["rows"]]
    return {"environment": _environment(options), "rows": rows, "skipped": skipped}


def _with_memory(row: Row, peaks: dict[str, Row | None]) -> Row:
    mine, base = peaks.get(row["case"]), peaks.get("plain")
    if not (mine and base):
        return row
    above = (mine["peak"] - mine["before"]) - (base["peak"] - base["before"])
    return row | {"memory": above, "resident": mine, "resident_plain": base}


def _environment(options: argparse.Namespace) -> dict[str, Any]:
    precision = torch.get_float32_matmul_precision()
    return environment(options.device) | {"batches": options.batches, "size": options.size, "matmul_precision": precision}


def markdown(result: dict[str, Any]) -> str:
    """Tables for docs/benchmarks.md, one for every model."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        first = rows[0]
        plain_speed = "; ".join(
            f"{speed:.1f} items/s on {threads} thread(s)"
            for threads, speed in {row["threads"]: row["plain_items_per_second"] for row in rows}.items()
        )
        text = f"**{model}**, {first['device']}: {first['linear_maps']} linear maps, largest activation (input and output) "
        text += f"{_mib(first['largest_activation_bytes'])} MiB; plain pass {plain_speed}; {first['rounds']} rounds.\n\n"
        parts.append(text + "\n".join(_lines(rows)))
    parts += [f"Skipped: {row['model']}, {row['case']}: {row['reason']}" for row in result["skipped"]]
    if result.get("accuracy"):
        parts.append(accuracy_table(result["accuracy"]))
    return "\n\n".join(parts)


def _lines(rows: Sequence[Row]) -> list[str]:
    columns = ["case", "threads", "ratio CPU median (min-max)", "ratio wall median (min-max)", "floor", "items/s"]
    columns += ["once per call, s", "peak memory over plain, MiB", "factors, MiB"]
    table = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    for row in rows:
        cells = [row["title"], str(row["threads"]), _spread(row["ratio_cpu"]), _spread(row["ratio_wall"])]
        cells.append("" if row["floor"] is None else f"{row['floor']:.2f}")
        cells += [f"{row['items_per_second']:.1f}", f"{row['fixed_seconds']['median']:.2f}"]
        table.append([*cells, "" if row["memory"] is None else _mib(row["memory"]), _mib(row["factor_bytes"])])
    return [f"| {' | '.join(cells)} |" for cells in table]


def _spread(ratio: Row) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _mib(count: float) -> str:
    return f"{count / 2**20:.1f}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="toy,widths", help=f"of {', '.join(MODELS)}; empty for none")
    parser.add_argument("--threads", default="1", help="numbers of threads, each in a process of its own: 1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=6, help="B, batches of a long call; 2 or more")
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated, of the default")
    parser.add_argument("--size", choices=("full", "tiny"), default="full", help="tiny: to try the benchmark itself")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="spare the processes that measure memory")
    parser.add_argument("--accuracy", action="store_true", help="also measure what the cheap variants lose")
    parser.add_argument("--force", action="store_true", help="run the 47 M model on a processor too")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--read", type=Path, help="measure nothing, take this JSON")
    parser.add_argument("--markdown", action="store_true", help="print the tables")
    parser.add_argument("--worker", choices=tuple(WORKERS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [case for case in options.cases.split(",") if case not in (*CASES, "plain")]
    unknown += [model for model in filter(None, options.models.split(",")) if model not in MODELS]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; cases are {', '.join(CASES)}, models {', '.join(MODELS)}")
    if options.batches < 2 or options.rounds < 1:
        parser.error("--batches must be 2 or more and --rounds 1 or more")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch sees no cuda device; leave --device out")
    return options


def main() -> None:
    """Measure or read, then write and print what was asked for."""
    options = parse()
    if options.worker:
        write_json(options.out, WORKERS[options.worker](options))
        return
    result = read_json(options.read) if options.read else measure(options)
    if options.accuracy and not options.read:
        result["accuracy"] = accuracy(options.size)
    if options.out:
        write_json(options.out, result)
    if options.markdown or not options.out:
        print(markdown(result))


if __name__ == "__main__":
    main()
