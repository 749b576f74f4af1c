"""A release that reads one place an item: requests → items against exhaustive scoring, and everything around it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.catalog import Catalog
from models.evaluation import hallucination
from models.evaluation.hallucination import measure_hallucination
from models.evaluation.queries import Ruler
from models.language.item_model import ItemModel
from models.language.places import Places, render_places
from models.retrieval.beam_check import check_beams, plain_score, score_all
from models.retrieval.free_search import leaves_at
from models.retrieval.retriever import Ask, Request, Retriever
from models.retrieval.rules import parse
from plumline.artifact import read_json, write_json
from plumline.errors import InputError, MissingArtifactError, MixedReleaseError
from serving.recommender import Recommender

DAY_MS = 86_400_000
NOW_MS = 1_580_601_600_000
"""The end of the world's as_of: item00 is a day old, item01 two, …"""


@pytest.fixture(scope="module")
def retriever(places_world: Any) -> Retriever:
    return load(places_world)


def load(world: Any, plain: bool = False, **changes: Path) -> Retriever:
    folders = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    return Retriever.load(**{**folders, "weights": world.sft / "weights", **changes}, device="cpu", plain=plain)


def read_by(retriever: Retriever, request: Request) -> Places:
    places = retriever.prompt(request).places
    assert places is not None
    return places


def exhaustive(world: Any, retriever: Retriever, request: Request) -> list[tuple[str, float]]:
    """Every live item with the score of its SID by one plain forward pass each, best first."""
    items = Catalog.load(world.catalog).items
    first_seen = dict(zip(items.column("item_id").to_pylist(), items.column("first_seen_day").to_pylist(), strict=True))
    rows = []
    for item in world.live:
        codes = retriever.codes_of[item]
        sid = retriever.vocabulary.sid_token_ids(np.array(codes)).tolist()
        score = plain_score(retriever.model, read_by(retriever, request), sid, "cpu")
        rows.append((-round(score, 4), codes, -first_seen[item].toordinal(), item, score))
    return [(item, score) for _, _, _, item, score in sorted(rows)]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    names = st.sampled_from([f"item{number:02d}" for number in range(24)] + ["unknown"])
    items = draw(st.lists(names, max_size=9))
    return Request(
        history=[(item, DAY_MS * place) for place, item in enumerate(items)],
        profile=draw(st.sampled_from([{}, {"country": "France"}, {"country": "Peru", "age": None}])),
        context_item=draw(st.none() | names),
        at_ms=draw(st.none() | st.just(DAY_MS * 20)),
        exclude=frozenset(draw(st.sets(names, max_size=25))),
    )


@given(requests())
@settings(max_examples=12, deadline=None)
def test_wide_enough_it_is_the_exact_ranking(
    places_world: Any, retriever: Retriever, is_ranking: Callable[..., None], request: Request
) -> None:
    [hits] = retriever.retrieve([request], 24, 100)
    expected = [(i, score) for i, score in exhaustive(places_world, retriever, request) if i not in request.exclude]
    is_ranking(hits, expected)


def test_many_requests_are_what_each_is_alone(retriever: Retriever) -> None:
    generator = np.random.default_rng(0)
    some = [
        Request(history=[(f"item{i:02d}", DAY_MS * p) for p, i in enumerate(generator.integers(0, 24, n % 9))])
        for n in range(20)  # more than one batch
    ]
    together = retriever.retrieve(some, 10, 5)
    assert len({tuple(hit.item_id for hit in hits) for hits in together}) > 5
    for request, hits in zip(some, together, strict=True):
        [alone] = retriever.retrieve([request], 10, 5)
        assert [hit.item_id for hit in alone] == [hit.item_id for hit in hits]
        np.testing.assert_allclose([hit.score for hit in alone], [hit.score for hit in hits], atol=1e-4)


def test_a_rule_closes_everything_else(places_world: Any, retriever: Retriever) -> None:
    request = Request(
        history=[("item01", 0), ("item05", DAY_MS)],
        context_item="item09",
        rule=parse("fresh(9d) & ~seen"),
        now_ms=NOW_MS,
        exclude=frozenset({"item02"}),
    )
    [hits] = retriever.retrieve([request], 24, 3)
    assert {hit.item_id for hit in hits} == {"item00", "item04", "item06", "item07", "item08"}  # 03 is retired
    scores = dict(exhaustive(places_world, retriever, request))
    np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.item_id] for hit in hits], atol=1e-4)
    with pytest.raises(InputError, match="say when"):
        retriever.retrieve([replace(request, now_ms=None)], 24, 3)


def test_unknown_items_are_dropped_and_counted(retriever: Retriever) -> None:
    known = Request(history=[("item01", 0), ("item03", DAY_MS)], context_item="item02")
    mixed = replace(known, history=[("no", 0), ("item01", 0), ("nor", 5), ("item03", DAY_MS)])
    assert retriever.prompt(known).num_unknown == 0
    assert retriever.prompt(mixed).num_unknown == 2
    assert read_by(retriever, mixed) == read_by(retriever, known)
    unknown = retriever.prompt(replace(known, context_item="no"))
    assert unknown.num_unknown == 1
    assert unknown.places == read_by(retriever, replace(known, context_item=None))


def test_a_prompt_is_what_the_renderer_makes(retriever: Retriever) -> None:
    words, codes = retriever.vocabulary, retriever.codes_of
    lists = {"item01": 0, "item03": DAY_MS, "item02": 2 * DAY_MS}  # a retired item still tells something
    request = Request(history=[*lists.items()], profile={"country": "Mali"}, context_item="item08", at_ms=3 * DAY_MS)
    prompt = retriever.prompt(request)
    assert prompt.read is prompt.places
    assert prompt.places == render_places(
        words,
        [(codes[item], time) for item, time in lists.items()],
        {"country": "Mali"},
        codes["item08"],
        3 * DAY_MS,
    )
    assert prompt.token_ids == prompt.places.token_ids
    last = replace(request, context_item="item02")
    assert read_by(retriever, last) == read_by(retriever, replace(request, context_item=None))


def test_all_that_a_user_did_counts(retriever: Retriever) -> None:
    def scores(**asked: Any) -> list[float]:
        [hits] = retriever.retrieve([Request(**asked)], 5, 30)
        return [hit.score for hit in hits]

    history = [("item01", 0), ("item08", DAY_MS)]
    plain = scores(history=history)
    assert scores(history=[("item08", 0), ("item01", DAY_MS)]) != plain
    assert scores(history=history, profile={"country": "France"}) != plain
    assert scores(history=history, context_item="item02") != plain
    assert scores(history=history, at_ms=DAY_MS) != plain
    assert scores(history=[("item01", 0), ("item08", 5)]) != plain


def test_of_every_request_the_state_that_names_every_sid(retriever: Retriever) -> None:
    """Of more requests than a batch has, asked twice under different rules; some get nothing from one or from both."""
    generator = np.random.default_rng(2)
    some = [
        Request(history=[(f"item{i:02d}", DAY_MS * p) for p, i in enumerate(generator.integers(0, 24, n % 9))])
        for n in range(20)
    ]
    nothing = retriever.allowed(Request(exclude=retriever.live_items))
    asks = [
        Ask([nothing if n % 3 else None for n in range(20)], 100),
        Ask([nothing if n % 2 else None for n in range(20)], 3),
    ]
    hits, states = retriever.retrieve_with_states(some, asks, 24)
    assert hits == retriever.retrieve_each(some, asks, 24)
    assert [n for n, state in enumerate(states) if state is None] == [n for n in range(20) if n % 3 and n % 2]
    for request, state in zip(some, states, strict=True):
        if state is None:
            continue
        [alone] = retriever.retrieve([request], 24, 100)
        assert len(alone) == 21
        found = retriever.log_probabilities(state, np.array([hit.codes for hit in alone]))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [hit.score for hit in alone], atol=1e-4)


def test_new_items_and_items_that_go(retriever: Retriever) -> None:
    new = pa.table({"item_id": ["new"], "title": ["a new thing"]})
    more = retriever.with_items(new, np.array([[0, 2, 2]])).without(["item01"])
    request = Request(history=[("new", 0), ("item01", DAY_MS)])
    assert more.prompt(request).num_unknown == 0
    [hits] = more.retrieve([request], 24, 100)
    assert {hit.item_id for hit in hits} == (retriever.live_items | {"new"}) - {"item01"}
    assert check_beams(more, [request], k=5, width=100).holds


REQUESTS = [
    Request(history=[("item01", 0), ("item05", 9)]),
    Request(history=[("item02", 0)], exclude=frozenset({"item00", "item01"}), context_item="item07"),
    Request(rule=parse("fresh(8d)"), now_ms=NOW_MS),
]


def test_the_certificate_holds_with_rules(retriever: Retriever) -> None:
    certificate = check_beams(retriever, REQUESTS, k=5, width=100)
    assert certificate.holds
    assert certificate.num_requests == 3
    assert (certificate.missed_mass, certificate.missed_items) == (0, 0)
    assert certificate.score_error < 1e-4
    items = sorted(retriever.live_items)[:12]
    pairs = [Request(history=[(one, 0), (other, 9)]) for one, other in permutations(items, 2)]
    narrow = check_beams(retriever, pairs, k=2, width=2)
    assert narrow.holds
    assert 0 < narrow.missed_mass < 1


@pytest.mark.parametrize("fault", ["decoder", "head", "pairs"])
def test_a_decoder_that_computes_something_else_is_found_out(
    monkeypatch: pytest.MonkeyPatch, retriever: Retriever, fault: str
) -> None:
    if fault == "decoder":  # forgets the question
        monkeypatch.setattr(ItemModel, "ask", lambda self, hidden, question: hidden)
    elif fault == "head":  # takes the code before for another one
        honest, model = retriever.model.head.step, retriever.model
        monkeypatch.setattr(
            "models.retrieval.item_decoder.ItemDecoder._step",
            lambda self, level, state, token: honest(
                level, state, (token - model.sid_base - model.offsets[level] + 1) % model.head.sizes[level]
            ),
        )
    else:  # forgets pairs of first codes; the plain score asks the table itself
        monkeypatch.setattr(
            ItemModel,
            "embed",
            lambda self, tokens: self.bag(tokens, self.get_input_embeddings().weight, self.pad, None),
        )
    certificate = check_beams(retriever, REQUESTS[:1], k=5, width=100)
    assert not certificate.holds
    assert certificate.score_error > 1e-3


def test_without_transformers_it_answers_the_same(places_world: Any, retriever: Retriever) -> None:
    plain = load(places_world, plain=True)
    for ours, theirs in zip(plain.retrieve(REQUESTS, 6, 30), retriever.retrieve(REQUESTS, 6, 30), strict=True):
        assert [hit.item_id for hit in ours] == [hit.item_id for hit in theirs]
        np.testing.assert_allclose([hit.score for hit in ours], [hit.score for hit in theirs], atol=1e-4)


def test_parts_of_two_kinds_are_refused(world: Any, places_world: Any, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match=r"no sid_head\.safetensors"):
        load(places_world, weights=world.sft / "weights")
    shutil.copytree(places_world.sft / "weights", tmp_path / "weights")
    about = read_json(places_world.vocabulary / "vocabulary.json")
    shutil.copytree(places_world.vocabulary, tmp_path / "vocabulary")
    write_json(tmp_path / "vocabulary" / "vocabulary.json", {**about, "size": about["size"] + 1})
    with pytest.raises(MixedReleaseError, match="the model knows"):
        load(places_world, vocabulary=tmp_path / "vocabulary")


def test_a_prompt_is_shown_as_it_is_spelt(retriever: Retriever) -> None:
    titles = dict.fromkeys(retriever.live_items)
    release: Any = SimpleNamespace(release_id="r")
    answer = Recommender(release, retriever, titles).recommend(
        history=[("item01", 0), ("nobody", 5), ("item03", DAY_MS)], context_item="item02", k=4, show_prompt=True
    )
    words = retriever.vocabulary
    sids = [words.spell(words.sid_token_ids(np.array(retriever.codes_of[f"item0{n}"])).tolist()) for n in (1, 3, 2)]
    assert answer.prompt == ("<bos>", "<history>", *sids[0], "<gap_4>", *sids[1], *sids[2], "<gap_4>")
    assert (answer.num_unknown_history, answer.num_invalid, len(answer.items)) == (1, 0, 4)


def test_a_ranker_learns_from_its_lists(places_world: Any, rank: Any, tmp_path: Path) -> None:
    told = {"vocabulary": places_world.vocabulary, "sft": places_world.sft}
    assert (rank(tmp_path / "ranker", **told) / "model.txt").is_file()


def test_what_it_hallucinates_is_never_a_token_of_another_level(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hallucination, "NUM_DRAWS", num_draws := 400)
    sound = retriever.without([item for item in retriever.live_items if retriever.codes_of[item][0] == 1])
    words = sound.vocabulary
    requests = [Request(history=[(f"item{n:02d}", 0), (f"item{23 - n:02d}", n * DAY_MS)]) for n in range(8)]
    users = [f"user{n}" for n in range(8)]
    found = measure_hallucination(sound, requests, users, Ruler(3, 50), k=10, width=10)
    every = np.array([*np.ndindex(*words.space.sizes)])
    lost = leaves_at(words.sid_token_ids(every), words, sound.epoch)
    assert {*lost.tolist()} == {0, 2, 3}  # at the first level every code has items: what leaves there is no code of it
    about = {"space": words.space, "sid_base": words.sid_base, "device": "cpu"}
    exact = np.mean([np.exp(score_all(sound.model, read_by(sound, one), every, **about)) for one in requests], axis=0)
    assert exact.sum() == pytest.approx(1.0, abs=1e-5)
    by_level = found["hallucination_by_level"]
    assert len(by_level) == 3
    assert by_level[0] == 0.0
    for level in (2, 3):
        share = float(exact[lost == level].sum())
        assert share > (0.0, 0.1)[level - 2]
        assert by_level[level - 1] == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / (8 * num_draws)))
    assert sum(by_level) == pytest.approx(found["hallucination_rate"])
    assert 0 < found["hallucination_best"] < 1
