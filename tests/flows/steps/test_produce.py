"""What speaks against a promotion although the gate passed the release."""

from datetime import date
from pathlib import Path

import pytest

from flows.steps import produce
from flows.steps.produce import _of_other_code, objection_to, run_key
from flows.steps.registry import Entry
from plumline import artifact
from plumline.errors import InputError


class Known:
    """A registry of entries in memory, as far as an objection asks it."""

    def __init__(self, *entries):
        self._entries = {entry.release_id: entry for entry in entries}

    def find(self, release_id):
        return self._entries[release_id]

    def lineage(self, release_id):
        return [entry for name, entry in self._entries.items() if self._root(name) == self._root(release_id)]

    def _root(self, release_id):
        base = self._entries[release_id].base
        return self._root(base) if base else release_id


def entry(release_id, base="", previous=""):
    kind = "daily" if base else "bootstrap"
    return Entry(release_id, "digest", release_id[:10], base, kind, "key", previous=previous)


FIRST, DAILY, OTHER = entry("2020-01-01-aa"), entry("2020-01-02-bb", base="2020-01-01-aa"), entry("2020-01-02-cc")


def test_a_champion_of_a_later_day_stays():
    assert "knows a later day" in objection_to(Known(FIRST, DAILY), FIRST, DAILY.release_id)
    assert objection_to(Known(FIRST, DAILY), DAILY, FIRST.release_id) == ""


def test_a_retraining_takes_the_place_of_the_lineage_it_followed_only():
    new = entry("2020-01-03-dd", previous=FIRST.release_id)
    registry = Known(FIRST, DAILY, OTHER, new)
    assert objection_to(registry, new, FIRST.release_id) == ""
    assert objection_to(registry, new, DAILY.release_id) == ""
    said = objection_to(registry, new, OTHER.release_id)
    assert "follows the SIDs of 2020-01-01-aa, but 2020-01-02-cc" in said
    assert "plumline retrain-sids" in said
    assert objection_to(registry, entry("2020-01-03-ee"), OTHER.release_id) == ""


PARTS = {"recipe": "r", "code": "c", "as_of": "2020-01-01", "seed": "17", "base": "", "previous": ""}


class Listed:
    """A registry as far as the search for a release of other code asks it."""

    def __init__(self, *entries):
        self._entries = entries

    def entries(self):
        return list(self._entries)


def made(name, **changed):
    parts = {**PARTS, **changed}
    return Entry(name, "digest", parts["as_of"], "", "bootstrap", artifact.sha256_json(parts), code=parts["code"])


def test_a_release_that_differs_in_nothing_but_the_code_is_found():
    old, newer = made("a", code="old"), made("b", code="newer")
    assert _of_other_code(Listed(old), PARTS) == old
    assert _of_other_code(Listed(old, newer), PARTS) == newer


def test_another_recipe_seed_day_or_base_is_another_release():
    others = [made(name, **{name: "other", "code": "old"}) for name in ("recipe", "as_of", "seed", "base", "previous")]
    assert _of_other_code(Listed(*others), PARTS) is None


def test_an_entry_of_before_the_code_was_kept_is_not_recognised():
    old = made("a", code="old")
    assert _of_other_code(Listed(Entry(**{**old.__dict__, "code": ""})), PARTS) is None


def test_a_day_is_made_anew_where_a_delivery_was_taken_back(home: Path):
    asked = {"as_of": date(2020, 1, 1), "base": "", "previous": ""}
    before = run_key(home, **asked)
    landing = home / "data" / "landing"
    (landing / "0123456789abcdef").mkdir(parents=True)
    assert run_key(home, **asked) == before  # what lands is the next days' to learn
    (landing / "withdrawn.json").write_text("[1]")
    after = run_key(home, **asked)
    (landing / "withdrawn.json").write_text("[1, 2]")
    assert len({before, after, run_key(home, **asked)}) == 3


def test_a_limit_that_is_none_is_said_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = home / "recipes" / "cpu_tiny.yaml"
    recipe.write_text(recipe.read_text().replace("\ngate:\n", "\ngate:\n  popularity_blocks: once_beaten\n"))
    monkeypatch.setattr(produce, "run_stages", lambda *_: pytest.fail("stages ran"))
    with pytest.raises(InputError, match=r"cpu_tiny\.yaml: gate\.popularity_blocks: this setting is gone"):
        produce.produce(home, as_of=date(2020, 1, 1), base="", previous="", kind="bootstrap")
