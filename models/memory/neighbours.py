"""The best neighbours of every item, in CSR form: built, saved, mapped into memory, asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
        """The weighted sum of some rows. rows: (R,) item numbers, weights: (R,).

        Returns the items of all these rows, (n,) int64 ascending, each once, and their sums, (n,) float64.
        """
        place, lengths = self._entries(rows)
        neighbours = self.items[place].astype(np.int64)
        amounts = self.weights[place] * np.repeat(np.asarray(weights, np.float64), lengths)
        if self.num_rows > _DENSE * len(neighbours):
            items, group = np.unique(neighbours, return_inverse=True)
            return items, np.bincount(group, weights=amounts, minlength=len(items))
        there = np.zeros(self.num_rows, dtype=bool)
        there[neighbours] = True
        items = np.flatnonzero(there)
        return items, np.bincount(neighbours, weights=amounts, minlength=self.num_rows)[items]

    def weights_of(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(R, n) float64: the weight of some items in each of some rows, 0 where one is not among a row's neighbours.

        rows: (R,) item numbers, items: (n,) item numbers, each once; one beyond the last row is nobody's neighbour.
        """
        place, lengths = self._entries(rows)
        neighbours = self.items[place]
        order = np.argsort(items)
        ascending = items[order].astype(neighbours.dtype)  # of one type: searched without a copy of all neighbours
        if self.num_rows > _DENSE * len(neighbours):
            at = np.searchsorted(ascending, neighbours)
            hits = np.flatnonzero(np.append(ascending, -1)[at] == neighbours)
        else:
            wanted = np.zeros(self.num_rows, dtype=bool)
            wanted[items[items < self.num_rows]] = True
            hits = np.flatnonzero(wanted[neighbours])
        column = order[np.searchsorted(ascending, neighbours[hits])]
        found = np.zeros((len(rows), len(items)))
        found[np.searchsorted(np.cumsum(lengths), hits, side="right"), column] = self.weights[place[hits]]
        return found

    def _entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of all entries of some rows, row after row, and how many each row has."""
        rows = np.asarray(rows, np.int64)
        first = np.asarray(self.starts[rows])
        lengths = self.starts[rows + 1] - first
        place = np.repeat(first - np.cumsum(lengths) + lengths, lengths)
        place += np.arange(len(place))
        return place, lengths

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
    order = np.lexsort((item, -weight, row))
    row, item, weight = row[order], item[order], weight[order]
    first = place_in_row(row, block.shape[0]) < k
    return row[first], item[first], weight[first]


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)  # a memmap is slow to index
    except FileNotFoundError:
        raise MissingArtifactError(f"{path}: no such file; run the memory stage") from None
    except (ValueError, OSError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: unreadable npy ({error}); run the memory stage again") from None
