"""What a request becomes where an event is one place: token by token, and never longer than it may be."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language.facts import EventTokens, ItemFacts
from models.language.numbers import Numbers
from models.language.places import Places, event_sizes, most_places, render_places
from models.language.prompt import MS_PER_HOUR, render_prompt
from models.language.words import Vocabulary

HOUR = MS_PER_HOUR
A, B, C = (0, 1, 2), (3, 2, 1), (1, 0, 0)
SPELT = {A: "<a_0> <b_1> <c_2>", B: "<a_3> <b_2> <c_1>", C: "<a_1> <b_0> <c_0>"}


@pytest.fixture(scope="module")
def words(places_world: Any) -> Vocabulary:
    return Vocabulary.load(places_world.vocabulary)


@pytest.fixture(scope="module")
def told(words: Vocabulary) -> Vocabulary:
    """Prompts with features; the tokens of the price are those of gaps 0 and 1."""
    features = {"history_features": ("price", "channel"), "context_features": ()}
    numbers = {"price": Numbers(words.gap_base, (2.0,))}
    return replace(words, numbers=numbers, shape=replace(words.shape, **features))


def spell(words: Vocabulary, places: Places) -> str:
    """Places between bars, the question behind an arrow."""
    bags = [" ".join(words.spell(bag)) for bag in places.bags()]
    asked = [] if places.asked is None else [f"→ {words.spell([places.asked])[0]}"]
    return " ".join([" | ".join(bags), *asked])


def test_an_event_is_a_place_and_the_last_gap_is_the_question(words: Vocabulary) -> None:
    history = [(A, 0), (B, HOUR - 1), (C, 5 * HOUR)]
    places = render_places(words, history, {}, at_ms=7 * HOUR)
    assert spell(words, places) == f"<bos> | <history> | {SPELT[A]} | {SPELT[B]} | <gap_2> {SPELT[C]} → <gap_1>"
    assert (places.sizes, places.question, len(places)) == ([1, 1, 3, 3, 4], 1, 5)
    assert sum(places.sizes) + places.question == len(places.token_ids)


def test_a_user_who_is_back_within_the_hour_asks_without_a_question(words: Vocabulary) -> None:
    places = render_places(words, [(A, 0)], {}, at_ms=HOUR - 1)
    assert spell(words, places) == f"<bos> | <history> | {SPELT[A]}"
    assert (places.question, places.asked) == (0, None)


def test_without_a_time_it_is_a_day(words: Vocabulary) -> None:
    places = render_places(words, [(A, 7)], {})
    assert places == render_places(words, [(A, 7)], {}, at_ms=7 + 24 * HOUR)
    assert spell(words, places).endswith("→ <gap_4>")


def test_each_token_of_the_profile_is_a_place(words: Vocabulary) -> None:
    places = render_places(words, [(A, 0)], {"country": "Peru", "shoe": "never a feature"}, at_ms=0)
    text = words.encode_untrusted("country Peru", 24)
    bags = list(places.bags())
    assert bags[0] == [words.control["<bos>"]]
    assert bags[1] == [words.control["<user>"]]
    assert bags[2:-2] == [[token] for token in text]
    assert bags[-2] == [words.control["<history>"]]
    bare = replace(words, shape=replace(words.shape, template=("history", "context")))
    assert spell(bare, render_places(bare, [(A, 0)], {"country": "Peru"}, at_ms=0)) == f"<bos> | <history> | {SPELT[A]}"


def test_a_user_without_history_is_asked_at_the_end_of_the_head(words: Vocabulary) -> None:
    assert spell(words, render_places(words, [], {})) == "<bos> | <history>"
    assert render_places(words, [], {}, at_ms=10**12) == render_places(words, [], {})


def test_the_item_looked_at_is_an_event_that_comes_last(words: Vocabulary) -> None:
    places = render_places(words, [(A, 0), (B, 5 * HOUR)], {}, context=C, at_ms=7 * HOUR)
    assert spell(words, places) == f"<bos> | <history> | {SPELT[A]} | <gap_2> {SPELT[B]} | {SPELT[C]} → <gap_1>"
    assert spell(words, render_places(words, [], {}, context=C)) == f"<bos> | <history> | {SPELT[C]}"


def test_the_most_recent_item_looked_at_adds_nothing(words: Vocabulary) -> None:
    history = [(A, 0), (B, 5 * HOUR)]
    assert render_places(words, history, {}, context=np.array(B)) == render_places(words, history, {})
    earlier = render_places(words, history, {}, context=A)
    assert spell(words, earlier).endswith(f"<gap_2> {SPELT[B]} | {SPELT[A]} → <gap_4>")


def test_a_template_without_context_has_none(words: Vocabulary) -> None:
    bare = replace(words, shape=replace(words.shape, template=("user", "history")))
    assert render_places(bare, [(A, 0)], {}, context=C) == render_places(bare, [(A, 0)], {})


def test_only_the_most_recent_events_have_a_place(words: Vocabulary) -> None:
    most = words.shape.max_history
    history = [((number % 4, 0, 0), 2 * HOUR * number) for number in range(most + 3)]
    places = render_places(words, history, {})
    assert places == render_places(words, history[3:], {})
    assert places.sizes == [1, 1, 3, *[4] * (most - 1)]  # what was before the first one is not told
    looking = render_places(words, history, {}, context=B)  # one event less, for the item looked at
    assert looking.sizes == [1, 1, 3, *[4] * (most - 2), 3]
    assert spell(words, looking).endswith(f"{SPELT[B]} → <gap_4>")


def test_features_stand_in_the_place_of_their_event(told: Vocabulary) -> None:
    maker, thing = (tuple(told.encode_untrusted(text, 5)) for text in ("maker", "thing"))
    history = [(A, 0), (B, 5 * HOUR), (C, 5 * HOUR)]
    about: dict[str, Any] = {
        "facts": [ItemFacts(maker), ItemFacts(), ItemFacts(thing)],
        "numbers": {"price": [1.5, None, 9.0], "colour": [1.0] * 3},
        "at_ms": 5 * HOUR,
    }
    [*_, first, second, third] = render_places(told, history, {}, **about).bags()
    low, high = told.gap_base, told.gap_base + 1
    assert first == [*told.sid_token_ids(np.array(A)), low, *maker]
    assert second == [told.gap_token(5.0), *told.sid_token_ids(np.array(B))]
    assert third == [*told.sid_token_ids(np.array(C)), high, *thing]
    [*_, last, looked_at] = render_places(told, history, {}, A, context_facts=ItemFacts(maker), **about).bags()
    assert last == third
    assert looked_at == [*told.sid_token_ids(np.array(A)), *maker]  # nobody has bought it yet: no price
    [*_, alone] = render_places(told, [], {}, A, context_facts=ItemFacts(maker)).bags()
    assert alone == looked_at
    [*_, unknown] = render_places(told, history[:1], {}, C, numbers={"price": [1.5]}).bags()
    assert unknown == told.sid_token_ids(np.array(C)).tolist()


def test_features_are_those_of_the_events_that_are_left(told: Vocabulary) -> None:
    most, names = told.shape.max_history, [f"maker {number}" for number in range(9)]
    history = [(A, number) for number in range(9)]
    facts = [ItemFacts(tuple(told.encode_untrusted(name, 8))) for name in names]
    about: dict[str, Any] = {"facts": facts, "numbers": {"price": [1.0 + number for number in range(9)]}}
    bags = list(render_places(told, history, {}, **about).bags())[2:]
    sid, edges = told.sid_token_ids(np.array(A)).tolist(), [told.gap_base + (n >= 1) for n in range(9)]
    every = [[*sid, price, *fact.channel] for price, fact in zip(edges, facts, strict=True)]
    assert bags == every[-most:]
    looking = list(render_places(told, history, {}, B, **about).bags())[2:]
    assert looking == [*every[1 - most :], told.sid_token_ids(np.array(B)).tolist()]


codes = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
histories = st.lists(st.tuples(codes, st.integers(0, 10**9)), max_size=15).map(lambda h: sorted(h, key=lambda e: e[1]))
profiles = st.dictionaries(st.sampled_from(["country", "shoe"]), st.none() | st.text(max_size=99))


@given(histories, profiles, st.none() | codes, st.none() | st.integers(10**9, 2 * 10**9), st.booleans())
@settings(max_examples=40)
def test_a_request_has_at_most_so_many_places(
    told: Vocabulary, history: Any, profile: Any, context: Any, at_ms: int | None, user: bool
) -> None:
    template = ("history", "user", "context") if user else ("history", "context")
    words = replace(told, shape=replace(told.shape, template=template))
    facts, prices = [ItemFacts((7, 8))] * len(history), {"price": [3.0] * len(history)}
    places = render_places(words, history, profile, context, at_ms, facts=facts, numbers=prices)
    assert 2 <= len(places) <= most_places(words)
    assert min(places.sizes) == 1
    assert sum(places.sizes) + places.question == len(places.token_ids)
    told_sids = np.array(places.token_ids)
    told_sids = told_sids[told_sids >= words.sid_base].reshape(-1, 3)
    events = [row for row, _ in history]
    if context is not None and events[-1:] != [context]:
        events.append(context)
    assert words.space.codes(told_sids, words.sid_base).tolist() == [*map(list, events)][-words.shape.max_history :]


def test_the_longest_request_is_as_long_as_told(words: Vocabulary) -> None:
    history = [(A, number) for number in range(words.shape.max_history)]
    longest = render_places(words, history, {"country": "Peru, " * 50})
    assert len(longest) == most_places(words) == 2 + 1 + words.shape.max_profile_tokens + words.shape.max_history
    bare = replace(words, shape=replace(words.shape, profile_columns=()))
    assert len(render_places(bare, history, {})) == most_places(bare)


def test_the_tokens_are_those_of_the_other_form(words: Vocabulary) -> None:
    """But for what follows the history there: the user, the context and <next>."""
    history = [(A, 0), (B, 5 * HOUR), (C, 5 * HOUR)]
    bare = replace(words, shape=replace(words.shape, template=("history",)))
    places = render_places(bare, history, {})
    assert [*places.token_ids, words.control["<next>"]] == render_prompt(bare, history, {})


def test_sizes_of_events() -> None:
    events = EventTokens(np.arange(9), np.array([0, 3, 7, 9]), np.array([0, 4, 7]))
    assert event_sizes(events).tolist() == [3, 4, 2]
