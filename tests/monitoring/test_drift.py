"""Chance is no drift, not even where PSI is large; a real move is."""

from datetime import date, timedelta
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from monitoring.drift import Drift, Sample, compare, drift_gauges, drift_of_day, psi
from monitoring.health import MonitorParams, read_served_items
from plumline.schema import TRAFFIC
from serving.traffic import rows_to_table

DAY = date(2011, 11, 1)


def _zipf(num_codes: int, exponent: float) -> np.ndarray:
    shares = np.arange(1, num_codes + 1) ** -exponent
    return shares / shares.sum()


def _compare(reference: np.ndarray, current: np.ndarray, num_codes: int, seed: int = 0) -> Drift:
    found = compare("codes", Sample.of_rows(reference), Sample.of_rows(current), num_codes, max_psi=0.1, seed=seed)
    assert found is not None
    return found


def test_psi_by_hand() -> None:
    assert psi(np.array([50, 50]), np.array([50, 50])) == 0
    expected = (0.9 - 0.5) * np.log(0.9 / 0.5) + (0.1 - 0.5) * np.log(0.1 / 0.5)
    assert psi(np.array([1, 1]), np.array([9, 1])) == pytest.approx(expected)
    unseen = (0.5 - 1) * np.log(0.5) + (0.5 - 1e-4) * np.log(0.5 / 1e-4)
    assert psi(np.array([7, 0]), np.array([5, 5])) == pytest.approx(unseen)


@given(arrays(np.int64, (2, 6), elements=st.integers(0, 1000)))
def test_psi_is_symmetric_and_never_negative(counts: np.ndarray) -> None:
    counts = counts + np.array([1, 0, 0, 0, 0, 0])
    assert psi(counts[0], counts[1]) >= 0
    assert psi(counts[0], counts[1]) == pytest.approx(psi(counts[1], counts[0]), abs=1e-12)


def test_noise_on_many_codes_is_no_drift_and_a_real_move_is() -> None:
    rng = np.random.default_rng(0)
    same, moved = _zipf(2048, 0.7), _zipf(2048, 1.1)
    alarms, caught = 0, 0
    for seed in range(10):
        reference = rng.choice(2048, 5000, p=same)
        quiet = _compare(reference, rng.choice(2048, 5000, p=same), 2048, seed)
        assert quiet.psi > 0.25  # a fixed limit would call this a major shift
        alarms += quiet.drifted
        caught += _compare(reference, rng.choice(2048, 5000, p=moved), 2048, seed).drifted
    assert alarms <= 1
    assert caught == 10


def test_rows_of_one_answer_are_shuffled_together() -> None:
    rng = np.random.default_rng(1)
    answers = rng.integers(0, 16, (60, 1)).repeat(20, axis=1)  # 20 items of one answer share their first code
    groups = np.arange(60).repeat(20)

    def floor(grouped: bool) -> float:
        sides = [Sample(half.ravel(), groups[:600]) for half in (answers[:30], answers[30:])]
        if not grouped:
            sides = [Sample.of_rows(side.bins) for side in sides]
        found = compare("codes", sides[0], sides[1], 16, max_psi=0.1, seed=0)
        assert found is not None
        return found.noise_floor

    assert floor(grouped=True) > 5 * floor(grouped=False)


def test_small_and_empty_sides() -> None:
    assert (
        compare("x", Sample.of_rows(np.array([], int)), Sample.of_rows(np.array([1])), 4, max_psi=0.1, seed=0) is None
    )
    tiny = _compare(np.array([0]), np.array([1]), 4)
    assert not tiny.drifted  # one row against one row proves nothing


def test_same_seed_same_answer() -> None:
    rng = np.random.default_rng(2)
    reference, current = rng.integers(0, 50, 500), rng.integers(0, 50, 700)
    assert _compare(reference, current, 50, 7) == _compare(reference, current, 50, 7)


def test_one_day_in_a_hundred_passes_the_noise_floor_by_chance() -> None:
    rng = np.random.default_rng(6)
    shares = _zipf(8, 0.7)
    passed = []
    for seed in range(12):
        sides = [rng.choice(8, 500, p=shares) for _ in range(2)]
        floor = _compare(*sides, 8, seed).noise_floor
        counts = rng.multinomial(500, shares, (2, 2000))
        passed.append((psi(counts[0], counts[1]) > floor).mean())
    assert 0.005 < np.mean(passed) < 0.025


@pytest.mark.parametrize(("longer", "drifted"), [(2140, False), (2160, True)])
def test_a_move_of_a_fifth_on_the_scale_of_psi_is_drift(
    example: ModuleType, tmp_path: Path, longer: int, drifted: bool
) -> None:
    """Of 3,000 answers half had a short history the day before; 0.194 is no drift yet, 0.208 is one."""
    served_items = read_served_items(example.make_release(tmp_path / "r", DAY - timedelta(days=1)))

    def traffic(num_long: int) -> pa.Table:
        template = rows_to_table([example.answer(DAY, 0, ["item-00"], "any")])
        lengths = pa.array([9] * num_long + [1] * (3000 - num_long), TRAFFIC.schema.field("history_length").type)
        place = template.column_names.index("history_length")
        return pa.concat_tables([template] * 3000).set_column(place, "history_length", lengths)

    found = drift_of_day(traffic(1500), traffic(longer), served_items, MonitorParams(), day=DAY)
    (length,) = [drift for drift in found if drift.name == "history_length"]
    assert length.noise_floor < 0.1
    assert 0.15 < length.psi < 0.25
    assert length.drifted is drifted


def test_large_samples_are_thinned() -> None:
    rng = np.random.default_rng(3)
    found = _compare(rng.integers(0, 8, 250_000), rng.integers(0, 8, 1000), 8)
    assert 95_000 < found.num_reference < 105_000
    assert not found.drifted


def test_drift_of_a_day_of_traffic(example: ModuleType, tmp_path: Path) -> None:
    served_items = read_served_items(example.make_release(tmp_path / "r", DAY - timedelta(days=1)))
    rng = np.random.default_rng(4)

    def traffic(day: date, items: list[str], lengths: int) -> list:
        return [
            example.answer(day, n, list(rng.choice(items, 3, replace=False)), "any", history_length=1 + n % lengths)
            for n in range(300)
        ]

    before = rows_to_table(traffic(DAY - timedelta(days=1), example.ITEM_IDS, 9))
    params = MonitorParams()
    quiet = drift_of_day(before, rows_to_table(traffic(DAY, example.ITEM_IDS, 9)), served_items, params, day=DAY)
    assert [d.name for d in quiet] == ["codes_level_1", "codes_level_2", "history_length", "popularity"]
    assert not any(d.drifted for d in quiet)
    moved = drift_of_day(before, rows_to_table(traffic(DAY, example.ITEM_IDS[:8], 200)), served_items, params, day=DAY)
    assert {d.name for d in moved if d.drifted} == {"codes_level_2", "history_length", "popularity"}
    gauges = drift_gauges(moved)
    assert gauges["drift_score"] == max(d.score for d in moved) > 1
    assert drift_of_day(TRAFFIC.schema.empty_table(), before, served_items, params, day=DAY) == []
    assert drift_gauges([]) == {}
