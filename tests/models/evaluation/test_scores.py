"""The stage against the same figures worked out in plain loops from exhaustive rankings."""

from __future__ import annotations

import datetime
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from features.catalog import Catalog
from features.histories import read_histories, read_last_events, read_queries
from models.baselines.item_knn import ItemKnn
from models.baselines.popularity import Popularity
from models.baselines.sasrec import SasRec
from models.evaluation import scores as scores_stage
from models.evaluation.rivals import RivalsParams
from models.evaluation.scores import ScoresParams, read_scores, run
from models.retrieval import beam_check
from models.retrieval.beam_check import Certificate
from models.retrieval.held_out import read_lists
from models.retrieval.retriever import Request, Retriever
from plumline.artifact import write_json
from plumline.schema import QUERIES
from plumline.stage import hash_seed
from plumline.tables import read_parquet, write_parquet

SEED, RIVALS = 17, RivalsParams(sasrec_steps=3)
PARAMS = ScoresParams(width=10, hallucination_queries=5, bootstrap_samples=50)
Score = Callable[..., Any]


@pytest.fixture(scope="module")
def ranker(rank: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rank(tmp_path_factory.mktemp("ranker") / "out", seed=SEED)


@pytest.fixture(scope="module")
def score(world: Any, rivals: Path, ranker: Path) -> Score:
    """(out, params, base, changes) → scores.json of a run on the world, or on other folders of it."""

    def make(out: Path, params: ScoresParams = PARAMS, base: Path | None = None, **changes: Path) -> Any:
        names = ("catalog", "histories", "sids", "vocabulary", "sft", "index")
        folders = {name: getattr(world, name) for name in names} | {"ranker": ranker, "rivals": rivals} | changes
        out.mkdir(parents=True)
        run(params, **folders, base=base, seed=SEED, out=out)
        return read_scores(out)

    return make


@pytest.fixture(scope="module")
def scored(score: Score, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("scores") / "out"
    return score(out), out


@pytest.fixture(scope="module")
def rows(world: Any) -> list[dict[str, Any]]:
    return read_queries(world.histories).to_pylist()


@pytest.fixture(scope="module")
def retriever(world: Any) -> Retriever:
    return Retriever.load(
        vocabulary=world.vocabulary,
        sids=world.sids,
        weights=world.sft / "weights",
        index=world.index,
        catalog=world.catalog,
        device="cpu",
    )


def expected(rows: list[dict[str, Any]], rank: Any, masked: bool) -> dict[str, float]:
    """recall@10 and ndcg@10 as they are defined. rank: (row, excluded items) → at least ten item ids if there are."""
    recalls, gains = [], []
    for row in rows:
        seen = set(row["item_ids"]) if masked else set()
        relevant = set(row["relevant"]) - seen
        if not relevant:
            continue
        top = rank(row, seen)[:10]
        best = min(10, len(relevant))
        recalls.append(sum(item in relevant for item in top) / best)
        gain = sum(1 / math.log2(place + 2) for place, item in enumerate(top) if item in relevant)
        gains.append(gain / sum(1 / math.log2(place + 2) for place in range(best)))
    return {"num_queries": len(recalls), "recall@10": sum(recalls) / len(recalls), "ndcg@10": sum(gains) / len(gains)}


def check(figures: dict[str, Any], wanted: dict[str, float]) -> None:
    for name, value in wanted.items():
        assert figures[name] == pytest.approx(value), name


def test_model_figures_equal_plain_loops(
    world: Any, scored: Any, rows: list[dict[str, Any]], retriever: Retriever
) -> None:
    """Width 10 ends above the number of leaves for masked lists only, so the oracle asks with the same widths."""
    scores, _ = scored

    def rank(row: dict[str, Any], seen: set[str]) -> list[str]:
        day = datetime.datetime.combine(row["day"], datetime.time(12), datetime.UTC)
        profiles = read_parquet(world.catalog / "users.parquet").to_pylist()
        profile = next(({"country": p["country"]} for p in profiles if p["user_id"] == row["user_id"]), {})
        request = Request(
            history=list(zip(row["item_ids"], row["timestamps"], strict=True)),
            profile=profile,
            at_ms=int(day.timestamp() * 1000),
            exclude=frozenset(seen),
        )
        return [hit.item_id for hit in retriever.retrieve([request], 10, 10)[0]]

    check(scores["methods"]["model"]["not_masked"], expected(rows, rank, masked=False))
    check(scores["methods"]["model"]["seen_masked"], expected(rows, rank, masked=True))
    shown = {item for row in rows for item in rank(row, set())}
    assert scores["shown"]["model"]["coverage"] == pytest.approx(len(shown) / len(world.live))
    assert scores["num_unknown_history_items"] == sum("unknown" in row["item_ids"] for row in rows)


def test_what_is_served_is_what_the_ranker_listed(
    world: Any, scored: Any, ranker: Path, rows: list[dict[str, Any]]
) -> None:
    scores, out = scored
    lists = read_lists(ranker)
    for method in ("served", "without_model", "memory"):
        for task, figures in (("next_day", scores["methods"]), ("leave_one_out", scores["leave_one_out"]["methods"])):
            asked = rows if task == "next_day" else read_last_events(world.histories).to_pylist()
            for protocol, masked in (("seen_masked", True), ("not_masked", False)):
                made = lists[task, protocol, method]
                wanted = expected(asked, lambda row, _, made=made: made[row["user_id"], row["day"]], masked)
                check(figures[method][protocol], wanted)
    predictions = read_parquet(out / "predictions.parquet").to_pylist()
    served = lists["next_day", "not_masked", "served"]
    assert [(p["user_id"], p["day"]) for p in predictions] == [(row["user_id"], row["day"]) for row in rows]
    assert [p["item_ids"] for p in predictions] == [served[row["user_id"], row["day"]] for row in rows]
    shown = {item for p in predictions for item in p["item_ids"]}
    assert scores["coverage"] == scores["shown"]["served"]["coverage"] == pytest.approx(len(shown) / len(world.live))
    assert 1 <= scores["effective_vocabulary"] <= len(shown)


def test_served_minus_is_the_difference_of_the_methods(scored: Any) -> None:
    for found in (scored[0], scored[0]["leave_one_out"]):
        methods = found["methods"]
        assert set(found["served_minus"]) == set(methods) - {"served"}
        assert found["model_gain"] == found["served_minus"]["without_model"]
        for name, by_protocol in found["served_minus"].items():
            for protocol, row in by_protocol.items():
                for measure in ("recall@10", "ndcg@10"):
                    difference = methods["served"][protocol][measure] - methods[name][protocol][measure]
                    assert row[measure] == pytest.approx(difference)
                    assert row[f"{measure}_se"] >= 0


def test_baseline_figures_equal_plain_loops(world: Any, scored: Any, rows: list[dict[str, Any]]) -> None:
    histories = read_histories(world.histories)
    rankers = {
        "popularity": Popularity.fit(histories, world.live, half_life_days=RIVALS.popularity_half_life_days),
        "item_knn": ItemKnn.fit(histories, world.live, half_life_days=RIVALS.knn_half_life_days),
        "sasrec": SasRec.fit(
            histories,
            world.live,
            steps=3,
            seed=hash_seed(SEED, "sasrec"),
            half_life_days=RIVALS.sasrec_half_life_days,
        ),
    }
    for name, ranker in rankers.items():

        def rank(row: dict[str, Any], seen: set[str], ranker: Any = ranker) -> list[str]:
            return ranker.rank([row["item_ids"]], 10, [seen])[0]

        check(scored[0]["methods"][name]["not_masked"], expected(rows, rank, masked=False))
        check(scored[0]["methods"][name]["seen_masked"], expected(rows, rank, masked=True))


def test_layout(world: Any, scored: Any, rows: list[dict[str, Any]]) -> None:
    scores, _ = scored
    assert scores["as_of"] == world.as_of.isoformat()
    assert scores["num_queries"] == len(rows)
    assert scores["num_users"] == len({row["user_id"] for row in rows})
    assert scores["num_invalid"] == 0
    assert 0 < scores["hallucination_rate"] <= 1
    assert {"hallucination_rate_se", "hallucination_by_level", "hallucination_best"} <= set(scores)
    model = scores["methods"]["model"]
    for protocol, figures in scores["sid_level"].items():
        assert figures["num_queries"] == model[protocol]["num_queries"]
    rivals = {"popularity", "own", "item_knn", "text_knn", "knn_sum", "star", "sasrec"}
    assert set(scores["methods"]) == {"served", "without_model", "model", "memory"} | rivals
    assert set(scores["shown"]) == set(scores["methods"])
    few = {"items/new", "items/tail", "history/cold"}
    assert {name: set(slices) for name, slices in scores["method_slices"].items()} == dict.fromkeys(
        scores["methods"], few
    )
    assert scores["ranker"] == {
        "kind": "lambdarank",
        "num_label_queries": len(rows),
        "label_days": ["2020-02-02", "2020-02-04"],
        "folds": 2,
    }
    for figures in (*scores["methods"].values(), scores["sid_level"]):
        assert set(figures) == {"seen_masked", "not_masked"}
        for row in figures.values():
            assert set(row) == {"num_queries", "recall@10", "recall@10_se", "ndcg@10", "ndcg@10_se"}
        assert figures["seen_masked"]["num_queries"] < figures["not_masked"]["num_queries"] == len(rows)
    days = sorted({row["day"].isoformat() for row in rows})
    assert [row["day"] for row in scores["daily"]] == days
    assert sum(row["num_queries"] for row in scores["daily"]) == len(rows)
    pooled = sum(row["num_queries"] * row["recall@10"] for row in scores["daily"]) / len(rows)
    assert pooled == pytest.approx(scores["methods"]["served"]["not_masked"]["recall@10"])
    new = {f"item{number:02d}" for number in range(7)}  # first seen on as_of, the day before, … six days before
    slices = scores["slices"]
    assert set(slices) == {"items", "history"}  # these items have neither topics nor channels
    assert set(slices["items"]) == {"new", "head", "torso", "tail"}
    wanted = sum(bool(new & set(row["relevant"])) for row in rows)
    assert slices["items"]["new"]["not_masked"]["num_queries"] == wanted
    cold = sum(len(row["item_ids"]) <= 2 for row in rows)
    assert slices["history"]["cold"]["not_masked"]["num_queries"] == cold > 0
    assert slices["items"]["new"] == scores["method_slices"]["served"]["items/new"]


def test_leave_one_out_asks_for_the_last_event(world: Any, scored: Any, retriever: Retriever) -> None:
    """In plain loops from rankings of single requests, the user coming with the last event before the target."""
    rows = read_last_events(world.histories).to_pylist()
    assert len(rows) == len({row["user_id"] for row in rows}) > 5
    found = scored[0]["leave_one_out"]
    assert found["num_queries"] == len(rows)
    assert set(found["methods"]) == set(scored[0]["methods"])
    profiles = {
        row["user_id"]: {"country": row["country"]} for row in read_parquet(world.catalog / "users.parquet").to_pylist()
    }
    knn = ItemKnn.fit(read_histories(world.histories), world.live, half_life_days=RIVALS.knn_half_life_days)

    def rank(row: dict[str, Any], seen: set[str]) -> list[str]:
        noon = datetime.datetime.combine(row["day"], datetime.time(12), datetime.UTC).timestamp() * 1000
        history = list(zip(row["item_ids"], row["timestamps"], strict=True))
        at_ms = history[-1][1] if history and history[-1][1] > noon else int(noon)
        profile = profiles.get(row["user_id"], {})
        request = Request(history=history, profile=profile, at_ms=at_ms, exclude=frozenset(seen))
        return [hit.item_id for hit in retriever.retrieve([request], 10, 10)[0]]

    for protocol, masked in (("seen_masked", True), ("not_masked", False)):
        check(found["methods"]["model"][protocol], expected(rows, rank, masked))
        wanted = expected(rows, lambda row, seen: knn.rank([row["item_ids"]], 10, [seen])[0], masked)
        check(found["methods"]["item_knn"][protocol], wanted)


def test_what_the_ranker_left_out_is_left_out(
    score: Score,
    rank: Callable[..., Path],
    list_rivals: Callable[..., Path],
    tmp_path: Path,
    rows: list[dict[str, Any]],
) -> None:
    """No leave-one-out, and a sample of the queries: the ranker says how many were asked."""
    ranker = rank(tmp_path / "ranker", seed=SEED, leave_one_out_queries=0, max_queries=5)
    rivals = list_rivals(tmp_path / "rivals", sasrec_steps=0, text_baselines=False)
    scores = score(tmp_path / "a", ranker=ranker, rivals=rivals)
    assert "leave_one_out" not in scores
    assert scores["num_queries"] == 5
    assert set(scores["methods"]) == {"served", "without_model", "model", "memory", "popularity", "own", "item_knn"}
    chosen = [(p["user_id"], p["day"]) for p in read_parquet(tmp_path / "a" / "predictions.parquet").to_pylist()]
    everyone = [(row["user_id"], row["day"]) for row in rows]
    assert [key for key in everyone if key in chosen] == chosen


def test_twice_the_same_bytes(score: Score, scored: Any, tmp_path: Path) -> None:
    score(tmp_path / "again")
    for name in ("scores.json", "predictions.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (scored[1] / name).read_bytes()


def test_with_a_base_sasrec_is_the_bases(
    world: Any, score: Score, scored: Any, list_rivals: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(scored[1], base / "scores")
    rivals = list_rivals(tmp_path / "rivals", base=base)
    scores = score(tmp_path / "day1", base=base, rivals=rivals)
    before = scored[0]["methods"]["sasrec"]
    assert scores["methods"]["sasrec"] == {"from": world.as_of.isoformat(), **before}
    write_json(base / "scores" / "scores.json", {**scores, "as_of": "2020-02-02"})
    scores = score(tmp_path / "day2", base=base, rivals=rivals)
    assert scores["methods"]["sasrec"]["from"] == world.as_of.isoformat()  # not the day of the copy
    write_json(base / "scores" / "scores.json", {"as_of": "2020-02-02", "num_queries": 0, "methods": {}})
    assert "sasrec" not in score(tmp_path / "day3", base=base, rivals=rivals)["methods"]


def test_nothing_landed_after_as_of(world: Any, score: Score, rank: Callable[..., Path], tmp_path: Path) -> None:
    histories = shutil.copytree(world.histories, tmp_path / "histories")
    write_parquet(histories / "queries.parquet", QUERIES.schema.empty_table())
    write_parquet(histories / "last_events.parquet", QUERIES.schema.empty_table())
    ranker = rank(tmp_path / "ranker", seed=SEED, histories=histories)
    scores = score(tmp_path / "out", histories=histories, ranker=ranker)
    assert scores["ranker"] == {"kind": "fusion", "num_label_queries": 0, "label_days": [], "folds": 2}
    assert scores["num_queries"] == 0
    assert scores["methods"] == {}
    predictions = read_parquet(tmp_path / "out" / "predictions.parquet")
    assert predictions.num_rows == 0
    assert predictions.schema.field("item_ids").type == pa.list_(pa.string())


def test_the_beams_are_certified(scored: Any) -> None:
    beam = scored[0]["beam"]
    assert beam["holds"]
    assert (beam["num_requests"], beam["k"], beam["width"]) == (10, 10, 10)
    assert (beam["num_invalid"], beam["num_duplicates"]) == (0, 0)
    assert 0 <= beam["missed_mass"] <= beam["missed_items"] <= 1


@pytest.mark.parametrize(("num_sids", "certified"), [(100_000, True), (100_001, False)])
def test_a_hundred_thousand_sids_are_certified_and_no_more(
    world: Any, monkeypatch: pytest.MonkeyPatch, num_sids: int, certified: bool
) -> None:
    index = SimpleNamespace(num_leaves=num_sids)
    retriever: Any = SimpleNamespace(epoch=SimpleNamespace(base=SimpleNamespace(index=index)))
    whole: Any = Certificate(1, 50, 10, 19.0, 0.0, 0.0, 0.0, 0.0, num_invalid=0, num_duplicates=0)
    monkeypatch.setattr(beam_check, "check_beams", lambda *_, **__: whole)
    assert (
        scores_stage._certificate(retriever, Catalog.load(world.catalog), [], ScoresParams(), 0) == whole
    ) is certified


def test_a_big_index_is_not_certified(score: Score, tmp_path: Path) -> None:
    assert "beam" not in score(tmp_path / "out", params=PARAMS.model_copy(update={"beam_check_max_sids": 3}))
