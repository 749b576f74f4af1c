"""Which parts of a release were made by other code than what is installed."""

import pytest

from flows.steps.code import stages_of_other_code
from flows.steps.graph import graph_version, read_graph, upstream
from flows.steps.registry import Entry, Registry
from flows.steps.runs import read_run, record_run
from plumline import artifact
from plumline.stage import code_version

PARTS = ("catalog", "quantizer", "cpt", "sft", "index")
ROOT, DAILY = "2020-01-01-aa", "2020-01-02-bb"


class Lineage:
    """One release learned anew, and a day that continues it."""

    def __init__(self, home):
        self.sealed = Registry(home).sealed

    def lineage(self, release_id):
        root = Entry(ROOT, "d", "2020-01-01", "", "bootstrap", "k")
        return [root, Entry(DAILY, "d", "2020-01-02", ROOT, "daily", "k")]


@pytest.fixture
def lineage(home, monkeypatch):
    """Two sealed releases whose parts the installed code made."""
    monkeypatch.setattr("flows.steps.code.Registry", Lineage)
    for release in (ROOT, DAILY):
        for part in PARTS:
            seal(home, release, part)
    return home


def seal(home, release, part, code=None):
    made_by = code or code_version(read_graph(home)[part].module)
    with artifact.writing(home / "releases" / "sealed" / release / part, stage=part, key="k", code=made_by) as out:
        (out / "x").write_text(part)


def test_the_installed_code_made_it_all(lineage):
    assert stages_of_other_code(lineage, DAILY) == []


def test_a_part_of_other_code_is_named_in_running_order(lineage):
    seal(lineage, DAILY, "sft", "other")
    seal(lineage, DAILY, "catalog", "other")
    assert stages_of_other_code(lineage, DAILY) == ["catalog", "sft"]


def test_what_a_day_adopted_was_made_by_whom_it_was_adopted_from(lineage):
    seal(lineage, DAILY, "cpt", "other")
    assert stages_of_other_code(lineage, DAILY) == []
    seal(lineage, ROOT, "cpt", "other")
    seal(lineage, ROOT, "sft", "other")  # the day has one of its own
    assert stages_of_other_code(lineage, DAILY) == ["cpt"]


def test_what_the_installed_code_made_again_is_its_own(lineage):
    seal(lineage, ROOT, "cpt", "other")
    graph = read_graph(lineage)
    record_run(lineage, ROOT, graph_version(graph, upstream(graph, "release")), [], 0.0)
    assert stages_of_other_code(lineage, DAILY) == []
    record_run(lineage, ROOT, "yet another", [], 0.0)
    assert stages_of_other_code(lineage, DAILY) == ["cpt"]
    assert read_run(lineage, ROOT)["code"] == "yet another"


def test_a_part_that_is_not_at_hand_is_not_judged(lineage):
    seal(lineage, DAILY, "sft", "other")
    (lineage / "releases" / "sealed" / DAILY / "sft" / "manifest.json").unlink()
    assert stages_of_other_code(lineage, DAILY) == []
