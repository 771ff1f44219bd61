import numpy as np
import pytest

from asrcl.scoring import RunResult
from asrcl.scoring.display.table import markdown
from asrcl.scoring.report.orders import summarise_orders
from asrcl.scoring.report.summary import summarise
from asrcl.scoring.report.tables import orders_table


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
    (found,) = summarise_orders(summarise(runs))
    assert (found.method, found.orders, found.domains) == ("ft", ["forth", "back"], list("abc"))
    assert np.array_equal(found.final, [[11, 20, 30], [16, 18, 34]])
    assert found.disparity == pytest.approx([5, 2, 4])
    assert (found.aopd, found.mopd) == (pytest.approx(11 / 3), 5.0)
    assert "| Fine-tuning (FT) | 2 | 5.00 | 2.00 | 4.00 | 3.67 | 5.00 |" in markdown(orders_table([found]))


def test_other_domains_other_tests_or_the_same_order_are_no_orders() -> None:
    first = run_of("x", "ft", "abc", [1, 2, 3])
    for other in (run_of("y", "ft", "abd", [1, 2, 3]), run_of("y", "ft", "abc", [3, 2, 1])):
        assert summarise_orders(summarise([first, other])) == []
    longer = run_of("y", "ft", "cba", [1, 2, 3])
    longer.lengths = [200, 100, 100]
    assert summarise_orders(summarise([first, longer])) == []
    assert summarise_orders(summarise([first])) == []
