"""Runs in processes of their own: results in order, shared progress, errors in one line, nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_cases import add, die, fail, hang, identify

from asrcl.exceptions import InputError
from asrcl.experiment.config import Config
from asrcl.experiment.launch import in_jobs, step, workers

TWO = Config({"launcher": {"jobs": 2, "threads": 1}, "imports": []})
ONE = Config({"launcher": {"jobs": 1, "threads": 1}, "imports": []})


@pytest.fixture(autouse=True)
def cases(monkeypatch):
    """Workers find the functions of these tests by the path that they inherit."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.mark.parametrize("config", [ONE, TWO])
def test_results_come_in_order_and_parts_are_counted_over_all_processes(config):
    runs = [(config, number) for number in range(4)]
    found = in_jobs(config, add, runs, "sums", 4)
    assert [number for number, _, _ in found] == [1, 2, 3, 4]
    assert sorted(int(said.split()[0]) for _, said, _ in found) == [1, 2, 3, 4]
    assert all("of 4 sums" in said for _, said, _ in found) and step() == ""
    assert (os.getpid() in {process for _, _, process in found}) is (config is ONE)


def test_workers_are_kept_for_several_calls():
    with workers(TWO):
        first = set(in_jobs(TWO, identify, [(TWO,)] * 4))
        second = set(in_jobs(TWO, identify, [(TWO,)] * 4))
    assert len(first | second) <= 2  # a worker may sleep through the first call
    assert set(in_jobs(TWO, identify, [(TWO,)] * 2)).isdisjoint(first | second)


def test_an_error_of_a_run_is_the_error_of_all(monkeypatch):
    """And nothing else is said: not by the thread that ends the workers while runs are left over."""
    died = []
    monkeypatch.setattr("threading.excepthook", died.append)
    with pytest.raises(InputError, match=r"^no\.file: run 1") as refused:
        in_jobs(TWO, fail, [(TWO, number) for number in range(12)])
    assert "\n" not in str(refused.value) and not died


def test_a_killed_worker_is_named_with_the_remedy():
    with pytest.raises(InputError, match=r"runs: .*killed.*launcher\.jobs=1") as refused:
        in_jobs(TWO, die, [(TWO, number) for number in range(3)])
    assert "\n" not in str(refused.value)


def test_nothing_to_do_is_refused():
    with pytest.raises(InputError, match=r"--methods.*--seeds"):
        in_jobs(TWO, add, [])


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    program = (
        "from launch_cases import hang\nfrom asrcl.experiment.config import Config\nfrom asrcl.experiment.launch import in_jobs\n"
        "c = Config({'launcher': {'jobs': 2, 'threads': 1}, 'imports': []})\n"
        f"in_jobs(c, hang, [(c, {str(tmp_path)!r}), (c, {str(tmp_path)!r})])\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).resolve().parents[2])])
    with subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}) as parent:
        try:
            wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 60)
        finally:
            parent.send_signal(signal.SIGKILL)
    numbers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(numbers) == 2 and hang
    wait_until(lambda: not any(Path(f"/proc/{number}/cmdline").exists() for number in numbers), 20)


def wait_until(holds, seconds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
