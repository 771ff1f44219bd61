"""The dashboards behind `asrcl.adapt.tracking`: each a function that starts a run, or goes on with an earlier one.

All take the configuration, the folder of the experiment's scenario, a name such as "train/ihr/1/stage2-ENG", settings by dotted
name, the identity of an earlier run or None, and how many steps that one has finished; they return the run and its identity.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from asrcl.exceptions import InputError
from asrcl.files import file_lock

logger = logging.getLogger(__name__)

PACKAGES: Final = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "'asrcl[track]'"),
    "wandb": ("wandb", "'asrcl[track]'"),
}
BATCH: Final = 100  # parameters in one call to MLflow
MAX_LETTERS: Final = 6000  # in one of them
PATIENCE: Final = {"MAX_RETRIES": "2", "BACKOFF_FACTOR": "1", "TIMEOUT": "10"}
"""MLFLOW_HTTP_REQUEST_...: MLflow's own defaults wait minutes for a server that is not there."""
WANDB_SECONDS: Final = 30


@dataclass(frozen=True)
class TrackingConfig:
    """Where curves go.

    Attributes:
        backends: any of "tensorboard", "mlflow", "wandb"; none for no curves.
        project: MLflow's experiment, Weights & Biases' project.
        uri: MLflow's server or database; None for what MLFLOW_TRACKING_URI says, or else a database in the experiment's folder.
        mode: of Weights & Biases; None for what WANDB_MODE says.
    """

    backends: tuple[str, ...] = ("tensorboard",)
    project: str = "asrcl"
    uri: str | None = None
    mode: Literal["online", "offline"] | None = None

    def __post_init__(self) -> None:
        known = ", ".join(PACKAGES)
        if isinstance(self.backends, str):
            raise InputError(f"tracking.backends={self.backends}: give a list of {known}")
        for name in self.backends:
            if name not in PACKAGES:
                raise InputError(f"tracking.backends: {name} is not known; choose from {known}")
        if self.mode not in (None, "online", "offline"):
            raise InputError(f"tracking.mode={self.mode}: choose online or offline, or null for what WANDB_MODE says")
        if not self.project:
            raise InputError("tracking.project is empty; name the experiment (MLflow) or project (Weights & Biases)")


class TrackedRun(Protocol):
    """One curve-drawing run of one dashboard."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each named curve."""

    def close(self, attachment: Path | None = None, failed: bool = False) -> None:
        """End the run; a file may be kept with it."""


Starter = Callable[[TrackingConfig, Path, str, Mapping[str, Any], str | None, int], tuple[TrackedRun, str]]


@dataclass
class _TensorBoard:
    writer: Any

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self, attachment: Path | None = None, failed: bool = False) -> None:
        self.writer.close()


def kept_name(attachment: Path) -> str:
    """What a file kept with a run is called: not `results.json`, which reports would find below the folder and take for a run."""
    return f"asrcl_{attachment.name}"


def event_folder(home: Path, name: str) -> Path:
    """Where TensorBoard's files of a run lie."""
    return home / "tensorboard" / name


def destination(backend: str, config: TrackingConfig, home: Path) -> str:
    """The place that curves go to, in words that change when another place is meant."""
    if backend == "tensorboard":
        return "event files"
    if backend == "mlflow":
        return f"{_mlflow_uri(config) or 'own database'}, {config.project}"
    mode = config.mode or os.environ.get("WANDB_MODE", "online")
    return f"{os.environ.get('WANDB_BASE_URL', 'wandb.ai')}, {config.project}, {mode}"


def start_tensorboard(
    config: TrackingConfig, home: Path, name: str, settings: Mapping[str, Any], identity: str | None, finished: int
) -> tuple[TrackedRun, str]:
    """Event files in `<home>/tensorboard/<name>`; those of an earlier run of this name go, unless it is resumed."""
    from torch.utils.tensorboard import SummaryWriter

    folder = event_folder(home, name)
    if not finished:
        shutil.rmtree(folder, ignore_errors=True)
    return _TensorBoard(SummaryWriter(str(folder), purge_step=finished + 1)), name


@dataclass
class _MLflow:
    client: Any
    run: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.run, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self, attachment: Path | None = None, failed: bool = False) -> None:
        if attachment is not None:
            self.client.log_text(self.run, attachment.read_text(encoding="utf-8"), kept_name(attachment))
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


def start_mlflow(
    config: TrackingConfig, home: Path, name: str, settings: Mapping[str, Any], identity: str | None, finished: int
) -> tuple[TrackedRun, str]:
    """A run of the MLflow experiment `config.project`."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    for key, value in PATIENCE.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", value)
    client, number = _mlflow_experiment(config, home)
    if identity is not None:
        try:
            client.update_run(identity, status="RUNNING")
            return _MLflow(client, identity), identity
        except MlflowException:
            logger.info("MLflow: run %s is gone; a new one begins", identity)
    run = client.create_run(number, run_name=f"{home.name}/{name}", tags={"scenario": home.name}).info.run_id
    parameters = [Param(key, str(value)[:MAX_LETTERS]) for key, value in settings.items()]
    for first in range(0, len(parameters), BATCH):
        client.log_batch(run, params=parameters[first : first + BATCH])
    return _MLflow(client, run), run


def _mlflow_uri(config: TrackingConfig) -> str | None:
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI")


def _mlflow_experiment(config: TrackingConfig, home: Path) -> tuple[Any, str]:
    """A client and the experiment's id. Of several jobs one makes the database and the experiment, the others wait.

    Files kept with runs go beside our own database, or any other that is a file, not into the current folder.
    """
    from mlflow import MlflowClient

    own, uri = (home / "mlflow").resolve(), _mlflow_uri(config)
    with file_lock(own / ".lock"):
        client = MlflowClient(tracking_uri=uri or f"sqlite:///{own / 'mlflow.db'}")
        found = client.get_experiment_by_name(config.project)
        if found is not None:
            return client, found.experiment_id
        served = uri is not None and not uri.startswith("sqlite")
        place = None if served else (own / "artifacts").as_uri()
        return client, client.create_experiment(config.project, artifact_location=place)


@dataclass
class _Wandb:
    run: Any

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self, attachment: Path | None = None, failed: bool = False) -> None:
        if attachment is not None:
            import wandb

            artifact = wandb.Artifact(self.run.name.replace("/", "-"), type="results")
            artifact.add_file(str(attachment), name=kept_name(attachment))
            self.run.log_artifact(artifact)
        self.run.finish(exit_code=int(failed))


def start_wandb(
    config: TrackingConfig, home: Path, name: str, settings: Mapping[str, Any], identity: str | None, finished: int
) -> tuple[TrackedRun, str]:
    """A run of the Weights & Biases project `config.project`; its local files go to `<home>/wandb`."""
    import wandb

    if (config.mode or os.environ.get("WANDB_MODE", "online")) == "online":
        _require_login()
    home.mkdir(parents=True, exist_ok=True)
    identity = identity or uuid.uuid4().hex[:12]
    run = wandb.init(
        project=config.project,
        name=f"{home.name}/{name}",
        group=home.name,
        id=identity,
        resume="allow",
        dir=str(home),
        config=dict(settings),
        mode=config.mode,
        settings=wandb.Settings(silent=True, init_timeout=WANDB_SECONDS, login_timeout=WANDB_SECONDS),
        reinit="create_new",
    )
    return _Wandb(run), identity


def _require_login() -> None:
    """Refuse where Weights & Biases would ask for a login on the terminal, and a run would wait for the answer."""
    from requests.utils import get_netrc_auth

    server = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or get_netrc_auth(server)):
        raise InputError("no login; call wandb login, set WANDB_API_KEY, or choose tracking.mode=offline")


STARTERS: Final[dict[str, Starter]] = {"tensorboard": start_tensorboard, "mlflow": start_mlflow, "wandb": start_wandb}
