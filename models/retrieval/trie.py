"""An Index on a device, and what may follow after each beam: the masking step of constrained decoding.

Not a stage. The children of a node are gathered by the level's largest branch, as STATIC does (seed 000, abstract 5),
so that shapes do not depend on which nodes the beams stand at. Where a level is well filled (a quarter of all
codes exist on average) a dense table of its children takes their place, and the log-probabilities are not gathered at
all. Which codes, beams and nodes the candidates are is worked out for the chosen ones only.

Shapes: B requests, K beams, S codes of a level, M children of a node at most, C = K·S or K·M candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.retrieval.bits import Bits
from models.retrieval.csr import Index

DEAD = float("-inf")
_FILLED = 0.25
_TABLE_BYTES = 1 << 24
_SMALL = 1 << 15  # positions up to which members are counted before each one, beyond before each eighth
_BELOW = torch.tensor([(1 << bit) - 1 for bit in range(8)], dtype=torch.uint8)
_ONES = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.int32)


@dataclass(frozen=True, eq=False)
class Trie:
    """The arrays of an Index on a device (shared with the Index on a CPU, copied once elsewhere)."""

    sizes: tuple[int, ...]
    codes: tuple[torch.Tensor, ...]
    children: tuple[torch.Tensor, ...]
    items: tuple[torch.Tensor, ...]
    branches: tuple[int, ...]
    tables: tuple[torch.Tensor | None, ...]

    @staticmethod
    def of(index: Index, device: torch.device | str) -> Trie:
        """Bring an index to a device. branches: most children of a node of each depth. tables: see the module."""
        branches, tables = [], []
        for level, size in enumerate(index.sizes):
            counts = np.diff(index.children[level])
            branches.append(int(counts.max()))
            cells = len(counts) * size
            dense = len(index.codes[level]) >= _FILLED * cells and 4 * cells <= _TABLE_BYTES
            tables.append(torch.from_numpy(_table(index, level, counts)).to(device) if dense else None)

        def moved(arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
            return tuple(torch.from_numpy(array).to(device) for array in arrays)

        return Trie(
            index.sizes, moved(index.codes), moved(index.children), moved(index.items), tuple(branches), tuple(tables)
        )


def _table(index: Index, level: int, counts: np.ndarray) -> np.ndarray:
    """(nodes, size) int32: child of each node by each code, -1 where there is none."""
    table = np.full((len(counts), index.sizes[level]), -1, dtype=np.int32)
    parents = np.repeat(np.arange(len(counts)), counts)
    table[parents, index.codes[level]] = np.arange(len(parents), dtype=np.int32)
    return table


@dataclass(frozen=True, eq=False)
class Allowed:
    """Which items one request may get: positions of the index and of its delta; None: all of them.

    said: what a message calls this, for the case that nothing is allowed.
    """

    base: Bits | None = None
    delta: Bits | None = None
    said: str = "the rule"

    def __len__(self) -> int:
        """Items, 1 if there is no telling (all of them)."""
        counts = [len(bits) for bits in (self.base, self.delta) if bits is not None]
        return sum(counts) if counts else 1


@dataclass(frozen=True)
class Candidates:
    """Continuations of all beams, in the lexicographic order of their codes.

    score: (B, C), DEAD where there is none. branch: candidates a beam. codes: (B, C) int64, None: the place within the
    beam's candidates is the code. nodes, twins: (B, C) int64, node in the index and in its delta, -1 for none.
    """

    score: torch.Tensor
    branch: int
    codes: torch.Tensor | None
    nodes: torch.Tensor | None
    twins: torch.Tensor | None = None

    def chosen(self, keep_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, State]:
        """Beam that is continued, code it is continued with, and state of each chosen candidate: (B, K) each."""
        beam_BK = keep_BK // self.branch
        code_BK = keep_BK % self.branch if self.codes is None else self.codes.gather(1, keep_BK)
        nodes = None if self.nodes is None else self.nodes.gather(1, keep_BK).long()
        twins = None if self.twins is None else self.twins.gather(1, keep_BK).long()
        return beam_BK, code_BK, State(nodes, twins)


@dataclass(frozen=True)
class State:
    """Where beams stand: (B, K) int64 nodes of the index and of its delta, -1 for none; None: there is no such trie."""

    nodes: torch.Tensor | None
    twins: torch.Tensor | None = None

    @staticmethod
    def roots(num_rows: int, base: Trie | None, delta: Trie | None, device: torch.device | str) -> State:
        """One beam a request, at the root."""
        zeros = torch.zeros(num_rows, 1, dtype=torch.int64, device=device)
        return State(None if base is None else zeros, None if delta is None else zeros)


def expand(
    base: Trie | None,
    delta: Trie | None,
    level: int,
    state: State,
    logp_BKS: torch.Tensor,
    score_BK: torch.Tensor,
    allowed: Sequence[Allowed] | None = None,
) -> Candidates:
    """What may follow after each beam. Without any trie: every code."""
    if base is None or state.nodes is None:
        return Candidates((logp_BKS + score_BK[..., None]).flatten(1), logp_BKS.shape[-1], None, None)
    if delta is not None and state.twins is not None:
        return _both(base, delta, level, state, logp_BKS, score_BK, allowed)
    table, node_BK = base.tables[level], state.nodes.clamp(min=0)  # -1 is behind a dead beam: dead by its score
    if table is not None:
        node, code = table.index_select(0, node_BK.flatten()).view(len(node_BK), -1), None
        dead = node < 0
        score = (logp_BKS + score_BK[..., None]).flatten(1)
    else:
        child_BKM, dead_BKM = _children(base, level, node_BK)
        code_BKM = base.codes[level].index_select(0, child_BKM.flatten()).view(child_BKM.shape).long()
        score = logp_BKS.gather(2, code_BKM).add_(score_BK[..., None]).flatten(1)
        node, dead, code = child_BKM.flatten(1), dead_BKM.flatten(1), code_BKM.flatten(1)
    if allowed is not None:
        dead |= ~_any_allowed(base.items[level], node.clamp(min=0), [one.base for one in allowed])
    return Candidates(score.masked_fill_(dead, DEAD), node.shape[1] // node_BK.shape[1], code, node)


def _children(trie: Trie, level: int, node_BK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Children of every node, (B, K, M) int64, the last ones being some other node's; and which of them are such."""
    pointers = trie.children[level]
    first_BK = pointers[node_BK].long()
    count_BK = pointers[node_BK + 1] - first_BK
    place_M = torch.arange(trie.branches[level], device=node_BK.device)
    child_BKM = (first_BK[..., None] + place_M).clamp_(max=len(trie.codes[level]) - 1)
    return child_BKM, place_M >= count_BK[..., None]


def _both(
    base: Trie,
    delta: Trie,
    level: int,
    state: State,
    logp_BKS: torch.Tensor,
    score_BK: torch.Tensor,
    allowed: Sequence[Allowed] | None,
) -> Candidates:
    """The union of an index and its delta: each spread over all codes of the level, which puts equal codes together."""
    parts = []
    for trie, node_BK, which in ((base, state.nodes, "base"), (delta, state.twins, "delta")):
        assert node_BK is not None
        child_BKM, dead_BKM = _children(trie, level, node_BK.clamp(min=0))
        dead_BKM |= (node_BK < 0)[..., None]
        if allowed is not None:
            flat = child_BKM.flatten(1)
            some = _any_allowed(trie.items[level], flat, [getattr(one, which) for one in allowed])
            dead_BKM |= ~some.view_as(dead_BKM)
        size = logp_BKS.shape[-1]
        code_BKM = trie.codes[level][child_BKM].long().masked_fill_(dead_BKM, size)  # a column for what is not there
        spread = torch.full((*node_BK.shape, size + 1), -1, dtype=torch.int64, device=node_BK.device)
        parts.append(spread.scatter_(2, code_BKM, child_BKM)[..., :size].flatten(1))
    nodes, twins = parts
    score = (logp_BKS + score_BK[..., None]).flatten(1).masked_fill_((nodes < 0) & (twins < 0), DEAD)
    return Candidates(score, logp_BKS.shape[-1], None, nodes, twins)


def _any_allowed(starts: torch.Tensor, node_BC: torch.Tensor, bits: Sequence[Bits | None]) -> torch.Tensor:
    """Whether any item below each node is allowed. starts: `items` of the level. Returns (B, C) bool."""
    if all(one is bits[0] for one in bits):
        return _any_of(starts, node_BC, bits[0])
    return torch.stack([_any_of(starts, row, one) for row, one in zip(node_BC, bits, strict=True)])


def _any_of(starts: torch.Tensor, node: torch.Tensor, bits: Bits | None) -> torch.Tensor:
    if bits is None:
        return torch.ones_like(node, dtype=torch.bool)
    device = node.device
    flat = node.flatten()
    place = starts.index_select(0, torch.cat([flat, flat + 1]))  # `index_select` is far quicker than indexing here
    if bits.size <= _SMALL:
        before = torch.from_numpy(bits.before).to(device).index_select(0, place)
    else:
        packed, ranks = torch.from_numpy(bits.packed).to(device), torch.from_numpy(bits.ranks).to(device)
        byte = place >> 3
        last = packed.index_select(0, byte.clamp(max=len(packed) - 1))
        inside = last & _BELOW.to(device).index_select(0, place & 7)
        before = ranks.index_select(0, byte) + _ONES.to(device).index_select(0, inside.int())
    first, end = before.view(2, -1)
    return (end > first).view(node.shape)
