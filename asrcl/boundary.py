"""The boundary between errors and the user: every error that is not a bug ends in one line on standard error and exit code 2."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from asrcl.exceptions import InputError
from asrcl.files import DISK


@contextmanager
def in_one_line() -> Iterator[None]:
    """Run a command; bad input, a disk that is full or a file that cannot be read ends in one line, without a traceback.

    What the command has printed is flushed here, so that a full disk under standard output is noticed as well.
    """
    keep_errors_short()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _close_stdout()
        sys.exit(1)  # who reads has seen enough
    except InputError as error:
        _end(str(error))
    except OSError as error:
        _end(_of_the_system(error))
    except MemoryError:
        _end("not enough memory; give it a smaller part of the work, or another machine")


def keep_errors_short() -> None:
    """In a process that works for a command: no traceback where the log, or what a thread writes, meets the disk.

    A dashboard whose thread has ended says so itself when it is next given something.
    """
    logging.raiseExceptions = False
    threading.excepthook = _thread_ended


def _thread_ended(given: threading.ExceptHookArgs) -> None:
    if not isinstance(given.exc_value, OSError):
        threading.__excepthook__(given)


def _of_the_system(error: OSError) -> str:
    where = str(error.filename or ("standard output, or another file" if error.errno in DISK else ""))
    reason = error.strerror or str(error) or type(error).__name__
    remedy = DISK.get(error.errno or 0)
    return ": ".join(filter(None, (where, reason))) + (f"; {remedy}, and run the command again" if remedy else "")


def _end(message: str) -> None:
    with suppress(OSError):
        print(f"asrcl: {message}", file=sys.stderr, flush=True)  # noqa: T201 - the one place where errors are told
    _close_stdout()
    sys.exit(2)


def _close_stdout() -> None:
    """Let go of what cannot be written, or the interpreter would complain of it at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
