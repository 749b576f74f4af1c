"""Health: what one day's served answers say about the service, judged against the release that answered.

Reads traffic rows (plumline.schema.TRAFFIC) and, of a sealed release, sids/ and catalog/. Writes nothing. The limits
that make a figure an alert are `MonitorParams`, recipe section `monitor`; the alerts themselves are alerts.py's.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.catalog import Catalog
from models.semantic_ids.table import SidTable
from plumline.errors import InputError
from plumline.sid import SidSpace
from plumline.stage import Params
from plumline.tables import column
from serving.release import Release


class MonitorParams(Params):
    """Limits of a day's figures: recipe section `monitor`. A limit that is passed is an alert, nothing is stopped."""

    max_invalid_served: int = 0
    """Items served whose SID is no item's SID."""
    max_retired_served: int = 0
    """Items served although the catalogue had retired them."""
    max_repeated_served: int = 0
    """Items served twice in one answer."""
    max_empty_percent: float = 1.0
    """Answers without an item, in percent of requests."""
    max_degraded_percent: float = 5.0
    """Answers by the fallback, in percent of requests."""
    max_latency_p99_ms: float = 1000.0
    """99th percentile of an answer's time, in milliseconds."""
    max_staleness_hours: float = 36.0
    """Hours since the last day that the model knows ended. A model replaced every day reaches 24 to 30."""
    min_requests: int = 0
    """Fewer answers a day than this are an alert; 0 watches nothing."""
    max_hallucination_percent: float = 10.0
    """SIDs that are no item's, of a search without the index (its codes are held to their level), in percent."""
    max_beam_false: int = 0
    """SIDs or items of the certified beam searches that were not allowed, or came twice."""
    max_beam_score_error: float = 1e-3
    """Largest difference between a beam's score and the exact one; more breaks the certificate."""
    max_beam_missed_percent: float = 10.0
    """Items of the true best list that the beams miss, in percent; more asks for a wider search."""
    min_sid_uniqueness_percent: float = 50.0
    """Items alone on their SID before the tie-break digit, in percent."""
    min_recall_over_popularity: float = 1.0
    """Recall@10 of what is served divided by that of popularity (lists with seen items kept)."""
    max_simple_methods_ahead: int = 0
    """Methods that train nothing (memory, own items, popularity, kNNs, STAR) and are ahead of what is served by more
    than two standard errors of the difference in recall@10 (lists with seen items kept)."""
    max_quarantined_rows: int | None = None
    """Event rows put aside by validation; empty watches nothing, since the events stage has a limit of its own."""
    max_reactions_put_aside_percent: float = 5.0
    """Reactions put aside by validation (of items that nobody landed, without an action, in files that cannot be read),
    in percent of the day's: a client that reports what is not so."""
    max_unreported_days: int | None = 3
    """Days between the report before and this one (the dashboard's time axis does not show such a gap); a few, since a
    day without events makes no release."""
    max_psi: float = 0.2
    """Population stability index that counts as drift, wherever noise alone reaches less (drift.py)."""
    reference_days: int = 7
    """Days of traffic before the judged day that it is compared with."""


@dataclass(frozen=True)
class ServedItems:
    """What a release may serve.

    release_id, as_of: of release.json. item_ids: (N,) string array, sorted. codes: (N, L) int64, the SID of each.
    space: how SIDs are spelt. retired: item ids that must not be served. titles: item id → title, where there is one.
    """

    release_id: str
    as_of: date
    item_ids: pa.Array
    codes: np.ndarray
    space: SidSpace
    retired: frozenset[str]
    titles: dict[str, str]

    @cached_property
    def retired_array(self) -> pa.Array:
        """The retired ids as an Arrow array, for is_in."""
        return pa.array(sorted(self.retired), pa.string())

    def rows_of(self, item_ids: pa.Array) -> np.ndarray:
        """Row of each item id, -1 where the release has no such item. Returns (n,) int64."""
        rows = pc.fill_null(pc.index_in(item_ids.cast(pa.string()), value_set=self.item_ids), -1)
        return rows.to_numpy(zero_copy_only=False).astype(np.int64)


def read_served_items(release: Release, tombstones: Collection[str] = ()) -> ServedItems:
    """The items of a sealed release. tombstones: ids deleted for good, whatever the release says.

    Raises MissingArtifactError or CorruptArtifactError naming the file.
    """
    table = SidTable.load(release.path("sids"))
    catalog = Catalog.load(release.path("catalog"))
    retired = set(catalog.item_ids).difference(catalog.live_ids())
    return ServedItems(
        release_id=release.release_id,
        as_of=release.as_of,
        item_ids=pa.array(table.item_ids, pa.string()),
        codes=table.codes.astype(np.int64),
        space=table.space,
        retired=frozenset(retired) | frozenset(tombstones),
        titles={i: title for i, title in zip(catalog.item_ids, column(catalog.items, "title"), strict=True) if title},
    )


@dataclass(frozen=True)
class Health:
    """One day of answers. Percentages are of requests; a figure that nothing was measured for is None.

    num_requests: answers. num_reactions: clicks, plays and so on. num_other_releases: answers of another release than
    the judged one; their SIDs cannot be looked up here. num_items: items in the answers that could be looked up.
    num_invalid: those of them served under a SID that is not theirs, or unknown to the release. num_unfit: items the
    model proposed and the service held back. num_repeated: items served twice in one answer. num_retired: items served
    that the catalogue or a tombstone forbids.
    """

    num_requests: int
    num_reactions: int
    num_other_releases: int
    num_items: int
    num_invalid: int
    num_unfit: int
    num_repeated: int
    num_retired: int
    empty_percent: float | None
    degraded_percent: float | None
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    staleness_hours: float

    @property
    def gauges(self) -> dict[str, float]:
        """Gauge name → value, without those that nothing was measured for (a gap is to look like a gap)."""
        measured: dict[str, float | None] = {
            "requests": self.num_requests,
            "empty_percent": self.empty_percent,
            "degraded_percent": self.degraded_percent,
            "latency_p50_ms": self.latency_p50_ms,
            "latency_p99_ms": self.latency_p99_ms,
            "staleness_hours": self.staleness_hours,
        }
        if self.num_requests:
            measured |= {"repeated_served": self.num_repeated, "retired_served": self.num_retired}
            measured["unfit_proposed"] = self.num_unfit
        if self.num_items:
            measured["invalid_served"] = self.num_invalid
            measured["valid_served_percent"] = 100 * (1 - self.num_invalid / self.num_items)
        return {name: float(value) for name, value in measured.items() if value is not None}


def staleness_hours(as_of: date, now: datetime) -> float:
    """Hours since the last day that the model knows ended. now: with a time zone (InputError without one)."""
    if now.tzinfo is None:
        raise InputError(f"now {now.isoformat()} has no time zone; pass a UTC time")
    end = datetime.combine(as_of + timedelta(days=1), time(), tzinfo=UTC)
    return (now - end).total_seconds() / 3600


def of_days(traffic: pa.Table, first: date, last: date) -> pa.Table:
    """The rows whose UTC day lies in [first, last]."""
    start = pa.scalar(datetime.combine(first, time(), tzinfo=UTC), traffic.schema.field("timestamp").type)
    stop = pa.scalar(
        datetime.combine(last + timedelta(days=1), time(), tzinfo=UTC), traffic.schema.field("timestamp").type
    )
    stamps = traffic.column("timestamp")
    return traffic.filter(pc.and_(pc.greater_equal(stamps, start), pc.less(stamps, stop)))


def answers(traffic: pa.Table) -> pa.Table:
    """The rows that are answers."""
    return traffic.filter(pc.equal(traffic.column("action"), "served"))


def judge_traffic(traffic: pa.Table, served_items: ServedItems, *, now: datetime) -> Health:
    """Figures of the traffic rows given. traffic: TRAFFIC columns; rows of one day as a rule."""
    served = answers(traffic)
    num_requests = served.num_rows
    lists = _lists(served, "item_ids")
    flat = lists.flatten()
    parents = pc.list_parent_indices(lists)
    pairs = pa.table({"answer": parents, "item": flat}).group_by(["answer", "item"]).aggregate([])
    own = pc.equal(served.column("release_id"), served_items.release_id)
    latencies = served.column("latency_ms").drop_null().to_numpy()
    degraded = pc.sum(pc.fill_null(served.column("degraded"), False)).as_py() or 0
    num_empty = pc.sum(pc.equal(pc.list_value_length(lists), 0)).as_py() or 0
    p50, p99 = np.percentile(latencies, [50, 99]).tolist() if len(latencies) else (None, None)
    return Health(
        num_requests=num_requests,
        num_reactions=traffic.num_rows - num_requests,
        num_other_releases=num_requests - (pc.sum(own).as_py() or 0),
        num_items=pc.sum(pc.list_value_length(served.filter(own).column("item_ids"))).as_py() or 0,
        num_invalid=_num_invalid(served.filter(own), served_items),
        num_unfit=pc.sum(served.column("num_invalid")).as_py() or 0,
        num_repeated=len(flat) - pairs.num_rows,
        num_retired=pc.sum(pc.is_in(flat, value_set=served_items.retired_array)).as_py() or 0,
        empty_percent=100 * num_empty / num_requests if num_requests else None,
        degraded_percent=100 * degraded / num_requests if num_requests else None,
        latency_p50_ms=p50,
        latency_p99_ms=p99,
        staleness_hours=staleness_hours(served_items.as_of, now),
    )


def _lists(table: pa.Table, name: str) -> Any:
    values = table.column(name).combine_chunks()
    return pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values


def _num_invalid(served: pa.Table, served_items: ServedItems) -> int:
    """Items of unknown or wrong SID. An answer without SIDs (a fallback) is judged by its items alone."""
    items, sids = _lists(served, "item_ids"), _lists(served, "sids")
    parents = pc.list_parent_indices(items).to_numpy(zero_copy_only=False)
    rows = served_items.rows_of(items.flatten())
    bad = rows < 0
    # 1. what each served item's SID must read
    known, spelt = np.unique(rows[~bad], return_inverse=True)
    texts = np.array([served_items.space.format(served_items.codes[row].tolist()) for row in known], dtype=object)
    wanted = np.full(len(rows), "", dtype=object)
    if len(known):
        wanted[~bad] = texts[spelt]
    # 2. compare it with what was said, in the answers that said one SID an item
    lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
    said = pc.fill_null(pc.list_value_length(sids), 0).to_numpy(zero_copy_only=False)
    comparable = said == lengths
    in_comparable = comparable[parents]
    said_texts = np.array(sids.filter(pa.array(comparable)).flatten().to_pylist(), dtype=object)
    bad[in_comparable] |= wanted[in_comparable] != said_texts
    # 3. SIDs that do not go with the items one to one: the whole answer is wrong
    bad |= ((said > 0) & ~comparable)[parents]
    return int(bad.sum())
