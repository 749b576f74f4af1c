"""Drift: has a distribution moved further than two samples of one distribution would?

Reads served answers of the judged day and of the days before it, both spelt in the SIDs of one release, so that a
retrained quantizer is no drift. Writes nothing.

The measure is the population stability index, PSI = Σ_b (c_b − r_b) ln(c_b / r_b) over shares r (reference) and c
(current) of bin b, zero shares read as 0.0001 as Evidently does. On SID codes its value without any drift grows with
codes / rows (0.52 at 2,048 codes and 5,000 rows), and a chi-square test calls every day a drift. So the limit is the
larger of `max_psi` and a noise floor found by shuffling: whole answers are dealt at random to the two sides, and the
99th percentile of the PSI of such deals is what chance can do. Whole answers, because the items of one answer resemble
each other; shuffling single codes would understate the noise.
"""

from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from monitoring.health import MonitorParams, ServedItems, answers
from plumline.stage import hash_seed

ZERO_SHARE = 1e-4
NUM_DEALS = 100
NOISE_QUANTILE = 0.99
MAX_ROWS = 100_000
NUM_POPULAR = 200
LENGTH_EDGES = (1, 2, 3, 5, 9, 17, 33, 65, 129)


@dataclass(frozen=True)
class Drift:
    """One compared distribution. limit = max(max_psi, noise_floor); score = psi / limit, so that 1 is the limit."""

    name: str
    psi: float
    noise_floor: float
    limit: float
    num_reference: int
    num_current: int

    @property
    def score(self) -> float:
        """PSI in units of its limit."""
        return self.psi / self.limit

    @property
    def drifted(self) -> bool:
        """Whether the limit is passed."""
        return self.score > 1


@dataclass(frozen=True)
class Sample:
    """Rows of one side. bins: (n,) int64 bin of each row. groups: (n,) int64, rows that belong together."""

    bins: np.ndarray
    groups: np.ndarray

    @classmethod
    def of_rows(cls, bins: np.ndarray) -> "Sample":
        """Rows that are independent of each other."""
        return cls(np.asarray(bins, dtype=np.int64), np.arange(len(bins)))


def psi(reference_counts: np.ndarray, current_counts: np.ndarray) -> np.ndarray:
    """Population stability index of counts. Both (…, B) and not all zero; returns (…)."""
    reference = np.maximum(reference_counts / reference_counts.sum(axis=-1, keepdims=True), ZERO_SHARE)
    current = np.maximum(current_counts / current_counts.sum(axis=-1, keepdims=True), ZERO_SHARE)
    return np.sum((current - reference) * np.log(current / reference), axis=-1)


def compare(name: str, reference: Sample, current: Sample, num_bins: int, *, max_psi: float, seed: int) -> Drift | None:
    """PSI of two samples over bins 0 … num_bins − 1 with its limit; None if a side is empty."""
    if not len(reference.bins) or not len(current.bins):
        return None
    rng = np.random.default_rng(seed)
    reference, current = _thin(reference, rng), _thin(current, rng)
    sides = [np.bincount(side.bins, minlength=num_bins) for side in (reference, current)]
    floor = _noise_floor(reference, current, num_bins, rng)
    return Drift(
        name=name,
        psi=float(psi(*sides)),
        noise_floor=floor,
        limit=max(max_psi, floor),
        num_reference=len(reference.bins),
        num_current=len(current.bins),
    )


def _thin(sample: Sample, rng: np.random.Generator) -> Sample:
    """Keep whole groups up to about MAX_ROWS rows."""
    if len(sample.bins) <= MAX_ROWS:
        return sample
    names, of_row = np.unique(sample.groups, return_inverse=True)
    keep = rng.random(len(names)) < MAX_ROWS / len(sample.bins)
    return Sample(sample.bins[keep[of_row]], sample.groups[keep[of_row]])


def _noise_floor(reference: Sample, current: Sample, num_bins: int, rng: np.random.Generator) -> float:
    _, reference_groups = np.unique(reference.groups, return_inverse=True)
    _, current_groups = np.unique(current.groups, return_inverse=True)
    num_reference = int(reference_groups.max()) + 1
    groups = np.concatenate([reference_groups, current_groups + num_reference])
    bins = np.concatenate([reference.bins, current.bins])
    num_groups = int(groups.max()) + 1
    total = np.bincount(bins, minlength=num_bins)
    values = []
    for _ in range(NUM_DEALS):
        is_reference = np.zeros(num_groups, dtype=bool)
        is_reference[rng.permutation(num_groups)[:num_reference]] = True
        counts = np.bincount(bins[is_reference[groups]], minlength=num_bins)
        if 0 < counts.sum() < total.sum():
            values.append(float(psi(counts, total - counts)))
    return float(np.quantile(values, NOISE_QUANTILE)) if values else float("inf")


def drift_of_day(
    reference: pa.Table, current: pa.Table, served_items: ServedItems, params: MonitorParams, *, day: date
) -> list[Drift]:
    """What moved between the traffic of the reference days and of `day`: codes a SID level, lengths, popularity.

    reference, current: TRAFFIC tables. Comparisons with an empty side are left out.
    """
    before, now = answers(reference), answers(current)
    found: list[Drift | None] = []

    def look(name: str, sides: list[Sample], num_bins: int) -> None:
        seed = hash_seed("drift", name, day)
        found.append(compare(name, sides[0], sides[1], num_bins, max_psi=params.max_psi, seed=seed))

    # 1. codes, level by level, of the items that the release knows
    known = [_known_items(side, served_items) for side in (before, now)]
    for level, size in enumerate(served_items.space.sizes):
        codes = served_items.codes[:, level]
        look(f"codes_level_{level + 1}", [Sample(codes[side.bins], side.groups) for side in known], size)
    # 2. lengths of the histories that were asked with
    look("history_length", [_lengths(side) for side in (before, now)], len(LENGTH_EDGES) + 1)
    # 3. which items: the reference's most served ones, and all others together
    num_items = max(len(served_items.item_ids), 1)
    counts = np.bincount(known[0].bins, minlength=num_items)
    popular = np.lexsort((np.arange(num_items), -counts))[:NUM_POPULAR]
    bin_of = np.full(num_items, len(popular))
    bin_of[popular] = np.arange(len(popular))
    look("popularity", [Sample(bin_of[side.bins], side.groups) for side in known], len(popular) + 1)
    return [drift for drift in found if drift is not None]


def drift_gauges(drifts: list[Drift]) -> dict[str, float]:
    """Scores (1 is the limit): `drift_codes` the worst level's, one a further comparison, `drift_score` the worst."""
    if not drifts:
        return {}
    gauges: dict[str, float] = {}
    for drift in drifts:
        name = "drift_codes" if drift.name.startswith("codes_") else f"drift_{drift.name}"
        gauges[name] = max(drift.score, gauges.get(name, 0.0))
    return {**gauges, "drift_score": max(gauges.values())}


def _known_items(served: pa.Table, served_items: ServedItems) -> Sample:
    lists = served.column("item_ids").combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    rows = served_items.rows_of(lists.flatten())
    groups = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return Sample(rows[rows >= 0], groups[rows >= 0])


def _lengths(served: pa.Table) -> Sample:
    lengths = served.column("history_length").drop_null().to_numpy()
    return Sample.of_rows(np.digitize(lengths, LENGTH_EDGES))
