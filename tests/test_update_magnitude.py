"""Update magnitude: closed forms against simulation, the traps of the linear model, the networks' sequences and measures."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from asrcl.exceptions import InputError
from asrcl.studies.study import run_study, study_of
from asrcl.studies.update_magnitude.closed_form import MARGIN, QUANTITIES, TwoTasks, expected, first_errors, frontier
from asrcl.studies.update_magnitude.linear import distance_map, specific_sweeps
from asrcl.studies.update_magnitude.linear_tables import agreement, frontier_records
from asrcl.studies.update_magnitude.monte_carlo import learn_first, simulate, smallest_change
from asrcl.studies.update_magnitude.network_report import separation
from asrcl.studies.update_magnitude.networks import MIXED, PIXELS, measures, orders

SMALL = TwoTasks(shared=20, specific=6, first=80, second=16, noise=0.5, distance_shared=0.36, distance_specific=0.36)
REGIMES = {
    "frozen fits, initialised interpolates": SMALL,
    "both fit": replace(SMALL, second=60),
    "both interpolate": replace(SMALL, specific=40, second=20, first=120),
    "task 1 has few samples": replace(SMALL, first=12),
    "all have few samples": replace(SMALL, specific=40, second=20, first=30, signal=3.0),
}


@pytest.mark.parametrize("tasks", REGIMES.values(), ids=REGIMES)
def test_closed_forms_are_what_simulations_give(tasks):
    """Within 4 standard errors of 4,000 draws, which are below 4 % of each number or of the squared distance."""
    generator = torch.Generator().manual_seed(5)
    first = learn_first(tasks, 4000, generator)
    found = simulate(tasks, first, [0.6], generator)
    for name, value in expected(tasks).items():
        error = float(found[name].std()) / 4000**0.5
        assert float(found[name].mean()) == pytest.approx(value, abs=4 * error)
        assert error < 0.04 * max(abs(value), 0.36)
    wrong = (first.learned - first.truth).square()
    for part, value in zip((wrong[:, :20], wrong[:, 20:]), first_errors(tasks), strict=True):
        assert float(part.sum(1).mean()) == pytest.approx(value, rel=0.06)


def test_numbers_of_the_note():
    """Its table for p = 100, p2 = 10, n1 = 500, noise 0.3 (simulated there), where two digits are sure."""
    rows = {30: (0.057, 0.028, 0.082, 0.053), 60: (0.021, 0.101, 0.047, 0.127), 150: (0.005, 0.216, 0.031, 0.241)}
    for second, values in rows.items():
        assert [*expected(TwoTasks(second=second)).values()] == pytest.approx(values, rel=0.1, abs=0.001)


def test_the_change_is_the_smallest_and_the_start_is_not_forgotten():
    """The trap: least squares on the targets, not on what the start leaves over, gives the smallest weights instead."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(3, 5, 9, generator=generator, dtype=torch.float64)
    targets, start = torch.randn(3, 5, 1, generator=generator).double(), torch.randn(3, 9, 1, generator=generator).double()
    change = smallest_change(features, targets - features @ start)
    torch.testing.assert_close(features @ (start + change), targets)
    dense = torch.linalg.pinv(features) @ (targets - features @ start)
    torch.testing.assert_close(change, dense)
    directions = torch.linalg.qr(features.mT).Q  # what no sample looks at stays
    outside = torch.eye(9, dtype=torch.float64) - directions @ directions.mT
    torch.testing.assert_close(outside @ (start + change), outside @ start)
    assert (outside @ smallest_change(features, targets)).norm() < 1e-10 < 0.1 < (outside @ start).norm()


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"second": 11}, "second=11 samples for 10 numbers"),
        ({"second": 108}, "second=108 samples for 110 numbers"),
        ({"first": 112}, "first=112 samples for 110 numbers"),
        ({"shared": 0}, "at least 1"),
    ],
)
def test_sizes_at_interpolation_are_refused(sizes, named):
    with pytest.raises(InputError, match=named):
        TwoTasks(**sizes)


def test_a_sweep_leaves_out_what_interpolates():
    """Near p2 = n2, p + p2 = n2 and p + p2 = n1 a simulation blows up, whatever its number of draws."""
    tasks = TwoTasks(shared=30, first=60, second=10**6)
    [cells] = specific_sweeps(tasks, [8, 17, 20, 25, 28, 33, 40], [20], [0.0], 4, 1)
    assert [cell.tasks.specific for cell in cells] == [8, 25, 40]
    left = distance_map(TwoTasks(shared=30, specific=8, first=60, second=10**6), [11, 16, 36, 50], [0.0], 4, 1)
    assert [cell.tasks.second for cell in left] == [16, 50]


def test_shared_truths_stay_in_the_sweep_and_the_task_specific_ones_move():
    tasks = TwoTasks(shared=30, first=200, second=10**6, noise=0.1)
    [[equal, apart]] = specific_sweeps(tasks, [8], [60], [0.0, 1.5], 400, 3)
    assert (apart.tasks.distance_shared, apart.tasks.distance_specific) == (0, 2.25)
    assert apart.mean["frozen_excess"] == pytest.approx(equal.mean["frozen_excess"], rel=1e-6)  # fully learned, whatever it was
    assert apart.mean["frozen_forgetting"] == pytest.approx(2.25 + equal.mean["frozen_forgetting"], rel=0.05)


def test_double_descent_and_the_plateau():
    """Forgetting of frozen training rises to p2 = n2 and falls beyond; to nothing where the task-specific truths are equal."""
    tasks = TwoTasks(second=50)
    sizes = [number for number in range(2, 2000) if min(abs(number - 50), abs(number + 100 - 500)) >= MARGIN]
    curve = {number: expected(replace(tasks, specific=number, first=10**5))["frozen_forgetting"] for number in sizes}
    assert abs(max(curve, key=curve.__getitem__) - 50) == MARGIN
    beyond = [curve[number] for number in sizes if number > 50]
    assert beyond == sorted(beyond, reverse=True) and beyond[-1] < 0.01 * beyond[0]
    far = expected(replace(tasks, specific=1999, first=10**5, distance_specific=4.0))["frozen_forgetting"]
    assert far - beyond[-1] == pytest.approx(4 * 50 / 1999)  # the part of the move that 50 samples show


def test_the_critical_distance_is_where_both_are_equal():
    for second, quantity in ((60, "forgetting"), (60, "excess"), (150, "excess")):
        tasks = TwoTasks(second=second)
        found = frontier(tasks, quantity)
        assert found.kind == "below"
        at = expected(replace(tasks, distance_shared=found.distance**2, distance_specific=found.distance**2))
        assert at[f"frozen_{quantity}"] == pytest.approx(at[f"initialised_{quantity}"])


def test_where_the_claim_holds_and_where_it_does_not():
    """Small distance favours frozen training with enough samples of both tasks alone."""
    for first, kinds in ((500, ["never", "below", "below"]), (50, ["never", "never", "never"])):
        assert [frontier(TwoTasks(first=first, second=second), "excess").kind for second in (30, 60, 150)] == kinds
    assert frontier(TwoTasks(first=50, second=150), "forgetting").kind == "above"  # the opposite of the claim
    assert frontier(TwoTasks(first=500, second=150), "forgetting").kind == "always"  # whatever the distance


def test_runs_of_samples_with_one_kind_of_frontier():
    records = frontier_records(TwoTasks(second=10**6), 15, 300)
    excess = [record for record in records if record["criterion"] == "excess"]
    assert [(record["kind"], record["from"], record["to"]) for record in excess] == [("never", 15, 38), ("below", 39, 300)]
    assert [len(record["distances"]) for record in excess] == [0, 262 - 9]  # those around n2 = 110 are left out


def test_agreement_counts_standard_errors():
    [cell] = distance_map(TwoTasks(second=10**6), [60], [0.0], 50, 1)
    shifted = replace(cell, mean={name: cell.expected[name] + 3 * cell.error[name] for name in QUANTITIES})
    for record in agreement([shifted]):
        assert record["largest"] == pytest.approx(3) and record["within"] == 0 and record["cells"] == 1


def test_forgetting_in_both_definitions():
    """Task 2 was learned to 80, rose to 90 later, and ended at 60."""
    found = measures([[70], [65, 80], [50, 90, 95]])
    assert found == {"average": (50 + 90 + 95) / 3, "task": (70 + 80 + 95) / 3, "forgetting": (20 - 10) / 2, "forgetting_max": 5}
    longer = measures([[70], [65, 80], [50, 90, 95], [40, 60, 75, 99]])
    assert longer["forgetting"] == pytest.approx((30 + 20 + 20) / 3)
    assert longer["forgetting_max"] == pytest.approx((30 + 30 + 20) / 3)
    assert longer["task"] - longer["average"] == pytest.approx(3 / 4 * longer["forgetting"])  # and not so with the other


@pytest.mark.parametrize("count", [4, 32, PIXELS])
def test_so_many_pixels_are_permuted(count):
    first, *others = orders(str(count), 4, 1)
    assert first.order == tuple(range(PIXELS))
    for order in others:
        assert sorted(order.order) == list(range(PIXELS))
        assert sum(place != pixel for place, pixel in enumerate(order.order)) == count
    assert len({order.order for order in others}) == 3


def test_pairs_are_alike_within_and_not_between():
    found = [torch.tensor(order.order) for order in orders(MIXED, 6, 1)]
    moved = [int((one != other).sum()) for one, other in pairwise(found)]
    assert moved == [4, PIXELS, 4, PIXELS, 4]
    images = torch.arange(2 * PIXELS).view(2, 1, 8, 8)
    assert torch.equal(orders(MIXED, 2, 1)[1](images).flatten(1)[0], found[1])


def test_how_often_similar_tasks_have_the_larger_value():
    assert separation([0.9, 0.5], [0.1, 0.6]) == 0.75


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("draws=1", "at least 2"),
        ("table_second=[31]", r"table_second=31: not among second"),
        ("tasks=1", "tasks at least 2"),
        ("pixels=[4,65]", "pixels two numbers from 2 to 64"),
        ("pixels=[4]", "pixels two numbers"),
        ("first=[110]", "first=110 samples for 110 numbers"),
    ],
)
def test_bad_settings_are_named(override, named):
    with pytest.raises(InputError, match=named):
        study_of("update_magnitude", ["draws=2", "seeds=0", override]).run()


def test_the_study_from_end_to_end(tmp_path):
    linear = ["draws=6", "sweep_draws=3", "second=[30,60]", "table_second=[30]", "distances=[0.0,1.0]", "table_distances=[0.0]"]
    sweep = ["sweep_specific=[5,60]", "sweep_second=[50]", "sweep_distances=[0.0]", "first=[500]"]
    networks = ["seeds=1", "tasks=2", "pixels=[4,64]", "epochs=1", "widths=[8,8]", "train_images=64"]
    shown = run_study("update_magnitude", tmp_path, [*linear, *sweep, *networks])
    assert "pairs of similar tasks" in shown and "fixed: fresh weights, one head (default)" in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "RESULTS.md", "map.png", "forgetting.png", "networks.png")
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_study_finds():
    """Closed forms, peak, what freezing costs and saves, allocation, cosines; not that the hybrid is best, which it is not."""
    outcome = study_of("update_magnitude", ["seeds=3", "pixels=[4,64]", "draws=1000"]).run()
    for record in outcome.numbers["agreement"]:
        assert record["within"] > 0.8 and record["root_mean_square"] < 1.6 and record["largest"] < 6  # cells go together
    for samples in (50, 150):
        sweep = [cell for cell in outcome.numbers["sweep"] if cell["tasks"]["second"] == samples]
        equal = [cell for cell in sweep if not cell["tasks"]["distance_specific"]]
        peak = max(equal, key=lambda cell: cell["mean"]["frozen_forgetting"])
        assert abs(peak["tasks"]["specific"] - samples) <= 10
    runs, cosines = outcome.numbers["networks"], outcome.numbers["cosines"]
    for kind in ("4", "64"):
        tables = {name: [measures(one["accuracy"]) for one in runs if (one["sequence"], one["method"]) == (kind, name)]
                  for name in ("head alone", "frozen", "initialised")}  # fmt: skip
        means = {name: {key: sum(one[key] for one in found) / 3 for key in found[0]} for name, found in tables.items()}
        assert means["head alone"]["task"] <= means["frozen"]["task"] <= means["initialised"]["task"]
        assert means["head alone"]["forgetting"] == 0
    assert means["frozen"]["forgetting"] < means["initialised"]["forgetting"] - 5  # where all pixels are permuted
    for record in runs:
        if record["method"] == "hybrid":
            assert record["trained_blocks"] == [1 if value >= 0.3 else None for value in record["similarity"]]

    def similar(name, kind):
        return [value for one in cosines if (one["method"], one["sequence"]) == (name, kind) for value in one["similarity"]]

    default, literal = "fixed: fresh weights, one head (default)", "start of each task, its own head (algorithm 1)"
    assert min(similar(default, "4")) > max(similar(default, "64"))
    assert abs(math.fsum(similar(literal, "4"))) / 15 < 0.2
