"""The tests keep their level where they claim to: 10,000 simulated pairs in the slow test, wider bounds in the quick one."""

import json
from pathlib import Path

import numpy as np
import pytest

from asrcl.scoring import Errors, ItemErrors, count_errors
from asrcl.scoring.significance.paired_tests import TESTS, bootstrap_test, mapsswe_test, mcnemar_test, sign_test, wilcoxon_test
from asrcl.scoring.significance.power import World, p_values, power, rejections, simulate

EXACT = ("sign", "mcnemar")  # never above 5 %, and the further below the fewer items differ


def test_levels_in_a_thousand_simulations() -> None:
    found = rejections(World(), 600, seed=11, draws=300)
    assert set(found) == set(TESTS)
    # Three standard errors at 600 simulations are 2.7 points.
    assert all(0.01 <= share <= 0.08 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_levels_in_ten_thousand_simulations() -> None:
    found = rejections(World(utterances=10), 10_000, seed=1)
    assert all(0.04 <= found[name] <= 0.06 for name in ("wilcoxon", "mapsswe", "bootstrap", "sign")), found
    assert all(0.03 <= found[name] <= 0.055 for name in EXACT), found
    differ = rejections(World(utterances=10, taste=0.5), 10_000, seed=1, tests=["bootstrap", "wilcoxon", "mapsswe"])
    assert 0.04 <= differ["bootstrap"] <= 0.06, differ
    assert differ["wilcoxon"] > 0.15 and differ["mapsswe"] > 0.15, differ


def test_only_the_speaker_bootstrap_survives_speakers_that_differ() -> None:
    found = rejections(World(taste=0.6, utterances=15), 150, seed=3, draws=300, tests=["wilcoxon", "mapsswe", "bootstrap"])
    assert found["bootstrap"] <= 0.12 and found["wilcoxon"] >= 0.2 and found["mapsswe"] >= 0.2, found


def test_power_grows_with_the_difference() -> None:
    curves = power(World(), [0.0, 0.2, 0.5], 60, seed=5, draws=200)
    assert set(curves) == set(TESTS)
    for name in ("wilcoxon", "mapsswe", "bootstrap"):
        assert curves[name][0] < curves[name][1] < curves[name][2] and curves[name][2] > 0.95


def test_simulated_rates_are_those_asked_for() -> None:
    generator = np.random.default_rng(0)
    a, b, speaker = simulate(World(speakers=400, utterances=10, gain=0.5), generator)
    words = a[:, 1::2]
    assert a.shape == b.shape == (4000, 21) and len(speaker) == 4000
    assert words.mean() == pytest.approx(0.12, rel=0.1) and a[:, ::2].mean() == pytest.approx(0.024, rel=0.15)
    assert b.sum() / a.sum() == pytest.approx(1.5, rel=0.1)
    lopsided = simulate(World(speakers=2000, taste=0.5, lopsided=True), generator)
    assert lopsided[1].sum() / lopsided[0].sum() == pytest.approx(1.0, rel=0.06)


def test_simulations_run_the_functions_that_users_run() -> None:
    world = World(speakers=12, utterances=6)
    a, b, speaker = simulate(world, np.random.default_rng(4))
    values = p_values(world, np.random.default_rng(4), 4000)
    sets = [as_errors(slots, speaker) for slots in (a, b)]
    users = {
        "wilcoxon": wilcoxon_test(*sets),
        "sign": sign_test(*sets),
        "mcnemar": mcnemar_test(*sets),
        "mapsswe": mapsswe_test(*sets),
    }
    assert {name: test.p_value for name, test in users.items()} == pytest.approx({name: values[name] for name in users})
    assert bootstrap_test(*sets, n=4000)[0].p_value == pytest.approx(values["bootstrap"], rel=0.15)


def as_errors(slots: np.ndarray, speaker: np.ndarray) -> Errors:
    """Texts in which exactly these slots are wrong, so that aligning finds them again."""
    words = slots.shape[1] // 2
    reference = [f"w{k}" for k in range(words)]
    said, heard, groups = {}, {}, {}
    for number, (row, name) in enumerate(zip(slots, speaker, strict=True)):
        parts = [["oh"] if row[2 * k] else [] for k in range(words + 1)]
        spoken = ["no" if row[2 * k + 1] else word for k, word in enumerate(reference)]
        text = [word for k in range(words) for word in (*parts[k], spoken[k])] + parts[words]
        said[str(number)], heard[str(number)], groups[str(number)] = " ".join(reference), " ".join(text), str(name)
    return count_errors(said, heard, groups)


def test_items_without_texts_cannot_hide_in_the_helper() -> None:
    assert as_errors(np.array([[1, 1, 0]]), np.array([0])).items[0] == ItemErrors("0", "0", 1, 0, 1, 1, "w0", "oh no", 5, 2)


def test_the_documented_levels_are_the_measured_ones() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    stored, text = json.loads((docs / "figures" / "significance.json").read_text()), (docs / "significance.md").read_text()
    assert stored["simulations"] == 10_000
    columns = ("wilcoxon", "mapsswe", "bootstrap", "sign", "mcnemar")
    for name, entry in stored["null"].items():
        shares = " | ".join(f"{100 * entry['rejections'][test]:.1f}" for test in columns)
        assert f"| {name} ({entry['world']['speakers']} speakers) | {shares} |" in text
