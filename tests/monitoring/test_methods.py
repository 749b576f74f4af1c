"""Names, order and differences of the methods of a scores.json, new and old."""

import math
from datetime import date
from types import ModuleType
from typing import Any

import pytest

from monitoring.methods import (
    LEGEND,
    PLAIN_NAMES,
    PROTOCOL_WORDS,
    PROTOCOLS,
    SIMPLE,
    Difference,
    difference,
    gain_in_words,
    label,
    methods_of,
    model_gain,
    number,
    plain_name,
    served_method,
    signed,
)

DAY = date(2011, 10, 31)


def test_what_was_served_is_the_model_where_there_was_no_ranker(example: ModuleType) -> None:
    new, old = example.make_scores(DAY), example.make_old_scores(DAY)
    assert (served_method(new), served_method(old)) == ("served", "model")
    assert (label(new, "model"), label(old, "model")) == ("model", "model (served)")
    assert served_method({}) == served_method({"methods": None}) == "model"


def test_methods_stand_in_one_order_under_plain_names(example: ModuleType) -> None:
    scores = example.make_scores(DAY)
    scores["methods"] = dict(sorted({**scores["methods"], "zoo": {}, "another": {}}.items()))
    names = methods_of(scores)
    assert names == [
        *("served", "without_model", "model", "memory", "own", "popularity", "item_knn", "sasrec"),
        *("another", "zoo"),
    ]
    said = [label(scores, name) for name in names]
    assert said[:5] == ["served", "without model", "model", "memory", "own"]
    assert said[-3:] == ["SASRec of 2011-10-01", "another", "zoo"]


def test_names_for_people() -> None:
    simple = {
        "memory": "memory",
        "own": "own",
        "popularity": "popularity",
        "item_knn": "item-kNN",
        "text_knn": "text kNN",
        "knn_sum": "kNN sum",
        "star": "STAR",
    }
    learned = {"served": "served", "without_model": "without model", "model": "model"}
    assert list(PLAIN_NAMES.items()) == [*learned.items(), *simple.items(), ("sasrec", "SASRec")]
    assert list(SIMPLE) == list(simple)
    assert [plain_name("item_knn"), plain_name("zoo")] == ["item-kNN", "zoo"]
    assert PROTOCOLS == tuple(PROTOCOL_WORDS) == ("seen_masked", "not_masked")
    assert all(f"{name}: " in LEGEND for name in ("served", "without model", "model", "memory", "own"))


def test_a_difference_is_the_paired_one_where_it_was_measured(example: ModuleType) -> None:
    scores = example.make_scores(DAY, recall=0.3)
    scores["served_minus"]["memory"]["not_masked"] |= {"recall@10": 0.031, "ndcg@10": 0.017, "ndcg@10_se": 0.003}
    assert difference(scores, "memory", "not_masked") == Difference(0.031, 0.004)
    assert difference(scores, "memory", "not_masked", "ndcg@10") == Difference(0.017, 0.003)
    assert difference(scores, "memory", "seen_masked") == Difference(pytest.approx(0.03), 0.004)


def test_without_a_paired_difference_the_errors_count_as_independent(example: ModuleType) -> None:
    scores = example.make_scores(DAY, recall=0.3)
    scores["methods"]["served"]["not_masked"]["recall@10_se"] = 0.03
    scores["methods"]["sasrec"]["not_masked"]["recall@10_se"] = 0.04
    found = difference(scores, "sasrec", "not_masked")
    assert found == Difference(pytest.approx(0.15), pytest.approx(0.05), paired=False)
    del scores["methods"]["sasrec"]["not_masked"]["recall@10_se"]
    found = difference(scores, "sasrec", "not_masked")
    assert found == Difference(pytest.approx(0.15), pytest.approx(0.03), paired=False)
    old = example.make_old_scores(DAY, recall=0.2)
    found = difference(old, "popularity", "not_masked")
    assert found == Difference(pytest.approx(0.1), pytest.approx(math.hypot(0.01, 0.01)), paired=False)


@pytest.mark.parametrize("broken", [{"recall@10": None}, {"recall@10_se": float("nan")}, {"recall@10": float("inf")}])
def test_half_of_a_paired_difference_is_none(example: ModuleType, broken: dict[str, Any]) -> None:
    scores = example.make_scores(DAY)
    scores["served_minus"]["own"]["not_masked"] |= broken
    found = difference(scores, "own", "not_masked")
    assert found is not None
    assert not found.paired


@pytest.mark.parametrize("method", ["served", "own"])
@pytest.mark.parametrize("lost", [float("nan"), None, "0.3", True])
def test_without_a_figure_there_is_no_difference(example: ModuleType, method: str, lost: Any) -> None:
    scores = example.make_scores(DAY)
    scores["methods"][method]["not_masked"]["recall@10"] = lost
    assert difference(scores, "own", "not_masked") is None
    assert difference(scores, "own", "seen_masked") is not None
    del scores["methods"][method]["seen_masked"]
    assert difference(scores, "own", "seen_masked") is None


def test_a_method_is_ahead_beyond_two_standard_errors() -> None:
    assert not Difference(-0.02, 0.01).is_behind()
    assert Difference(-0.0201, 0.01).is_behind()
    assert not Difference(-0.03, 0.01).is_behind(3.0)
    assert not Difference(0.0, 0.0).is_behind()
    assert Difference(-0.001, 0.0).is_behind()


def test_the_model_gain_is_read_by_protocol_and_measure(example: ModuleType) -> None:
    scores = example.make_scores(DAY)
    assert model_gain(scores, "not_masked") == Difference(pytest.approx(0.02), 0.004)
    assert model_gain(scores, "not_masked", "ndcg@10") == Difference(pytest.approx(0.01), 0.002)
    assert model_gain(scores["leave_one_out"], "seen_masked") == Difference(pytest.approx(0.011), 0.004)
    assert model_gain(example.make_old_scores(DAY), "not_masked") is None
    scores["model_gain"]["not_masked"]["recall@10"] = float("nan")
    assert model_gain(scores, "not_masked") is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0041, "the language model adds to what is served: model_gain +0.0041 ± 0.0020 in recall@10, not masked"),
        (
            0.004,
            "the language model adds nothing measurable: model_gain +0.0040 ± 0.0020 in recall@10, not masked; "
            "docs/training.md",
        ),
        (
            -0.001,
            "the language model adds nothing measurable: model_gain −0.0010 ± 0.0020 in recall@10, not masked; "
            "docs/training.md",
        ),
        (
            -0.0041,
            "the language model makes what is served worse: model_gain −0.0041 ± 0.0020 in recall@10, not masked; "
            "docs/training.md",
        ),
    ],
)
def test_a_model_gain_in_words(value: float, words: str) -> None:
    assert gain_in_words(Difference(value, 0.002), "not_masked") == words


def test_a_model_gain_that_nobody_measured_is_no_gain_of_nothing() -> None:
    said = "nothing says what the language model adds: model_gain (no figure) in recall@10, seen masked"
    assert gain_in_words(None, "seen_masked") == said


def test_numbers_and_signs() -> None:
    assert number({"a": {"b": 1}}, "a", "b") == 1.0
    assert number(0.5) == 0.5
    assert [number(value) for value in (True, "1", float("nan"), float("-inf"), None, {})] == [None] * 6
    assert number({"a": [1]}, "a", "b") is number({}, "a") is number(None, "a") is None
    assert [signed(value) for value in (0.01, -0.01, -0.00001, 0.0)] == ["+0.0100", "−0.0100", "+0.0000", "+0.0000"]
