"""The trust region of a prediction: closed forms, and runs that tell what cannot be read."""

import numpy as np
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.results.trust_records import ALL, HESSIAN, trust, trust_region

STEPS = np.geomspace(0.01, 1, 10)
FINE = np.geomspace(0.01, 1, 2001)


def test_a_quadratic_is_right_everywhere():
    assert trust_region(STEPS, 3 * STEPS**2, 3 * STEPS**2) == 1.0


@pytest.mark.parametrize("quartic", [4.0, 25.0, 900.0])
def test_of_a_quartic_the_region_ends_where_it_is_as_large_as_the_quadratic(quartic):
    """a t² + b t⁴ is twice a t² at t = √(a / b)."""
    found = [trust_region(steps, steps**2, steps**2 + quartic * steps**4) for steps in (FINE, STEPS)]
    assert found[0] == pytest.approx(quartic**-0.5, rel=1e-4)
    assert found[1] == pytest.approx(quartic**-0.5, rel=0.05)


def test_a_slope_that_is_not_predicted_leaves_no_region():
    """s t + a t² is more than twice a t² at every step below s / a, however right the quadratic is farther out."""
    assert trust_region(FINE, FINE**2, 0.1 * FINE + FINE**2) == 0.0
    assert trust_region(FINE, 0.1 * FINE + FINE**2, 0.1 * FINE + FINE**2) == 1.0


def test_a_factor_of_its_own_and_both_sides_of_it():
    for over in (0.25, 4.0):
        assert trust_region(STEPS, over * STEPS**2, STEPS**2) == 0.0
        assert trust_region(STEPS, over * STEPS**2, STEPS**2, factor=5) == 1.0


def test_steps_beyond_the_first_that_fails_do_not_count():
    measured = np.ones(10)
    measured[4] = 5.0
    found = trust_region(STEPS, np.ones(10), measured)
    assert STEPS[3] < found < STEPS[4]


@pytest.mark.parametrize("odd", [-1.0, 0.0, np.nan])
def test_where_there_is_no_ratio_the_last_step_within_counts(odd):
    measured = np.ones(10)
    measured[4] = odd
    assert trust_region(STEPS, np.ones(10), measured) == STEPS[3]


def told(**changes) -> dict:
    course = {
        "weights": 5, "norm": 2.0, "slope": 0.2, "curved": 0.8, "train": [0.05, 1.0], "dev": [0.06, 1.4],
        "predicted": {"kron mc": 0.4},
    }  # fmt: skip
    segment = {"items": {"train": 8, "dev": 8}, "kinds": {ALL: course | changes}}
    return {"domain": "a", "steps": [0.1, 1.0], "fine_tuned": segment, "merged": {"step": 0.5}}


def run(record) -> RunResult:
    return RunResult("toy", "ihr", 1, "word", ["a", "b"], [[1, 2], [3, 4]], [9, 9], stages=[{}, {"trust": record}])


def test_a_stage_is_read():
    assert trust(run(told()), 0) is None
    found = trust(run(told()), 1)
    course = found.fine_tuned[ALL]
    assert found.merged == {} and found.merged_at == 0.5
    assert course.share("kron mc") == pytest.approx(0.5) and course.share(HESSIAN) == 1.0
    assert course.prediction("kron mc") == pytest.approx([0.004, 0.4])
    assert course.prediction("kron mc", sloped=True) == pytest.approx([0.024, 0.6])
    assert course.region("kron mc") == 0.0 and course.region("kron mc", sloped=True) == 0.0
    assert course.region(HESSIAN, sloped=True) == 1.0 and course.region(HESSIAN, sloped=True, split="dev") == 0.0
    assert np.isnan(course.region("full mc"))


@pytest.mark.parametrize("change", [{"train": [1.0]}, {"slope": "steep"}, {"predicted": None}])
def test_what_cannot_be_read_is_refused_with_its_place(change):
    with pytest.raises(InputError, match=r"stages\[1\]\.trust"):
        trust(run(told(**change)), 1)
