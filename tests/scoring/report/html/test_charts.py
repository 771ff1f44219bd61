"""Charts as the page holds them: parsed as XML, what they say and refer to."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from asrcl.scoring.report.drawing import Line, Point
from asrcl.scoring.report.heat import HEAT
from asrcl.scoring.report.html import charts
from asrcl.scoring.report.looks import Look, looks

NAN = math.nan


def parsed(drawn: str) -> ElementTree.Element:
    node = ElementTree.fromstring(drawn)
    assert node.attrib["role"] == "img" and node.attrib["aria-label"] and node.attrib["class"] == "chart"
    assert node.attrib["viewBox"].startswith("0 0 420 ") and "width" not in node.attrib
    # No ids, of which a page may hold one once, and nothing that would reach beyond the chart.
    assert not any(element.attrib.keys() & {"id", "href", "clip-path"} for element in node.iter())
    assert {element.tag for element in node.iter()} <= {"svg", "g", "path", "text", "title", "tspan"}
    assert "nan" not in drawn and "\n" not in drawn and "font-family" not in drawn
    return node


def texts(node: ElementTree.Element) -> list[str]:
    return ["".join(text.itertext()) for text in node.iter("text")]


def test_lines_carry_their_method_their_band_and_their_numbers() -> None:
    lines = [Line("ft", "FT", [1.0, 2.0, 3.0], [0.5, 1.5, NAN], [1.5, 2.5, NAN]), Line("initial", "First", [NAN, 4.0, NAN])]
    node = parsed(charts.stage_lines(lines, looks((), ["ft", "initial"]), ["a", "b", "c"], "WER"))
    groups = [group for group in node.iter("g") if "data-m" in group.attrib]
    assert [group.attrib["data-m"] for group in groups] == ["ft", "ft", "initial"]  # a band and a line, a line
    said = [title.text for title in groups[1].iter("title")]
    assert said == ["FT, stage 1: 1.00 (0.50 to 1.50)", "FT, stage 2: 2.00 (1.50 to 2.50)", "FT, stage 3: 3.00"]
    assert [title.text for title in groups[2].iter("title")] == ["First, stage 2: 4.00"]


def test_names_of_domains_stand_under_the_axis_where_they_fit() -> None:
    lines, look = [Line("ft", "FT", [1.0, 2.0])], looks((), ["ft"])
    assert "India" in texts(parsed(charts.stage_lines(lines, look, ["US", "India"], "WER")))
    long = texts(parsed(charts.stage_lines(lines, look, ["US", "a very long name of a domain, too long"], "WER")))
    assert {"1", "2", "stage", "WER"} <= set(long) and "US" not in long


def test_equal_numbers_give_equal_bytes() -> None:
    look = looks((), ["a"])
    first, again = (charts.stage_lines([Line("a", "A", [1.0, 2.0])], look, ["x", "y"], "WER") for _ in range(2))
    assert first == again


def test_text_is_text_in_colours_that_the_page_says() -> None:
    drawn = charts.stage_lines([Line('<m>"', "A & <B> $x$", [1.0, 2.0])], looks((), ['<m>"']), ["us", "$y_1$"], "WER in $")
    node = parsed(drawn)
    assert {"$y_1$", "WER in $"} <= set(texts(node)) and "var(--ink)" in drawn and "#1a1a1a" not in drawn
    assert {element.attrib["data-m"] for element in node.iter() if "data-m" in element.attrib} == {'<m>"'}
    assert "A & <B> $x$, stage 1: 1.00" in [title.text for title in node.iter("title")]


def test_the_front_joins_what_nothing_beats() -> None:
    points = [
        Point("a", "A", 1.0, 9.0), Point("b", "B", 5.0, 5.0), Point("c", "C", 6.0, 6.0),
        Point("d", "D", 0.5, 0.5, competes=False), Point("e", "E", NAN, 1.0),
    ]  # fmt: skip
    node = parsed(charts.old_against_new(points, looks((), list("abcde")), "old", "new"))
    (front,) = [path for path in node.iter("path") if "dasharray" in path.attrib.get("style", "")]
    assert front.attrib["d"].count("L") == 1
    assert [group.attrib["data-m"] for group in node.iter() if "data-m" in group.attrib] == list("abcd")


def test_charts_of_nothing_known_are_still_charts() -> None:
    look = looks((), ["a"])
    parsed(charts.stage_lines([Line("a", "A", [NAN])], look, ["only"], "WER"))
    parsed(charts.old_against_new([Point("a", "A", NAN, NAN)], look, "x", "y"))
    parsed(charts.curves([Line("a", "A", [5.0])], look, "epoch", "loss"))
    parsed(charts.bars([("layer", 0.0, None)], "norm", "", "L2"))
    parsed(charts.ranges([("block", 0.0, 0.0, 0.0)], "eigenvalues"))
    parsed(charts.spectra([("block", [1.0, 0.0])], "rank", "eigenvalue"))


def test_bars_name_their_layers_and_both_numbers() -> None:
    node = parsed(charts.bars([("a.very.long.name.of.a.layer.in.a.model.weight", 2.0, 1.0)], "norm", "merged", "L2"))
    assert [title.text for title in node.iter("title")] == ["a.very.long.name.of.a.layer.in.a.model.weight: norm 2, merged 1"]
    (short,) = charts.short_paths(["a.very.long.name.of.a.layer.in.a.model.weight"], charts.NAME_LETTERS)
    assert {short, "1", "bar: norm; mark: merged (L2)"} == set(texts(node))
    alone = parsed(charts.bars([("a", 0.123, None), ("b", NAN, None)], "norm", "", "L2"))
    assert sorted(texts(alone)) == ["0.12", "a", "b", "bar: norm (L2)"]


def test_heat_cells_say_what_is_not_measured_and_what_is_infinite() -> None:
    (row,) = charts.heat_cells(np.array([[1.0, NAN, math.inf]]), np.array([[0.5, NAN, NAN]]), 1.0, 3.0)
    assert [cell["text"] for cell in row] == ["1.0", "", "inf"]
    assert row[0]["words"] == "1.00 ± 0.50" and row[1]["words"] == "not measured"
    assert row[2]["background"] == HEAT[-1]


def test_rounding_is_left_out_of_spectra_and_ticks_are_plain() -> None:
    chart = charts.spectra([("a", [1.0, 1e-3, 1e-14]), ("b", [1e-12, 1e-13])], "rank", "eigenvalue")
    said = texts(parsed(chart))
    assert "0.001" in said and not any("e-1" in text or "tspan" in text for text in said)
    assert "1e-5" in texts(parsed(charts.ranges([("block", 1e-5, 1e-3, 0.1)], "eigenvalues")))


@pytest.mark.parametrize("look", [Look("#0072B2", "-", "o"), Look("#222222", ":", "d", 1.4)])
def test_a_swatch_is_a_decoration_of_one_line_and_one_marker(look: Look) -> None:
    node = ElementTree.fromstring(charts.swatch(look))
    assert node.attrib["aria-hidden"] == "true" and len(list(node.iter("path"))) == 2 and not texts(node)
