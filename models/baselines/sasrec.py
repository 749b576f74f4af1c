"""SASRec (Kang & McAuley 2018): a causal transformer over item embeddings, one embedding an item.

The "large embedding model" that a Semantic-ID model is measured against. As in the paper: learned positions, causal
self-attention, dropout, output embeddings tied to the input ones. Unlike it: layer norm first, and cross-entropy over
the items instead of one negative an event, which is what lifts it in later reproductions (Klenitskiy & Vasilev 2023).

Shapes: B windows, T steps, D width, N items.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from models.baselines.ranking import encode, rank_items
from models.memory.events import DAY_MS, Events, read_events, weigh
from plumline.errors import InputError

_IGNORED = -1
_POOL_BATCHES = 32  # of whose windows those of about one length are put together


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        num_windows, length, width = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(num_windows, length, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        mixed = self.project(mixed.transpose(1, 2).reshape(num_windows, length, width))
        x_BTD = x_BTD + F.dropout(mixed, self.dropout, self.training)
        return x_BTD + F.dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, self.training)


class SasRecModel(nn.Module):
    """Items in, one vector a step out; the score of an item is its embedding's product with that vector."""

    def __init__(
        self, num_items: int, *, max_length: int, width: int, num_layers: int, num_heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, padding_idx=num_items)  # the last one is padding
        self.positions = nn.Embedding(max_length, width)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, items_BT: torch.Tensor) -> torch.Tensor:
        """items_BT: int64, padded on the right with num_items. Returns (B, T, D)."""
        x_BTD = self.items(items_BT) * self.items.embedding_dim**0.5 + self.positions.weight[: items_BT.shape[1]]
        x_BTD = self.dropout(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)


@dataclass(frozen=True)
class SasRec:
    """A fitted model. known_ids: M items with an embedding; item_ids: the first N of them, which may be recommended.

    weights: (N,) float64 popularity: what a user without a history gets. max_length: steps the model looks back.
    """

    model: SasRecModel
    known_ids: list[str]
    item_ids: list[str]
    weights: np.ndarray
    max_length: int

    @staticmethod
    def fit(
        histories: pa.Table,
        item_ids: Sequence[str],
        *,
        steps: int,
        seed: int,
        max_length: int = 50,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        dropout: float = 0.2,
        batch_windows: int = 16,
        num_negatives: int | None = None,
        learning_rate: float = 3e-3,
        half_life_days: float | None = None,
        device: torch.device | str = "cpu",
    ) -> SasRec:
        """Train for `steps` batches of `batch_windows` windows; equal seed and threads, equal model.

        num_negatives: items drawn uniformly a batch to stand beside each target (sampled softmax); None: all items.
        half_life_days: windows are drawn with a chance that halves with every so many days of age; None: all equally.
        """
        items = sorted(item_ids)
        seen = histories.column("item_ids").combine_chunks().flatten().unique().to_pylist()
        known = items + sorted(set(seen) - set(items))
        events = read_events(histories, known)
        generator = np.random.default_rng(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SasRecModel(
                len(known),
                max_length=max_length,
                width=width,
                num_layers=num_layers,
                num_heads=num_heads,
                dropout=dropout,
            ).to(device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
            warmup = max(1, steps // 20)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: min((step + 1) / warmup, max(0.02, 1 - step / max(steps, 1)))
            )
            windows = _windows(events, max_length, batch_windows, len(known), generator, half_life_days)
            for _ in tqdm(range(steps), desc="sasrec", unit="step", disable=None):
                inputs_BT, targets_BT = next(windows)
                negatives = None
                if num_negatives is not None:
                    negatives = torch.from_numpy(generator.integers(0, len(known), num_negatives)).to(device)
                loss = _loss(model, inputs_BT.to(device), targets_BT.to(device), negatives)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return SasRec(model.eval(), known, items, weigh(events, len(known), None)[: len(items)], max_length)

    def rank(self, histories: Sequence[Sequence[str]], k: int, exclude: Sequence[Collection[str]]) -> list[list[str]]:
        """The k items with the highest score not excluded; by popularity where nothing of a history is known."""
        queries = encode(histories, self.known_ids, self.max_length)
        return rank_items(lambda chunk: self._score(queries[chunk]), self.weights, self.item_ids, k, exclude)

    @torch.inference_mode()
    def _score(self, queries: list[list[int]]) -> np.ndarray:
        device = self.model.items.weight.device
        inputs = np.full((len(queries), max(1, *map(len, queries))), len(self.known_ids), dtype=np.int64)
        for row, query in enumerate(queries):
            inputs[row, : len(query)] = query
        lengths = torch.tensor([len(query) for query in queries], device=device)
        hidden_BTD = self.model(torch.from_numpy(inputs).to(device))
        last_BD = hidden_BTD[torch.arange(len(queries), device=device), (lengths - 1).clamp(min=0)]
        scores_BN = last_BD @ self.model.items.weight[: len(self.item_ids)].T
        return scores_BN.masked_fill((lengths == 0)[:, None], 0.0).cpu().numpy()


def _windows(
    events: Events,
    max_length: int,
    batch_windows: int,
    padding: int,
    generator: np.random.Generator,
    half_life_days: float | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (inputs, targets), each (B, T) int64, without end; an epoch holds as many windows as there are.

    Histories are cut into windows at another place in every epoch, so that no step is always at a window's beginning.
    Windows of about one length share a batch: most histories are short, and a batch is padded to its longest.
    """
    follows = np.flatnonzero(events.users[:-1] == events.users[1:])  # events that have a next one of the same user
    if len(follows) == 0:
        raise InputError("no history has two events: SASRec has nothing to learn from; set rivals.sasrec_steps to 0")
    users = events.users[follows]
    first = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    place = np.arange(len(users)) - np.repeat(first, np.diff(np.append(first, len(users))))
    while True:
        offset = generator.integers(0, max_length, int(users.max()) + 1)[users]
        begins = np.flatnonzero((place == 0) | ((place + offset) % max_length == 0))
        ends = np.append(begins[1:], len(users))
        if half_life_days is None:
            order = generator.permutation(len(begins))
        else:
            age_days = (events.timestamps.max() - events.timestamps[follows[ends - 1]]) / DAY_MS
            chance = 0.5 ** (age_days / half_life_days)
            order = generator.choice(len(begins), len(begins), p=chance / chance.sum())
        for chosen in _alike_in_length(order, ends - begins, batch_windows, generator):
            length = int((ends[chosen] - begins[chosen]).max())
            steps = begins[chosen][:, None] + np.arange(length)
            inside = steps < ends[chosen][:, None]
            event = follows[np.where(inside, steps, 0)]
            inputs = np.where(inside, events.items[event], padding)
            targets = np.where(inside, events.items[event + 1], _IGNORED)
            yield torch.from_numpy(inputs), torch.from_numpy(targets)


def _alike_in_length(
    order: np.ndarray, lengths: np.ndarray, size: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Batches of `size` of the windows in `order`: pools of it are sorted by length, and their batches shuffled."""
    pool = _POOL_BATCHES * size
    for start in range(0, len(order), pool):
        some = order[start : start + pool]
        some = some[np.argsort(lengths[some], kind="stable")]
        starts = np.arange(0, len(some), size)
        for begin in generator.permutation(starts).tolist():
            yield some[begin : begin + size]


def _loss(
    model: SasRecModel, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, negatives: torch.Tensor | None
) -> torch.Tensor:
    """Cross-entropy of the next item, over all items, or over the target and the negatives drawn for the batch."""
    kept = targets_BT != _IGNORED
    hidden_SD, target_S = model(inputs_BT)[kept], targets_BT[kept]
    if negatives is None:
        return F.cross_entropy(hidden_SD @ model.items.weight[:-1].T, target_S)
    positive_S1 = (hidden_SD * model.items(target_S)).sum(-1, keepdim=True)
    negative_SN = hidden_SD @ model.items(negatives).T
    negative_SN = negative_SN.masked_fill(negatives == target_S[:, None], float("-inf"))
    return -torch.log_softmax(torch.cat([positive_S1, negative_SN], dim=1), dim=1)[:, 0].mean()
