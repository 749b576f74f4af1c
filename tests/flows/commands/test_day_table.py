"""What `make day` prints: rows in one order under plain names, what the model adds in words, gaps where nothing is."""

import copy
from pathlib import Path
from typing import Any

import pytest

from flows.commands.day_table import DayTable
from flows.commands.traffic_check import TrafficCheck

PROTOCOLS = ("seen_masked", "not_masked")
RECALLS = {
    "sasrec": 0.16,
    "star": 0.08,
    "knn_sum": 0.14,
    "text_knn": 0.15,
    "item_knn": 0.13,
    "popularity": 0.1,
    "own": 0.24,
    "memory": 0.27,
    "model": 0.149,
    "without_model": 0.285,
    "served": 0.283,
}


def figures(recall: float) -> dict[str, Any]:
    """Of a method; a tenth where seen items are masked."""
    values = {"seen_masked": recall / 10, "not_masked": recall}
    return {
        p: {"num_queries": 900, "recall@10": v, "recall@10_se": 0.004, "ndcg@10": v / 2, "ndcg@10_se": 0.003}
        for p, v in values.items()
    }


def gains(masked: float, plain: float) -> dict[str, Any]:
    rows = zip(PROTOCOLS, (masked, plain), strict=True)
    return {p: {"recall@10": v, "recall@10_se": 0.001, "ndcg@10": v / 2, "ndcg@10_se": 0.0005} for p, v in rows}


def make_scores() -> dict[str, Any]:
    """With a ranker, every rival, and slices of all but SASRec."""
    methods = {name: figures(recall) for name, recall in RECALLS.items()}
    kinds = {"items/new": 0.1, "items/tail": 0.2, "history/cold": 0.3}
    slices = {
        kind: {p: {"num_queries": n, "recall@10": share} for p, n in zip(PROTOCOLS, (1173, 359), strict=True)}
        for kind, share in kinds.items()
    }
    return {
        "as_of": "2011-10-31",
        "num_queries": 1039,
        "num_users": 904,
        "methods": methods,
        "served_minus": {"without_model": gains(0.003, -0.002)},
        "model_gain": gains(0.003, -0.002),
        "method_slices": {name: slices for name in RECALLS if name != "sasrec"},
        "shown": {"served": {"coverage": 0.251, "effective_vocabulary": 1234}},
        "leave_one_out": {
            "num_queries": 300,
            "methods": {name: figures(0.05) for name in ("own", "model", "without_model", "served")},
            "model_gain": gains(0.0, 0.0005),
        },
        "num_invalid": 0,
    }


def make_old_scores() -> dict[str, Any]:
    """Of before there was a ranker."""
    scores = make_scores()
    new = ("served_minus", "model_gain", "method_slices", "shown")
    methods = {name: scores["methods"][name] for name in ("model", "popularity", "sasrec")}
    last = {"num_queries": 300, "methods": {"model": figures(0.05)}}
    return {k: v for k, v in scores.items() if k not in new} | {"methods": methods, "leave_one_out": last}


def text_of(*scores: dict[str, Any]) -> str:
    kinds = ("bootstrap", "daily", "daily")
    releases = tuple(
        {
            "release_id": f"2011-11-0{number}-8eaa7318",
            "as_of": f"2011-11-0{number}",
            "kind": kinds[number],
            "verdict": "passed",
            "scores": one,
            "sids": {"num_items": 4593, "uniqueness": 0.776, "collisions": 0, "largest_bucket": 1},
            "run": {"seconds": {"sft": 182.4}, "throughput": {}},
        }
        for number, one in enumerate(scores)
    )
    traffic = TrafficCheck(
        num_requests=200, num_items=2000, num_invalid=0, num_degraded=0, num_compared=200, p50_ms=24.0, p99_ms=41.0
    )
    return DayTable(releases, traffic, Path("report.html"), "c17841").text()


def table(text: str, title: str) -> list[list[str]]:
    """Rows of the table below a title, as cells without spaces around them."""
    lines = text[text.index(title) :].splitlines()
    first = next(n for n, line in enumerate(lines) if (line[:1] in "┃ " and "method" in line) or line[:1] == "┃")
    rows = []
    for line in lines[first:]:
        if line[:1] == "└" or not line:
            break
        if line[:1] == "│":
            rows.append([cell.strip() for cell in line.strip("│").split("│")])
    return rows


def test_methods_in_one_order_under_plain_names_and_the_gain_last() -> None:
    text = text_of(make_scores())
    rows = table(text, "Next days after 2011-10-31: 1039 user-days, 904 users")
    assert [row[0] for row in rows] == [
        *("served", "without model", "model", "memory", "own", "popularity", "item-kNN", "text kNN", "kNN sum"),
        *("STAR", "SASRec", "model gain"),
    ]
    assert rows[0][1:] == ["0.0283 ± 0.0040", "0.0141 ± 0.0030", "0.2830 ± 0.0040", "0.1415 ± 0.0030"]
    assert rows[-1][1:] == ["+0.0030 ± 0.0010", "+0.0015 ± 0.0005", "−0.0020 ± 0.0010", "−0.0010 ± 0.0005"]
    assert max(map(len, text.splitlines())) <= 100


def test_what_the_gain_means_is_said_in_words() -> None:
    words = " ".join(text_of(make_scores()).split())
    assert "The language model adds to what is served: model_gain +0.0030 ± 0.0010 in recall@10, seen masked." in words
    assert "adds nothing measurable: model_gain −0.0020 ± 0.0010 in recall@10, not masked; docs/training.md." in words
    assert "model gain: served minus without model, paired by user. served: what users get." in words


def test_slices_of_what_is_served_its_parts_and_sasrec() -> None:
    text = text_of(make_scores())
    rows = table(text, "R@10 seen masked / not masked by kind of item")
    assert [row[0] for row in rows] == ["served", "without model", "model", "memory", "own", "SASRec"]
    assert rows[0][1:] == ["0.1000 / 0.1000", "0.2000 / 0.2000", "0.3000 / 0.3000", "25.10%", "1,234"]
    assert rows[1][4:] == ["-", "-"]
    assert rows[-1][1:] == ["- / -", "- / -", "- / -", "-", "-"]
    assert text.count("(1,173 / 359)") == 3


def test_leave_one_out_is_a_table_where_it_was_measured() -> None:
    text = text_of(make_scores())
    section = text[text.index("Leave-one-out: the last event of these days, of 300 users") : text.index("Releases")]
    rows = [line for line in section.splitlines() if "±" in line]
    assert [row.split("  ")[0].strip() for row in rows] == ["served", "without model", "model", "own", "model gain"]
    assert "+0.0005 ± 0.0010" in rows[-1]
    for gone in ({}, {"num_queries": 0, "methods": {}}):
        assert "Leave-one-out" not in text_of({**make_scores(), "leave_one_out": gone})


def test_each_release_has_what_it_serves_and_what_its_model_adds() -> None:
    worse = copy.deepcopy(make_scores())
    worse["model_gain"] = gains(0.0, -0.01)
    rows = {row[0]: row[1:] for row in table(text_of(make_scores(), worse, make_old_scores()), "Releases")}
    assert rows["served, R@10 not masked"] == ["0.2830 ± 0.0040", "0.2830 ± 0.0040", "0.1490 ± 0.0040"]
    assert rows["model gain, R@10 not masked"] == ["−0.0020 ± 0.0010", "−0.0100 ± 0.0010", "-"]


def test_a_release_of_before_the_ranker_says_that_its_model_was_served() -> None:
    text = text_of(make_old_scores())
    assert [row[0] for row in table(text, "Next days after")] == ["model (served)", "popularity", "SASRec"]
    for new in ("model gain:", "without model", "by kind of item", "The language model"):
        assert new not in text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_protocol_without_a_query_is_a_gap(protocol: str) -> None:
    scores = make_scores()
    for method in scores["methods"].values():
        method[protocol] = {"num_queries": 0}
    del scores["model_gain"][protocol]
    rows = table(text_of(scores), "Next days after")
    empty = slice(1, 3) if protocol == "seen_masked" else slice(3, 5)
    assert all(row[empty] == ["-", "-"] for row in rows)
    assert "model_gain (no figure)" in text_of(scores)


def test_a_release_that_was_not_scored_is_a_gap() -> None:
    unscored = {"as_of": "2011-12-09", "num_queries": 0, "num_users": 0, "methods": {}, "slices": {}, "daily": []}
    rows = {row[0]: row[1:] for row in table(text_of(make_scores(), unscored), "Releases")}
    assert rows["served, R@10 not masked"][1] == rows["model gain, R@10 not masked"][1] == "-"
