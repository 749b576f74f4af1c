"""Where codebooks start: k-means, or the items that carried the codes before; few points and equal points included."""

import numpy as np

from models.semantic_ids.codebooks import inherited, kmeans, sample_points, start_codebook


def test_kmeans_finds_what_is_there() -> None:
    generator = np.random.default_rng(0)
    places = generator.normal(size=(8, 3)) * 20
    points = (places[generator.integers(8, size=400)] + generator.normal(size=(400, 3)) * 0.01).astype(np.float32)
    centres = kmeans(points, 8, seed=1)
    assert np.array_equal(centres, kmeans(points, 8, seed=1))
    distance = np.linalg.norm(points[:, None] - centres[None], axis=2).min(axis=1)
    assert np.median(distance) < 0.1


def test_fewer_points_than_codes_are_the_codes_themselves() -> None:
    points = np.array([[1, 0], [0, 0], [1, 0]], np.float32)
    assert kmeans(points, 4, seed=0).tolist() == [[0, 0], [1, 0], [1, 0], [1, 0]]


def test_points_that_kmeans_looks_at_are_some_rows_each_once() -> None:
    assert sample_points(100, 4, seed=0).tolist() == list(range(100))
    rows = sample_points(200_000, 2048, seed=0)
    assert len(rows) == len(set(rows.tolist())) == 32 * 2048
    assert (np.diff(rows) > 0).all()


def test_a_level_that_the_older_table_lacks_starts_anew() -> None:
    points = np.array([[0, 0], [4, 4]], np.float32)
    old = np.array([[1], [1]])
    assert start_codebook(points, 0, 2, 0, old)[1].tolist() == [2, 2]
    assert sorted(start_codebook(points, 1, 2, 0, old).tolist()) == [[0, 0], [4, 4]]
    assert sorted(start_codebook(points, 0, 2, 0, np.full((2, 1), -1)).tolist()) == [[0, 0], [4, 4]]


def test_inherited_centres_by_hand() -> None:
    points = np.array([[0.0, 0], [2, 0], [5, 5], [9, 9]], np.float32)
    centres = inherited(points, np.array([1, 1, -1, 7]), 3, seed=0)
    assert centres[1].tolist() == [1, 0]
    assert all(row in points.tolist() for row in centres[[0, 2]].tolist())  # nobody carried 0 or 2; 7 is no code
