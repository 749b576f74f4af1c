"""What goes on from the newest item, and how fast an item is taken: features by hand on five items."""

from datetime import date

import numpy as np
import pytest

from models.memory.memory import TABLES, Memory, MemoryParams
from models.memory.neighbours import Neighbours
from models.ranking.candidates import SOURCES, Candidates, Visit
from models.ranking.features import FEATURES, features, group_of
from models.ranking.shelf import DAY_MS, LEVELS, Shelf

NUM = 5
AS_OF = date(2024, 1, 10)


@pytest.fixture
def shelf() -> Shelf:
    """Items 0 … 4, of which 0 is followed by 1 (weight 3) and 4 (weight 1); 5 is of the delta alone."""
    empty = Neighbours(np.zeros(NUM + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    follows = Neighbours(np.array([0, 2, 2, 2, 2, 2]), np.array([1, 4], np.int32), np.array([3, 1], np.float32))
    beside = Neighbours(np.array([0, 1, 2, 2, 2, 2]), np.array([1, 0], np.int32), np.array([0.5, 0.5], np.float32))
    end = 19_733 * DAY_MS  # of 2024-01-10
    memory = Memory(
        item_ids=[f"i{number}" for number in range(NUM)],
        live=np.ones(NUM, bool),
        count=np.array([12.0, 6.0, 3.0, 8.0, 1.0]),
        recent=np.ones(NUM),
        week=np.ones(NUM),
        month=np.ones(NUM),
        published_ms=np.array([end - 4 * DAY_MS, end - 12 * DAY_MS, -1, end - DAY_MS // 2, end + DAY_MS]),
        price=np.full(NUM, np.nan, np.float32),
        tables={**dict.fromkeys(TABLES, empty), "next": follows, "together": beside},
        as_of=AS_OF,
        params=MemoryParams(),
    )
    assert memory.end_ms == end

    def longer(values: np.ndarray, fill: float) -> np.ndarray:
        return np.append(values, fill).astype(values.dtype)

    return Shelf(
        memory=memory,
        extras=["i5"],
        base=np.array([0, 1, 2, 3, 4, -1]),
        delta=np.array([-1, -1, -1, -1, -1, 0]),
        codes=np.full((NUM + 1, 2), -1, dtype=np.int32),
        prefixes=np.full((LEVELS, NUM + 1), -1, dtype=np.int64),
        published_ms=longer(memory.published_ms, -1),
        count=longer(memory.count, 0),
        recent=longer(memory.recent, 0),
        week=longer(memory.week, 0),
        month=longer(memory.month, 0),
        price=longer(memory.price, np.nan),
        order=np.arange(NUM + 1),
    )


def column(shelf: Shelf, visit: Visit, name: str) -> list[float]:
    items = np.arange(len(shelf))
    blank = np.full((len(items), len(SOURCES)), np.nan, dtype=np.float32)
    return features(shelf, visit, Candidates(items, blank, blank), False)[:, FEATURES.index(name)].tolist()


def visit(shelf: Shelf, *items: int, context: int = -1, days_after: float = 0.5) -> Visit:
    now = shelf.memory.end_ms + int(days_after * DAY_MS)
    return Visit(np.array(items, np.int64), np.full(len(items), now - DAY_MS), now, context)


def test_shares_of_the_newest_item(shelf: Shelf) -> None:
    assert column(shelf, visit(shelf, 2, 0), "next_last") == [0, 0.75, 0, 0, 0.25, 0]
    assert column(shelf, visit(shelf, 2, 0), "together_last") == [0, 1, 0, 0, 0, 0]
    assert column(shelf, visit(shelf, 0, 2), "next_last") == [0] * 6  # nothing was counted after item 2
    assert column(shelf, visit(shelf, 2, context=0), "next_last") == [
        0,
        0.75,
        0,
        0,
        0.25,
        0,
    ]  # looked at: newest of all
    assert np.isnan(column(shelf, visit(shelf), "next_last")).all()
    assert np.isnan(column(shelf, visit(shelf, 0, 5), "together_last")).all()  # of the delta: not counted
    assert {group_of(name) for name in ("next_last", "together_last")} == {"next", "together"}


def test_events_a_day_since_publication(shelf: Shelf) -> None:
    for days_after in (0.5, 1.5):  # counts end with the memory, whenever it is asked
        found = column(shelf, visit(shelf, 0, days_after=days_after), "item_daily")
        assert found[:2] == [pytest.approx(12 / 4), pytest.approx(6 / 12)]
        assert np.isnan(found[2])
        assert found[3:5] == [8, 1]  # younger than a day, and published after the memory's end: as of one day
    assert group_of("item_daily") == "item"
