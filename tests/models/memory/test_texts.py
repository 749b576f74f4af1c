"""Neighbours by text against dense cosines."""

import numpy as np
import pyarrow as pa
import pytest

from models.memory.neighbours import Neighbours
from models.memory.texts import alike, has_words, texts_of, word_vectors
from plumline.schema import ITEMS, conform

WORDS = [f"w{number}" for number in range(30)]


def test_texts_hold_everything_that_describes() -> None:
    rows = [{"item_id": "a", "title": "cup", "channel": "Ivo", "topics": ["kitchen", "tea"]}, {"item_id": "b"}]
    schema = pa.schema({name: ITEMS.schema.field(name).type for name in ("item_id", "title", "channel", "topics")})
    items = conform(pa.Table.from_pylist(rows, schema=schema), ITEMS)
    assert texts_of(items) == ["cup. Ivo. kitchen, tea", ""]
    assert has_words(items, ["a", "b"])
    assert not has_words(items, ["b"])


@pytest.mark.parametrize("seed", range(4))
def test_equals_dense_cosines(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 7))) for _ in range(50)]
    vectors = word_vectors(texts)
    targets = np.flatnonzero(rng.random(50) < 0.6)
    cosines = (vectors @ vectors.T).toarray()
    np.testing.assert_allclose(np.diag(cosines), [bool(text) for text in texts])
    np.fill_diagonal(cosines, 0)
    cosines[:, np.setdiff1d(np.arange(50), targets)] = 0
    monkeypatch.setattr("models.memory.texts._KEPT", 70)  # ten rows a block
    blocks = list(alike(vectors, targets, 6))
    assert len(blocks) == 5
    found = Neighbours.best_of(blocks, 6)
    for row, cosine in enumerate(cosines):
        items, weights = found.row(row)
        best = np.sort(cosine[cosine > 1e-9])[::-1][:6]
        np.testing.assert_allclose(weights, best, rtol=1e-5)
        np.testing.assert_allclose(cosine[items], best, rtol=1e-5)


def test_beyond_the_budget_the_commonest_terms_are_left_out() -> None:
    vectors = word_vectors(["all rare", "all rare", "all", "all", "all other"])
    everything = np.arange(5)
    exact = Neighbours.best_of(alike(vectors, everything, 4), 4)
    assert [len(exact.row(row)[0]) for row in range(5)] == [4] * 5
    # "all": 5 rows times 5 targets; "rare", and the pair "all rare": 2 times 2 each; "other" tells nothing of others
    bounded = Neighbours.best_of(alike(vectors, everything, 4, budget=24), 4)
    assert [bounded.row(row)[0].tolist() for row in range(5)] == [[1], [0], [], [], []]
    assert bounded.row(0)[1][0] < exact.row(0)[1][0]  # from below: the lengths know the left-out term
    assert len(Neighbours.best_of(alike(vectors, everything, 4, budget=33 + 2), 4).items) == len(exact.items)


def test_pairs_of_words_are_terms_if_asked_for() -> None:
    assert word_vectors(["red lamp", "lamp red"]).shape == (2, 4)
    assert word_vectors(["red lamp", "lamp red"], pairs=False).shape == (2, 2)


def test_no_words_no_neighbours() -> None:
    vectors = word_vectors(["", "?!"])
    assert vectors.shape == (2, 0)
    assert len(Neighbours.best_of(alike(vectors, np.arange(2), 3), 3).items) == 0
