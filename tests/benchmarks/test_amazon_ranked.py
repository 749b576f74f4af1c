"""What is served on a leave-one-out benchmark: no order of ids gets in, the model gets a say, gains are paired."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.measuring.amazon_ranked import PROTOCOLS, Desk, RankedParams, Said, draw_rows, rank_all
from benchmarks.measuring.leave_one_out import LeaveOneOut, compare, measure, read_leave_one_out
from models.ranking.lambdarank import LambdarankParams

NUM_ITEMS, NUM_USERS = 60, 150
PARAMS = replace(RankedParams(), trees=LambdarankParams(rounds=20, min_leaf=5))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LeaveOneOut:
    """Users walk along a ring of items, most of them by one step, a day a step."""
    folder = tmp_path_factory.mktemp("ring")
    rng = np.random.default_rng(4)
    name = [f"B{number:04d}" for number in rng.permutation(NUM_ITEMS)]
    rows = []
    for user in range(NUM_USERS):
        at, length = int(rng.integers(NUM_ITEMS)), int(rng.integers(5, 9))
        for place in range(length):
            rows.append(
                {
                    "user_id": f"u{user:03d}",
                    "item_id": name[at],
                    "timestamp": datetime(2014, 1, 1 + place, tzinfo=UTC),
                    "position": place,
                    "split_loo": {1: "test", 2: "valid"}.get(length - place, "train"),
                }
            )
            at = (at + (1 if rng.random() < 0.8 else int(rng.integers(2, 9)))) % NUM_ITEMS
    words = ["red", "blue", "green"]
    items = [{"item_id": item, "title": f"{words[row % 3]} thing {row % 7}"} for row, item in enumerate(name)]
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    pq.write_table(pa.Table.from_pylist(rows), folder / "events.parquet")
    return read_leave_one_out(folder)


def test_the_ring_is_learned(task: LeaveOneOut) -> None:
    lists = rank_all(task, 17, PARAMS)
    assert set(lists) == {"without_model", "memory"}
    for method, by_protocol in lists.items():
        found = measure(by_protocol["seen_masked"], task, masked=True)
        assert found["recall@10"] > 0.5, method  # ten of sixty by chance: .17
    seen = [query.seen for query in task.test]
    assert not any(set(items) & gone for items, gone in zip(lists["memory"]["seen_masked"], seen, strict=True))
    assert any(set(items) & gone for items, gone in zip(lists["memory"]["not_masked"], seen, strict=True))


def test_ids_are_seen_as_hashes_and_a_day_is_shuffled(task: LeaveOneOut) -> None:
    desk = Desk.of(task, 17, PARAMS, {})
    names = desk.shelf.memory.item_ids
    assert names == sorted(desk.name_of.values())
    assert not set(names) & set(task.item_ids)
    places = np.argsort(np.argsort([desk.name_of[item] for item in task.item_ids]))
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.4
    query = replace(task.test[0], timestamps=[task.test[0].timestamps[0]] * len(task.test[0].item_ids))
    orders = set()
    for seed in range(8):
        other = replace(desk, seed=seed)
        found, _ = other.ask(query, "not_masked", None)
        orders.add(found.scores.tobytes())
    assert len(orders) > 1  # the newest item of one day is any of them


def test_beams_are_candidates_and_served_learns_from_them(task: LeaveOneOut) -> None:
    """A model that knows the answer in two cases of three, and nothing else."""
    rows = draw_rows(len(task.validation), 120, 17)
    assert len(rows) == 120
    assert (np.diff(rows) > 0).all()

    def told(queries) -> list[Said]:
        other = task.item_ids[0]
        return [
            Said([(query.relevant if number % 3 else other, -0.5), (other if number % 3 else task.item_ids[1], -2.0)])
            for number, query in enumerate(queries)
        ]

    hits = {"labels": told([task.validation[row] for row in rows.tolist()]), "test": told(task.test)}
    codes = {item: (number % 5, number % 7) for number, item in enumerate(task.item_ids)}
    lists = rank_all(task, 17, PARAMS, codes_of=codes, hits_of=hits, label_rows=rows)
    for protocol in PROTOCOLS:
        masked = protocol == "seen_masked"
        gain = compare(lists["served"][protocol], lists["without_model"][protocol], task, masked)
        assert gain["ndcg@5"] > 3 * gain.standard_errors["ndcg@5"] > 0
        both = [measure(lists[method][protocol], task, masked)["ndcg@5"] for method in ("served", "without_model")]
        assert gain["ndcg@5"] == pytest.approx(both[0] - both[1])


def test_a_home_is_landed_once(tmp_path: Path, root: Path) -> None:
    from benchmarks.measuring.home import Home
    from benchmarks.world import Shape
    from plumline.stage import read_recipe

    shape = Shape(users=20, items=20, days=8, events_per_user=4.0)
    world = shape.make(3)
    recipe = root / "recipes" / "cpu_tiny.yaml"
    for _ in range(2):
        home = Home.make(
            tmp_path,
            world.items,
            world.events,
            world.users,
            recipe=recipe,
            changes={"histories": {"eval_days": 2}},
            as_of=shape.as_of,
            seed=17,
        )
    assert len(list((tmp_path / "data" / "landing").glob("*/manifest.json"))) == 1
    assert read_recipe(home.recipe) == {**read_recipe(recipe), "histories": {"eval_days": 2}}
    assert home.artifact("memory") == tmp_path / "artifacts" / "memory"
