"""Examples → batches: whose turn it is, which ones share a row, and what each token may see. NumPy only.

Every number here follows from (seed, epoch, row), so that the place in the data is two integers, the same on every
machine and for any number of processes.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from models.corpus.examples import Examples
from plumline.errors import InputError
from plumline.stage import Params, hash_seed

PROGRESS = Path("artifacts/progress")
"""Where the loop tells how fast it is, relative to the home: not in the artifact, whose bytes know no clock."""


def checkpoint_of(stage: str) -> Path:
    """Where a stage keeps the state of its unfinished training."""
    return PROGRESS / f"{stage}.checkpoint"


_OPEN_ROWS = 64
_MULTIPLE = 8  # widths of batches, for the sake of vector units


class LoopParams(Params):
    """The training loop: what a step is, and how it moves the weights."""

    row_tokens: int = Field(default=512, ge=8)
    """Most tokens of a row; examples are packed into rows and see only themselves."""
    rows: int = Field(default=1, ge=1)
    """Rows of one forward pass; each is padded to the fullest. On a CPU one row is enough, and nothing is padded."""
    accumulation: int = Field(default=4, ge=1)
    """Forward passes of one optimizer step (of all processes together)."""
    learning_rate: float = Field(default=2e-3, gt=0.0)
    """Constant after the warm-up, as in the paper."""
    embedding_rate: float = Field(default=1.0, gt=0.0)
    """Learning rate of the embedding matrix (and an output head of its own), in learning rates."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises from 0."""
    cooldown_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the steps, at the end, over which the learning rate falls to 0; 0 keeps it constant."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """AdamW's decay of matrices."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two decays."""
    clip_norm: float = Field(default=1.0, gt=0.0)
    """Largest norm of the gradient."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of zeros in the embeddings and in what each attention and feed-forward block adds."""
    average_decay: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of the moving average of the weights that the model holds in the end; 0 keeps the last weights."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back: about a third more work for much less memory."""
    compile: bool = False
    """torch.compile: pays on a GPU; on a CPU it compiles for half a minute and seldom earns that back."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer among the GPUs of several processes (FSDP2); refused on a CPU."""
    precision: Literal["no", "bf16"] = "no"
    """`bf16` computes under autocast; on CPUs without bf16 matrix units (AMX) it is slower than `no`."""
    checkpoint_every: int = Field(default=100, ge=0)
    """Steps between two checkpoints, from which a killed run goes on to the same bits; 0 makes none."""
    orbit_distance: float | None = Field(default=None, gt=0.0)
    """Largest distance to the anchor (fine-tuning: the CPT checkpoint), relative; null measures it only (ORBIT)."""
    log_every: int = Field(default=20, ge=1)
    """Steps between two points of the loss curve."""


@dataclass(frozen=True)
class Cursor:
    """The place in the data: the next row of an epoch's rows."""

    epoch: int = 0
    row: int = 0


@dataclass(frozen=True)
class Batch:
    """B rows of T tokens and their n targets.

    tokens: (B, T) int64. span: (B, T) int64, how many tokens see a token (as in Examples). positions: (B, T) int64, how
    many tokens a token sees before itself. source, target: (n,) int64, flat place whose output predicts, and the token
    to be predicted. num_tokens: without padding, and without leaves, which are targets alone and take no place.
    num_seen: pairs of a token and one that it sees. example_ids: which examples these are.
    """

    tokens: np.ndarray
    span: np.ndarray
    positions: np.ndarray
    source: np.ndarray
    target: np.ndarray
    num_tokens: int
    num_seen: int
    example_ids: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """What `TargetLoss` takes."""
        return self.tokens, self.span, self.positions, self.source, self.target

    @property
    def num_places(self) -> int:
        """Padding included."""
        return self.tokens.size

    @property
    def num_targets(self) -> int:
        """Tokens to be predicted."""
        return len(self.target)


class Turns:
    """Which examples share a row, and whose turn it is: rows without end, epoch after epoch.

    lengths, weight: of all examples, (N,). chosen: which of them take part, (n,) integers. Raises InputError if there
    is none or one is too long.
    """

    def __init__(self, lengths: np.ndarray, weight: np.ndarray, chosen: np.ndarray, row_tokens: int, seed: int) -> None:
        if not len(chosen):
            raise InputError("no example to train on; widen corpus.recent_days or replay_share, or land more events")
        longest = int(lengths[chosen].max())
        if longest > row_tokens:
            raise InputError(f"row_tokens {row_tokens} is less than the longest example, {longest}; raise it to that")
        self.chosen, self.row_tokens, self.seed = chosen, row_tokens, seed
        self._lengths, self._weight = lengths, weight
        self._epoch = -1
        self._packed: list[list[int]] = []

    def take(self, cursor: Cursor, num_rows: int) -> tuple[list[list[int]], Cursor]:
        """Example ids of the next rows, and the place behind them; an epoch's end may lie within."""
        taken: list[list[int]] = []
        while len(taken) < num_rows:
            packed = self._rows_of(cursor.epoch)
            more = packed[cursor.row : cursor.row + num_rows - len(taken)]
            taken += more
            cursor = Cursor(cursor.epoch, cursor.row + len(more))
            if cursor.row >= len(packed):
                cursor = Cursor(cursor.epoch + 1, 0)
        return taken, cursor

    def _rows_of(self, epoch: int) -> list[list[int]]:
        if epoch != self._epoch:
            order = shuffle(self._weight[self.chosen], hash_seed(self.seed, "epoch", epoch))
            self._packed = pack(self._lengths, self.chosen[order], self.row_tokens)
            self._epoch = epoch
        return self._packed


class Rows(Turns):
    """Rows of packed examples."""

    def __init__(self, examples: Examples, chosen: np.ndarray, row_tokens: int, seed: int, pad: int) -> None:
        leaves = np.concatenate([[0], np.cumsum(is_leaf(examples.span, examples.loss))])
        lengths = examples.lengths - np.diff(leaves[examples.offsets])
        super().__init__(lengths, examples.weight, chosen, row_tokens, seed)
        self.examples, self.pad = examples, pad

    def batch(self, rows: list[list[int]]) -> Batch:
        """The arrays of some rows, as wide as the fullest of them needs."""
        examples = self.examples
        lengths = [int(examples.lengths[members].sum()) for members in rows]
        shape = (len(rows), max(lengths))
        token, span, loss = np.zeros(shape, np.int64), np.ones(shape, np.int64), np.zeros(shape, bool)
        for row, members in enumerate(rows):
            at = 0
            for member in members:
                begin, end = examples.offsets[member], examples.offsets[member + 1]
                inside = slice(at, at + int(end - begin))
                token[row, inside] = examples.tokens[begin:end]
                span[row, inside] = examples.span[begin:end]
                loss[row, inside] = examples.loss[begin:end]
                at = inside.stop
        # 1. The parent of each target, leaves and all.
        places, numbers = np.arange(shape[1]), np.arange(len(rows))[:, None]
        # What a token sees before itself is what began before it and has not ended.
        ends = numbers * (shape[1] + 1) + places + span
        ended = np.bincount(ends.ravel(), minlength=len(rows) * (shape[1] + 1)).reshape(len(rows), -1).cumsum(axis=1)
        depth = places - ended[:, :-1]
        # Depth first: the parent of a token is the last one before it that is one less deep; a root follows nothing.
        leaf = is_leaf(span, loss)
        loss &= depth > 0
        keys = (numbers * shape[1] + depth) * shape[1] + places
        sorted_places = np.argsort(keys, axis=None)
        parent = sorted_places[np.searchsorted(keys.ravel()[sorted_places], keys[loss] - shape[1]) - 1]
        # 2. What is read: everything but leaves and padding, moved together.
        read = ~leaf & (places < np.array(lengths)[:, None])
        before = np.concatenate([np.zeros((len(rows), 1), np.int64), read.cumsum(axis=1)], axis=1)
        filled = before[:, -1]
        width = -(-int(filled.max()) // _MULTIPLE) * _MULTIPLE
        rows_n, columns_n = np.nonzero(read)
        place = rows_n, before[rows_n, columns_n]
        batch = Batch(
            tokens=np.full((len(rows), width), self.pad, dtype=np.int64),
            span=np.ones((len(rows), width), dtype=np.int64),
            positions=np.zeros((len(rows), width), dtype=np.int64),
            source=parent // shape[1] * width + before[:, :-1].ravel()[parent],
            target=token[loss],
            num_tokens=int(filled.sum()),
            num_seen=int(depth[read].sum() + filled.sum()),
            example_ids=np.array([member for members in rows for member in members]),
        )
        batch.tokens[place] = token[read]
        batch.span[place] = before[rows_n, columns_n + span[read]] - before[rows_n, columns_n]
        batch.positions[place] = depth[read]
        return batch


def is_leaf(span: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Targets that nothing follows: to be predicted, never to be read, so they take no place in a row."""
    return (span == 1) & (loss != 0)


def shuffle(weight: np.ndarray, seed: int) -> np.ndarray:
    """A random order in which heavier ones tend to come earlier (Efraimidis and Spirakis 2006: keys u^(1/w)).

    weight: (n,) positive. Returns (n,) a permutation.
    """
    u = np.random.default_rng(seed).random(len(weight))
    with np.errstate(divide="ignore"):
        keys = np.log(u) / np.maximum(weight, 1e-30)
    return np.argsort(-keys, kind="stable")


def pack(lengths: np.ndarray, order: np.ndarray, row_tokens: int) -> list[list[int]]:
    """Rows of examples, best fit among a few open rows. lengths: of all examples; order: ids of those to pack, in turn.

    Rows come out about in the order of their examples; only the last few of an epoch are far from full.
    """
    done: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (space left, number), sorted
    members: dict[int, list[int]] = {}
    for number, example in enumerate(order.tolist()):
        length = int(lengths[example])
        fit = bisect_left(open_rows, (length, -1))
        if fit < len(open_rows):
            space, row = open_rows.pop(fit)
        else:
            if len(open_rows) == _OPEN_ROWS:
                done.append(members.pop(open_rows.pop(0)[1]))  # the fullest one goes
            space, row = row_tokens, number
            members[row] = []
        members[row].append(example)
        if space > length:
            insort(open_rows, (space - length, row))
        else:
            done.append(members.pop(row))
    return done + [members[row] for _, row in open_rows]
