"""Requests → items against an exhaustive ranking of every live item."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalog import Catalog
from models.retrieval import beam
from models.retrieval.beam import Beams
from models.retrieval.retriever import Ask, Request, Retriever
from models.semantic_ids.table import SidTable
from plumline.errors import InputError, MixedReleaseError
from plumline.sid import SidSpace
from plumline.tables import read_parquet, write_parquet

DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def retriever(world: Any) -> Retriever:
    return load(world)


def load(world: Any, **changes: Path) -> Retriever:
    folders = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    return Retriever.load(**{**folders, "weights": world.sft / "weights", **changes}, device="cpu")


def exhaustive(world: Any, retriever: Retriever, request: Request) -> list[tuple[str, float]]:
    """Every live item with the score of its SID by one plain forward pass each, best first."""
    prompt = retriever.prompt(request).token_ids
    items = Catalog.load(world.catalog).items
    first_seen = dict(zip(items.column("item_id").to_pylist(), items.column("first_seen_day").to_pylist(), strict=True))
    rows = []
    for item in world.live:
        codes = retriever.codes_of[item]
        sid = retriever.vocabulary.sid_token_ids(np.array(codes)).tolist()
        with torch.no_grad():
            logp = torch.log_softmax(retriever.model(torch.tensor([prompt + sid])).logits[0].double(), dim=-1)
        score = sum(float(logp[len(prompt) - 1 + level, token]) for level, token in enumerate(sid))
        rows.append((-round(score, 4), codes, -first_seen[item].toordinal(), item, score))
    return [(item, score) for _, _, _, item, score in sorted(rows)]


@pytest.mark.parametrize(("width", "sizes"), [(10, [16, 16, 8]), (2000, [2] * 20), (8000, [1] * 40)])
def test_requests_go_sixteen_at_a_time_or_as_many_as_fit_the_memory(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch, width: int, sizes: list[int]
) -> None:
    """The mask of one pass has at most 2**24 entries: requests x beams x (prompt and the codes of all beams)."""
    found: list[int] = []

    def search(model: Any, prompts: list[list[int]], searches: list[beam.Search], **about: Any) -> list[list[Beams]]:
        found.append(len(prompts))
        nothing = Beams(np.zeros((0, 3), dtype=np.int64), np.zeros(0, dtype=np.float32))
        return [[nothing] * len(prompts) for _ in searches]

    monkeypatch.setattr(beam, "beam_searches", search)
    some = [Request(history=[("item01", 0)])] * 40
    retriever.beams(some, width)
    assert found == sizes
    found.clear()
    everything = [None] * len(some)
    retriever.retrieve_each(some, [Ask(everything, width // 2)] * 2, 10)  # beams of both stand side by side
    assert found == sizes


@st.composite
def requests(draw: st.DrawFn) -> Request:
    names = st.sampled_from([f"item{number:02d}" for number in range(24)] + ["unknown"])
    items = draw(st.lists(names, max_size=14))
    return Request(
        history=[(item, DAY_MS * place) for place, item in enumerate(items)],
        profile=draw(st.sampled_from([{}, {"country": "France"}, {"country": "Peru", "age": None}])),
        context_item=draw(st.none() | names),
        at_ms=draw(st.none() | st.just(DAY_MS * 20)),
        exclude=frozenset(draw(st.sets(names, max_size=25))),
    )


@given(st.lists(requests(), min_size=1, max_size=4), st.sampled_from([1, 3, 10, 30]), st.sampled_from([1, 2, 7, 50]))
@settings(max_examples=40, deadline=None)
def test_k_items_whenever_k_are_allowed(
    world: Any, retriever: Retriever, some: list[Request], k: int, width: int
) -> None:
    for request, hits in zip(some, retriever.retrieve(some, k, width), strict=True):
        items = [hit.item_id for hit in hits]
        allowed = [item for item in world.live if item not in request.exclude]
        assert len(items) == min(k, len(allowed))
        assert len(set(items)) == len(items)
        assert set(items) <= set(allowed)
        assert [hit.codes for hit in hits] == [retriever.codes_of[item] for item in items]
        assert all(a.score >= b.score for a, b in pairwise(hits))


@given(requests())
@settings(max_examples=25, deadline=None)
def test_wide_enough_it_is_the_exact_ranking(
    world: Any, retriever: Retriever, is_ranking: Callable[..., None], request: Request
) -> None:
    [hits] = retriever.retrieve([request], 24, 100)
    expected = [(item, score) for item, score in exhaustive(world, retriever, request) if item not in request.exclude]
    is_ranking(hits, expected)


def test_items_behind_one_leaf_stand_newest_first(retriever: Retriever) -> None:
    """item04 … item07 share a SID; the lower the number, the newer the item."""
    [hits] = retriever.retrieve([Request(exclude=frozenset({"item05"}))], 24, 50)
    shared = [hit for hit in hits if hit.codes == retriever.codes_of["item04"]]
    assert [hit.item_id for hit in shared if hit.item_id in ("item04", "item06", "item07")] == [
        "item04",
        "item06",
        "item07",
    ]
    assert len({hit.score for hit in shared}) == 1


def test_many_requests_are_what_each_is_alone(retriever: Retriever) -> None:
    generator = np.random.default_rng(0)
    some = [
        Request(history=[(f"item{i:02d}", DAY_MS * p) for p, i in enumerate(generator.integers(0, 24, n % 9))])
        for n in range(40)  # more than one batch
    ]
    together = retriever.retrieve(some, 10, 5)
    for request, hits in zip(some, together, strict=True):
        [alone] = retriever.retrieve([request], 10, 5)
        assert [hit.item_id for hit in alone] == [hit.item_id for hit in hits]
        np.testing.assert_allclose([hit.score for hit in alone], [hit.score for hit in hits], atol=1e-4)
    assert retriever.retrieve([], 10, 5) == []


def test_unknown_items_are_dropped_and_counted(retriever: Retriever) -> None:
    known = Request(history=[("item01", 0), ("item03", DAY_MS)], context_item="item02")
    mixed = replace(known, history=[("no", 0), ("item01", 0), ("nor", 5), ("item03", DAY_MS)])
    assert retriever.prompt(known).num_unknown == 0
    assert retriever.prompt(mixed).num_unknown == 2
    assert retriever.prompt(mixed).token_ids == retriever.prompt(known).token_ids
    assert retriever.prompt(replace(known, context_item="no")).num_unknown == 1


def test_a_newer_catalogue_retires(world: Any, retriever: Retriever, tmp_path: Path) -> None:
    catalog = shutil.copytree(world.catalog, tmp_path / "catalog")
    items = Catalog.load(catalog).items
    gone = [item in world.retired or item == "item08" for item in items.column("item_id").to_pylist()]
    place = items.column_names.index("retired")
    write_parquet(catalog / "items.parquet", items.set_column(place, "retired", [gone]))
    newer = load(world, catalog=catalog)
    [hits] = newer.retrieve([Request(history=[("item08", 0)])], 24, 50)
    assert {hit.item_id for hit in hits} == set(world.live) - {"item08"} == newer.live_items


def test_parts_of_two_releases_are_refused(world: Any, tmp_path: Path) -> None:
    (tmp_path / "sids").mkdir()
    SidTable(SidSpace((4, 3, 2)), False, ["a"], np.zeros((1, 3), dtype=np.int32)).save(tmp_path / "sids")
    with pytest.raises(MixedReleaseError, match="one release"):
        load(world, sids=tmp_path / "sids")
    (tmp_path / "sids2").mkdir()
    SidTable(SidSpace((4, 3, 3)), False, ["a"], np.zeros((1, 3), dtype=np.int32)).save(tmp_path / "sids2")
    with pytest.raises(MixedReleaseError, match="one release"):
        load(world, sids=tmp_path / "sids2")
    index = shutil.copytree(world.index, tmp_path / "index")
    items = read_parquet(index / "items.parquet")
    renamed = pa.array([f"other {item}" for item in items.column("item_id").to_pylist()])
    write_parquet(index / "items.parquet", items.set_column(0, "item_id", renamed))
    with pytest.raises(MixedReleaseError, match="one release"):
        load(world, index=index)


def test_bad_sizes_are_refused(retriever: Retriever) -> None:
    with pytest.raises(InputError, match="k 0"):
        retriever.retrieve([Request()], 0, 5)
    with pytest.raises(InputError, match="width 0"):
        retriever.beams([Request()], 0)
