import math
from xml.etree import ElementTree

import pytest

from asrcl.scoring.report.html import svg


def test_text_and_attributes_are_escaped() -> None:
    made = svg.tag("g", svg.title('a "b" <c>') + svg.text(1, 2, "x & <y>"), data_m='"><script>', x=1.25, y=None)
    node = ElementTree.fromstring(made)
    assert node.attrib == {"data-m": '"><script>', "x": "1.2"}
    assert [child.text for child in node] == ['a "b" <c>', "x & <y>"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (2.6, 30.1, [5, 10, 15, 20, 25, 30]), (0.1, 0.34, [0.1, 0.15, 0.2, 0.25, 0.3]), (3, 3, [3])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_log_ticks_are_powers_of_ten_and_few() -> None:
    assert svg.log_ticks(0.5, 2000) == pytest.approx([1, 10, 100, 1000])
    assert len(svg.log_ticks(1e-12, 1e9)) <= 6


def test_scales_meet_their_ends() -> None:
    linear, log = svg.Scale(2, 4, 10, 110), svg.Scale(1, 100, 10, 110, True)
    assert [linear(v) for v in (2, 3, 4)] == [10, 60, 110]
    assert [log(v) for v in (1, 10, 100)] == pytest.approx([10, 60, 110])
    assert svg.Scale(5, 5, 0, 10)(5) == 0


def test_spans_hold_the_values_and_survive_their_absence() -> None:
    low, high = svg.span([3.0, 9.0, math.nan, math.inf])
    assert low < 3 < 9 < high < 10
    assert svg.span([0.0, 4.0], floor=0.0)[0] == 0.0
    assert svg.span([]) == (0.0, 1.0) and svg.span([5.0]) == (4.5, 5.5)
    assert svg.log_span([0.0, -1.0]) == (0.1, 1.0)


def test_a_gap_breaks_the_line() -> None:
    drawn = svg.polyline([(0, 0), (1, 1), (2, math.nan), (3, 3)])
    assert 'd="M0 0L1 1M3 3"' in drawn
    assert svg.polyline([(math.nan, 1)]) == ""


@pytest.mark.parametrize("shape", ["circle", "square", "up", "down", "diamond", "plus", "cross"])
def test_every_marker_is_an_element_with_words(shape: str) -> None:
    node = ElementTree.fromstring(svg.marker(shape, 3, 4, 5, "#123456", "hello"))
    assert node[0].text == "hello" and "#123456" in (node.attrib.get("fill"), node.attrib.get("stroke"))


@pytest.mark.parametrize(("value", "words"), [(0, "0"), (2.5, "2.5"), (1e-6, "1e-6"), (1e7, "1e7"), (250, "250")])
def test_labels_are_short(value: float, words: str) -> None:
    assert svg.label(value) == words
