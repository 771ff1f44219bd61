"""Several runs at a time, a process for each, with a line after each part that says how long the rest will take."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch

from asrcl.adapt.progress import Progress
from asrcl.boundary import keep_errors_short
from asrcl.distributed import processes
from asrcl.exceptions import InputError
from asrcl.speech.config import Config

_progress: Progress | None = None


def step(parts: int = 1) -> str:
    """`Progress.step` of the work this process takes part in; "" outside of `in_jobs`."""
    return _progress.step(parts) if _progress is not None else ""


def import_plugins(config: Config) -> None:
    """Import the modules listed under `imports`, which may register methods of the user's own.

    Raises:
        InputError: a module that cannot be imported.
    """
    for module in config.tree["imports"]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(f"imports: cannot import {module} ({error}); is it on PYTHONPATH?") from error


def in_jobs(
    config: Config, function: Callable[..., Any], runs: Sequence[tuple[Any, ...]], what: str = "runs", parts: int = 0
) -> list[Any]:
    """Call `function` for each tuple of arguments, the configuration first, `launcher.jobs` at a time, a process for each.

    Args:
        config: of the experiment.
        function: picklable; says `step()` after each of its parts.
        runs: its arguments.
        what: the name of the parts in messages.
        parts: their number over all runs; by default one for each run.

    Raises:
        InputError: nothing to do, a process was killed, or what `function` raises.
    """
    if not runs:
        raise InputError("nothing to do: name at least one method (--methods) and one seed (--seeds)")
    # Processes of one torchrun share the work of each run, so they must all take the runs in the same order.
    jobs = min(max(1, config.tree["launcher"]["jobs"]), len(runs)) if processes().count == 1 else 1
    threads = max(1, config.tree["launcher"]["threads"] or (os.cpu_count() or 1) // jobs)
    progress, job = Progress(parts or len(runs), what), partial(_job, threads, function)
    if jobs == 1:
        _take_part(progress)
        try:
            return [job(run) for run in runs]
        finally:
            _take_part(None)
    context = multiprocessing.get_context("spawn")
    start = (os.getpid(), progress.total, what, context.Value("i", 0))
    with ProcessPoolExecutor(jobs, context, initializer=_start_process, initargs=start) as pool:
        try:
            return list(pool.map(job, runs))
        except BrokenProcessPool as error:
            why = f"a process was killed, by hand or for lack of memory (then try launcher.jobs={max(1, jobs // 2)})"
            raise InputError(f"{what}: {why}; the same command goes on where it stopped") from error


def _take_part(progress: Progress | None) -> None:
    global _progress
    _progress = progress


def _start_process(parent: int, total: int, what: str, count: Any) -> None:
    """In a new process: end when the parent has been killed, rather than go on unseen; share its count."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _take_part(Progress(total, what, count))


def _job(threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    keep_errors_short()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("speechbrain", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    torch.set_num_threads(threads)
    import_plugins(arguments[0])
    return function(*arguments)
