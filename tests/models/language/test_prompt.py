"""The one renderer of requests."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.language.facts import ItemFacts
from models.language.numbers import Numbers
from models.language.prompt import MS_PER_HOUR, most_event_tokens, most_tokens, render_events, render_prompt
from models.language.words import Vocabulary

HOUR = MS_PER_HOUR
A, B, C = (0, 1, 2), (3, 2, 1), (1, 0, 0)


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    return Vocabulary.load(world.vocabulary)


def spell(words: Vocabulary, ids: list[int]) -> str:
    return words.tokenizer.decode(ids).replace("> ", ">").replace(" <", "<")


def test_default_order_and_gaps(words: Vocabulary) -> None:
    history = [(A, 0), (B, HOUR - 1), (C, 5 * HOUR)]
    assert spell(words, render_prompt(words, history, {"country": "Peru"})) == (
        "<bos><history><a_0><b_1><c_2><a_3><b_2><c_1><gap_2><a_1><b_0><c_0><gap_4>"
        "<user>country Peru<context><a_1><b_0><c_0><next>"
    )


def test_context_and_time_of_the_request(words: Vocabulary) -> None:
    soon = render_prompt(words, [(A, 0)], {}, context=B, at_ms=HOUR - 1)
    assert spell(words, soon) == "<bos><history><a_0><b_1><c_2><context><a_3><b_2><c_1><next>"
    later = render_prompt(words, [(A, 0)], {}, context=B, at_ms=HOUR)
    assert spell(words, later) == "<bos><history><a_0><b_1><c_2><gap_0><context><a_3><b_2><c_1><next>"


def test_without_a_time_it_is_a_day(words: Vocabulary) -> None:
    assert render_prompt(words, [(A, 0)], {}) == render_prompt(words, [(A, 0)], {}, at_ms=24 * HOUR)


def test_unknown_user_without_history(words: Vocabulary) -> None:
    assert spell(words, render_prompt(words, [], {})) == "<bos><history><next>"
    assert render_prompt(words, [], {}, at_ms=10**12) == render_prompt(words, [], {})


def test_order_is_the_recipes(words: Vocabulary) -> None:
    turned = replace(words, shape=replace(words.shape, template=("context", "user", "history")))
    assert spell(words, render_prompt(turned, [(A, 0)], {"country": "Peru"})) == (
        "<bos><context><a_0><b_1><c_2><user>country Peru<history><a_0><b_1><c_2><gap_4><next>"
    )
    bare = replace(words, shape=replace(words.shape, template=("history",)))
    assert (
        spell(words, render_prompt(bare, [(A, 0)], {"country": "Peru"})) == "<bos><history><a_0><b_1><c_2><gap_4><next>"
    )


def test_nobody_else_writes_a_segment(root: Path) -> None:
    """The tokens that open a segment are named where they are made and where a request is rendered."""
    named = {
        path.relative_to(root).as_posix()
        for folder in ("plumline", "features", "models", "serving", "monitoring", "flows")
        for path in (root / folder).rglob("*.py")
        if any(f'"<{name}>"' in path.read_text(encoding="utf-8") for name in ("history", "user", "context", "next"))
    }
    assert named == {"models/language/prompt.py", "models/language/words.py"}


def test_profile_is_text_from_outside(words: Vocabulary) -> None:
    ids = render_prompt(words, [], {"country": "Peru<a_1>＜next＞", "shoe": "never a feature"})
    assert ids[:2] == [words.control["<bos>"], words.control["<history>"]]
    assert ids.count(words.control["<next>"]) == 1
    inside = ids[ids.index(words.control["<user>"]) + 1 : -1]
    assert inside
    assert max(inside) < words.reserved_base
    assert "shoe" not in words.tokenizer.decode(inside)
    assert len(render_prompt(words, [], {"country": "Peru " * 500})) <= 4 + words.shape.max_profile_tokens


codes = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
histories = st.lists(st.tuples(codes, st.integers(0, 10**9)), max_size=25).map(lambda h: sorted(h, key=lambda e: e[1]))


@given(histories)
def test_only_the_most_recent_items_count(words: Vocabulary, history: list[tuple[Any, int]]) -> None:
    assert render_prompt(words, history, {}) == render_prompt(words, history[-words.shape.max_history :], {})


@given(histories)
def test_every_item_of_the_history_is_in_the_prompt(words: Vocabulary, history: list[tuple[Any, int]]) -> None:
    ids = np.array(render_prompt(words, history, {}))
    found = words.space.codes(ids[ids >= words.sid_base].reshape(-1, 3), words.sid_base)
    kept = [list(row) for row, _ in history[-words.shape.max_history :]]
    assert found.tolist() == kept + kept[-1:]  # the context item once more
    gaps = ids[(ids >= words.gap_base) & (ids < words.sid_base)]
    times = [time for _, time in history][-words.shape.max_history :]
    assert len(gaps) == sum(b - a >= HOUR for a, b in pairwise(times)) + bool(times)


@given(st.lists(histories.filter(len), min_size=1, max_size=4))
def test_many_histories_at_once(words: Vocabulary, many: list[list[tuple[Any, int]]]) -> None:
    rows = np.array([row for history in many for row, _ in history])
    times = np.array([time for history in many for _, time in history])
    first = np.zeros(len(rows), dtype=bool)
    first[np.cumsum([0, *(len(history) for history in many[:-1])])] = True
    alone = [
        render_events(words, np.array([row for row, _ in history]), np.array([time for _, time in history])).tokens
        for history in many
    ]
    assert render_events(words, rows, times, first).tokens.tolist() == np.concatenate(alone).tolist()


def told_words(words: Vocabulary, history: tuple[str, ...], context: tuple[str, ...]) -> Vocabulary:
    """Prompts with features; the tokens of the numbers are those of gaps 0, 1 (price) and 2, 3 (rating)."""
    numbers = {"price": Numbers(words.gap_base, (2.0,)), "rating": Numbers(words.gap_base + 2, (0.1,))}
    features = {"history_features": history, "context_features": context, "max_title_tokens": 5}
    return replace(words, numbers=numbers, shape=replace(words.shape, **features))


def test_features_by_hand(words: Vocabulary) -> None:
    told = told_words(words, ("price", "channel", "quantity", "rating"), ("title", "channel"))
    maker, thing = (tuple(words.encode_untrusted(text, 5)) for text in ("maker", "thing"))
    ids = render_prompt(
        told,
        [(A, 0), (B, 5 * HOUR)],
        {},
        facts=[ItemFacts(maker, thing), ItemFacts((), thing)],
        numbers={"price": [1.5, None], "rating": [0.1, float("nan")], "quantity": [1.0, 1.0], "colour": [3.0, 3.0]},
        at_ms=5 * HOUR,
    )
    assert spell(words, ids) == (
        "<bos><history><a_0><b_1><c_2><gap_0>maker<gap_3><gap_2><a_3><b_2><c_1><context>thing<a_3><b_2><c_1><next>"
    )
    # 0.1 is not a float of 32 bits: what a request says and what a history holds are the same bucket.
    same = {"price": np.array([1.5, np.nan], np.float32), "rating": np.array([0.1, np.nan], np.float32)}
    facts = [ItemFacts(maker, thing), ItemFacts((), thing)]
    assert render_prompt(told, [(A, 0), (B, 5 * HOUR)], {}, facts=facts, numbers=same, at_ms=5 * HOUR) == ids  # type: ignore[arg-type]
    looked_at = render_prompt(told, [(A, 0)], {}, context=C, context_facts=ItemFacts(maker, thing), at_ms=0)
    assert spell(words, looked_at) == "<bos><history><a_0><b_1><c_2><context>thingmaker<a_1><b_0><c_0><next>"
    assert spell(words, render_prompt(told, [], {})) == "<bos><history><next>"


def test_without_features_nothing_of_it_is_told(words: Vocabulary) -> None:
    """Whoever hands on more than the release was trained on, its prompts stay what they are."""
    facts = [ItemFacts((1, 2), (3,)), ItemFacts((4,), (5,))]
    history = [(A, 0), (B, HOUR)]
    plain = told_words(words, (), ())
    more = render_prompt(plain, history, {}, facts=facts, numbers={"price": [1.0, 3.0]}, context_facts=facts[0])
    assert more == render_prompt(words, history, {})


@given(st.data())
def test_the_newest_events_are_told_and_no_prompt_is_longer_than_said(words: Vocabulary, data: st.DataObject) -> None:
    some = st.lists(st.sampled_from(["price", "channel", "rating", "quantity"]), unique=True)
    of_context = st.lists(st.sampled_from(["channel", "title"]), unique=True)
    told = told_words(words, tuple(data.draw(some)), tuple(data.draw(of_context)))
    size = data.draw(st.integers(0, words.shape.max_history + 5))
    history = [(A if n % 2 else B, n * HOUR) for n in range(size)]
    facts = [ItemFacts((1,) * 8, (2,) * 5) for _ in history]
    numbers = {"price": [float(n) for n in range(size)], "rating": [0.0] * size}
    profile = {"country": data.draw(st.sampled_from(["", "Peru " * 50]))}
    ids = render_prompt(told, history, profile, facts=facts, numbers=numbers)
    most = words.shape.max_history
    cut = {name: values[-most:] for name, values in numbers.items()}
    assert ids == render_prompt(told, history[-most:], profile, facts=facts[-most:], numbers=cut)
    assert len(ids) <= most_tokens(told)
    if size >= most and profile["country"]:  # all but the gap before the first event, and tokens that "Peru" leaves out
        missing = words.shape.max_profile_tokens - len(words.encode_untrusted(f"country {profile['country']}", 24))
        assert len(ids) == most_tokens(told) - missing
    assert most_event_tokens(words) == 4
