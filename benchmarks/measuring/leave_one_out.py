"""The leave-one-out protocol of the Amazon 2014 benchmarks (TIGER, S3-Rec, SASRec): who is asked what, and the measure.

A folder with items.parquet and events.parquet, in columns that `plumline init` would take without --map, whose events
also have `position` (place in the sequence of its user, from 0) and `split_loo`: the last event of every user is
`test`, the one before it `valid`, all before these are `train`. Full ranking over all items. The query of the
validation item is what is before it; that of the test item is everything but the last, so training items and the
validation item. Models are trained on the training events alone.

    seen_masked    what the user has already taken is removed from the ranking (S3-Rec, and all numbers copied from it)
    not_masked     nothing is removed (most generative models); the same ranker may score a half less so

A recommender that returns k items must be told what to leave out, or it has fewer than k left: see `Query.seen`.

Two traps. Within one day the files are in the order of the item ids, so the place within a day says something about an
id that nobody would know; in Beauty 43% of the test items are of the day of the item before. The targets here keep the
published order, or no figure could stand beside a published one; what is trained on can have its days shuffled
(`LeaveOneOut.shuffled_days`), and ties must be broken by a hash of the id, never by the id. Second, `first_seen_at` of
these sets is the day of the first event, held-out ones included: here published_at is that of the first training event.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.intake.tables import read_table, rename
from models.evaluation import metrics
from plumline.errors import InputError
from plumline.schema import EVENTS, HISTORIES, ITEMS, TIMESTAMP, conform

CUTS = (5, 10)
SPLITS = ("validation", "test")
_NAMES = {"train": 0, "valid": 1, "test": 2}


@dataclass(frozen=True)
class Query:
    """One user of one split: items before the held-out one with their times (epoch ms), oldest first; relevant: it."""

    user_id: str
    item_ids: list[str]
    timestamps: list[int]
    relevant: str

    @property
    def seen(self) -> frozenset[str]:
        """What a ranking with seen items masked leaves out."""
        return frozenset(self.item_ids)


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
    """A benchmark: items (ITEMS, sorted by item_id), histories (HISTORIES, training events alone, sorted by user_id,
    each in the order of `position`), and one query a user of each split, sorted by user_id.
    """

    name: str
    items: pa.Table
    histories: pa.Table
    validation: list[Query]
    test: list[Query]

    @property
    def item_ids(self) -> list[str]:
        """Every item, all of which are ranked."""
        return self.items.column("item_id").to_pylist()

    def queries(self, split: str) -> list[Query]:
        """The queries of "validation" or "test"."""
        if split not in SPLITS:
            raise ValueError(f"split {split!r}; there are {', '.join(SPLITS)}")
        return self.validation if split == "validation" else self.test

    def shuffled_days(self, seed: int) -> pa.Table:
        """The training histories, events of one user and instant (in these sets: one day) in random order."""
        lengths = pc.list_value_length(self.histories.column("item_ids")).to_numpy()
        user = np.repeat(np.arange(len(lengths)), lengths)
        time = pc.list_flatten(self.histories.column("timestamps").combine_chunks()).to_numpy(zero_copy_only=False)
        order = np.lexsort((np.random.default_rng(seed).random(len(user)), time, user))
        offsets = pa.array(np.append(0, np.cumsum(lengths)).astype(np.int32))
        table = self.histories
        for number, field in enumerate(HISTORIES.schema):
            if pa.types.is_list(field.type):
                values = pc.list_flatten(table.column(field.name).combine_chunks()).take(pa.array(order))
                lists = pa.ListArray.from_arrays(offsets, values)
                table = table.set_column(number, field, lists.cast(field.type))
        return table

    def sample(self, num_users: int, seed: int) -> "LeaveOneOut":
        """The same with at most num_users users, all items kept: for a quick look, comparable with nothing."""
        if len(self.test) <= num_users:
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self.test), num_users, replace=False))
        validation, test = [self.validation[row] for row in rows], [self.test[row] for row in rows]
        return replace(self, histories=self.histories.take(pa.array(rows)), validation=validation, test=test)


@dataclass(frozen=True)
class Figures:
    """Means over the queries, each with the standard error of that mean over users (of which each has one query)."""

    num_queries: int
    means: dict[str, float]
    standard_errors: dict[str, float]

    def __getitem__(self, name: str) -> float:
        return self.means[name]


def measure(ranked: Sequence[Sequence[str]], task: LeaveOneOut, masked: bool, split: str = "test") -> Figures:
    """recall@5, recall@10, ndcg@5, ndcg@10 of one ranked list of item ids a query of the split, in their order.

    masked: items of the query are taken out of the lists before the cut, which shortens a list that holds them; nothing
    is taken out of what is relevant. Raises ValueError for another number of lists, or a list that repeats an item.
    """
    return _summary(_values(ranked, task, masked, split), len(ranked))


def compare(
    ranked: Sequence[Sequence[str]], other: Sequence[Sequence[str]], task: LeaveOneOut, masked: bool
) -> Figures:
    """`measure` of one method less another on the test items: errors are of the difference, paired by user."""
    ours, theirs = (_values(lists, task, masked, "test") for lists in (ranked, other))
    return _summary({name: ours[name] - theirs[name] for name in ours}, len(ranked))


def _summary(values: dict[str, np.ndarray], num_queries: int) -> Figures:
    spread = {name: each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0.0 for name, each in values.items()}
    means = {name: float(each.mean()) if len(each) else 0.0 for name, each in values.items()}
    return Figures(num_queries, means, {name: float(error) for name, error in spread.items()})


def _values(ranked: Sequence[Sequence[str]], task: LeaveOneOut, masked: bool, split: str) -> dict[str, np.ndarray]:
    """Every measure of every query."""
    queries = task.queries(split)
    if len(ranked) != len(queries):
        raise ValueError(f"{len(ranked)} lists for {len(queries)} {split} queries; give one a query, in their order")
    lists = []
    for items, query in zip(ranked, queries, strict=True):
        if len(set(items)) != len(items):
            raise ValueError(f"the list of user {query.user_id!r} repeats an item; give each item once")
        seen = query.seen if masked else frozenset[str]()
        lists.append([item for item in items if item not in seen])
    hits = metrics.hit_matrix(lists, [[query.relevant] for query in queries], max(CUTS))
    one = np.ones(len(queries), dtype=np.int64)
    both = (("recall", metrics.recall), ("ndcg", metrics.ndcg))
    return {f"{name}@{cut}": function(hits[:, :cut], one) for name, function in both for cut in CUTS}


def read_leave_one_out(folder: Path) -> LeaveOneOut:
    """Read <folder>/items.parquet and <folder>/events.parquet.

    Raises InputError where the columns are missing, an item is unknown, or a user has not exactly one `valid` and one
    `test` event at the end of the sequence.
    """
    items = rename(read_table(folder / "items.parquet"), ITEMS, {}).table.sort_by("item_id").combine_chunks()
    raw = read_table(folder / "events.parquet")
    for name in ("split_loo", "position"):
        if name not in raw.column_names:
            raise InputError(f"{folder / 'events.parquet'}: no column {name!r}; there are {raw.column_names}")
    events = rename(raw, EVENTS, {}).table
    unknown = pc.invert(pc.is_in(events.column("item_id"), value_set=items.column("item_id").combine_chunks()))
    if pc.any(unknown).as_py():
        missing = events.column("item_id").filter(unknown)[0].as_py()
        raise InputError(f"{folder / 'events.parquet'}: item {missing!r} is not in items.parquet; add it there")
    split = np.array([_NAMES.get(name, -1) for name in raw.column("split_loo").to_pylist()])
    if (split < 0).any():
        wrong = raw.column("split_loo")[int(np.argmax(split < 0))].as_py()
        raise InputError(f"{folder / 'events.parquet'}: split_loo is {wrong!r}; allowed are {', '.join(_NAMES)}")
    users, user = np.unique(events.column("user_id").to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    order = np.lexsort((raw.column("position").to_numpy(), user))
    events, user, split = events.take(pa.array(order)), user[order], split[order]
    ends = np.cumsum(np.bincount(user))
    for part, back in (("valid", 2), ("test", 1)):
        right = np.bincount(user[split == _NAMES[part]], minlength=len(users)) == 1
        right &= split[ends - back] == _NAMES[part]
        if not right.all():
            raise InputError(
                f"{folder / 'events.parquet'}: user {str(users[np.argmin(right)])!r} has not one {part!r} event, "
                f"{back} from the end of the sequence; mend split_loo or position"
            )
    trained = split == 0
    queries = [_queries(users, user, events, ends - back) for back in (2, 1)]
    histories = _histories(users, user[trained], events.filter(pa.array(trained)))
    return LeaveOneOut(folder.resolve().name, _dated(items, events.filter(pa.array(trained))), histories, *queries)


def _queries(users: np.ndarray, user: np.ndarray, events: pa.Table, targets: np.ndarray) -> list[Query]:
    """A query a user whose relevant event is the one at `targets`."""
    items = events.column("item_id").to_pylist()
    times = _milliseconds(events).to_pylist()
    starts = np.flatnonzero(np.append(True, user[1:] != user[:-1]))
    return [
        Query(str(name), items[start:target], times[start:target], items[target])
        for name, start, target in zip(users, starts.tolist(), targets.tolist(), strict=True)
    ]


def _histories(users: np.ndarray, user: np.ndarray, events: pa.Table) -> pa.Table:
    """HISTORIES, of users without a training event empty ones; numbers of events as they are, reward 1 for each."""
    offsets = pa.array(np.append(0, np.cumsum(np.bincount(user, minlength=len(users)))).astype(np.int32))
    columns: dict[str, Any] = {"user_id": pa.array(users.tolist(), pa.string())}
    for field in HISTORIES.schema:
        if field.name == "user_id":
            continue
        if field.name == "timestamps":
            values = _milliseconds(events)
        elif field.name == "rewards":
            values = pa.array(np.ones(events.num_rows, np.float32))
        else:
            values = events.column("item_id" if field.name == "item_ids" else field.name).combine_chunks()
        columns[field.name] = pa.ListArray.from_arrays(offsets, values.cast(field.type.value_type))
    return conform(pa.table(columns), HISTORIES)


def _milliseconds(events: pa.Table) -> pa.Array:
    micros = events.column("timestamp").combine_chunks().cast(pa.int64())
    return pc.divide(micros, 1000)


def _dated(items: pa.Table, events: pa.Table) -> pa.Table:
    """published_at as the time of the item's first training event; unknown where there is none."""
    first = events.group_by("item_id").aggregate([("timestamp", "min")])
    row = pc.index_in(items.column("item_id"), first.column("item_id").combine_chunks())
    days = first.column("timestamp_min").combine_chunks().cast(TIMESTAMP).take(row.combine_chunks())
    number = items.column_names.index("published_at")
    return items.set_column(number, ITEMS.schema.field("published_at"), days)
