"""A seeded world with known truth, of any size: tests, load and benchmarks that need no data set.

What can be learned in it, and from what:

    titles      words of an item's topic            → content groups items
    taste       a user's topic, drifting to another → recent history says more than old history
    chains      in every topic each item has one successor that users follow with probability `chain`
                                                    → a model of sequences beats popularity
    births      items are published over the days, some retire → new items appear, tombstones matter

Item ids carry no information: they are shuffled against topic, popularity and birth.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa

from plumline.schema import EVENTS, ITEMS, TIMESTAMP, USERS, conform

_SYLLABLES = ("ba", "do", "fi", "ga", "hu", "ka", "lo", "mi", "na", "po", "ra", "se", "ti", "vu", "wo", "zy")
_DAY = 86_400_000_000  # microseconds
_TRIES = 6
STRAY = 0.1
"""Share of the choices by taste whose topic is any, all alike."""


@dataclass(frozen=True)
class Truth:
    """What made the world. Rows of items and users as in the tables.

    topic: of every item. successor: row of the next item in the chain. birth, death: first day an item can be seen and
    first day it cannot (0 = first day of the world; far beyond the last for items that never retire). popularity:
    weight among the items of the topic. All of shape (num_items,).
    taste: preferred topic at the start and at the end, shape (num_users, 2).
    chained: whether an event (row of the events table) followed the chain, shape (num_events,).
    """

    topic: np.ndarray
    successor: np.ndarray
    birth: np.ndarray
    death: np.ndarray
    popularity: np.ndarray
    taste: np.ndarray
    chained: np.ndarray


@dataclass(frozen=True)
class World:
    """Tables in the contracts ITEMS, USERS (age_bucket, country, device), EVENTS (sorted by time), and their truth."""

    items: pa.Table
    users: pa.Table
    events: pa.Table
    truth: Truth


def make_world(
    seed: int,
    num_users: int,
    num_items: int,
    num_days: int,
    *,
    events_per_user: float = 30.0,
    num_topics: int | None = None,
    chain: float = 0.5,
    new_items: float = 0.3,
    retiring: float = 0.05,
    start: date = date(2024, 1, 1),
) -> World:
    """Draw a world.

    events_per_user: mean over all days (at least 1 a user). num_topics: default about sqrt(num_items) / 2.
    chain: probability that a user goes on to the successor of the item seen last. new_items: share of the items that is
    published during the days; retiring: share that retires in the second half. Equal arguments give equal tables.
    """
    assert num_users > 0
    assert num_items > 1
    assert num_days > 0
    rng = np.random.default_rng([seed, num_users, num_items, num_days])
    topics = num_topics or max(2, int(num_items**0.5 / 2))
    topic_N = _zipf(rng, topics, num_items, 0.5)
    birth_N = np.where(rng.random(num_items) < new_items, rng.integers(0, num_days, num_items), -10)
    retires = (rng.random(num_items) < retiring) & (birth_N < num_days // 2)
    death_N = np.where(retires, rng.integers(num_days // 2 + 1, num_days + 2, num_items), 10 * num_days + 10)
    popularity_N = rng.permutation(1.0 / np.arange(1, num_items + 1) ** 0.7)
    taste_UP = np.stack([_zipf(rng, topics, num_users, 0.5), _zipf(rng, topics, num_users, 0.5)], axis=1)
    lengths_U = 1 + rng.poisson(rng.gamma(2.0, max(events_per_user - 1, 0) / 2, num_users))

    shelves = _Shelves(topic_N, popularity_N, topics)
    next_N = _chains(rng, topic_N)
    days_E, micros_E, users_E, items_E, chained_E = [], [], [], [], []
    times_ES = rng.random((num_users, int(lengths_U.max()))) * num_days
    times_ES[np.arange(times_ES.shape[1]) >= lengths_U[:, None]] = np.inf
    times_ES.sort(axis=1)
    last_U = np.full(num_users, -1)
    for step in range(times_ES.shape[1]):  # all users take their next step together
        users = np.flatnonzero(lengths_U > step)
        times = times_ES[users, step]
        days = times.astype(np.int64)
        items = _choose(rng, shelves, taste_UP[users], times / num_days, birth_N, death_N, days)
        successor = next_N[last_U[users]]
        open_now = (birth_N[successor] <= days) & (days < death_N[successor])
        follows = (last_U[users] >= 0) & (rng.random(len(users)) < chain) & open_now
        items = np.where(follows, successor, items)
        there = items >= 0  # nothing of the topic was on the shelf
        last_U[users[there]] = items[there]
        days_E.append(days[there])
        micros_E.append(((times - days) * _DAY).astype(np.int64)[there])
        users_E.append(users[there])
        items_E.append(items[there])
        chained_E.append(follows[there])

    columns = [np.concatenate(parts) for parts in (days_E, micros_E, users_E, items_E, chained_E)]
    order = np.lexsort((columns[2], columns[0] * _DAY + columns[1]))
    days_e, micros_e, users_e, items_e, chained_e = (column[order] for column in columns)
    origin = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp()) * 1_000_000
    likes = (taste_UP[users_e] == topic_N[items_e][:, None]).any(axis=1)
    watch_ratio = rng.beta(np.where(likes | chained_e, 4.0, 1.2), 2.0)
    duration_N = np.round(rng.lognormal(4.0, 0.8, num_items), 1)
    events = pa.table(
        {
            "event_id": _ids("e", len(items_e)),
            "user_id": _ids("u", num_users).take(pa.array(users_e)),
            "item_id": _ids("i", num_items).take(pa.array(items_e)),
            "timestamp": pa.array(origin + days_e * _DAY + micros_e, pa.int64()).cast(TIMESTAMP),
            "action": pa.array(np.where(watch_ratio > 0.5, "play", "glance")),
            "watch_ratio": watch_ratio,
            "watch_time_s": watch_ratio * duration_N[items_e],
        }
    )
    return World(
        items=_items(rng, topic_N, birth_N, death_N, duration_N, origin, num_days, topics),
        users=_users(rng, num_users),
        events=conform(events, EVENTS),
        truth=Truth(topic_N, next_N, birth_N, death_N, popularity_N, taste_UP, chained_e),
    )


class _Shelves:
    """Items by topic with cumulated popularity, so that many draws are one searchsorted."""

    def __init__(self, topic_N: np.ndarray, popularity_N: np.ndarray, topics: int) -> None:
        self.order = np.lexsort((-popularity_N, topic_N))
        weights = popularity_N[self.order]
        self.total = np.concatenate([[0.0], np.cumsum(weights)])
        self.starts = np.searchsorted(topic_N[self.order], np.arange(topics + 1))

    def draw(self, rng: np.random.Generator, topics: np.ndarray) -> np.ndarray:
        """One item of each topic by popularity, -1 for a topic without items."""
        low, high = self.total[self.starts[topics]], self.total[self.starts[topics + 1]]
        at = np.searchsorted(self.total, low + rng.random(len(topics)) * (high - low), side="right") - 1
        last = np.maximum(self.starts[topics + 1] - 1, 0)
        return np.where(high > low, self.order[np.clip(at, self.starts[topics].clip(max=last), last)], -1)


def _choose(
    rng: np.random.Generator,
    shelves: _Shelves,
    taste: np.ndarray,
    progress: np.ndarray,
    birth_N: np.ndarray,
    death_N: np.ndarray,
    days: np.ndarray,
) -> np.ndarray:
    """An available item by taste: the topic of the end with growing probability, one in ten at random; -1 for none."""
    chosen = np.full(len(days), -1)
    for _ in range(_TRIES):
        open_rows = np.flatnonzero(chosen < 0)
        if not len(open_rows):
            break
        drifted = rng.random(len(open_rows)) < progress[open_rows]
        topics = np.where(drifted, taste[open_rows, 1], taste[open_rows, 0])
        stray = rng.random(len(open_rows)) < STRAY
        topics = np.where(stray, rng.integers(0, len(shelves.starts) - 1, len(open_rows)), topics)
        items = shelves.draw(rng, topics)
        available = (items >= 0) & (birth_N[items] <= days[open_rows]) & (days[open_rows] < death_N[items])
        chosen[open_rows] = np.where(available, items, -1)
    return chosen


def _chains(rng: np.random.Generator, topic_N: np.ndarray) -> np.ndarray:
    """A random cycle through the items of every topic: row → row of the successor."""
    order = np.lexsort((rng.random(len(topic_N)), topic_N))
    successors = np.roll(order, -1)
    ends = np.flatnonzero(np.diff(topic_N[order], append=-1))
    starts = np.concatenate([[0], ends[:-1] + 1])
    successors[ends] = order[starts]
    next_N = np.empty(len(topic_N), np.int64)
    next_N[order] = successors
    return next_N


def _zipf(rng: np.random.Generator, num_values: int, size: int, exponent: float) -> np.ndarray:
    weights = 1.0 / np.arange(1, num_values + 1) ** exponent
    return rng.choice(num_values, size, p=weights / weights.sum())


def _ids(prefix: str, size: int) -> pa.Array:
    width = len(str(max(size - 1, 1)))
    return pa.array([f"{prefix}{number:0{width}d}" for number in range(size)], pa.string())


def _items(
    rng: np.random.Generator,
    topic_N: np.ndarray,
    birth_N: np.ndarray,
    death_N: np.ndarray,
    duration_N: np.ndarray,
    origin: int,
    num_days: int,
    topics: int,
) -> pa.Table:
    never = death_N > num_days + 1
    num_items, vocabulary, common = len(topic_N), 24, 40
    words = np.array([a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES])
    words = rng.permutation(words)[np.arange(topics * vocabulary + common) % len(words)]
    own = words[common + topic_N[:, None] * vocabulary + rng.integers(0, vocabulary, (num_items, 6))]
    shared = words[rng.integers(0, common, (num_items, 6))]
    text = np.where(rng.random((num_items, 6)) < 0.8, own, shared)
    lengths = rng.integers(3, 7, num_items)
    titles = [" ".join(row[:length]) for row, length in zip(text.tolist(), lengths, strict=True)]
    channel = topic_N * 5 + rng.integers(0, 5, num_items)
    return conform(
        pa.table(
            {
                "item_id": _ids("i", num_items),
                "title": titles,
                "channel": [f"channel {number}" for number in channel],
                "topics": [[f"topic {number}"] for number in topic_N],
                "language": ["en"] * num_items,
                "duration_s": duration_N,
                "price": np.round(rng.lognormal(1.5, 0.6, num_items), 2),
                "published_at": pa.array(origin + birth_N * _DAY, pa.int64()).cast(TIMESTAMP),
                "retired_at": pa.array(origin + death_N * _DAY, pa.int64(), mask=never).cast(TIMESTAMP),
            }
        ),
        ITEMS,
    )


def _users(rng: np.random.Generator, num_users: int) -> pa.Table:
    pools = {
        "age_bucket": ("18-24", "25-34", "35-49", "50+"),
        "country": ("DE", "FR", "GB", "US"),
        "device": ("phone", "tablet", "tv", "web"),
    }
    profile = {name: rng.choice(np.array(values), num_users) for name, values in pools.items()}
    return conform(pa.table({"user_id": _ids("u", num_users), **profile}), USERS)
