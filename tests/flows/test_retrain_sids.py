"""Which release a retraining follows: decided once, the same again after an interruption, never itself."""

import json
import subprocess
from dataclasses import asdict
from datetime import date
from pathlib import Path

import pytest

from flows.daily import _base_of
from flows.retrain_sids import NOTE, release_to_follow
from flows.steps.calendar import days_to_process
from flows.steps.produce import run_key
from flows.steps.registry import Entry, Registry
from plumline import artifact
from plumline.errors import InputError

DAY, NEXT = date(2020, 1, 2), date(2020, 1, 3)
FIRST, DAILY, SECOND, OTHER = "2020-01-01-aa", "2020-01-02-bb", "2020-01-02-cc", "2020-01-02-dd"


def git(home: Path, *arguments: str) -> None:
    folder = home / "releases" / "registry"
    folder.mkdir(parents=True, exist_ok=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def tag(home: Path, release_id: str, *, key: str = "", base: str = "", previous: str = "") -> None:
    """An entry of the registry without bytes: who is followed is decided from entries alone."""
    registry = Registry(home)
    if not (registry.repository / ".git").exists():
        git(home, "init", "-q")
        git(home, "commit", "-q", "--allow-empty", "-m", "empty")
    entry = Entry(release_id, f"digest of {release_id}", release_id[:10], base, "daily" if base else "bootstrap", key)
    message = {name: value for name, value in asdict(entry).items() if name != "tag"} | {"previous": previous}
    number = len(registry.entries())
    git(home, "tag", "-a", f"release@v1.{release_id[:10].replace('-', '')}.{number}", "-m", json.dumps(message))


def answer(home: Path, release_id: str) -> None:
    """Make a release the champion."""
    pointer = {"release_id": release_id, "fencing": 1, "previous": None, "history": [], "action": "promote"}
    artifact.replace_file(home / "releases" / "pointers" / "champion.json", json.dumps(pointer))


@pytest.fixture
def lineage(home: Path) -> Path:
    """A bootstrap, and a daily on it that answers."""
    tag(home, FIRST)
    tag(home, DAILY, base=FIRST)
    answer(home, DAILY)
    return home


def test_nobody_is_followed_where_nothing_answers(home: Path) -> None:
    assert release_to_follow(home, DAY) == ""


def test_the_champion_is_followed_and_that_is_noted(lineage: Path) -> None:
    assert release_to_follow(lineage, DAY) == DAILY
    assert artifact.read_json(lineage / NOTE)["previous"] == DAILY


def test_interrupted_and_started_again_it_follows_the_same_although_a_day_was_promoted(lineage: Path) -> None:
    answer(lineage, FIRST)
    assert release_to_follow(lineage, DAY) == FIRST
    answer(lineage, DAILY)  # of the same lineage: the same SIDs
    assert release_to_follow(lineage, DAY) == FIRST
    assert release_to_follow(lineage, NEXT) == DAILY  # another as_of is another retraining


def test_another_recipe_or_seed_is_another_retraining(lineage: Path) -> None:
    answer(lineage, FIRST)
    assert release_to_follow(lineage, DAY) == FIRST
    answer(lineage, DAILY)
    params = lineage / "params.yaml"
    params.write_text(params.read_text().replace("seed: 17", "seed: 18"))
    assert release_to_follow(lineage, DAY) == DAILY


def test_a_champion_of_another_lineage_is_followed_afresh(lineage: Path) -> None:
    assert release_to_follow(lineage, DAY) == DAILY
    tag(lineage, OTHER)
    answer(lineage, OTHER)
    assert release_to_follow(lineage, DAY) == OTHER


def test_a_finished_retraining_does_not_follow_itself(lineage: Path) -> None:
    key = run_key(lineage, as_of=DAY, base="", previous=DAILY)
    tag(lineage, SECOND, key=key, previous=DAILY)
    answer(lineage, SECOND)
    for _ in range(2):  # what produce then looks for is the champion's own key
        assert release_to_follow(lineage, DAY) == DAILY
        assert run_key(lineage, as_of=DAY, base="", previous=DAILY) == Registry(lineage).find(SECOND).key
    assert release_to_follow(lineage, NEXT) == SECOND  # a new day is something to learn from
    recipe = lineage / "recipes" / "cpu_tiny.yaml"
    recipe.write_text(recipe.read_text() + "# another recipe\n")
    assert release_to_follow(lineage, DAY) == SECOND


def test_a_bootstrap_of_the_same_day_is_as_good_as_its_own_retraining(home: Path) -> None:
    tag(home, SECOND, key=run_key(home, as_of=DAY, base="", previous=""))
    answer(home, SECOND)
    assert release_to_follow(home, DAY) == ""


def test_a_day_on_a_finished_retraining_is_followed(lineage: Path) -> None:
    tag(lineage, SECOND, key=run_key(lineage, as_of=DAY, base="", previous=DAILY), previous=DAILY)
    tag(lineage, "2020-01-03-ee", base=SECOND)
    answer(lineage, "2020-01-03-ee")
    assert release_to_follow(lineage, NEXT) == "2020-01-03-ee"


def test_whom_a_release_follows_is_part_of_its_key_by_its_bytes(lineage: Path) -> None:
    keys = {run_key(lineage, as_of=DAY, base="", previous=previous) for previous in ("", FIRST, DAILY)}
    assert len(keys) == 3
    with pytest.raises(InputError, match="not in the registry"):
        run_key(lineage, as_of=DAY, base="", previous="2020-01-09-zz")


def test_a_lineage_is_all_that_goes_back_to_one_that_was_learned_anew(lineage: Path) -> None:
    tag(lineage, SECOND, previous=DAILY)
    tag(lineage, "2020-01-03-ee", base=DAILY)
    registry = Registry(lineage)
    for release_id in (FIRST, DAILY, "2020-01-03-ee"):
        assert [e.release_id for e in registry.lineage(release_id)] == [FIRST, DAILY, "2020-01-03-ee"]
    assert [e.release_id for e in registry.lineage(SECOND)] == [SECOND]
    assert registry.lineage("nobody") == registry.lineage("") == []
    assert [e.previous for e in registry.entries()] == ["", "", DAILY, ""]


def test_a_retraining_that_does_not_answer_takes_no_day_from_the_daily_clock(lineage: Path) -> None:
    days = [date(2020, 1, number) for number in range(1, 6)]
    for day in days:
        path = lineage / "data" / "landing" / "batch" / "events" / f"day={day}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert days_to_process(lineage, None) == [date(2020, 1, 3), date(2020, 1, 4)]
    turned_down = "2020-01-04-ff"
    tag(lineage, turned_down, previous=DAILY)
    assert days_to_process(lineage, None) == [date(2020, 1, 3), date(2020, 1, 4)]
    answer(lineage, turned_down)
    assert days_to_process(lineage, None) == []
    tag(lineage, "2020-01-05-gg", base=turned_down)
    answer(lineage, DAILY)  # rolled back, and what was made on the other lineage is not what a day goes on from
    assert days_to_process(lineage, None) == [date(2020, 1, 3), date(2020, 1, 4)]
    assert _base_of(lineage, date(2020, 1, 5), DAILY) == DAILY
    assert _base_of(lineage, DAY, DAILY) == FIRST  # made before, in this lineage


def test_an_entry_that_was_published_before_retrainings_followed_anybody_is_read(home: Path) -> None:
    git(home, "init", "-q")
    git(home, "commit", "-q", "--allow-empty", "-m", "empty")
    old = {"release_id": FIRST, "digest": "d", "as_of": "2020-01-01", "base": "", "kind": "bootstrap", "key": "k"}
    git(home, "tag", "-a", "release@v1.20200101.0", "-m", json.dumps(old))
    assert Registry(home).entries() == [Entry(**old, tag="release@v1.20200101.0", previous="")]
