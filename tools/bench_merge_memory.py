"""Peak memory and time of every merge method from files, at the sizes of Whisper tiny and of a Conformer of 47 M parameters.

    python tools/bench_merge_memory.py --out memory.json --markdown
    python tools/bench_merge_memory.py --size tiny --methods "ihr laplace" --markdown      (to try the benchmark itself)
    python tools/bench_merge_memory.py --sums 1000,2000,4000,6000 --markdown               (how sums of dense factors scale)

Each method merges in a fresh process on one thread; "own" is the most of its own memory (Linux: resident and not a file's) above
what was there after the imports, "of the model" is that over the size of one model in single precision, which is the floor of
anything that holds a whole model. Weights and factors are random. Whisper's 51,864 outputs have a factor that is a diagonal, as
estimates keep it; two curvatures are given by `curvature=` twice, and their sum is solved exactly. Methods that need several
updates get the new model twice.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_merge import OwnMemory
from bench_merge_data import SIZES, write

from asrcl.adapt.environment import environment
from asrcl.curvature import solve_sum
from asrcl.files import write_json
from asrcl.merge import MergeSpec, merge_files, methods

LIMIT = 240
"""Seconds after which a method is given up."""


def cases(chosen: list[str]) -> list[tuple[str, int]]:
    """Every method with one old curvature, and those that sum with two."""
    found = []
    for name, method in sorted(methods().items()):
        if not chosen or name in chosen:
            found += [(name, count) for count in ((1, 2) if method.curved and name not in ("cofima",) else (1,))]
    return found


def one(folder: Path, name: str, count: int) -> dict[str, Any]:
    """Merge once; meant for a process of its own."""
    torch.set_num_threads(1)
    method, curvature = methods()[name], folder / "curvature.safetensors"
    old = (curvature,) * count if method.curved else ()
    new = (curvature,) if "new_blocks" in method.context else ()
    several = method.least > 1  # two updates then: from the old model, which stands for the ancestor, to the new one twice
    news = [folder / "new.safetensors"] * (2 if several else 1)
    spec = MergeSpec(name, curvature=old, new_curvature=new, task=3 if several else None)
    memory = OwnMemory()
    with memory:
        start = time.perf_counter()
        merge_files(folder / "old.safetensors", news, folder / f"{name}{count}.safetensors", spec)
        seconds = time.perf_counter() - start
    return {"method": name, "curvatures": count if method.curved else 0, "own_bytes": memory.peak, "seconds": seconds}


def measure(sizes: list[str], chosen: list[str]) -> dict[str, Any]:
    """All methods at all sizes."""
    result: dict[str, Any] = {"environment": environment(), "sizes": {}}
    for size in sizes:
        with tempfile.TemporaryDirectory() as place:
            folder, rows = Path(place), []
            write(SIZES[size], folder)
            for name, count in cases(chosen):
                command = [sys.executable, __file__, "--one", name, str(count), str(folder)]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
                    said = (done.stderr.strip().splitlines() or [""])[-1]
                    failed = {"method": name, "curvatures": count, "failed": said}
                    row = json.loads(done.stdout) if done.returncode == 0 else failed
                except subprocess.TimeoutExpired:
                    row = {"method": name, "curvatures": count, "failed": f"not done after {LIMIT} s"}
                print(size, row, file=sys.stderr, flush=True)
                rows.append(row)
            result["sizes"][size] = {"model_bytes": (folder / "old.safetensors").stat().st_size, "rows": rows}
    return result


def measure_sums(widths: list[int]) -> str:
    """Time and own memory of the exact sum of two curvatures whose row factors are dense, by their width, as a table."""
    head = ("rows of the layer (384 columns)", "s", "own, MiB", "of its two factors in double precision")
    lines = [f"| {' | '.join(head)} |", "| ---: | ---: | ---: | ---: |"]
    for width in widths:
        generator = torch.Generator().manual_seed(width)
        roots = [torch.randn(size, size, generator=generator) for size in (width, width, 384, 384)]
        first, second, left, right = (root @ root.mT / len(root) for root in roots)
        del roots
        memory, start = OwnMemory(), time.perf_counter()
        with memory:
            solve_sum([(first, left), (second, right)], torch.randn(width, 384, generator=generator), 0.1)
        seconds, factors = time.perf_counter() - start, 2 * 8 * width * width
        lines.append(f"| {width:,} | {seconds:.1f} | {memory.peak / 2**20:,.0f} | {memory.peak / factors:.1f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    """One table for all sizes."""
    head = ["method", "curvatures"]
    for size, found in result["sizes"].items():
        head += [f"{size} ({found['model_bytes'] / 2**20:,.0f} MiB): own, MiB", "of the model", "s"]
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: |" + " ---: |" * (len(head) - 2)]
    for rows in zip(*(found["rows"] for found in result["sizes"].values()), strict=True):
        cells = [rows[0]["method"], str(rows[0]["curvatures"] or "–")]
        for row, found in zip(rows, result["sizes"].values(), strict=True):
            own = row.get("own_bytes")
            share = "" if own is None else f"{own / found['model_bytes']:.2f}"
            cells += [row["failed"], "", ""] if own is None else [f"{own / 2**20:,.0f}", share, f"{row['seconds']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="whisper,full", help="sizes of tools/bench_merge_data.py, comma-separated")
    parser.add_argument("--methods", default="", help="only these, space-separated")
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--markdown", action="store_true", help="print the table")
    parser.add_argument("--sums", help="instead: sums of two curvatures with dense factors of these widths, comma-separated")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, count, folder = options.one
        print(json.dumps(one(Path(folder), name, int(count))))
        return
    if options.sums:
        torch.set_num_threads(1)
        print(measure_sums([int(width) for width in options.sums.split(",")]))
        return
    result = measure(options.size.split(","), options.methods.split())
    if options.out:
        write_json(options.out, result)
    if options.markdown:
        print(markdown(result))


if __name__ == "__main__":
    main()
