"""A set of SIDs as a trie in CSR form, with the items behind each SID: built, searched, saved, mapped into memory.

Not a stage: `retrieval/index.py` saves one, `retrieval/segment.py` puts items to it, `retrieval/trie.py` brings it to a
device. The offline half of STATIC (Sparse Transition Matrix-Accelerated Trie Index for Constrained Decoding: the prefix
tree flattened into compressed sparse rows). NumPy only, so that a worker that maps the files needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plumline.artifact import read_json, write_json
from plumline.errors import CorruptArtifactError, InputError, MissingArtifactError, RefusedError
from plumline.tables import column, read_parquet

_INDEX = "index.json"
ITEMS_FILE = "items.parquet"


@dataclass(frozen=True, eq=False)
class Index:
    """A trie over SIDs of L levels; the nodes of a depth are numbered in the lexicographic order of their codes.

    sizes: codes of each level, length L.
    codes: codes[l] (num_nodes(l+1),) integers: last code of each node of depth l+1.
    children: children[l] (num_nodes(l)+1,) integers: node n of depth l has the nodes children[l][n] …
        children[l][n+1]-1 of depth l+1 for children, in ascending order of their codes. Depth 0 is the root, depth L
        are the leaves.
    items: items[l] (num_nodes(l+1)+1,) integers: the items below node n of depth l+1 stand at the positions items[l][n]
        … items[l][n+1]-1. Positions number all items in the order of their leaves, and behind one leaf in the priority
        order, so that a set of items is a set of positions and a subtree is a range of them.
    item_rows: (N,) integers: row of the code table at each position.
    """

    sizes: tuple[int, ...]
    codes: tuple[np.ndarray, ...]
    children: tuple[np.ndarray, ...]
    items: tuple[np.ndarray, ...]
    item_rows: np.ndarray

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.sizes)

    @property
    def num_leaves(self) -> int:
        """Distinct SIDs."""
        return len(self.codes[-1])

    @property
    def num_items(self) -> int:
        """Rows behind all leaves together."""
        return len(self.item_rows)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays, on disk (but for the headers) as in memory."""
        return sum(array.nbytes for array in self._arrays().values())

    @staticmethod
    def build(codes: np.ndarray, sizes: tuple[int, ...], priority: np.ndarray | None = None) -> Index:
        """Build from any code table: unsorted, with duplicates.

        codes: (N, L) integers, codes[:, l] < sizes[l]. priority: (N,) sortable; the items behind one leaf stand in its
        ascending order, ties (and None) in the order of the rows. O(N log N), all in NumPy.
        Raises InputError if a code lies outside the space, RefusedError if there is no row at all.
        """
        codes = _check_codes(codes, sizes)
        if len(codes) == 0:
            raise RefusedError("no SID to index: an index needs at least one; look at the catalogue (all retired?)")
        # 1. Sort the rows by SID; a stable sort keeps the priority order among equal SIDs.
        order = np.arange(len(codes)) if priority is None else np.argsort(priority, kind="stable")
        order = order[_argsort_rows(codes[order], sizes)]
        codes = codes[order]
        # 2. A node of depth l+1 starts where any of the first l+1 codes differs from the row above.
        begins = np.zeros(len(codes), dtype=bool)
        begins[0] = True
        starts = np.zeros(1, dtype=np.int64)  # first row of each node of depth l; the root starts at row 0
        level_codes, level_children, level_items = [], [], []
        rows = _smallest(len(codes) + 1, at_least=np.int32)
        for level, size in enumerate(sizes):
            begins[1:] |= codes[1:, level] != codes[:-1, level]
            next_starts = np.flatnonzero(begins)
            # 3. Children of a node: from the rank of its first row among the starts one level below.
            pointers = np.append(np.searchsorted(next_starts, starts), len(next_starts))
            level_codes.append(codes[next_starts, level].astype(_smallest(size)))
            level_children.append(pointers.astype(_smallest(len(next_starts) + 1, at_least=np.int32)))
            level_items.append(np.append(next_starts, len(codes)).astype(rows))
            starts = next_starts
        return Index(
            sizes=tuple(sizes),
            codes=tuple(level_codes),
            children=tuple(level_children),
            items=tuple(level_items),
            item_rows=order.astype(rows),
        )

    def find_leaves(self, codes: np.ndarray) -> np.ndarray:
        """Leaf of each SID, -1 where the index does not hold it. codes: (M, L) integers. Returns (M,) int64."""
        *_, nodes = self._walk(codes)
        return nodes

    def depth_of(self, codes: np.ndarray) -> np.ndarray:
        """How many first codes of each row lead to something. codes: (M, L), any integers. Returns (M,) int64."""
        return np.stack([nodes >= 0 for nodes in self._walk(codes)]).sum(axis=0, dtype=np.int64)

    def _walk(self, codes: np.ndarray) -> Iterator[np.ndarray]:
        """Level by level the node that each row stands at, -1 from where there is none on. Yields (M,) int64."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != self.num_levels:
            raise InputError(f"codes of shape {codes.shape}: expected (M, {self.num_levels}), one column a level")
        nodes = np.zeros(len(codes), dtype=np.int64)
        for level in range(self.num_levels):
            alive = nodes >= 0
            parents = np.where(alive, nodes, 0)
            low = self.children[level][parents].astype(np.int64)
            end = self.children[level][parents + 1].astype(np.int64)
            wanted, last = codes[:, level], len(self.codes[level]) - 1
            high = end
            while (low < high).any():  # one binary search for all rows: ≤ log2(sizes[level]) + 1 rounds
                middle = (low + high) // 2
                less = (low < high) & (self.codes[level][np.minimum(middle, last)] < wanted)
                low, high = np.where(less, middle + 1, low), np.where(less, high, np.minimum(middle, high))
            found = alive & (low < end) & (self.codes[level][np.minimum(low, last)] == wanted)
            nodes = np.where(found, low, -1)
            yield nodes

    def leaf_codes(self) -> np.ndarray:
        """SIDs of all leaves in lexicographic order. Returns (num_leaves, L) int64."""
        nodes = np.arange(self.num_leaves)
        codes = np.empty((self.num_leaves, self.num_levels), dtype=np.int64)
        for level in range(self.num_levels - 1, -1, -1):
            codes[:, level] = self.codes[level][nodes]
            nodes = np.searchsorted(self.children[level], nodes, side="right") - 1
        return codes

    def positions_behind(self, leaves: np.ndarray) -> list[range]:
        """Positions of the items behind each leaf, in priority order; none behind -1. leaves: (n,) integers."""
        first, end = (self.items[-1][np.maximum(leaves, 0) + side].tolist() for side in (0, 1))
        spans = map(range, first, end)
        return [span if leaf >= 0 else range(0) for leaf, span in zip(leaves.tolist(), spans, strict=True)]

    def rows_behind(self, leaf: int) -> np.ndarray:
        """Rows of the code table behind one leaf, in priority order."""
        [behind] = self.positions_behind(np.array([leaf]))
        return self.item_rows[behind.start : behind.stop]

    def item_codes(self) -> np.ndarray:
        """SID of the item at each position. Returns (N, L) int64."""
        return np.repeat(self.leaf_codes(), np.diff(self.items[-1]), axis=0)

    def save(self, folder: Path) -> None:
        """Write index.json and one .npy an array (equal indexes give equal bytes)."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / _INDEX,
            {"sizes": list(self.sizes), "num_items": self.num_items, "num_leaves": self.num_leaves},
        )
        for name, array in self._arrays().items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)

    @staticmethod
    def load(folder: Path) -> Index:
        """Map a saved index into memory; processes that load the same folder share its pages.

        The maps are private and copy-on-write (`mmap_mode="c"`): writing to them cannot reach the file, and torch
        takes them without a copy, which it would not do with read-only ones.
        Raises MissingArtifactError, CorruptArtifactError.
        """
        about = read_json(folder / _INDEX)
        levels = range(len(about["sizes"]))
        children = tuple(_map_array(folder / f"level_{level}_children.npy") for level in levels)
        if is_old_format(folder):
            items = [_map_array(folder / "item_starts.npy")]
            for pointers in children[:0:-1]:
                items.insert(0, items[0][pointers])
        else:
            items = [_map_array(folder / f"level_{level}_items.npy") for level in levels]
        index = Index(
            sizes=tuple(about["sizes"]),
            codes=tuple(_map_array(folder / f"level_{level}_codes.npy") for level in levels),
            children=children,
            items=tuple(items),
            item_rows=_map_array(folder / "item_rows.npy"),
        )
        num_nodes = [1, *(len(codes) for codes in index.codes)]
        fits = [len(pointers) == num_nodes[level] + 1 for level, pointers in enumerate(index.children)]
        fits += [int(pointers[-1]) == num_nodes[level + 1] for level, pointers in enumerate(index.children)]
        fits += [len(starts) == num_nodes[level + 1] + 1 for level, starts in enumerate(index.items)]
        fits += [int(starts[-1]) == index.num_items for starts in index.items]
        fits += [index.num_leaves == about["num_leaves"], index.num_items == about["num_items"]]
        if not all(fits):
            raise CorruptArtifactError(f"{folder}: arrays of different indexes lie together; run the index stage again")
        return index

    def _arrays(self) -> dict[str, np.ndarray]:
        named = {f"level_{level}_codes": array for level, array in enumerate(self.codes)}
        named |= {f"level_{level}_children": array for level, array in enumerate(self.children)}
        named |= {f"level_{level}_items": array for level, array in enumerate(self.items)}
        return named | {"item_rows": self.item_rows}


def is_old_format(folder: Path) -> bool:
    """Whether an index was written before 2026-11-25: sealed releases are rolled back to for a long time."""
    return (folder / "item_starts.npy").exists()


def _check_codes(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] != len(sizes) or not np.issubdtype(codes.dtype, np.integer):
        raise InputError(f"codes of shape {codes.shape} and type {codes.dtype}: expected (N, {len(sizes)}) integers")
    outside = ((codes < 0) | (codes >= np.asarray(sizes))).any(axis=1)
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise InputError(f"row {row}: codes {codes[row].tolist()} lie outside a SID space of levels {tuple(sizes)}")
    return codes


def _argsort_rows(codes: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """Stable lexicographic order of the rows: one sort of one 64-bit key where the space fits into it."""
    if math.prod(sizes) >= 2**63:
        return np.lexsort(codes.T[::-1])
    key = np.zeros(len(codes), dtype=np.int64)
    for level, size in enumerate(sizes):
        key = key * size + codes[:, level]
    return np.argsort(key, kind="stable")


def _smallest(num_values: int, at_least: type[np.signedinteger] = np.int16) -> type[np.signedinteger]:
    """Smallest signed type (torch indexes with no unsigned one) that holds 0 … num_values - 1, not below `at_least`."""
    kinds = (np.int16, np.int32, np.int64)
    return next(k for k in kinds[kinds.index(at_least) :] if num_values - 1 <= np.iinfo(k).max)


def _map_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise MissingArtifactError(f"{path}: no such file; run the index stage") from None
    except (ValueError, OSError, EOFError) as error:
        raise CorruptArtifactError(f"{path}: unreadable npy ({error}); run the index stage again") from None


def read_index_item_ids(folder: Path) -> list[str]:
    """Item at each position of the index of this folder."""
    return column(read_parquet(folder / ITEMS_FILE, ["item_id"]), "item_id")
