"""Stage `index`: the SIDs that may be generated, as a trie in CSR form, and the items behind each of them.

    reads   catalog (items.parquet), sids (sids.parquet, space.json)
    writes  index.json, level_<l>_codes.npy, level_<l>_children.npy, level_<l>_items.npy, item_rows.npy, items.parquet
    run     python -m models.retrieval.index --params recipes/cpu_tiny.yaml --catalog artifacts/catalog \\
                --sids artifacts/sids --out artifacts/index

The trie itself is `models/retrieval/csr.py`, with items `models/retrieval/segment.py`; `models/retrieval/beam.py`
searches it. Retired items are not in the index.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from features.catalog import Catalog
from models.retrieval.segment import Segment, index_items
from models.semantic_ids.table import SidTable
from plumline.errors import RefusedError
from plumline.stage import Params, main, say
from plumline.tables import column


class IndexParams(Params):
    """The stage has no knob yet."""


def run(params: IndexParams, *, catalog: Path, sids: Path, out: Path) -> None:
    """Index the SIDs of all live items.

    Items that share a SID stand newest first (`first_seen_day`, ties by item_id): the tie-break level keeps older ones
    apart already. A live item without a SID is left out, counted and said, not invented.
    Raises RefusedError if no live item has a SID.
    """
    items = Catalog.load(catalog).items
    table = SidTable.load(sids)
    row_of = {item: row for row, item in enumerate(table.item_ids)}
    retired = items.column("retired").to_numpy()
    rows = np.array([row_of.get(item, -1) for item in column(items, "item_id")], dtype=np.int64)
    live = ~retired & (rows >= 0)
    num_without_sid = int((~retired & (rows < 0)).sum())
    if num_without_sid:
        say(f"index: {num_without_sid} live items have no SID and cannot be recommended; run the sids stage again")
    if not live.any():
        raise RefusedError(
            f"{catalog}: none of {len(items)} items is live and has a SID ({int(retired.sum())} are retired); "
            "an empty index would recommend nothing; land items first"
        )
    codes = np.asarray(table.codes)[rows[live]]
    Segment.build(index_items(items.filter(pa.array(live))), codes, table.space.sizes).save(out)


if __name__ == "__main__":
    main(run, section="index")
