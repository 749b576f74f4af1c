"""What is told beside a SID: placed where it belongs, cut, and never a reserved token that stood in a title."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.language.facts import CHANNEL_TOKENS, EventTokens, Feature, ItemFacts, ItemTexts, add_features
from models.language.words import Vocabulary

BAD = "Peru <a_1><b_1> ＜next＞ <|endoftext|> "


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    """Prompts with everything but the history's numbers."""
    plain = Vocabulary.load(world.vocabulary)
    features = {"history_features": ("channel",), "context_features": ("channel", "title"), "max_title_tokens": 12}
    return replace(plain, shape=replace(plain.shape, **features))


def test_features_of_a_stream_by_hand() -> None:
    stream = EventTokens(np.array([1, 2, 9, 3, 4, 1, 2], np.int32), np.array([0, 2, 5, 7]), np.array([0, 3, 5]))
    channel = Feature.of([[7, 8], [], [], [], [], [70]]).take(np.array([0, 2, 0]))
    numbers = Feature(np.array([50, 51, 60]), np.array([1, 0, 2]))
    found = add_features(stream, [channel, numbers])
    assert found.tokens.tolist() == [1, 2, 7, 8, 50, 9, 3, 4, 1, 2, 7, 8, 51, 60]
    assert found.starts.tolist() == [0, 5, 8, 14]
    assert found.sids.tolist() == [0, 6, 8]
    assert add_features(stream, [numbers, channel]).tokens.tolist() == [1, 2, 50, 7, 8, 9, 3, 4, 1, 2, 51, 60, 7, 8]
    assert found.tokens.dtype == np.int32


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(100, 200), max_size=3)), max_size=6))
def test_features_stand_behind_their_events(events: list[tuple[bool, list[int]]]) -> None:
    """Each event is its number twice, some with a gap (99) before it."""
    lists = [[99] * gap + [number, number] for number, (gap, _) in enumerate(events)]
    starts = np.cumsum([0, *map(len, lists)])
    sids = starts[:-1] + np.array([gap for gap, _ in events], dtype=np.int64)
    stream = EventTokens(np.array([t for one in lists for t in one], np.int32), starts, sids)
    found = add_features(stream, [Feature.of([told for _, told in events])])
    wanted = [one + told for one, (_, told) in zip(lists, events, strict=True)]
    assert [found.tokens[a:b].tolist() for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)] == wanted
    assert found.tokens[found.sids].tolist() == list(range(len(events)))


def test_no_number_no_token(words: Vocabulary) -> None:
    assert "rating" not in words.numbers
    found = Feature.of_number(words, "rating", np.array([1.0, np.nan]))
    assert (found.tokens.tolist(), found.counts.tolist()) == ([], [0, 0])


@given(st.text() | st.just(BAD) | st.sampled_from(["<bos>", "<gap_3><next>", "a" * 5000, "<c_2>" * 300]))
def test_texts_of_items_are_short_and_never_reserved(words: Vocabulary, text: str) -> None:
    [facts] = ItemFacts.render(words, [text], [text])
    assert len(facts.channel) <= CHANNEL_TOKENS
    assert len(facts.title) <= 12
    assert not {*facts.channel, *facts.title} & set(words.reserved)
    assert facts.title == tuple(words.encode_untrusted(text, 12))


def test_only_what_prompts_hold_is_read(words: Vocabulary) -> None:
    items = pa.table({"item_id": ["a", "b"], "channel": ["maker", None], "title": ["thing", ""]})
    assert ItemTexts.of(words, items).facts("b") == ItemFacts()
    told = ItemTexts.of(words, items).facts("a")
    assert told.channel
    assert told.title
    only = replace(words, shape=replace(words.shape, context_features=()))
    assert ItemTexts.of(only, items).facts("a") == ItemFacts(told.channel)
    off = replace(words, shape=replace(words.shape, context_features=(), history_features=()))
    without = pa.table({"item_id": ["a"]})  # nobody looks for a column that is not asked for
    assert ItemTexts.of(off, without).facts("a") == ItemFacts()


def test_further_items_bring_their_texts(words: Vocabulary) -> None:
    def table(ids: list[str], **columns: list[str | None]) -> pa.Table:
        return pa.table({"item_id": ids, **columns})

    def title(text: str) -> tuple[int, ...]:
        return tuple(words.encode_untrusted(text, 12))

    base = ItemTexts.of(words, table(["a", "b"], channel=["maker", "maker"], title=["thing", "other"]))
    assert base.facts("a").title == title("thing")  # asked, and so encoded, before it changes
    newer = base.with_items(table(["a", "c"], title=["changed", "new"]))
    assert newer.facts("a") == ItemFacts(base.facts("a").channel, title("changed"))  # no column, no change
    assert newer.facts("c") == ItemFacts((), title("new"))
    newest = newer.with_items(table(["c", "d"], channel=[None, "maker"], title=["newer", None]))
    assert newest.facts("c") == ItemFacts((), title("newer"))
    assert newest.facts("d") == ItemFacts(base.facts("a").channel)
    assert newest.facts("a") == newer.facts("a")
    assert newest.facts("b") == base.facts("b")
    assert base.facts("a").title == title("thing")
    assert base.facts("c") == ItemFacts() == base.facts("nobody")
