"""Item ↔ SID table from a frozen quantizer.

reads   embeddings, quantizer; base: its SID table
writes  sids.parquet (item_id, codes list<int32>; sorted by item_id), space.json, report.json
run     python -m models.sids --params recipes/cpu_tiny.yaml --embeddings … --quantizer … --base= --out artifacts/sids

The tie-break digit, if the recipe has one, is the last level: items whose other codes are equal get digits 0, 1, 2 …
What holds for it:
* a known item never moves: with a base its rows are taken first-hand, retired ones too, and their digits stay taken;
* new items get the smallest free digit of their prefix, in the order of item_id, so a run does not depend on the order
  in which its items arrived. Across runs digits go by run first: the same items landed in one day or in two may get
  other digits, but once given a digit stays;
* past capacity items share the last digit (a collision): the index keeps all items behind one leaf.
"""

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from models.embeddings import Vectors
from models.quantizer import Quantizer
from models.sid_table import SidTable, bucket_sizes, describe_levels
from plumline import artifact
from plumline.errors import InputError, MixedReleaseError
from plumline.sid import SidSpace
from plumline.stage import Params, main


class SidsParams(Params):
    tie_break: int = Field(default=0, ge=0)
    """Codes of the last level that tells items of equal codes apart; 0: no such level."""

    @field_validator("tie_break")
    @classmethod
    def _tells_apart(cls, value: int) -> int:
        if value == 1:
            raise ValueError("a tie-break level of one code tells nothing apart; give 0 or at least 2")
        return value


def run(params: SidsParams, *, embeddings: Path, quantizer: Path, base: Path | None, out: Path) -> None:
    """Make the table of all items, or the base's table and its new items."""
    frozen = Quantizer.load(quantizer)
    known = None if base is None else _read_base(base, frozen, params)
    vectors = Vectors.load(embeddings)
    table = extend_table(known, vectors.item_ids, frozen.encode(vectors), frozen.codebooks, params.tie_break)
    table.save(out)
    artifact.write_json(out / "report.json", describe_table(table))


def extend_table(
    known: SidTable | None, item_ids: list[str], codes: np.ndarray, codebooks: tuple[int, ...], tie_break: int
) -> SidTable:
    """The table of known and further items. codes: (N, levels without tie-break) integers of item_ids, any order.

    Items that `known` holds keep its row whatever `codes` says. Raises InputError if item_ids repeat.
    """
    order = sorted(range(len(item_ids)), key=item_ids.__getitem__)
    for first, second in pairwise(order):
        if item_ids[first] == item_ids[second]:
            raise InputError(f"embeddings: item {item_ids[first]!r} stands there twice; item_id must be unique")
    rows: dict[str, tuple[int, ...]] = {} if known is None else dict(known.codes_of)
    taken: dict[tuple[int, ...], set[int]] = defaultdict(set)
    if tie_break:
        for row in rows.values():
            taken[row[:-1]].add(row[-1])
    prefixes = codes.tolist()
    for place in order:
        if item_ids[place] in rows:
            continue
        prefix = tuple(prefixes[place])
        if tie_break:
            digits = taken[prefix]
            digit = next((d for d in range(tie_break) if d not in digits), tie_break - 1)
            digits.add(digit)
            prefix = (*prefix, digit)
        rows[item_ids[place]] = prefix
    space = SidSpace((*codebooks, tie_break) if tie_break else codebooks)
    ids = sorted(rows)
    table = np.array([rows[item_id] for item_id in ids], np.int32).reshape(-1, space.num_levels)
    return SidTable(space, bool(tie_break), ids, table)


def describe_table(table: SidTable) -> dict[str, Any]:
    """Report of a table.

    num_items; uniqueness: share of items with a SID of their own, tie-break digit left out (as in PLUM, table 4);
    uniqueness_with_tie_break; collisions: items that share their full SID with another; largest_bucket: most items
    behind one full SID; levels: `describe_levels` of every level.
    """
    num_items = len(table.item_ids)
    buckets, prefix_buckets = bucket_sizes(table.codes), bucket_sizes(table.prefixes)
    return {
        "num_items": num_items,
        "uniqueness": float((prefix_buckets == 1).sum() / max(num_items, 1)),
        "uniqueness_with_tie_break": float((buckets == 1).sum() / max(num_items, 1)),
        "collisions": int((buckets > 1).sum()),
        "largest_bucket": int(buckets.max(initial=0)),
        "levels": describe_levels(table.codes, table.space.sizes),
    }


def _read_base(base: Path, frozen: Quantizer, params: SidsParams) -> SidTable:
    if Quantizer.load(base / "quantizer").digest != frozen.digest:
        raise MixedReleaseError(
            f"{base}: its SIDs are of another quantizer than the one given; adopt the base's quantizer, "
            "or leave the base out to make all SIDs anew"
        )
    known = SidTable.load(base / "sids")
    if known.space.sizes != ((*frozen.codebooks, params.tie_break) if params.tie_break else frozen.codebooks):
        raise InputError(
            f"sids.tie_break is {params.tie_break} but the SIDs of {base} have levels {known.space.sizes}; "
            "keep the base's value, or leave the base out to make all SIDs anew"
        )
    return known


if __name__ == "__main__":
    main(run, section="sids")
