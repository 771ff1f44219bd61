import sys
from collections import Counter

import pytest
from adapt_cases import QUICK, with_domain

from asrcl.adapt import dev_rates, draw, learn_where, run_stages, tune
from asrcl.exceptions import InputError
from asrcl.methods import build_method, method_names
from asrcl.search import grid
from asrcl.testing import blob_domain, tiny_learner, tiny_scenario

COLUMNS = ["old", "new", "average", "rise"]


class Guarded:
    """A domain of which only some splits may be touched."""

    def __init__(self, domain, allowed):
        self.name, self._domain, self._allowed = domain.name, domain, allowed

    def _check(self, split):
        assert split in self._allowed, f"{self.name}: {split} is not for tuning"

    def batches(self, split, **options):
        self._check(split)
        return self._domain.batches(split, **options)

    def size(self, split):
        self._check(split)
        return self._domain.size(split)

    def item(self, split, position):
        return self._domain.item(split, position)

    def fingerprint(self, split):
        self._check(split)
        return self._domain.fingerprint(split)


def guarded_learner(folder):
    """Test splits and everything about the third domain are forbidden."""
    scenario = tiny_scenario()
    for number, domain in enumerate(scenario.domains):
        scenario = with_domain(scenario, number, Guarded(domain, {"train", "dev"} if number < 2 else set()))
    return tiny_learner(folder, scenario, QUICK)


def test_grid():
    assert grid({"a": [1, 2], "b": ["x"]}) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    assert grid({}) == [{}]


def test_rows_are_sorted_and_measured_on_dev_data(tmp_path):
    learner = guarded_learner(tmp_path)
    rows = tune(learner, "laplace", {}, {"damping": [1e-3, 0.1, 10.0], "strength": [0.5, 1.0]})
    assert len(rows) == 6
    assert {(row["damping"], row["strength"]) for row in rows} == {(d, t) for d in (1e-3, 0.1, 10.0) for t in (0.5, 1.0)}
    assert [row["average"] for row in rows] == sorted(row["average"] for row in rows)
    assert all(list(row) == ["damping", "strength", *COLUMNS] for row in rows)
    assert all(row["average"] == pytest.approx((row["old"] + row["new"]) / 2) for row in rows)
    assert len({row["average"] for row in rows}) > 2


def test_strength_has_its_two_ends(tmp_path):
    """At 0 the averaged model is the old one, at 1 the fine-tuned one."""
    learner = tiny_learner(tmp_path)
    rows = {row["strength"]: row for row in tune(learner, "fta", {}, {"strength": [0.0, 0.5, 1.0]})}
    [fine_tuned] = tune(learner, "ft", {}, {})
    [initial] = tune(learner, "initial", {}, {})
    assert {key: rows[1.0][key] for key in COLUMNS} == fine_tuned
    assert {key: rows[0.0][key] for key in COLUMNS} == initial
    assert fine_tuned["new"] < initial["new"] and fine_tuned["old"] > initial["old"]


def test_knobs_override_options(tmp_path):
    learner = tiny_learner(tmp_path, train=QUICK)
    first = tune(learner, "fta", {"strength": 0.0}, {"strength": [1.0]})
    assert first == tune(learner, "fta", {}, {"strength": [1.0]})


@pytest.mark.parametrize("name", method_names())
def test_every_method_can_be_tuned(tmp_path, name):
    [row] = tune(guarded_learner(tmp_path), name, {}, {})
    assert list(row) == COLUMNS


def test_tuning_shares_one_fine_tune(tmp_path):
    tune(tiny_learner(tmp_path, train=QUICK), "ihr", {}, {"tau": [0.5, 1.0, 1.5]})
    kinds = Counter(path.parent.name for path in (tmp_path / "cache").glob("*/*") if path.is_dir())
    assert (kinds["train"], kinds["curvature"]) == (1, 1)


def test_one_domain_cannot_be_tuned(tmp_path):
    with pytest.raises(InputError, match="second domain"):
        tune(tiny_learner(tmp_path, tiny_scenario(1)), "ft", {}, {})


def test_unknown_knob(tmp_path):
    with pytest.raises(InputError, match="temperature"):
        tune(tiny_learner(tmp_path), "ihr", {}, {"temperature": [1]})


def test_a_guard_guards():
    with pytest.raises(AssertionError, match="not for tuning"):
        Guarded(blob_domain("blobs"), {"dev"}).size("test")


SPACE = {"rate": [1, 2, 3, 4, 5, 6], "epochs": [4, 8], "tau": [0.5, 1.0, 2.0]}


def test_settings_are_drawn_without_repeats_and_alike_every_time():
    found = draw(SPACE, 12)
    assert len({str(setting) for setting in found}) == 12 and draw(SPACE, 12) == found
    assert draw(SPACE, 5) == found[:5]
    assert all(list(setting) == list(SPACE) and all(setting[name] in SPACE[name] for name in SPACE) for setting in found)
    assert draw(SPACE, 12, seed=1) != found


def test_few_settings_spread_over_every_option():
    """A low-discrepancy sequence: twelve settings meet every one of six values, and both of two about equally often."""
    counts = {name: Counter(setting[name] for setting in draw(SPACE, 12)) for name in SPACE}
    assert all(set(counts[name]) == set(SPACE[name]) for name in SPACE)
    assert max(counts["epochs"].values()) <= 7 and max(counts["rate"].values()) <= 4


def test_a_small_space_is_tried_whole():
    assert draw({"a": [1, 2], "b": [3]}, 9) == grid({"a": [1, 2], "b": [3]})
    assert draw({}, 3) == [{}]


@pytest.mark.parametrize("space, count, word", [({"a": []}, 3, "no values for a"), ({"a": [1, 2]}, 0, "at least one")])
def test_a_space_without_settings_is_refused(space, count, word):
    with pytest.raises(InputError, match=word):
        draw(space, count)


def test_all_adaptations_are_judged_by_all_domains(tmp_path):
    learner, method = tiny_learner(tmp_path, train=QUICK), build_method("ft")
    rates = dev_rates(learner, method, None)
    first, *_, last = run_stages(learner, method, "dev")
    found = [errors.rate for errors in last.errors]
    assert len(found) == 3 and rates["new"] == found[-1]
    assert rates["average"] == pytest.approx(sum(found) / 3) and rates["old"] == pytest.approx(sum(found[:-1]) / 2)
    assert rates["rise"] == found[0] - first.errors[0].rate
    assert dev_rates(learner, method) != rates


BOWL = {"rate": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0], "kind": ["a", "b", None], "epochs": [1, 2, 4, 8, 16]}
TOP = {"rate": 1e-2, "kind": "b", "epochs": 8}


def depth(setting):
    """How far a setting lies from the best one, in steps of its values; 0 at it."""
    steps = [abs(BOWL[name].index(setting[name]) - BOWL[name].index(TOP[name])) for name in ("rate", "epochs")]
    return float(sum(steps) + 2 * (setting["kind"] != TOP["kind"]))


def learned(count, seed=0, score=lambda setting: (depth(setting), 0.0)):
    tried = []
    learn_where(BOWL, count, lambda setting: tried.append(setting) or score(setting), seed)
    return tried


def test_a_search_that_learns_begins_with_the_draws_of_all_and_tries_nothing_twice():
    tried = learned(20)
    assert tried[:10] == draw(BOWL, 20)[:10]
    assert len({tuple(setting.items()) for setting in tried}) == 20
    assert all(setting[name] in values for setting in tried for name, values in BOWL.items())
    assert learned(20) == tried
    small, every = {"kind": ["a", "b", None], "epochs": [1, 2]}, []
    learn_where(small, 6, lambda setting: every.append(setting) or (1.0, 0.0))
    assert sorted(map(str, every)) == sorted(map(str, grid(small)))


def test_a_search_that_learns_looks_where_settings_were_good():
    """Both search the same number of settings with each of ten seeds."""
    later = [sum(depth(setting) for setting in tried[10:]) / 10 for tried in (learned(20, seed) for seed in range(10))]
    drawn = [sum(depth(setting) for setting in draw(BOWL, 20, seed)[10:]) / 10 for seed in range(10)]
    assert sum(later) < 0.7 * sum(drawn)


def test_a_search_that_learns_keeps_to_its_limit_and_off_what_diverged():
    """The best settings are beyond the limit, and the whole of kind `a` diverges."""

    def score(setting):
        return None if setting["kind"] == "a" else (depth(setting), 3.0 - depth(setting))

    later = [setting for seed in range(5) for setting in learned(24, seed, score)[12:]]
    free = [setting for seed in range(5) for setting in learned(24, seed)[12:]]
    assert sum(depth(setting) < 3 for setting in later) < 0.5 * sum(depth(setting) < 3 for setting in free)
    assert sum(setting["kind"] == "a" for setting in later) < len(later) / 4


def test_a_search_that_learns_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"search.sampler=tpe needs optuna: pip install 'asrcl\[tune\]'"):
        learned(4)
