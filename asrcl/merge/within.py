"""Merging checkpoints as far as named domains bear it: the largest strength within budgets for their error rates.

    budgets = read_budgets("probe:+0.5 general:+5%", "--budget-domains")
    record = merge_within("old.pt", ["new.pt"], "merged.pt", spec, budgets, RateCommand("python score.py {model}", budgets))

The search is that of `asrcl.keep`; models are merged and measured one after the other beside the target, and removed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asrcl.exceptions import InputError
from asrcl.files import parse_json
from asrcl.keep import Budget, Reading, Readings, check_baselines, search
from asrcl.merge.card import MergeRecord
from asrcl.merge.files import Path_, merge_files, preview_files
from asrcl.merge.path import STRAIGHT, PathKind, at_strength, check_path
from asrcl.merge.spec import MergeSpec
from asrcl.merge.sweep import CommandEvaluation, shortened_output

Rates = Mapping[str, float]


def merge_within(
    old: Path_,
    new: Sequence[Path_],
    out: Path_,
    spec: MergeSpec,
    budgets: Sequence[Budget],
    evaluate: Callable[[Path], Rates],
    *,
    path: PathKind = "straight",
    container: str | None = None,
    overwrite: bool = False,
    command: str = "",
    progress: Callable[[str], None] | None = None,
) -> MergeRecord:
    """Merge checkpoints with the largest strength that keeps every named domain within its budget; the card has the trade.

    The old model is measured first: its error rates are what the budgets count from.

    Args:
        old: as in `asrcl.merge.merge_files`.
        new: as there.
        out: as there.
        spec: the whole merge.
        budgets: how far the error rates may rise.
        evaluate: checkpoint -> error rate in percent of every domain with a budget.
        path: from the old model to the whole merge, see `asrcl.merge.path`.
        container: as in `merge_files`.
        overwrite: as there.
        command: as there.
        progress: called with a line after every evaluation.

    Raises:
        InputError: as `merge_files` and the evaluation; a budget that not even the old model meets, or a path the method lacks.
    """
    check_path(path, spec.method, spec.rest, "--path")
    if path != STRAIGHT and spec.rules is not None:
        why = "rules by tensor name have damping of their own"
        raise InputError(f"--path {path}: {why}; choose {STRAIGHT}, or leave --config out")
    for budget in budgets:
        if budget.amount < 0:
            raise InputError(f"--budget-domains: {budget} is not met by the old model itself; write a budget of 0 or more")
    target = Path(out)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise InputError(f"{out}: exists already; choose another folder, or overwrite=True to replace it")
    preview_files(old, new, spec, measure=False)  # what the merge will refuse is refused before anything is measured
    trial = target.parent / f".{target.name}.trial"

    def merged(strength: float, place: Path, **options: Any) -> MergeRecord:
        chosen, scale = at_strength(spec, path, strength)
        return merge_files(old, new, place, chosen, container=container, command=command, scale=scale, **options)

    def measure(strength: float) -> Readings:
        try:
            merged(strength, trial / target.name, overwrite=True)
            rates = evaluate(trial / target.name)
        finally:
            shutil.rmtree(trial, ignore_errors=True)
        return told(strength, rates)

    def told(strength: float, rates: Rates) -> Readings:
        found = {budget.domain: Reading(rates[budget.domain]) for budget in budgets}
        if progress is not None:
            progress(f"strength {strength:g}: {', '.join(f'{name} {reading.rate:.2f}' for name, reading in found.items())}")
        return found

    before = told(0.0, evaluate(Path(old)))
    baselines = {name: reading.rate for name, reading in before.items()}
    check_baselines(baselines, "--budget-domains")
    trade = search(budgets, baselines, measure, known={0.0: before})
    return merged(trade.strength, target, overwrite=overwrite, trade={**trade.as_json(), "path": path})


@dataclass(frozen=True)
class RateCommand:
    """Error rates from a command: `{model}` in it becomes the checkpoint; it prints a line `name rate` for every domain, or JSON.

    Attributes:
        command: as of `asrcl.merge.sweep.CommandEvaluation`, without a shell.
        budgets: of the domains whose rates are wanted; other lines are passed over, and of two lines of a domain the last counts.
        timeout: seconds.

    Raises:
        InputError: as `CommandEvaluation`; when called: a rate is missing or no number; the message shows what was printed.
    """

    command: str
    budgets: Sequence[Budget]
    timeout: float | None = None

    def __call__(self, model: Path) -> dict[str, float]:
        """The error rates of a checkpoint, in percent."""
        output = self._command.output(model)
        return {budget.domain: _rate(output, budget.domain) for budget in self.budgets}

    def __post_init__(self) -> None:
        _ = self._command

    @property
    def _command(self) -> CommandEvaluation:
        return CommandEvaluation(self.command, self.timeout)


def _rate(output: str, domain: str) -> float:
    """The error rate of a domain in what a command printed."""
    try:
        value = float(_values(output)[domain])
    except (KeyError, ValueError, TypeError) as error:
        wrong = "no error rate of" if isinstance(error, KeyError) else "what is no number for"
        wanted = f"a line '{domain} RATE' for every domain, or a JSON object"
        raise InputError(f"--evaluate: {wrong} {domain}; print {wanted}; it printed {shortened_output(output)}") from error
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"--evaluate: {value} is no error rate of {domain} in percent; it printed {shortened_output(output)}")
    return value


def _values(output: str) -> dict[str, Any]:
    """What a command printed by domain: JSON as a whole or in its last line, else the last word of a line by those before."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for text in (output.strip(), *lines[-1:]):
        if text.startswith("{"):
            found = _parsed(text)
            if isinstance(found, dict):
                return found
    pairs = [line.rsplit(None, 1) for line in lines]
    return {pair[0].rstrip(":"): pair[1].rstrip("%") for pair in pairs if len(pair) == 2}


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return None
