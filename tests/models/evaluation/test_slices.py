"""Kinds of items from a small catalogue, and figures of each kind worked out by hand."""

import math
from datetime import date

import pyarrow as pa
import pytest

from models.evaluation.queries import Ruler, Task
from models.evaluation.slices import group_by_label, group_by_traffic, group_items, measure_by_sid, measure_slices
from models.retrieval.held_out import PROTOCOLS, Query

TRAFFIC = {"a": 50.0, "b": 20.0, "c": 10.0, "d": 10.0, "e": 10.0}
DAY = date(2020, 3, 1)
RULER = Ruler(seed=1, num_samples=50)


def make_items(**changes: list) -> pa.Table:
    columns = {
        "item_id": list("abcdef"),
        "retired": [False] * 5 + [True],
        "first_seen_day": [date(2020, 2, day) for day in (1, 2, 3, 23, 24, 25)],
        "topics": pa.array([["x", "all"], ["x", "y\n z", "all"], ["all"], ["w", "all"], None, ["x"]]),
        "channel": ["one", "one", "two", None, "two", "one"],
    }
    return pa.table(columns | changes)


def test_head_torso_tail_share_the_traffic() -> None:
    groups = group_by_traffic(["f", *"edcba"], TRAFFIC)
    assert groups == {"head": {"a"}, "torso": {"b", "c"}, "tail": {"d", "e", "f"}}  # 50%, 20 + 10%, the rest
    assert group_by_traffic(["a", "b"], {"a": 3.0, "b": 1.0})["head"] == {"a"}
    assert group_by_traffic(["b", "a"], {}) == {"head": set(), "torso": set(), "tail": {"a", "b"}}


def test_categories_are_the_topics_that_tell_items_apart() -> None:
    groups = group_items(make_items(), TRAFFIC, date(2020, 3, 1))
    assert groups["items"]["new"] == {"e"}  # since 23 February, itself not; f has gone
    assert groups["category"] == {"x": {"a", "b"}, "y z": {"b"}, "w": {"d"}, "other": {"c", "e"}}
    assert group_items(make_items(topics=[None] * 6), TRAFFIC, DAY)["category"] == {
        "two": {"c", "e"},
        "one": {"a", "b"},
        "other": {"d"},
    }
    assert "category" not in group_items(make_items(topics=[None] * 6, channel=[None] * 6), TRAFFIC, DAY)


def test_only_the_largest_categories_have_a_name() -> None:
    names = list("abcdefgh")
    groups = group_by_label(names, [[f"topic {name}"] for name in names], {name: i for i, name in enumerate(names)})
    assert list(groups) == [f"topic {name}" for name in "hgfed"] + ["other"]
    assert groups["other"] == {"a", "b", "c"}


@pytest.fixture
def answered() -> tuple[dict[str, Task], dict[str, list[list[str]]]]:
    queries = [
        Query("u1", DAY, [("a", 1), ("b", 2), ("c", 3)], frozenset("ad")),
        Query("u2", DAY, [("b", 1)], frozenset("e")),
    ]
    tasks = {protocol: Task.of(queries, protocol) for protocol in PROTOCOLS}
    return tasks, {"seen_masked": [["e", "d"], ["a"]], "not_masked": [["a", "b"], ["d", "c"]]}


def test_a_slice_counts_no_other_item(answered: tuple) -> None:
    tasks, ranked = answered
    slices = measure_slices(RULER, tasks, ranked, group_items(make_items(), TRAFFIC, DAY))
    head, tail = slices["items"]["head"], slices["items"]["tail"]
    assert head["not_masked"]["num_queries"] == head["not_masked"]["recall@10"] == 1  # of u1, whose d is of the tail
    assert head["seen_masked"] == {"num_queries": 0}  # a was seen
    assert (tail["seen_masked"]["num_queries"], tail["seen_masked"]["recall@10"]) == (2, 0.5)
    assert tail["not_masked"]["recall@10"] == 0.0
    assert slices["items"]["new"]["not_masked"]["num_queries"] == 1
    assert slices["category"]["w"]["seen_masked"]["recall@10"] == 1.0
    assert slices["history"]["cold"]["not_masked"]["num_queries"] == 1
    assert all("recall@10_se" in slices["items"][name]["not_masked"] for name in ("head", "tail"))


def test_an_item_of_the_same_sid_is_a_hit(answered: tuple) -> None:
    tasks, ranked = answered
    codes = {"a": (0, 1), "c": (2, 2), "d": (0, 1), "e": (2, 2)}
    figures = measure_by_sid(RULER, tasks, ranked, codes)
    assert figures["not_masked"]["recall@10"] == 1.0  # u1: a = d, one SID is relevant; u2: c has the SID of e
    assert figures["not_masked"]["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)  # e has it at place 2
