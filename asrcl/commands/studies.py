"""`asrcl study`: the small studies of why continual learning works or fails."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="of the study; NAME_full is the published size")],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings, e.g. seeds=3 (conf/study, docs/studies.md)")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder of tables and figures; default: exp/NAME")] = None,
) -> None:
    """Run a study: tables and figures into its folder, the tables on the terminal."""
    from asrcl.studies.study import run_study

    where = out or Path("exp") / name
    typer.echo(run_study(name, where, overrides or []))
    typer.echo(f"{where}/RESULTS.md")
