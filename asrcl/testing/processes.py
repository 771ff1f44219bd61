"""Several processes on one CPU, set up as `torchrun` would, for tests of code that talks between processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

import torch
from torch import distributed

PRELOADED = ["asrcl.testing", "torch._dynamo", "torch.utils.tensorboard"]  # what a training run would import sooner or later


def run_in_processes(
    function: Callable[..., Any],
    count: int,
    *arguments: Any,
    timeout: float = 120.0,
    start: Literal["spawn", "forkserver"] = "spawn",
) -> list[Any]:
    """Call `function(*arguments)` in `count` processes at once and return their results by rank.

    Every process has the variables that `torchrun` sets (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; for one process
    WORLD_SIZE is 1) and one thread. GPUs are hidden, so that the process group is Gloo's.

    Args:
        function: importable by name, as are its arguments and result picklable.
        count: number of processes.
        *arguments: the same for all.
        timeout: seconds until the processes are killed.
        start: "spawn" starts fresh interpreters; "forkserver" imports once and is quicker when called often.

    Raises:
        RuntimeError: a process raised (with its traceback), died, or was not done in time.
    """
    context: Any = multiprocessing.get_context(start)
    context.set_forkserver_preload(PRELOADED)
    port = _free_port()
    pending: dict[Connection, tuple[int, BaseProcess]] = {}
    for rank in range(count):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sender, function, arguments, rank, count, port), daemon=True)
        process.start()
        sender.close()
        pending[receiver] = (rank, process)
    processes = [process for _, process in pending.values()]
    try:
        return _collect(pending, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collect(pending: dict[Connection, tuple[int, BaseProcess]], deadline: float) -> list[Any]:
    """Results by rank; the first failure is raised at once, since the other processes may wait for the failed one forever."""
    results: dict[int, Any] = {}
    while pending:
        ready = wait(list(pending), max(0.0, deadline - time.monotonic()))
        if not ready:
            late = ", ".join(str(rank) for rank, _ in pending.values())
            raise RuntimeError(f"process {late} was not done in time")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank, process = pending.pop(receiver)
            results[rank] = _receive(receiver, rank, process)
    return [results[rank] for rank in sorted(results)]


def _receive(receiver: Connection, rank: int, process: BaseProcess) -> Any:
    try:
        value, trouble = pickle.loads(receiver.recv_bytes())
    except EOFError:
        process.join()
        raise RuntimeError(f"process {rank} died with exit code {process.exitcode}") from None
    if trouble:
        raise RuntimeError(f"process {rank} raised\n{trouble}")
    return value


def _send(sender: Connection, value: Any, trouble: str | None) -> None:
    """By plain pickle: what a connection does with tensors needs the sender alive when they are read."""
    sender.send_bytes(pickle.dumps((value, trouble)))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _work(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, count: int, port: int) -> None:
    """What a process does; the outcome goes back through the pipe."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""})
    torch.set_num_threads(1)
    try:
        _send(sender, function(*arguments), None)
    except BaseException:
        with suppress(OSError):
            _send(sender, None, traceback.format_exc())
    else:
        if distributed.is_initialized():
            distributed.destroy_process_group()
