"""What a ranker learns from: candidates that a release gave for users who came, and which of them they then took.

Not a stage. A group is one user-day under one protocol. Groups outlive their release: the next day's ranker learns from
those of its base and adds today's, made from the base's candidates (models/ranking/ranker.py).

Shapes: G groups, R rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.ranking.candidates import COUNTED
from models.ranking.features import FEATURES
from plumline.stage import hash_seed
from plumline.tables import column, read_parquet, write_parquet

FOLDS = 2
_FILE = "labels.parquet"
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Labels:
    """users: (G,) str. days: (G,) int32 days since 1970. sizes: (G,) rows of each. features: (R, F) float32.
    worth: (R,) float32, the reward of what the user took that day, 0 for what was not taken."""

    users: np.ndarray
    days: np.ndarray
    sizes: np.ndarray
    features: np.ndarray
    worth: np.ndarray

    @property
    def gains(self) -> np.ndarray:
        """(R,) int8 relevance to learn from: 1 for what was taken, 2 where that was worth more than its median."""
        taken = self.worth > 0
        middle = np.median(self.worth[taken]) if taken.any() else 0.0
        gains: np.ndarray = taken.astype(np.int8) + (self.worth > middle).astype(np.int8)
        return gains

    @staticmethod
    def none() -> Labels:
        """No groups."""
        return Labels(
            np.zeros(0, "U1"), np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros((0, len(FEATURES)), np.float32),
            np.zeros(0, np.float32),
        )  # fmt: skip

    @staticmethod
    def group(user: str, day: date, features: np.ndarray, worth: np.ndarray, max_negatives: int) -> Labels:
        """One group: all that was taken, and at most so many drawn of the rest; none if nothing was."""
        taken = np.flatnonzero(worth > 0)
        if not len(taken):
            return Labels.none()
        rest = np.flatnonzero(worth <= 0)
        if len(rest) > max_negatives:
            rest = np.random.default_rng(hash_seed("negatives", user, day)).permutation(rest)[:max_negatives]
        rows = np.sort(np.concatenate([taken, rest]))
        number = np.int32((day - _EPOCH).days)
        return Labels(
            np.array([user]), np.array([number]), np.array([len(rows)]), features[rows], worth[rows].astype(np.float32)
        )

    @staticmethod
    def concat(parts: Sequence[Labels]) -> Labels:
        """All groups of all parts, in their order."""
        parts = [Labels.none(), *parts]
        columns = zip(*((p.users, p.days, p.sizes, p.features, p.worth) for p in parts), strict=True)
        return Labels(*(np.concatenate(column) for column in columns))

    def where(self, keep: np.ndarray) -> Labels:
        """The groups of a mask, (G,) bool."""
        rows = np.repeat(keep, self.sizes)
        return Labels(self.users[keep], self.days[keep], self.sizes[keep], self.features[rows], self.worth[rows])

    def of_counted(self) -> Labels:
        """The rows that a counted source names, and the groups that are left with something relevant."""
        columns = [FEATURES.index(f"{source}_place") for source in COUNTED]
        rows = ~np.isnan(self.features[:, columns]).all(axis=1)
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        rows &= np.bincount(group[rows], weights=self.worth[rows], minlength=len(self.sizes))[group] > 0
        sizes = np.bincount(group[rows], minlength=len(self.sizes))
        keep = sizes > 0
        return Labels(self.users[keep], self.days[keep], sizes[keep], self.features[rows], self.worth[rows])

    def outside(self, fold: int) -> Labels:
        """The groups of users of every other fold."""
        return self.where(np.array([fold_of(user) != fold for user in self.users], dtype=bool))

    def newest(self, max_groups: int) -> Labels:
        """At most so many groups, those of the newest days."""
        if len(self.users) <= max_groups:
            return self
        keep = np.zeros(len(self.users), dtype=bool)
        keep[np.argsort(self.days, kind="stable")[-max_groups:]] = True
        return self.where(keep)

    @property
    def num_queries(self) -> int:
        """Distinct user-days."""
        return len(set(zip(self.users.tolist(), self.days.tolist(), strict=True)))

    @property
    def span(self) -> list[str]:
        """First and last day as ISO dates, [] without groups."""
        if not len(self.days):
            return []
        return [(_EPOCH + timedelta(days=int(n))).isoformat() for n in (self.days.min(), self.days.max())]

    def save(self, folder: Path) -> None:
        """Write labels.parquet: a row a candidate, groups one after the other."""
        rows = {
            "user_id": pa.array(np.repeat(self.users, self.sizes), pa.string()).dictionary_encode(),
            "day": np.repeat(self.days, self.sizes),
            "group": np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes),
            "worth": self.worth,
        }
        columns = {name: self.features[:, place] for place, name in enumerate(FEATURES)}
        write_parquet(folder / _FILE, pa.table({**rows, **columns}))

    @staticmethod
    def load(folder: Path) -> Labels:
        """Read them. A feature that is newer than the file is not known (NaN); groups with one that is known no more
        are none."""
        table = read_parquet(folder / _FILE)
        told = set(table.column_names[4:])
        if told - set(FEATURES) or not len(table):
            return Labels.none()
        unknown = np.full(len(table), np.nan, dtype=np.float32)
        group = table.column("group").to_numpy()
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        users = np.array(column(table.select(["user_id"]).take(pa.array(starts)), "user_id"))
        return Labels(
            users,
            table.column("day").to_numpy()[starts].astype(np.int32),
            np.diff(np.append(starts, len(group))),
            np.stack([table.column(name).to_numpy() if name in told else unknown for name in FEATURES], axis=1),
            table.column("worth").to_numpy(),
        )


def fold_of(user_id: str) -> int:
    """The fold of a user, the same every day: whoever is shown a figure was not learned from for it."""
    return hash_seed("fold", user_id) % FOLDS
