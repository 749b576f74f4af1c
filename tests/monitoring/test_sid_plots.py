"""Coordinates stay inside their box and are in proportion."""

from hypothesis import given
from hypothesis import strategies as st

from monitoring.sid_plots import WIDTH, bar_chart, rank_curve


def test_bars_are_in_proportion_and_none_draws_none():
    chart = bar_chart("t", "n", ("a", "b"), [("x", (0.5, None)), ("y", (1.0, 0.25))], [["50%", "–"], ["100%", "25%"]])
    widths = [bar.width for bar in chart.bars]
    assert widths[1] == 0
    assert widths[0] == widths[2] / 2 == widths[3] * 2
    assert [bar.text for bar in chart.bars] == ["50%", "–", "100%", "25%"]
    assert [name for _, name in chart.labels] == ["x", "y"]
    assert len({bar.y for bar in chart.bars}) == 4


def test_a_longest_value_fixes_the_scale():
    free, fixed = (bar_chart("", "", ("a",), [("x", (0.5,))], [[""]], longest) for longest in (None, 1.0))
    assert free.bars[0].width == 2 * fixed.bars[0].width


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e9)), max_size=8))
def test_bars_fit(values):
    chart = bar_chart("", "", ("a",), [("x", (value,)) for value in values], [[""]] * len(values))
    assert all(0 <= bar.width < WIDTH and 0 <= bar.y < chart.height for bar in chart.bars)


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=500))
def test_curves_fall_inside_their_box(counts):
    curve = rank_curve("", "", sorted(counts, reverse=True))
    points = [tuple(map(float, point.split(","))) for point in curve.points.split()]
    assert len(points) <= 200
    assert all(40 <= x <= 312 and 12 <= y <= 128 for x, y in points)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert 12 <= curve.even <= 128
    assert (curve.top, curve.last) == (f"{max(counts):,}", f"{len(counts):,}")


def test_even_use_lies_on_the_level_line():
    curve = rank_curve("", "", [7, 7, 7])
    assert {point.split(",")[1] for point in curve.points.split()} == {"12.0"}
    assert curve.even == 12.0
