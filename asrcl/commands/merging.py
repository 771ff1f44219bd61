"""`asrcl merge`, `sweep`, `methods`: merging checkpoints of any toolkit, and what there is to choose from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from asrcl.commands.shared import Overrides, configuration, option_values, plain_value, print_table, typed
from asrcl.exceptions import InputError
from asrcl.visible import cell

app = typer.Typer()


MethodOption = Annotated[
    list[str] | None, typer.Option("--option", help="option of the method, e.g. --option tau=2 (repeatable)")
]
OldSpelling = Annotated[list[str] | None, typer.Option("--knob", hidden=True, help="the same as --option")]
MergeMethodName = Annotated[str | None, typer.Option("--method", help="merge method, see asrcl methods; default ihr")]
OldCurvature = Annotated[
    list[Path] | None, typer.Option("--curvature", help="curvature of the old domain at the old model (repeatable)")
]
NewCurvature = Annotated[list[Path] | None, typer.Option("--new-curvature", help="curvature of each new model (repeatable)")]
Rest = Annotated[str | None, typer.Option("--rest", help="tensors a method cannot treat: 1/t, a number, keep, new, fisher")]
RulesFile = Annotated[Path | None, typer.Option("--config", help="merge.yaml: methods by tensor name")]
OldModel = Annotated[Path, typer.Argument(help="checkpoint before adaptation: file or folder of any toolkit")]
NewModels = Annotated[list[Path], typer.Argument(help="checkpoint(s) after fine-tuning")]


def _merge_spec(config: Path | None, option: list[str] | None, knob: list[str] | None, **given: Any) -> Any:
    from asrcl.merge import MergeSpec
    from asrcl.merge.rules import load_rules

    chosen = {name: values[0] for name, values in option_values(" ".join([*(option or ()), *(knob or ())])).items()}
    if given.get("rest") is not None:
        given["rest"] = plain_value(given["rest"])
    return MergeSpec.of(load_rules(config) if config else None, knobs=chosen or None, **given)


@app.command()
def merge(
    old: OldModel,
    new: NewModels,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="where the merged checkpoint goes")] = None,
    method: MergeMethodName = None,
    curvature: OldCurvature = None,
    new_curvature: NewCurvature = None,
    base: Annotated[Path | None, typer.Option(help="ancestor of all models, where it is not the old one")] = None,
    option: MethodOption = None,
    knob: OldSpelling = None,
    rest: Rest = None,
    statistics: Annotated[str | None, typer.Option(help="running statistics: pool, old, new")] = None,
    layers: Annotated[list[str] | None, typer.Option(help="globs of the tensors curvature may treat (repeatable)")] = None,
    task: Annotated[int | None, typer.Option(help="number of domains with the new one")] = None,
    budget: Annotated[float | None, typer.Option(help="largest predicted increase of the old loss")] = None,
    budget_domains: Annotated[
        str | None, typer.Option(help="how far error rates may rise: 'probe:+0.5 general:+5%', points or per cent (docs/keep.md)")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="for --budget-domains: command with {model} that prints 'DOMAIN RATE' for each, or JSON")
    ] = None,
    path: Annotated[str, typer.Option(help="for --budget-domains, how less is taken: straight, or by damping")] = "straight",
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
    spec = _merge_spec(config, option, knob, **given, vocabulary=vocabulary, trailing=trailing, differences=differences)
    if bool(budget_domains) != bool(evaluate) or (budget_domains and dry_run):
        raise InputError("--budget-domains needs --evaluate 'COMMAND {model}', and that needs it; both go without --dry-run")
    if dry_run:
        previews, scale = preview_files(old, new, spec)
        print_table(show.preview_table(previews, rows))
        typer.echo(show.preview_summary(previews, scale))
        return
    if out is None:
        raise InputError("--out is missing: say where the merged checkpoint goes, or --dry-run")
    options: dict[str, Any] = {"container": container, "overwrite": overwrite, "command": typed()}
    if budget_domains and evaluate:
        from asrcl.keep import read_budgets
        from asrcl.merge.within import RateCommand, merge_within

        budgets = read_budgets(budget_domains, "--budget-domains")
        options |= {"path": path, "progress": logging.info}
        record = merge_within(old, new, out, spec, budgets, RateCommand(evaluate, budgets), **options)
    else:
        record = merge_files(old, new, out, spec, **options)
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
    option: MethodOption = None,
    knob: OldSpelling = None,
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

        scores = validation_errors(configuration(override), dict(zip(("old", "new"), domains, strict=True)))
    spec = _merge_spec(config, option, knob, method=method, curvature=curvature, new_curvature=new_curvature, rest=rest)
    found = run_sweep(old, new, out, spec, option_values(grid), scores, keep=keep, progress=logging.info)
    print_table(show.rows_table(lines(found)))
    if pareto(found):
        plot(found, out / "pareto.png")
        typer.echo(f"plot: {out / 'pareto.png'}")


@app.command()
def methods(
    overrides: Overrides = None,
    merge: Annotated[bool, typer.Option("--merge", help="only what asrcl merge --method takes")] = False,
) -> None:
    """List the continual-learning methods (for --methods) and the merge methods, with their options and defaults."""
    from asrcl.merge import methods as merge_methods
    from asrcl.merge import show

    if not merge:
        print_table(_continual_methods(configuration(["tuned=none", *(overrides or [])])))
    table = show.methods_table(merge_methods())
    table.title = "Merge methods: asrcl merge --method NAME, asrcl sweep"
    print_table(table)


def _continual_methods(config: Any) -> Any:
    """A table of the entries under `methods` of a configuration: class, options, the first line of the class's docstring."""
    import inspect

    from rich import box
    from rich.table import Table

    from asrcl.experiment.run import configured_method
    from asrcl.scoring.results.run_result import NO_OPTIONS

    title = "Continual-learning methods: asrcl adapt | decode | tune | run --methods NAMES"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "options (methods.NAME.OPTION=VALUE)", "idea"):
        table.add_column(column, overflow="fold")
    for name, entry in sorted(config.tree["methods"].items()):
        _, method = configured_method(config, name)
        options = " ".join(f"{key}={value}" for key, value in entry.items() if key not in NO_OPTIONS)
        table.add_row(cell(name), cell(options), cell((inspect.getdoc(type(method)) or "").partition("\n")[0]))
    return table


