"""Trees as tables against LightGBM's own walk, and against the definition of Shapley values."""

from __future__ import annotations

import itertools
import math

import lightgbm
import numpy as np
import pytest
from pydantic import ValidationError

from models.ranking.lambdarank import LambdarankParams
from models.ranking.trees import MAX_LEAVES, Trees
from plumline.errors import CorruptArtifactError

NAMES = [f"f{number}" for number in range(7)]


def sample(rows: int, seed: int) -> np.ndarray:
    """Rows with gaps, repeats and zeros, of which only some columns have gaps."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, len(NAMES))).astype(np.float32)
    table[:, 2] = np.rint(3 * table[:, 2])
    table[:, 3] = np.where(rng.random(rows) < 0.4, 0, np.abs(table[:, 3]))
    for column, share in ((1, 0.3), (2, 0.1), (4, 0.9)):
        table[rng.random(rows) < share, column] = np.nan
    return table


def grow(columns: list[int], leaves: int = 8, rounds: int = 30, min_leaf: int = 3, seed: int = 1) -> lightgbm.Booster:
    rng = np.random.default_rng(seed)
    table = sample(400, seed)
    filled = np.nan_to_num(table, nan=-2)
    goal = filled[:, 0] * filled[:, 2] + (filled[:, 1] > 0) - filled[:, 4] + 0.3 * rng.normal(size=len(table))
    goal = np.digitize(goal, np.quantile(goal, [0.5, 0.8]))
    data = lightgbm.Dataset(
        table[:, columns], goal, group=[20] * 20, feature_name=[NAMES[column] for column in columns],
        params={"verbosity": -1, "min_data_in_bin": 1},
    )  # fmt: skip
    settings = {"objective": "lambdarank", "num_leaves": leaves, "min_data_in_leaf": min_leaf, "num_threads": 1}
    settings |= {"verbosity": -1, "deterministic": True, "seed": seed}
    return lightgbm.train(settings, data, rounds)


def every(trees: Trees, rows: np.ndarray) -> np.ndarray:
    """The contributions of all rows."""
    return trees.ask(rows).contributions(np.arange(len(rows)))


@pytest.mark.parametrize("columns", [list(range(7)), [4, 1, 2], [3]])
@pytest.mark.parametrize("leaves", [2, 5, MAX_LEAVES])
def test_scores_and_contributions_are_lightgbm_s(columns: list[int], leaves: int) -> None:
    booster = grow(columns, leaves)
    trees = Trees.parse(booster.model_to_string(), NAMES)
    for seed in (1, 2):
        rows = sample(50, seed)
        rows[:10, 5] = np.nan  # a gap where the trees have seen none
        rows[0] = np.nan
        rows[1] = 0
        asked = rows[:, columns]
        np.testing.assert_allclose(trees.scores(rows), booster.predict(asked), rtol=1e-12, atol=1e-12)
        found, theirs = every(trees, rows), np.asarray(booster.predict(asked, pred_contrib=True))
        np.testing.assert_allclose(found[:, columns], theirs[:, :-1], atol=1e-12)
        others = [column for column in range(len(NAMES)) if column not in columns]
        assert not found[:, others].any()


def test_a_row_at_a_threshold_goes_left_and_one_just_above_it_right() -> None:
    booster = grow([0, 2])
    trees = Trees.parse(booster.model_to_string(), NAMES)
    edges = {float(t) for tree in trees.trees for t in tree.thresholds if np.isfinite(t)}
    edges = {edge for edge in edges if abs(edge) > 1e-30}  # LightGBM takes less for nothing before it asks
    values = [np.float32(edge) for edge in edges]
    values += [np.nextafter(value, np.float32(side)) for value in values for side in (-np.inf, np.inf)]
    rows = np.zeros((2 * len(values), len(NAMES)), dtype=np.float32)
    rows[: len(values), 0] = rows[len(values) :, 2] = values
    np.testing.assert_allclose(trees.scores(rows), booster.predict(rows[:, [0, 2]]), rtol=1e-12, atol=1e-12)


def test_contributions_are_shapley_values_by_their_definition() -> None:
    """One tree by all orders in which its features become known."""
    trees = Trees.parse(grow(list(range(7)), rounds=3).model_to_string(), NAMES)
    tree = Trees(len(NAMES), trees.trees[2:3])
    one = trees.trees[2]
    row = sample(1, 7)[0]

    def expected(known: frozenset[int], node: int = 0) -> float:
        if node < 0:
            return float(one.values[~node])
        feature, sides = int(one.features[node]), one.children[node].tolist()
        if feature in known:
            value = one.fills[node] if np.isnan(row[feature]) else row[feature]
            return expected(known, sides[int(value > one.thresholds[node])])
        counts = [one.leaf_counts[~side] if side < 0 else one.counts[side] for side in sides]
        return sum(c * expected(known, side) for c, side in zip(counts, sides, strict=True)) / sum(counts)

    players = sorted(set(one.features.tolist()))
    wanted = np.zeros(len(NAMES))
    for order in itertools.permutations(players):
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            wanted[player] += expected(before | {player}) - expected(before)
    wanted /= math.factorial(len(players))
    assert len(players) > 2
    np.testing.assert_allclose(every(tree, row[None])[0], wanted, atol=1e-12)
    assert wanted.sum() + expected(frozenset()) == pytest.approx(tree.scores(row[None])[0])


def test_many_rows_are_what_each_is_alone() -> None:
    trees = Trees.parse(grow(list(range(7))).model_to_string(), NAMES)
    rows = sample(2500, 3)
    together = trees.scores(rows)
    for place in (0, 1023, 1024, 2048, 2499):
        assert together[place] == pytest.approx(trees.scores(rows[[place]])[0], rel=1e-12)
    assert trees.scores(rows[:0]).shape == (0,)
    assert every(trees, rows[:0]).shape == (0, len(NAMES))


def test_where_nothing_can_be_learned_all_are_alike() -> None:
    """No leaf may be so small that a question is asked."""
    booster = grow(list(range(7)), min_leaf=1000, rounds=3)
    trees = Trees.parse(booster.model_to_string(), NAMES)
    rows = sample(4, 3)
    np.testing.assert_allclose(trees.scores(rows), booster.predict(rows), atol=1e-12)
    assert not every(trees, rows).any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("f3", "f9"), "f9"),
        (lambda text: text.replace("num_leaves=8", "num_leaves=9"), "9 leaves"),
        (lambda text: text.replace("is_linear=0", "is_linear=1"), "of a kind"),
        (lambda text: text.replace("decision_type=", "decision_type=1 "), ""),
        (lambda text: text[: len(text) // 3], ""),
        (lambda text: "no trees at all", "no end of trees"),
        (lambda text: "end of trees", "feature_names"),
        (lambda text: text.replace("leaf_value=", "leaf_value=x"), ""),
        (lambda text: text.replace("left_child=", "left_child=7"), ""),
    ],
)
def test_what_is_no_such_trees_is_refused_in_one_line(change, said) -> None:
    text = grow(list(range(7)), rounds=3).model_to_string()
    with pytest.raises(CorruptArtifactError, match="run the stage ranker again") as caught:
        Trees.parse(change(text), NAMES)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trees_of_more_leaves_cannot_be_looked_up() -> None:
    with pytest.raises(CorruptArtifactError, match="a tree of 12 leaves, at most 8"):
        Trees.parse(grow(list(range(7)), leaves=12).model_to_string(), NAMES)
    with pytest.raises(ValidationError, match="less than or equal to 8"):
        LambdarankParams(leaves=9)
