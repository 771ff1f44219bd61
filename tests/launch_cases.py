"""What the tests of `asrcl.experiment.launch` run in workers."""

import os
import signal
import time
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.experiment.launch import step


def add(config, number):
    return number + 1, step(), os.getpid()


def identify(config):
    time.sleep(0.2)
    return os.getpid()


def fail(config, number):
    if number == 1:
        raise InputError("no.file: run 1 cannot read it")
    return number


def die(config, number):
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def hang(config, folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)
