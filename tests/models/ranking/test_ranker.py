"""The stage on the tiny world: what it leaves, from day to day, and who learned from whom."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.histories import read_last_events, read_queries
from models.memory.memory import Memory, MemoryParams
from models.memory.memory import run as run_memory
from models.ranking.candidates import CandidateParams
from models.ranking.features import FEATURES, features
from models.ranking.frozen_ranker import Ranker
from models.ranking.labels import Labels, fold_of
from models.ranking.lambdarank import fuse
from models.ranking.ranked import RankedRetriever
from models.ranking.ranker import METHODS, prefix_words
from models.retrieval.held_out import PROTOCOLS, TASKS, read_lists, read_sample
from plumline import artifact
from plumline.schema import QUERIES, conform
from plumline.tables import read_parquet, write_parquet

Rank = Callable[..., Path]
EPOCH = date(1970, 1, 1)
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def made(rank: Rank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rank(tmp_path_factory.mktemp("ranker") / "out")


@pytest.fixture(scope="module")
def base(world: Any, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts of a release of the world's as_of, as far as the next day reads them."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("catalog", "sids", "vocabulary", "index", "sft", "memory"):
        shutil.copytree(getattr(world, name), folder / name)
    shutil.copytree(made, folder / "ranker")
    artifact.write_json(folder / "release.json", {"as_of": world.as_of.isoformat()})
    return folder


def next_day(world: Any, out: Path, *, later: bool = False) -> dict[str, Path]:
    """Histories and memory of the day after: two users came on it. later: much else happened on that day and after."""
    day = world.as_of + timedelta(days=1)
    histories = shutil.copytree(world.histories, out / "histories")
    held_out = read_queries(histories)
    rows = [row for row in held_out.to_pylist() if row["day"] > day]
    came = [row for row in held_out.to_pylist() if row["day"] == day][:2]
    assert len(came) == 2
    came[0]["rewards"] = [1.0 + place for place in range(len(came[0]["relevant"]))]
    come_earlier = {**came[0], "day": world.as_of}  # which the base could learn from already
    if later:
        for row in rows:
            row["item_ids"], row["relevant"] = row["item_ids"][::-1], ["item01"]
    write_parquet(histories / "labels.parquet", pa.Table.from_pylist([come_earlier, *came], QUERIES.schema))
    write_parquet(histories / "queries.parquet", pa.Table.from_pylist(rows, QUERIES.schema))
    lists = read_parquet(histories / "histories.parquet")
    grown = lists.to_pylist()
    for row in grown if later else grown[:2]:
        noon = int((day - EPOCH).days * DAY_MS + DAY_MS // 2)
        row["item_ids"] = [*row["item_ids"], *(["item02"] * 5 if later else ["item04"])]
        row["timestamps"] = [*row["timestamps"], *([noon] * (5 if later else 1))]
        row["rewards"] = [1.0] * len(row["item_ids"])
    write_parquet(histories / "histories.parquet", pa.Table.from_pylist(grown, lists.schema))
    artifact.write_json(histories / "stats.json", {"as_of": day.isoformat(), "action": "play"})
    (out / "memory").mkdir()
    run_memory(MemoryParams(), catalog=world.catalog, histories=histories, out=out / "memory")
    return {"histories": histories, "memory": out / "memory"}


def days_of(labels: Labels) -> set[date]:
    return {EPOCH + timedelta(days=int(day)) for day in labels.days}


def test_what_it_leaves(world: Any, made: Path) -> None:
    names = {"config.json", "labels.parquet", "lists.parquet", "model.txt", "report.json", "words.json"}
    assert {path.name for path in made.iterdir()} == names
    about, report = (artifact.read_json(made / name) for name in ("config.json", "report.json"))
    assert about == {
        "kind": "lambdarank",
        "features": list(FEATURES),
        "candidates": CandidateParams(width=10).model_dump(mode="json"),
        "verb": "played",
    }
    queries = read_queries(world.histories).to_pylist()
    assert report["kind"] == "lambdarank"
    assert report["num_label_queries"] <= len(queries)
    assert report["label_days"] == ["2020-02-02", "2020-02-04"]
    assert (report["folds"], report["max_queries"], report["leave_one_out_queries"]) == (2, 1500, 300)
    assert report["num_unknown_history_items"] == sum("unknown" in row["item_ids"] for row in queries)
    assert sum(report["gain"].values()) == pytest.approx(1, abs=0.01)
    assert report["gain"].keys() <= set(FEATURES)


def test_lists_of_every_held_out_request(world: Any, made: Path) -> None:
    lists = read_lists(made)
    assert lists.keys() == {(task, protocol, method) for task in TASKS for protocol in PROTOCOLS for method in METHODS}
    for task, read in zip(TASKS, (read_queries, read_last_events), strict=True):
        rows = {(row["user_id"], row["day"]): row for row in read(world.histories).to_pylist()}
        for protocol in PROTOCOLS:
            for method in METHODS:
                made_lists = lists[task, protocol, method]
                assert made_lists.keys() == rows.keys()
                for key, items in made_lists.items():
                    gone = set(rows[key]["item_ids"]) if protocol == "seen_masked" else set()
                    assert set(items) <= set(world.live) - gone
                    assert len(set(items)) == len(items) == min(10, len(set(world.live) - gone))


def test_labels_are_what_the_held_out_users_took(world: Any, made: Path) -> None:
    labels = Labels.load(made)
    queries = read_queries(world.histories).to_pylist()
    taken = {(row["user_id"], row["day"]): set(row["relevant"]) for row in queries}
    seen = {(row["user_id"], row["day"]): set(row["item_ids"]) for row in queries}
    worth = np.split(labels.worth > 0, np.cumsum(labels.sizes)[:-1])
    found: dict[Any, list[int]] = {}
    for user, day, rows in zip(labels.users.tolist(), labels.days.tolist(), worth, strict=True):
        found.setdefault((user, EPOCH + timedelta(days=day)), []).append(int(rows.sum()))
    for key, counts in found.items():  # this catalogue is so small that every item is a candidate
        wanted = [len(taken[key] - seen[key]), len(taken[key])]
        assert counts == [count for count in wanted if count]
    assert found.keys() == taken.keys()


def test_twice_the_same_bytes_and_another_seed_others(rank: Rank, made: Path, tmp_path: Path) -> None:
    rank(tmp_path / "again")
    for path in made.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    rank(tmp_path / "other", seed=18)
    assert (tmp_path / "other" / "model.txt").read_bytes() != (made / "model.txt").read_bytes()


def test_nobody_is_ranked_by_what_learned_from_them(world: Any, rank: Rank, made: Path, tmp_path: Path) -> None:
    """What a user took decides nothing of the user's own lists, nor of others' of that fold; it does of the rest."""
    histories = shutil.copytree(world.histories, tmp_path / "histories")
    rows = read_queries(histories).to_pylist()
    fold = fold_of("user0")
    for row in rows:
        if fold_of(row["user_id"]) == fold:
            row["relevant"] = sorted({"item00", "item01", "item02"} ^ set(row["relevant"])) or ["item05"]
    write_parquet(histories / "queries.parquet", pa.Table.from_pylist(rows, QUERIES.schema))
    before, after = (read_lists(folder) for folder in (made, rank(tmp_path / "out", histories=histories)))
    differ = {"mine": 0, "others": 0}
    for key, lists in before.items():
        if key[0] == "next_day":
            for (user, day), items in lists.items():
                same = after[key][user, day] == items
                differ["mine" if fold_of(user) == fold else "others"] += not same
    assert differ["mine"] == 0
    assert differ["others"] > 0


def test_served_lists_are_those_of_the_other_fold(world: Any, rank: Rank, tmp_path: Path) -> None:
    """The same list from labels of the other fold alone, learned and asked outside the stage."""
    from models.ranking.lambdarank import ALL, LambdarankParams, train
    from models.ranking.trees import Trees
    from plumline.stage import hash_seed

    out = rank(tmp_path / "out", leave_one_out_queries=0)
    labels, served = Labels.load(out), read_lists(out)["next_day", "not_masked", "served"]
    parts = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    params = CandidateParams(width=10)
    retriever = RankedRetriever.load({**parts, "weights": world.sft / "weights"}, world.memory, Ranker(params))
    queries = read_sample(world.histories, 1500, 17)
    from features.catalog import Catalog
    from models.language.words import read_profiles

    profiles = read_profiles(Catalog.load(world.catalog))
    [found] = retriever.find([[query.request(profiles.get(query.user_id, {})) for query in queries]])
    trees = LambdarankParams(rounds=5, leaves=3, min_leaf=2)
    for query, one in zip(queries, found, strict=True):
        booster = train(labels.outside(fold_of(query.user_id)), ALL, trees, hash_seed(17, "ranker"))
        table = features(retriever.shelf, one.visit, one.candidates, one.unseen_only)
        scores = Trees.parse(booster.model_to_string(), FEATURES).scores(table)
        best = one.candidates.items[np.argsort(-scores, kind="stable")[:10]]
        assert served[query.user_id, query.day] == [retriever.shelf.item_id(number) for number in best.tolist()]


def test_a_daily_learns_from_its_base_and_from_the_day_since(
    world: Any, rank: Rank, base: Path, tmp_path: Path
) -> None:
    inputs = next_day(world, tmp_path)
    labels = Labels.load(rank(tmp_path / "out", base=base, **inputs))
    before = Labels.load(base / "ranker")
    day = world.as_of + timedelta(days=1)
    number = (day - EPOCH).days
    assert days_of(labels) == days_of(before)  # the base's held-out days, of which the first is now a label day
    kept, old = labels.where(labels.days != number), before.where(before.days != number)
    np.testing.assert_array_equal(kept.features, old.features)
    assert (kept.users.tolist(), kept.worth.tolist()) == (old.users.tolist(), old.worth.tolist())
    today = labels.where(labels.days == number)
    came = [row for row in read_parquet(tmp_path / "histories" / "labels.parquet").to_pylist() if row["day"] == day]
    assert set(today.users.tolist()) == {row["user_id"] for row in came}
    assert set(today.worth[today.worth > 0].tolist()) >= {1.0, 2.0}  # rewards, and 1 where nobody says

    # By the candidates and the memory of the base, from what was known before the day.
    parts = {name: base / name for name in ("vocabulary", "sids", "index", "catalog")}
    params = CandidateParams(width=10)
    yesterday = RankedRetriever.load({**parts, "weights": base / "sft/weights"}, base / "memory", Ranker(params))
    from features.catalog import Catalog
    from models.language.words import read_profiles
    from models.retrieval.held_out import to_queries

    profiles = read_profiles(Catalog.load(base / "catalog"))
    [query] = to_queries(pa.Table.from_pylist(came[:1], QUERIES.schema))
    assert max(at for _, at in query.history) < number * DAY_MS
    [[one]] = yesterday.find([[query.request(profiles.get(query.user_id, {}))]])
    table = features(yesterday.shelf, one.visit, one.candidates, one.unseen_only)
    mine = [place for place, user in enumerate(today.users.tolist()) if user == query.user_id]
    groups = np.split(today.features, np.cumsum(today.sizes)[:-1])
    np.testing.assert_allclose(groups[mine[-1]], table, atol=2e-3)  # beams in another batch, to three digits


def test_nothing_of_the_label_day_or_after_is_a_feature(world: Any, rank: Rank, base: Path, tmp_path: Path) -> None:
    found = []
    for later in (False, True):
        inputs = next_day(world, tmp_path / str(later), later=later)
        labels = Labels.load(rank(tmp_path / str(later) / "out", base=base, **inputs))
        found.append(labels.where(labels.days == (world.as_of + timedelta(days=1) - EPOCH).days))
    memories = [Memory.load(tmp_path / str(later) / "memory") for later in (False, True)]
    assert memories[0].count.tolist() != memories[1].count.tolist()
    assert len(found[0].sizes)
    np.testing.assert_array_equal(found[0].features, found[1].features)
    assert found[0].worth.tolist() == found[1].worth.tolist()


def test_a_base_of_before_there_was_a_memory_gives_no_labels(
    world: Any, rank: Rank, base: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(base, tmp_path / "old", ignore=shutil.ignore_patterns("memory", "ranker"))
    out = rank(tmp_path / "out", base=old, **next_day(world, tmp_path))
    assert Labels.load(out).num_queries == 0
    assert artifact.read_json(out / "report.json")["kind"] == "fusion"
    assert read_lists(out)  # the days after are asked all the same


def test_a_retraining_takes_the_labels_of_the_release_that_it_follows(
    world: Any, rank: Rank, base: Path, made: Path, tmp_path: Path
) -> None:
    """Its own held-out days by its own candidates, the others as they were."""
    previous = shutil.copytree(base, tmp_path / "previous")
    before = Labels.load(previous / "ranker")
    first, last = before.days.min(), before.days.max()
    earlier = before.where(before.days == first)
    moved = Labels(earlier.users, earlier.days - 30, earlier.sizes, earlier.features, earlier.worth)
    Labels.concat([moved, before.where(before.days == last)]).save(previous / "ranker")
    labels = Labels.load(rank(tmp_path / "out", previous=previous))
    own = Labels.load(made)
    assert days_of(labels) == days_of(own) | days_of(moved)
    again = labels.where(labels.days < first)
    np.testing.assert_array_equal(again.features, moved.features)
    anew = labels.where(labels.days >= first)
    np.testing.assert_array_equal(anew.features, own.features)  # not twice for the day that both know


def test_nothing_held_out_nothing_listed(world: Any, rank: Rank, tmp_path: Path) -> None:
    histories = shutil.copytree(world.histories, tmp_path / "histories")
    for name in ("queries", "last_events"):
        write_parquet(histories / f"{name}.parquet", QUERIES.schema.empty_table())
    out = rank(tmp_path / "out", histories=histories)
    report = artifact.read_json(out / "report.json")
    assert (report["kind"], report["num_label_queries"], report["label_days"], report["gain"]) == ("fusion", 0, [], {})
    assert report["candidates"] == dict.fromkeys(PROTOCOLS, 0.0)
    assert read_lists(out) == {}
    assert not (out / "model.txt").exists()
    assert Ranker.load(out).trees is None


def test_below_so_many_label_days_places_are_fused(world: Any, rank: Rank, tmp_path: Path) -> None:
    count = read_queries(world.histories).num_rows
    kinds = []
    for least in (count, count + 1):
        out = rank(tmp_path / str(least), min_queries=least, leave_one_out_queries=0)
        kinds.append(artifact.read_json(out / "config.json")["kind"])
    assert kinds == ["lambdarank", "fusion"]
    lists = read_lists(out)
    assert not (out / "model.txt").exists()
    for protocol in PROTOCOLS:
        assert lists["next_day", protocol, "without_model"] == lists["next_day", protocol, "memory"]
        assert lists["next_day", protocol, "served"] != lists["next_day", protocol, "memory"]


def test_a_fold_without_labels_is_fused(world: Any, rank: Rank, tmp_path: Path) -> None:
    """All who came are of one fold: their own lists have nobody to learn from."""
    histories = shutil.copytree(world.histories, tmp_path / "histories")
    rows = read_queries(histories).to_pylist()
    fold = fold_of(rows[0]["user_id"])
    mine = [row for row in rows if fold_of(row["user_id"]) == fold]
    write_parquet(histories / "queries.parquet", pa.Table.from_pylist(mine, QUERIES.schema))
    out = rank(tmp_path / "out", histories=histories, leave_one_out_queries=0)
    assert artifact.read_json(out / "config.json")["kind"] == "lambdarank"
    lists = read_lists(out)
    fused = read_lists(rank(tmp_path / "fused", histories=histories, leave_one_out_queries=0, min_queries=1000))
    assert lists == fused


def test_the_newest_label_groups_stay(rank: Rank, tmp_path: Path, made: Path) -> None:
    labels = Labels.load(rank(tmp_path / "out", max_groups=3, leave_one_out_queries=0))
    assert len(labels.sizes) == 3
    assert set(labels.days.tolist()) == {int(Labels.load(made).days.max())}


def test_negatives_are_sampled(rank: Rank, tmp_path: Path) -> None:
    labels = Labels.load(rank(tmp_path / "out", max_negatives=4, leave_one_out_queries=0))
    taken = [int(rows.sum()) for rows in np.split(labels.worth > 0, np.cumsum(labels.sizes)[:-1])]
    assert [size - count for size, count in zip(labels.sizes.tolist(), taken, strict=True)] == [4] * len(taken)


def test_memory_lists_are_fused_places_of_what_was_counted(world: Any, made: Path) -> None:
    from models.ranking.candidates import COUNTED

    parts = {name: getattr(world, name) for name in ("vocabulary", "sids", "index", "catalog")}
    ranker = Ranker(CandidateParams(width=10))
    retriever = RankedRetriever.load({**parts, "weights": world.sft / "weights"}, world.memory, ranker)
    lists = read_lists(made)["next_day", "not_masked", "memory"]
    for query in read_sample(world.histories, 1500, 17)[:4]:
        [[one]] = retriever.find([[query.request({})]])
        rows = one.candidates.counted()
        worth = fuse(one.candidates, COUNTED)[rows]
        best = one.candidates.items[rows[np.argsort(-worth, kind="stable")[:10]]]
        assert lists[query.user_id, query.day] == [retriever.shelf.item_id(number) for number in best.tolist()]


def test_words_of_prefixes_that_several_items_share(tmp_path: Path) -> None:
    from models.semantic_ids.table import SidTable
    from plumline.schema import ITEMS
    from plumline.sid import SidSpace

    ids = [f"i{number}" for number in range(11)]
    lamps = ["crimson lamp a", "lamp b crimson", "c crimson d lamp", "azure lamp e", "lamp f azure", "g azure h lamp"]
    titles = [*lamps, "oak chair", "ash chair", "elm chair", "rug", "rug"]
    codes = np.array([*[(0, 0)] * 3, *[(0, 1)] * 3, (1, 0), (1, 1), (1, 2), (2, 0), (2, 0)])
    SidTable(SidSpace((3, 3)), False, ids, codes).save(tmp_path)
    words = prefix_words(conform(pa.table({"item_id": ids, "title": titles}), ITEMS), tmp_path)
    assert (words["0"], words["1"]) == ("lamp", "chair")
    assert not {"2", "1 0", "1 1", "1 2", "2 0"} & words.keys()  # the words of one or two items are those of a title
