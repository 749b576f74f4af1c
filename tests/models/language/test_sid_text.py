"""What titles say of a SID token: words that stand out count, words of every title do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.language.sid_text import FILE, read_sid_text
from models.language.vocabulary import VocabularyParams
from models.language.vocabulary import run as run_vocabulary
from models.language.words import Vocabulary
from models.semantic_ids.table import SidTable
from plumline.errors import MissingArtifactError
from plumline.schema import ITEMS, conform
from plumline.sid import SidSpace
from plumline.tables import write_parquet

TITLES = ["the red fox", "the red hen", "the blue whale", "", None, "the <sid_0_1> trout"]
CODES = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [3, 1]], np.int32)


def make_vocabulary(folder: Path, world: Any, tie_break: bool, titles: list[str | None] = TITLES) -> Vocabulary:
    ids = [f"i{number}" for number in range(len(titles))]
    items = conform(pa.table({"item_id": ids, "title": pa.array(titles, pa.string())}), ITEMS)
    write_parquet(folder / "catalog" / "items.parquet", items)
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": pa.array([], pa.string())}))
    for name in ("sids", "vocabulary"):
        (folder / name).mkdir()
    SidTable(SidSpace((4, 2)), tie_break, ids, CODES[: len(ids)]).save(folder / "sids")
    inputs = {"catalog": folder / "catalog", "sids": folder / "sids", "histories": world.histories}
    run_vocabulary(VocabularyParams(text_tokens=400), **inputs, base=None, out=folder / "vocabulary")
    return Vocabulary.load(folder / "vocabulary")


def weight_of(words: Vocabulary, code: int, text: str) -> float:
    """Weight of a word's tokens in a SID token."""
    row = read_sid_text(words).toarray()[code]
    return float(row[np.unique(words.encode_phrase(text))].sum())


def test_words_that_stand_out_count(tmp_path: Path, world: Any) -> None:
    words = make_vocabulary(tmp_path, world, tie_break=False)
    found = read_sid_text(words)
    assert found.shape == (6, words.reserved_base)
    assert np.asarray(found.sum(axis=1)).ravel() == pytest.approx([1, 1, 0, 1, 1, 1])  # code 2: no title
    assert weight_of(words, 0, " red") > weight_of(words, 0, " the")
    assert weight_of(words, 0, " red") > 3 * weight_of(words, 1, " red")
    assert weight_of(words, 1, " blue") > 0.2
    assert weight_of(words, 0, " blue") < weight_of(words, 1, " blue")


def test_a_tie_break_digit_means_nothing(tmp_path: Path, world: Any) -> None:
    found = read_sid_text(make_vocabulary(tmp_path, world, tie_break=True))
    assert np.asarray(found.sum(axis=1)).ravel() == pytest.approx([1, 1, 0, 1, 0, 0])


def test_a_catalogue_without_titles(tmp_path: Path, world: Any) -> None:
    assert read_sid_text(make_vocabulary(tmp_path, world, False, [None, "", None])).nnz == 0


def test_a_vocabulary_of_before_is_named(tmp_path: Path, world: Any) -> None:
    words = make_vocabulary(tmp_path, world, tie_break=False)
    (tmp_path / "vocabulary" / FILE).unlink()
    with pytest.raises(MissingArtifactError, match="models.language.vocabulary"):
        read_sid_text(words)
