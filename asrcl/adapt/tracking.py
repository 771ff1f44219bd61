"""Curves for dashboards: every fine-tune while it runs, and every result, in TensorBoard, MLflow or Weights & Biases.

    Tracking(TrackingConfig(backends=("tensorboard", "mlflow")), "exp/accents")

A dashboard is a copy: `results.json` stays the source, and a run never stops because a dashboard does not answer. What was sent
where is kept in `tracking.json` beside the fine-tune or the result, so that nothing is sent twice to one place, and whatever a
dashboard does not have yet (it was not asked for, did not answer, or the run was killed) is sent the next time.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asrcl.adapt.trackers import PACKAGES, STARTERS, TrackedRun, TrackingConfig, destination, event_folder
from asrcl.exceptions import InputError
from asrcl.files import file_lock, hash_json, read_json, write_json
from asrcl.scoring import RunResult
from asrcl.scoring.results import metrics

logger = logging.getLogger(__name__)

MARKER: Final = "tracking.json"
MAX_WORDS: Final = 200  # letters of a dashboard's own complaint


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

    def training(
        self, name: str, folder: Path, settings: Mapping[str, Any], history: Sequence[Mapping[str, float]]
    ) -> TrackedRun:
        """A run for one fine-tune, with the epochs that are done; a dashboard that has some of them gets the others.

        Args:
            name: such as "ihr/1/stage2-ENG-3fa4c2"; a fine-tune that has a name keeps it, whichever method comes later.
            folder: of the fine-tune; its `tracking.json` names the runs to go on with.
            settings: to show beside the curves.
            history: numbers of the epochs that are done.
        """
        return self._follow(name, folder, settings, history, self.backends)

    def _follow(
        self,
        name: str,
        folder: Path,
        settings: Mapping[str, Any],
        history: Sequence[Mapping[str, float]],
        backends: Sequence[str],
    ) -> _Followers:
        known, runs = _read_marker(folder), {}
        name = known.setdefault("name", f"train/{name}")
        for backend in [*backends]:
            to = destination(backend, self.config, self.home)
            earlier = self._earlier(backend, name, known.get(backend), to)
            started = self._start(backend, name, settings, earlier["run"], earlier["steps"])
            if started is not None:
                run, identity = started
                runs[backend] = _Follower(run, to, identity, earlier["steps"] if identity == earlier["run"] else 0)
        followers = _Followers(runs, self._give_up, folder, name)
        followers.note()  # a run that is killed before its first epoch goes on, too
        for step, values in enumerate(history, 1):
            followers.log(values, step)
        return followers

    def replay(
        self, name: str, folder: Path, settings: Mapping[str, Any], history: Sequence[Mapping[str, float]]
    ) -> None:
        """Send a finished fine-tune to dashboards that do not have all of it; arguments as in `training`."""
        if self._incomplete(folder, len(history)):
            with file_lock(folder / "tracking.lock"):
                lacking = self._incomplete(folder, len(history))  # another process may have been quicker
                self._follow(name, folder, settings, history, lacking).close()

    def result(self, result: RunResult, folder: Path) -> None:
        """Send a result's error rates by stage and domain, update norms and metrics, unless the place has them."""
        curves, sent = result_curves(result), _read_marker(folder)
        name = f"{result.method}/{result.seed}"
        for backend in [*self.backends]:
            to = destination(backend, self.config, self.home)
            content = hash_json({"curves": curves, "to": to})
            if sent.get(backend) == content and self._is_there(backend, name):
                continue
            started = self._start(backend, name, result.config, None, 0)
            if started is not None:
                run = _Followers({backend: _Follower(started[0], to, started[1], 0)}, self._give_up)
                for step, values in enumerate(curves, 1):
                    run.log(values, step)
                run.close(folder / "results.json")
                if run.runs:
                    write_json(folder / MARKER, sent := {**sent, backend: content})

    def _incomplete(self, folder: Path, steps: int) -> list[str]:
        """The dashboards that do not have so many steps of a fine-tune, and its end."""
        if not self.backends:
            return []
        known, lacking = _read_marker(folder), []
        for backend in self.backends:
            to = destination(backend, self.config, self.home)
            earlier = self._earlier(backend, str(known.get("name", "")), known.get(backend), to)
            if not earlier["done"] or earlier["steps"] < steps:
                lacking.append(backend)
        return lacking

    def _earlier(self, backend: str, name: str, known: Any, to: str) -> dict[str, Any]:
        """What an earlier run left at this place: its identity and how many steps it has."""
        if isinstance(known, dict) and known.get("to") == to and self._is_there(backend, name):
            steps = known.get("steps")
            if isinstance(steps, int):  # otherwise the note is damaged, and counts as none
                return {"run": known.get("identity"), "steps": steps, "done": bool(known.get("done"))}
        return {"run": None, "steps": 0, "done": False}

    def _is_there(self, backend: str, name: str) -> bool:
        return backend != "tensorboard" or event_folder(self.home, name).is_dir()

    def _start(
        self, backend: str, name: str, settings: Mapping[str, Any], identity: str | None, finished: int
    ) -> tuple[TrackedRun, str] | None:
        try:
            return STARTERS[backend](self.config, self.home, name, flat(settings), identity, finished)
        except Exception as error:
            self._give_up(backend, error)
            return None

    def _give_up(self, backend: str, error: Exception) -> None:
        """Leave a dashboard out from now on, and say so."""
        reason = " ".join(str(error).split()) or type(error).__name__
        short = reason if len(reason) <= MAX_WORDS else f"{reason[:MAX_WORDS]}…"
        where = destination(backend, self.config, self.home)
        logger.warning("%s (%s): %s; going on without it, results on disk are complete", backend, where, short)
        self.backends = [name for name in self.backends if name != backend]


@dataclass
class _Follower:
    """A run on one dashboard, and how far it is."""

    run: TrackedRun
    to: str
    identity: str
    steps: int
    done: bool = False


@dataclass
class _Followers:
    """One run on several dashboards; one that fails is left out from then on. Each step goes once to each."""

    runs: dict[str, _Follower]
    give_up: Callable[[str, Exception], None]
    folder: Path | None = None
    name: str = ""

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._each(lambda follower: _log_once(follower, values, step))
        self.note()

    def close(self, attachment: Path | None = None, failed: bool = False) -> None:
        self._each(lambda follower: _close(follower, attachment, failed))
        self.note()

    def _each(self, action: Callable[[_Follower], None]) -> None:
        for backend, follower in [*self.runs.items()]:
            try:
                action(follower)
            except Exception as error:
                del self.runs[backend]
                self.give_up(backend, error)

    def note(self) -> None:
        """Keep how far each dashboard is; those of other calls stay as they are."""
        if self.folder is not None and self.runs:
            now: dict[str, Any] = {"name": self.name}
            for backend, follower in self.runs.items():
                now[backend] = {key: getattr(follower, key) for key in ("to", "identity", "steps", "done")}
            write_json(self.folder / MARKER, _read_marker(self.folder) | now)


def _log_once(follower: _Follower, values: Mapping[str, float], step: int) -> None:
    if step > follower.steps:
        follower.run.log(values, step)
        follower.steps = step


def _close(follower: _Follower, attachment: Path | None, failed: bool) -> None:
    follower.run.close(attachment, failed)
    follower.done = not failed


def _read_marker(folder: Path) -> dict[str, Any]:
    """What was sent; nothing where the file is missing or damaged, for then it is sent again."""
    try:
        found = read_json(folder / MARKER)
    except InputError:
        return {}
    return found if isinstance(found, dict) else {}


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
