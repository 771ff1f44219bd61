"""How long the rest takes."""

import multiprocessing

import pytest

from asrcl.adapt.progress import Progress, duration


@pytest.mark.parametrize(
    "seconds, words",
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (190.4, "3 min 10 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_what_is_left_follows_from_what_was_done(monkeypatch):
    progress = Progress(4, "stages")
    monkeypatch.setattr("asrcl.adapt.progress.time.time", lambda: progress.started + 30)
    assert progress.step() == "1 of 4 stages, about 1 min 30 s left"
    assert progress.step(2) == "3 of 4 stages, about 10 s left"
    assert progress.step() == "4 of 4 stages"


def step_often(count):
    progress = Progress(200, "runs", count)
    for _ in range(100):
        progress.step()


def test_processes_share_one_count():
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    processes = [context.Process(target=step_often, args=(count,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert count.value == 200 and Progress(201, "runs", count).step() == "201 of 201 runs"
