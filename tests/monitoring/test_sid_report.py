"""The report of a release: its own reports' figures, what is measured beside them, and reasons for what is not."""

import json
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from models.semantic_ids.sids import describe_table
from models.semantic_ids.table import SidTable
from monitoring.sid_report import gather_sid_report
from plumline import artifact
from plumline.errors import CorruptArtifactError
from plumline.sid import SidSpace
from plumline.tables import write_parquet
from serving.release import Release

CODES = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 0, 1]], np.int32)
ITEMS = [f"i{number}" for number in range(len(CODES))]


def make_release(folder: Path, *, codes=CODES, items=ITEMS, catalog=None, churn=None, histories=None) -> Release:
    """The three parts that the report reads."""
    table = SidTable(SidSpace((2,) * codes.shape[1]), True, list(items), codes)
    columns = {
        "item_id": pa.array(items, pa.string()),
        "title": pa.array([f"lamp {item}" for item in items], pa.string()),
        "retired": [item == "i1" for item in items],
    }
    write_parquet(folder / "catalog" / "items.parquet", pa.table({**columns, **(catalog or {})}))
    write_parquet(folder / "catalog" / "users.parquet", pa.table({"user_id": ["u"]}))
    (folder / "sids").mkdir()
    table.save(folder / "sids")
    report = describe_table(table) | ({"churn": churn} if churn else {})
    artifact.write_json(folder / "sids" / "report.json", report)
    artifact.seal(folder / "sids", stage="sids", key="k", parents={"histories": histories or "none"})
    artifact.write_json(folder / "quantizer" / "report.json", {"reconstruction": {"text": 0.25}})
    return Release(folder, "2011-10-31-aaaaaaaa", date(2011, 10, 31), {}, {})


def put_pairs(folder: Path, *rows: tuple[str, str, int]) -> Path:
    """A histories artifact of some pairs."""
    a, b, counts = zip(*rows, strict=True) if rows else ((), (), ())
    table = {"item_a": pa.array(a, pa.string()), "item_b": pa.array(b, pa.string()), "count": pa.array(counts)}
    with artifact.writing(folder, stage="histories", key="k", arguments={"as_of": "2011-10-31"}) as out:
        write_parquet(out / "pairs.parquet", pa.table(table | {"count": table["count"].cast(pa.int64())}))
    return folder


def test_figures_are_those_of_the_release(tmp_path: Path) -> None:
    churn = {"num_known": 5, "before": [{"level": 1, "items": 0.9, "traffic": None}], "after": []}
    report = gather_sid_report(make_release(tmp_path, churn=churn), None).to_json()
    assert report["release_id"] == "2011-10-31-aaaaaaaa"
    assert report["num_items"] == 5
    assert report["uniqueness"] == pytest.approx(1 / 5)
    assert report["uniqueness_with_tie_break"] == pytest.approx(3 / 5)
    assert (report["collisions"], report["largest_bucket"]) == (2, 2)
    assert [level["usage"] for level in report["levels"]] == [1.0, 1.0, 1.0]
    assert {"size", "used", "usage", "perplexity", "gini", "counts", "level"} == set(report["levels"][0])
    assert report["levels"][0]["counts"] == [3, 2]
    assert report["churn"] == churn
    assert report["reconstruction"] == {"text": 0.25}
    json.dumps(report, allow_nan=False)


def test_it_says_who_collides(tmp_path: Path) -> None:
    report = gather_sid_report(make_release(tmp_path), None).to_json()
    (bucket,) = report["buckets"]["sid"]
    assert (bucket["sid"], bucket["num_items"]) == ("<a_0><b_0><c_1>", 2)
    assert bucket["items"] == [
        {"item_id": "i0", "title": "lamp i0", "retired": False},
        {"item_id": "i1", "title": "lamp i1", "retired": True},
    ]
    assert [b["sid"] for b in report["buckets"]["prefix"]] == ["<a_0><b_0>", "<a_1><b_0>"]
    assert report["histogram"]["sid"] == [{"size": 1, "buckets": 3}, {"size": 2, "buckets": 1}]
    assert report["histogram"]["prefix"] == [{"size": 1, "buckets": 1}, {"size": 2, "buckets": 2}]


def test_the_atlas_has_two_levels_of_meaning(tmp_path: Path) -> None:
    atlas = gather_sid_report(make_release(tmp_path), None).to_json()["atlas"]
    assert atlas["num_prefixes"] == 2
    first = atlas["prefixes"][0]
    assert (first["sid"], first["num_items"], first["num_children"]) == ("<a_0>", 3, 2)
    assert [child["sid"] for child in first["children"]] == ["<a_0><b_0>", "<a_0><b_1>"]
    assert first["examples"][0]["title"] == "lamp i0"
    bounded = gather_sid_report(Release(tmp_path, "x", date(2011, 1, 1), {}, {}), None, max_prefixes=1, max_children=1)
    assert [len(p["children"]) for p in bounded.atlas["prefixes"]] == [1]


def test_the_tie_break_digit_is_no_level_of_the_atlas(tmp_path: Path) -> None:
    atlas = gather_sid_report(make_release(tmp_path, codes=CODES[:, :2]), None).to_json()["atlas"]
    assert [(prefix["num_children"], prefix["children"]) for prefix in atlas["prefixes"]] == [(0, []), (0, [])]


def test_pairs_are_measured_and_their_origin_said(tmp_path: Path) -> None:
    histories = put_pairs(tmp_path / "histories", ("i0", "i1", 3), ("i0", "i4", 1), ("gone", "i0", 9), ("i0", "zz", 9))
    release = make_release(tmp_path / "r", histories=artifact.read_manifest(histories).digest)
    found = gather_sid_report(release, histories).to_json()["co_occurrence"]
    assert [level["share"] for level in found["levels"]] == [0.75, 0.75, 0.75]
    assert found["levels"][0]["by_chance"] == pytest.approx((7**2 - 4**2 - 3**2) / (8**2 - 4**2 - 3**2 - 1))
    assert found["levels"][0]["lift"] == pytest.approx(0.75 / found["levels"][0]["by_chance"])
    assert (found["num_pairs"], found["weight"], found["why"]) == (2, 4, None)
    assert found["of_this_release"] is True
    other = gather_sid_report(make_release(tmp_path / "other"), histories).to_json()["co_occurrence"]
    assert other["of_this_release"] is False


def test_what_cannot_be_measured_has_a_reason(tmp_path: Path) -> None:
    release = make_release(tmp_path / "r")
    report = gather_sid_report(release, None).to_json()
    assert report["co_occurrence"]["levels"] is None
    assert "artifacts/histories" in report["co_occurrence"]["why"]
    assert report["purity"]["kinds"] is None
    assert "channel" in report["purity"]["why"]
    strangers = put_pairs(tmp_path / "histories", ("x", "y", 3))
    found = gather_sid_report(release, strangers).to_json()["co_occurrence"]
    assert (found["levels"], "none of 1 pairs" in found["why"]) == (None, True)
    empty = gather_sid_report(release, put_pairs(tmp_path / "empty")).to_json()["co_occurrence"]
    assert (empty["levels"], "none of 0 pairs" in empty["why"]) == (None, True)
    (release.path("quantizer") / "report.json").unlink()
    assert gather_sid_report(release, None).reconstruction is None


def test_every_kind_of_category_is_measured(tmp_path: Path) -> None:
    topics = pa.array([["a"], ["a"], ["b"], ["b"], None], pa.list_(pa.string()))
    release = make_release(tmp_path, catalog={"channel": ["x", "x", "y", None, None], "topics": topics})
    kinds = gather_sid_report(release, None).to_json()["purity"]["kinds"]
    assert set(kinds) == {"channel", "topic"}
    assert (kinds["channel"]["num_items"], kinds["channel"]["num_categories"]) == (3, 2)
    first, second, third = kinds["channel"]["levels"]
    assert first["share"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert first["by_chance"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert (second["share"], second["num"]) == (1.0, 2)
    assert third["lift"] == pytest.approx(2.0)


@pytest.mark.parametrize("num_items", [0, 1])
def test_hardly_any_items(tmp_path: Path, num_items: int) -> None:
    release = make_release(tmp_path, codes=CODES[:num_items], items=ITEMS[:num_items])
    report = gather_sid_report(release, None).to_json()
    assert report["num_items"] == num_items
    assert report["atlas"]["num_prefixes"] == num_items
    assert report["buckets"] == {"sid": [], "prefix": []}
    json.dumps(report, allow_nan=False)


def test_an_item_that_the_catalogue_lacks_has_no_title(tmp_path: Path) -> None:
    release = make_release(tmp_path)
    write_parquet(tmp_path / "catalog" / "items.parquet", pa.table({"item_id": ["i0"], "title": ["lamp"]}))
    (bucket,) = gather_sid_report(release, None).to_json()["buckets"]["sid"]
    assert [item["title"] for item in bucket["items"]] == ["lamp", None]


def test_damaged_pairs_are_refused(tmp_path: Path) -> None:
    histories = put_pairs(tmp_path / "histories", ("i0", "i1", 3))
    other = put_pairs(tmp_path / "other", ("i0", "i1", 4))  # sound as a file, but not the one that was sealed
    shutil.copy(other / "pairs.parquet", histories / "pairs.parquet")
    with pytest.raises(CorruptArtifactError, match=r"pairs\.parquet"):
        gather_sid_report(make_release(tmp_path / "r"), histories)
