"""From the words of a command line to options by noun."""

from pathlib import Path

import click
import pytest

from flows.steps.given import given_from_cli, intake_options
from plumline.errors import InputError


@pytest.fixture
def given(tmp_path):
    """Options of a command line, as `plumline init` would take them."""

    def parse(*words: str, required: tuple[str, ...] = ()):
        said = {}

        @click.command()
        @intake_options
        def command(**values):
            said.update(values)

        command.main(list(words), standalone_mode=False)
        return given_from_cli(tmp_path, said, required=required)

    return parse


@pytest.fixture
def ml_1m(tmp_path) -> Path:
    (tmp_path / "ml").mkdir()
    for name in ("movies.dat", "ratings.dat"):
        (tmp_path / "ml" / name).touch()
    return tmp_path / "ml"


def test_files_and_options_by_noun(given):
    options = given("--items", "i.csv", "--events", "a.csv", "--events", "b.csv", "--map", "title=name", "--null", "-")
    assert options["events"][0].files == ("a.csv", "b.csv")
    assert options["items"][0].map == {"title": "name"}
    assert options["events"][0].null_words[-1] == "-"


def test_a_layout_with_what_is_said_beside_it(given, ml_1m):
    options = given("--layout", "movielens-1m", str(ml_1m), "--value", "rating >= 4", "--encoding", "latin-1")
    (events,) = options["events"]
    assert events.files == (f"{ml_1m}/ratings.dat",)
    assert (events.separator, events.encoding, events.value) == ("::", "latin-1", ("rating >= 4",))
    assert "users" not in options


def test_a_layout_for_files_of_ones_own(given, ml_1m):
    options = given("--layout", "movielens-1m", "--events", "new.dat")
    assert set(options) == {"events"}
    assert (options["events"][0].files, options["events"][0].separator) == (("new.dat",), "::")
    options = given("--layout", "movielens-1m", str(ml_1m), "--items", "other.dat")
    assert options["items"][0].files == ("other.dat",)
    assert options["events"][0].files == (f"{ml_1m}/ratings.dat",)


def test_every_kind_of_file_of_a_layout_gets_what_is_said(given, tmp_path):
    for name in ("yoochoose-clicks.dat", "yoochoose-buys.dat"):
        (tmp_path / name).touch()
    options = given("--layout", "yoochoose", str(tmp_path), "--time-zone", "Europe/Berlin")
    assert [one.time_zone for one in options["events"]] == ["Europe/Berlin"] * 2
    assert [one.constant["action"] for one in options["events"]] == ["click", "buy"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["nothing to read", "--layout"]),
        (["--items", "i.csv"], ["no events", "--events FILE"]),
        (["--layout", "otto"], ["--layout otto", "DIR"]),
        (["--layout", "otto", "--layout", "hm", "."], ["twice", "otto, hm"]),
        (["somewhere"], ["somewhere", "--layout", "--guess"]),
        (["--items", "-", "--events", "-"], ["standard input"]),
        (["--layout", "zzz", "."], ["zzz", "no such layout"]),
        (["--items", "i.csv", "--events", "e.csv", "--separator", ";", "--separator", ","], ["--separator"]),
    ],
)
def test_what_cannot_be_is_one_line(given, words, told):
    with pytest.raises(InputError) as caught:
        given(*words, required=("items", "events") if words else ())
    for word in told:
        assert word in str(caught.value)
