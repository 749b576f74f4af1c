"""What a person reads of a recommendation, and how a history is told."""

import pytest

from flows.commands.recommend import Answer, read_ids, split_ids
from models.ranking.why import Reason
from plumline.errors import InputError
from serving.recommender import Recommendation, RecommendedItem

WHY = (Reason("own", 0.75, ("85123A",), "bought 3 times"), Reason("next", 0.25, ("2",), "often follows 2"))


def answer(**changed):
    items = (
        RecommendedItem("85123A", "WHITE HEART", "<a_1><b_2>", -4.25, WHY),
        RecommendedItem("2", None, "<a_3><b_4>", -12.5),
        RecommendedItem("33", "x" * 80, "<a_3><b_5>", -13.0),
    )
    about = {"degraded": False, "reason": "", "history_length": 3, "num_unknown_history": 0, "num_invalid": 0}
    found = Recommendation("2020-01-01-aa", items, **about, num_allowed=7)
    return Answer(Recommendation(**{**found.__dict__, **changed}), {"85123A": 2.95, "33": 1234.5})


def test_a_table_has_rank_item_title_price_and_why():
    lines = answer().lines()
    assert lines[0].split() == ["item", "title", "price", "why"]
    assert lines[1].split("  ")[:3] == ["1", "85123A", "WHITE HEART"]
    assert lines[1].endswith("    2.95  bought 3 times")  # what spoke for it the most
    assert lines[2].split() == ["2", "2"]
    assert lines[3].endswith("…  1234.50")
    places = [line.index(word, 1) for line, word in zip(lines, ("item", "85123A", "2", "33"), strict=True)]
    assert len(set(places)) == 1  # columns stand below one another
    assert len(lines) == 4


def test_sids_and_scores_come_when_they_are_asked_for():
    lines = answer().lines(verbose=True)
    assert lines[0].split() == ["item", "title", "price", "SID", "score", "why"]
    assert lines[1].split("  ")[-3:] == ["<a_1><b_2>", " -4.2500", "bought 3 times (75%); often follows 2 (25%)"]
    assert lines[2].split()[-2:] == ["<a_3><b_4>", "-12.5000"]
    assert all("<a_" not in line for line in answer().lines())


def test_why_an_answer_is_less_than_it_could_be_is_said_below_it():
    assert answer(reason="short", detail="3 of 10 items").lines()[-1] == "# short: 3 of 10 items"
    told = Answer(answer(reason="cold", items=()).recommendation, {}, "nobody knows user 'u'")
    assert told.lines() == ["# cold", "# nobody knows user 'u'"]


def test_scripts_get_the_service_s_fields_and_the_price():
    found = answer().to_json()
    assert found["items"][0] == {
        "item_id": "85123A", "title": "WHITE HEART", "sid": "<a_1><b_2>", "score": -4.25, "price": 2.95,
        "why": [
            {"part": "own", "share": 0.75, "items": ["85123A"], "words": "bought 3 times"},
            {"part": "next", "share": 0.25, "items": ["2"], "words": "often follows 2"},
        ],
    }  # fmt: skip
    assert (found["items"][1]["price"], found["items"][1]["why"]) == (None, [])
    assert (found["num_allowed"], found["ranked"]) == (7, False)


def test_ids_may_have_commas_and_stand_in_a_file(tmp_path):
    known = {"a", "b", "tea, green", "c,d"}.__contains__
    assert split_ids(read_ids("a,b,,x"), known) == ["a", "b", "x"]
    assert split_ids(read_ids("tea, green"), known) == ["tea, green"]
    assert split_ids(read_ids("c,d"), known) == ["c,d"]
    path = tmp_path / "ids.txt"
    path.write_text("\ufefftea, green\n\n  a \nc,e\n", encoding="utf-8")
    assert split_ids(read_ids(f"@{path}"), known) == ["tea, green", "a", "c,e"]
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_ids(f"@{bad}")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="no UTF-8"):
        read_ids(f"@{path}")
