"""Base, delta and what is gone, against an index rebuilt from scratch: the same answers at every moment."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from models.retrieval.beam import Beams, Choice, beam_search
from models.retrieval.live_index import Epoch, LiveIndex
from models.retrieval.rules import parse
from models.retrieval.segment import Segment
from plumline.errors import InputError
from plumline.sid import SidSpace

SPACE = SidSpace((4, 3, 5))
WIDE = SidSpace((12, 9, 7))
SEEN = frozenset(f"i{number}" for number in range(0, 3000, 7))
SID_BASE = 7
DAY_MS = 86_400_000
RULES = [None, 'channel("a")', '~channel("a") & price < 3', "fresh(2d) | price >= 4", "~seen"]


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=SID_BASE + SPACE.num_tokens,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).double().eval()


def table(rows: dict[str, dict[str, Any]]) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array(list(rows), pa.string()),
            "first_seen_day": pa.array([row["day"] for row in rows.values()], pa.int32()).cast(pa.date32()),
            "published_ms": pa.array([row["day"] * DAY_MS for row in rows.values()], pa.int64()),
            "channel": pa.array([row["channel"] for row in rows.values()], pa.string()),
            "price": pa.array([row["price"] for row in rows.values()], pa.float64()),
        }
    )


def codes_of(rows: dict[str, dict[str, Any]]) -> np.ndarray:
    return np.array([row["codes"] for row in rows.values()], dtype=np.int64).reshape(-1, SPACE.num_levels)


def segment(rows: dict[str, dict[str, Any]]) -> Segment:
    return Segment.build(table(rows), codes_of(rows), SPACE.sizes)


def answers(epoch: Epoch, model: Any, rule: str | None, width: int) -> tuple[Beams, list[list[str]]] | None:
    """Beams and the items behind them; None if nothing is allowed."""
    parsed = None if rule is None else parse(rule)
    allowed = epoch.select(parsed, at_ms=5 * DAY_MS, sets={"seen": {"i1", "i4", "i7"}})
    if allowed is not None and len(allowed) == 0:
        return None
    [beams] = beam_search(
        model,
        [[1, 2, 3]],
        space=SPACE,
        sid_base=SID_BASE,
        index=epoch.base.trie("cpu"),
        delta=epoch.delta.trie("cpu") if epoch.delta is not None else None,
        allowed=None if allowed is None else [allowed],
        width=width,
        device="cpu",
    )
    behind = epoch.items_behind(beams.codes, allowed)
    assert epoch.items_behind(beams.codes, allowed, None, beams.leaves, beams.twins) == behind
    assert (beams.twins is None) == (epoch.delta is None)
    return beams, behind


rows = st.fixed_dictionaries(
    {
        "codes": st.tuples(*(st.integers(0, size - 1) for size in SPACE.sizes)),
        "day": st.integers(0, 5),
        "channel": st.sampled_from(["a", "b", None]),
        "price": st.sampled_from([1.0, 2.0, 4.0, None]),
    }
)
names = st.sampled_from([f"i{number}" for number in range(12)])
some_items = st.dictionaries(names, rows, min_size=1, max_size=6)
steps = st.lists(st.one_of(some_items, st.frozensets(names, max_size=5), st.just("compact")), max_size=7)


@given(some_items, steps, st.sampled_from(RULES), st.sampled_from([1, 3, 50]))
@settings(max_examples=150, deadline=None)
def test_every_epoch_answers_as_one_rebuilt_from_scratch(
    model: Any, first: dict[str, Any], changes: list[Any], rule: str | None, width: int
) -> None:
    live, truth = LiveIndex(segment(first), compact_at=None), dict(first)
    for change in changes:
        before, kept = live.epoch, answers(live.epoch, model, rule, width)
        if change == "compact":
            live.compact()
        elif isinstance(change, dict):
            live.add(table(change), codes_of(change))
            truth |= change
        else:
            live.remove(change)
            truth = {item: row for item, row in truth.items() if item not in change}
        assert_equal(answers(before, model, rule, width), kept)  # who still reads the old epoch sees nothing of it
        assert sorted(live.epoch.item_ids()) == sorted(truth)
        assert live.epoch.num_items == len(truth)
        assert all(item in live.epoch for item in truth)
        expected = answers(Epoch(segment(truth)), model, rule, width) if truth else None
        assert_equal(answers(live.epoch, model, rule, width), expected)


def assert_equal(found: tuple[Beams, list[list[str]]] | None, expected: tuple[Beams, list[list[str]]] | None) -> None:
    if expected is None or found is None:
        assert found is expected
        return
    np.testing.assert_array_equal(found[0].codes, expected[0].codes)
    np.testing.assert_allclose(found[0].scores, expected[0].scores, atol=1e-6)
    assert found[1] == expected[1]


def row(codes: tuple[int, int, int], day: int = 0) -> dict[str, Any]:
    return {"codes": codes, "day": day, "channel": None, "price": None}


def test_the_newest_stands_first_behind_a_sid_also_across_base_and_delta() -> None:
    live = LiveIndex(segment({"b": row((0, 0, 0), 3), "d": row((0, 0, 0), 1)}))
    live.add(table({"c": row((0, 0, 0), 2), "a": row((0, 0, 0), 3)}), np.zeros((2, 3), dtype=np.int64))
    assert live.epoch.items_behind(np.array([[0, 0, 0], [1, 1, 1]]), None) == [["a", "b", "c", "d"], []]
    assert live.epoch.has_sids(np.array([[0, 0, 0], [1, 1, 1]])).tolist() == [True, False]


def test_an_item_that_moved_is_no_longer_at_its_old_sid() -> None:
    live = LiveIndex(segment({"a": row((0, 0, 0)), "b": row((1, 1, 1))}))
    live.add(table({"a": row((2, 2, 2))}), np.array([[2, 2, 2]]))
    epoch = live.epoch
    allowed = epoch.select(None, at_ms=0, sets={})
    assert epoch.items_behind(np.array([[0, 0, 0], [2, 2, 2]]), allowed) == [[], ["a"]]
    assert epoch.num_items == 2


def test_what_comes_during_a_compaction_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveIndex(segment({"a": row((0, 0, 0)), "b": row((1, 1, 1))}))
    live.add(table({"c": row((2, 2, 2))}), np.array([[2, 2, 2]]))
    begun, go_on, build = threading.Event(), threading.Event(), Segment.build

    def slow(*arguments: Any) -> Segment:
        if threading.current_thread().name == "compact" and not begun.is_set():
            begun.set()
            assert go_on.wait(10)
        return build(*arguments)

    monkeypatch.setattr(Segment, "build", staticmethod(slow))
    live.compact(wait=False)
    assert begun.wait(10)
    live.add(table({"d": row((3, 2, 2))}), np.array([[3, 2, 2]]))
    live.remove(["a"])
    during = live.epoch
    go_on.set()
    live.compact()  # waits for the one that runs, and works in what came during it
    assert live.epoch is not during
    assert (live.epoch.delta, live.epoch.dead) == (None, None)
    assert live.epoch.number > during.number
    assert sorted(live.epoch.item_ids()) == sorted(during.item_ids()) == ["b", "c", "d"]
    assert len(live.epoch.base) == 3


def test_a_big_delta_is_compacted_by_itself() -> None:
    live = LiveIndex(segment({"a": row((0, 0, 0))}), compact_at=2)
    live.add(table({"b": row((1, 1, 1))}), np.array([[1, 1, 1]]))
    assert live.epoch.delta is not None
    live.add(table({"c": row((2, 2, 2))}), np.array([[2, 2, 2]]))
    deadline = time.monotonic() + 10
    while live.epoch.delta is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert live.epoch.delta is None
    assert sorted(live.epoch.base.item_ids) == ["a", "b", "c"]
    live.remove(["a", "b"])  # what is dead counts too
    while live.epoch.dead is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert live.epoch.base.item_ids == ["c"]


def test_a_compaction_that_fails_is_said_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    live = LiveIndex(segment({"a": row((0, 0, 0))}), compact_at=None)
    before = live.add(table({"b": row((1, 1, 1))}), np.array([[1, 1, 1]]))

    def full(_: Epoch) -> Epoch:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Epoch, "compacted", full)
        with pytest.raises(MemoryError, match="no room"):
            live.compact()
    assert live.epoch is before
    live.compact()
    assert live.epoch.base.item_ids == ["a", "b"]


def test_adding_to_a_million_items_takes_no_second() -> None:
    """The delta is rebuilt, not the base."""
    generator = np.random.default_rng(0)
    count, space = 1_000_000, (256, 128, 64, 16)
    codes = np.stack([generator.integers(0, size, count) for size in space], axis=1)

    def items(numbers: range) -> pa.Table:
        days = pa.array(np.zeros(len(numbers), dtype=np.int32)).cast(pa.date32())
        ids = pa.array([f"item {number}" for number in numbers])
        return pa.table(
            {"item_id": ids, "first_seen_day": days, "published_ms": pa.array(np.zeros(len(numbers), np.int64))}
        )

    live = LiveIndex(Segment.build(items(range(count)), codes, space))
    assert "item 0" in live.epoch  # the lookup by id is made once
    start = time.process_time()
    live.add(items(range(count, count + 1000)), codes[:1000])
    epoch = live.remove([f"item {number}" for number in range(500)])
    assert time.process_time() - start < 1.0
    assert epoch.num_items == count + 500
    assert f"item {count + 7}" in epoch
    assert f"item {7}" not in epoch


def fuzz(model: Any, a_rule: Callable[..., Any], wanted: int, seed: int) -> dict[str, int]:
    """Recommend until so many items have come out; what is wrong with them, by plain Python over plain rows."""
    dice, names = random.Random(seed), [f"i{number}" for number in range(3000)]

    def some(count: int) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "codes": tuple(dice.randrange(size) for size in WIDE.sizes),
                "day": (day := dice.randint(0, 30)),
                "published_ms": day * DAY_MS,
                "channel": dice.choice(["a", "b", "c", None]),
                "price": dice.choice([None, *map(float, range(10))]),
            }
            for name in dice.sample(names, count)
        }

    truth = some(2000)
    live = LiveIndex(Segment.build(table(truth), codes_of(truth), WIDE.sizes), compact_at=None)
    counts = {"items": 0, "invalid": 0, "disallowed": 0, "duplicates": 0, "short": 0, "empty": 0}
    while counts["items"] < wanted:
        change = dice.choice(["add", "remove", "compact", "nothing"])
        if change == "add":
            new = some(dice.choice([1, 5, 100]))
            live.add(table(new), codes_of(new))
            truth |= new
        elif change == "remove":
            gone = set(dice.sample(sorted(truth), min(len(truth) // 2, dice.choice([1, 5, 100]))))
            live.remove(gone)
            truth = {name: row for name, row in truth.items() if name not in gone}
        elif change == "compact":
            live.compact(wait=dice.random() < 0.5)
        epoch = live.epoch
        rules = [a_rule(dice, SEEN, 30 * DAY_MS) for _ in range(16)]
        allowed = [epoch.select(parse(text), at_ms=30 * DAY_MS, sets={"seen": SEEN}) for text, _ in rules]
        fit = [{name for name, row in truth.items() if holds(name, row)} for _, holds in rules]
        assert [len(one or ()) for one in allowed] == [len(one) for one in fit]  # known before decoding
        counts["empty"] += sum(not one for one in fit)
        asked = [(one, may) for one, may in zip(allowed, fit, strict=True) if one is not None and may]
        prompts = [[dice.randrange(SID_BASE) for _ in range(dice.randint(1, 12))] for _ in asked]
        width = dice.choice([20, 100])
        found = beam_search(
            model,
            prompts,
            space=WIDE,
            sid_base=SID_BASE,
            index=epoch.base.trie("cpu"),
            delta=epoch.delta.trie("cpu") if epoch.delta is not None else None,
            allowed=[one for one, _ in asked],
            width=width,
            device="cpu",
            choice=dice.choice([Choice(), Choice(), Choice(temperature=1.0, seed=dice.randrange(1000))]),
        )
        for beams, (one, may) in zip(found, asked, strict=True):
            items = [item for behind in epoch.items_behind(beams.codes, one) for item in behind]
            sids, possible = list(map(tuple, beams.codes.tolist())), {truth[item]["codes"] for item in may}
            counts["items"] += len(items)
            counts["invalid"] += sum(sid not in possible for sid in sids)
            counts["disallowed"] += sum(item not in may for item in items)
            counts["duplicates"] += len(items) - len(set(items)) + len(sids) - len(set(sids))
            counts["short"] += len(sids) < min(width, len(possible))
    return counts


@pytest.fixture(scope="module")
def wide_model() -> Any:
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=SID_BASE + WIDE.num_tokens,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def test_ten_thousand_recommended_items_are_all_valid_allowed_and_different(
    wide_model: Any, a_rule: Callable[..., Any]
) -> None:
    counts = fuzz(wide_model, a_rule, 10_000, seed=1)
    assert [counts[name] for name in ("invalid", "disallowed", "duplicates", "short")] == [0, 0, 0, 0], counts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_recommended_items_are_all_valid_allowed_and_different(
    wide_model: Any, a_rule: Callable[..., Any]
) -> None:
    counts = fuzz(wide_model, a_rule, 1_000_000, seed=2)
    print(counts)
    assert [counts[name] for name in ("invalid", "disallowed", "duplicates", "short")] == [0, 0, 0, 0], counts
    assert counts["empty"] > 0


def test_bad_items_are_refused() -> None:
    live = LiveIndex(segment({"a": row((0, 0, 0))}))
    with pytest.raises(InputError, match="'b' stands twice"):
        live.add(pa.concat_tables([table({"b": row((0, 0, 0))})] * 2), np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(InputError, match="outside a SID space"):
        live.add(table({"b": row((0, 0, 0))}), np.array([[0, 0, 5]]))
    with pytest.raises(InputError, match="one SID an item"):
        live.add(table({"b": row((0, 0, 0))}), np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(InputError, match="column price is no double"):
        wrong = table({"b": row((0, 0, 0))}).drop_columns("price").append_column("price", pa.array(["much"]))
        live.add(wrong, np.zeros((1, 3), dtype=np.int64))
    with pytest.raises(InputError, match="no column tag_colour"):
        live.add(table({"b": row((0, 0, 0))}).append_column("tag_colour", pa.array(["red"])), np.zeros((1, 3), int))
    with pytest.raises(InputError, match="needs an item_id"):
        live.add(table({"b": row((0, 0, 0))}).drop_columns("item_id"), np.zeros((1, 3), dtype=np.int64))
    assert live.epoch.item_ids() == ["a"]
    assert live.epoch.add(table({}), np.zeros((0, 3), dtype=np.int64)) is live.epoch


def test_rules_say_what_they_leave() -> None:
    rows = {f"i{number}": {**row((number % 4, 0, 0)), "price": float(number)} for number in range(8)}
    epoch = LiveIndex(segment(rows)).remove(["i0"])
    assert epoch.select(parse("price < 3"), at_ms=0, sets={}) is not None
    line = epoch.explain(parse("price < 3 & price > 5"), at_ms=0, sets={})
    assert "price < 3 leaves 2 of 7 items" in line
    assert "leaves 0" in line


def test_requests_of_one_rule_have_one_set_while_nothing_is_dead() -> None:
    rows = {f"i{number}": {**row((number, 0, 0)), "price": float(number)} for number in range(3)}
    epoch, rule = Epoch(segment(rows)), parse("price < 2")
    first, second = (epoch.select(rule, at_ms=0, sets={}) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.base is second.base
    later = epoch.remove(["i0"]).select(rule, at_ms=0, sets={})
    assert later is not None
    assert later.base is not None
    assert [len(one.base or ()) for one in (first, later)] == [2, 1]
