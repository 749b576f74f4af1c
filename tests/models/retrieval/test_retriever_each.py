"""Several searches after one prompt: each finds what it would have found alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.retrieval.beam import Choice
from models.retrieval.retriever import Ask, Request, Retriever
from models.retrieval.rules import parse
from models.retrieval.trie import Allowed

DAY_MS = 86_400_000
NOW = 18_300 * DAY_MS  # 2020-02-08
RULES = [None, "fresh(9d)", "~seen", "fresh(20d) & ~seen"]


@pytest.fixture(scope="module")
def retriever(world: Any) -> Retriever:
    folders = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    return Retriever.load(**folders, weights=world.sft / "weights", device="cpu")


@pytest.fixture(scope="module")
def with_delta(retriever: Retriever) -> Retriever:
    """The same with new items, one of them behind a SID of the base, one item at another SID, and one gone."""
    ids = ["new1", "new2", "new3", "item02"]
    days = pa.array([NOW // DAY_MS] * 4, pa.int32()).cast(pa.date32())
    items = pa.table({"item_id": ids, "first_seen_day": days, "published_ms": [NOW] * 4})
    codes = np.array([retriever.codes_of["item04"], (0, 0, 0), (3, 2, 2), (1, 1, 1)])
    return retriever.with_items(items, codes).without(["item09"])


def some_requests() -> list[Request]:
    generator = np.random.default_rng(4)
    lists = [generator.integers(0, 24, length) for length in (0, 1, 5, 9, 3, 12, *[2] * 20)]  # more than one batch
    return [
        Request(
            history=[(f"item{number:02d}", NOW - DAY_MS * (40 - place)) for place, number in enumerate(items)],
            at_ms=NOW,
        )
        for items in lists
    ]


def allowed(retriever: Retriever, requests: list[Request], rule: str | None) -> list[Allowed | None]:
    parsed = None if rule is None else parse(rule)
    return [retriever.epoch.select(parsed, at_ms=one.rule_ms, sets=one.sets) for one in requests]


def assert_alike(found: list[list[Any]], alone: list[list[Any]]) -> None:
    assert [[hit.item_id for hit in one] for one in found] == [[hit.item_id for hit in one] for one in alone]
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_allclose([hit.score for hit in one], [hit.score for hit in other], atol=1e-5)
        assert [hit.codes for hit in one] == [hit.codes for hit in other]


@pytest.mark.parametrize("kind", ["retriever", "with_delta"])
def test_every_ask_finds_what_it_finds_alone(kind: str, request: pytest.FixtureRequest) -> None:
    retriever, requests = request.getfixturevalue(kind), some_requests()
    choices = [None, Choice(cap=2), Choice(temperature=1.0, seed=3), Choice(cap=1, cap_level=2)]
    widths = [10, 4, 7, 3]
    asks = [
        Ask(allowed(retriever, requests, rule), width, choice)
        for rule, width, choice in zip(RULES, widths, choices, strict=True)
    ]
    together = retriever.retrieve_each(requests, asks, 10)
    assert len(together) == len(asks)
    for ask, found in zip(asks, together, strict=True):
        [alone] = retriever.retrieve_each(requests, [ask], 10)
        assert_alike(found, alone)
    if kind == "with_delta":
        names = {hit.item_id for one in together[1] for hit in one}
        assert {"new1", "new2", "new3", "item02"} & names
        assert "item09" not in {hit.item_id for found in together for one in found for hit in one}


def test_without_an_index_beside_one_with_it(retriever: Retriever) -> None:
    """An ask of `retrieve` in one breath with one of another width is what `retrieve` gives."""
    requests = some_requests()[:6]
    rules = allowed(retriever, requests, None)
    both = retriever.retrieve_each(requests, [Ask(rules, 12), Ask(rules, 5)], 10)
    assert_alike(both[0], retriever.retrieve(requests, 10, 12))
    [narrow] = retriever.retrieve_each(requests, [Ask(rules, 5)], 10)
    assert_alike(both[1], narrow)


def test_an_ask_that_allows_nothing_to_some_gives_them_nothing_and_the_others_theirs(retriever: Retriever) -> None:
    requests = some_requests()[:5]
    everything, seen = (allowed(retriever, requests, rule) for rule in (None, "seen"))
    assert [retriever.count(one) for one in seen] == [0, *(retriever.count(one) for one in seen[1:])]
    found = retriever.retrieve_each(requests, [Ask(everything, 8), Ask(seen, 8)], 8)
    assert_alike(found[0], retriever.retrieve(requests, 8, 8))
    assert found[1][0] == []
    for request, hits, may in zip(requests[1:], found[1][1:], seen[1:], strict=True):
        assert {hit.item_id for hit in hits} <= {item for item, _ in request.history}
        assert len(hits) == min(8, retriever.count(may))
        [[alone]] = retriever.retrieve_each([request], [Ask([may], 8)], 8)
        assert_alike([hits], [alone])


def test_where_no_ask_allows_anything_there_is_no_search(retriever: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.retrieval import beam

    monkeypatch.setattr(beam, "beam_searches", lambda *_, **__: pytest.fail("nothing to look for"))
    requests = [Request(), Request()]
    nothing = allowed(retriever, requests, "seen")
    assert retriever.retrieve_each(requests, [Ask(nothing, 5), Ask(nothing, 3)], 4) == [[[], []], [[], []]]
    assert retriever.retrieve_each([], [Ask([], 5)], 4) == [[]]
    assert retriever.retrieve_each(requests, [], 4) == []
