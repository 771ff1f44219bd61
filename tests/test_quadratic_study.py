"""The study of quadratic regularisers from settings to tables, and its truths over ten seeds."""

import json

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.studies.quadratic.networks import Perceptrons
from asrcl.studies.quadratic.study import HOLDERS, MODES
from asrcl.studies.quadratic.tables import paired, published_table
from asrcl.studies.quadratic.tasks import sine_bands
from asrcl.studies.quadratic.training import PUBLISHED, TUNED, train
from asrcl.studies.study import run_study, study_of

TINY = ["seeds=3", "grid_seeds=2", "tasks=3", "samples=30", "width=4", "checks=2", "strengths=[1]"]
TINY += ["published.steps=6", "tuned.steps=6"]


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    out = tmp_path_factory.mktemp("quadratic")
    run_study("quadratic", out, TINY)
    return out, json.loads((out / "results.json").read_text())


def test_all_tables_figures_and_numbers_are_there(record):
    out, found = record
    tables = ("", "_modes", "_fidelity", "_grid", "_strengths", "_trust", "_landscape", "_projection")
    assert list(found["sections"]) == [f"quadratic{name}" for name in tables]
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("kappa", "trust"))
    assert list(found["runs"]) == [f"{setting}: {mode}" for setting in ("published", "tuned") for mode in MODES]
    run = found["runs"]["tuned: refresh"]
    assert run["steps"] == [9, 12, 15, 18]
    assert len(run["final"]["all"]) == 3 and len(run["along"]["all"]) == 4
    assert len(found["grid"]) == 2 * (3 + 3 + 1 + 1 + 1 + 2 + 2)
    assert list(found["held"]) == [f"{setting}: {by}" for setting in ("published", "tuned") for by in HOLDERS]
    for setting in ("published", "tuned"):
        assert max(found["held"][f"{setting}: projection, all ranks"]["moved"]) < 1e-7
        assert max(found["leakage"][setting]["common"]) < 1e-7 < min(found["leakage"][setting]["in_turn"])


def test_tables_show_the_numbers_of_the_record(record):
    _, found = record
    values = torch.tensor(found["runs"]["published: refresh"]["final"]["refresh.kappa"], dtype=torch.float64)
    cell = f"{float(values.mean()):z.3f} ± {float(values.std()):.3f}"
    line = next(line for line in found["sections"]["quadratic"].splitlines() if "Final, refresh: here" in line)
    assert cell in line and "| 3 |" in line
    assert "0.742 ± 0.037" in found["sections"]["quadratic"]


def test_settings_reach_the_optimisers():
    study = study_of("quadratic", ["published.strength=0.5", "tuned.clip=2.0"])
    assert study._setting("published", PUBLISHED).strength == 0.5
    assert study._setting("tuned", TUNED).clip == 2.0
    for override, named in (("tuned.rat=1", "unknown settings rat"), ("tuned.rate=fast", r"tuned\.rate=fast: expected")):
        with pytest.raises(InputError, match=named):
            study_of("quadratic", [override]).run()
    with pytest.raises(InputError, match="seeds=1"):
        study_of("quadratic", ["seeds=1"]).run()


def test_a_paired_difference_has_student_s_interval():
    first = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert paired(first, first - torch.tensor([0.1, 0.2, 0.1, 0.2])) == "+0.150 (+0.058 to +0.242)"


SEEDS = range(10)


@pytest.fixture(scope="module")
def runs():
    tasks, networks = sine_bands(SEEDS), Perceptrons(SEEDS)
    return {
        name: {mode: train(tasks, networks, SEEDS, how, plan) for mode, plan in MODES.items()}
        for name, how in (("published", PUBLISHED), ("tuned", TUNED))
    }


@pytest.mark.slow
def test_refreshed_predictions_are_ten_times_as_faithful_in_the_published_setting(runs):
    """Kappa of the approximation that each run is regularised with, at its end, mean over ten seeds."""
    stale = runs["published"]["accumulate"].final("accumulate.kappa").mean()
    fresh = runs["published"]["refresh"].final("refresh.kappa").mean()
    assert stale > 10 * fresh.abs()


@pytest.mark.slow
def test_refreshing_is_more_faithful_at_the_end_of_any_trajectory(runs):
    for modes in runs.values():
        for run in modes.values():
            stale, fresh = (run.final(f"{keeping}.kappa").abs() for keeping in ("accumulate", "refresh"))
            assert (stale > fresh).float().mean() >= 0.7
            assert stale.mean() > 2 * fresh.mean()


@pytest.mark.slow
def test_a_tuned_penalty_beats_none_by_a_tenth_and_the_published_one_does_not(runs):
    gain = {
        (setting, mode): (runs[setting][mode].final("all") - runs[setting]["sequential"].final("all")).mean()
        for setting in runs
        for mode in ("accumulate", "refresh")
    }
    assert min(gain["tuned", "accumulate"], gain["tuned", "refresh"]) > 0.1
    assert max(gain["published", "accumulate"], gain["published", "refresh"]) < 0.06


@pytest.mark.slow
def test_the_published_table_is_reproduced_within_overlapping_bars(runs):
    for row in published_table(runs["published"])[1].texts():
        if row[0].endswith("here"):
            assert row[-1] == "4 of 4", row


@pytest.mark.slow
def test_replay_is_the_smoothest_trajectory(runs):
    """The gradients of the stored samples, which replay trains on, stay smallest."""
    for modes in runs.values():
        gammas = {mode: run.final("refresh.gamma").mean() for mode, run in modes.items()}
        assert min(gammas, key=gammas.get) == "replay"


@pytest.mark.slow
def test_the_linear_term_is_worth_more_than_refreshing_where_steps_are_small():
    few = range(5)
    tasks, networks = sine_bands(few), Perceptrons(few)
    held = {
        name: train(tasks, networks, few, TUNED, HOLDERS[name], checks=1).final("all").mean()
        for name in ("penalty, refreshed", "penalty and gradient, refreshed")
    }
    assert held["penalty and gradient, refreshed"] > held["penalty, refreshed"] + 0.05
