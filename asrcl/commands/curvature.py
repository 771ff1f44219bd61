"""`asrcl curvature`, `inspect`: what a loss is sensitive to, and what files hold."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import typer

from asrcl.commands.shared import Overrides, configuration

app = typer.Typer()


@app.command()
def curvature(
    checkpoint: Annotated[Path, typer.Argument(help="model.safetensors of the scenario's model")],
    out: Annotated[Path, typer.Option("--out", "-o", help="curvature.safetensors")],
    domain: Annotated[str, typer.Option(help="whose training data")],
    overrides: Overrides = None,
    structure: Annotated[Literal["kron", "ekfac", "diagonal", "dense"], typer.Option(help="kind of curvature")] = "kron",
) -> None:
    """Estimate what the loss on a domain is sensitive to; the file is all that later merges need of that domain.

    The group `curvature` of the configuration says how (curvature.fisher=mc curvature.stride=4 ...). A killed run goes on.
    """
    from asrcl.curvature.card import card
    from asrcl.curvature.card_view import card_text
    from asrcl.experiment.run import curvature_of_checkpoint

    partial = out.with_name(f"{out.stem}.partial.safetensors")
    options = {"checkpoint": partial, "progress": lambda items: logging.info("%d items", items)}
    found = curvature_of_checkpoint(configuration(overrides), checkpoint, domain, structure, **options)
    found.save(out)
    typer.echo(card_text(card(found, file_bytes=out.stat().st_size), blocks=10))
    typer.echo(f"curvature: {out}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="curvature.safetensors (or its index or folder), or any checkpoint")],
    blocks: Annotated[int, typer.Option(help="how many blocks to show, largest share of the trace first", min=0)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="everything, as JSON")] = False,
) -> None:
    """What a curvature file holds: origin, coverage, spectra, and what damping does to them; or what is in a checkpoint."""
    import json

    from asrcl.curvature.storage import is_curvature
    from asrcl.merge import show
    from asrcl.merge.containers import open_checkpoint

    if not is_curvature(file):
        with open_checkpoint(file) as checkpoint:
            typer.echo(show.checkpoint_text(checkpoint))
        return

    from asrcl.curvature import Curvature
    from asrcl.curvature.card import card
    from asrcl.curvature.card_view import card_text
    from asrcl.curvature.storage.shards import disk_bytes

    found = card(Curvature.load(file), file_bytes=disk_bytes(file))
    typer.echo(json.dumps(found.as_json(), indent=1) if as_json else card_text(found, blocks=blocks))


