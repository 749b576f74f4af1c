"""The one renderer of requests."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.language.prompt import MS_PER_HOUR, render_events, render_prompt
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
