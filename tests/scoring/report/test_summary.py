from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asrcl.exceptions import InputError
from asrcl.scoring import RunResult
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.results import metrics
from asrcl.scoring.significance.bootstrap import bootstrap_ci
from asrcl.scoring.significance.paired_tests import holm, wilcoxon_test
from asrcl.scoring.significance.pairing import pool, sum_seeds

METHODS = ["initial", "ft", "fta", "ihr", "separate", "joint"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fake_run) -> list[RunResult]:
    folder = tmp_path_factory.mktemp("exp")
    return [fake_run(folder, method, seed) for method in METHODS for seed in (0, 1)]


def pick(runs: list[RunResult], method: str) -> list[RunResult]:
    return [run for run in runs if run.method == method]


def test_means_over_seeds_equal_the_metrics_of_each_run(runs: list[RunResult]) -> None:
    (summary,) = summarise(runs)
    assert [method.method for method in summary.methods] == METHODS
    found = {method.method: method for method in summary.methods}
    for name, metric in (("avg", metrics.avg), ("bwt", metrics.bwt), ("fwt", metrics.fwt)):
        expected = np.mean([metric(run.rates()) for run in pick(runs, "ihr")])
        assert found["ihr"].mean(name) == pytest.approx(expected)
    per_seed = [metrics.avg(run.rates()) for run in pick(runs, "ihr")]
    assert found["ihr"].deviation("avg") == pytest.approx(np.std(per_seed, ddof=1))
    assert found["ihr"].seeds == [0, 1] and found["ihr"].final == pytest.approx(found["ihr"].matrix[-1])
    expected = np.mean([metrics.avg(run.character_rates()) for run in pick(runs, "ihr")])
    assert found["ihr"].mean("cer_avg") == pytest.approx(expected)


def test_references_are_those_of_the_same_seed(runs: list[RunResult]) -> None:
    (summary,) = summarise(runs)
    found = {method.method: method for method in summary.methods}
    for index in (0, 1):
        ihr, ft, separate, joint = (pick(runs, m)[index] for m in ("ihr", "ft", "separate", "joint"))
        coverage = metrics.cov(ihr.rates(), ft.rates(), separate.completed())
        assert found["ihr"].values["cov"][index] == pytest.approx(coverage)
        intransigence = metrics.intransigence(ihr.rates(), joint.rates())
        assert found["ihr"].values["intransigence"][index] == pytest.approx(intransigence)
    assert found["ft"].mean("cov") == 0.0 and found["separate"].mean("cov") == pytest.approx(100.0)
    assert found["separate"].mean("bwt") == 0.0 and found["initial"].mean("bwt") == 0.0
    assert np.isnan(found["joint"].mean("bwt")) and not np.isnan(found["joint"].mean("avg"))


def test_without_its_references_cov_is_not_defined(runs: list[RunResult]) -> None:
    (summary,) = summarise(pick(runs, "ihr") + pick(runs, "ft"))
    assert all(
        np.isnan(method.mean("cov")) and np.isnan(method.mean("intransigence")) for method in summary.methods
    )
    only_one = [run for run in runs if not (run.method == "separate" and run.seed == 1)]
    found = {method.method: method for method in summarise(only_one)[0].methods}
    assert np.isnan(found["ihr"].values["cov"][1])
    assert found["ihr"].mean("cov") == found["ihr"].values["cov"][0]


def test_the_first_row_is_borrowed_from_the_initial_model(runs: list[RunResult]) -> None:
    ihr, initial = pick(runs, "ihr")[0], pick(runs, "initial")[0]
    expected = metrics.fwt(ihr.rates())
    ihr = replace(ihr, errors=[[ihr.errors[0][0], None, None, None, None], *ihr.errors[1:]])
    assert np.isnan(metrics.fwt(ihr.rates()))
    found = {method.method: method for method in summarise([initial, ihr])[0].methods}
    assert found["ihr"].mean("fwt") == pytest.approx(expected)
    assert np.isnan(summarise([ihr])[0].methods[0].mean("fwt"))


def test_intervals_and_tests_are_over_final_items_of_all_domains(runs: list[RunResult]) -> None:
    found = {method.method: method for method in summarise(runs)[0].methods}
    seeds = [run.final_items() for run in pick(runs, "ihr")]
    expected = bootstrap_ci([pool(list(domain)) for domain in zip(*seeds, strict=True)])
    assert found["ihr"].interval == expected
    assert expected.estimate == pytest.approx(found["ihr"].mean("avg"))
    domains = runs[0].domains
    ours, theirs = (
        sum_seeds([pool(run.final_items(), domains) for run in pick(runs, method)])
        for method in ("ihr", "separate")
    )
    assert found["separate"].comparison == wilcoxon_test(ours, theirs)
    assert found["separate"].comparison.items == 300
    assert found["ihr"].comparison is None and np.isnan(found["ihr"].p_holm)
    raw = [method.comparison.p_value for method in found.values() if method.comparison]
    assert [method.p_holm for method in found.values() if method.comparison] == holm(raw)
    assert found["ft"].comparison.direction == "better"


def test_separate_models_are_tested_on_their_own_domain(runs: list[RunResult]) -> None:
    run = pick(runs, "separate")[0]
    assert [items.total for items in run.final_items()] == [run.errors[j][j] for j in range(5)]


def test_common_seeds_alone_are_compared(runs: list[RunResult]) -> None:
    part = [run for run in runs if run.method in ("ihr", "ft") and not (run.method == "ft" and run.seed == 1)]
    found = {method.method: method for method in summarise(part)[0].methods}
    ours, theirs = (metrics.avg(pick(runs, method)[0].rates()) for method in ("ihr", "ft"))
    assert found["ft"].difference.estimate == pytest.approx(ours - theirs)
    apart = [run for run in runs if (run.method, run.seed) in (("ihr", 0), ("ft", 1))]
    assert all(method.comparison is None for method in summarise(apart)[0].methods)


def test_runs_without_items_have_no_interval_and_no_test(tmp_path: Path, fake_run) -> None:
    runs = [fake_run(tmp_path, method, 0, keep_items=False) for method in ("ft", "ihr")]
    (summary,) = summarise(runs)
    assert all(method.interval is None and method.comparison is None for method in summary.methods)


def test_scenarios_stay_apart_but_share_the_correction(tmp_path: Path, fake_run) -> None:
    runs = [fake_run(tmp_path, m, 0, scenario=s) for s in ("one", "two") for m in ("ft", "ihr")]
    first, second = summarise(runs, labels={"ft": "plain"})
    assert (first.scenario, second.scenario) == ("one", "two")
    assert first.methods[0].label == "plain" and first.methods[0].comparison is not None
    p = first.methods[0].comparison.p_value
    assert first.methods[0].p_holm == pytest.approx(min(1.0, 2 * p))


def test_contradictions_are_refused(tmp_path: Path, fake_run) -> None:
    run = fake_run(tmp_path, "ft", 0)
    with pytest.raises(InputError, match="no results to report"):
        summarise([])
    with pytest.raises(InputError, match="accents/ft/0 occurs twice"):
        summarise([run, run])
    with pytest.raises(InputError, match="lengths of accents/ft/1 differ"):
        summarise([run, replace(run, seed=1, lengths=[1] * 5)])
    with pytest.raises(InputError, match="domains of accents/ft/1 differ"):
        summarise([run, replace(run, seed=1, domains=list("abcde"))])
