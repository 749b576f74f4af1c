"""One numbering over memory, base and delta; what may come back; what is new."""

from __future__ import annotations

from collections import ChainMap
from typing import Any

import numpy as np
import pytest

from models.ranking.shelf import DAY_MS, Shelf, codes_array, prefixes_of
from models.retrieval.live_index import Epoch
from models.retrieval.retriever import Request
from models.retrieval.rules import Rule, parse

IDS = ["a", "b", "c", "d", "e"]
CODES = {"a": (1, 2, 3), "b": (1, 2, 0), "c": (1, 3, 0), "d": (0, 0, 0), "z": (2, 2, 2)}  # e has none


@pytest.fixture
def epoch(make_segment: Any, end_ms: int) -> Epoch:
    """The index holds z, which the memory does not know, and neither d (retired) nor e (without a SID)."""
    rows = {item: {"codes": CODES[item], "published_ms": end_ms - 9 * DAY_MS, "price": 1.0} for item in ("c", "a", "b")}
    return Epoch(make_segment({**rows, "z": {"codes": CODES["z"], "published_ms": end_ms - DAY_MS, "price": 5.0}}))


@pytest.fixture
def shelf(make_memory: Any, epoch: Epoch, end_ms: int) -> Shelf:
    published = [end_ms - 9 * DAY_MS, end_ms - 2 * DAY_MS, -1, end_ms - DAY_MS, -1]
    memory = make_memory(IDS, recent=[1, 3, 3, 9, 0], count=[4, 5, 6, 7, 0], published_ms=published)
    return Shelf.of(memory, epoch.base, CODES)


def newer(epoch: Epoch, end_ms: int, make_segment: Any) -> tuple[Epoch, dict[str, Any]]:
    """With two new items, and b at another SID, published anew."""
    rows = {
        "new": {"codes": (3, 3, 3), "published_ms": end_ms + DAY_MS, "price": 2.0},
        "b": {"codes": (2, 0, 1), "published_ms": end_ms, "price": 3.0},
        "odd": {"codes": (3, 0, 0), "published_ms": None, "price": None},
    }
    segment = make_segment(rows)
    codes = np.array([rows[item]["codes"] for item in segment.item_ids])
    return epoch.add(segment.items, codes), CODES | {item: row["codes"] for item, row in rows.items()}


def allowed(epoch: Epoch, rule: Rule | None, end_ms: int = 0) -> Any:
    return epoch.select(rule, at_ms=end_ms, sets=Request(history=[("a", 0)]).sets)


def names(shelf: Shelf, mask: np.ndarray) -> str:
    return " ".join(shelf.item_id(number) for number in np.flatnonzero(mask).tolist())


def test_items_of_the_index_that_the_memory_lacks_come_last(shelf: Shelf) -> None:
    assert len(shelf) == 6
    assert [shelf.item_id(number) for number in range(6)] == [*IDS, "z"]
    assert [shelf.number_of(item) for item in [*IDS, "z", "nobody"]] == [0, 1, 2, 3, 4, 5, -1]
    assert (shelf.count[5], shelf.recent[5], shelf.week[5], shelf.month[5]) == (0, 0, 0, 0)
    assert np.isnan(shelf.price[5])


def test_positions_are_the_segments_own(shelf: Shelf, epoch: Epoch) -> None:
    for number in range(6):
        place = epoch.base.position_of.get(shelf.item_id(number), -1)
        assert shelf.base[number] == place
    assert (shelf.delta == -1).all()


def test_prefixes_number_first_codes_and_first_two(shelf: Shelf) -> None:
    first, both = shelf.prefixes
    assert first.tolist() == [1, 1, 1, 0, -1, 2]
    assert both[0] == both[1] != both[2]
    assert (both[3], both[4]) == (0, -1)
    assert len({both[0], both[2], both[3], both[5]}) == 4
    assert prefixes_of(codes_array(["x"], {"x": (7,)})).tolist() == [[7], [7]]  # a SID of one level


def test_codes_are_the_sids_of_memory_and_extras(shelf: Shelf, make_memory: Any, epoch: Epoch) -> None:
    assert shelf.codes.tolist() == [[1, 2, 3], [1, 2, 0], [1, 3, 0], [0, 0, 0], [-1] * 3, [2, 2, 2]]
    assert shelf.codes.dtype == np.int32
    alone = Shelf.counted(make_memory(IDS), np.full(5, -1), CODES)
    assert alone.codes.tolist() == shelf.codes[:5].tolist()
    others = Shelf.of(make_memory(["nobody"]), epoch.base, CODES)  # all that have a SID are the index's alone
    assert [tuple(others.codes[others.number_of(item)]) for item in "abcz"] == [CODES[item] for item in "abcz"]
    assert others.codes[0].tolist() == [-1] * 3


def test_codes_of_a_delta_stand_beside_and_instead(shelf: Shelf, epoch: Epoch, end_ms: int, make_segment: Any) -> None:
    after, codes_of = newer(epoch, end_ms, make_segment)
    longer = shelf.with_delta(after.delta, codes_of)
    wanted = {**CODES, "b": (2, 0, 1), "new": (3, 3, 3), "odd": (3, 0, 0), "e": (-1, -1, -1)}
    assert {longer.item_id(number): tuple(codes) for number, codes in enumerate(longer.codes.tolist())} == wanted
    assert shelf.codes[1].tolist() == [1, 2, 0]  # as it was
    only_new = make_segment({"e": {"codes": (3, 1, 1), "published_ms": None}})
    known = shelf.with_delta(only_new, {**CODES, "e": (3, 1, 1)})  # the first SID of an item that the memory knows
    assert known.codes[4].tolist() == [3, 1, 1]
    assert known.prefixes[:, 4].tolist() == [3, (3 << 32) | 1]
    assert known.codes[[0, 1, 2, 3, 5]].tolist() == shelf.codes[[0, 1, 2, 3, 5]].tolist()


@pytest.mark.parametrize("items", [["a"], ["new"], ["a", "new"]])
def test_codes_where_no_item_had_a_sid(make_memory: Any, make_segment: Any, items: list[str]) -> None:
    bare = Shelf.counted(make_memory(IDS), np.full(5, -1), {})
    assert (bare.codes == -1).all()
    assert (bare.prefixes == -1).all()
    codes_of = {item: (3, 2, place) for place, item in enumerate(items)}
    delta = make_segment({item: {"codes": codes, "published_ms": None} for item, codes in codes_of.items()})
    shelf = bare.with_delta(delta, codes_of)
    found = {shelf.item_id(number): tuple(codes) for number, codes in enumerate(shelf.codes.tolist())}
    assert found == {item: codes_of.get(item, (-1, -1, -1)) for item in [*IDS, *codes_of]}
    numbers = [shelf.number_of(item) for item in codes_of]
    assert shelf.prefixes[:, numbers].tolist() == [[3] * len(items), [(3 << 32) | 2] * len(items)]


class Catalogue(dict[str, tuple[int, ...]]):
    """A million items: to list them takes half a second."""

    def __iter__(self) -> Any:
        raise AssertionError("all items were listed")


def test_new_items_do_not_list_the_catalogue() -> None:
    whole = Catalogue(CODES)
    for new, first in (({"n": (3, 3, 3)}, [3, 3, 3]), ({}, [-1] * 3)):
        assert codes_array(["n", "z", "e"], ChainMap(new, whole)).tolist() == [first, [2, 2, 2], [-1] * 3]


def test_a_delta_stands_beside_and_instead(shelf: Shelf, epoch: Epoch, end_ms: int, make_segment: Any) -> None:
    after, codes_of = newer(epoch, end_ms, make_segment)
    assert after.delta is not None
    longer = shelf.with_delta(after.delta, codes_of)
    assert len(longer) == 8
    assert {longer.item_id(6), longer.item_id(7)} == {"new", "odd"}
    for number in range(8):
        assert longer.delta[number] == after.delta.position_of.get(longer.item_id(number), -1)
    at = {item: longer.number_of(item) for item in ("b", "new", "odd")}
    assert longer.prefixes[0, at["b"]] == 2  # at its new SID
    assert longer.published_ms[[at["b"], at["new"], at["odd"]]].tolist() == [end_ms, end_ms + DAY_MS, -1]
    assert longer.count[at["b"]] == 5  # what was counted of it stays
    assert (shelf.prefixes[0, 1], shelf.published_ms[1], len(shelf)) == (1, end_ms - 2 * DAY_MS, 6)  # as it was
    assert shelf.with_delta(None, CODES) is shelf


def test_a_mask_is_what_the_index_allows(shelf: Shelf, epoch: Epoch, end_ms: int, make_segment: Any) -> None:
    after, codes_of = newer(epoch, end_ms, make_segment)
    both = shelf.with_delta(after.delta, codes_of)
    gone = after.remove(["a", "new"])
    left = shelf.with_delta(gone.delta, codes_of)
    cases: list[tuple[Epoch, Shelf, str | None, str]] = [
        (epoch, shelf, None, "a b c z"),
        (epoch, shelf, "~seen", "b c z"),
        (epoch, shelf, "price > 2", "z"),
        (after, both, None, "a b c z new odd"),
        (after, both, "price >= 2", "b z new"),  # b by the price that it has in the delta
        (after, both, "fresh(3d)", "b z new"),
        (gone, left, None, "b c z odd"),
        (gone, left, "price > 0", "b c z"),
        (gone, left, "price > 100", ""),
    ]
    for state, one, rule, wanted in cases:
        may = one.mask(allowed(state, None if rule is None else parse(rule), end_ms))
        assert sorted(names(one, may(np.arange(len(one)))).split()) == sorted(wanted.split()), rule
        some = np.array([3, 0, 3])
        assert may(some).tolist() == may(np.arange(len(one)))[some].tolist()
        assert may(np.zeros(0, np.int64)).tolist() == []


def test_the_most_popular_first_of_what_the_index_has(
    shelf: Shelf, epoch: Epoch, end_ms: int, make_segment: Any
) -> None:
    assert [shelf.item_id(number) for number in shelf.by_popularity.tolist()] == ["b", "c", "a", "z"]
    after, codes_of = newer(epoch, end_ms, make_segment)
    longer = shelf.with_delta(after.delta, codes_of)
    found = [longer.item_id(number) for number in longer.by_popularity.tolist()]
    assert found[:4] == ["b", "c", "a", "z"]
    assert sorted(found[4:]) == ["new", "odd"]


def test_fresh_is_what_was_published_since(shelf: Shelf, end_ms: int) -> None:
    def since(days: float) -> list[str]:
        return [shelf.item_id(number) for number in shelf.fresh(end_ms - int(days * DAY_MS)).tolist()]

    assert since(7) == ["b", "z"]
    assert since(1) == ["z"]
    assert since(9) == ["b", "a", "z"]  # c's day is not known, and d is not in the index
    assert since(0.5) == []
    for hour in range(50):  # many moments are asked, few are kept
        shelf.fresh(hour)
    assert since(7) == ["b", "z"]
    assert len(shelf._fresh) < 10
