"""Budgets as they are typed, and the search for the largest strength within them."""

import random

import pytest
import torch
from doc_cases import example

from asrcl.exceptions import InputError
from asrcl.keep import MOST, Budget, Reading, check_baselines, exceeded, largest, read_budgets, search


def test_budgets_are_points_or_per_cent():
    assert read_budgets("probe:+0.5 general:+5%") == (Budget("probe", 0.5), Budget("general", 5.0, relative=True))
    assert read_budgets(" a:1,b:-2.5% ,c:.5 ") == (Budget("a", 1.0), Budget("b", -2.5, True), Budget("c", 0.5))
    assert read_budgets("Scottish English:+1 en-gb:0") == (Budget("Scottish English", 1.0), Budget("en-gb", 0.0))
    assert [str(budget) for budget in read_budgets("probe:0.5 general:5%")] == ["probe:+0.5", "general:+5%"]
    assert read_budgets("a:+5%")[0].rise(20.0) == 1.0 and read_budgets("a:+5")[0].rise(20.0) == 5.0


NONE = ["", "probe", "probe:", "probe:+x", ":+1", "probe:+0.5%%", "probe:+1 general", "a:+1;b:+2", None, 5, ["a:1"]]


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(InputError, match=r"^keep: .*is no budget; write DOMAIN:\+POINTS"):
        read_budgets(text)


def test_a_domain_has_one_budget():
    with pytest.raises(InputError, match="--budget-domains: a has two budgets"):
        read_budgets("a:+1 b:+1 a:+2", "--budget-domains")


def test_all_of_it_is_taken_where_it_fits():
    asked = []
    assert largest(lambda strength: not asked.append(strength)) == 1.0
    assert asked == [1.0]


def test_nothing_is_taken_where_nothing_fits():
    asked = []
    assert largest(lambda strength: asked.append(strength) or strength == 0) == 0.0
    assert len(asked) == MOST and min(asked[2:]) == 2.0 ** -(MOST - 2)
    assert largest(lambda strength: asked.append(strength)) == 0.0
    assert asked[MOST:] == [1.0, 0.0]


@pytest.mark.parametrize("seed", range(20))
def test_the_threshold_is_found_to_the_last_halving(seed):
    threshold, asked = random.Random(seed).random(), []
    found = largest(lambda strength: asked.append(strength) or strength <= threshold)
    assert found <= threshold < found + 2.0 ** -(MOST - 2)
    assert len(asked) == MOST == len(set(asked))


@pytest.mark.parametrize("seed", range(20))
def test_what_is_found_was_measured_and_fits_however_rates_go(seed):
    draw = random.Random(seed)
    rates = {}

    def measure(strength):
        rates[strength] = 10.0 if strength == 0 else draw.uniform(9.0, 12.0)
        return {"a": Reading(rates[strength]), "b": Reading(2.0)}

    trade = search(read_budgets("a:+1 b:+0%"), {"a": 10.0, "b": 2.0}, measure)
    assert rates[trade.strength] <= 11.0 and len(rates) <= MOST
    assert trade.strength == max(strength for strength, rate in rates.items() if rate <= 11.0)


def test_what_is_known_is_not_measured_again():
    asked, known = [], {0.0: {"a": Reading(10.0)}}
    trade = search(read_budgets("a:+1"), {"a": 10.0}, lambda s: asked.append(s) or {"a": Reading(10 + 5 * s)}, known=known)
    assert 0.0 not in asked and len(asked) == MOST - 1
    assert 10 + 5 * trade.strength <= 11 < 10 + 5 * (trade.strength + 2.0 ** -(MOST - 2))


def test_rounding_of_rates_breaks_no_budget():
    assert 15.3 - 15.2 > 0.1 and exceeded(read_budgets("a:+0.1"), {"a": 15.2}, {"a": Reading(15.3)}) == []
    assert exceeded(read_budgets("a:+0.1"), {"a": 15.2}, {"a": Reading(15.31)}) == [Budget("a", 0.1)]
    assert exceeded(read_budgets("a:+0.1"), {"a": 15.2}, {"a": Reading(float("nan"))}) == [Budget("a", 0.1)]


def test_the_upper_end_counts_where_it_is_asked_for():
    budgets, baselines = read_budgets("a:+1"), {"a": 10.0}
    reading = {"a": Reading(10.5, low=-0.5, high=1.5)}
    assert exceeded(budgets, baselines, reading) == [] and exceeded(budgets, baselines, reading, confident=True) == list(budgets)


def test_the_record_says_what_was_measured():
    trade = search(read_budgets("a:+10%"), {"a": 10.0}, lambda s: {"a": Reading(10 + 2 * s, low=s, high=3 * s)})
    told = trade.as_json()
    assert told["domains"] == {"a": {"budget": "+10%", "baseline": 10.0, "limit": 11.0}}
    assert told["strength"] == 0.5 and told["criterion"] == "rate"
    assert [entry["strength"] for entry in told["tried"][:3]] == [1.0, 0.0, 0.5]
    reading = {"rate": 11.0, "rise": 1.0, "low": 0.5, "high": 1.5}
    assert told["tried"][2] == {"strength": 0.5, "within": True, "domains": {"a": reading}}
    assert [entry["within"] for entry in told["tried"]] == [entry["domains"]["a"]["rate"] <= 11 for entry in told["tried"]]


@pytest.mark.parametrize("rate", [float("inf"), float("nan")])
def test_a_baseline_is_a_number(rate):
    with pytest.raises(InputError, match="keep: the error rate of a is"):
        check_baselines({"a": rate}, "keep")


def test_the_example_of_the_page():
    def error_rate(model, name):
        return {"probe": 15.0 + 2 * float(model["w"]), "general": 10.0}[name]

    known = {"old": {"w": torch.zeros(())}, "new": {"w": torch.ones(())}, "error_rate": error_rate}
    exec(example("search", "keep.md"), known)
    assert float(known["kept"]["w"]) == known["trade"].strength == 0.25
