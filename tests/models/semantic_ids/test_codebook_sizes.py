"""Sizes that a recipe leaves open: what is counted, and which sizes follow from it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.codebook_sizes import Contents, codebook_sizes, tie_break_size
from models.semantic_ids.vectors import VectorFile, Vectors
from plumline.errors import InputError


@pytest.mark.parametrize(
    ("num_contents", "sizes"),
    [
        (0, (64, 64)),
        (2, (64, 64)),
        (320, (64, 64)),
        (321, (128, 256)),
        (2_560, (128, 256)),
        (2_561, (256, 256)),
        (4_576, (256, 256)),  # examples/online_retail, whose figures everywhere in docs/ are of these sizes
        (5_120, (256, 256)),
        (5_121, (512, 512)),
        (10_241, (1024, 512)),
        (17_000, (1024, 512)),
        (20_481, (2048, 1024)),
        (40_961, (1024, 512, 256)),
        (1_000_000, (1024, 512, 256)),
        (1_000_001, (2048, 1024, 512)),
        (10**8, (2048, 1024, 512)),
    ],
)
def test_sizes_follow_from_the_number_of_contents(num_contents: int, sizes: tuple[int, ...]) -> None:
    assert codebook_sizes(num_contents) == sizes


@given(st.integers(0, 2_000_000), st.integers(0, 2_000_000))
def test_more_contents_never_get_fewer_sids(one: int, other: int) -> None:
    small, large = sorted((one, other))
    assert np.prod(codebook_sizes(small)) <= np.prod(codebook_sizes(large))


def vectors_of(**modalities: list[list[float]]) -> Vectors:
    arrays = {name: np.array(rows, np.float32) for name, rows in modalities.items()}
    num_items = len(next(iter(arrays.values())))
    ids = [f"i{row}" for row in range(num_items)]
    return Vectors(ids, arrays, {name: values.any(axis=1) for name, values in arrays.items()})


def contents_of(folder: Path, vectors: Vectors, modalities: tuple[str, ...] | None = None) -> Contents:
    vectors.save(folder)
    return Contents.of(VectorFile(folder), modalities)


def test_items_of_equal_vectors_have_one_content(tmp_path: Path) -> None:
    tags, text = [[1, 2], [1, 2], [1, 2], [0, 0], [-0.0, 0]], [[5], [5], [6], [0], [0]]
    contents = contents_of(tmp_path, vectors_of(tags=tags, text=text))
    assert contents.first.tolist() == [True, False, True, True, False]
    assert (contents.number, contents.num_alone, contents.uniqueness) == (3, 1, 0.2)


def test_only_what_the_quantiser_sees_counts(tmp_path: Path) -> None:
    vectors = vectors_of(tags=[[1, 2], [1, 2], [3, 4]], text=[[5], [6], [7]])
    assert contents_of(tmp_path, vectors).number == 3
    contents = contents_of(tmp_path, vectors, ("tags",))
    assert (contents.number, contents.num_alone) == (2, 1)
    with pytest.raises(InputError, match="no modality 'emb_x'"):
        contents_of(tmp_path, vectors, ("emb_x",))


def test_blocks_of_the_file_do_not_matter(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 9_000, 20_000)  # three row groups
    contents = contents_of(tmp_path, vectors_of(x=[[row] for row in rows.tolist()]))
    values, counts = np.unique(rows, return_counts=True)
    assert (contents.number, contents.num_alone) == (len(values), (counts == 1).sum())
    assert sorted(rows[contents.first]) == values.tolist()


def test_no_items_have_no_content(tmp_path: Path) -> None:
    contents = contents_of(tmp_path, vectors_of(x=[[1.0]]).take(np.arange(0)))
    assert (contents.number, contents.num_alone, contents.uniqueness) == (0, 0, 0)


def prefixes(*bucket_sizes: int) -> np.ndarray:
    """Codes of items: so many with the first, so many with the second."""
    return np.repeat(np.arange(len(bucket_sizes)), bucket_sizes)[:, None] * np.ones((1, 2), int)


@pytest.mark.parametrize(
    ("buckets", "digits"),
    [
        ((), 16),
        ((1, 1, 1), 16),
        ((16, 1), 16),
        ((17, 1), 32),
        ((17, *[1] * 982), 32),
        ((17, *[1] * 983), 16),  # one item in a thousand may share the last digit
        ((17, 17, *[1] * 1_000), 32),
        ((33,), 64),
        ((230, 139, 20), 256),
        ((1_024,), 1_024),
        ((5_000,), 1_024),  # and no more
    ],
)
def test_the_tie_break_holds_the_largest_bucket(buckets: tuple[int, ...], digits: int) -> None:
    assert tie_break_size(prefixes(*buckets)) == digits
