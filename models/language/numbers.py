"""Numbers as tokens: buckets between quantiles, one token a bucket ("custom tokens for numerical features", PLUM 2.2).

Not a stage: `vocabulary` learns the edges from the histories and the catalogue and stores them; who writes a sequence
asks `Vocabulary.number_tokens`.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.catalog import Catalog
from plumline.schema import NUMBERS

ITEM_NUMBERS = ("item_price", "item_age_days", "duration_s")
"""Numbers of items; those of events are plumline.schema.NUMBERS."""

_MS_PER_DAY = 86_400_000
_EPOCH = np.datetime64("1970-01-01", "D")


@dataclass(frozen=True)
class Numbers:
    """The buckets of one number.

    first_id: token id of the first bucket. edges: value at which each further bucket begins, strictly increasing; the
    first bucket holds everything below edges[0], so there are len(edges) + 1.
    """

    first_id: int
    edges: tuple[float, ...]

    @property
    def num_buckets(self) -> int:
        """Tokens of this number."""
        return len(self.edges) + 1

    def tokens(self, values: np.ndarray) -> np.ndarray:
        """Token ids of values. values: (n,) float, NaN: not known. Returns (n,) int64, -1 for NaN."""
        with np.errstate(over="ignore"):  # histories hold float32, and what is compared must be what was learned
            single = np.asarray(values).astype(np.float32)
        bucket = np.searchsorted(np.asarray(self.edges, np.float32), single, side="right")
        return np.where(np.isnan(single), -1, self.first_id + bucket).astype(np.int64)


def quantile_edges(values: np.ndarray, num_buckets: int) -> tuple[float, ...]:
    """Edges that cut values into at most `num_buckets` buckets of about equal mass, none of them empty.

    values: (n,) float; what is not finite is left out. Every edge is one of the values. Equal values never part, so
    one that is very frequent fills a bucket alone and the others share what is left; with no more different values
    than buckets each value is a bucket. No edge at all where all values are alike: such a number tells nothing.
    """
    finite = np.asarray(values, np.float32)
    distinct, counts = np.unique(finite[np.isfinite(finite)], return_counts=True)
    if len(distinct) <= num_buckets:
        return tuple(distinct[1:].tolist())
    mass = np.cumsum(counts)
    edges: list[float] = []
    start, begun = 0, 0
    for left in range(num_buckets, 1, -1):
        wanted = begun + -(-(int(mass[-1]) - begun) // left)  # a fair share of what is left, rounded up
        stop = int(np.searchsorted(mass, wanted))
        if stop == start or wanted - mass[stop - 1] > mass[stop] - wanted:  # the cut that is nearer, behind `stop`
            stop += 1
        if stop == len(distinct):
            break
        edges.append(float(distinct[stop]))
        start, begun = stop, int(mass[stop - 1])
    return tuple(edges)


def learn_edges(histories: pa.Table, catalog: Catalog, num_buckets: int) -> dict[str, tuple[float, ...]]:
    """Number → edges, for every number that differs somewhere in the HISTORIES or the catalogue.

    Prices and durations count once an item, the numbers of events once an event. num_buckets below 2: none.
    """
    if num_buckets < 2:
        return {}
    values = {name: histories.column(name).combine_chunks().flatten().drop_null().to_numpy() for name in NUMBERS}
    values |= item_numbers(catalog, last_day(histories))
    edges = {name: quantile_edges(column, num_buckets) for name, column in values.items()}
    return {name: found for name, found in edges.items() if found}


def last_day(histories: pa.Table) -> date:
    """The UTC day of the last event of a HISTORIES table; 1970-01-01 if there is none."""
    last = pc.max(pc.list_flatten(histories.column("timestamps"))).as_py() or 0
    day: date = (_EPOCH + last // _MS_PER_DAY).item()
    return day


def item_numbers(catalog: Catalog, day: date) -> dict[str, np.ndarray]:
    """The numbers of items as they are on a day: name → (num_items,) float32 in row order, NaN where not known.

    item_age_days: days since the item was published or first seen, whichever came first; 0 for one that is to come.
    """
    items = catalog.items
    age = np.full(items.num_rows, np.nan)
    if "first_seen_day" in items.column_names:
        seen = items.column("first_seen_day").cast(pa.int32()).to_numpy(zero_copy_only=False).astype(np.float64)
        age = np.maximum((np.datetime64(day, "D") - _EPOCH).astype(int) - seen, 0.0)
    return {
        "item_price": _floats(items, "price"),
        "item_age_days": age.astype(np.float32),
        "duration_s": _floats(items, "duration_s"),
    }


def _floats(table: pa.Table, name: str) -> np.ndarray:
    values = table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)  # nulls become NaN
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
