from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.batches import list_batches
from features.intake.facts import TAG_TYPES, Facts, Known, gather_facts, tag_type
from features.intake.ids import IdForms
from features.landing import land
from plumline import artifact
from plumline.schema import EVENTS, ITEMS, conform

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def land_one(landing: Path, ids: list[str], source: str, **columns: list) -> str:
    items = conform(pa.table({"item_id": ids, "title": ids, **columns}), ITEMS)
    rows = {"user_id": ["7.0", "guest"], "item_id": ids[:1] * 2, "event_id": [f"{source}1", f"{source}2"]}
    times = pa.array([datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC)])
    events = conform(pa.table({**rows, "timestamp": times}), EVENTS)
    return land(items, events, None, landing=landing, source=source, now=NOW).name


def test_a_home_without_batches_has_decided_nothing(tmp_path: Path) -> None:
    assert gather_facts(tmp_path / "nowhere") == Facts()


def test_what_landed_batches_decided(tmp_path: Path) -> None:
    vectors = pa.array([[1.0, 2.0]] * 2, pa.list_(pa.float32(), 2))
    first = land_one(tmp_path, ["1", "2"], "a.csv", tag_x=["12", "7"], emb_x=vectors)
    land_one(tmp_path, ["3", "1.10"], "b.csv", tag_x=pa.array([1.0, 2.0]), tag_y=[["a"], None])
    facts = gather_facts(tmp_path)
    source = f"delivery {first} (a.csv)"
    assert facts.tags["tag_x"] == Known("text", source)
    assert facts.tags["tag_y"].value == "lists of text"
    assert facts.lengths == {"emb_x": Known("2", source)}
    assert facts.ids["item_id"] == IdForms(plain=3 + 2 + 2, dotted=1, source=source)
    assert facts.ids["user_id"] == IdForms(whole=2, other=2, source=source)
    assert (facts.days, facts.days_source) == ((date(2024, 1, 1), date(2024, 1, 3)), source)


def test_a_batch_that_carries_its_facts_is_not_opened(tmp_path: Path) -> None:
    batch = tmp_path / land_one(tmp_path, ["1", "2"], "a.csv")
    manifest = artifact.read_json(batch / artifact.MANIFEST)
    facts = Facts(
        ids={"item_id": IdForms(1, 2, 3, 4)}, tags={"tag_x": Known("numbers", "")}, times={"t": Known("d", "")}
    )
    manifest["arguments"]["facts"] = facts.to_json()
    (batch / artifact.MANIFEST).write_text(artifact.json.dumps(manifest))
    for path in batch.rglob("*.parquet"):
        path.write_bytes(b"")
    found = gather_facts(tmp_path)
    source = f"delivery {batch.name} (a.csv)"
    assert found.ids == {"item_id": IdForms(1, 2, 3, 4, source)}
    assert (found.tags, found.times) == ({"tag_x": Known("numbers", source)}, {"t": Known("d", source)})
    assert found.days == (date(2024, 1, 1), date(2024, 1, 3))
    assert list_batches(tmp_path)[0].manifest.arguments["source"] == "a.csv"


def test_the_first_decision_stays() -> None:
    first, second, third = (date(2024, 1, day) for day in (1, 2, 3))
    old = Facts({"a": IdForms(1, source="x")}, {"t": Known("text", "x")}, days=(second, third), days_source="x")
    new = Facts({"a": IdForms(2, source="y")}, {"t": Known("numbers", "y")}, {"e": Known("2", "y")}, {}, (first, first))
    both = old + new
    assert both.ids == {"a": IdForms(3, source="x")}
    assert (both.tags, both.lengths) == ({"t": Known("text", "x")}, {"e": Known("2", "y")})
    assert (both.days, both.days_source) == ((first, third), "x")
    assert (Facts() + old).days_source == "x"


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (pa.bool_(), "booleans"),
        (pa.large_string(), "text"),
        (pa.int8(), "numbers"),
        (pa.list_(pa.string()), "lists of text"),
        (pa.list_(pa.float64()), "lists of text"),
        (pa.list_(pa.list_(pa.string())), None),
        (pa.date32(), "text"),
        (pa.null(), None),
        (pa.struct([("a", pa.int8())]), None),
    ],
)
def test_names_of_types(kind: pa.DataType, named: str | None) -> None:
    assert tag_type(kind) == named
    assert named is None or tag_type(TAG_TYPES[named]) == named


def test_an_empty_file_of_ids_says_nothing(tmp_path: Path) -> None:
    batch = tmp_path / land_one(tmp_path, ["1"], "a.csv")
    pq.write_table(conform(pa.table({"item_id": pa.array([], pa.string())}), ITEMS), batch / "items.parquet")
    assert gather_facts(tmp_path).ids["item_id"].plain == 2
