"""Curves for dashboards: every fine-tune while it runs, and every result, in TensorBoard, MLflow or Weights & Biases.

    Tracking(TrackingConfig(backends=("tensorboard", "mlflow")), "exp/accents")

A dashboard is a copy: `results.json` stays the source, and a run never stops because a dashboard does not answer. One result
is sent once to each dashboard; what was sent where is kept in `tracking.json` beside the result.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asrcl.adapt.trackers import PACKAGES, STARTERS, TrackedRun, TrackingConfig
from asrcl.exceptions import InputError
from asrcl.files import hash_json, read_json, write_json
from asrcl.scoring import RunResult, metrics

logger = logging.getLogger(__name__)

MARKER: Final = "tracking.json"


class Tracking:
    """Sends curves to the chosen dashboards.

    Args:
        config: which.
        home: folder of the experiment's scenario; TensorBoard's files and MLflow's database go below it.

    Raises:
        InputError: the package of a dashboard is not installed. TensorBoard, the default, is left out instead.
    """

    def __init__(self, config: TrackingConfig, home: str | Path) -> None:
        self.config, self.home = config, Path(home)
        missing = [name for name in config.backends if importlib.util.find_spec(PACKAGES[name][0]) is None]
        if wanted := [name for name in missing if name != "tensorboard"]:
            named = ", ".join(wanted)
            raise InputError(f"tracking.backends: {named} not installed; pip install {PACKAGES[wanted[0]][1]}, or choose others")
        self.backends = [name for name in config.backends if name not in missing]
        self._left_out: set[str] = set()

    def training(self, name: str, folder: Path, settings: Mapping[str, Any], finished: int) -> TrackedRun:
        """A run for one fine-tune.

        Args:
            name: such as "ihr/1/stage2-ENG".
            folder: of the fine-tune's progress; a resumed fine-tune goes on with the run that this folder names.
            settings: to show beside the curves.
            finished: epochs that were done before; 0 starts afresh.
        """
        known = read_json(folder / MARKER) if finished and (folder / MARKER).is_file() else {}
        started = {}
        for backend in self.backends:
            if run := self._start(backend, f"train/{name}", settings, known.get(backend), finished):
                started[backend] = run
        if started:
            write_json(folder / MARKER, {backend: identity for backend, (_, identity) in started.items()})
        return _Several({backend: run for backend, (run, _) in started.items()})

    def result(self, result: RunResult, folder: Path) -> None:
        """Send a result's error rates by stage and domain, update norms and metrics, unless this was done before."""
        content = hash_json(read_json(folder / "results.json"))
        marker = folder / MARKER
        sent = read_json(marker) if marker.is_file() else {}
        for backend in self.backends:
            if sent.get(backend) == content:
                continue
            started = self._start(backend, f"{result.method}/{result.seed}", result.config, None, 0)
            if started is not None:
                run = _Several({backend: started[0]})
                for step, values in enumerate(result_curves(result), 1):
                    run.log(values, step)
                run.close(folder / "results.json")
                if run.answers:
                    sent[backend] = content
        if sent:
            write_json(marker, sent)

    def _start(
        self, backend: str, name: str, settings: Mapping[str, Any], identity: str | None, finished: int
    ) -> tuple[TrackedRun, str] | None:
        if backend in self._left_out:
            return None
        try:
            return STARTERS[backend](self.config, self.home, name, flat(settings), identity, finished)
        except Exception as error:
            _warn(backend, error)
            self._left_out.add(backend)
            return None


@dataclass
class _Several:
    """One run on several dashboards; one that fails is left out from then on."""

    runs: dict[str, TrackedRun]
    answers: bool = True

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._each("log", values, step)

    def close(self, attachment: Path | None = None, failed: bool = False) -> None:
        self._each("close", attachment, failed)

    def _each(self, action: str, *arguments: Any) -> None:
        for backend, run in [*self.runs.items()]:
            try:
                getattr(run, action)(*arguments)
            except Exception as error:
                _warn(backend, error)
                del self.runs[backend]
                self.answers = False


def _warn(backend: str, error: Exception) -> None:
    reason = " ".join(str(error).split()) or type(error).__name__
    logger.warning("%s: %s; going on without it, results on disk are complete", backend, reason)


def result_curves(result: RunResult) -> list[dict[str, float]]:
    """Per stage the numbers to draw: `rate/<domain>` (percent), `average` of the domains seen, norms; in the last AVG and BWT."""
    rates = result.rates()
    curves = []
    for stage, average in enumerate(metrics.stage_averages(result.completed())):
        record = result.stages[stage] if stage < len(result.stages) else {}
        values = {f"rate/{domain}": rates[stage, n] for n, domain in enumerate(result.domains)}
        values |= {"average": average} | {key: record[key] for key in ("update_norm", "merged_update_norm") if key in record}
        curves.append({name: float(value) for name, value in values.items() if value == value})
    curves[-1] |= {"AVG": metrics.avg(result.completed()), "BWT": metrics.bwt(result.completed())}
    return curves


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = value if isinstance(value, Mapping) else {}
        found |= flat(inner, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found
