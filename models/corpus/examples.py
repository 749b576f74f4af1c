"""Training examples as flat arrays: what `corpus` writes and the training loop reads.

An example is a tree of tokens in depth-first order. `span[k]` counts the tokens that see token k, itself included:
tokens k … k + span[k] - 1. In a plain sequence every span reaches to the end; a branch ends earlier, so that what comes
behind it does not see it. Causality, branches and the borders between packed examples are all this one rule.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from plumline.errors import CorruptArtifactError
from plumline.tables import load_arrays, save_arrays

KINDS = (
    *("behaviour", "metadata", "older", "recent", "replay"),
    *("general", "naming", "title", "topics", "channel"),
)
"""What an example is; `kind` holds the place in this tuple. older, recent, replay: windows of fine-tuning. general:
text of no item. The last four are held-out metadata: title → SID, and SID → title, topics, channel."""


class ExampleArrays:
    """What both forms of examples are: a frozen dataclass of arrays, with `offsets`, (N + 1,) int64, the first token or
    place of each example, `kind`, (N,) int8, and `weight`, (N,) float32, how early an example comes in an epoch."""

    offsets: np.ndarray
    kind: np.ndarray
    weight: np.ndarray

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.kind)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens (or places) of each example, (N,) int64."""
        return np.diff(self.offsets)

    def of_kinds(self, *kinds: str) -> np.ndarray:
        """Rows of the examples of these kinds, (n,) int64."""
        return np.flatnonzero(np.isin(self.kind, [KINDS.index(kind) for kind in kinds]))

    def save(self, path: Path) -> None:
        """Write as npz."""
        save_arrays(path, **{f.name: getattr(self, f.name) for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an npz of `save`. Raises CorruptArtifactError if the arrays do not fit together."""
        arrays = load_arrays(path)
        if arrays.keys() != {f.name for f in fields(cls)}:  # type: ignore[arg-type]
            raise CorruptArtifactError(f"{path}: holds {sorted(arrays)}; run `python -m models.corpus.corpus` again")
        found = cls(**arrays)
        if not (len(found.weight) == found.num_examples == len(found.offsets) - 1 and found.fits()):
            raise CorruptArtifactError(
                f"{path}: arrays of different lengths; run `python -m models.corpus.corpus` again"
            )
        return found

    def fits(self) -> bool:
        """Whether the arrays of this form fit to one another."""
        raise NotImplementedError

    def _describe(self, target_tokens: int) -> dict[str, Any]:
        counts: dict[str, Any] = {}
        lengths = self.lengths
        for code, name in enumerate(KINDS):
            mine = self.kind == code
            if mine.any():
                counts[name] = {
                    "examples": int(mine.sum()),
                    "examples_share": round(float(mine.mean()), 6),
                    "tokens": int(lengths[mine].sum()),
                    "tokens_share": round(float(lengths[mine].sum() / lengths.sum()), 6),
                }
        return {
            "examples": self.num_examples,
            "tokens": int(lengths.sum()),
            "target_tokens": target_tokens,
            "kinds": counts,
        }


@dataclass(frozen=True)
class Examples(ExampleArrays):
    """N examples of T tokens together.

    tokens: (T,) int32 ids. span: (T,) int32, tokens that see this one. loss: (T,) int8, 1 where the token is a target.
    offsets: (N + 1,) int64, first token of each example. kind: (N,) int8. weight: (N,) float32, how early an example
    comes in an epoch, relative to the others.
    """

    tokens: np.ndarray
    span: np.ndarray
    loss: np.ndarray
    offsets: np.ndarray
    kind: np.ndarray
    weight: np.ndarray

    def fits(self) -> bool:
        """Whether the arrays fit to one another."""
        tokens = len(self.tokens)
        return bool(len(self.span) == len(self.loss) == tokens == self.offsets[-1])

    def describe(self) -> dict[str, Any]:
        """Examples, tokens, targets, and the share of examples and tokens by kind."""
        return self._describe(int(self.loss.sum()))


@dataclass
class ExamplesBuilder:
    """Collects examples one by one; `build` joins them."""

    _tokens: list[np.ndarray] = field(default_factory=list)
    _span: list[np.ndarray] = field(default_factory=list)
    _loss: list[np.ndarray] = field(default_factory=list)
    _kind: list[int] = field(default_factory=list)
    _weight: list[float] = field(default_factory=list)

    def add_sequence(self, tokens: np.ndarray, kind: str, weight: float = 1.0) -> None:
        """A plain sequence with every token but the first a target."""
        loss = np.ones(len(tokens), dtype=np.int8)
        loss[0] = 0
        self.add_tree(tokens, np.arange(len(tokens), 0, -1, dtype=np.int32), loss, kind, weight)

    def add_tree(self, tokens: np.ndarray, span: np.ndarray, loss: np.ndarray, kind: str, weight: float) -> None:
        """A tree. tokens, span, loss: (t,) as in Examples."""
        self._tokens.append(tokens)
        self._span.append(span)
        self._loss.append(loss)
        self._kind.append(KINDS.index(kind))
        self._weight.append(weight)

    def build(self) -> Examples:
        """All examples so far, in the order they came."""

        def joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
            return np.concatenate(parts).astype(kind) if parts else np.zeros(0, dtype=kind)

        lengths = np.array([len(part) for part in self._tokens], dtype=np.int64)
        return Examples(
            tokens=joined(self._tokens, np.int32),
            span=joined(self._span, np.int32),
            loss=joined(self._loss, np.int8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            kind=np.array(self._kind, dtype=np.int8),
            weight=np.array(self._weight, dtype=np.float32),
        )
