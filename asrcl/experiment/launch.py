"""Several runs at a time, each in a process of its own (joblib's loky), with progress and the time that is left on the log."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib.externals.loky.process_executor import BrokenProcessPool, ProcessPoolExecutor

from asrcl.boundary import keep_errors_short
from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.experiment.registry import import_plugins
from asrcl.files import file_lock

if TYPE_CHECKING:
    from asrcl.adapt.progress import Progress

_progress: Progress | None = None
_kept: ProcessPoolExecutor | None = None  # of `workers`
IDLE_SECONDS = 600  # after which a worker without work ends


def step(parts: int = 1) -> str:
    """`Progress.step` of the work this process takes part in; "" outside of `in_jobs`."""
    return _progress.step(parts) if _progress is not None else ""


class _Count:
    """A number that processes share: the size of a file, since loky's workers inherit no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def get_lock(self) -> AbstractContextManager[None]:
        return file_lock(self.path.with_suffix(".lock"))

    @property
    def value(self) -> int:
        return self.path.stat().st_size

    @value.setter
    def value(self, number: int) -> None:
        os.truncate(self.path, number)


@contextmanager
def workers(config: Config) -> Iterator[None]:
    """Keep the worker processes for all calls of `in_jobs` in the block, since each takes seconds to import what it needs.

    They start with the block, and import while this process does.
    """
    global _kept
    count = config.tree["launcher"]["jobs"]
    if count <= 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return
    _kept = _executor(count)
    try:
        with _ended(_kept):
            for _ in range(count):
                _kept.submit(_import_adapt)
            yield
    finally:
        _kept = None


@contextmanager
def _ended(executor: ProcessPoolExecutor) -> Iterator[None]:
    """The workers end after the block, at once where it fails."""
    try:
        yield
    except BaseException:
        heard, threading.excepthook = threading.excepthook, lambda failed: None
        try:  # a result that arrives while loky ends its workers is one that its thread no longer knows
            executor.shutdown(kill_workers=True)
        finally:
            threading.excepthook = heard
        raise
    executor.shutdown(wait=False)  # their ends take seconds; this process waits for them before its own


def _executor(count: int) -> ProcessPoolExecutor:
    # loky replaces a worker that has grown by 300 MB, as with the first large model it does, and warns of a leak.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
    return ProcessPoolExecutor(count, timeout=IDLE_SECONDS, initializer=_start_process, initargs=(os.getpid(),))


def in_jobs(
    config: Config, function: Callable[..., Any], runs: Sequence[tuple[Any, ...]], what: str = "runs", parts: int = 0
) -> list[Any]:
    """Call `function` for each tuple of arguments, the configuration first, `launcher.jobs` at a time, a process for each.

    Args:
        config: of the experiment.
        function: picklable; calls `step()` after each of its parts.
        runs: its arguments.
        what: the name of the parts in messages.
        parts: their number over all runs; by default one for each run.

    Raises:
        InputError: nothing to do, a process was killed, or what `function` raises.
    """
    from asrcl.adapt.progress import Progress
    from asrcl.distributed import processes

    if not runs:
        raise InputError("nothing to do: name at least one method (--methods) and one seed (--seeds)")
    # Processes of one torchrun share the work of each run, so they must all take the runs in the same order.
    jobs = min(max(1, config.tree["launcher"]["jobs"]), len(runs)) if processes().count == 1 else 1
    threads = max(1, config.tree["launcher"]["threads"] or (os.cpu_count() or 1) // jobs)
    progress = Progress(parts or len(runs), what)
    if jobs == 1:
        return [_job(threads, function, progress, run) for run in runs]
    with tempfile.TemporaryDirectory(prefix="asrcl-") as folder:
        shared = Progress(progress.total, what, _Count(Path(folder) / "count"))
        job = partial(_job, threads, function, shared)
        try:
            if _kept is not None:
                return _results(_kept, job, runs)
            executor = _executor(jobs)
            with _ended(executor):
                return _results(executor, job, runs)
        except BrokenProcessPool as error:
            why = f"a process was killed, by hand or for lack of memory (then try launcher.jobs={max(1, jobs // 2)})"
            raise InputError(f"{what}: {why}; the same command goes on where it stopped") from error


def _results(executor: ProcessPoolExecutor, job: Callable[..., Any], runs: Sequence[tuple[Any, ...]]) -> list[Any]:
    """In the order of the runs; not by `map`, which cancels what an error leaves over, and loky then fails to end its workers."""
    futures = [executor.submit(job, run) for run in runs]
    return [future.result() for future in futures]


def _import_adapt() -> None:
    import asrcl.adapt  # noqa: F401


def _start_process(parent: int) -> None:
    """In a new process: say what goes on, and end when the parent has been killed rather than go on unseen."""
    keep_errors_short()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("speechbrain", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _job(threads: int, function: Callable[..., Any], progress: Progress, arguments: tuple[Any, ...]) -> Any:
    global _progress
    import torch

    torch.set_num_threads(threads)
    import_plugins(arguments[0].tree["imports"])
    before, _progress = _progress, progress
    try:
        return function(*arguments)
    finally:
        _progress = before
