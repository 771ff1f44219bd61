"""The command `asrcl`: parse, import what is needed, one call.

Commands that train or decode take Hydra overrides as trailing arguments (`scenario=real_speech train.adapt.epochs=8`).
Exit codes: 0 done, 2 bad input (one line on standard error says what and how to mend it).
"""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from asrcl.boundary import in_one_line
from asrcl.exceptions import InputError
from asrcl.visible import cell

app = typer.Typer(
    name="asrcl",
    help="Continual adaptation of speech recognisers: learn a new domain without forgetting the old ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[list[str] | None, typer.Argument(help="Hydra overrides, e.g. scenario=real_speech exp=my_exp")]
Seeds = Annotated[str, typer.Option("--seeds", "--seed", help="one or several seeds, e.g. '1 2 3'")]

Methods = Annotated[str, typer.Option(help="names under `methods` of the configuration")]
DEFAULT_METHODS = "initial ft fta ewc ihr"


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise InputError(f"--seeds {text!r}: write whole numbers, e.g. --seeds '1 2 3'") from error


def _config(overrides: list[str] | None) -> Any:
    from asrcl.experiment.config import load_config

    return load_config(overrides or [])


def _command() -> str:
    return shlex.join(["asrcl", *sys.argv[1:]])


@app.command()
def prepare(
    overrides: Overrides = None,
    stage: Annotated[str, typer.Option(help="data, tokens, or all")] = "all",
    domains: Annotated[str, typer.Option(help="only these domains or probes, e.g. 'US ENG'")] = "",
) -> None:
    """Load and check the corpora, compute features, train the tokeniser."""
    from asrcl.speech.prepare import prepare_data, prepare_tokens

    if stage not in ("data", "tokens", "all"):
        raise InputError(f"--stage {stage}: choose data, tokens or all")
    config = _config(overrides)
    if stage in ("data", "all"):
        prepare_data(config, _words(domains) or None)
    if stage in ("tokens", "all"):
        prepare_tokens(config)


@app.command()
def train(overrides: Overrides = None, seeds: Seeds = "1") -> None:
    """Train the initial model, or take the trained one that came with the recipe."""
    from asrcl.experiment.run import train_all

    train_all(_config(overrides), _numbers(seeds))


@app.command()
def adapt(
    overrides: Overrides = None,
    methods: Methods = DEFAULT_METHODS,
    seeds: Seeds = "1",
) -> None:
    """Adapt domain by domain with several methods; `asrcl decode` then measures them."""
    from asrcl.experiment.run import adapt_all

    adapt_all(_config(overrides), _words(methods), _numbers(seeds), _command())


@app.command()
def tune(
    overrides: Overrides = None,
    methods: Annotated[str, typer.Option("--methods", "--method", help="names under `methods` of the configuration")] = "ihr",
    grid: Annotated[str, typer.Option(help="all of these, e.g. 'tau=1,2 train.adapt.epochs=4'; else draws from `search`")] = "",
    settings: Annotated[int | None, typer.Option(help="how many settings to draw for every method", min=1)] = None,
    protocol: Annotated[str, typer.Option(help="first: after one adaptation; sequence: after all, in another order")] = "first",
    seeds: Seeds = "1",
) -> None:
    """Search options of methods and of the run (those with a dot) on validation sets; every method gets as many settings."""
    from asrcl.experiment.tuning import search_all, searches

    config = _config(["tuned=none", *(overrides or [])])
    found = searches(config, _words(methods), _grid(grid) if grid else None, settings)
    after = "the first adaptation" if protocol == "first" else "all adaptations"
    for method, rows in search_all(config, found, _numbers(seeds), protocol).items():
        _table(f"{method}: dev error rate (%) after {after}", rows)


def _grid(text: str) -> dict[str, list[Any]]:
    """`tau=1,2 damping=10` to {"tau": [1, 2], "damping": [10]}; numbers, true, false and null are read as such."""
    choices = {}
    for word in text.split():
        knob, _, values = word.partition("=")
        if not knob or not values:
            raise InputError(f"{word}: write knob=value, or knob=value,value for several")
        choices[knob] = [_value(value) for value in values.split(",")]
    return choices


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "null": None}.get(text, text)


def _shown(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, float) else str(value)


def _table(title: str, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=cell(title))
    for column in rows[0]:
        table.add_column(cell(column), justify="right")
    for row in rows:
        table.add_row(*(cell(_shown(v, ".2f" if k in ("old", "new", "average") else "g")) for k, v in row.items()))
    Console().print(table)


@app.command()
def decode(
    overrides: Overrides = None,
    methods: Methods = DEFAULT_METHODS,
    seeds: Seeds = "1",
    checkpoint: Annotated[
        Path | None, typer.Option(help="decode this model.safetensors instead of adapted methods")
    ] = None,
    domain: Annotated[str, typer.Option(help="with --checkpoint: which domain")] = "",
    split: Annotated[str, typer.Option(help="with --checkpoint: train, dev or test")] = "test",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="with --checkpoint: folder for hyp.trn and ref.trn")
    ] = None,
) -> None:
    """Decode all stages of adapted methods, or one domain with one checkpoint."""
    from asrcl.experiment.run import adapt_all, decode_checkpoint

    config = _config(overrides)
    if checkpoint is None:
        adapt_all(config, _words(methods), _numbers(seeds), _command(), decode=True)
        return
    from asrcl.adapt import write_decode
    from asrcl.scoring import summary_table

    if not domain:
        raise InputError("--checkpoint needs --domain NAME")
    errors = decode_checkpoint(config, checkpoint, domain, split)
    if out:
        write_decode(errors, out)
    typer.echo(summary_table(errors))


Normaliser = Annotated[str, typer.Option("--normaliser", "-n", help="none, basic or whisper-english; raw figures stay")]
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
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for score.json and other houses' files")] = None,
    id_key: IdKey = None,
    ref_key: RefKey = None,
    hyp_key: HypKey = None,
    file_format: FileFormat = None,
) -> None:
    """Error rates of a hypothesis file; or, given a folder, recount every decode below it and compare with results.json."""
    from asrcl.scoring.cli_score import score_command
    from asrcl.scoring.score import Options

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
    from asrcl.scoring.cli_score import compare_command
    from asrcl.scoring.score import Options

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
    from asrcl.scoring.cli_report import make_report

    make_report(
        folders,
        out=out,
        views=_words(views),
        reference_method=reference_method,
        figure_formats=_words(figures),
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
    from asrcl.scoring.cli_report import list_results

    list_results(
        folders,
        where=where or [],
        columns=_words(columns),
        settings=setting or [],
        sort=sort,
        every_stage=every_stage,
        out=out,
        skip_bad=skip_bad,
        say=typer.echo,
    )


Knob = Annotated[list[str] | None, typer.Option("--knob", help="option of the method, e.g. --knob tau=2 (repeatable)")]
MergeMethodName = Annotated[str | None, typer.Option("--method", help="merge method, see asrcl methods; default ihr")]
OldCurvature = Annotated[
    list[Path] | None, typer.Option("--curvature", help="curvature of the old domain at the old model (repeatable)")
]
NewCurvature = Annotated[list[Path] | None, typer.Option("--new-curvature", help="curvature of each new model (repeatable)")]
Rest = Annotated[str | None, typer.Option("--rest", help="tensors a method cannot treat: 1/t, a number, keep, new, fisher")]
RulesFile = Annotated[Path | None, typer.Option("--config", help="merge.yaml: methods by tensor name")]
OldModel = Annotated[Path, typer.Argument(help="checkpoint before adaptation: file or folder of any toolkit")]
NewModels = Annotated[list[Path], typer.Argument(help="checkpoint(s) after fine-tuning")]


def _merge_spec(config: Path | None, knob: list[str] | None, **given: Any) -> Any:
    from asrcl.merge import MergeSpec
    from asrcl.merge.rules import load_rules

    knobs = {name: values[0] for name, values in _grid(" ".join(knob or [])).items()}
    if given.get("rest") is not None:
        given["rest"] = _value(given["rest"])
    return MergeSpec.of(load_rules(config) if config else None, knobs=knobs or None, **given)


@app.command()
def merge(
    old: OldModel,
    new: NewModels,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="where the merged checkpoint goes")] = None,
    method: MergeMethodName = None,
    curvature: OldCurvature = None,
    new_curvature: NewCurvature = None,
    base: Annotated[Path | None, typer.Option(help="ancestor of all models, where it is not the old one")] = None,
    knob: Knob = None,
    rest: Rest = None,
    statistics: Annotated[str | None, typer.Option(help="running statistics: pool, old, new")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="globs of the tensors curvature may treat (repeatable)")] = None,
    task: Annotated[int | None, typer.Option(help="number of domains with the new one")] = None,
    budget: Annotated[float | None, typer.Option(help="largest predicted increase of the old loss")] = None,
    config: RulesFile = None,
    vocabulary: Annotated[str, typer.Option(help="where models differ: error, keep-old, backbone-only, union")] = "error",
    tokens: Annotated[tuple[Path, Path] | None, typer.Option(help="token lists of the old and the new model")] = None,
    trailing: Annotated[int, typer.Option(help="outputs behind the listed tokens, e.g. the blank of NeMo: 1")] = 0,
    differences: Annotated[str, typer.Option(help="where settings of the models differ: refuse, note")] = "refuse",
    container: Annotated[str | None, typer.Option(help="safetensors; default: that of the old model")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a folder that exists")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would happen to every tensor, write nothing")] = False,
    rows: Annotated[int | None, typer.Option(help="with --dry-run: only so many tensors, the costliest first")] = None,
) -> None:
    """Merge an update into the old model, held back where the old domain is sensitive.

    Reads and writes .safetensors, Hugging Face folders, .pt/.pth/.ckpt (ESPnet, icefall, WeNet, Lightning), SpeechBrain CKPT
    folders and .nemo; no toolkit needs to be installed. `asrcl methods` lists the methods with their options.
    """
    from asrcl.merge import merge_files, preview_files, show

    given: dict[str, Any] = {"method": method, "curvature": curvature, "new_curvature": new_curvature, "base": base}
    given |= {"rest": rest, "task": task}
    given |= {"statistics": statistics, "layers": tuple(layers) if layers else None, "budget": budget, "tokens": tokens}
    spec = _merge_spec(config, knob, **given, vocabulary=vocabulary, trailing=trailing, differences=differences)
    if dry_run:
        previews, scale = preview_files(old, new, spec)
        _print(show.preview_table(previews, rows))
        typer.echo(show.preview_summary(previews, scale))
        return
    if out is None:
        raise InputError("--out is missing: say where the merged checkpoint goes, or --dry-run")
    record = merge_files(old, new, out, spec, container=container, overwrite=overwrite, command=_command())
    typer.echo(show.record_summary(record))
    typer.echo(f"merged: {out}")


@app.command()
def sweep(
    old: OldModel,
    new: NewModels,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for sweep.json, pareto.png and kept models")],
    grid: Annotated[str, typer.Option(help="options and values, e.g. 'tau=0.5,1,2 damping=1,10 rest=0,1/t'")],
    method: MergeMethodName = None,
    curvature: OldCurvature = None,
    new_curvature: NewCurvature = None,
    knob: Knob = None,
    rest: Rest = None,
    config: RulesFile = None,
    evaluate: Annotated[
        str | None, typer.Option(help="command with {model} that prints the errors on the old and the new domain last")
    ] = None,
    domains: Annotated[
        tuple[str, str] | None, typer.Option(help="old and new domain of a recipe: score their validation sets")
    ] = None,
    override: Annotated[list[str] | None, typer.Option(help="Hydra override for --domains (repeatable)")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep all merged models")] = False,
) -> None:
    """Merge with every setting of a grid and score each; a killed sweep goes on."""
    from asrcl.merge import show
    from asrcl.merge.sweep import CommandEvaluation, lines, pareto, plot
    from asrcl.merge.sweep import sweep as run_sweep

    if evaluate and domains:
        raise InputError("give --evaluate or --domains, not both")
    scores: Any = CommandEvaluation(evaluate) if evaluate else None
    if domains:
        from asrcl.experiment.run import validation_errors

        scores = validation_errors(_config(override), dict(zip(("old", "new"), domains, strict=True)))
    spec = _merge_spec(config, knob, method=method, curvature=curvature, new_curvature=new_curvature, rest=rest)
    found = run_sweep(old, new, out, spec, _grid(grid), scores, keep=keep, progress=logging.info)
    _print(show.rows_table(lines(found)))
    if pareto(found):
        plot(found, out / "pareto.png")
        typer.echo(f"plot: {out / 'pareto.png'}")


@app.command()
def methods() -> None:
    """List the merge methods, their options and where they come from."""
    from asrcl.merge import methods as merge_methods
    from asrcl.merge import show

    _print(show.methods_table(merge_methods()))


def _print(table: Any) -> None:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)


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
    found = curvature_of_checkpoint(_config(overrides), checkpoint, domain, structure, **options)
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


def main() -> None:
    """Run the command line; bad input ends in one line (or a table of what differs) and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for noisy in ("speechbrain", "datasets", "matplotlib", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with in_one_line():
        app()


if __name__ == "__main__":
    main()
