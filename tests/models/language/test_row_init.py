"""Where reserved rows start: codes that are near stay near, levels stay apart, nothing is ever twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.language.row_init import _orthonormal, read_codebooks, read_titles, reserved_rows
from models.language.words import Vocabulary
from models.semantic_ids.frozen_quantizer import Quantizer
from plumline.errors import MixedReleaseError


@pytest.fixture(scope="module")
def words(world: Any) -> Vocabulary:
    return Vocabulary.load(world.vocabulary)


def rows_of(words: Vocabulary, rows: np.ndarray, first: int, size: int) -> np.ndarray:
    return rows[first - words.reserved_base :][:size]


def cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ unit.T


def test_the_geometry_of_the_codes_is_kept(world: Any, words: Vocabulary) -> None:
    codebooks = read_codebooks(world.quantizer, words)
    assert [codes.shape for codes in codebooks] == [(4, 5), (3, 5), (3, 5)]
    mean = np.linspace(-1, 1, 64)
    rows = reserved_rows(words, codebooks, mean, 0.2, np.random.default_rng(1))
    assert rows.dtype == np.float32
    assert rows.shape == (len(words.reserved), 64)
    levels = np.split(rows[words.sid_base - words.reserved_base :] - mean, [4, 7])
    for level, codes in zip(levels, codebooks, strict=True):
        assert np.sqrt(np.square(level).mean()) == pytest.approx(0.2, rel=0.1)
        centred = codes - codes.mean(axis=0)
        np.testing.assert_allclose(cosines(level), cosines(centred), atol=0.15)  # noise of a tenth
    between = np.concatenate(levels) @ np.concatenate(levels).T
    assert np.abs(between[:4, 4:]).max() < 0.3 * np.abs(between[:4, :4]).max()
    again = reserved_rows(words, codebooks, mean, 0.2, np.random.default_rng(1))
    np.testing.assert_array_equal(rows, again)


@pytest.mark.parametrize("known", [True, False])
def test_neighbouring_buckets_are_alike(world: Any, words: Vocabulary, known: bool) -> None:
    codebooks = read_codebooks(world.quantizer, words) if known else None
    mean = np.ones(64)
    rows = reserved_rows(words, codebooks, mean, 0.2, np.random.default_rng(1)) - mean
    spread = 0.2 if known else 0.02
    assert np.sqrt(np.square(rows).mean()) == pytest.approx(spread, rel=0.1)
    age = words.numbers["item_age_days"]
    for first, size in ((words.gap_base, len(words.gap_edges)), (age.first_id, age.num_buckets)):
        alike = cosines(rows_of(words, rows, first, size))
        assert (np.diag(alike, 1) > 0.9).all()
        assert (np.diff(alike[0]) < 0).all()  # the further, the less alike
        assert abs(alike[0, -1]) < 0.4
    control = cosines(rows_of(words, rows, words.reserved_base, 7))
    assert np.abs(control - np.eye(7)).max() < 0.5


def test_a_level_without_a_codebook_is_random(world: Any, words: Vocabulary) -> None:
    """The tie-break digit: no code stands behind it."""
    codebooks = read_codebooks(world.quantizer, words)
    rows = reserved_rows(words, codebooks[:2], np.zeros(64), 0.2, np.random.default_rng(1))
    last = rows[-3:]
    assert np.sqrt(np.square(last).mean()) == pytest.approx(0.2, rel=0.2)
    assert np.abs(cosines(last) - np.eye(3)).max() < 0.5


def test_titles_put_a_code_at_its_words(world: Any, words: Vocabulary) -> None:
    text = np.random.default_rng(3).standard_normal((words.reserved_base, 64))
    levels = read_titles(words, text)
    assert [level.shape for level in levels] == [(4, 64), (3, 64), (3, 64)]
    rows = reserved_rows(words, levels, text.mean(axis=0), 0.2, np.random.default_rng(1), turned=False)
    for level, found in zip(
        levels, np.split(rows[words.sid_base - words.reserved_base :] - text.mean(axis=0), [4, 7]), strict=True
    ):
        centred = level - level.mean(axis=0)
        at = [
            found[code] @ centred[code] / np.linalg.norm(found[code]) / np.linalg.norm(centred[code]) for code in (0, 1)
        ]
        assert min(at) > 0.95
        assert np.sqrt(np.square(found).mean()) == pytest.approx(0.2, rel=0.1)


def test_a_code_without_a_title_is_random(words: Vocabulary) -> None:
    levels = [np.full((4, 16), np.nan), np.vstack([np.full(16, np.nan), np.eye(2, 16)])]
    rows = reserved_rows(words, levels, np.zeros(16), 0.2, np.random.default_rng(1), turned=False)
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == len(rows)
    sids = rows[words.sid_base - words.reserved_base :]
    assert np.sqrt(np.square(sids[:5]).mean()) == pytest.approx(0.2, rel=0.3)
    assert sids[5, 0] > 0.2 > sids[6, 0]  # the two with a title lie on either side of their mean


def test_a_code_that_stands_twice_gets_two_rows(words: Vocabulary) -> None:
    codebooks = [np.zeros((4, 5), np.float32), np.ones((3, 5), np.float32), np.ones((3, 5), np.float32)]
    rows = reserved_rows(words, codebooks, np.zeros(16), 0.2, np.random.default_rng(1))
    assert np.isfinite(rows).all()
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(("widths", "width"), [([3, 4], 8), ([5, 5], 8), ([12, 3], 8), ([8], 8)])
def test_maps_keep_lengths(widths: list[int], width: int) -> None:
    maps = _orthonormal(widths, width, np.random.default_rng(2))
    assert [turn.shape for turn in maps] == [(one, width) for one in widths]
    for turn in maps:
        gram = turn @ turn.T if len(turn) <= width else turn.T @ turn
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)
    if sum(widths) <= width and len(maps) == 2:
        np.testing.assert_allclose(maps[0] @ maps[1].T, 0, atol=1e-12)


def test_codebooks_of_another_run_are_refused(words: Vocabulary, tmp_path: Path) -> None:
    for codebooks in ((4, 3, 2), (4,), (4, 3, 3, 2)):
        Quantizer("rq_kmeans", {"text": 5}, codebooks, {}, {}).save(tmp_path)
        with pytest.raises(MixedReleaseError, match="take both from one run"):
            read_codebooks(tmp_path, words)
