from pathlib import Path

import numpy as np
import pytest

from asrcl.scoring import Errors, RunResult
from asrcl.scoring.significance.bootstrap import bootstrap_ci, paired_bootstrap
from asrcl.scoring.significance.intervals import average_interval, by_speaker, difference_interval, stage_intervals
from asrcl.scoring.significance.pairing import pool, sum_seeds


def test_a_speaker_is_the_sum_of_its_items(item) -> None:
    errors = Errors([item("a", "x", 1), item("b", "y", 2, 7), item("c", "x", 3)])
    found = by_speaker(errors)
    assert [(i.id, i.group, i.errors, i.length) for i in found.items] == [("x", "x", 4, 20), ("y", "y", 2, 7)]
    assert found.total == errors.total and found.length == errors.length and found.unit == errors.unit


def test_intervals_are_those_of_the_single_items(fake_set) -> None:
    seeds = [[fake_set(20, domain, seed) for domain in ("us", "uk")] for seed in (0, 1)]
    assert average_interval(seeds) == bootstrap_ci([pool(list(domain)) for domain in zip(*seeds, strict=True)])
    others = [[fake_set(30, domain, seed) for domain in ("us", "uk")] for seed in (2, 3)]
    ours, theirs = ([sum_seeds(domain) for domain in zip(*side, strict=True)] for side in (seeds, others))
    found = difference_interval(seeds, others)
    assert found == paired_bootstrap(ours, theirs)
    assert found.high < 0 and found.p_better > 0.99


def test_after_every_stage_the_domains_seen_so_far(tmp_path: Path, fake_run) -> None:
    runs = [fake_run(tmp_path, "ihr", seed) for seed in (0, 1)]
    found = stage_intervals(runs)
    assert [band.estimate for band in found] == pytest.approx(
        [np.mean([run.rates()[i, : i + 1].mean() for run in runs]) for i in range(5)]
    )
    assert all(band.low < band.estimate < band.high for band in found)
    last = average_interval([run.final_items() for run in runs], 1000)
    assert found[-1] == last


def test_separate_and_initial_models_stand_for_later_stages(tmp_path: Path, fake_run) -> None:
    for method in ("separate", "initial"):
        run = fake_run(tmp_path, method, 0)
        found = stage_intervals([run])
        assert [band.estimate for band in found] == pytest.approx([run.completed()[i, : i + 1].mean() for i in range(5)])


def test_no_band_where_items_were_not_kept(tmp_path: Path, fake_run) -> None:
    assert stage_intervals([fake_run(tmp_path, "ft", 0, keep_items=False)]) == [None] * 5
    joint = stage_intervals([fake_run(tmp_path, "joint", 0)])
    assert joint[:4] == [None] * 4 and joint[4] is not None


def test_the_stage_behind_an_entry() -> None:
    full = [[1, 2], [3, 4]]
    run = RunResult("toy", "separate", 0, "word", ["a", "b"], full, [9, 9])
    assert [run.source_stage(i, j) for i in (0, 1) for j in (0, 1)] == [0, 0, 0, 1]
    run.method = "initial"
    run.errors = [[1, 2], [None, 4]]
    assert [run.source_stage(i, j) for i in (0, 1) for j in (0, 1)] == [0, 0, 0, 1]
