"""Boosted trees as tables: scores and exact contributions of some hundred rows while a request waits.

Not a stage. LightGBM grows the trees (`models/ranking/lambdarank.py`) and its text format keeps them; whoever asks them
needs LightGBM no more. A tree of at most 8 leaves asks at most 7 questions, so its answers are a byte, and what it says
is looked up: the value of the leaf, or the contribution of every feature. `benchmarks/bench_ranking.py` measures it
beside LightGBM's walk down every tree.

Shapes: n rows, F features, T trees, C columns, Q = 7 questions of a tree (the last ones may be none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import factorial

import numpy as np

from plumline.errors import CorruptArtifactError

MAX_LEAVES = 8
_QUESTIONS = MAX_LEAVES - 1
_ANSWERS = 1 << _QUESTIONS  # bytes that the answers of a tree can be
_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 1024  # rows asked at once
_LEFT, _MISSING_IS_MISSING = 2, 2  # of LightGBM's decision_type: a bit, and the value of the two bits above it


@dataclass(frozen=True)
class _Tree:
    """One tree. features, thresholds, fills: (q,) of its questions; a missing value is taken for the fill. children:
    (q, 2) int, left and right, negative ones are leaves ~leaf. values: (leaves,). counts, leaf_counts: rows that it was
    grown on, at each question and leaf."""

    features: np.ndarray
    thresholds: np.ndarray
    fills: np.ndarray
    children: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    leaf_counts: np.ndarray

    def leaves(self) -> np.ndarray:
        """(128,) int64: the leaf that each byte of answers leads to; bit q: question q is answered with right."""
        answers = np.arange(_ANSWERS)
        node = np.zeros(_ANSWERS, dtype=np.int64) if len(self.features) else np.full(_ANSWERS, ~0)
        for _ in range(len(self.features)):
            inner = np.maximum(node, 0)
            node = np.where(node < 0, node, self.children[inner, answers >> inner & 1] if len(self.children) else node)
        return ~node

    def contributions(self) -> tuple[np.ndarray, np.ndarray]:
        """TreeSHAP (Lundberg et al. 2020, path-dependent) for each byte of answers, from its definition.

        Returns the distinct features, (m,), and (128, m) float64.
        """
        players, player = np.unique(self.features, return_inverse=True)
        size = len(players)
        answers, coalitions = np.arange(_ANSWERS)[:, None], np.arange(1 << size)[None]

        def expected(node: int) -> np.ndarray:
            """(128, 2^m): what is expected below a node where only the answers to a coalition's features are known."""
            if node < 0:
                return np.full((1, 1), self.values[~node])
            left, right = (expected(int(child)) for child in self.children[node])
            weights = [self._count(int(child)) / self.counts[node] for child in self.children[node]]
            known = np.where(answers >> node & 1 > 0, right, left)
            return np.where(coalitions >> player[node] & 1 > 0, known, weights[0] * left + weights[1] * right)

        values = np.broadcast_to(expected(0), (_ANSWERS, 1 << size))
        members = [coalition.bit_count() for coalition in range(1 << size)]
        found = np.zeros((_ANSWERS, size))
        for one in range(size):
            without = [coalition for coalition in range(1 << size) if not coalition >> one & 1]
            weight = [factorial(members[c]) * factorial(size - members[c] - 1) / factorial(size) for c in without]
            found[:, one] = (values[:, np.array(without) | 1 << one] - values[:, without]) @ weight
        return players, found

    def asked_of(self) -> list[tuple[int, int]]:
        """Of each question what a missing value is taken for (0: zero, 1: -infinity, 2: infinity), and the feature."""
        fills = np.where(self.fills == 0, 0, np.where(self.fills > 0, 2, 1))
        return list(zip(fills.tolist(), self.features.tolist(), strict=True))

    def turned(self) -> np.ndarray:
        """(128,) int64: of each byte of answers as they are asked, the byte of answers where a bit says right."""
        return np.arange(_ANSWERS) ^ sum(1 << place for place, fill in enumerate(self.fills.tolist()) if fill > 0)

    def _count(self, node: int) -> float:
        return float(self.leaf_counts[~node] if node < 0 else self.counts[node])


@dataclass(frozen=True, eq=False)
class Trees:
    """An ensemble. num_features: F of the rows that are asked."""

    num_features: int
    trees: Sequence[_Tree]

    @staticmethod
    def parse(text: str, features: Sequence[str]) -> Trees:
        """Read LightGBM's text format. features: names of the columns of the rows that will be asked, in their order.

        Raises CorruptArtifactError if it is none, of other features, or of trees that have more than 8 leaves.
        """
        try:
            body, end, _ = text.partition("end of trees")
            if not end:
                raise ValueError("no end of trees")
            head, *parts = body.split("\nTree=")
            names = _fields(head)["feature_names"].split()
            column = np.array([features.index(name) for name in names])
            trees = [_read_tree(_fields(part), column) for part in parts]
        except (KeyError, ValueError, IndexError) as error:
            raise CorruptArtifactError(f"trees that cannot be read ({error}); run the stage ranker again") from None
        return Trees(len(features), trees)

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """(n,) float64, the sum of what the trees say. rows: (n, F) float32, finite or NaN (not known)."""
        blocks = [self.ask(rows[at : at + _BLOCK]).scores() for at in range(0, len(rows), _BLOCK)]
        return np.concatenate([np.zeros(0), *blocks])

    def ask(self, rows: np.ndarray) -> Answers:
        """What some hundred rows answer. rows: (n, F) float32, finite or NaN (not known)."""
        columns, zeros, turned, column, thresholds = self._asked
        num_rows = len(rows)
        wide = np.zeros((len(columns), -(-num_rows // 8) * 8), dtype=np.float32)  # whole words of eight bytes
        wide[:, :num_rows] = rows.T[columns]
        np.copyto(wide[:zeros], 0, where=np.isnan(wide[:zeros]))
        np.negative(wide[turned:], out=wide[turned:])
        above = (wide[column] > thresholds).view(np.uint64).reshape(_QUESTIONS, -1)
        answers = above[-1].copy()
        for question in above[-2::-1]:
            answers += answers  # a shift by one of eight answers: a byte has at most seven, and nothing is carried over
            answers |= question
        in_bytes = answers.view(np.uint8).reshape(len(self.trees), -1)[:, :num_rows]
        return Answers(self, in_bytes + np.arange(len(self.trees))[:, None] * _ANSWERS)

    @cached_property
    def _asked(self) -> tuple[np.ndarray, int, int, np.ndarray, np.ndarray]:
        """Of the C columns, one for each feature and fill of it: features, (C,), and how many come before those that
        are not filled with zeros, and before those that are turned.

        Of the Q · T questions, the first one of all trees first: columns and thresholds, (Q · T, 1), as float32 so that
        a float32 is above one whenever it is above the float64 of the tree. Where there is no question: infinity.

        A comparison with NaN is false, so it need not be filled with -infinity. A column that would be filled with
        infinity is turned: -x is asked whether it is above what -threshold is just above of, which says left.
        """
        keys = sorted({key for tree in self.trees for key in tree.asked_of()}) or [(0, 0)]
        column_of = {key: place for place, key in enumerate(keys)}
        column = np.zeros((_QUESTIONS, len(self.trees)), dtype=np.int64)
        thresholds = np.full((_QUESTIONS, len(self.trees)), np.inf, dtype=np.float32)
        for place, tree in enumerate(self.trees):
            column[: len(tree.features), place] = [column_of[key] for key in tree.asked_of()]
            # Below infinity: a tree that asks whether a value is missing at all has that as its threshold.
            below = tree.thresholds.clip(-_LARGEST, _LARGEST).astype(np.float32)
            above = below.astype(np.float64) > tree.thresholds
            below[above] = np.nextafter(below[above], np.float32(-np.inf))
            with np.errstate(over="ignore"):  # beyond the largest lies -infinity, and every value is above that
                turned = np.nextafter(-below, np.float32(-np.inf))
            thresholds[: len(below), place] = np.where(tree.fills > 0, turned, below)
        fills = [fill for fill, _ in keys]
        features = np.array([feature for _, feature in keys])
        return features, fills.count(0), len(fills) - fills.count(2), column.ravel(), thresholds.reshape(-1, 1)

    @cached_property
    def _values(self) -> np.ndarray:
        """(T · 128,) float64."""
        return np.concatenate([tree.values[tree.leaves()[tree.turned()]] for tree in self.trees])

    @cached_property
    def _shapley(self) -> tuple[np.ndarray, np.ndarray]:
        """Features of each tree, (T · Q,), and what they add, (T · 128, Q); made when somebody first asks why."""
        features = np.zeros((len(self.trees), _QUESTIONS), dtype=np.int64)
        values = np.zeros((len(self.trees), _ANSWERS, _QUESTIONS))
        for place, tree in enumerate(self.trees):
            if len(tree.features):
                players, added = tree.contributions()
                features[place, : len(players)], values[place, :, : len(players)] = players, added[tree.turned()]
        return features.ravel(), values.reshape(-1, _QUESTIONS)


@dataclass(frozen=True, eq=False)
class Answers:
    """What n rows answered. places: (T, n) int64, of each tree's answers among those of all trees."""

    trees: Trees
    places: np.ndarray

    def scores(self) -> np.ndarray:
        """(n,) float64, the sum of what the trees say."""
        found: np.ndarray = self.trees._values[self.places].sum(axis=0)
        return found

    def contributions(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), F) float64: what each feature adds to a row's score, compared with the mean of all rows learned
        from. rows: numbers of rows."""
        features, values = self.trees._shapley
        at = features + np.arange(len(rows))[:, None] * self.trees.num_features
        amounts = values[self.places.T[rows]]
        found = np.bincount(at.ravel(), weights=amounts.ravel(), minlength=len(rows) * self.trees.num_features)
        return found.reshape(len(rows), self.trees.num_features)


def _fields(part: str) -> dict[str, str]:
    """The lines `name=value` of a part of the text."""
    return dict(line.split("=", 1) for line in part.splitlines() if "=" in line)


def _read_tree(fields: Mapping[str, str], column: np.ndarray) -> _Tree:
    """One tree. column: of each feature number of the text."""

    def numbers(name: str, kind: type = float) -> np.ndarray:
        return np.array(fields.get(name, "").split(), dtype=kind)

    values, kinds = numbers("leaf_value"), numbers("decision_type", int)
    features = column[numbers("split_feature", int)]
    if int(fields["num_leaves"]) != len(values) or not len(features) + 1 == len(values) <= MAX_LEAVES:
        raise ValueError(f"a tree of {fields['num_leaves']} leaves, at most {MAX_LEAVES}")
    if np.any(kinds & 1) or np.any(kinds >> 2 == 1) or fields.get("is_linear", "0") != "0":
        raise ValueError("a tree of a kind that the stage does not make")
    to_side = np.where(kinds & _LEFT, -np.inf, np.inf)
    children = np.stack([numbers("left_child", int), numbers("right_child", int)], axis=1)
    if sorted(children.ravel().tolist()) != [*range(-len(values), 0), *range(1, len(features))] and len(features):
        raise ValueError("a tree whose branches do not meet every leaf")
    tree = _Tree(
        features=features,
        thresholds=numbers("threshold"),
        fills=np.where(kinds >> 2 == _MISSING_IS_MISSING, to_side, 0.0),
        children=children,
        values=values,
        counts=numbers("internal_count"),
        leaf_counts=numbers("leaf_count"),
    )
    questions = {len(part) for part in (tree.thresholds, tree.fills, tree.children, tree.counts)}
    if questions != {len(features)} or (len(features) and len(tree.leaf_counts) != len(values)):
        raise ValueError("a tree whose parts are of different lengths")
    return tree
