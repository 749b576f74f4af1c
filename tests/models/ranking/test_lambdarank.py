"""What orders candidates: trees that are the same twice, and fused ranks by hand."""

import numpy as np
import pytest

from models.ranking.candidates import COUNTED, SOURCES, Candidates
from models.ranking.features import FEATURES, MODEL, group_of
from models.ranking.labels import Labels
from models.ranking.lambdarank import ALL, WITHOUT_MODEL, LambdarankParams, fuse, train

PARAMS = LambdarankParams(rounds=15, leaves=4, min_leaf=5)


@pytest.fixture(scope="module")
def labels() -> Labels:
    """Sixty groups of ten; the candidate with the largest `own_count` was taken, and its beam says nothing."""
    rng = np.random.default_rng(4)
    table = rng.normal(size=(600, len(FEATURES))).astype(np.float32)
    best = table[:, FEATURES.index("own_count")].reshape(60, 10).argmax(axis=1)
    worth = np.zeros((60, 10), np.float32)
    worth[np.arange(60), best] = 1.0
    users = np.array([f"u{number}" for number in range(60)])
    return Labels(users, np.zeros(60, np.int32), np.full(60, 10), table, worth.ravel())


def test_the_same_trees_twice_and_others_by_the_seed(labels: Labels) -> None:
    first = train(labels, ALL, PARAMS, 3).model_to_string()
    assert train(labels, ALL, PARAMS, 3).model_to_string() == first
    assert train(labels, ALL, PARAMS, 4).model_to_string() != first


def test_what_was_taken_comes_first(labels: Labels) -> None:
    booster = train(labels, ALL, LambdarankParams(rounds=60, leaves=8, min_leaf=5, feature_fraction=1.0), 3)
    scores = np.asarray(booster.predict(labels.features)).reshape(60, 10)
    assert (scores.argmax(axis=1) == labels.worth.reshape(60, 10).argmax(axis=1)).mean() > 0.9


def test_without_the_model_nothing_of_it_is_seen(labels: Labels) -> None:
    names = [FEATURES[column] for column in WITHOUT_MODEL]
    assert not {group_of(name) for name in names} & set(MODEL)
    assert not {"model_score", "model_behind", "model_place", "beam_score", "sid_first"} & set(names)
    assert {group_of(name) for name in set(FEATURES) - set(names)} == set(MODEL)
    assert train(labels, WITHOUT_MODEL, PARAMS, 3).feature_name() == names


def test_ranks_are_fused_by_hand() -> None:
    places = np.full((3, len(SOURCES)), np.nan, dtype=np.float32)
    places[0, SOURCES.index("own")] = 0
    places[0, SOURCES.index("beam")] = 1
    places[1, SOURCES.index("next")] = 4
    candidates = Candidates(np.arange(3), places, places)
    assert fuse(candidates) == pytest.approx([1 / 61 + 1 / 62, 1 / 65, 0])
    assert fuse(candidates, COUNTED) == pytest.approx([1 / 61, 1 / 65, 0])
