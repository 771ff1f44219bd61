import time

import launched_functions
import pytest
import torch

from asrcl.testing import run_in_processes


def test_spawned_processes_talk_to_each_other():
    values = run_in_processes(launched_functions.sum_of_ranks, 2)
    assert [(float(total), threads) for total, threads in values] == [(3.0, 1), (3.0, 1)]
    assert isinstance(values[0][0], torch.Tensor)


def test_results_come_by_rank_with_the_variables_of_torchrun():
    values = run_in_processes(launched_functions.add, 3, 2, 3, start="forkserver")
    assert [total for total, _ in values] == [5, 5, 5]
    assert [environment["RANK"] for _, environment in values] == ["0", "1", "2"]
    assert [environment["LOCAL_RANK"] for _, environment in values] == ["0", "1", "2"]
    assert {environment["WORLD_SIZE"] for _, environment in values} == {"3"}
    assert {environment["MASTER_ADDR"] for _, environment in values} == {"127.0.0.1"}


def test_one_process_is_a_plain_run():
    [(total, environment)] = run_in_processes(launched_functions.add, 1, "a", "b", start="forkserver")
    assert total == "ab" and environment["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    "function, message",
    [
        (launched_functions.one_fails, "(?s)process 1 raised.*ValueError: out of luck"),
        (launched_functions.one_dies, "process 0 died with exit code 3"),
    ],
)
def test_a_failure_ends_the_others(function, message):
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        run_in_processes(function, 2, start="forkserver")
    assert time.monotonic() - started < 30


def test_processes_that_take_too_long_are_named():
    with pytest.raises(RuntimeError, match="process 0, 1 was not done in time"):
        run_in_processes(launched_functions.sleep, 2, timeout=0.5, start="forkserver")
