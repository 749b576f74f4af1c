"""Item ↔ SID table from a frozen quantizer.

reads   embeddings, quantizer, histories; base: its SID table; previous: the SID table that a retraining follows
writes  sids.parquet (item_id, codes list<int32>; sorted by item_id), space.json, report.json (with previous: churn)
run     python -m models.semantic_ids.sids --params recipes/cpu_tiny.yaml --embeddings … --quantizer … --histories … \\
            --base= --previous= --out artifacts/sids

The tie-break digit, if the recipe has one, is the last level; it tells items of equal codes apart.
What holds for it:
* a known item never moves: with a base its rows are taken first-hand, retired ones too;
* `by: item_id` (the default): the digit is a hash of the item's id, so the row of an item depends on nothing but the
  item. However items arrive, in whatever order, batches or places, the table is the same, and nobody has to be asked
  which digits are taken. Two items of one prefix share a digit by chance of 1 / tie_break (a collision);
* `by: arrival`: new items get the smallest free digit of their prefix, in the order of item_id within a run, so fewer
  collide (only past capacity) and most digits are 0, so there is little to learn of them; items that arrive in other
  runs get other digits. After a retraining, an item whose prefix stayed keeps its digit;
* items of one full SID (a collision): the index keeps them all behind one leaf.
"""

import hashlib
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import field_validator

from models.semantic_ids.codebook_sizes import tie_break_size
from models.semantic_ids.frozen_quantizer import Quantizer
from models.semantic_ids.table import SidTable, bucket_sizes, describe_levels
from models.semantic_ids.vectors import VectorFile
from plumline import artifact
from plumline.errors import InputError, MixedReleaseError
from plumline.sid import SidSpace
from plumline.stage import Params, main

TieBreakBy = Literal["item_id", "arrival"]


class SidsParams(Params):
    tie_break: int | Literal["auto"] = 0
    """Capacity of a SID: codes of the last level, which tells items of equal codes apart; 0: no such level. `auto`: as
    many as the catalogue needs (`models.semantic_ids.codebook_sizes`), from 16; with a base the base's."""
    tie_break_by: TieBreakBy = "item_id"
    """What gives an item its digit: its id alone (one table for every order of arrival), or the order of arrival."""

    @field_validator("tie_break", mode="before")
    @classmethod
    def _tells_apart(cls, value: Any) -> Any:
        if value == "auto" or (type(value) is int and (value == 0 or value >= 2)):
            return value
        raise ValueError("a tie-break level of one code tells nothing apart; give auto, 0 or at least 2")


def run(
    params: SidsParams,
    *,
    embeddings: Path,
    quantizer: Path,
    histories: Path,
    base: Path | None,
    previous: Path | None,
    out: Path,
) -> None:
    """Make the table of all items, or the base's table and its new items; with previous, say what moved."""
    if base is not None and previous is not None:
        raise InputError(
            f"base and previous are both given ({base}, {previous}): a release either continues one, and moves "
            "nothing, or follows one with SIDs of its own; empty one of the two in params.yaml"
        )
    frozen = Quantizer.load(quantizer)
    known = None if base is None else _read_base(base, frozen, params)
    old = None if previous is None else SidTable.load(previous / "sids")
    file = VectorFile(embeddings)
    item_ids: list[str] = []
    codes = [np.zeros((0, len(frozen.codebooks)), np.int64)]
    for block, part in frozen.encode_blocks(file.blocks()):
        item_ids += block.item_ids
        codes.append(part)
    prefixes = np.concatenate(codes)
    table = extend_table(
        known,
        item_ids,
        prefixes,
        frozen.codebooks,
        _tie_break(params, prefixes, known, old),
        params.tie_break_by,
        digits=None if old is None else _digits_to_keep(old),
    )
    table.save(out)
    report = describe_table(table)
    trained = quantizer / "report.json"
    if trained.is_file() and "content_uniqueness" in (about := artifact.read_json(trained)):
        report["content_uniqueness"] = about["content_uniqueness"]
    if old is not None:
        report["churn"] = _describe_churn(old, table, quantizer, histories)
    artifact.write_json(out / "report.json", report)


def _tie_break(params: SidsParams, prefixes: np.ndarray, known: SidTable | None, old: SidTable | None) -> int:
    """Digits of the tie-break, 0 for none. By itself: the base's, or what is needed and no less than before."""
    if params.tie_break != "auto":
        return params.tie_break
    if known is not None:
        return known.space.sizes[-1] if known.tie_break else 0
    before = old.space.sizes[-1] if old is not None and old.tie_break else 0
    return max(tie_break_size(prefixes), before)


def extend_table(
    known: SidTable | None,
    item_ids: list[str],
    codes: np.ndarray,
    codebooks: tuple[int, ...],
    tie_break: int,
    by: TieBreakBy = "item_id",
    *,
    digits: dict[str, tuple[tuple[int, ...], int]] | None = None,
) -> SidTable:
    """The table of known and further items. codes: (N, levels without tie-break) integers of item_ids, any order.

    Items that `known` holds keep its row whatever `codes` says. digits: with `by` arrival, item → (prefix, digit) of
    the table before a retraining. Raises InputError if item_ids repeat.
    """
    order = sorted(range(len(item_ids)), key=item_ids.__getitem__)
    for first, second in pairwise(order):
        if item_ids[first] == item_ids[second]:
            raise InputError(f"embeddings: item {item_ids[first]!r} stands there twice; item_id must be unique")
    rows: dict[str, tuple[int, ...]] = {} if known is None else dict(known.codes_of)
    prefixes = codes.tolist()
    new = {item_ids[p]: tuple(prefixes[p]) for p in order if item_ids[p] not in rows}
    if not tie_break:
        rows |= new
    elif by == "item_id":
        rows |= {item_id: (*prefix, digit_of(item_id, tie_break)) for item_id, prefix in new.items()}
    else:
        _by_arrival(rows, new, tie_break, digits or {})
    space = SidSpace((*codebooks, tie_break) if tie_break else codebooks)
    ids = sorted(rows)
    table = np.array([rows[item_id] for item_id in ids], np.int32).reshape(-1, space.num_levels)
    return SidTable(space, bool(tie_break), ids, table)


def digit_of(item_id: str, tie_break: int) -> int:
    """The tie-break digit of an item that its id alone decides: a hash, even over 0 … tie_break - 1."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "big") % tie_break


def _by_arrival(
    rows: dict[str, tuple[int, ...]],
    new: dict[str, tuple[int, ...]],
    tie_break: int,
    digits: dict[str, tuple[tuple[int, ...], int]],
) -> None:
    """Add new items to rows with the smallest free digit of their prefix; past capacity they share the last one."""
    taken: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for row in rows.values():
        taken[row[:-1]].add(row[-1])
    kept = {i: digits[i][1] for i, prefix in new.items() if i in digits and digits[i][0] == prefix}
    for item_id, digit in kept.items():
        rows[item_id] = (*new[item_id], min(digit, tie_break - 1))
        taken[new[item_id]].add(min(digit, tie_break - 1))
    for item_id, prefix in new.items():
        if item_id not in kept:
            digit = next((d for d in range(tie_break) if d not in taken[prefix]), tie_break - 1)
            taken[prefix].add(digit)
            rows[item_id] = (*prefix, digit)


def describe_table(table: SidTable) -> dict[str, Any]:
    """Report of a table.

    num_items; uniqueness: share of items with a SID of their own, tie-break digit left out (as in PLUM, table 4);
    uniqueness_with_tie_break; collisions: items that share their full SID with another; largest_bucket: most items
    behind one full SID; levels: `describe_levels` of every level. The stage adds content_uniqueness, the quantizer's:
    the share of items that could be alone, since no other item has their content.
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


def _digits_to_keep(old: SidTable) -> dict[str, tuple[tuple[int, ...], int]]:
    return {item_id: (row[:-1], row[-1]) for item_id, row in old.codes_of.items()} if old.tie_break else {}


def _describe_churn(old: SidTable, table: SidTable, quantizer: Path, histories: Path) -> dict[str, Any]:
    """What a retraining moved, before and after its codes got the old names; traffic: events of the histories.

    num_known: items that both tables hold. before, after: `models.semantic_ids.alignment.churn`, a mapping a level.
    """
    from features.histories import item_counts
    from models.semantic_ids.alignment import churn, common_rows, undo

    names = [np.asarray(new) for new in artifact.read_json(quantizer / "alignment.json")["names"]]
    traffic = item_counts(histories)
    return {
        "num_known": len(common_rows(old, table.item_ids)[0]),
        "before": churn(old, table.item_ids, undo(names, table.prefixes), traffic),
        "after": churn(old, table.item_ids, table.prefixes, traffic),
    }


def _read_base(base: Path, frozen: Quantizer, params: SidsParams) -> SidTable:
    if Quantizer.load(base / "quantizer").digest != frozen.digest:
        raise MixedReleaseError(
            f"{base}: its SIDs are of another quantizer than the one given; adopt the base's quantizer, "
            "or leave the base out to make all SIDs anew"
        )
    known = SidTable.load(base / "sids")
    wanted = (params.tie_break,) if params.tie_break else ()
    if params.tie_break != "auto" and known.space.sizes != (*frozen.codebooks, *wanted):
        raise InputError(
            f"sids.tie_break is {params.tie_break} but the SIDs of {base} have levels {known.space.sizes}; "
            "keep the base's value, or leave the base out to make all SIDs anew"
        )
    return known


if __name__ == "__main__":
    main(run, section="sids")
