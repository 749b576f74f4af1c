"""The text kNN against cosines in plain numpy; the sum against its two parts."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from models.baselines.item_knn import ItemKnn
from models.baselines.knn_sum import KnnSum
from models.baselines.text_knn import TextKnn
from models.memory.texts import texts_of
from plumline.errors import InputError
from plumline.schema import ITEMS, conform

TITLES = {"a": "red lamp", "b": "red lamp big", "c": "blue cup", "d": "blue lamp", "e": None, "gone": "cup"}


@pytest.fixture
def items() -> pa.Table:
    rows = [{"item_id": item, "title": title} for item, title in TITLES.items()]
    rows[2] |= {"channel": "Ivo", "topics": ["kitchen", "tea"]}
    schema = pa.schema({name: ITEMS.schema.field(name).type for name in ("item_id", "title", "channel", "topics")})
    return conform(pa.Table.from_pylist(rows, schema=schema), ITEMS)


def test_texts_hold_everything_that_describes(items: pa.Table) -> None:
    assert texts_of(items) == ["red lamp", "red lamp big", "blue cup. Ivo. kitchen, tea", "blue lamp", "", "cup"]


def test_scores_are_decayed_sums_of_cosines(items: pa.Table, make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["a", "gone"], ["e", "e"]])
    ranker = TextKnn.fit(histories, ["e", "d", "c", "b", "a"], items, decay=0.5, last=2)
    assert ranker.known_ids == ["a", "b", "c", "d", "e", "gone"]
    vectors = ranker.vectors.toarray()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 1, 0, 1])
    cosines = vectors @ vectors[:5].T
    scores = ranker.users([["c", "gone", "a"]]) @ ranker.words
    np.testing.assert_allclose(scores.toarray(), [cosines[0] + 0.5 * cosines[5]])
    assert ranker.rank([["a"], ["gone"]], 2, [{"a"}, set()]) == [["b", "d"], ["c", "e"]]  # e: nothing alike, popular
    assert ranker.rank([[]], 1, [set()]) == [["e"]]


def test_without_a_word_it_says_so(make_histories: Callable[..., pa.Table]) -> None:
    items = conform(pa.table({"item_id": ["a"], "title": ["..."]}), ITEMS)
    with pytest.raises(InputError, match="none of 1 items has a word"):
        TextKnn.fit(make_histories([["a"]]), ["a"], items)


def test_the_sum_adds_text_to_counts(items: pa.Table, make_histories: Callable[..., pa.Table]) -> None:
    histories = make_histories([["a", "c"], ["a", "d"], ["b", "e"]])
    listed = list("abcde")
    knn, text = ItemKnn.fit(histories, listed), TextKnn.fit(histories, listed, items)
    both = KnnSum(knn, text, text_weight=0.25)
    wanted = knn.scores([["a"]]).toarray()[0] + 0.25 * (text.users([["a"]]) @ text.words).toarray()[0]
    assert [listed.index(item) for item in both.rank([["a"]], 4, [set()])[0]] == np.argsort(-wanted)[:4].tolist()
    assert both.rank([["a"]], 3, [{"a"}]) == [["d", "c", "b"]]  # c and d follow a equally often; d is more like it
    with pytest.raises(ValueError, match="same item_ids"):
        KnnSum(knn, TextKnn.fit(histories, ["a"], items))
