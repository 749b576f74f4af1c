"""The first as_of leaves 500 requests to score on where the log has them, and never more than half of the log."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from flows.steps.holdout import holdout_as_of
from plumline.errors import InputError
from plumline.schema import EVENTS, Contract, conform
from plumline.tables import write_parquet

START = date(2024, 1, 1)
ITEMS = pa.array(["a"])


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("histories: {}\n")
    return path


def write_log(folder: Path, users: dict[int, int], **columns: str | float) -> dict[date, list[Path]]:
    """day → number of users with an event, as partitions."""
    files: dict[date, list[Path]] = {}
    for day, number in users.items():
        when = datetime(2024, 1, 1, 10, tzinfo=UTC) + timedelta(days=day)
        table: dict[str, list] = {"user_id": [f"u{n}" for n in range(number)], "item_id": ["a"] * number}
        table |= {"timestamp": [when] * number} | {name: [value] * number for name, value in columns.items()}
        path = folder / f"{day}.parquet"
        write_parquet(path, conform(pa.table(table), Contract(EVENTS.name, EVENTS.schema, ())))
        files[START + timedelta(days=day)] = [path]
    return files


def chosen(folder: Path, users: dict[int, int], recipe: Path, **columns: str | float) -> int:
    return (holdout_as_of(write_log(folder, users, **columns), ITEMS, recipe) - START).days


@pytest.mark.parametrize(
    ("users", "as_of"),
    [
        (dict.fromkeys(range(100), 100), 85),  # the last two weeks
        (dict.fromkeys(range(20), 100), 14),  # 500 of them lie in the last five days of twenty
        (dict.fromkeys(range(20), 300), 16),  # the last fifth has them
        (dict.fromkeys(range(4), 1), 2),
        (dict.fromkeys(range(100), 5), 85),  # a fifth of 500 requests would be 100; there are 70 in two weeks
        ({0: 9, 1: 9}, 0),
        ({day: 100 if day < 80 else 3 for day in range(100)}, 74),  # the log thins out at its end, as one did to 45
        ({day: 100 if day < 5 else 1 for day in range(60)}, 3),  # a fifth of 555
        (dict.fromkeys(range(0, 361, 20), 1), 346),  # the case sparse_log
    ],
)
def test_as_of_leaves_enough_to_score_on(tmp_path: Path, recipe: Path, users: dict[int, int], as_of: int) -> None:
    assert chosen(tmp_path, users, recipe) == as_of


def test_what_shows_no_interest_is_not_counted(tmp_path: Path, recipe: Path) -> None:
    early, late = dict.fromkeys(range(30), 100), dict.fromkeys(range(30, 40), 100)
    assert chosen(tmp_path / "a", early | late, recipe) == 32
    bought = write_log(tmp_path / "b", early, watch_ratio=0.9, action="buy")
    none: tuple[dict, ...] = ({"action": "Dislike"}, {"quantity": -1.0}, {"watch_ratio": 0.1}, {"action": "view"})
    asked: tuple[dict, ...] = ({}, {}, {"min_watch_ratio": 0.2}, {"positive_actions": ["buy"]})
    for number, (columns, interest) in enumerate(zip(none, asked, strict=True)):
        recipe.write_text(yaml.safe_dump({"histories": interest}))
        files = bought | write_log(tmp_path / f"c{number}", late, **columns)
        assert (holdout_as_of(files, ITEMS, recipe) - START).days == 24, columns
    assert (holdout_as_of(files, pa.array(["b"]), recipe) - START).days == 32  # nobody knows the item: no day is better


def test_one_day_is_refused(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(InputError, match="events of 1 day; two are needed"):
        chosen(tmp_path, {3: 5}, recipe)
    with pytest.raises(InputError, match="events of 0 days"):
        chosen(tmp_path, {}, recipe)
