"""Windows as trees: which events are targets, and that neither computing nor padding is wasted."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.corpus.examples import Examples
from models.corpus.material import MS_PER_DAY, CorpusParams, Events, Material
from models.corpus.sft_examples import sft_examples
from models.corpus.targets import draw_targets
from models.language.prompt import MS_PER_HOUR, render_events, render_prompt
from models.language.words import Vocabulary
from models.semantic_ids.table import SidTable
from models.training.packing import Cursor, Rows
from plumline.errors import InputError

LAST_DAY = 18_000
PARAMS = CorpusParams(max_tokens=256, session_branches=0, replay_share=0.0)
BANDS = np.array([0.0, 0.5, 1.0])
"""Rewards in the tests: of items 0, 3, 6 …, of 1, 4, 7 …, of 2, 5, 8 …"""


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    return Vocabulary.load(world.vocabulary)


def make_material(
    words: Vocabulary, counts: np.ndarray, rewards: np.ndarray | None = None, per_day: int = 1
) -> Material:
    """Users with so many events, `per_day` of them a day an hour apart, the last day being LAST_DAY.

    36 items, each with a SID of its own, taken one after the other. rewards: of an item by its number modulo 3.
    """
    table = SidTable(words.space, False, [str(n) for n in range(36)], np.argwhere(np.ones((4, 3, 3))).astype(np.int32))
    rows = np.concatenate([(7 * user + np.arange(count)) % 36 for user, count in enumerate(counts)])
    ages = np.concatenate([np.arange(count)[::-1] for count in counts])
    moments = (LAST_DAY - ages // per_day) * MS_PER_DAY + (per_day - 1 - ages % per_day) * MS_PER_HOUR
    starts = np.concatenate([[0], np.cumsum(counts)])
    worth = np.ones(len(rows)) if rewards is None else rewards[rows % 3]
    events = Events(rows, moments, [str(n) for n in range(len(counts))], starts, 0, worth.astype(np.float32))
    stream = render_events(words, table.codes[events.rows], events.timestamps, events.firsts)
    return Material(words, table, events, stream, {}, {})


def make(material: Material, seed: int = 1, **params: Any) -> Examples:
    return sft_examples(PARAMS.model_copy(update=params), material, LAST_DAY, np.random.default_rng(seed))


def items_of(words: Vocabulary, tokens: np.ndarray) -> np.ndarray:
    """Items by their SIDs, one after the other in `tokens`."""
    codes = words.space.codes(tokens.reshape(-1, 3), words.sid_base)
    return codes @ np.array([9, 3, 1])


def targets(words: Vocabulary, examples: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Items that are targets of branches, and of trunks: a branch's SID is seen by nobody but itself."""
    first_tokens = np.flatnonzero(examples.loss.astype(bool) & (examples.tokens < words.sid_base + 4))
    of_branch = examples.span[first_tokens] == 3
    sids = examples.tokens[first_tokens[:, None] + np.arange(3)]
    assert examples.loss[first_tokens[:, None] + np.arange(3)].all()
    return items_of(words, sids[of_branch]), items_of(words, sids[~of_branch])


def test_targets_come_in_proportion_to_their_reward(words: Vocabulary) -> None:
    words = replace(words, shape=replace(words.shape, max_history=40))  # one window a user
    counts = np.full(300, 31)
    all_branch, all_trunk = targets(words, make(make_material(words, counts), max_tokens=1024))
    branch, trunk = targets(words, make(make_material(words, counts, BANDS), max_tokens=1024))
    assert not (branch % 3 == 0).any()
    assert not (trunk % 3 == 0).any()
    half, whole = ((all_branch % 3 == band).sum() for band in (1, 2))
    assert whole > 2500
    assert abs((branch % 3 == 1).sum() - half / 2) < 5 * np.sqrt(half / 4)
    assert abs((branch % 3 == 2).sum() - whole) < 0.05 * whole
    # The event at which a window ends is a target of its branch alone, so the trunks have fewer.
    half, whole = ((trunk % 3 == band).sum() for band in (1, 2))
    assert 2500 < whole <= (all_trunk % 3 == 2).sum()
    assert abs(half / (half + whole) - 1 / 3) < 5 * np.sqrt(2 / 9 / (half + whole))


def test_watch_ratios_are_drawn_up_to_their_cap() -> None:
    rng = np.random.default_rng(4)
    ratios = np.where(rng.random(60_000) < 0.3, 0.0, rng.lognormal(-0.7, 1.1, 60_000)).astype(np.float32)
    ratios[::1000] = np.nan
    ratios[1::1000] = np.inf
    drawn = draw_targets(ratios, 0.9, rng)
    known = np.isfinite(ratios)
    cap = np.quantile(ratios[known & (ratios > 0)], 0.9)
    assert not drawn[(ratios <= 0) | np.isnan(ratios)].any()
    assert drawn[ratios > cap * 1.001].all()
    edges = np.linspace(0, float(cap), 9)
    for low, high in pairwise(edges):
        inside = known & (ratios > low) & (ratios < high)
        chance = ratios[inside].astype(float) / float(cap)
        assert abs(drawn[inside].sum() - chance.sum()) < 4.5 * np.sqrt((chance * (1 - chance)).sum())


@pytest.mark.parametrize("reward", [0.3, 7.0])
def test_equal_rewards_draw_everything(words: Vocabulary, reward: float) -> None:
    counts = np.random.default_rng(0).integers(1, 40, 30)
    settings = {"session_branches": 2, "day_targets": 2, "replay_share": 0.3}
    expected = make(make_material(words, counts, per_day=4), **settings)
    found = make(make_material(words, counts, np.full(3, reward), per_day=4), **settings)
    for name in ("tokens", "span", "loss", "offsets", "kind", "weight"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_what_is_no_target_still_stands_in_the_history(words: Vocabulary) -> None:
    material = make_material(words, np.array([25]), BANDS)
    examples = make(material)
    prompts = {
        tuple(
            render_prompt(
                words,
                [(material.sids.codes[row], moment) for row, moment in zip(rows[:n], times[:n], strict=True)][-size:],
                {},
                at_ms=int(times[n]),
            )
        )
        for rows, times in [(material.events.rows, material.events.timestamps)]
        for n in range(1, 25)
        for size in range(1, 11)
    }
    num_targets = num_worthless = 0
    for begin, end in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        tokens, span = examples.tokens[begin:end], examples.span[begin:end]
        for place in np.flatnonzero(tokens == words.control["<next>"]):
            path = tokens[[k for k in range(place + 1) if place < k + span[k]]]
            assert tuple(path.tolist()) in prompts
            sids = path[path >= words.sid_base]
            num_worthless += int((items_of(words, sids) % 3 == 0).sum())
            num_targets += 1
    assert num_targets >= 8
    assert num_worthless > num_targets


def test_one_target_needs_as_much_room_as_the_next_event_alone(words: Vocabulary) -> None:
    material, needs = make_material(words, np.array([8])), []
    for day_targets in (0, 1, 2):
        with pytest.raises(InputError, match=r"give \d+, or lower") as caught:
            make(material, max_tokens=16, day_targets=day_targets)
        needs.append(int(str(caught.value).split("give ")[1].split(",")[0]))
    assert needs == [needs[1], needs[1], needs[1] + 3]


def test_users_without_a_target_cost_nothing(words: Vocabulary) -> None:
    material = make_material(words, np.array([20, 20, 1]), BANDS)
    material.events.rewards[:20] = 0.0
    alone = make_material(words, np.array([20, 1]), BANDS)
    examples = make(material)
    assert 0 < len(examples.tokens) < 1.3 * len(make(alone).tokens)
    material.events.rewards[:] = -1.0
    with pytest.raises(InputError, match=r"41 events.*histories\.reward"):
        make(material)


def test_equal_seeds_draw_the_same(words: Vocabulary) -> None:
    material = make_material(words, np.full(20, 30), BANDS)
    one, again, other = make(material), make(material), make(material, seed=2)
    assert np.array_equal(one.tokens, again.tokens)
    assert not np.array_equal(one.tokens, other.tokens)


def test_recent_windows_have_new_targets_only(words: Vocabulary) -> None:
    """Users who come every day, three events a day; items tell by their band which of the day's three they are."""
    counts = np.array([3, 6, 30, 60, 60])
    material = make_material(words, counts, per_day=3)
    num_old = material.events.timestamps < (LAST_DAY - 1) * MS_PER_DAY
    material.events.rows[:] = np.where(num_old, material.events.rows % 18, material.events.rows % 18 + 18)
    stream = render_events(
        words, material.sids.codes[material.events.rows], material.events.timestamps, material.events.firsts
    )
    examples = make(replace(material, stream=stream), recent_days=2, session_branches=2, replay_share=0.4)
    recent, others = examples.of_kinds("recent"), examples.of_kinds("replay", "older")
    assert len(recent) == 5
    assert 0 < len(examples.of_kinds("replay")) < len(others)
    of_branch, of_trunk = targets(words, part(examples, recent))
    assert min(of_branch.min(), of_trunk.min()) >= 18
    assert len(of_branch) >= 3 + 4 * 6  # a day's three items, of one day where there is no other
    # The newest day stands in the trunk as well; the last SID of an example looks like a branch's to `targets`.
    assert len(of_trunk) + len(recent) == 3 + 4 * 6
    of_branch, of_trunk = targets(words, part(examples, others))
    assert max(of_branch.max(), of_trunk.max()) < 18
    assert len(examples.tokens) < 1.35 * len(make(replace(material, stream=stream), recent_days=365).tokens)


def part(examples: Examples, rows: np.ndarray) -> Examples:
    inside = np.zeros(len(examples.tokens), dtype=bool)
    for row in rows:
        inside[examples.offsets[row] : examples.offsets[row + 1]] = True
    return replace(examples, **{name: getattr(examples, name)[inside] for name in ("tokens", "span", "loss")})


@pytest.mark.parametrize("rows", [1, 8])
def test_less_than_three_percent_is_padding(words: Vocabulary, rows: int) -> None:
    """Histories as a shop's or a video service's: a heavy tail, days of one to a dozen events."""
    rng = np.random.default_rng(7)
    counts = np.clip(rng.pareto(1.0, 600) * 8 + 2, 2, 200).astype(int)
    examples = make(make_material(words, counts, per_day=3), session_branches=1)
    packer = Rows(examples, np.arange(examples.num_examples), 512, seed=1, pad=0)
    cursor, batches = Cursor(), []
    while cursor.epoch == 0:
        taken, cursor = packer.take(cursor, rows)
        batches.append(packer.batch(taken))
    used, places = sum(batch.num_tokens for batch in batches), sum(batch.tokens.size for batch in batches)
    assert sum(len(batch.target) for batch in batches) >= examples.loss.sum() > 10_000
    assert 100_000 < used < len(examples.tokens)  # a target that nothing follows takes no place
    assert 1 - used / places < 0.03


def test_the_teacher_adds_targets_that_the_user_has_not_taken(words: Vocabulary) -> None:
    counts = np.array([8, 9, 10])
    material = make_material(words, counts)
    without, taught = make(material), make(material, taught_targets=2)
    assert taught.num_examples == without.num_examples
    assert int(taught.lengths.max()) <= PARAMS.max_tokens
    before, after = targets(words, without)[0], targets(words, taught)[0]
    extra = Counter(after.tolist()) - Counter(before.tolist())
    assert 0 < extra.total() <= 2 * len(before)
    known = set(material.events.rows.tolist())
    assert {*extra} <= known  # without texts a teacher speaks of what others took next
    assert not Counter(before.tolist()) - Counter(after.tolist())


def test_no_teacher_changes_nothing(words: Vocabulary) -> None:
    material = make_material(words, np.array([8, 9, 10]))
    one, other = make(material, taught_targets=0), make(material)
    assert (one.tokens == other.tokens).all()


def branches_of(words: Vocabulary, material: Material, examples: Examples) -> list[tuple[int, list[int]]]:
    """(event, rows of its targets) of every branch of the only user, who takes every item once: of the event after the
    newest one of its history, or of the first."""
    rows, found = material.events.rows.tolist(), []
    assert len(set(rows)) == len(rows)
    for begin, end in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        tokens, span = examples.tokens[begin:end], examples.span[begin:end]
        for place in np.flatnonzero(tokens == words.control["<next>"]):
            path = tokens[[k for k in range(place + 1) if place < k + span[k]]]
            history = items_of(words, path[path >= words.sid_base])
            told = items_of(words, tokens[place + 1 : place + span[place]]).tolist()
            found.append((rows.index(history[-1]) + 1 if len(history) else 0, told))
    return sorted(found)


@pytest.mark.parametrize("rewards", [None, np.array([0.0, 1.0, 1.0])])
@pytest.mark.parametrize("target_days", [1, 2])
def test_without_targets_of_a_day_a_branch_has_the_next_event_alone(
    words: Vocabulary, rewards: np.ndarray | None, target_days: int
) -> None:
    """And where that was not drawn there is no branch, whatever else the day holds."""
    material = make_material(words, np.array([36]), rewards, per_day=2)
    told = {"day_targets": 0, "target_days": target_days, "trunk_loss": False}
    found = branches_of(words, material, make(material, **told))
    rows = material.events.rows.tolist()
    wanted = [event for event in range(0, 36, 2) if rewards is None or rewards[rows[event] % 3]]
    assert found == [(event, [rows[event]]) for event in wanted]
    assert len(wanted) == (18 if rewards is None else 12)
    within = branches_of(words, material, make(material, **told, session_branches=3))
    assert [one for one in within if one[0] % 2 == 0] == found
    assert len(within) > len(found)
    assert all(told == [rows[event]] for event, told in within)
    if rewards is not None:
        assert {rewards[row % 3] for _, told in within for row in told} == {1.0}


def test_without_targets_of_a_day_the_teacher_s_stand_beside_the_next_event(words: Vocabulary) -> None:
    material = make_material(words, np.array([30]), np.array([0.0, 1.0, 1.0]), per_day=2)
    material = replace(material, texts={"title": {row: f"thing {row % 4}" for row in range(36)}})
    plain, taught = (
        branches_of(words, material, make(material, day_targets=0, taught_targets=number, trunk_loss=False))
        for number in (0, 2)
    )
    assert [event for event, _ in taught] == [event for event, _ in plain]
    assert [told[:1] for _, told in taught] == [told for _, told in plain]
    assert {len(told) for _, told in taught} >= {3}
    assert max(len(told) for _, told in taught) == 3


@pytest.mark.parametrize("target_days", [1, 2, 3])
def test_a_branch_has_the_items_of_so_many_days(words: Vocabulary, target_days: int) -> None:
    """Items are taken one after the other, two a day, and the last day is the recent one."""
    material = make_material(words, np.array([20, 3]), per_day=2)
    examples = make(material, target_days=target_days, trunk_loss=False)
    seen = []
    for begin, end in zip(examples.offsets[:-1], examples.offsets[1:], strict=True):
        tokens, span = examples.tokens[begin:end], examples.span[begin:end]
        for place in np.flatnonzero(tokens == words.control["<next>"]):
            path = tokens[[k for k in range(place + 1) if place < k + span[k]]]
            history = items_of(words, path[path >= words.sid_base])[:-1]  # the last one is the context's
            told = items_of(words, tokens[place + 1 : place + span[place]]).tolist()
            user = 0 if not len(history) or history[0] != 7 else 1
            rows = material.events.rows[material.events.user_starts[user] : material.events.user_starts[user + 1]]
            before = 0 if not len(history) else rows.tolist().index(history[-1]) + 1
            days = (material.events.timestamps // MS_PER_DAY)[material.events.user_starts[user] :][: len(rows)]
            if not len(history):
                continue  # a cold start: whose it is cannot be told
            stop = days[before] + target_days
            if days[before] < LAST_DAY:
                stop = min(stop, LAST_DAY)  # what is recent has windows of its own
            wanted = [int(row) for row, day in zip(rows, days, strict=True) if days[before] <= day < stop]
            assert told == wanted
            seen.append(len(told))
    assert max(seen) == 2 * target_days
    assert len(seen) >= 9
