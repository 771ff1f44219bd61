"""`kill -9` at any moment: the run that goes on ends as one that was left alone, to the byte."""

import json

import pytest
from adapt_cases import adapt_once, outcome

from asrcl.keep import MOST
from asrcl.testing import run_in_processes

EPOCH = 6  # batches: 4 for training, 2 for the dev loss
FINE_TUNE = 3 * EPOCH
WHOLE = 60.0  # seconds between writes: more than a fine-tune takes

KILLS = {
    "mid first epoch": ("ihr", "loss", 3),
    "mid last epoch": ("ihr", "loss", 2 * EPOCH + 2),
    "between stages": ("ihr", "loss", FINE_TUNE + 1),
    "mid second stage": ("ewc", "loss", FINE_TUNE + EPOCH + 2),
    "first curvature": ("ihr", "curvature_loss", 2),
    "second curvature": ("ewc", "curvature_loss", 4 + 2),
    "first evaluation": ("ihr", "evaluate", 2),
    "last evaluation": ("ewc", "evaluate", 9),
}


def run(*arguments):
    run_in_processes(adapt_once, 1, *arguments, start="forkserver")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of whole runs, by method and number of domains."""
    done = {}

    def result(method, domains=3):
        if (method, domains) not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            run(str(folder), method, domains)
            done[method, domains] = outcome(folder)
        return done[method, domains]

    return result


@pytest.mark.parametrize("method, where, calls", KILLS.values(), ids=KILLS)
def test_killed_run_ends_like_one_left_alone(tmp_path, undisturbed, method, where, calls):
    with pytest.raises(RuntimeError, match="exit code -9"):
        run(str(tmp_path), method, 3, where, calls)
    assert not (tmp_path / "run" / "results.json").exists()
    run(str(tmp_path), method)
    found, expected = outcome(tmp_path), undisturbed(method)
    assert {"results.json", "stage3/model.safetensors", "stage2/blobs0/hyp.trn"} <= found.keys()
    assert found == expected


@pytest.mark.parametrize("calls", [3, 2 * EPOCH + 2, FINE_TUNE + EPOCH + 2])
def test_a_run_whose_short_epochs_are_not_written_ends_as_one_that_writes_them(tmp_path, undisturbed, calls):
    with pytest.raises(RuntimeError, match="exit code -9"):
        run(str(tmp_path), "ihr", 3, "loss", calls, WHOLE)
    assert not list(tmp_path.glob("cache/train/*.work/epoch*"))
    run(str(tmp_path), "ihr", 3, "", 0, WHOLE)
    assert outcome(tmp_path) == undisturbed("ihr")


def test_killed_at_every_write(tmp_path, undisturbed):
    """Each attempt gets three renames or removals further than the one before, until it gets through."""
    kills = 0
    while True:
        try:
            run(str(tmp_path), "ihr", 2, "file", 1 + 3 * kills)
            break
        except RuntimeError as error:
            assert "exit code -9" in str(error)
            kills += 1
    assert kills > 6
    assert outcome(tmp_path) == undisturbed("ihr", 2)
    assert not list((tmp_path / "cache").glob("*/*.work"))
    assert not list(tmp_path.rglob(".*.part"))  # what the kills left


@pytest.mark.parametrize("method, where, calls", [("ihr", "evaluate", 4), ("ihr", "evaluate", 17), ("ewc", "curvature_loss", 6)])
def test_a_run_with_budgets_that_is_killed_ends_like_one_left_alone(tmp_path, method, where, calls):
    """In the search of a stage, between two searches, and where a curvature is estimated at what a search has chosen."""
    keep = "probe:+1 blobs1:+5"
    run(str(tmp_path / "whole"), method, 3, "", 0, 0.0, keep)
    with pytest.raises(RuntimeError, match="exit code -9"):
        run(str(tmp_path / "killed"), method, 3, where, calls, 0.0, keep)
    run(str(tmp_path / "killed"), method, 3, "", 0, 0.0, keep)
    stages = json.loads(outcome(tmp_path / "whole")["results.json"])["stages"]
    assert [len(stage["keep"]["tried"]) for stage in stages[1:]] == [1, MOST]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
