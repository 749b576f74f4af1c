"""A whole recipe is read before anything is made."""

from pathlib import Path

import pytest
import yaml

from flows.steps.graph import read_graph
from flows.steps.recipe import check_recipe
from plumline.errors import InputError


def changed(home: Path, **sections: dict | None) -> Path:
    """The recipe of a home with these sections' settings changed; None: without the section."""
    path = home / "recipes" / "cpu_tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    for name, settings in sections.items():
        if settings is None:
            del recipe[name]
        else:
            recipe[name] = {**(recipe.get(name) or {}), **settings}
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_every_recipe_that_a_clone_brings_is_whole(home: Path, root: Path) -> None:
    graph = read_graph(home)
    recipes = sorted((root / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        assert set(check_recipe(path, graph)) == {*graph, "gate", "monitor"}


@pytest.mark.parametrize("section", ["events", "ranker", "scores", "release", "gate", "monitor"])
def test_a_setting_that_is_none_is_told_whoever_reads_it(home: Path, section: str) -> None:
    with pytest.raises(InputError, match=rf"cpu_tiny\.yaml: {section}\.stepps: .*{section} takes \["):
        check_recipe(changed(home, **{section: {"stepps": 3}}), read_graph(home))


@pytest.mark.parametrize("section", ["histories", "rivals", "monitor"])
def test_a_section_that_is_missing_is_told(home: Path, section: str) -> None:
    with pytest.raises(InputError, match=rf"cpu_tiny\.yaml: no section '{section}'"):
        check_recipe(changed(home, **{section: None}), read_graph(home))


def test_a_section_that_nothing_reads_is_told(home: Path) -> None:
    with pytest.raises(InputError, match=r"no stage reads the section 'rankers'; sections are \[.*'ranker'"):
        check_recipe(changed(home, rankers={"max_queries": 1}), read_graph(home))


@pytest.mark.parametrize("name", ["max_queries", "leave_one_out_queries"])
def test_rivals_are_asked_at_least_what_the_ranker_is(home: Path, name: str) -> None:
    graph = read_graph(home)
    check_recipe(changed(home, ranker={name: 50}, rivals={name: 50}), graph)
    with pytest.raises(
        InputError, match=rf"rivals\.{name} 49 is less than ranker\.{name} 50.*set rivals\.{name} to 50"
    ):
        check_recipe(changed(home, rivals={name: 49}), graph)
