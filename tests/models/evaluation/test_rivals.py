"""Rivals are asked what the ranker is asked, and answer without a language model."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from models.baselines.sasrec import SasRec
from models.evaluation.ranked_lists import Ranked
from models.evaluation.rivals import RivalsParams
from models.ranking.ranker import METHODS, RankerParams
from models.retrieval.held_out import LEAVE_ONE_OUT, MASKED, NEXT_DAY, PLAIN, draw, read_lists, read_sample
from plumline.artifact import read_json
from plumline.errors import InputError
from plumline.schema import QUERIES
from plumline.tables import write_parquet

SIMPLE = ["popularity", "own", "item_knn", "text_knn", "knn_sum", "star"]


def test_every_held_out_request_has_a_list_of_every_rival(world: Any, rivals: Path) -> None:
    lists = read_lists(rivals)
    for task, last in ((NEXT_DAY, False), (LEAVE_ONE_OUT, True)):
        queries = read_sample(world.histories, 10**6, 17, last_events=last)
        assert queries
        for name in [*SIMPLE, "sasrec"]:
            plain = lists[task, PLAIN, name]
            assert plain.keys() == {(query.user_id, query.day) for query in queries}
            assert all(0 < len(items) == len(set(items)) <= 10 for items in plain.values())
            assert {item for items in plain.values() for item in items} <= set(world.live)
            masked = lists[task, MASKED, name]
            assert masked.keys() == {(q.user_id, q.day) for q in queries if q.relevant - q.seen}
            seen = {(query.user_id, query.day): query.seen for query in queries}
            assert not any(set(items) & seen[key] for key, items in masked.items())
    assert read_json(rivals / "report.json")["rivals"] == [*SIMPLE, "sasrec"]


def test_twice_the_same_bytes(rivals: Path, list_rivals: Callable[..., Path], tmp_path: Path) -> None:
    again = list_rivals(tmp_path / "again")
    assert (again / "lists.parquet").read_bytes() == (rivals / "lists.parquet").read_bytes()


def test_sasrec_is_trained_without_a_base_only(list_rivals: Callable[..., Path], tmp_path: Path) -> None:
    daily = list_rivals(tmp_path / "daily", base=tmp_path)
    assert read_json(daily / "report.json")["rivals"] == SIMPLE
    assert {method for _, _, method in read_lists(daily)} == set(SIMPLE)


@pytest.mark.parametrize("fewer", [0, 1])
def test_sasrec_s_loss_is_over_so_many_items_at_most(
    world: Any, list_rivals: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewer: int
) -> None:
    told, fit = [], SasRec.fit
    monkeypatch.setattr(SasRec, "fit", staticmethod(lambda *a, **o: told.append(o["num_negatives"]) or fit(*a, **o)))
    most = len(world.live) - fewer
    list_rivals(tmp_path / "out", sasrec_max_items=most)
    assert told == [most if fewer else None]


def test_nothing_held_out_fits_nothing(world: Any, list_rivals: Callable[..., Path], tmp_path: Path) -> None:
    histories = shutil.copytree(world.histories, tmp_path / "histories")
    for name in ("queries", "last_events"):
        write_parquet(histories / f"{name}.parquet", QUERIES.schema.empty_table())
    out = list_rivals(tmp_path / "out", histories=histories)
    assert read_lists(out) == {}
    assert read_json(out / "report.json") == {"rivals": [], "num_queries": {NEXT_DAY: 0, LEAVE_ONE_OUT: 0}}


def test_a_smaller_sample_lies_in_a_larger_one(world: Any) -> None:
    queries = read_sample(world.histories, 10**6, 17)
    samples = [draw(queries, size, 5) for size in range(1, len(queries) + 1)]
    for less, more in pairwise(samples):
        assert set(map(id, less)) < set(map(id, more))
    assert [query for query in queries if query in samples[3]] == samples[3]  # in their order
    assert draw(queries, 3, 5) != draw(queries, 3, 6)
    for name in ("max_queries", "leave_one_out_queries"):
        assert getattr(RivalsParams(), name) == getattr(RankerParams(), name)


def test_fewer_requests_than_the_ranker_are_refused(
    world: Any, rank: Callable[..., Path], list_rivals: Callable[..., Path], tmp_path: Path
) -> None:
    lists = read_lists(rank(tmp_path / "ranker")) | read_lists(list_rivals(tmp_path / "few", max_queries=3))
    queries = read_sample(world.histories, 10**6, 17)
    with pytest.raises(InputError, match="section rivals to those of its section ranker or more"):
        Ranked.of(NEXT_DAY, queries, lists)
    found = Ranked.of(NEXT_DAY, read_sample(world.histories, 3, 17), lists)
    assert list(found.lists) == [*METHODS, *SIMPLE, "sasrec"]
