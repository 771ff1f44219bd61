import math
from xml.etree import ElementTree

import numpy as np
import pytest

from asrcl.scoring.report.html import charts
from asrcl.scoring.report.html.charts import Line, Point
from asrcl.scoring.report.looks import looks

NAN = math.nan


def parsed(drawn: str) -> ElementTree.Element:
    node = ElementTree.fromstring(drawn)
    width, height = (float(value) for value in node.attrib["viewBox"].split()[2:])
    for circle in node.iter("circle"):
        assert 0 <= float(circle.attrib["cx"]) <= width and 0 <= float(circle.attrib["cy"]) <= height
    assert node.attrib["role"] == "img" and node.attrib["aria-label"]
    return node


def test_lines_carry_their_method_their_band_and_their_numbers() -> None:
    lines = [Line("ft", "FT", [1.0, 2.0, 3.0], [0.5, 1.5, NAN], [1.5, 2.5, NAN]), Line("initial", "First", [NAN, 4.0, NAN])]
    node = parsed(charts.stage_lines(lines, looks((), ["ft", "initial"]), ["a", "b", "c"], "WER"))
    groups = {group.attrib["data-m"]: group for group in node.iter("g")}
    assert list(groups) == ["ft", "initial"]
    assert len(groups["ft"].findall("polygon")) == 1 and not groups["initial"].findall("polygon")
    said = [title.text for title in groups["ft"].iter("title")]
    assert said == ["FT, stage 1: 1.00 (0.50 to 1.50)", "FT, stage 2: 2.00 (1.50 to 2.50)", "FT, stage 3: 3.00"]


def test_names_of_domains_stand_under_the_axis_where_they_fit() -> None:
    lines, look = [Line("ft", "FT", [1.0, 2.0])], looks((), ["ft"])
    short = parsed(charts.stage_lines(lines, look, ["US", "India"], "WER"))
    assert "India" in [node.text for node in short.iter("text")]
    long = parsed(charts.stage_lines(lines, look, ["US", "a very long name of a domain, too long"], "WER"))
    assert [node.text for node in long.iter("text")][-3:] == ["2", "WER", "stage"]


def test_the_front_joins_what_nothing_beats() -> None:
    points = [
        Point("a", "A", 1.0, 9.0), Point("b", "B", 5.0, 5.0), Point("c", "C", 6.0, 6.0),
        Point("d", "D", 0.5, 0.5, competes=False), Point("e", "E", NAN, 1.0),
    ]  # fmt: skip
    node = parsed(charts.old_against_new(points, looks((), list("abcde")), "old", "new"))
    front = next(path for path in node.iter("path") if path.attrib.get("class") == "front")
    assert front.attrib["d"].count("L") == 1
    assert [group.attrib["data-m"] for group in node.iter("g")] == list("abcd")


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
    assert short in [text.text for text in node.iter("text")]
    assert sum(line.attrib.get("class") == "second" for line in node.iter("line")) == 1
    assert [text.text for text in node.iter("text")][-1] == "1"
    alone = parsed(charts.bars([("a", 0.123, None), ("b", NAN, None)], "norm", "", "L2"))
    assert [text.text for text in alone.iter("text")] == ["bar: norm (L2)", "a", "0.12", "b"]


def test_heat_cells_are_readable_at_every_shade() -> None:
    for share in np.linspace(0, 1, 101):
        background, ink = charts.heat_colour(float(share))
        assert charts.contrast(background, {"#000": "#000000", "#fff": "#ffffff"}[ink]) >= 4.5


def test_the_heat_scale_darkens_evenly_so_that_it_needs_no_hue() -> None:
    shades = [charts.contrast(charts.heat_colour(share)[0], "#ffffff") for share in np.linspace(0, 1, 21)]
    assert shades == sorted(shades) and shades[-1] / shades[0] > 8


def test_heat_cells_say_what_is_not_measured_and_what_is_infinite() -> None:
    (row,) = charts.heat_cells(np.array([[1.0, NAN, math.inf]]), np.array([[0.5, NAN, NAN]]), 1.0, 3.0)
    assert [cell["text"] for cell in row] == ["1.0", "", "inf"]
    assert row[0]["words"] == "1.00 ± 0.50" and row[1]["words"] == "not measured"
    assert row[2]["background"] == charts.HEAT[-1]


def test_colours_of_known_contrast() -> None:
    assert charts.contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert charts.contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_rounding_is_left_out_of_spectra() -> None:
    chart = charts.spectra([("a", [1.0, 1e-3, 1e-14]), ("b", [1e-12, 1e-13])], "rank", "eigenvalue")
    assert ">0.001<" in chart and ">1e-" not in chart and chart.count('class="spectrum"') == 1
