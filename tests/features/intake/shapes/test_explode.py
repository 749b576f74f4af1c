"""Lists are read quickly where they are what they mostly are, and exactly otherwise: both ways say the same."""

import json
import random

import pytest

from features.intake.shapes import explode as module
from features.intake.shapes.cells import field_of, names_of, read_cell, write_cell
from features.intake.shapes.explode import explode


def random_value(dice: random.Random, depth: int = 2):
    plain = ["", "é\n", 'a"b', "7", 7, 1.50, -3, 10**20, True, False, None, "NULL"]
    kinds = [lambda: dice.choice(plain)]
    if depth:
        kinds.append(lambda: [random_value(dice, depth - 1) for _ in range(dice.randint(0, 3))])
        kinds.append(lambda: {name: random_value(dice, depth - 1) for name in dice.sample("abc", dice.randint(0, 3))})
    return dice.choice(kinds)()


@pytest.fixture
def slowly(monkeypatch):
    """Turns the quick ways off."""

    def turn_off() -> None:
        for name in ("_objects", "_tokens"):
            monkeypatch.setattr(module._State, name, lambda self, block: None)

    return turn_off


def test_objects_are_read_alike(rows, read, slowly, tmp_path):
    dice = random.Random(0)
    cells = [
        json.dumps(
            [{name: random_value(dice) for name in dice.sample("abcd", 3)} for _ in range(dice.randint(0, 4))],
            ensure_ascii=dice.random() < 0.5,
            indent=dice.choice([None, 1]),
        )
        for _ in range(200)
    ]
    table = rows({"session": [str(number) for number in range(200)], "list": [*cells[:-2], None, ""]}, block=50)
    quick = explode(table, ("list",), noun="events", into=tmp_path / "quick")
    slowly()
    slow = explode(table, ("list",), noun="events", into=tmp_path / "slow")
    found, wanted = read(quick.rows), read(slow.rows)
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert [_plain(value) for value in found[name]] == [_plain(value) for value in values], name
    assert (quick.empty, quick.scalars) == (slow.empty, slow.scalars)
    assert slow.rows.num_rows > 300


def _plain(cell):
    """A cell without what only the spelling of JSON differs in."""
    value = read_cell(cell)
    return json.dumps(value) if isinstance(value, (list, dict)) else value


@pytest.mark.parametrize("marked", [True, False])
def test_ids_are_read_alike(rows, read, slowly, tmp_path, marked):
    dice = random.Random(1)
    marks = ["-0", "-1"] if marked else ["", "-1", "-2"]
    cells = [
        " ".join(f"N{dice.randint(1, 99)}{dice.choice(marks)}" for _ in range(dice.randint(0, 5))) for _ in range(200)
    ]
    table = rows({"seen": [*cells[:-2], None, "NULL"]}, block=50)
    quick = explode(table, ("seen",), noun="events", into=tmp_path / "quick", null_words=("", "NULL"))
    slowly()
    slow = explode(table, ("seen",), noun="events", into=tmp_path / "slow", null_words=("", "NULL"))
    assert read(quick.rows) == read(slow.rows)
    assert ("action" in quick.rows.columns) == marked
    assert quick.empty == slow.empty


def test_fields_are_read_alike():
    dice = random.Random(2)
    quick = 0
    for _ in range(500):
        objects = [{name: random_value(dice, 1) for name in dice.sample("abc", 2)} for _ in range(dice.randint(0, 4))]
        cell = json.dumps(objects, ensure_ascii=dice.random() < 0.5)
        found = names_of(cell, "a")
        if found is None:
            continue
        quick += 1
        wanted = write_cell(field_of(read_cell(cell), "a"))
        assert read_cell(found) == read_cell(wanted)
    assert quick > 20
