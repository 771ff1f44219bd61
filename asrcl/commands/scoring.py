"""`asrcl score`, `compare`, `report`, `results`: transcripts and result files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from asrcl.commands.shared import words

app = typer.Typer()


Normaliser = Annotated[str, typer.Option("--normaliser", "-n", help="a name in asrcl.text, e.g. basic; raw figures stay")]
Costs = Annotated[
    Literal["unit", "sclite"], typer.Option(help="of the alignment: as jiwer, or as NIST's sclite -s (case is never folded)")
]
Skip = Annotated[bool, typer.Option("--skip", help="leave out, and list, what cannot be scored")]
FileFormat = Annotated[
    Literal["trn", "text", "jsonl", "csv", "tsv", "lines"] | None,
    typer.Option("--format", help="what files hold whose suffix does not say it (.txt, none, unknown); lines: texts without ids"),
]
IdKey = Annotated[str | None, typer.Option(help="name of the id in JSON and tables")]
RefKey = Annotated[str | None, typer.Option(help="name of the reference text")]
HypKey = Annotated[str | None, typer.Option(help="name of the hypothesis text")]


@app.command()
def score(
    reference: Annotated[
        Path, typer.Argument(help=".trn, Kaldi text, .jsonl, .csv (also .gz; - is stdin); or the output folder of a scenario")
    ],
    hypothesis: Annotated[Path | None, typer.Argument(help="the same utterances; none if one file has both texts")] = None,
    by: Annotated[list[str] | None, typer.Option(help="break down by this column: speaker, domain, ... (repeatable)")] = None,
    meta: Annotated[Path | None, typer.Option(help="table of further columns by id: .csv, .tsv, .jsonl, utt2spk")] = None,
    normaliser: Normaliser = "none",
    costs: Costs = "unit",
    skip: Skip = False,
    top: Annotated[int, typer.Option(help="list so many most frequent confusions (text, json)", min=0)] = 0,
    worst: Annotated[int, typer.Option(help="align so many utterances with most errors (text, json)", min=0)] = 0,
    output: Annotated[str, typer.Option(help="text, json or csv")] = "text",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for score.json and the files of other toolkits")] = None,
    id_key: IdKey = None,
    ref_key: RefKey = None,
    hyp_key: HypKey = None,
    file_format: FileFormat = None,
) -> None:
    """Error rates of a hypothesis file; or, given a folder, recount every decode below it and compare with results.json."""
    from asrcl.scoring.commands.score import score_command
    from asrcl.scoring.transcripts.score import Options

    options = Options(normaliser, costs, by or (), meta, skip, id_key, ref_key, hyp_key, file_format)
    typer.echo(score_command(reference, hypothesis, options, by=by or (), output=output, out=out, top=top, worst=worst), nl=False)


@app.command()
def compare(
    systems: Annotated[
        list[str], typer.Argument(help="[NAME=]file: hypotheses, errors.jsonl, results.json or its folder; one name twice: seeds")
    ],
    reference: Annotated[Path | None, typer.Option("--reference", "-r", help="of hypothesis files")] = None,
    test: Annotated[list[str] | None, typer.Option(help="wilcoxon, mapsswe, bootstrap, sign, mcnemar; default all")] = None,
    by: Annotated[Literal["item", "speaker"], typer.Option(help="what wilcoxon and sign compare")] = "item",
    meta: Annotated[Path | None, typer.Option(help="table with the speaker of every item (utt2spk, .csv, .tsv, .jsonl)")] = None,
    normaliser: Normaliser = "none",
    costs: Costs = "unit",
    skip: Skip = False,
    output: Annotated[str, typer.Option(help="text, json, csv or latex")] = "text",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="also a file; .csv, .json, .tex: in that format")] = None,
    plot: Annotated[Path | None, typer.Option(help="matrix of differences with stars (.png, .pdf, .svg)")] = None,
    stars: Annotated[str, typer.Option(help="the test whose stars stand in the plot and in LaTeX")] = "",
    draws: Annotated[int, typer.Option(help="bootstrap resamples", min=100, max=1_000_000)] = 2000,
    seed: Annotated[int, typer.Option(help="of the bootstrap", min=0)] = 0,
    id_key: IdKey = None,
    ref_key: RefKey = None,
    hyp_key: HypKey = None,
    file_format: FileFormat = None,
) -> None:
    """Are systems different? Every pair tested on the same references, with intervals over speakers and Holm's correction."""
    from asrcl.scoring.commands.score import compare_command
    from asrcl.scoring.transcripts.score import Options

    keys: dict[str, Any] = {"id_key": id_key, "reference_key": ref_key, "hypothesis_key": hyp_key, "format": file_format}
    options = Options(normaliser, costs, meta=meta, skip=skip, **keys)
    views: dict[str, Any] = {"output": output, "out": out, "plot": plot, "stars_of": stars}
    typer.echo(compare_command(systems, reference, options, tests=test or (), by=by, draws=draws, seed=seed, **views), nl=False)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="output folders, e.g. exp/accents")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="where the report goes; default: the first folder")] = None,
    views: Annotated[str, typer.Option(help="of html, md, tables (LaTeX, CSV) and figures")] = "html md",
    reference_method: Annotated[str, typer.Option(help="the method that the others are tested against")] = "ihr",
    figures: Annotated[str, typer.Option(help="formats of figures: pdf png svg")] = "pdf",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out results that cannot be used, and say so")] = False,
    title: Annotated[str, typer.Option(help="of the page")] = "",
) -> None:
    """One page about all results.json files below some folders: report.html, RESULTS.md, tables and figures."""
    from asrcl.scoring.commands.report import make_report

    make_report(
        folders,
        out=out,
        views=words(views),
        reference_method=reference_method,
        figure_formats=words(figures),
        skip_bad=skip_bad,
        title=title,
        say=typer.echo,
    )


@app.command()
def results(
    folders: Annotated[list[Path], typer.Argument(help="folders with runs, e.g. exp")],
    where: Annotated[list[str] | None, typer.Option(help="filter, e.g. --where method=ihr (repeatable)")] = None,
    columns: Annotated[str, typer.Option(help="which columns, in order")] = "",
    setting: Annotated[list[str] | None, typer.Option(help="also show a setting of the configuration (repeatable)")] = None,
    sort: Annotated[str, typer.Option(help="columns to sort by")] = "",
    every_stage: Annotated[bool, typer.Option("--every-stage", help="not only the last stage")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="a .csv or .parquet file")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out results that cannot be used, and say so")] = False,
) -> None:
    """List runs, one row per run and domain, to the terminal, CSV or Parquet."""
    from asrcl.scoring.commands.report import list_results

    list_results(
        folders,
        where=where or [],
        columns=words(columns),
        settings=setting or [],
        sort=sort,
        every_stage=every_stage,
        out=out,
        skip_bad=skip_bad,
        say=typer.echo,
    )


