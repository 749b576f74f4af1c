"""Layouts: which files of a folder are meant, and what a broken or missing one says."""

import zipfile
from pathlib import Path

import pytest

from features.intake.layouts import find_layout, layout_bases, layout_sources, list_layouts, read_layout
from plumline.errors import InputError


@pytest.fixture
def folder(tmp_path):
    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "data"

    return make


def files(home: Path, name: str, folder: Path) -> dict[str, list[list[str]]]:
    given = layout_sources(find_layout(home, name), folder)
    return {
        noun: [[Path(file).relative_to(folder).as_posix() for file in one.files] for one in kinds]
        for noun, kinds in given.items()
    }


@pytest.mark.parametrize(
    ("name", "there", "found"),
    [
        (
            "movielens-1m",
            ["ml-1m/ratings.dat", "ml-1m/movies.dat.gz", "ml-1m/README"],
            {"items": [["ml-1m/movies.dat.gz"]], "events": [["ml-1m/ratings.dat"]]},
        ),
        (
            "movielens-latest",
            ["ratings.csv", "ratings.csv.gz", "movies.csv", "tags.csv"],
            {"items": [["movies.csv"]], "events": [["ratings.csv"]]},
        ),
        (
            "amazon-2018",
            ["meta_Tools.json.gz", "Tools_5.json.gz", "Tools.csv"],
            {"items": [["meta_Tools.json.gz"]], "events": [["Tools_5.json.gz"], ["Tools.csv"]]},
        ),
        (
            "rees46",
            ["2019-Nov.csv", "2019-Oct.csv.gz", "notes.csv", ".cache/2019-Dec.csv"],
            {"items": [["2019-Nov.csv", "2019-Oct.csv.gz"]], "events": [["2019-Nov.csv", "2019-Oct.csv.gz"]]},
        ),
        (
            "kuairec",
            ["data/Big_Matrix.csv", "data/item_categories.csv"],
            {"items": [["data/item_categories.csv"]], "events": [["data/Big_Matrix.csv"]]},
        ),
    ],
)
def test_files_are_found_by_their_names(folder, tmp_path, name, there, found):
    assert files(tmp_path, name, folder(*there)) == found


@pytest.mark.parametrize(
    ("name", "there", "words"),
    [
        ("movielens-1m", ["ratings.dat"], ["no items", "movies.dat", "ratings.dat", "--items FILE", "--guess"]),
        ("otto", [], ["no items", "nothing"]),
        ("book-crossing", ["BX-Books.csv"], ["cannot land", "no times"]),
    ],
)
def test_what_a_folder_lacks_is_one_line(folder, tmp_path, name, there, words):
    with pytest.raises(InputError) as caught:
        files(tmp_path, name, folder("x/y", *there) if there else folder(".hidden"))
    for word in words:
        assert word in str(caught.value)


def test_archives_are_looked_into_where_nothing_lies_unpacked(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("movies.dat", "ratings.dat"):
        with zipfile.ZipFile(tmp_path / "data" / "ml-1m.zip", "a") as archive:
            archive.writestr(f"ml-1m/{name}", "1::2::3::4\n")
            archive.writestr(f"__MACOSX/{name}", "")
    found = files(tmp_path, "movielens-1m", tmp_path / "data")
    assert found == {"items": [["ml-1m.zip/ml-1m/movies.dat"]], "events": [["ml-1m.zip/ml-1m/ratings.dat"]]}
    found = files(tmp_path, "movielens-1m", tmp_path / "data" / "ml-1m.zip")
    assert found == {"items": [["ml-1m/movies.dat"]], "events": [["ml-1m/ratings.dat"]]}
    (tmp_path / "data" / "ratings.dat").touch()
    found = files(tmp_path, "movielens-1m", tmp_path / "data")
    assert found == {"items": [["ml-1m.zip/ml-1m/movies.dat"]], "events": [["ratings.dat"]]}


def test_a_file_or_nothing_instead_of_a_folder(tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(InputError, match="is a file"):
        files(tmp_path, "otto", tmp_path / "a.csv")
    with pytest.raises(InputError, match="no such folder"):
        files(tmp_path, "otto", tmp_path / "b")


def test_own_layouts_come_first_and_may_be_named_by_path(tmp_path):
    (tmp_path / "layouts").mkdir()
    text = "about: a\nneeds: b\nevents: {files: [x.csv], map: {item_id: sku}}\n"
    (tmp_path / "layouts" / "otto.yaml").write_text(text)
    (tmp_path / "mine.yaml").write_text(text)
    assert list_layouts(tmp_path)["otto"] == tmp_path / "layouts" / "otto.yaml"
    assert find_layout(tmp_path, "otto").events[0].map == {"item_id": "sku"}
    assert find_layout(tmp_path, str(tmp_path / "mine.yaml")).name == "mine"


def test_a_name_that_is_none_says_which_is_meant(tmp_path):
    with pytest.raises(InputError, match=r"did you mean movielens-1m\?"):
        find_layout(tmp_path, "movielens1m")
    with pytest.raises(InputError, match="there are .*hm.*otto"):
        find_layout(tmp_path, "zzz")
    with pytest.raises(InputError, match=r"none.yaml: no such layout"):
        find_layout(tmp_path, "none.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about: [", ["no layout"]),
        ("- a", ["no layout"]),
        ("about: a\nneeds: b\nevents: {filez: [x]}", ["events.0.filez"]),
        ("about: a\nneeds: b\nevents: {files: x}", ["events.0.files"]),
        ("about: a", ["needs"]),
    ],
)
def test_a_broken_layout_is_one_line(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_layout(path)
    assert "\n" not in str(caught.value)
    assert "x.yaml" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_files_named_by_hand_need_a_layout_of_one_kind(tmp_path):
    (base,) = layout_bases(find_layout(tmp_path, "rees46"), "events")
    assert base.map["timestamp"] == "event_time"
    with pytest.raises(InputError, match="2 kinds of events"):
        layout_bases(find_layout(tmp_path, "yoochoose"), "events")
    with pytest.raises(InputError, match="cannot land"):
        layout_bases(find_layout(tmp_path, "criteo"), "events")
