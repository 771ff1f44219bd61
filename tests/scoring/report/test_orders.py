import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asrcl.files import write_json
from asrcl.scoring import Errors, ItemErrors, RunResult
from asrcl.scoring.display.table import markdown
from asrcl.scoring.report.html.page import write_html
from asrcl.scoring.report.markdown import terminal_table, write_results, write_tables
from asrcl.scoring.report.orders import summarise_orders
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.report.tables import (
    disparity_table,
    orders_caption,
    orders_csv,
    orders_significance_table,
    orders_table,
)
from asrcl.scoring.results.run_result import ProbeCounts
from asrcl.scoring.significance.intervals import disparity_intervals
from asrcl.scoring.significance.paired_tests import wilcoxon_p


def run_of(scenario: str, method: str, domains: str, last: list[int], seed: int = 0) -> RunResult:
    size = len(domains)
    errors = [[50] * size] * (size - 1) + [last]
    return RunResult(scenario, method, seed, "word", list(domains), errors, [100] * size)


def test_domains_are_matched_by_name_and_seeds_averaged_first() -> None:
    runs = [
        run_of("forth", "ft", "abc", [10, 20, 30]),
        run_of("forth", "ft", "abc", [12, 20, 30], seed=1),
        run_of("back", "ft", "cba", [34, 18, 16]),
        run_of("forth", "ihr", "abc", [1, 2, 3]),
    ]
    (orders,) = summarise_orders(summarise(runs))
    (found,) = orders.methods
    assert (found.method, found.orders, found.domains) == ("ft", ["forth", "back"], list("abc"))
    assert np.array_equal(found.final, [[11, 20, 30], [16, 18, 34]])
    assert found.disparity == pytest.approx([5, 2, 4])
    assert (found.aopd, found.mopd) == (pytest.approx(11 / 3), 5.0)
    assert "| Fine-tuning (FT) | 2 | 5.00 | 2.00 | 4.00 | 3.67 | 5.00 |" in markdown(disparity_table(orders))
    assert found.averages.estimate == pytest.approx((61 / 3 + 68 / 3) / 2) and found.averages.low < 20 < found.averages.high
    reach = 12.7062 * abs(61 / 3 - 68 / 3) / 2  # t of one degree of freedom at 97.5 %; s / sqrt(2) is half the difference
    assert found.averages.high - found.averages.estimate == pytest.approx(reach, rel=1e-4)
    header, row = (line.split(" | ") for line in markdown(orders_table(orders)).splitlines()[:3:2])
    assert header[2:] == ["AVG", "CI95", "F", "CI95", "AOPD", "CI95", "MOPD", "CI95", "capacity", "time |"]
    assert row[6:10] == ["3.67", "–", "5.00", "–"] and row[10:] == ["–", "– |"]


def test_other_domains_other_tests_or_the_same_order_are_no_orders() -> None:
    first = run_of("x", "ft", "abc", [1, 2, 3])
    for other in (run_of("y", "ft", "abd", [1, 2, 3]), run_of("y", "ft", "abc", [3, 2, 1])):
        assert summarise_orders(summarise([first, other])) == []
    longer = run_of("y", "ft", "cba", [1, 2, 3])
    longer.lengths = [200, 100, 100]
    assert summarise_orders(summarise([first, longer])) == []
    assert summarise_orders(summarise([first])) == []


def test_the_same_order_counts_once() -> None:
    runs = [run_of("x", "ft", "abc", [1, 2, 3]), run_of("y", "ft", "abc", [1, 2, 9]), run_of("z", "ft", "cba", [3, 2, 5])]
    (orders,) = summarise_orders(summarise(runs))
    assert orders.names == ["x", "z"] and orders.methods[0].mopd == 4


def test_other_domains_have_a_table_of_their_own() -> None:
    runs = [run_of(name, "ft", domains, [1, 2, 3]) for name, domains in zip("wxyz", ("abc", "cab", "def", "fed"), strict=True)]
    first, second = summarise_orders(summarise(runs))
    assert disparity_table(first).header[2:5] == ["OPD a", "OPD b", "OPD c"] and second.name == "y, z"


@pytest.fixture
def images(tmp_path: Path) -> list[RunResult]:
    """Two methods in two orders of two domains of 200 images; ft forgets what comes first, separate nothing."""
    runs = []
    for order, domains in {"A": "ab", "B": "ba"}.items():
        for method, wrong in (("ft", (90, 10)), ("separate", (12, 12))):
            folder = tmp_path / order / method
            for place, domain in enumerate(domains):
                items = [ItemErrors(f"i{n}", f"i{n}", int(n < wrong[place]), 0, 0, 1) for n in range(200)]
                Errors(items, "image").save(folder / domain)
            own = method == "separate"  # whose domains are decoded by models of their own
            errors = [[wrong[0] if own else 10, 150], list(wrong)]
            run = RunResult(f"d_order_{order}", method, 1, "image", list(domains), errors, [200, 200])
            run.item_files = [[domains[0] if own else None, None], list(domains)]
            run.stages = [{"parameters": 1000}, {"parameters": 1100 if method == "ft" else 2000}]
            run.config = {"scenario": {"name": "d", "order": order}}
            seconds = 2.0 if method == "ft" else 3.0
            write_json(folder / "costs.json", [{"errors_seconds": 9.0}, {"train_seconds": seconds, "curvature_seconds": seconds}])
            run.save(folder / "results.json")
            runs.append(run)
    return runs


def test_accuracies_capacity_time_and_intervals_over_orders(images: list[RunResult]) -> None:
    (orders,) = summarise_orders(summarise(images))
    assert orders.name == "d" and orders.one_experiment
    ft, separate = orders.methods
    assert (ft.aopd, ft.growth, ft.slowdown) == (40.0, 1.1, 1.0) and (separate.growth, separate.slowdown) == (2.0, 1.5)
    low, high = ft.disparities[0].low, ft.disparities[0].high
    assert ft.disparities[0].estimate == 40.0 and low < 40 < high and 4 < high - low < 20
    assert (separate.disparities[0].low, separate.disparities[1].high) == (0.0, 0.0)  # the same images wrong in both orders
    rows = {row[0].text: [cell.text for cell in row] for row in orders_table(orders).rows}
    assert rows["Fine-tuning (FT)"][1:5] == ["2", "75.00", "75.00–75.00", "40.00"]
    assert rows["Separate models"][-2:] == ["2.00", "1.50"]
    assert "resample images" in orders_caption(orders)
    (row, _) = csv.DictReader(io.StringIO(orders_csv(orders)))
    assert (row["accuracy"], row["aopd"], row["capacity"], row["opd_a"]) == ("75.0", "40.0", "1.1", "40.0")


def test_the_interval_of_a_disparity_covers_what_would_be_found_on_other_images() -> None:
    """The orders' true rates differ by 10 points on one domain; of 100 intervals about 95 hold that."""
    generator, held = np.random.default_rng(1), 0
    for _ in range(100):
        orders = []
        for rate in (0.2, 0.3):
            wrong = generator.random(400) < rate
            orders.append([[Errors([ItemErrors(f"{n}", f"{n}", int(w), 0, 0, 1) for n, w in enumerate(wrong)], "image")]])
        interval = disparity_intervals(orders, 300)[0]
        held += interval.low <= 10.0 <= interval.high
    assert 90 <= held < 100


def test_a_line_per_method_with_a_band_over_orders_of_few(images: list[RunResult], tmp_path: Path, monkeypatch) -> None:
    from asrcl.scoring.report import plots
    from asrcl.scoring.report.drawing import order_lines

    (orders,) = summarise_orders(summarise(images))
    lines = {line.method: line for line in order_lines(orders)}
    assert lines["ft"].values == [95.0, 75.0] and lines["ft"].low == lines["ft"].high == [95.0, 75.0]
    saved: list = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure.axes[0]))
    plots.draw_orders(orders, tmp_path / "few.png")
    monkeypatch.setattr(plots, "MAX_BANDS", len(lines) - 1)
    plots.draw_orders(orders, tmp_path / "many.png")
    few, many = saved
    assert few.get_ylabel().startswith("mean accuracy over domains seen so far")
    assert few.get_title("left").endswith("lowest to highest") and len(few.collections) == len(lines)
    assert many.get_title("left").endswith("2 orders: mean") and not many.collections


def test_the_terminal_shows_one_table_of_the_orders_of_one_experiment(images: list[RunResult]) -> None:
    text = terminal_table(images)
    assert "d: over 2 orders" in text and "after the last stage\n\n" not in text and text.count("Fine-tuning (FT)") == 1
    for run in images:
        run.config = {}
    assert terminal_table(images).count("Fine-tuning (FT)") == 3


def test_many_domains_have_no_columns_on_a_terminal() -> None:
    domains = [f"domain{n}" for n in range(8)]
    run = RunResult("many", "ft", 0, "image", domains, [[1] * 8] * 8, [100] * 8)
    text = terminal_table([run])
    assert "domain3" not in text and "The 8 domains one by one: report.html, RESULTS.md" in text
    assert max(map(len, text.split("A[i,j]")[0].splitlines())) < 110
    few = RunResult("few", "ft", 0, "image", domains[:7], [[1] * 7] * 7, [100] * 7)
    assert "domain3" in terminal_table([few])


def stored_run(folder: Path, order: str, method: str, wrong: dict[str, list[int]], seed: int = 1) -> RunResult:
    """One run over domains in this order whose utterances have so many errors; each domain's utterances have ids of their own."""
    home = folder / order / method / str(seed)
    for domain in order:
        items = [ItemErrors(f"{domain}{n}", f"{domain}{n // 2}", errors, 0, 0, 10) for n, errors in enumerate(wrong[domain])]
        Errors(items, "word").save(home / domain)
    last = [sum(wrong[domain]) for domain in order]
    run = RunResult(f"d_{order}", method, seed, "word", list(order), [[60] * 3, [60] * 3, last], [200] * 3)
    run.item_files = [[None] * 3, [None] * 3, list(order)]
    run.save(home / "results.json")
    return run


def drawn(seed: int, mean: float) -> dict[str, list[int]]:
    generator = np.random.default_rng(seed)
    return {domain: generator.poisson(mean, 20).tolist() for domain in "abc"}


def test_the_reference_is_tested_over_all_orders_and_seeds_with_every_item_once(tmp_path: Path) -> None:
    counts, runs = {}, []
    for number, (order, seed) in enumerate((order, seed) for order in ("abc", "cab") for seed in (1, 2)):
        for method, mean in (("ft", 1.2), ("er", 0.8), ("ihr", 0.7)):
            counts[method, order, seed] = drawn(10 * number + len(method), mean)
            runs.append(stored_run(tmp_path, order, method, counts[method, order, seed], seed))
    (orders,) = summarise_orders(summarise(runs))
    ft, er = orders.tested
    assert (ft.method, er.method) == ("ft", "er")

    def summed(method: str) -> np.ndarray:
        return np.sum([[of[domain] for domain in "abc"] for (name, *_), of in counts.items() if name == method], axis=0).ravel()

    expected = {method: wilcoxon_p((summed("ihr") - summed(method)).astype(float))[1] for method in ("ft", "er")}
    assert ft.comparison is not None and ft.comparison.p_value == pytest.approx(expected["ft"])
    assert er.comparison is not None and er.comparison.p_value == pytest.approx(expected["er"])
    assert ft.comparison.items == 60 and ft.p_holm >= ft.comparison.p_value
    rate = {method: summed(method).sum() / (4 * 60 * 10) * 100 for method in ("ihr", "ft")}
    assert ft.difference is not None and ft.difference.estimate == pytest.approx(rate["ihr"] - rate["ft"])
    assert ft.difference.high < 0
    table = orders_significance_table(orders)
    assert table is not None and table.header[0] == "IHR against" and [row[0].text for row in table.rows] == [ft.label, er.label]
    report = write_results(summarise(runs), tmp_path / "out").read_text()
    section = report[report.index("## Order of the domains") : report.index("![mean")]
    assert "errors of all orders and seeds added per item" in section and "| IHR against |" in section
    assert "errors of all orders and seeds" in write_html(summarise(runs), tmp_path / "out.html").read_text()
    assert "COV" not in section  # there are no separate models
    assert any(path.name == "orders_tests.tex" for path in write_tables(summarise(runs), tmp_path / "tables"))


def test_a_method_that_meets_the_reference_in_one_order_alone_is_not_tested_over_orders(tmp_path: Path) -> None:
    runs = [stored_run(tmp_path, order, "ft", drawn(1, 1.0)) for order in ("abc", "cab")]
    runs.append(stored_run(tmp_path, "abc", "ihr", drawn(2, 1.0)))
    (orders,) = summarise_orders(summarise(runs))
    assert orders.tested == [] and orders_significance_table(orders) is None
    (orders,) = summarise_orders(summarise(runs, "er"))
    assert orders.tested == []


def test_coverage_and_probes_are_means_over_orders(tmp_path: Path) -> None:
    runs = []
    for order, (ft, ihr), probe in (("abc", (40, 20), 7), ("cab", (60, 50), 9)):
        for method, wrong in (("ft", ft), ("ihr", ihr), ("separate", 0)):
            run = replace(run_of(f"d_{order}", method, order, [wrong] * 3), errors=[[wrong] * 3] * 3)
            run.probes = [ProbeCounts("prose", [3, 5, probe], 100)] if method == "ihr" else []
            runs.append(run)
    (orders,) = summarise_orders(summarise(runs))
    ft, ihr, _ = orders.methods
    assert ft.coverage == 0 and ihr.coverage == pytest.approx((50 + 100 / 6) / 2)
    assert ihr.probes == pytest.approx([8.0]) and np.isnan(ft.probes).all()
    table = orders_table(orders)
    assert table.header[-4:] == ["COV", "prose", "capacity", "time"]
    assert [cell.text for cell in table.rows[1][-4:-2]] == ["33.3", "8.00"] and table.rows[0][-3].text == "–"
    assert "COV, prose: means over orders and seeds." in orders_caption(orders)
    row = list(csv.DictReader(io.StringIO(orders_csv(orders))))[1]
    assert float(row["cov"]) == pytest.approx(100 / 3) and float(row["prose"]) == 8


def test_an_interval_of_rates_ends_at_zero_and_unequal_seeds_have_a_column() -> None:
    runs = [run_of(name, "ft", domains, last) for name, domains, last in (("x", "ab", [1, 1]), ("y", "ba", [9, 9]))]
    runs += [replace(run, method="ihr", label="IHR", seed=seed) for run in runs for seed in (0, 1)]
    (orders,) = summarise_orders(summarise(runs))
    assert orders.methods[0].averages.low == 0.0 and orders.methods[0].averages.high > 50
    table = orders_table(orders)
    assert table.header[:4] == ["Method", "orders", "seeds", "AVG"] and [row[2].text for row in table.rows] == ["1", "2"]
