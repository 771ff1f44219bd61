"""What the commands share: options that several have, reading of lists and values, tables."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer

from asrcl.exceptions import InputError
from asrcl.visible import cell

Overrides = Annotated[list[str] | None, typer.Argument(help="Hydra overrides, e.g. scenario=real_speech exp=my_exp")]
Seeds = Annotated[str, typer.Option("--seeds", "--seed", help="one or several seeds, e.g. '1 2 3'")]
Methods = Annotated[str, typer.Option(help="names under `methods` of the configuration; asrcl methods lists them")]
Orders = Annotated[str, typer.Option("--orders", help="of the domains: how many (5), or scenario.orders by name (A B, A-E)")]
DEFAULT_METHODS = "initial ft fta ewc ihr"


def words(text: str) -> list[str]:
    """Words between spaces or commas."""
    return text.replace(",", " ").split()


def seed_numbers(text: str) -> list[int]:
    """The seeds of `--seeds`.

    Raises:
        InputError: a word that is not a whole number.
    """
    try:
        return [int(word) for word in words(text)]
    except ValueError as error:
        raise InputError(f"--seeds {text!r}: write whole numbers, e.g. --seeds '1 2 3'") from error


def configuration(overrides: list[str] | None) -> Any:
    """The configuration that the overrides describe."""
    from asrcl.experiment.config import load_config

    return load_config(overrides or [])


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["asrcl", *sys.argv[1:]])


def option_values(text: str) -> dict[str, list[Any]]:
    """`tau=1,2 damping=10` to {"tau": [1, 2], "damping": [10]}; numbers, true, false and null are read as such.

    Raises:
        InputError: a word without a name or a value.
    """
    choices = {}
    for word in text.split():
        option, _, values = word.partition("=")
        if not option or not values:
            raise InputError(f"{word}: write option=value, or option=value,value for several")
        choices[option] = [plain_value(value) for value in values.split(",")]
    return choices


def plain_value(text: str) -> Any:
    """A number, true, false or null as such; anything else as text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "null": None}.get(text, text)


def print_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """A table of rows that have the same columns, options of the run by the end of their names; rates with two decimals."""
    from rich.table import Table

    from asrcl.scoring.results.stage_records import RATES

    table = Table(title=cell(title))
    of_run = ("train.", "curvature.", "decode.", "model.", "merge.")
    ends = [column.rpartition(".")[2] if column.startswith(of_run) else column for column in rows[0]]
    for column, end in zip(rows[0], ends, strict=True):
        table.add_column(cell(end if ends.count(end) == 1 else column), justify="right")
    for row in rows:
        shown = [format(v, ".2f" if k in RATES else "g") if isinstance(v, float) else str(v) for k, v in row.items()]
        table.add_row(*map(cell, shown))
    print_table(table)


def print_table(table: Any) -> None:
    """A table of rich, 160 characters wide where standard output is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)
