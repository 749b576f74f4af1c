"""The first as_of of a log: early enough that something is held out to score on, late enough to learn from the rest.

What is scored are requests, a user and a day each (stage `histories`, QUERIES), of the `eval_days` days after as_of. A
standard error of a percent or so wants 500 of them; a log that thins out at its end has few in its last two weeks, and
more before. Counted are the events that show interest as far as their columns say so; what the recipe's reward makes
of them is not looked at.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.histories import NO, HistoriesParams
from plumline.errors import InputError
from plumline.stage import load_params
from plumline.tables import read_parquet

ENOUGH = 500
"""Requests that are held out where the log has them."""
_LAST_DAYS = 14
_SHARE = 5
"""A log shorter than ten weeks holds out a fifth of its days, one with few requests a fifth of these."""
_COLUMNS = ("user_id", "item_id", "action", "watch_ratio", "quantity")


def holdout_as_of(days: Mapping[date, Sequence[Path]], items: pa.Array, recipe: Path) -> date:
    """A first as_of for these partitions.

    days: UTC day → files of its events. items: ids of all items. The last day with events that leaves the last two
    weeks, or the last fifth of a shorter log, and 500 requests with not more than half of the events; of a log that has
    no such day the last that leaves a fifth of its requests, and else the day that leaves the most.
    Raises InputError if there is no day to learn from and one to score on.
    """
    known = sorted(days)
    if len(known) < 2:
        raise InputError(
            f"events of {len(known)} day{'' if len(known) == 1 else 's'}; two are needed, one to learn from and one to "
            "score on: give a longer log"
        )
    params = load_params(recipe, "histories", HistoriesParams)
    requests = _Requests(days, items, params)
    latest = known[-1] - timedelta(days=min(_LAST_DAYS, max(1, (known[-1] - known[0]).days // _SHARE)))
    candidates = [day for day in reversed(known[:-1]) if day <= latest] or [known[0]]
    if requests.after(candidates[0]) >= ENOUGH:  # the usual log: nothing more is read than these days
        return candidates[0]
    half = _half(days)
    for enough in (ENOUGH, min(ENOUGH, -(-requests.total() // _SHARE))):
        found = next((day for day in candidates if day >= half and requests.after(day) >= enough), None)
        if found is not None:
            return found
    span = max(0, (latest - known[0]).days)
    every = [known[0] + timedelta(days=n) for n in range(span, -1, -1)]  # of equal ones the last is taken
    return max(every, key=requests.after)


def _half(days: Mapping[date, Sequence[Path]]) -> date:
    """The first day by which half of the events are over."""
    rows = {day: sum(pq.read_metadata(path).num_rows for path in days[day]) for day in sorted(days)}
    sums = np.cumsum(list(rows.values()))
    return list(rows)[int(np.searchsorted(sums, sums[-1] / 2))]


class _Requests:
    """Requests a day: users with an event that shows interest in a known item. Files are read when they are asked."""

    def __init__(self, days: Mapping[date, Sequence[Path]], items: pa.Array, params: HistoriesParams) -> None:
        self._files, self._items, self._params = days, items, params
        self._days = sorted(days)
        self._found: dict[date, int] = {}

    def after(self, day: date) -> int:
        """Requests of the days that are scored if this one is as_of."""
        last = day + timedelta(days=self._params.eval_days)
        return sum(map(self._of, self._days[bisect_right(self._days, day) : bisect_right(self._days, last)]))

    def total(self) -> int:
        """Requests of all days."""
        return sum(map(self._of, self._days))

    def _of(self, day: date) -> int:
        if day not in self._found:
            users: set[str] = set()
            for path in self._files[day]:
                events = read_parquet(path, _COLUMNS)
                events = events.filter(_shows_interest(events, self._items, self._params))
                users.update(pc.unique(events.column("user_id")).to_pylist())
            self._found[day] = len(users)
        return self._found[day]


def _shows_interest(events: pa.Table, items: pa.Array, params: HistoriesParams) -> pa.ChunkedArray:
    """Which events stage `histories` would ask for, as far as one row says. Shape (num_rows,), bool."""
    worths = dict.fromkeys(NO, 0.0) | dict(params.action_worth)
    no = pa.array([name for name, worth in worths.items() if worth <= 0], pa.string())
    shows = pc.and_(
        pc.is_in(events.column("item_id"), value_set=items),
        pc.and_(
            pc.fill_null(pc.greater(events.column("quantity"), 0), True),
            pc.invert(pc.is_in(pc.utf8_lower(events.column("action")), value_set=no)),
        ),
    )
    if params.positive_actions:
        wanted = pa.array(list(params.positive_actions), pa.string())
        shows = pc.and_(shows, pc.is_in(events.column("action"), value_set=wanted))
    if params.min_watch_ratio is not None:
        watched = pc.greater_equal(events.column("watch_ratio"), params.min_watch_ratio)
        shows = pc.and_(shows, pc.fill_null(watched, False))
    return shows
