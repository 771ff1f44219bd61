"""Peak memory and time of merging a checkpoint that is larger than the memory one wants to spend.

    python tools/bench_out_of_core.py --folder big                   # Whisper-large shapes, 1.5 B parameters, half precision
    python tools/bench_out_of_core.py --folder small --layers 2      # to try it

Random weights are written to disk once (9.3 GB with the merged model; delete the folder afterwards), with a curvature of some
encoder layers. Every merge runs in a process of its own; its peak resident set includes Python and torch, which is printed as
well. The floor of the time is reading both models and writing one at the speed of a plain copy, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from asrcl.curvature import BlockKey, Curvature, KroneckerBlock
from asrcl.merge import MergeSpec, merge_files
from asrcl.merge.containers.outline import Outline
from asrcl.merge.containers.tensor_files import TensorSink

WIDTH, INNER, TOKENS = 1280, 5120, 51866
CURVED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")


def main() -> None:
    """Make the models, merge in fresh processes, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32, help="of the encoder and of the decoder")
    parser.add_argument("--curved", type=int, default=4, help="encoder layers with curvature")
    parser.add_argument("--merge", choices=("nothing", "average", "ihr"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.merge:
        print(json.dumps(merged(arguments.folder, arguments.merge)))
        return
    make(arguments.folder, arguments.layers, arguments.curved)
    print(table(arguments.folder, arguments.layers))


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Of a Whisper with so many layers on either side."""
    found: dict[str, tuple[int, ...]] = {
        "model.encoder.conv1.weight": (WIDTH, 128, 3),
        "model.encoder.conv2.weight": (WIDTH, WIDTH, 3),
        "model.decoder.embed_tokens.weight": (TOKENS, WIDTH),
    }
    for side in ("encoder", "decoder"):
        for layer in range(layers):
            head = f"model.{side}.layers.{layer}"
            attentions = ["self_attn"] + (["encoder_attn"] if side == "decoder" else [])
            for attention in attentions:
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    found[f"{head}.{attention}.{part}.weight"] = (WIDTH, WIDTH)
                    found[f"{head}.{attention}.{part}.bias"] = (WIDTH,)
            found |= {f"{head}.fc1.weight": (INNER, WIDTH), f"{head}.fc2.weight": (WIDTH, INNER)}
            found |= {f"{head}.fc1.bias": (INNER,), f"{head}.fc2.bias": (WIDTH,), f"{head}.final_layer_norm.weight": (WIDTH,)}
    return found


def make(folder: Path, layers: int, curved: int) -> None:
    """Write two models and a curvature, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    outlines = {name: Outline(shape, torch.float16) for name, shape in shapes(layers).items()}
    for number, name in enumerate(("old", "new")):
        path = folder / f"{name}.safetensors"
        if path.exists():
            continue
        generator = torch.Generator().manual_seed(0)
        sink = TensorSink(folder, outlines, {path.name: list(outlines)}, {})
        for tensor, outline in outlines.items():
            base = torch.randn(outline.shape, generator=generator)
            change = 0.01 * torch.randn(outline.shape, generator=generator) if number else 0.0
            sink.write(tensor, (base + change).half())
        sink.finish()
    if not (folder / "curvature.safetensors").exists():
        Curvature(dict(blocks(layers, curved))).save(folder / "curvature.safetensors")


def blocks(layers: int, curved: int) -> Iterator[tuple[BlockKey, KroneckerBlock]]:
    """Random factors of the linear maps of the first encoder layers."""
    for layer in range(min(curved, layers)):
        for part in CURVED:
            name = f"model.encoder.layers.{layer}.{part}.weight"
            rows, columns = shapes(layers)[name]
            inputs, gradients = torch.randn(columns, columns), torch.randn(rows, rows)
            yield BlockKey(name, 0, rows), KroneckerBlock.of(inputs @ inputs.mT, gradients @ gradients.mT, columns, 1)


def merged(folder: Path, method: str) -> dict[str, float]:
    """Merge in this process; seconds and peak bytes."""
    start = time.perf_counter()
    if method != "nothing":
        spec = MergeSpec(method, curvature=[folder / "curvature.safetensors"] if method == "ihr" else ())
        merge_files(folder / "old.safetensors", [folder / "new.safetensors"], folder / "merged.safetensors", spec)
    return {"seconds": time.perf_counter() - start, "peak": peak_bytes()}


def peak_bytes() -> int:
    """The peak resident set of this process (`ru_maxrss` would start from that of the parent)."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def copy_seconds(folder: Path) -> float:
    """Reading both models and writing one, a megabyte at a time."""
    start = time.perf_counter()
    old, new = (open(folder / f"{name}.safetensors", "rb") for name in ("old", "new"))  # noqa: SIM115 (below)
    with old, new, open(folder / "c", "wb") as out:
        while part := old.read(1 << 20):
            new.read(1 << 20)
            out.write(part)
    (folder / "c").unlink()
    return time.perf_counter() - start


def table(folder: Path, layers: int) -> str:
    """Markdown: every merge in a process of its own."""
    count = sum(torch.Size(shape).numel() for shape in shapes(layers).values())
    floor = copy_seconds(folder)
    lines = [
        f"{count / 1e9:.2f} B parameters, {(folder / 'old.safetensors').stat().st_size / 2**30:.2f} GiB in half precision; "
        f"largest tensor {max(torch.Size(s).numel() for s in shapes(layers).values()) * 2 / 2**20:.0f} MiB; "
        f"plain copy {floor:.1f} s",
        "",
        "| merge | peak resident, GiB | seconds | over a plain copy |",
        "| --- | ---: | ---: | ---: |",
    ]
    for method in ("nothing", "average", "ihr"):
        command = [sys.executable, __file__, "--folder", str(folder), "--merge", method]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        title = {"nothing": "imports alone", "average": "average", "ihr": "IHR, curvature of some encoder layers"}[method]
        lines.append(f"| {title} | {found['peak'] / 2**30:.2f} | {found['seconds']:.1f} | {found['seconds'] / floor:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
