"""SidReport: what can be said of the Semantic IDs of one sealed release.

Reads sids/report.json, sids, quantizer/report.json and the catalogue of the release; the co-occurrence pairs of
artifacts/histories, which no release holds. Writes nothing; `monitoring.sid_page` draws it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.catalog import Catalog
from features.histories import read_pairs
from models.semantic_ids.atlas import Atlas, Prefix, draw_atlas, read_terms
from models.semantic_ids.quality import (
    Against,
    Bucket,
    bucket_histogram,
    category_labels,
    co_occurrence,
    largest_buckets,
    neighbour_purity,
    usage_curves,
)
from models.semantic_ids.table import SidTable, describe_levels
from plumline import artifact
from plumline.sid import SidSpace
from serving.release import Release

NUM_BUCKETS = 20
NUM_BUCKET_ITEMS = 10
_FIGURES = ("num_items", "uniqueness", "uniqueness_with_tie_break", "collisions", "largest_bucket")


@dataclass(frozen=True)
class SidReport:
    """The Semantic IDs of a release. Everything but the first three is ready for JSON.

    space: shape of a SID. tie_break: whether its last level is the tie-break digit. figures: num_items, uniqueness,
    uniqueness_with_tie_break, collisions, largest_bucket. levels: a mapping a level. churn: what a retraining moved,
    None for a release that followed none. reconstruction: modality → share of variance unexplained. co_occurrence,
    purity: `levels` or `kinds`, or None and `why`. curves: items a code, a list a level. histogram: bucket size →
    buckets, of full SIDs (`sid`) and without their last code (`prefix`). buckets: the largest of either. atlas: the
    first two levels.
    """

    release_id: str
    as_of: str
    space: SidSpace
    tie_break: bool
    figures: dict[str, Any]
    levels: list[dict[str, Any]]
    churn: dict[str, Any] | None
    reconstruction: dict[str, float] | None
    co_occurrence: dict[str, Any]
    purity: dict[str, Any]
    curves: list[list[int]]
    histogram: dict[str, list[dict[str, int]]]
    buckets: dict[str, list[dict[str, Any]]]
    atlas: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """One flat mapping."""
        fields = {name: value for name, value in vars(self).items() if name not in ("space", "figures", "curves")}
        return {
            **fields,
            **self.figures,
            "sizes": list(self.space.sizes),
            "levels": [{**level, "counts": curve} for level, curve in zip(self.levels, self.curves, strict=True)],
        }


def gather_sid_report(
    release: Release, histories: Path | None, *, max_prefixes: int | None = None, max_children: int | None = None
) -> SidReport:
    """Measure a release. histories: a finished artifact, or None. max_…: bounds of the atlas, None: all of it.

    Raises MissingArtifactError or CorruptArtifactError naming the file.
    """
    table = SidTable.load(release.path("sids"))
    report = artifact.read_json(release.path("sids") / "report.json")
    items = _rows_of(Catalog.load(release.path("catalog")).items, table.item_ids)
    labels = _Labels(table.space, items)
    atlas = draw_atlas(table.prefixes, read_terms(items), max_prefixes=max_prefixes, max_children=max_children)
    shorter = table.codes[:, :-1]
    return SidReport(
        release_id=release.release_id,
        as_of=release.as_of.isoformat(),
        space=table.space,
        tie_break=table.tie_break,
        figures={name: report.get(name) for name in _FIGURES},
        levels=_levels(table, report),
        churn=report.get("churn"),
        reconstruction=_reconstruction(release.path("quantizer") / "report.json"),
        co_occurrence=_co_occurrence(release, table, histories),
        purity=_purity(table.codes, items),
        curves=usage_curves(table.codes, table.space.sizes),
        histogram={"sid": _histogram(table.codes), "prefix": _histogram(shorter)},
        buckets={
            "sid": [labels.bucket(bucket) for bucket in largest_buckets(table.codes, NUM_BUCKETS)],
            "prefix": [labels.bucket(bucket) for bucket in largest_buckets(shorter, NUM_BUCKETS)],
        },
        atlas=labels.atlas(atlas),
    )


def _levels(table: SidTable, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The levels of report.json; what an older one does not say is measured."""
    measured = describe_levels(table.codes, table.space.sizes)
    reported = report.get("levels") or [{}] * len(measured)
    return [
        {"level": number, **found, **said}
        for number, (found, said) in enumerate(zip(measured, reported, strict=True), start=1)
    ]


def _rows_of(items: pa.Table, item_ids: list[str]) -> pa.Table:
    """Rows of the catalogue in the order of item_ids, nulls for an item that it lacks."""
    rows = pc.index_in(pa.array(item_ids, pa.string()), value_set=items.column("item_id").combine_chunks())
    found = items.drop_columns(["item_id"]).take(rows).append_column("item_id", pa.array(item_ids, pa.string()))
    return found.combine_chunks()


def _reconstruction(path: Path) -> dict[str, float] | None:
    return artifact.read_json(path).get("reconstruction") if path.exists() else None


def _co_occurrence(release: Release, table: SidTable, histories: Path | None) -> dict[str, Any]:
    if histories is None:
        return {
            "levels": None,
            "why": "there is no artifacts/histories here; it is what plumline daily and bootstrap leave behind",
        }
    manifest = artifact.verify(histories)
    about = {
        "as_of": manifest.arguments.get("as_of"),
        "of_this_release": artifact.read_manifest(release.path("sids")).parents.get("histories") == manifest.digest,
    }
    pairs, ids = read_pairs(histories), pa.array(table.item_ids, pa.string())
    ends = [pc.fill_null(pc.index_in(pairs.column(name), value_set=ids), -1) for name in ("item_a", "item_b")]
    left, right = (end.to_numpy().astype(np.int64) for end in ends)
    known = (left >= 0) & (right >= 0)
    weights = pairs.column("count").to_numpy()[known]
    levels = co_occurrence(table.codes, left[known], right[known], weights)
    about |= {"num_pairs": len(weights), "weight": int(weights.sum())}
    if not levels:
        why = f"none of {pairs.num_rows} pairs of artifacts/histories has both its items in this release"
        return {"levels": None, "why": why, **about}
    return {"levels": list(map(_against, levels)), "why": None, **about}


def _purity(codes: np.ndarray, items: pa.Table) -> dict[str, Any]:
    kinds = {
        kind: {
            "num_items": int((labels >= 0).sum()),
            "num_categories": len(np.unique(labels[labels >= 0])),
            "levels": list(map(_against, neighbour_purity(codes, labels))),
        }
        for kind, labels in category_labels(items).items()
    }
    if not kinds:
        return {"kinds": None, "why": "no item of the catalogue has a channel or a topic"}
    return {"kinds": kinds, "why": None}


def _histogram(codes: np.ndarray) -> list[dict[str, int]]:
    return [{"size": size, "buckets": buckets} for size, buckets in bucket_histogram(codes).items()]


def _against(one: Against) -> dict[str, Any]:
    return {"level": one.level, "share": one.share, "by_chance": one.by_chance, "lift": one.lift, "num": one.num}


@dataclass(frozen=True)
class _Labels:
    """Rows and codes as a reader knows them. items: the catalogue's rows in the order of the table."""

    space: SidSpace
    items: pa.Table

    def bucket(self, bucket: Bucket) -> dict[str, Any]:
        return {
            "sid": self.space.format(bucket.codes),
            "num_items": len(bucket.rows),
            "items": self.rows(bucket.rows[:NUM_BUCKET_ITEMS].tolist()),
        }

    def atlas(self, atlas: Atlas) -> dict[str, Any]:
        return {"num_prefixes": atlas.num_prefixes, "prefixes": [self.prefix(one) for one in atlas.prefixes]}

    def prefix(self, prefix: Prefix) -> dict[str, Any]:
        found = {
            "sid": self.space.format(prefix.codes),
            "num_items": prefix.num_items,
            "words": list(prefix.words),
            "examples": self.rows(list(prefix.examples)),
        }
        if len(prefix.codes) > 1:
            return found
        return {
            **found,
            "num_children": prefix.num_children,
            "children": [self.prefix(child) for child in prefix.children],
        }

    def rows(self, rows: list[int]) -> list[dict[str, Any]]:
        return [
            {"item_id": self._text("item_id", row), "title": self._text("title", row), "retired": self._retired(row)}
            for row in rows
        ]

    def _text(self, name: str, row: int) -> str | None:
        return self.items.column(name)[row].as_py() if name in self.items.column_names else None

    def _retired(self, row: int) -> bool:
        return bool(self._text("retired", row))
