"""What files most likely are, by the names of their columns."""

import pytest

from features.intake.guess import guess_layouts, guess_mapping, guess_noun, guess_roles, missing


@pytest.mark.parametrize(
    ("columns", "noun"),
    [
        (("user_id", "item_id", "timestamp"), "events"),
        (("visitorid", "itemid", "event", "timestamp"), "events"),
        (("CustomerID", "StockCode", "InvoiceDate"), "events"),
        (("time", "user", "page"), "events"),
        (("movieId", "title", "genres"), "items"),
        (("id", "name", "price"), "items"),
        (("sku", "weight"), "items"),
        (("user_id", "age"), "users"),
        (("a", "b"), None),
    ],
)
def test_a_noun_by_its_columns(columns, noun):
    assert guess_noun(columns) == noun


def test_a_column_is_taken_once_and_its_own_name_comes_first():
    mapping = guess_mapping("events", ("user", "user_id", "sku", "created_at", "timestamp", "Type"))
    assert mapping == {"user_id": "user_id", "timestamp": "timestamp", "item_id": "sku", "action": "Type"}
    assert guess_mapping("items", ("id", "name", "desc")) == {"item_id": "id", "title": "name"}


def test_what_is_missing():
    assert missing("events", {"user_id": "u"}) == ["item_id", "timestamp"]
    assert missing("items", {"item_id": "i", "price": "p"}) == ["one of title, description, channel, topics"]
    assert missing("items", {"item_id": "i", "topics": "t"}) == []


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "things.csv").write_text("sku,name\n1,Amber\n")
    (tmp_path / "shop" / "log.csv").write_text("user,sku,created_at\nu,1,2026-03-01\n")
    (tmp_path / "shop" / "picture.bin").write_bytes(b"\x00\x01\x02\x03" * 8)
    return tmp_path / "shop"


def test_files_that_no_layout_knows_have_roles(tmp_path, folder):
    assert guess_layouts(tmp_path, folder) == []
    roles = {role.name: (role.noun, dict(role.mapping)) for role in guess_roles(folder)}
    assert roles == {
        "log.csv": ("events", {"user_id": "user", "item_id": "sku", "timestamp": "created_at"}),
        "things.csv": ("items", {"item_id": "sku", "title": "name"}),
    }


def test_a_layout_fits_by_names_and_by_columns(tmp_path, folder):
    (folder / "movies.csv").write_text("movieId,title,genres\n1,A,B\n")
    (folder / "ratings.csv").write_text("userId,movie,rating,timestamp\n1,1,5,964982703\n")
    assert guess_layouts(tmp_path, folder) == []  # the names of the files alone are not enough
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,964982703\n")
    (fit,) = guess_layouts(tmp_path, folder)
    assert fit.layout.name == "movielens-latest"
    assert fit.files == {"items": ("movies.csv",), "events": ("ratings.csv",)}


def test_what_a_home_keeps_is_nobodys_file(tmp_path, folder):
    (folder / "dvc.yaml").write_text("stages: {}\n")
    (folder / "data" / "landing").mkdir(parents=True)
    (folder / "data" / "landing" / "more.csv").write_text("user_id,item_id,timestamp\nu,1,2026-03-01\n")
    assert [role.name for role in guess_roles(folder) if role.noun] == ["log.csv", "things.csv"]
