"""An index that changes while it serves: an immutable base, a small delta, and what is gone.

Not a stage. An `Epoch` never changes: a request takes one and keeps it to its end. Adding and removing items makes the
next epoch in the time that its delta takes, not its base; answers are at every moment those of an index rebuilt from
scratch (tests/models/retrieval/test_live_index.py). `LiveIndex` holds the newest epoch, and rebuilds base and delta
into one in the background, never in place: what came in meanwhile is done again on the new base. No flow and no route
of the service feeds it yet.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
import pyarrow as pa

from models.retrieval.bits import Bits
from models.retrieval.rules import Rule, evaluate, explain
from models.retrieval.segment import Segment
from models.retrieval.trie import Allowed
from plumline.errors import InputError
from plumline.stage import say


@dataclass(frozen=True, eq=False)
class Epoch:
    """One state. delta: items added since the base was built. dead: positions of the base that are gone or replaced."""

    base: Segment
    delta: Segment | None = None
    dead: Bits | None = None
    number: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each level."""
        return self.base.index.sizes

    @property
    def num_items(self) -> int:
        """Items that may come out."""
        return len(self.base) - (len(self.dead) if self.dead else 0) + (len(self.delta) if self.delta else 0)

    def __contains__(self, item_id: object) -> bool:
        if self.delta is not None and item_id in self.delta.position_of:
            return True
        position = self.base.position_of.get(item_id)  # type: ignore[call-overload]
        return position is not None and not (self.dead is not None and position in self.dead)

    def item_ids(self) -> list[str]:
        """Every item that may come out, those of the delta last."""
        base: Iterable[str] = self.base.item_ids
        if self.dead is not None:
            base = (self.base.item_ids[position] for position in np.flatnonzero(~self.dead.mask()))
        return [*base, *(self.delta.item_ids if self.delta else [])]

    def add(self, items: pa.Table, codes: np.ndarray) -> Epoch:
        """The next epoch, with these items; one that is there already is replaced.

        items: as in `Segment.items` (columns may be missing); codes: (n, L). Raises InputError for an item without id
        or given twice, a column of another type or one that the index has not, or codes outside the space.
        """
        if len(items) == 0:
            return self
        if "item_id" not in items.column_names or items.column("item_id").null_count:
            raise InputError("items to add: every one needs an item_id")
        ids = items.column("item_id").to_pylist()
        if len(set(ids)) < len(ids):
            twice = next(item for item in ids if ids.count(item) > 1)
            raise InputError(f"item {twice!r} stands twice among those to add; give each item once")
        if len(codes) != len(ids):
            raise InputError(f"{len(ids)} items beside {len(codes)} SIDs; give one SID an item")
        kept = self.remove(ids)
        items = _like(items, self.base.items)
        if kept.delta is not None:
            items = pa.concat_tables([kept.delta.items, items])
            codes = np.concatenate([kept.delta.index.item_codes(), codes])
        return replace(kept, delta=Segment.build(items, codes, self.sizes), number=self.number + 1)

    def remove(self, item_ids: Collection[str]) -> Epoch:
        """The next epoch, without these items; unknown ones are ignored."""
        gone = self.base.positions(item_ids)
        dead = gone if self.dead is None else self.dead | gone
        delta = self.delta
        if delta is not None and len(leaving := delta.positions(item_ids)):
            stay = np.flatnonzero(~leaving.mask())
            codes = delta.index.item_codes()[stay]
            delta = Segment.build(delta.items.take(pa.array(stay)), codes, self.sizes) if len(stay) else None
        return replace(self, dead=dead if len(dead) else None, delta=delta, number=self.number + 1)

    def compacted(self) -> Epoch:
        """The same items in one base; this epoch if there is nothing to do, or no item left to build one of."""
        if (self.delta is None and self.dead is None) or self.num_items == 0:
            return self
        alive = np.arange(len(self.base)) if self.dead is None else np.flatnonzero(~self.dead.mask())
        items, codes = self.base.items.take(pa.array(alive)), self.base.index.item_codes()[alive]
        if self.delta is not None:
            items = pa.concat_tables([items, self.delta.items])
            codes = np.concatenate([codes, self.delta.index.item_codes()])
        return Epoch(Segment.build(items, codes, self.sizes), number=self.number + 1)

    def select(self, rule: Rule | None, *, at_ms: int, sets: Mapping[str, Collection[str]]) -> Allowed | None:
        """Which items a rule leaves; None: all of them. sets: item ids by the names that the rule may use.

        Cached by the rule, but for what depends on `sets`. Raises InputError if the rule asks what nobody knows.
        """
        if rule is None and self.dead is None:
            return None
        if rule is None:
            delta = None if self.delta is None else Bits.full(len(self.delta))
            return Allowed(self._alive, delta, "what is left of the index")
        base = _ask(rule, self.base, at_ms, sets)
        delta = None if self.delta is None else _ask(rule, self.delta, at_ms, sets)
        # Where nothing is dead, requests of one rule have one set: its ranks are counted once.
        return Allowed(base if self.dead is None else self._alive & base, delta, f"rule {rule}")

    def explain(self, rule: Rule, *, at_ms: int, sets: Mapping[str, Collection[str]]) -> str:
        """One line: how many items each part of the rule leaves."""
        places = [(self.base.tags, _positions(self.base, sets), self._alive)]
        if self.delta is not None:
            places.append((self.delta.tags, _positions(self.delta, sets), Bits.full(len(self.delta))))
        return explain(rule, places, at_ms=at_ms)

    @cached_property
    def _alive(self) -> Bits:
        return Bits.full(len(self.base)) if self.dead is None else ~self.dead

    def items_behind(
        self,
        codes: np.ndarray,
        allowed: Allowed | None,
        limit: int | None = None,
        leaves: np.ndarray | None = None,
        twins: np.ndarray | None = None,
    ) -> list[list[str]]:
        """Items behind each SID that are allowed, the newest first, at most `limit` of each. codes: (n, L).

        leaves, twins: (n,) leaf of each SID in the base and in the delta, -1 for none, for a caller who knows them.
        """
        base = _behind(self.base, codes, leaves, allowed.base if allowed else None, limit)
        if self.delta is None:
            return [[item for _, item in one] for one in base]
        delta = _behind(self.delta, codes, twins, allowed.delta if allowed else None, limit)
        return [[item for _, item in sorted([*a, *b])[:limit]] for a, b in zip(base, delta, strict=True)]

    def has_sids(self, codes: np.ndarray) -> np.ndarray:
        """Which SIDs an item has that may come out. codes: (n, L). Returns (n,) bool."""
        return np.array(
            [len(items) > 0 for items in self.items_behind(codes, self.select(None, at_ms=0, sets={}))], bool
        )


def _positions(segment: Segment, sets: Mapping[str, Collection[str]]) -> dict[str, Bits]:
    return {name: segment.positions(ids) for name, ids in sets.items()}


def _ask(rule: Rule, segment: Segment, at_ms: int, sets: Mapping[str, Collection[str]]) -> Bits:
    return evaluate(rule, segment.tags, at_ms=at_ms, sets=_positions(segment, sets))


def _behind(
    segment: Segment, codes: np.ndarray, leaves: np.ndarray | None, bits: Bits | None, limit: int | None
) -> list[list[tuple[int, str]]]:
    """(-day, item) of the first allowed items behind each SID, in order."""
    found: list[list[tuple[int, str]]] = []
    for places in segment.index.positions_behind(segment.index.find_leaves(codes) if leaves is None else leaves):
        allowed = islice((place for place in places if bits is None or place in bits), limit)
        found.append([(-int(segment.days[place]), segment.item_ids[place]) for place in allowed])
    return found


def _like(items: pa.Table, pattern: pa.Table) -> pa.Table:
    """The columns of a pattern in its order and types, null where there are none."""
    unknown = [name for name in items.column_names if name not in pattern.column_names]
    if unknown:
        raise InputError(
            f"items to add: the index has no column {unknown[0]}; it has {', '.join(pattern.column_names)}"
        )
    columns = []
    for wanted in pattern.schema:
        if wanted.name not in items.column_names:
            columns.append(pa.nulls(len(items), wanted.type))
            continue
        try:
            columns.append(items.column(wanted.name).cast(wanted.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"items to add: column {wanted.name} is no {wanted.type} ({error})") from None
    return pa.table(dict(zip(pattern.column_names, columns, strict=True)), schema=pattern.schema)


class LiveIndex:
    """The newest epoch, changed by one writer at a time and read by anyone without waiting.

    compact_at: a change starts a compaction in the background when the delta and what is dead come to so many items and
    to a tenth of the base; None: never by itself.
    """

    def __init__(self, base: Segment, *, compact_at: int | None = 50_000) -> None:
        self.epoch = Epoch(base)
        self._compact_at = compact_at
        self._lock = threading.Lock()
        self._since: list[Callable[[Epoch], Epoch]] | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def add(self, items: pa.Table, codes: np.ndarray) -> Epoch:
        """Make items decodable; see `Epoch.add`. Returns the epoch that holds them."""
        return self._change(lambda before: before.add(items, codes))

    def remove(self, item_ids: Collection[str]) -> Epoch:
        """Make items vanish; see `Epoch.remove`."""
        ids = frozenset(item_ids)
        return self._change(lambda before: before.remove(ids))

    def compact(self, *, wait: bool = True) -> None:
        """Work the delta and what is gone into a new base; one at a time.

        wait: come back when everything that was there at the call serves from a base. Raises what a compaction raised
        that was waited for; the epoch then stays, and so does what came meanwhile.
        """
        thread, began_here = self._start()
        if not wait:
            return
        thread.join()
        if not began_here:  # what ran already may not have seen the newest changes
            thread, _ = self._start()
            thread.join()
        if self._error is not None:
            raise self._error

    def _start(self) -> tuple[threading.Thread, bool]:
        """The thread that compacts, and whether it was begun just now."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return self._thread, False
            self._since, self._error = [], None
            self._thread = threading.Thread(target=self._compact, args=(self.epoch,), name="compact", daemon=True)
            self._thread.start()
            return self._thread, True

    def _change(self, step: Callable[[Epoch], Epoch]) -> Epoch:
        with self._lock:
            self.epoch = epoch = step(self.epoch)
            if self._since is not None:
                self._since.append(step)
        waiting = len(epoch.delta or ()) + len(epoch.dead or ())
        if self._compact_at is not None and waiting >= max(self._compact_at, len(epoch.base) // 10):
            self._start()
        return epoch

    def _compact(self, before: Epoch) -> None:
        try:
            after = before.compacted()
            with self._lock:
                for step in self._since or []:
                    after = step(after)
                self.epoch = replace(after, number=self.epoch.number + 1)
        except Exception as error:
            self._error = error
            say(f"index: a compaction failed, the epoch before it goes on serving: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._since = None
