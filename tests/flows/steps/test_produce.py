"""What speaks against a promotion although the gate passed the release."""

from flows.steps.produce import objection_to
from flows.steps.registry import Entry


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
