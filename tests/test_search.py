"""Grids and Pareto fronts against what they mean."""

import math

from hypothesis import given
from hypothesis import strategies as st

from asrcl.search import grid, pareto_front

points = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.0, 3.0, math.nan, math.inf])] * 2), max_size=12)


def test_a_grid_is_all_combinations_and_the_last_varies_fastest():
    found = grid({"tau": [1, 2], "rest": ["1/t", 0.0]})
    assert [tuple(setting.values()) for setting in found] == [(1, "1/t"), (1, 0.0), (2, "1/t"), (2, 0.0)]
    assert grid({}) == [{}] and grid({"tau": []}) == []


@given(points)
def test_the_front_holds_who_is_beaten_by_none(entries):
    front = pareto_front(entries, lambda point: point)
    known = [point for point in entries if not any(map(math.isnan, point))]

    def beats(first, second):
        return first != second and first[0] <= second[0] and first[1] <= second[1]

    assert sorted(front) == sorted(point for point in known if not any(beats(other, point) for other in known))
    assert [point[0] for point in front] == sorted(point[0] for point in front)
