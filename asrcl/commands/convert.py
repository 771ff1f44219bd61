"""`asrcl convert`: models of other formats as folders of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer()
formats = typer.Typer(help="Turn a model of another format into a folder of Hugging Face.", no_args_is_help=True)
app.add_typer(formats, name="convert")


@formats.callback()
def _of_one_format() -> None:
    """Turn a model of another format into a folder of Hugging Face."""


@formats.command()
def ctranslate2(
    folder: Annotated[Path, typer.Argument(help="with model.bin, config.json, tokenizer.json and a vocabulary file")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
) -> None:
    """A Whisper of CTranslate2 (as faster-whisper uses) to a folder that Transformers loads as it is; not from int8 or int16."""
    from asrcl.convert import convert_ctranslate2

    convert_ctranslate2(folder, out)
    typer.echo(f"converted: {out}")


@formats.command()
def peft(
    adapter: Annotated[Path, typer.Argument(help="with adapter_config.json and adapter_model.safetensors")],
    base: Annotated[Path, typer.Argument(help="the model that the adapter was trained on")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
    differences: Annotated[Literal["refuse", "note"], typer.Option(help="where the base has another name")] = "refuse",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a folder that exists")] = False,
) -> None:
    """Fold a LoRA adapter of PEFT into its base model, which is then a model like any other, also for asrcl merge."""
    from asrcl.convert import fold_adapter

    count = fold_adapter(adapter, base, out, differences=differences, overwrite=overwrite)
    typer.echo(f"folded {count} tensors of {adapter} into {base}: {out}")


@formats.command()
def rank(
    adapter: Annotated[Path, typer.Argument(help="with adapter_config.json and adapter_model.safetensors")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
    rank: Annotated[int, typer.Option("--rank", "-r", help="largest rank of every product")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a folder that exists")] = False,
) -> None:
    """A LoRA adapter of PEFT at another rank: each product B A cut after its largest singular values."""
    from asrcl.convert import cut_adapter

    lost = cut_adapter(adapter, out, rank, overwrite=overwrite)
    most = max(lost, key=lost.__getitem__)
    typer.echo(f"{len(lost)} products of rank {rank} at most: {out}")
    typer.echo(f"the most is lost of {most}: {100 * lost[most]:.2g} % of its norm")
