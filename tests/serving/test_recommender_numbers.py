"""The numbers of a history's events on their way to the model: by HTTP, by the online features, by a held-out query."""

import json
from dataclasses import replace
from datetime import date
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.catalog import Catalog
from features.online import OnlineUser
from models.language.facts import ItemTexts
from models.language.numbers import Numbers
from models.retrieval.held_out import Query
from plumline.errors import InputError
from serving.bodies import RecommendRequest
from serving.recommender import Recommender
from serving.service import Plumline

HOUR = 3_600_000
HISTORY = [("item001", HOUR), ("nobody", 2 * HOUR), ("item002", 3 * HOUR), ("item004", 9 * HOUR)]
PRICES, RATINGS = [0.1, 5.0, None, 0.7], [None, 1.0, 4.0, None]


@pytest.fixture(scope="module")
def recommender(real: Any) -> Recommender:
    """The first release, without its ranker, as if it had been trained with features; numbers are tokens of gaps."""
    plain = Recommender.load(real.folder(0), device="cpu")
    words = plain.retriever.vocabulary
    features = {
        "history_features": ("channel", "price", "rating"),
        "context_features": ("title",),
        "max_title_tokens": 9,
    }
    numbers = {"price": Numbers(words.gap_base + 8, (0.7,)), "rating": Numbers(words.gap_base + 10, (3.0,))}
    words = replace(words, shape=replace(words.shape, **features), numbers=numbers)
    texts = ItemTexts.of(words, Catalog.load(plain.release.path("catalog")).items)
    return replace(plain, ranked=None, retriever=replace(plain.retriever, vocabulary=words, texts=texts))


@pytest.fixture(scope="module")
def wanted(recommender: Recommender) -> tuple[str, ...]:
    """What the stage `scores` would ask, a day after the last event."""
    known = {"price": np.array(PRICES, np.float32), "rating": np.array(RATINGS, np.float32)}
    query = Query("u", date(2011, 11, 1), HISTORY, frozenset({"item003"}), numbers=known)
    ids = recommender.retriever.prompt(replace(query.request({}), at_ms=None)).token_ids
    prompt = recommender.retriever.vocabulary.spell(ids)
    assert [token for token in prompt if token in ("<gap_8>", "<gap_9>", "<gap_10>", "<gap_11>")] == [
        "<gap_8>",  # 0.1
        "<gap_11>",  # a rating of 4
        "<gap_9>",  # 0.7, which is the edge, and no float of 32 bits
    ]
    return prompt


def told(recommender: Recommender, **asked: Any) -> tuple[str, ...]:
    return recommender.recommend(k=1, show_prompt=True, **asked).prompt


def test_a_request_by_http_tells_what_scores_tell(recommender: Recommender, wanted: tuple[str, ...]) -> None:
    entries: list[dict[str, Any]] = []
    for (item, at), price, rating in zip(HISTORY, PRICES, RATINGS, strict=True):
        entry = {"item_id": item, "timestamp": at, "price": price, "rating": rating, "quantity": 2}
        entries.append({name: value for name, value in entry.items() if value is not None})
    service: Any = SimpleNamespace(features=None)
    for history in (entries, entries[::-1]):  # put in order by their times, the numbers with them
        request = RecommendRequest.model_validate_json(json.dumps({"history": history, "k": 1, "show_prompt": True}))
        assert isinstance(request, RecommendRequest)
        assert request.problem == ""
        assert Plumline.inner._answer(service, recommender, request).prompt == wanted
    bare = told(recommender, history=HISTORY)
    assert len(bare) == len(wanted) - 3


def test_online_features_tell_what_scores_tell(recommender: Recommender, wanted: tuple[str, ...]) -> None:
    user = OnlineUser(tuple(HISTORY), {}, found=True, numbers={"price": tuple(PRICES), "rating": tuple(RATINGS)})
    store: Any = SimpleNamespace(read=lambda *_, **__: user)
    assert told(recommender, user_id="u", features=store) == wanted
    older: Any = SimpleNamespace(read=lambda *_, **__: OnlineUser(tuple(HISTORY), {}, found=True))
    assert told(recommender, user_id="u", features=older) == told(recommender, history=HISTORY)
    # A history that is given is what counts, and the store's numbers are not of it.
    assert told(recommender, user_id="u", history=HISTORY, features=store) == told(recommender, history=HISTORY)


def test_ids_without_times_have_numbers_too(recommender: Recommender) -> None:
    asked = {"history": ["item002", "nobody", "item004"], "numbers": {"price": [None, 1.0, 0.2]}}
    assert [token for token in told(recommender, **asked) if token in ("<gap_8>", "<gap_9>")] == ["<gap_8>"]


def test_new_items_are_told_by_their_texts(recommender: Recommender) -> None:
    codes = np.array([recommender.retriever.codes_of["item001"]])
    newer = recommender.with_items(pa.table({"item_id": ["new"], "title": ["quite new"], "channel": ["a"]}), codes)
    words = recommender.retriever.vocabulary
    title = words.spell(words.encode_untrusted("quite new", 9))
    prompt = told(newer, history=["new"])
    place = prompt.index("<context>") + 1
    assert prompt[place : place + len(title)] == title


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"colour": [1.0]}, "'colour' is no number of an event; there are watch_ratio, watch_time_s"),
        ({"price": [1.0, 2.0]}, "numbers: 2 of price for 1 items of the history"),
        ({"price": [float("inf")]}, "numbers: price inf is not finite"),
    ],
)
def test_numbers_that_cannot_be(recommender: Recommender, numbers: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        recommender.recommend(history=["item001"], numbers=numbers)
    with pytest.raises(InputError, match="numbers"):
        recommender.recommend(user_id="u", numbers=numbers)


@pytest.mark.parametrize("value", ["0.5", True, "NaN", [1]])
def test_a_number_that_is_none_gets_one_line(value: Any) -> None:
    body = {"history": ["item002", {"item_id": "item001", "timestamp": 5, "price": value}]}
    request = RecommendRequest.model_validate_json(json.dumps(body))
    assert request.problem == f"history.1.HistoryEntry.price: {value} is no finite number; give one, or null"
    infinite = json.dumps(body | {"history": [{"item_id": "a", "timestamp": 5, "rating": 1e999}]})
    assert "rating: inf is no finite number" in RecommendRequest.model_validate_json(infinite).problem
