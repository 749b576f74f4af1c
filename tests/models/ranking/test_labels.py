"""Labels: what was taken and a sample of the rest, kept from day to day."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from models.ranking.candidates import COUNTED
from models.ranking.features import FEATURES
from models.ranking.labels import FOLDS, Labels, fold_of

DAY = date(2024, 1, 8)


def group(user: str, day: date, worth: list[float], counted: list[bool] | None = None, limit: int = 100) -> Labels:
    """A group whose feature rows are numbered; rows that no counted source names have a beam's place alone."""
    table = np.full((len(worth), len(FEATURES)), np.nan, dtype=np.float32)
    table[:, FEATURES.index("own_count")] = np.arange(len(worth))
    table[:, FEATURES.index("beam_place")] = 0
    for row, named in enumerate(counted or [True] * len(worth)):
        if named:
            table[row, FEATURES.index(f"{COUNTED[1]}_place")] = 3
    return Labels.group(user, day, table, np.array(worth, np.float32), limit)


def rows_of(labels: Labels) -> list[int]:
    return labels.features[:, FEATURES.index("own_count")].astype(int).tolist()


def test_everything_that_was_taken_and_a_sample_of_the_rest() -> None:
    worth = [0.0] * 50
    worth[7] = worth[31] = 2.0
    found = group("u", DAY, worth, limit=5)
    assert found.sizes.tolist() == [7]
    assert {7, 31} <= set(rows_of(found))
    assert rows_of(found) == sorted(rows_of(found))
    assert rows_of(group("u", DAY, worth, limit=5)) == rows_of(found)
    assert rows_of(group("v", DAY, worth, limit=5)) != rows_of(found)
    assert group("u", DAY, [0.0] * 50).num_queries == 0


def test_twice_the_relevance_above_the_median() -> None:
    labels = group("u", DAY, [0.0, 1.0, 2.0, 3.0])
    assert labels.gains.tolist() == [0, 1, 1, 2]
    assert group("u", DAY, [0.0, 1.0, 1.0]).gains.tolist() == [0, 1, 1]  # all alike: nothing is better


def test_a_round_trip_and_features_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Labels.concat([group("u", DAY, [1.0, 0.0]), group("v", DAY + timedelta(days=3), [0.0, 1.0, 5.0])])
    labels.save(tmp_path)
    again = Labels.load(tmp_path)
    assert (again.users.tolist(), again.sizes.tolist(), again.span) == (
        ["u", "v"],
        [2, 3],
        ["2024-01-08", "2024-01-11"],
    )
    assert again.worth.tolist() == labels.worth.tolist()
    np.testing.assert_array_equal(again.features, labels.features)
    first = (tmp_path / "labels.parquet").read_bytes()
    again.save(tmp_path)
    assert (tmp_path / "labels.parquet").read_bytes() == first
    monkeypatch.setattr("models.ranking.labels.FEATURES", FEATURES[1:])
    assert Labels.load(tmp_path).num_queries == 0


def test_labels_of_before_there_was_a_feature_do_not_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = group("u", DAY, [1.0, 0.0])
    labels.save(tmp_path)
    monkeypatch.setattr("models.ranking.labels.FEATURES", (FEATURES[0], "new_score", *FEATURES[1:]))
    later = Labels.load(tmp_path)
    assert later.num_queries == 1
    assert np.isnan(later.features[:, 1]).all()
    np.testing.assert_array_equal(np.delete(later.features, 1, axis=1), labels.features)


def test_none_can_be_kept(tmp_path: Path) -> None:
    Labels.none().save(tmp_path)
    assert Labels.load(tmp_path).num_queries == 0
    assert Labels.none().span == []
    assert Labels.none().of_counted().num_queries == 0


def test_a_fold_learns_from_the_others_alone() -> None:
    users = [f"u{number}" for number in range(40)]
    labels = Labels.concat([group(user, DAY, [1.0, 0.0]) for user in users])
    for fold in range(FOLDS):
        others = labels.outside(fold).users.tolist()
        assert others == [user for user in users if fold_of(user) != fold]
        assert 8 < len(others) < 32


def test_the_newest_days_stay() -> None:
    days = [DAY + timedelta(days=n) for n in (3, 1, 2, 0)]
    labels = Labels.concat([group(f"u{n}", day, [1.0, 0.0]) for n, day in enumerate(days)])
    assert labels.newest(2).users.tolist() == ["u0", "u2"]
    assert labels.newest(10) is labels


def test_without_the_model_only_what_is_counted_is_learned_from() -> None:
    labels = Labels.concat(
        [
            group("u", DAY, [1.0, 0.0, 1.0], [True, False, False]),
            group("v", DAY, [1.0, 0.0], [False, True]),  # what v took, no counted source names: nothing is left of it
        ]
    )
    counted = labels.of_counted()
    assert (counted.users.tolist(), counted.sizes.tolist(), counted.worth.tolist()) == (["u"], [1], [1.0])
