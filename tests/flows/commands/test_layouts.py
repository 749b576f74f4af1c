"""`plumline layouts`, and what a folder is guessed to be."""

import json
import shlex

import pytest
from click.testing import CliRunner

from features.intake.layouts import list_layouts
from flows.commands import cli
from flows.commands.layouts import guess_folder


def test_every_layout_is_listed_with_what_it_needs(root, monkeypatch):
    monkeypatch.setenv("PLUMLINE_HOME", str(root))
    told = CliRunner().invoke(cli.main, ["layouts"]).output
    for name in list_layouts(root):
        assert f"{name} " in told
    assert told.count("needs ") == 21
    assert told.count("cannot land: ") == 2
    found = json.loads(CliRunner().invoke(cli.main, ["layouts", "--json"]).output)
    assert {layout["name"] for layout in found} == set(list_layouts(root))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "things.csv").write_text("sku,name\n1,Amber\n")
    return tmp_path / "shop"


def test_a_folder_that_no_layout_knows_gets_a_command(root, folder):
    (folder / "log.csv").write_text("user,sku,created_at\nu,1,2026-03-01\n")
    guess = guess_folder(root, folder)
    assert shlex.split(guess.command) == [
        *("plumline", "init", "--items", f"{folder}/things.csv"),
        *("--map=items:item_id=sku", "--map=items:title=name"),
        *("--events", f"{folder}/log.csv", "--map=events:user_id=user", "--map=events:item_id=sku"),
        "--map=events:timestamp=created_at",
    ]
    assert any("no layout fits" in line for line in guess.lines())
    assert guess.to_json()["files"][0]["noun"] == "events"


def test_what_no_file_has_is_said(root, folder):
    lines = guess_folder(root, folder).lines()
    assert any("no file has what events need" in line for line in lines)
    assert not any(line.startswith("next:") for line in lines)


def test_a_folder_that_a_layout_knows(root, folder):
    (folder / "movies.csv").write_text("movieId,title,genres\n1,A,B\n")
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,964982703\n")
    guess = guess_folder(root, folder)
    assert guess.command == f"plumline init --layout movielens-latest {folder}"
    assert "  events  ratings.csv" in guess.lines()
    assert "          user_id=userId, item_id=movieId" in guess.lines()
    assert guess.to_json()["layouts"][0]["layout"] == "movielens-latest"


def test_one_that_cannot_land_says_why(root, folder):
    (folder / "BX-Books.csv").write_text('"ISBN";"Book-Title"\n"1";"A"\n')
    (folder / "BX-Book-Ratings.csv").write_text('"User-ID";"ISBN";"Book-Rating"\n"2";"1";"7"\n')
    guess = guess_folder(root, folder)
    assert guess.command == ""
    assert "no times" in guess.lines()[-1]
