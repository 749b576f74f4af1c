"""The best neighbours of every item, in CSR form: built, saved, mapped into memory, asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.memory.products import place_in_row
from plumline.errors import CorruptArtifactError, MissingArtifactError

_BLOCK = 4_000_000  # stored entries that are sorted together
_DENSE = 20  # items an entry up to which a place for every item costs less than sorting the entries


@dataclass(frozen=True, eq=False)
class Neighbours:
    """For every item its best neighbours.

    starts: (N + 1,) int64; row r has the entries starts[r] … starts[r+1]-1. items: (E,) int32 item numbers. weights:
    (E,) float32 above zero. Within a row by descending weight, then ascending item number.
    """

    starts: np.ndarray
    items: np.ndarray
    weights: np.ndarray

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.starts) - 1

    @staticmethod
    def best_of(blocks: Iterable[Any], k: int, allowed: np.ndarray | None = None) -> Neighbours:
        """The k best entries above zero of every row.

        blocks: scipy CSR matrices with sorted or unsorted columns, the rows 0 … N-1 in consecutive parts. allowed: (N,)
        bool, items that may be a neighbour; None: all.
        """
        starts, items, weights = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
        for block in blocks:
            row, item, weight = _best(block, k, allowed)
            starts.append(starts[-1][-1] + np.cumsum(np.bincount(row, minlength=block.shape[0])))
            items.append(item)
            weights.append(weight)
        return Neighbours(np.concatenate(starts), np.concatenate(items), np.concatenate(weights))

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of one item, (n,) int32, and their weights, (n,) float32, best first."""
        span = slice(int(self.starts[number]), int(self.starts[number + 1]))
        return self.items[span], self.weights[span]

    def scores(self, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The weighted sum of some rows; see `Entries.sums`. rows: (R,) item numbers, weights: (R,)."""
        return Entries.of([self], rows).sums(weights)[0]

    def save(self, folder: Path, name: str) -> None:
        """Write `<name>_starts.npy`, `<name>_items.npy`, `<name>_weights.npy`."""
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("starts", "items", "weights"):
            np.save(folder / f"{name}_{part}.npy", getattr(self, part), allow_pickle=False)

    @staticmethod
    def load(folder: Path, name: str) -> Neighbours:
        """Map saved ones into memory, read-only; processes that load the same folder share its pages.

        Raises MissingArtifactError, CorruptArtifactError.
        """
        starts, items, weights = [_map(folder / f"{name}_{part}.npy") for part in ("starts", "items", "weights")]
        if not len(starts) or int(starts[-1]) != len(items) or len(items) != len(weights):
            raise CorruptArtifactError(f"{folder}: the arrays of {name} do not belong together; run the memory stage")
        return Neighbours(starts, items, weights)


@dataclass(frozen=True, eq=False)
class Entries:
    """All entries of R rows in each of T tables of the same items, table after table, row after row.

    lengths: (T · R,) int64, entries of each row. cuts: (T + 1,) int64, where the entries of each table begin. places:
    (E,) int64, of each entry in its table. neighbours: (E,) int32.
    """

    tables: Sequence[Neighbours]
    lengths: np.ndarray
    cuts: np.ndarray
    places: np.ndarray
    neighbours: np.ndarray

    @staticmethod
    def of(tables: Sequence[Neighbours], rows: np.ndarray) -> Entries:
        """rows: (R,) item numbers."""
        rows = np.asarray(rows, np.int64)
        first = np.concatenate([table.starts.take(rows) for table in tables])
        lengths = np.concatenate([table.starts.take(rows + 1) for table in tables]) - first
        ends = lengths.cumsum()
        places = (first - ends + lengths).repeat(lengths)
        places += np.arange(len(places))
        cuts = np.zeros(len(tables) + 1, dtype=np.int64)
        if len(rows):
            cuts[1:] = ends[len(rows) - 1 :: len(rows)]
        found = Entries(tables, lengths, cuts, places, places)
        return replace(found, neighbours=np.concatenate([t.items.take(p) for t, p in found._by_table(places)]))

    def _by_table(self, of_entries: np.ndarray) -> Iterator[tuple[Neighbours, np.ndarray]]:
        bounds = self.cuts.tolist()
        return ((t, of_entries[a:b]) for t, a, b in zip(self.tables, bounds[:-1], bounds[1:], strict=True))

    def sums(self, weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each table the weighted sum of its rows. weights: (R,).

        That is the items of all these rows, (n,) int64 ascending, each once, and their sums, (n,) float64.
        """
        amounts = np.concatenate([table.weights.take(places) for table, places in self._by_table(self.places)])
        amounts = amounts * np.tile(np.asarray(weights, np.float64), len(self.tables)).repeat(self.lengths)
        number = self.tables[0].num_rows
        ends = number * np.arange(1, len(self.tables) + 1)
        keys = self.neighbours + (ends - number).repeat(np.diff(self.cuts))  # those of each table beside one another
        if ends[-1] > _DENSE * len(keys):
            found, group = np.unique(keys, return_inverse=True)
            sums = np.bincount(group, weights=amounts, minlength=len(found))
        else:
            there = np.zeros(ends[-1], dtype=bool)
            there[keys] = True
            found = there.nonzero()[0]
            sums = np.bincount(keys, weights=amounts, minlength=len(there))[found]
        cuts = [0, *np.searchsorted(found, ends).tolist()]
        return [
            (found[start:stop] - at, sums[start:stop])
            for at, start, stop in zip((ends - number).tolist(), cuts[:-1], cuts[1:], strict=True)
        ]

    def of_items(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The entries whose neighbour is one of some items: table, row (0 … R-1), which of the items, and weight.

        items: (n,) item numbers, each once; one beyond the last row is nobody's neighbour. Returns (h,) each.
        """
        order = np.argsort(items)
        ascending, number = items[order], self.tables[0].num_rows
        if number > _DENSE * len(self.neighbours):
            at = np.searchsorted(ascending, self.neighbours)
            wanted = np.append(ascending, -1)[at] == self.neighbours
        else:
            there = np.zeros(number, dtype=bool)
            there[items[items < number]] = True
            wanted = there.take(self.neighbours)
        hits = wanted.nonzero()[0]
        which = order[np.searchsorted(ascending, self.neighbours[hits])]
        line = np.searchsorted(self.lengths.cumsum(), hits, side="right")
        table, row = np.divmod(line, max(len(self.lengths) // len(self.tables), 1))
        places, cuts = self.places[hits], np.searchsorted(table, np.arange(len(self.tables) + 1)).tolist()
        parts = zip(self.tables, cuts[:-1], cuts[1:], strict=True)
        return table, row, which, np.concatenate([one.weights.take(places[a:b]) for one, a, b in parts])


def row_blocks(starts: np.ndarray, size: int = _BLOCK) -> Iterator[slice]:
    """Consecutive slices of rows with about `size` entries each, at least one row. starts: (N + 1,) as of a CSR."""
    row, last = 0, len(starts) - 1
    while row < last:
        stop = int(np.searchsorted(starts, starts[row] + size, side="right")) - 1
        stop = min(max(stop, row + 1), last)
        yield slice(row, stop)
        row = stop


def _best(block: Any, k: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, items, weights of the k best entries of each row, in order."""
    row = np.repeat(np.arange(block.shape[0], dtype=np.int32), np.diff(block.indptr))
    item, weight = block.indices.astype(np.int32, copy=False), block.data.astype(np.float32, copy=False)
    kept = weight > 0
    if allowed is not None:
        kept &= allowed[item]
    row, item, weight = row[kept], item[kept], weight[kept]
    order = _order(row, item, weight)
    row, item, weight = row[order], item[order], weight[order]
    first = place_in_row(row, block.shape[0]) < k
    return row[first], item[first], weight[first]


def _order(row: np.ndarray, item: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """np.lexsort((item, -weight, row)) in a fraction of its time, as two sorts of one number each.

    row, item: below 2^31. weight: float32 above zero, whose bits ascend as it does.
    """
    key = (row.astype(np.int64) << 32) | (0xFFFFFFFF - weight.view(np.uint32).astype(np.int64))
    order = np.argsort(key)
    key = key[order]
    new = np.concatenate([[True], key[1:] != key[:-1]])
    places = np.flatnonzero(~new | ~np.append(new[1:], True))  # of equals
    ties = order[places]
    order[places] = ties[np.argsort((np.cumsum(new)[places] << 32) | item[ties])]
    return order


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # a memmap is slow to index
    except FileNotFoundError:
        raise MissingArtifactError(f"{path}: no such file; run the memory stage") from None
    except (ValueError, OSError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: unreadable npy ({error}); run the memory stage again") from None
