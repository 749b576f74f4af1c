"""What a retriever tells the model of items and events beside their SIDs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from models.language.prompt import render_prompt
from models.language.words import Vocabulary
from models.retrieval.retriever import Request, Retriever
from plumline.artifact import read_json, write_json
from plumline.errors import InputError

HOUR_MS = 3_600_000
FEATURES = {"history_features": ["channel", "price"], "context_features": ["title", "channel"], "max_title_tokens": 6}


@pytest.fixture(scope="module")
def retriever(world: Any, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """Of a vocabulary that was stored with features; its <price_…> are what the world's has as ages of items."""
    folder = tmp_path_factory.mktemp("told") / "vocabulary"
    shutil.copytree(world.vocabulary, folder)
    raw = read_json(folder / "vocabulary.json")
    numbers = {"price": raw["numbers"].pop("item_age_days")}
    write_json(folder / "vocabulary.json", raw | FEATURES | {"numbers": raw["numbers"] | numbers})
    return load(world, folder)


def load(world: Any, vocabulary: Path) -> Retriever:
    folders = {name: getattr(world, name) for name in ("sids", "index", "catalog")}
    return Retriever.load(**folders, vocabulary=vocabulary, weights=world.sft / "weights", device="cpu")


def spell(words: Vocabulary, ids: list[int]) -> str:
    return "".join(words.spell(ids)).replace("Ġ", " ")


def test_titles_and_numbers_are_told(retriever: Retriever) -> None:
    words = retriever.vocabulary
    edge = words.numbers["price"].edges[0]
    request = Request(
        history=[("item01", 0), ("nobody", 1), ("item03", HOUR_MS), ("item02", 2 * HOUR_MS)],
        numbers={"price": [edge, edge - 1, None, edge - 1], "rating": [1.0] * 4},
        at_ms=2 * HOUR_MS,
    )
    sids = ["".join(words.spell(words.sid_token_ids(np.array(retriever.codes_of[f"item0{n}"])))) for n in (1, 3, 2)]
    title = spell(words, words.encode_untrusted("thing item02", 6))
    history = f"{sids[0]}<item_age_days_1><gap_0>{sids[1]}<gap_0>{sids[2]}<item_age_days_0>"
    assert (
        spell(words, retriever.prompt(request).token_ids) == f"<bos><history>{history}<context>{title}{sids[2]}<next>"
    )
    looked_at = retriever.prompt(replace(request, context_item="item01")).token_ids
    assert f"<context>{spell(words, words.encode_untrusted('thing item01', 6))}{sids[0]}<next>" in spell(
        words, looked_at
    )
    assert retriever.prompt(replace(request, context_item="nobody")).token_ids == retriever.prompt(request).token_ids
    without = retriever.prompt(replace(request, numbers={}))
    assert len(without.token_ids) == len(retriever.prompt(request).token_ids) - 2


def test_a_release_of_before_features_tells_none(world: Any, retriever: Retriever) -> None:
    plain = load(world, world.vocabulary)
    history = [("item01", 0), ("item02", HOUR_MS)]
    request = Request(history=history, numbers={"price": [1.0, 30.0]}, context_item="item04")
    codes = [(plain.codes_of[item], at) for item, at in history]
    bare = render_prompt(plain.vocabulary, codes, {}, context=plain.codes_of["item04"])
    assert plain.prompt(request).token_ids == bare != retriever.prompt(request).token_ids


def test_the_newest_known_events_count(retriever: Retriever) -> None:
    most = retriever.vocabulary.shape.max_history
    size = most + 6
    history = [("nobody" if n % 5 == 0 else f"item{n:02d}", n * HOUR_MS) for n in range(size)]
    numbers = {"price": [float(2 * n) for n in range(size)]}
    known = [n for n in range(size) if n % 5][-most:]
    cut = Request(history=[history[n] for n in known], numbers={"price": [float(2 * n) for n in known]})
    assert retriever.prompt(Request(history=history, numbers=numbers)).token_ids == retriever.prompt(cut).token_ids


def test_as_many_numbers_as_events(retriever: Retriever) -> None:
    with pytest.raises(InputError, match="numbers: 1 of price for 2 events"):
        retriever.prompt(Request(history=[("item01", 0), ("item02", 0)], numbers={"price": [1.0]}))


def test_new_items_bring_their_texts(retriever: Retriever) -> None:
    words, codes = retriever.vocabulary, np.array([[3, 2, 2]])
    items = pa.table({"item_id": ["new"], "title": ["a <a_1> lamp"], "channel": ["maker"]})
    newer = retriever.with_items(items, codes)
    title, maker = (spell(words, words.encode_untrusted(text, 6)) for text in ("a <a_1> lamp", "maker"))
    prompt = newer.prompt(Request(history=[("new", 0)], at_ms=0)).token_ids
    sid = "<a_3><b_2><c_2>"
    assert spell(words, prompt) == f"<bos><history>{sid}{maker}<context>{title}{maker}{sid}<next>"
    assert sum(token in words.reserved for token in prompt) == 3 + 1 + 2 * 3
    bare = retriever.with_items(pa.table({"item_id": ["new"]}), codes)
    assert spell(words, bare.prompt(Request(history=[("new", 0)], at_ms=0)).token_ids) == (
        f"<bos><history>{sid}<context>{sid}<next>"
    )
