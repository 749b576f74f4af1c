"""The teacher: what follows and what reads alike is drawn, what the user has is not."""

import tracemalloc

import numpy as np
import pytest

from models.corpus.teacher import Teacher, TeacherParams, draw

TEXTS = ["red lipstick", "red lipstick matte", "blue shampoo", "blue shampoo mild", "garden chair", ""]
ROWS = np.array([0, 2, 0, 2, 1, 4])  # users: 0 2 | 0 2 | 1 | 4
STARTS = np.array([0, 2, 4, 5, 6])


def test_successors_and_alike_texts_are_candidates():
    teacher = Teacher.fit(ROWS, STARTS, TEXTS, TeacherParams(text_weight=0.5, candidates=6))
    items, chances = teacher.candidates(ROWS, STARTS, np.array([4]))  # the history is item 1 alone
    by_item = dict(zip(items[0].tolist(), chances[0].tolist(), strict=True))
    assert by_item[0] == 1.0  # alike in text; nothing follows item 1, nothing else shares a word
    assert abs(chances.sum() - 1.0) < 1e-6


def test_an_own_item_is_never_a_candidate():
    teacher = Teacher.fit(ROWS, STARTS, TEXTS, TeacherParams(candidates=6))
    items, chances = teacher.candidates(ROWS, STARTS, np.array([0, 1]))
    chance_of = lambda row, item: chances[row][items[row] == item].sum()  # noqa: E731
    assert chance_of(0, 2) == 0.0  # follows item 0 twice, but this user takes it later
    assert chance_of(0, 1) == 1.0
    assert chance_of(1, 3) > chance_of(1, 1) > 0.0  # the newest item counts most


def test_own_items_are_candidates_where_things_are_taken_again():
    rows = np.array([0, 0, 1])  # one user took item 0 twice, another one item 1
    teacher = Teacher.fit(
        rows, np.array([0, 2, 3]), TEXTS, TeacherParams(text_weight=0.5, candidates=6, repeat_weight=2.0)
    )
    items, chances = teacher.candidates(rows, np.array([0, 2, 3]), np.array([1]))
    by_item = dict(zip(items[0].tolist(), chances[0].tolist(), strict=True))
    assert by_item[0] > by_item[1] > 0.0  # itself, taken twice; and what reads alike
    alone = Teacher(teacher.similar, TeacherParams(candidates=6))
    items, chances = alone.candidates(rows, np.array([0, 2, 3]), np.array([1]))
    assert dict(zip(items[0].tolist(), chances[0].tolist(), strict=True)).get(0, 0.0) == 0.0


@pytest.mark.parametrize("text", ["", "?!"])  # none of them is a word
def test_successions_without_words(text):
    teacher = Teacher.fit(ROWS, STARTS, [text] * 6, TeacherParams(candidates=6))
    assert teacher.similar[0, 2] == 2.0
    assert teacher.similar.nnz == 1


def test_nothing_known_draws_nothing():
    teacher = Teacher.fit(ROWS, STARTS, TEXTS, TeacherParams(text_weight=0.0, candidates=3))
    items, chances = teacher.candidates(ROWS, STARTS, np.array([5]))
    assert draw(items, chances, 2, np.random.default_rng(0)).tolist() == [[-1, -1]]


def test_draws_follow_the_chances():
    items, chances = np.array([[7, 8, 9]]), np.array([[0.5, 0.0, 0.5]], dtype=np.float32)
    drawn = draw(items, chances, 4000, np.random.default_rng(0))
    assert set(drawn[0].tolist()) == {7, 9}
    assert abs((drawn == 7).mean() - 0.5) < 0.04


def test_sharpness_favours_the_first():
    chances = {}
    for sharpness in (1.0, 2.0):
        teacher = Teacher.fit(ROWS, STARTS, TEXTS, TeacherParams(candidates=6, sharpness=sharpness))
        items, found = teacher.candidates(ROWS, STARTS, np.array([1]))
        chances[sharpness] = dict(zip(items[0].tolist(), found[0].tolist(), strict=True))
    first, second = chances[1.0][3], chances[1.0][1]  # alike to the newest item, to the one before
    assert chances[2.0][3] / chances[2.0][1] == pytest.approx((first / second) ** 2, rel=1e-4)
    assert sum(chances[2.0].values()) == pytest.approx(1.0, abs=1e-6)


def test_equal_seeds_draw_equal_items():
    items, chances = np.arange(10)[None], np.full((1, 10), 0.1, dtype=np.float32)
    assert (
        draw(items, chances, 20, np.random.default_rng(3)) == draw(items, chances, 20, np.random.default_rng(3))
    ).all()


def test_candidates_equal_a_dense_product():
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 9, 40)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows = rng.integers(0, 25, starts[-1])
    texts = [" ".join(rng.choice([f"w{n}" for n in range(12)], 3)) for _ in range(25)]
    params = TeacherParams(candidates=7, last=3, sharpness=2.0, text_weight=0.5)
    teacher = Teacher.fit(rows, starts, texts, params)
    places = np.arange(len(rows))
    items, chances = teacher.candidates(rows, starts, places)
    dense = teacher.similar.toarray()
    for place in places:
        user = np.searchsorted(starts, place, side="right") - 1
        score = sum(0.8**back * dense[rows[place - back]] for back in range(3) if place - back >= starts[user])
        score[np.unique(rows[starts[user] : starts[user + 1]])] = 0
        best = np.sort(score)[::-1][:7] ** 2
        np.testing.assert_allclose(chances[place], best / max(best.sum(), 1e-9), rtol=1e-4, atol=1e-6)
        known = items[place] >= 0
        np.testing.assert_allclose(
            score[items[place][known]] ** 2 / max(best.sum(), 1e-9), chances[place][known], rtol=1e-4
        )
        assert (chances[place][~known] == 0).all()


def test_no_pair_of_all_items_is_held():
    """Thirty thousand items: a float for each pair would take 3.6 GB, and one for each event and item 600 MB."""
    rng = np.random.default_rng(6)
    number = 30_000
    texts = [f"w{a} w{b}" for a, b in rng.integers(0, 2_000, (number, 2)).tolist()]
    rows, starts = rng.integers(0, number, 5_000), np.arange(0, 5_001, 10)
    tracemalloc.start()
    try:
        teacher = Teacher.fit(rows, starts, texts, TeacherParams())
        items, _ = teacher.candidates(rows, starts, np.arange(len(rows)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert items.shape == (5_000, 30)
    assert peak < 200 * 2**20, f"{peak / 2**20:.0f} MiB"
