"""`asrcl prepare`, `train`, `check`, `adapt`, `decode`, `tune`: a configured experiment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from asrcl.commands.shared import (
    DEFAULT_METHODS,
    Methods,
    Orders,
    Overrides,
    Seeds,
    configuration,
    option_values,
    print_rows,
    seed_numbers,
    typed,
    words,
)
from asrcl.exceptions import InputError

app = typer.Typer()


@app.command()
def prepare(
    overrides: Overrides = None,
    stage: Annotated[str, typer.Option(help="of the benchmark's (speech: data, tokens), or all")] = "all",
    domains: Annotated[str, typer.Option(help="only these domains or probes, e.g. 'US ENG'")] = "",
) -> None:
    """Make what a benchmark needs; for speech: load and check the corpora, compute features, train the tokeniser."""
    from asrcl.experiment.registry import benchmark_of

    config = configuration(overrides)
    benchmark = benchmark_of(config.tree)
    if stage not in (*benchmark.stages, "all"):
        raise InputError(f"--stage {stage}: choose {', '.join(benchmark.stages)} or all")
    for name in benchmark.stages if stage == "all" else [stage]:
        benchmark.prepare(config.listed, name, words(domains) or None)


@app.command()
def train(overrides: Overrides = None, seeds: Seeds = "1", orders: Orders = "") -> None:
    """Train the initial model, or take the trained one that came with the recipe."""
    from asrcl.experiment.run import train_all

    train_all(configuration(overrides), seed_numbers(seeds), orders)


@app.command()
def adapt(
    overrides: Overrides = None,
    methods: Methods = DEFAULT_METHODS,
    seeds: Seeds = "1",
    orders: Orders = "",
) -> None:
    """Adapt domain by domain with several methods; `asrcl decode` then measures them."""
    from asrcl.experiment.run import adapt_all

    adapt_all(configuration(overrides), words(methods), seed_numbers(seeds), typed(), orders=orders)


@app.command()
def check(
    model: Annotated[str, typer.Argument(help="model.safetensors of the scenario's model, or initial: that of asrcl train")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="card.json; default: beside the model, NAME.check.json")] = None,
    domains: Annotated[str, typer.Option(help="only these domains or probes, e.g. 'US probe'")] = "",
    seed: Annotated[int, typer.Option(help="of the initial model")] = 1,
) -> None:
    """Measure a model on the dev and test sets of all domains and probes: the baselines that budgets (keep) count from."""
    from asrcl.experiment.run import check_model

    card, place = check_model(configuration(overrides), model, seed, words(domains), out)
    typer.echo(card.text())
    typer.echo(f"card: {place}")


@app.command()
def tune(
    overrides: Overrides = None,
    methods: Annotated[str, typer.Option("--methods", "--method", help="names under `methods` of the configuration")] = "ihr",
    grid: Annotated[str, typer.Option(help="all of these, e.g. 'tau=1,2 train.adapt.epochs=4'; else draws from `search`")] = "",
    settings: Annotated[int | None, typer.Option(help="how many settings to draw for every method", min=1)] = None,
    protocol: Annotated[str, typer.Option(help="first: after one adaptation; sequence: after all, in another order")] = "first",
    old_rise: Annotated[
        float | None, typer.Option(help="constrained: the first domain's error rate may rise by so many points")
    ] = None,
    seeds: Seeds = "1",
) -> None:
    """Search options of methods and of the run (those with a dot) on validation sets; every method gets as many settings."""
    from asrcl.experiment.tuning import search_all, searches

    config = configuration(["tuned=none", *(overrides or [])])
    found = searches(config, words(methods), option_values(grid) if grid else None, settings)
    after = "the first adaptation" if protocol == "first" else "all adaptations"
    for method, rows in search_all(config, found, seed_numbers(seeds), protocol, old_rise).items():
        print_rows(f"{method}: dev error rate (%) after {after}", rows)


@app.command()
def run(
    overrides: Overrides = None, methods: Methods = DEFAULT_METHODS, seeds: Seeds = "1", orders: Orders = ""
) -> None:
    """Do all of it in one go: prepare, train, adapt and decode, score, report; what is done already is left alone."""
    import time

    from asrcl.commands import scoring
    from asrcl.experiment.launch import workers
    from asrcl.experiment.registry import benchmark_of
    from asrcl.experiment.run import adapt_all, check_runs, train_all
    from asrcl.scoring.commands.verify import recount

    config, started = configuration(overrides), time.monotonic()
    benchmark, numbers = benchmark_of(config.tree), seed_numbers(seeds)
    first = 1

    def do(title: str, stage: Callable[[], None]) -> None:
        nonlocal first
        minutes, spent = divmod(int(time.monotonic() - started), 60)
        last = first + title.count(", ")
        typer.echo(f"== stage {first}{f'-{last}' if last > first else ''}: {title} ({minutes} min {spent} s)")
        first = last + 1
        stage()

    with workers(config):
        check_runs(config, words(methods))
        folders = [each.runs for each in config.in_orders(orders)]
        for name in benchmark.stages:
            do(name, partial(benchmark.prepare, config.listed, name))
        do("initial model", partial(train_all, config, numbers, orders))
        do("adapt, decode", partial(adapt_all, config, words(methods), numbers, typed(), decode=True, save=True, orders=orders))
    do("score", lambda: typer.echo(recount(*folders, table=False), nl=False))  # the report shows the table
    do("report", partial(scoring.report, folders, config.home if orders else None))


@app.command()
def decode(
    overrides: Overrides = None,
    methods: Methods = DEFAULT_METHODS,
    seeds: Seeds = "1",
    orders: Orders = "",
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

    config = configuration(overrides)
    if checkpoint is None:
        adapt_all(config, words(methods), seed_numbers(seeds), typed(), decode=True, orders=orders)
        return
    from asrcl.adapt import write_decode
    from asrcl.scoring import summary_table, written_line

    if not domain:
        raise InputError("--checkpoint needs --domain NAME")
    errors = decode_checkpoint(config, checkpoint, domain, split)
    if out:
        write_decode(errors, out)
    typer.echo(summary_table(errors))
    if line := written_line(errors):
        typer.echo(line)


