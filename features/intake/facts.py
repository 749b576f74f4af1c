"""What the home decided with earlier deliveries, so that the next one is read alike or refused with that one's name.

    facts = gather_facts(Path("data/landing"))      of all landed batches; Facts() where there is none
    facts.ids["item_id"], facts.tags["tag_size"], facts.lengths["emb_image"], facts.times["events.timestamp"]

A batch that carries its facts in its manifest (`arguments["facts"]`, `Facts.to_json`) is not opened. Of another one
only schemas and a few thousand ids are read, so that a home of a thousand batches takes seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.batches import ITEMS_FILE, USERS_FILE, Batch, list_batches
from features.intake.ids import ID_COLUMNS, IdForms, forms_of
from features.intake.words import is_listed, is_numeric, is_textual

TAG_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "lists of text": pa.list_(pa.string()),
    "numbers": pa.float64(),
    "booleans": pa.bool_(),
}
"""How messages call the types that a tag may have."""

_SAMPLE = 2000  # ids of a file


@dataclass(frozen=True)
class Known:
    """Something that was decided before. source: the delivery that did, as a message calls it."""

    value: str
    source: str


@dataclass(frozen=True)
class Facts:
    """What is decided.

    ids: id column → its forms. tags: column → name of its type (`TAG_TYPES`). lengths: `emb_*` column → its length, as
    text. times: "events.timestamp" → how it was read ("day first", "epoch seconds"). days: first and last UTC day with
    events, and `days_source`, the delivery with the most recent of them.
    """

    ids: Mapping[str, IdForms] = field(default_factory=dict)
    tags: Mapping[str, Known] = field(default_factory=dict)
    lengths: Mapping[str, Known] = field(default_factory=dict)
    times: Mapping[str, Known] = field(default_factory=dict)
    days: tuple[date, date] | None = None
    days_source: str = ""

    def __add__(self, later: Facts) -> Facts:
        """With what came later: forms of ids add up, of everything else the first stays."""
        ids = dict(self.ids)
        for name, forms in later.ids.items():
            ids[name] = ids[name] + forms if name in ids else forms
        days = [day for pair in (self.days, later.days) if pair for day in pair]
        is_later = later.days is not None and (self.days is None or later.days[1] > self.days[1])
        return Facts(
            ids=ids,
            tags={**later.tags, **self.tags},
            lengths={**later.lengths, **self.lengths},
            times={**later.times, **self.times},
            days=(min(days), max(days)) if days else None,
            days_source=later.days_source if is_later else self.days_source,
        )

    def to_json(self) -> dict[str, Any]:
        """For a batch's manifest: without sources and days, which the batch knows itself."""
        ids = {name: [f.plain, f.whole, f.dotted, f.other] for name, f in sorted(self.ids.items())}
        known = {"tags": self.tags, "lengths": self.lengths, "times": self.times}
        values = {name: {key: k.value for key, k in sorted(mapping.items())} for name, mapping in known.items()}
        return {"ids": ids, **values}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str) -> Facts:
        """What `to_json` gave, of the delivery that `source` calls."""

        def known(name: str) -> dict[str, Known]:
            return {key: Known(str(value), source) for key, value in raw.get(name, {}).items()}

        ids: dict[str, list[int]] = raw.get("ids", {})
        forms = {name: IdForms(n[0], n[1], n[2], n[3], source) for name, n in ids.items()}
        return cls(ids=forms, tags=known("tags"), lengths=known("lengths"), times=known("times"))


def tag_type(kind: pa.DataType) -> str | None:
    """What messages call the type of a column of tags; None for one that no tag may have (and for nulls)."""
    if pa.types.is_boolean(kind):
        return "booleans"
    if is_textual(kind):
        return "text"
    if is_numeric(kind):
        return "numbers"
    if is_listed(kind):
        return None if pa.types.is_nested(kind.value_type) else "lists of text"
    return "text" if pa.types.is_temporal(kind) or pa.types.is_binary(kind) else None


def gather_facts(landing: Path, without: Collection[str] = ()) -> Facts:
    """What all landed batches decided, in the order of delivery. without: ids of batches that do not count."""
    facts = Facts()
    for batch in list_batches(landing):
        if batch.id not in without:
            facts += _facts_of(batch)
    return facts


def name_of(batch: Batch) -> str:
    """What messages call a landed delivery."""
    source = batch.manifest.arguments.get("source")
    return f"delivery {batch.id} ({source})" if source else f"delivery {batch.id}"


def _facts_of(batch: Batch) -> Facts:
    source = name_of(batch)
    cached = batch.manifest.arguments.get("facts")
    facts = Facts.from_json(cached, source) if cached else _look_into(batch, source)
    days = sorted(batch.day_files())
    return replace(facts, days=(days[0], days[-1]), days_source=source) if days else facts


def _look_into(batch: Batch, source: str) -> Facts:
    names = [name for name in (ITEMS_FILE, USERS_FILE) if batch.holds(name)]
    days = list(batch.day_files().values())
    names += dict.fromkeys([*days[:1], *days[-1:]])
    facts = Facts()
    for name in names:
        with pq.ParquetFile(batch.folder / name) as file:
            schema = file.schema_arrow
            ids = [column for column in ID_COLUMNS if column in schema.names and column != "event_id"]
            facts += Facts(ids={column: forms_of(_head(file, column), source) for column in ids})
            if name == ITEMS_FILE:
                facts += _schema_facts(schema, source)
    return facts


def _head(file: pq.ParquetFile, column: str) -> pa.Array:
    first = next(iter(file.iter_batches(_SAMPLE, columns=[column], use_threads=False)), None)
    return pa.array([], pa.string()) if first is None else first.column(0)


def _schema_facts(schema: pa.Schema, source: str) -> Facts:
    tags = {f.name: tag_type(f.type) for f in schema if f.name.startswith("tag_")}
    lengths = {f.name: str(f.type.list_size) for f in schema if pa.types.is_fixed_size_list(f.type)}
    return Facts(
        tags={name: Known(named, source) for name, named in tags.items() if named},
        lengths={name: Known(length, source) for name, length in lengths.items()},
    )
