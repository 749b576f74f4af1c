"""The protocol on three users: who is asked what, what is masked, what a shuffled day may change."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.measuring.leave_one_out import LeaveOneOut, measure, read_leave_one_out
from plumline.errors import InputError
from plumline.schema import HISTORIES, ITEMS

SEQUENCES = {"u1": "abcde", "u2": "bcda", "u3": "fab"}
DAYS = {"u1": [1, 2, 2, 2, 3], "u2": [1, 1, 4, 4], "u3": [5, 6, 6]}


def write(folder: Path, events: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    items = [{"item_id": item, "title": f"title {item}", "first_seen_at": datetime(2001, 1, 1)} for item in "gfedcba"]
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    pq.write_table(pa.Table.from_pylist(events), folder / "events.parquet")
    return folder


def make_events() -> list[dict]:
    rows = []
    for user, items in SEQUENCES.items():
        for place, item in enumerate(items):
            back = len(items) - place
            rows.append(
                {
                    "user_id": user,
                    "item_id": item,
                    "timestamp": datetime(2014, 1, DAYS[user][place]),
                    "rating": float(place),
                    "position": place,
                    "split_loo": {1: "test", 2: "valid"}.get(back, "train"),
                }
            )
    return [rows[row] for row in np.random.default_rng(3).permutation(len(rows))]


@pytest.fixture
def task(tmp_path: Path) -> LeaveOneOut:
    return read_leave_one_out(write(tmp_path / "tiny", make_events()))


def test_histories_and_queries_follow_the_positions(task: LeaveOneOut) -> None:
    assert task.name == "tiny"
    assert task.item_ids == list("abcdefg")
    assert task.histories.schema.names == HISTORIES.schema.names
    rows = {row["user_id"]: row for row in task.histories.to_pylist()}
    assert {user: "".join(row["item_ids"]) for user, row in rows.items()} == {"u1": "abc", "u2": "bc", "u3": "f"}
    assert [rows["u1"]["timestamps"][i] for i in (0, 2)] == [
        int(datetime(2014, 1, day, tzinfo=UTC).timestamp() * 1000) for day in (1, 2)
    ]
    assert rows["u1"]["rewards"] == [1.0, 1.0, 1.0]
    assert [("".join(q.item_ids), q.relevant) for q in task.validation] == [("abc", "d"), ("bc", "d"), ("f", "a")]
    assert [("".join(q.item_ids), q.relevant) for q in task.test] == [("abcd", "e"), ("bcd", "a"), ("fa", "b")]
    assert [len(query.timestamps) for query in task.test] == [4, 3, 2]


def test_items_are_dated_by_training_events_alone(task: LeaveOneOut) -> None:
    assert task.items.schema.names == ITEMS.schema.names
    published = dict(zip(task.item_ids, task.items.column("published_at").to_pylist(), strict=True))
    assert published["c"] == datetime(2014, 1, 1, tzinfo=UTC)  # of u2
    assert published["d"] is None
    assert published["e"] is None
    assert published["g"] is None


def test_masking_takes_seen_items_out_before_the_cut(task: LeaveOneOut) -> None:
    ranked = [list("abcde"), list("fegac"), list("fcdeb")]
    masked, plain = (measure(ranked, task, masked=m) for m in (True, False))
    assert masked.num_queries == 3
    # masked: e is 1st of (e), a is 4th of (f e g a), b is 4th of (c d e b); as they are: 5th, 4th, 5th
    assert masked["recall@5"] == plain["recall@5"] == 1.0
    assert masked["ndcg@5"] == pytest.approx((1 + 2 / np.log2(5)) / 3)
    assert plain["ndcg@10"] == pytest.approx((2 / np.log2(6) + 1 / np.log2(5)) / 3)
    assert plain.standard_errors["recall@5"] == 0.0
    late = measure([[*"abcd", "f", "g", "e"], [], []], task, masked=False)
    assert (late["recall@5"], late["recall@10"]) == (0.0, pytest.approx(1 / 3))
    assert late.standard_errors["recall@10"] == pytest.approx(np.std([1, 0, 0], ddof=1) / 3**0.5)
    assert measure([[*"abcd"], [*"bc"], []], task, masked=False, split="validation")["recall@10"] == pytest.approx(
        1 / 3
    )
    with pytest.raises(ValueError, match="2 lists for 3 test queries"):
        measure(ranked[:2], task, masked=True)
    with pytest.raises(ValueError, match="'u1' repeats"):
        measure([["a", "a"], [], []], task, masked=True)


def test_shuffling_moves_nothing_over_a_day(task: LeaveOneOut) -> None:
    before = task.histories.to_pylist()
    orders = set()
    for seed in range(12):
        table = task.shuffled_days(seed)
        assert table.schema.equals(task.histories.schema)
        for old, new in zip(before, table.to_pylist(), strict=True):
            assert new["timestamps"] == old["timestamps"]
            assert sorted(zip(old["timestamps"], old["item_ids"], strict=True)) == sorted(
                zip(new["timestamps"], new["item_ids"], strict=True)
            )
        orders.add("".join(table.column("item_ids")[0].as_py()))
    assert orders == {"abc", "acb"}  # a is of another day
    assert task.shuffled_days(5).equals(task.shuffled_days(5))


def test_a_sample_keeps_rows_together(task: LeaveOneOut) -> None:
    small = task.sample(2, seed=0)
    users = small.histories.column("user_id").to_pylist()
    assert len(users) == 2
    assert users == [q.user_id for q in small.test] == [q.user_id for q in small.validation]
    assert small.item_ids == task.item_ids
    assert task.sample(3, seed=0) is task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split_loo": "eval"}, "split_loo is 'eval'; allowed are train, valid, test"),
        ({"item_id": "zz"}, "item 'zz' is not in items.parquet"),
        ({"split_loo": "train"}, "user 'u[123]' has not one '(test|valid)' event"),
    ],
)
def test_what_is_no_such_benchmark_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    events = make_events()
    row = next(i for i, event in enumerate(events) if event["split_loo"] == "test")
    events[row] |= change
    with pytest.raises(InputError, match=message):
        read_leave_one_out(write(tmp_path / "broken", events))


def test_without_a_split_there_is_no_benchmark(tmp_path: Path) -> None:
    events = [{name: value for name, value in event.items() if name != "position"} for event in make_events()]
    with pytest.raises(InputError, match="no column 'position'"):
        read_leave_one_out(write(tmp_path / "plain", events))
