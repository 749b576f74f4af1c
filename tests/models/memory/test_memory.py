"""The stage on a few items by hand; on a world: against plain loops, the same bytes, nothing of the future."""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features import catalog, events, histories
from features.catalog import CatalogParams
from features.events import EventsParams
from features.histories import HistoriesParams, read_histories
from features.landing import land
from features.synthetic import make_world
from models.memory.memory import TABLES, Memory, MemoryParams, run
from models.memory.neighbours import Neighbours
from plumline.errors import CorruptArtifactError, MissingArtifactError

ITEMS = {
    "a": {"title": "red lamp", "price": 2.5, "days": 100},
    "b": {"title": "red lamp big", "days": 3},
    "c": {"title": "blue cup", "days": 7},
    "d": {"title": "red cup", "days": 7.01},
    "e": {"title": "red lamp", "days": 2, "retired": True},
}
LISTS = [[("a", 40.0), ("b", 30.0), ("c", 10.0)], [("a", 3.0), ("c", 2.0), ("e", 1.5), ("gone", 1.0), ("a", 0.5)]]


def made(folder: Path, out: Path, **params: float) -> Memory:
    run(MemoryParams.model_validate(params), catalog=folder / "catalog", histories=folder / "histories", out=out)
    return Memory.load(out)


@pytest.fixture
def memory(tmp_path: Path, write_inputs: Callable[..., Path]) -> Memory:
    return made(write_inputs(tmp_path, ITEMS, LISTS), tmp_path / "memory")


def named(memory: Memory, table: str, item: str) -> dict[str, float]:
    numbers, weights = memory.tables[table].row(memory.number_of[item])
    return {memory.item_ids[n]: pytest.approx(float(w), rel=1e-6) for n, w in zip(numbers, weights, strict=True)}


def test_what_is_known_of_each_item(memory: Memory) -> None:
    assert memory.item_ids == ["a", "b", "c", "d", "e", "gone"]
    assert memory.live.tolist() == [True, True, True, True, False, False]
    assert memory.count.tolist() == [3, 1, 2, 0, 1, 1]
    assert memory.week.tolist() == [2, 0, 1, 0, 1, 1]
    assert memory.month.tolist() == [2, 0, 2, 0, 1, 1]
    assert memory.recent[0] == pytest.approx(0.5 ** (40 / 14) + 0.5 ** (3 / 14) + 0.5 ** (0.5 / 14))
    assert memory.price[0] == 2.5
    assert np.isnan(memory.price[1:]).all()
    assert (memory.end_ms - memory.published_ms[:3]).tolist() == [days * 86_400_000 for days in (100, 3, 7)]
    assert memory.published_ms[5] == -1
    assert memory.as_of == date(2024, 1, 31)


def test_successions_by_hand(memory: Memory) -> None:
    """Ages run from the end of as_of, not from the newest event (half a day before)."""
    early, late, latest = 0.5 ** (30 / 30), 0.5 ** (10 / 30), 0.5 ** (2 / 30)
    assert named(memory, "next", "a") == {"c": latest + 0.8 * late, "b": early}
    assert named(memory, "next", "e") == {"a": 0.8 * 0.5 ** (0.5 / 30)}  # e is retired: a row, and never a neighbour
    assert named(memory, "next", "gone") == {"a": 0.5 ** (0.5 / 30)}  # no item of the catalogue, and a row all the same
    assert named(memory, "next", "d") == {}
    assert named(memory, "together", "a") == {"c": (1 + 0.8 + 0.64) / 6**0.5, "b": 1 / 3**0.5}
    assert named(memory, "together", "c") == {"a": (1 + 0.8 + 0.64) / 6**0.5, "b": 1 / 2**0.5}
    assert named(memory, "next_fresh", "a") == {
        "c": latest + 0.8 * late,
        "b": early,
    }  # c: seven days old


def test_texts_by_hand(memory: Memory) -> None:
    alike = named(memory, "text", "e")
    assert list(alike) == ["a", "b", "d"]  # itself is not among them, and c shares no word with it
    assert alike["a"] == 1.0
    assert list(named(memory, "text", "a")) == ["b", "d"]  # e reads the same, and is retired
    assert list(named(memory, "text_fresh", "d")) == ["c", "b"]  # d itself was published too early, a long ago
    assert named(memory, "text_fresh", "gone") == {}


def test_only_the_best_are_kept(tmp_path: Path, write_inputs: Callable[..., Path], memory: Memory) -> None:
    few = made(tmp_path, tmp_path / "few", neighbours=1, fresh_neighbours=1)
    for name, table in few.tables.items():
        for row in range(len(few.item_ids)):
            assert table.row(row)[0].tolist() == memory.tables[name].row(row)[0][:1].tolist(), name


def test_no_item_has_a_word(tmp_path: Path, write_inputs: Callable[..., Path]) -> None:
    bare = {item: {**about, "title": "!"} for item, about in ITEMS.items()}
    memory = made(write_inputs(tmp_path, bare, LISTS), tmp_path / "memory")
    assert [len(memory.tables[name].items) for name in ("text", "text_fresh")] == [0, 0]
    assert len(memory.tables["next"].items) > 0


def test_mixed_or_missing_tables_are_refused(tmp_path: Path, memory: Memory) -> None:
    del memory
    shorter = Neighbours(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))
    shorter.save(tmp_path / "memory", "next")
    with pytest.raises(CorruptArtifactError, match="different memories"):
        Memory.load(tmp_path / "memory")
    (tmp_path / "memory" / "text_items.npy").unlink()
    with pytest.raises(MissingArtifactError, match="run the memory stage"):
        Memory.load(tmp_path / "memory")


# --- a world ---


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve days of which ten may be known, with retired and new items."""
    folder = tmp_path_factory.mktemp("home")
    world = make_world(5, 60, 80, 12, events_per_user=30, retiring=0.4, new_items=0.5, start=date(2023, 12, 30))
    land(world.items, world.events, None, landing=folder / "landing", source="", now=datetime(2024, 3, 1, tzinfo=UTC))
    for name in ("traffic", "events", "catalog", "histories"):
        (folder / name).mkdir()
    as_of, landing = date(2024, 1, 8), folder / "landing"
    params = EventsParams(horizon_days=2, quarantine_limit=1.0)
    lake = str(folder / "lake")
    events.run(params, landing=landing, traffic=folder / "traffic", lake=lake, as_of=as_of, out=folder / "events")
    catalog.run(CatalogParams(), landing=landing, events=folder / "events", as_of=as_of, out=folder / "catalog")
    asked = HistoriesParams(eval_days=2)
    known = {"events": folder / "events", "catalog": folder / "catalog"}
    histories.run(asked, **known, as_of=as_of, out=folder / "histories")
    return folder


def test_equals_plain_loops_over_what_was_known(home: Path, tmp_path: Path) -> None:
    memory = made(home, tmp_path / "memory")
    known = catalog.Catalog.load(home / "catalog")
    live = set(known.live_ids())
    assert len(live) < len(known.item_ids)
    wanted: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for user in read_histories(home / "histories").to_pylist():
        items, ages = user["item_ids"], [(memory.end_ms - t) / 86_400_000 for t in user["timestamps"]]
        assert min(ages) > 0
        for later, item in enumerate(items):
            for step in (1, 2, 3):
                if later >= step and items[later - step] != item and item in live:
                    wanted[items[later - step]][item] += 0.8 ** (step - 1) * 0.5 ** (ages[later] / 30)
    assert len(wanted) > 50
    for number, item in enumerate(memory.item_ids):
        found = named(memory, "next", item)
        assert found == dict(wanted[item])
        weights = memory.tables["next"].row(number)[1]
        assert (np.diff(weights) <= 0).all()
    for name in TABLES:
        assert memory.live[memory.tables[name].items].all()
    young = memory.end_ms - memory.published_ms <= 7 * 86_400_000
    assert 0 < young.sum() < len(young)
    for name in ("next", "text"):
        assert young[memory.tables[f"{name}_fresh"].items].all()
        for row in range(len(young)):
            fresh = [n for n in memory.tables[name].row(row)[0] if young[n]]
            assert memory.tables[f"{name}_fresh"].row(row)[0].tolist() == fresh


def test_the_same_bytes_again_and_with_other_threads(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = []
    for threads in (1, 1, 2, 3):
        monkeypatch.setenv("PLUMLINE_THREADS", str(threads))
        outs.append(tmp_path / str(len(outs)))
        made(home, outs[-1])
    names = sorted(path.name for path in outs[0].iterdir())
    assert len(names) == 2 + 3 * len(TABLES)
    for out in outs[1:]:
        assert [(out / name).read_bytes() for name in names] == [(outs[0] / name).read_bytes() for name in names]


def test_loaded_arrays_cannot_be_written(home: Path, tmp_path: Path) -> None:
    memory = made(home, tmp_path / "memory")
    with pytest.raises(ValueError, match="read-only"):
        memory.tables["next"].weights[0] = 0.0


def test_an_empty_history_counts_nothing(tmp_path: Path, write_inputs: Callable[..., Path]) -> None:
    memory = made(write_inputs(tmp_path, ITEMS, [[("a", 1.0)]]), tmp_path / "memory")
    assert [len(memory.tables[name].items) for name in ("next", "together", "next_fresh")] == [0, 0, 0]
    assert isinstance(memory.count, np.ndarray)
    assert pa.array(memory.count).to_pylist() == [1.0, 0.0, 0.0, 0.0, 0.0]
