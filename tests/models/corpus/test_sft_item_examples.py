"""Windows of places: what is asked where, and that it is what a request at that moment reads."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.corpus.item_examples import NO_QUESTION, ItemExamples
from models.corpus.material import MS_PER_DAY, CorpusParams, Events, Material
from models.corpus.sft_item_examples import sft_item_examples
from models.corpus.targets import Targets
from models.language.facts import ItemFacts
from models.language.numbers import Numbers
from models.language.places import Places, most_places, render_places
from models.language.prompt import MS_PER_HOUR, render_events
from models.language.words import Vocabulary
from models.semantic_ids.table import SidTable
from plumline.errors import CorruptArtifactError, InputError
from plumline.tables import load_arrays, save_arrays

LAST_DAY = 18_000
PARAMS = CorpusParams(max_tokens=64, replay_share=0.5, recent_days=2)


@pytest.fixture(scope="module")
def words(places_world: Any) -> Vocabulary:
    """Prompts that tell channel and price; the tokens of the price are those of gaps 0 and 1."""
    words = Vocabulary.load(places_world.vocabulary)
    shape = replace(words.shape, history_features=("channel", "price"))
    return replace(words, numbers={"price": Numbers(words.gap_base, (2.0,))}, shape=shape)


def make_material(words: Vocabulary, counts: list[int], rewards: list[float] | None = None, seed: int = 3) -> Material:
    """Users with so many events at random moments up to the last day, some of them within the hour.

    36 items, each with a SID of its own; two of three have a channel, two of three events a price. rewards: of an event
    by its number modulo their number; the default is 1 each.
    """
    rng = np.random.default_rng(seed)
    table = SidTable(words.space, False, [str(n) for n in range(36)], np.argwhere(np.ones((4, 3, 3))).astype(np.int32))
    num_events = sum(counts)
    pauses = rng.choice([0, 10, 5 * 60, 20 * 60, 40 * 60], num_events) * (MS_PER_HOUR // 60)
    starts = np.concatenate([[0], np.cumsum(counts)])
    moments = np.zeros(num_events, dtype=np.int64)
    for start, stop in pairwise(starts):
        moments[start:stop] = (LAST_DAY + 1) * MS_PER_DAY - 1 - np.cumsum(pauses[start:stop])[::-1]
    prices = np.where(np.arange(num_events) % 3 == 0, np.nan, rng.uniform(0, 4, num_events)).astype(np.float32)
    worth = np.resize(np.array(rewards or [1.0], dtype=np.float32), num_events)
    users = [str(n) for n in range(len(counts))]
    events = Events(rng.integers(0, 36, num_events), moments, users, starts, 0, worth, {"price": prices})
    profiles = {user: {"country": user} for user in users[:-1]}  # the last one has none
    return Material(
        words,
        table,
        events,
        render_events(words, table.codes[events.rows], moments, events.firsts),
        profiles,
        {"channel": {row: f"maker {row % 5}" for row in range(36) if row % 3}},
    )


def make(material: Material, seed: int = 1, **params: Any) -> ItemExamples:
    return sft_item_examples(PARAMS.model_copy(update=params), material, LAST_DAY, np.random.default_rng(seed))


@dataclass(frozen=True)
class Asked:
    """Targets of one place. example: of which. kind: its. place: the tokens up to there, and the question. rows: of the
    items, in order."""

    example: int
    kind: int
    place: Places
    rows: tuple[int, ...]


def asked_of(examples: ItemExamples) -> list[Asked]:
    """Every place of every example that anything is asked at."""
    found = []
    starts = np.concatenate([[0], np.cumsum(examples.sizes)])
    for one in range(examples.num_examples):
        begin, end = examples.offsets[one : one + 2]
        inside = slice(*examples.target_offsets[one : one + 2])
        source, question, codes = (getattr(examples, name)[inside] for name in ("source", "question", "codes"))
        assert len(source)
        assert source.min() >= 0
        assert source.max() == end - begin - 1  # a place that nothing is asked at would be computed for nothing
        for place in np.unique(source):
            mine = source == place
            assert len(set(question[mine].tolist())) == 1
            asked = [] if question[mine][0] == NO_QUESTION else [int(question[mine][0])]
            tokens = examples.tokens[starts[begin] : starts[begin + place + 1]].tolist()
            sizes = examples.sizes[begin : begin + place + 1].tolist()
            rows = tuple((codes[mine] @ np.array([9, 3, 1])).tolist())
            found.append(Asked(one, int(examples.kind[one]), Places([*tokens, *asked], sizes, len(asked)), rows))
    return found


def requests_of(material: Material) -> dict[tuple[int, int, int], Places]:
    """(user, event, events before it that are told) → what a request of that user at the event's moment reads."""
    words, events = material.words, material.events
    channels = ItemFacts.render(words, [material.texts["channel"].get(row) for row in range(36)], [None] * 36)
    found = {}
    for user, name in enumerate(events.user_ids):
        begin, end = events.user_starts[user : user + 2].tolist()
        for event in range(begin, end):
            for told in range(min(event - begin, words.shape.max_history) + 1):
                window = range(event - told, event)
                found[user, event, told] = render_places(
                    words,
                    [(material.sids.codes[events.rows[n]], int(events.timestamps[n])) for n in window],
                    material.profiles.get(name, {}),
                    at_ms=int(events.timestamps[event]),
                    facts=[channels[events.rows[n]] for n in window],
                    numbers={"price": [float(events.numbers["price"][n]) for n in window]},
                )
    return found


def find_events(material: Material, asked: list[Asked], params: CorpusParams = PARAMS) -> list[int]:
    """The event that each place asks for: the one at whose moment a request reads what stands there.

    Every user has a profile of their own, but what they took may look alike twice: the events of a window lie one
    behind the other, and what it asks for comes next.
    """
    by_place: dict[Any, list[tuple[int, int]]] = {}
    for (_, event, told), place in requests_of(material).items():
        by_place.setdefault(key_of(place), []).append((event, event - told))
    starts: dict[int, set[int]] = {}
    for one in asked:
        assert key_of(one.place) in by_place, "no request reads what stands before this target"
        here = {start for _, start in by_place[key_of(one.place)]}
        starts[one.example] = starts.get(one.example, here) & here
    found, targets = [], targets_of(material, params)
    for one in asked:
        here = {event for event, start in by_place[key_of(one.place)] if start in starts[one.example]}
        assert here, "no window has all these requests"
        [event] = [event for event in here if {*one.rows} <= {*items_after(targets, event)}]
        found.append(event)
    return found


def key_of(place: Places) -> Any:
    return tuple(place.token_ids), tuple(place.sizes), place.question


def targets_of(material: Material, params: CorpusParams = PARAMS) -> Targets:
    return Targets(params, material, LAST_DAY, np.random.default_rng(1))


def items_after(targets: Targets, event: int) -> list[int]:
    """Rows of the item that comes at an event, or of the items of the days that begin there, each once; and what the
    teacher adds."""
    days = targets.begins_day[event] and targets.params.day_targets
    stop = int(targets.target_stop[event]) if days else event + 1
    rows: list[int] = targets.events.rows[event:stop].tolist()
    return [*dict.fromkeys(rows), *(targets.taught[event].tolist() if event in targets.taught else [])]


COUNTS = [23, 1, 9, 40, 2, 7, 14]


@pytest.mark.parametrize("target_days", [1, 3])
@pytest.mark.parametrize("rewards", [[1.0], [1.0, -1.0, 0.0, 1.0, float("nan")]])
def test_what_stands_before_a_target_is_what_a_request_reads(
    words: Vocabulary, rewards: list[float], target_days: int
) -> None:
    material = make_material(words, COUNTS, rewards)
    told = {"target_days": target_days, "day_targets": 2}
    examples = make(material, **told)
    asked = asked_of(examples)
    find_events(material, asked, PARAMS.model_copy(update=told))
    assert len(asked) > 0.4 * sum(COUNTS)
    assert any(one.place.question for one in asked)
    assert not all(one.place.question for one in asked)
    assert max(len(one.place) for one in asked) == max(examples.lengths) <= most_places(words)
    assert max(examples.sizes) > 1 + 3 + 1  # gap, SID, price, and a channel


def test_every_event_is_asked_for_once(words: Vocabulary) -> None:
    material = make_material(words, COUNTS)
    examples = make(material)
    asked, recent = asked_of(examples), examples.of_kinds("recent")
    events = find_events(material, asked)
    is_new = material.events.timestamps >= (LAST_DAY - 1) * MS_PER_DAY
    assert 8 < is_new.sum() < len(is_new) - 30
    windows = [one.example for one in asked]
    told = [event for event, window in zip(events, windows, strict=True) if window not in recent]
    assert sorted(told) == list(range(sum(COUNTS)))
    new = [event for event, window in zip(events, windows, strict=True) if window in recent]
    assert sorted(new) == np.flatnonzero(is_new).tolist()
    replayed = examples.of_kinds("replay")
    assert 3 <= len(replayed) < len(examples.of_kinds("older", "replay"))
    assert not is_new[[event for event, window in zip(events, windows, strict=True) if window in replayed]].any()
    # What is new is asked for with what was before it, as far as a request goes back.
    heads = {event: len(place) for (_, event, told), place in requests_of(material).items() if not told}
    for window in recent:
        longest = [one for one in asked if one.example == window][-1]
        event = events[asked.index(longest)]
        before = event - int(material.events.user_starts[material.events.user_starts <= event][-1])
        assert len(longest.place) == heads[event] + min(before, words.shape.max_history)


def test_a_day_begins_with_all_its_items_and_goes_on_with_the_next(words: Vocabulary) -> None:
    material = make_material(words, COUNTS)
    asked, targets = asked_of(make(material)), targets_of(material)
    for event, one in zip(find_events(material, asked), asked, strict=True):
        assert list(one.rows) == items_after(targets, event)
    assert max(len(one.rows) for one in asked) >= 4


def test_without_trunk_loss_only_days_are_asked_for(words: Vocabulary) -> None:
    material = make_material(words, COUNTS)
    examples = make(material, trunk_loss=False)
    asked, targets = asked_of(examples), targets_of(material)
    old = [
        event
        for event, one in zip(find_events(material, asked), asked, strict=True)
        if one.example not in examples.of_kinds("recent")
    ]
    assert sorted(old) == np.flatnonzero(targets.begins_day).tolist()


def test_what_was_not_wanted_is_history_but_no_target(words: Vocabulary) -> None:
    """Events by their number: every other one is worth something, and its item tells which."""
    material = make_material(words, COUNTS, [1.0, -1.0])
    material.events.rows[:] = material.events.rows // 2 * 2 + np.arange(sum(COUNTS)) % 2
    stream = render_events(
        words, material.sids.codes[material.events.rows], material.events.timestamps, material.events.firsts
    )
    asked = asked_of(make(replace(material, stream=stream)))
    assert {row % 2 for one in asked for row in one.rows} == {0}
    find_events(replace(material, stream=stream), asked)
    tokens = np.array([token for one in asked for token in one.place.token_ids])
    sids = words.space.codes(tokens[tokens >= words.sid_base].reshape(-1, 3), words.sid_base) @ np.array([9, 3, 1])
    assert (sids % 2 == 1).sum() > len(asked)
    material.events.rewards[:] = 0.0
    with pytest.raises(InputError, match=r"96 events.*histories\.reward"):
        make(material)


def test_the_teacher_adds_targets(words: Vocabulary) -> None:
    material = make_material(words, COUNTS)
    plain, taught = asked_of(make(material)), asked_of(make(material, taught_targets=2))
    before, after = (Counter(row for one in some for row in one.rows) for some in (plain, taught))
    assert not before - after
    assert 0 < (after - before).total() <= 2 * len(plain)


@pytest.mark.parametrize("taught_targets", [0, 2])
@pytest.mark.parametrize("rewards", [[1.0], [1.0, 0.0, 0.0]])
def test_without_targets_of_a_day_its_beginning_asks_for_the_next_event_alone(
    words: Vocabulary, rewards: list[float], taught_targets: int
) -> None:
    """And for nothing where that event was not drawn; what the teacher adds stays."""
    material = make_material(words, COUNTS, rewards)
    told = {"day_targets": 0, "taught_targets": taught_targets}
    examples, params = make(material, **told), PARAMS.model_copy(update=told)
    asked, targets = asked_of(examples), targets_of(material, params)
    drawn = np.resize(np.array(rewards) > 0, sum(COUNTS))
    expected = {event: [int(material.events.rows[event])] for event in np.flatnonzero(drawn).tolist()}
    for event, rows in targets.taught.items():
        expected[event] = expected.get(event, []) + rows.tolist()
    found = dict.fromkeys(expected, 0)
    for event, one in zip(find_events(material, asked, params), asked, strict=True):
        assert list(one.rows) == expected[event]
        found[event] += one.example not in examples.of_kinds("recent")
    assert set(found.values()) == {1}
    begins = np.flatnonzero(targets.begins_day)
    assert bool(targets.taught) == bool(taught_targets)
    assert (set(begins.tolist()) <= found.keys()) == (len(rewards) == 1)
    silent = [event for event in targets.taught if not drawn[event]]
    assert bool(silent) == bool(taught_targets and len(rewards) > 1)


def test_equal_seeds_draw_the_same(words: Vocabulary) -> None:
    material = make_material(words, COUNTS, [1.0, 0.3])
    one, again, other = make(material), make(material), make(material, seed=2)
    assert np.array_equal(one.tokens, again.tokens)
    assert np.array_equal(one.kind, again.kind)
    assert len(one.source) != len(other.source) or not np.array_equal(one.source, other.source)


def test_older_windows_weigh_less(words: Vocabulary) -> None:
    material = make_material(words, [40])
    examples = make(material, half_life_days=2.0)
    asked = asked_of(examples)
    days = material.events.timestamps // MS_PER_DAY
    last = dict(zip([one.example for one in asked], find_events(material, asked), strict=True))
    expected = [0.5 ** ((LAST_DAY - int(days[last[number]])) / 2.0) for number in range(examples.num_examples)]
    assert examples.weight.tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) < 0.2


def test_a_row_that_holds_no_request_is_refused(words: Vocabulary) -> None:
    material, needed = make_material(words, [3]), most_places(words)
    assert make(material, max_tokens=needed).num_examples
    with pytest.raises(InputError, match=rf"corpus.max_tokens {needed - 1} .* 6 items.*give {needed}"):
        make(material, max_tokens=needed - 1)


def test_nobody_with_a_history_is_no_example(words: Vocabulary) -> None:
    examples = make(make_material(words, [0, 0]))
    assert (examples.num_examples, len(examples.tokens), examples.codes.shape) == (0, 0, (0, 3))


def test_saved_and_loaded(words: Vocabulary, tmp_path: Path) -> None:
    examples = make(make_material(words, COUNTS))
    examples.save(tmp_path / "sft.npz")
    again = ItemExamples.load(tmp_path / "sft.npz")
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(examples).items())
    told = examples.describe()
    assert (told["examples"], told["tokens"]) == (examples.num_examples, len(examples.sizes))
    assert told["target_tokens"] == 3 * len(examples.source)
    assert sum(kind["tokens"] for kind in told["kinds"].values()) == told["tokens"]


@pytest.mark.parametrize("cut", ["tokens", "sizes", "question", "codes", "weight", "kind", "target_offsets"])
def test_arrays_that_do_not_fit_together_are_refused(words: Vocabulary, tmp_path: Path, cut: str) -> None:
    path = tmp_path / "sft.npz"
    make(make_material(words, [9])).save(path)
    arrays = load_arrays(path)
    save_arrays(path, **{**arrays, cut: arrays[cut][:-1]})
    with pytest.raises(CorruptArtifactError, match=r"sft\.npz: arrays of different lengths"):
        ItemExamples.load(path)
    save_arrays(path, **{name: values for name, values in arrays.items() if name != cut})
    with pytest.raises(CorruptArtifactError, match=r"sft\.npz: holds"):
        ItemExamples.load(path)
