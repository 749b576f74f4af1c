"""What every user did up to as_of, which items go together, and the held-out days to be scored on.

    reads   artifacts/events, artifacts/catalog
    writes  histories.parquet (HISTORIES, ≤ as_of), pairs.parquet (PAIRS, ≤ as_of),
            queries.parquet (QUERIES, days as_of+1 … as_of+eval_days), last_events.parquet (QUERIES, the last event
            of a user in these days), labels.parquet (QUERIES, the last `label_days` days up to as_of), stats.json
    run     python -m features.histories --params recipes/cpu_tiny.yaml --events artifacts/events \\
                --catalog artifacts/catalog --as-of 2011-10-31 --out artifacts/histories

An event counts as interest if its action is a positive one, it was watched enough, and its quantity is not below zero
(a cancellation). What its reward says is worth nothing stands in histories, but is nothing that anybody is asked for.
Several lines of one user, item and instant are one step. Ties in time are ordered by event_id, which is a hash where
the source has none: the order of ids in a file never reaches the model.

The tables are made in ibis and run on DuckDB; no other engine can be chosen. The forms are some that Spark would know
too (a struct that is collected, then sorted: `collect(order_by=…)` does not exist there), which no test shows.
"""

import ast
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from features.batches import utc_day
from features.catalog import Catalog
from features.lake import EventSnapshot
from features.successions import count_successions
from plumline.artifact import write_json
from plumline.errors import ArtifactError, InputError, RefusedError
from plumline.schema import HISTORIES, NUMBERS, PAIRS, QUERIES, conform
from plumline.stage import Params, main
from plumline.tables import read_parquet, write_parquet

if TYPE_CHECKING:
    import ibis.expr.types as ir


NO = (
    *("cancel", "dislike", "downvote", "exposure", "hate", "hide", "impression", "not_interested", "refund", "remove"),
    *("remove_from_cart", "report", "return", "skip"),
)
"""Actions that say no, or only that an item was shown, whoever logs them, unless a recipe says otherwise."""


class HistoriesParams(Params):
    """What counts as interest, and how much of it is kept."""

    eval_days: int = Field(default=14, ge=0)
    """Days after as_of that are held out and scored; events.horizon_days must reach as far."""
    label_days: int = Field(default=7, ge=0)
    """Days up to as_of that are queries too: the ranker of a daily learns from those that its base did not know."""
    max_events: int = Field(default=200, ge=1)
    """Newest events kept of a user."""
    positive_actions: tuple[str, ...] = ()
    """Actions that show interest; empty: every action does that `action_worth` does not rule out."""
    action_worth: Mapping[str, Annotated[float, Field(allow_inf_nan=False)]] = {}
    """Action, in small letters → factor of the reward; of one that is not named 0 if it says no (cancel, dislike,
    downvote, hate, hide, not_interested, refund, remove, remove_from_cart, report, return, skip) or only that the item
    was shown (exposure, impression), else 1. At 0 or below the event shows no interest: it is no target, nothing that
    is counted, and stands in no history."""
    min_watch_ratio: float | None = None
    """Smallest watch ratio that shows interest (an event without one shows none); empty: not looked at."""
    reward: str = "1.0"
    """Worth of an event: numbers and columns (watch_ratio, watch_time_s, rating, price, quantity), + - * / min max."""
    pair_window: int = Field(default=5, ge=1)
    """Steps of a user's history within which two items make a pair."""
    min_pair_count: int = Field(default=2, ge=1)
    """Pairs seen less often are left out."""


def run(params: HistoriesParams, *, events: Path, catalog: Path, as_of: date, out: Path) -> None:
    """Write histories, pairs and queries of as_of.

    Raises RefusedError if nothing happened by as_of, InputError if the held-out days were not validated.
    """
    import ibis

    snapshot, known = EventSnapshot.load(events), Catalog.load(catalog)
    if not snapshot.days or snapshot.days[0] > as_of:
        landed = f"{snapshot.days[0]} to {snapshot.days[-1]}" if snapshot.days else "none"
        raise RefusedError(f"histories: no event by {as_of}; landed days: {landed}; choose an as_of among them")
    connection = ibis.duckdb.connect()
    try:
        steps = connection.create_table("steps", _steps(params, snapshot, as_of))
        items = ibis.memtable(pa.table({"item_id": pa.array(known.item_ids, pa.string())}))
        live = ibis.memtable(pa.table({"item_id": pa.array(known.live_ids(), pa.string())}))
        past = steps.filter(steps.day <= as_of)
        histories = conform(connection.to_pyarrow(_histories(past, params.max_events)), HISTORIES)
        pairs = conform(connection.to_pyarrow(_pairs(past.semi_join(items, "item_id"), params)), PAIRS)
        days = (as_of, as_of + timedelta(days=params.eval_days))
        queries = conform(connection.to_pyarrow(_queries(steps, live, *days, params.max_events)), QUERIES)
        days = (as_of - timedelta(days=params.label_days), as_of)
        labels = conform(connection.to_pyarrow(_queries(steps, live, *days, params.max_events)), QUERIES)
        last_events = conform(connection.to_pyarrow(_last_events(steps, live, as_of, params.max_events)), QUERIES)
        counted = past.aggregate(
            num_events=past.count(), num_days=past.day.nunique(), num_items=past.item_id.nunique()
        ).to_pyarrow()
        actions = past.group_by("action").aggregate(events=past.count()).order_by("action").to_pyarrow().to_pylist()
        sessions = past.select("user_id", "day").distinct().count().to_pyarrow().as_py()
    finally:
        connection.disconnect()
    if not histories.num_rows:
        raise RefusedError(
            f"histories: no event by {as_of} shows interest (positive_actions {list(params.positive_actions)}, "
            f"min_watch_ratio {params.min_watch_ratio}); loosen them"
        )
    write_parquet(out / "histories.parquet", histories)
    write_parquet(out / "pairs.parquet", pairs)
    write_parquet(out / "queries.parquet", queries)
    write_parquet(out / "last_events.parquet", last_events)
    write_parquet(out / "labels.parquet", labels)
    lengths = pc.list_value_length(histories.column("item_ids")).to_numpy()
    stats = {
        "as_of": as_of.isoformat(),
        "first_day": snapshot.days[0].isoformat(),
        "last_day": snapshot.days[-1].isoformat(),
        "num_users": histories.num_rows,
        "num_sessions": sessions,
        "action": max(actions, key=lambda row: row["events"], default={"action": None})["action"],
        "median_history_length": float(np.median(lengths)),
        "num_pairs": pairs.num_rows,
        "num_queries": queries.num_rows,
        **counted.to_pylist()[0],
    }
    write_json(out / "stats.json", stats)


def _steps(params: HistoriesParams, snapshot: EventSnapshot, as_of: date) -> "ir.Table":
    """Events of interest up to as_of + eval_days: user_id, item_id, micros, day, event_id, action, reward, NUMBERS.

    The lines of one step give their largest reward and their largest numbers.
    """
    import ibis

    through = as_of + timedelta(days=params.eval_days)
    columns = ["event_id", "user_id", "item_id", "timestamp", "action", *NUMBERS]
    table = snapshot.read(through=through, columns=columns)
    table = table.append_column("day", utc_day(table.column("timestamp")))
    table = table.append_column("micros", table.column("timestamp").cast(pa.int64())).drop_columns(["timestamp"])
    events = ibis.memtable(table)
    events = events.filter(events.quantity.isnull() | (events.quantity > 0))
    worths = dict.fromkeys(NO, 0.0) | dict(params.action_worth)
    action = events.action.lower()
    events = events.filter(action.isnull() | action.notin([name for name, worth in worths.items() if worth <= 0]))
    if params.positive_actions:
        events = events.filter(events.action.isin(list(params.positive_actions)))
    if params.min_watch_ratio is not None:
        events = events.filter(events.watch_ratio >= params.min_watch_ratio)
    reward = parse_reward(params.reward, events)
    if factors := [(name, worth) for name, worth in worths.items() if worth > 0 and worth != 1]:
        reward = reward * events.action.lower().cases(*factors, else_=1.0)
    events = events.mutate(reward=reward)
    return events.group_by("user_id", "item_id", "micros", "day").agg(
        event_id=events.event_id.min(),
        action=events.action.min(),
        reward=events.reward.max(),
        **{name: events[name].max() for name in NUMBERS},
    )


def _histories(steps: "ir.Table", max_events: int) -> "ir.Table":
    """The newest `max_events` steps of every user, oldest first."""
    import ibis
    from ibis import _

    numbers = {name: _[name] for name in ("reward", *NUMBERS)}
    step = ibis.struct({"micros": _.micros, "id": _.event_id, "item": _.item_id, **numbers})
    collected = steps.mutate(step=step).group_by("user_id").agg(steps=_.step.collect())
    newest = collected.mutate(steps=_.steps.sort()).mutate(steps=_.steps[-max_events:])  # by micros, then event_id
    return newest.select(
        "user_id",
        item_ids=_.steps.map(lambda step: step["item"]),
        timestamps=_.steps.map(lambda step: step.micros // 1000),
        **{
            column: _.steps.map(lambda step, name=name: step[name].cast("float32"))
            for name, column in (("reward", "rewards"), *zip(NUMBERS, NUMBERS, strict=True))
        },
    ).order_by("user_id")


def _pairs(steps: "ir.Table", params: HistoriesParams) -> "ir.Table":
    """How often two different items lie within `pair_window` steps of one another."""
    counted = count_successions(steps, order_by=("micros", "event_id"), window=params.pair_window, both_ways=True)
    return counted.filter(counted["count"] >= params.min_pair_count).order_by("item_a", "item_b")


def _queries(steps: "ir.Table", live: "ir.Table", after: date, last: date, max_events: int) -> "ir.Table":
    """Every user-day after `after`, up to `last`, with a live item: the day's items, and what was before that day."""
    import ibis
    from ibis import _

    held_out = steps.filter((steps.day > after) & (steps.day <= last) & (steps.reward > 0)).semi_join(live, "item_id")
    held_out = held_out.group_by("user_id", "day", "item_id").agg(reward=_.reward.max())
    taken = held_out.mutate(step=ibis.struct({"item": _.item_id, "reward": _.reward.cast("float32")}))
    targets = taken.group_by("user_id", "day").agg(steps=_.step.collect()).mutate(steps=_.steps.sort())
    targets = targets.select(
        "user_id",
        "day",
        relevant=_.steps.map(lambda step: step["item"]),
        rewards=_.steps.map(lambda step: step["reward"]),
    )
    before = steps.select("user_id", "item_id", "micros", "event_id", *NUMBERS, past_day=steps.day)
    past = targets.select("user_id", "day").join(before, "user_id").filter(_.past_day < _.day)
    return _asked(targets, past, max_events)


def _last_events(steps: "ir.Table", live: "ir.Table", as_of: date, max_events: int) -> "ir.Table":
    """The last event with a live item of every user after as_of, and all that the user did before it, that day too."""
    import ibis
    from ibis import _

    held_out = steps.filter((steps.day > as_of) & (steps.reward > 0)).semi_join(live, "item_id")
    newest_first = ibis.window(group_by="user_id", order_by=[ibis.desc("micros"), ibis.desc("event_id")])
    last = held_out.mutate(rank=ibis.row_number().over(newest_first)).filter(_.rank == 0)
    last = last.select("user_id", "day", "reward", last_item=_.item_id, last_micros=_.micros, last_id=_.event_id)
    targets = last.group_by("user_id", "day").agg(
        relevant=_.last_item.collect(), rewards=_.reward.cast("float32").collect()
    )
    before = steps.select("user_id", "item_id", "micros", "event_id", *NUMBERS)
    past = last.join(before, "user_id").filter(
        (_.micros < _.last_micros) | ((_.micros == _.last_micros) & (_.event_id < _.last_id))
    )
    return _asked(targets, past, max_events)


def _asked(targets: "ir.Table", past: "ir.Table", max_events: int) -> "ir.Table":
    """QUERIES: targets (user_id, day, relevant) with the newest of their past (the same keys, and its steps)."""
    import ibis
    from ibis import _

    newest_first = ibis.window(group_by=["user_id", "day"], order_by=[ibis.desc("micros"), ibis.desc("event_id")])
    past = past.mutate(rank=ibis.row_number().over(newest_first)).filter(_.rank < max_events)
    numbers = {name: _[name] for name in NUMBERS}
    step = ibis.struct({"micros": _.micros, "id": _.event_id, "item": _.item_id, **numbers})
    lists = past.mutate(step=step).group_by("user_id", "day").agg(steps=_.step.collect())
    lists = lists.mutate(steps=_.steps.sort())
    lists = lists.select(
        "user_id",
        "day",
        item_ids=_.steps.map(lambda step: step["item"]),
        timestamps=_.steps.map(lambda step: step.micros // 1000),
        **{name: _.steps.map(lambda step, name=name: step[name].cast("float32")) for name in NUMBERS},
    )
    joined = targets.left_join(lists, ["user_id", "day"])
    return joined.select(
        "user_id",
        "day",
        item_ids=ibis.coalesce(joined.item_ids, ibis.literal([], type="array<string>")),
        timestamps=ibis.coalesce(joined.timestamps, ibis.literal([], type="array<int64>")),
        relevant=joined.relevant,
        rewards=joined.rewards,
        **{name: ibis.coalesce(joined[name], ibis.literal([], type="array<float32>")) for name in NUMBERS},
    ).order_by("user_id", "day")


# --- reward expressions ---


def parse_reward(text: str, events: "ir.Table") -> "ir.FloatingValue":
    """A reward expression over the numeric columns of `events`; 1.0 where a column in it is null.

    Numbers, NUMBERS names, + - * /, unary minus, min(…), max(…) and brackets. Raises InputError for anything else.
    """
    import ibis

    operators: dict[type, Callable[[Any, Any], Any]] = {
        ast.Add: lambda a, b: a + b,
        ast.Sub: lambda a, b: a - b,
        ast.Mult: lambda a, b: a * b,
        ast.Div: lambda a, b: a / b,
    }
    functions = {"min": ibis.least, "max": ibis.greatest}

    def build(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return ibis.literal(float(value))
            case ast.Name(id=name) if name in NUMBERS:
                return events[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in operators:
                return operators[type(op)](build(left), build(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -build(operand)
            case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as args, keywords=[]) if name in functions:
                values = [build(arg) for arg in args]
                known = values[0].notnull()  # DuckDB's least() skips nulls, Spark's too: say that one spoils the whole
                for value in values[1:]:
                    known = known & value.notnull()
                return ibis.ifelse(known, functions[name](*values), ibis.null("float64"))
            case _:
                raise InputError(
                    f"histories.reward {text!r}: {ast.unparse(node)!r} is not allowed; "
                    f"use numbers, {', '.join(NUMBERS)}, + - * / min max"
                )

    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise InputError(f"histories.reward {text!r}: no expression ({error.msg}); write for example 1.0") from None
    return ibis.coalesce(build(tree.body), ibis.literal(1.0)).cast("float64")


# --- readers ---


def read_histories(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """HISTORIES of artifacts/histories, sorted by user_id; some columns of it, or all."""
    return read_parquet(folder / "histories.parquet", columns)


def read_some_users(folder: Path, number: int) -> list[str]:
    """Ids of users with a history, as examples for a person: the longest (as they are kept) first, ties by id."""
    try:
        table = read_histories(folder)
    except ArtifactError:
        return []
    lengths = pa.table({"user_id": table.column("user_id"), "events": pc.list_value_length(table.column("item_ids"))})
    order = lengths.sort_by([("events", "descending"), ("user_id", "ascending")])
    users: list[str] = order.column("user_id")[:number].to_pylist()
    return users


def read_queries(folder: Path) -> pa.Table:
    """QUERIES of artifacts/histories, sorted by user_id, day."""
    return read_parquet(folder / "queries.parquet")


def read_labels(folder: Path) -> pa.Table:
    """QUERIES of artifacts/histories: the user-days of the last `label_days` days up to as_of, by user_id, day."""
    return read_parquet(folder / "labels.parquet")


def read_last_events(folder: Path) -> pa.Table:
    """QUERIES of artifacts/histories: the last held-out event of every user, and what was before it; by user_id."""
    return read_parquet(folder / "last_events.parquet")


def read_pairs(folder: Path) -> pa.Table:
    """PAIRS of artifacts/histories, sorted by item_a, item_b."""
    return read_parquet(folder / "pairs.parquet")


def flat_numbers(histories: pa.Table, name: str, lengths: np.ndarray) -> np.ndarray:
    """One numeric list column of a HISTORIES or QUERIES table, flat.

    lengths: (U,) events of each row; a row whose list is null has that many unknowns. Returns (E,) float32, NaN where
    it is not known.
    """
    lists = histories.column(name).combine_chunks()
    flat = np.full(int(lengths.sum()), np.nan, dtype=np.float32)
    there = np.repeat(lists.is_valid().to_numpy(zero_copy_only=False), lengths)
    flat[there] = lists.flatten().to_numpy(zero_copy_only=False)
    return flat


def item_counts(folder: Path) -> dict[str, float]:
    """item_id → how often it stands in the histories: its traffic, for what is weighted by it."""
    lists = read_histories(folder).column("item_ids").combine_chunks()
    counted = pc.value_counts(pc.list_flatten(lists))
    return {row["values"]: float(row["counts"]) for row in counted.to_pylist()}


if __name__ == "__main__":
    main(run, section="histories")
