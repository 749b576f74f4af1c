"""The one small retrieval model that the SID benchmarks train on every table of codes, and its item-level recall.

A causal transformer over the last items of a user, an item being the sum of the embeddings of its codes; the next item
is generated level by level, each code from the state and the codes before it (so generative retrieval in the sense of
TIGER, with one step an item instead of one a token, which is what makes three dozen trainings a matter of an hour on a
laptop). Beam search follows only codes that exist; a SID of several items yields them in an order of their own (a hash
of the id), all of them, so that a collision costs places in the list.

Shapes: U users, T steps, D width, Q queries, W beams, L levels, K codes of a level, N items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH = 20
_PADDING = -1


@dataclass(frozen=True)
class Task:
    """What is learnt and asked; items are rows 0 … N-1 of the table of codes.

    histories: of each user the items trained on, oldest first. queries: (user of the query, items before it, relevant
    items); what is before may hold items that training did not see.
    """

    histories: list[np.ndarray]
    queries: list[tuple[int, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class RetrieverParams:
    """Fixed for all tables of one data set."""

    epochs: int
    width: int = 64
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.2
    batch_windows: int = 128
    learning_rate: float = 2e-3
    num_beams: int = 50


class SidRetriever(nn.Module):
    """Items' codes in, log-probabilities of the next item's codes out. sizes: K of each level."""

    def __init__(self, sizes: Sequence[int], params: RetrieverParams) -> None:
        super().__init__()
        width = params.width
        self.codes = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.outputs = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        self.positions = nn.Embedding(LENGTH, width)
        for embedding in (*self.codes, self.positions):
            nn.init.normal_(embedding.weight, std=0.05)
        layer = nn.TransformerEncoderLayer(
            width, params.num_heads, 4 * width, params.dropout, "gelu", batch_first=True, norm_first=True
        )
        layer.self_attn.dropout = 0.0  # PyTorch's fused attention on a CPU has no dropout
        self.trunk = nn.TransformerEncoder(layer, params.num_layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in sizes[1:]
        )
        self.dropout = nn.Dropout(params.dropout)

    def embed(self, codes: Tensor, num_levels: int | None = None) -> Tensor:
        """Sum of the embeddings of the first levels' codes. codes: (…, L). Returns (…, D)."""
        levels = list(self.codes)[: codes.shape[-1] if num_levels is None else num_levels]
        return sum(embedding(codes[..., level]) for level, embedding in enumerate(levels))  # type: ignore[return-value]

    def states(self, codes_UTL: Tensor) -> Tensor:
        """State after every step, (U, T, D); padding stands on the right and is what nothing looks at."""
        length = codes_UTL.shape[1]
        x_UTD = self.dropout(self.embed(codes_UTL) + self.positions.weight[:length])
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        return self.trunk(x_UTD, mask=mask, is_causal=True)

    def logits(self, state: Tensor, codes: Tensor, level: int) -> Tensor:
        """Scores of the codes of a level. state: (…, D), codes: (…, ≥ level) what was chosen before. (…, K)."""
        if level:
            state = state + self.steps[level - 1](torch.cat([state, self.embed(codes, level)], dim=-1))
        return self.outputs[level](state)

    def loss(self, codes_UTL: Tensor, targets_UTL: Tensor, kept_UT: Tensor) -> Tensor:
        """Mean over targets of −log P(SID)."""
        state_SD, target_SL = self.states(codes_UTL)[kept_UT], targets_UTL[kept_UT]
        return sum(  # type: ignore[return-value]
            F.cross_entropy(self.logits(state_SD, target_SL, level), target_SL[:, level])
            for level in range(target_SL.shape[1])
        )


class Trie:
    """Which codes follow which. codes: (N, L) of all items; order: (N,) rows, the order of items behind one SID."""

    def __init__(self, codes: np.ndarray, sizes: Sequence[int], order: np.ndarray) -> None:
        self.sizes = tuple(sizes)
        self.children: list[Tensor] = []  # level → (nodes, K) node that a code leads to, -1 if none
        node = np.zeros(len(codes), np.int64)
        for level, size in enumerate(sizes):
            keys, following = np.unique(node * size + codes[:, level], return_inverse=True)
            table = np.full((int(node.max()) + 1, size), _PADDING, np.int64)
            table[keys // size, keys % size] = np.arange(len(keys))
            self.children.append(torch.from_numpy(table))
            node = following
        order = order[np.argsort(node[order], kind="stable")]
        self.items = np.split(order, np.searchsorted(node[order], np.arange(1, int(node.max()) + 1)))


def train(codes: np.ndarray, sizes: Sequence[int], task: Task, params: RetrieverParams, seed: int) -> SidRetriever:
    """Train on every next item of every history. codes: (N, L). Deterministic for one machine and seed."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = SidRetriever(sizes, params)
    num_steps = params.epochs * sum(1 for _ in _batches(task, params.batch_windows, np.random.default_rng(0)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=0.01, fused=True)
    # How many windows an epoch has depends on where it cuts histories: a few steps are spare.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=num_steps + num_steps // 4
    )
    table = torch.from_numpy(codes)
    for _ in range(params.epochs):
        for items_UT in _batches(task, params.batch_windows, generator):
            codes_UTL = table[items_UT.clamp(min=0)]
            loss = model.loss(codes_UTL[:, :-1], codes_UTL[:, 1:], items_UT[:, 1:] >= 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def _batches(task: Task, batch_windows: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """One epoch of windows in random order, those of one length together: (U, T) int64, -1 where a row has ended."""
    windows = list(_windows(task, generator))
    order = generator.permutation(len(windows))
    order = order[np.argsort([len(windows[row]) for row in order], kind="stable")]
    starts = generator.permutation(np.arange(0, len(order), batch_windows))
    for start in starts:
        batch = [windows[row] for row in order[start : start + batch_windows]]
        items = np.full((len(batch), max(map(len, batch))), _PADDING)
        for row, window in enumerate(batch):
            items[row, : len(window)] = window
        yield torch.from_numpy(items)


def _windows(task: Task, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Histories cut into windows of LENGTH inputs and their next items, at another place every time."""
    for history in task.histories:
        begin = 0
        end = int(generator.integers(1, LENGTH + 1)) if len(history) > LENGTH + 1 else LENGTH
        while begin < len(history) - 1:
            yield history[begin : end + 1]
            begin, end = end, end + LENGTH


@torch.inference_mode()
def search(model: SidRetriever, codes: np.ndarray, trie: Trie, histories: list[np.ndarray], width: int) -> np.ndarray:
    """The leaves of the best SIDs, best first, (Q, W) int64; -1 where fewer exist."""
    table, found = torch.from_numpy(codes), []
    for start in range(0, len(histories), 256):
        chunk = [history[-LENGTH:] for history in histories[start : start + 256]]
        items = np.zeros((len(chunk), max(map(len, chunk))), np.int64)
        for row, history in enumerate(chunk):
            items[row, : len(history)] = history
        states = model.states(table[torch.from_numpy(items)])
        state_QD = states[torch.arange(len(chunk)), torch.tensor([len(history) - 1 for history in chunk])]
        score_QW, node_QW = torch.zeros(len(chunk), 1), torch.zeros(len(chunk), 1, dtype=torch.long)
        chosen_QWL = torch.zeros(len(chunk), 1, 0, dtype=torch.long)
        for level, size in enumerate(trie.sizes):
            state_QWD = state_QD[:, None].expand(-1, node_QW.shape[1], -1)
            logits = model.logits(state_QWD, chosen_QWL, level).log_softmax(-1)
            next_QWK = trie.children[level][node_QW.clamp(min=0)]
            score = score_QW[..., None] + logits
            score = score.masked_fill((next_QWK < 0) | (node_QW < 0)[..., None], float("-inf")).flatten(1)
            score_QW, best = score.topk(min(width, score.shape[1]))
            beam, code = best // size, best % size
            node_QW = next_QWK.flatten(1).gather(1, best).masked_fill(score_QW == float("-inf"), -1)
            chosen_QWL = torch.cat([chosen_QWL.gather(1, beam[..., None].expand(-1, -1, level)), code[..., None]], -1)
        found.append(F.pad(node_QW, (0, width - node_QW.shape[1]), value=-1).numpy())
    return np.concatenate(found)


def recalls(leaves: np.ndarray, trie: Trie, task: Task, *, masked: bool, k: int = 10) -> np.ndarray:
    """recall@k of every query, (Q,) float64; NaN where masking leaves nothing relevant. leaves: as `search` returns."""
    out = np.full(len(task.queries), np.nan)
    for row, (_, before, relevant) in enumerate(task.queries):
        seen = set(before.tolist()) if masked else set()
        wanted = set(relevant.tolist()) - seen
        if not wanted:
            continue
        items = (item for leaf in leaves[row] if leaf >= 0 for item in trie.items[leaf].tolist() if item not in seen)
        hits = sum(item in wanted for _, item in zip(range(k), items, strict=False))
        out[row] = hits / min(k, len(wanted))
    return out
