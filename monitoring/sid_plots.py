"""Plots as coordinates: what the page of the SID report hands to its SVG templates. Numbers only, no text from outside.

Two forms are enough: horizontal bars in groups (a measure beside what it is compared with) and a falling curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 480
_LABEL, _VALUE, _BAR, _GAP = 96, 120, 13, 11
_CURVE_WIDTH, _CURVE_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 320, 150, 40, 8, 12, 22
_MAX_POINTS = 200


@dataclass(frozen=True)
class Bar:
    """One bar. y, width: in pixels, from x 96. series: number of its colour. text: its value in words."""

    y: int
    width: float
    series: int
    text: str


@dataclass(frozen=True)
class BarChart:
    """Groups of bars, one under the other. labels: (y, name) of each group. series: what each colour means."""

    title: str
    note: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    labels: tuple[tuple[int, str], ...]
    height: int


@dataclass(frozen=True)
class Curve:
    """A falling curve over ranks. points: of its polyline. even: y of the level line that all codes alike would be."""

    title: str
    note: str
    points: str
    even: float
    top: str
    last: str


def bar_chart(
    title: str,
    note: str,
    series: Sequence[str],
    rows: Sequence[tuple[str, Sequence[float | None]]],
    texts: Sequence[Sequence[str]],
    longest: float | None = None,
) -> BarChart:
    """Lay out rows of (name, a value a series); None draws no bar. texts: the same values in words.

    longest: the value whose bar is as long as there is room; None: the largest.
    """
    values = [value for _, row in rows for value in row if value is not None]
    most = longest or max(values, default=0.0) or 1.0
    room = WIDTH - _LABEL - _VALUE
    bars, labels, y = [], [], _GAP // 2
    for (name, row), words in zip(rows, texts, strict=True):
        labels.append((y + _BAR * len(row) // 2, name))
        for series_number, (value, text) in enumerate(zip(row, words, strict=True)):
            bars.append(Bar(y, round(room * min((value or 0.0) / most, 1.0), 1), series_number, text))
            y += _BAR
        y += _GAP
    return BarChart(title, note, tuple(series), tuple(bars), tuple(labels), y)


def rank_curve(title: str, note: str, counts: Sequence[int]) -> Curve:
    """Draw counts that fall. counts: at least one."""
    most = max(counts[0], 1)
    ranks = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _MAX_POINTS)).astype(int))
    across, down = _CURVE_WIDTH - _LEFT - _RIGHT, _CURVE_HEIGHT - _TOP - _BOTTOM
    x = _LEFT + across * ranks / max(len(counts) - 1, 1)
    y = _TOP + down * (1 - np.asarray(counts)[ranks] / most)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    even = _TOP + down * (1 - sum(counts) / len(counts) / most)
    return Curve(title, note, points, round(even, 1), f"{counts[0]:,}", f"{len(counts):,}")
