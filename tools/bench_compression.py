"""What compressing a curvature costs, on a real update: size, quadratic form, damped solve.

    M=exp/accents; tools/bench_compression.py us.safetensors $M/initial/1/model.safetensors $M/ft/1/stage2/model.safetensors

takes a curvature file (`asrcl curvature`) and the models before and after fine-tuning, and prints a Markdown table. Sizes are
those of the files that would be written, beside the model in single precision and beside the reference code's full
single-precision matrices.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from asrcl.curvature import Curvature, KroneckerBlock, compression_table
from asrcl.curvature.fidelity import DEFAULT_SETTINGS, TableRow
from asrcl.merge import load_state


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curvature", type=Path)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--damping", type=float, default=1.0, help="of the solves, relative")
    arguments = parser.parse_args()
    curvature = Curvature.load(arguments.curvature)
    old, new = load_state(arguments.old), load_state(arguments.new)
    delta = {name: (new[name] - tensor).double() for name, tensor in old.items() if tensor.is_floating_point()}
    print(table(curvature, delta, arguments.damping))


def table(curvature: Curvature, delta: dict[str, torch.Tensor], damping: float) -> str:
    """The Markdown table of all settings, that of 1.5 times the model's bytes among them."""
    budget: dict[str, Any] = {"budget": int(1.5 * curvature.model_bytes), "dtype": torch.float16}
    rows = compression_table(curvature, delta, (*DEFAULT_SETTINGS, budget), damping)
    reference = full_bytes(curvature)
    lines = [
        "| setting | MB | of the model | of full matrices | error of quadratic | its worst block | error of solve | cosine |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_line(row, reference) for row in rows),
    ]
    return "\n".join(lines)


def full_bytes(curvature: Curvature) -> int:
    """Two single-precision matrices for every map, nothing shared: what the reference code writes."""
    blocks = [block for block in curvature.blocks.values() if isinstance(block, KroneckerBlock)]
    return 4 * sum(block.input.size**2 + block.output.size**2 for block in blocks)


def _line(row: TableRow, reference: int) -> str:
    setting = "budget=1.5 x model, dtype=float16" if row.setting.startswith("budget") else row.setting
    total = row.total
    return (
        f"| {setting} | {row.stored / 1e6:.2f} | {row.ratio:.2f} | {row.stored / reference:.2f} | {total.quadratic:.2%} "
        f"| {row.worst.quadratic:.1%} | {total.solve:.2%} | {total.cosine:.4f} |"
    )


if __name__ == "__main__":
    main()
