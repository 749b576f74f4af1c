"""Ranking is measured in turns, of as many candidates as are asked for, where our trees say what LightGBM says."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_ranking as bench
from benchmarks.world import Shape


def test_all_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[tuple[str, int]] = []
    works = {name: lambda case, name=name: calls.append((name, case)) for name in ("a", "b")}
    seconds = bench.turns(works, 2, 2)
    first, second = [("b", 0), ("a", 0), ("b", 1), ("a", 1)], [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert calls == first + second + first
    assert {name: found.shape for name, found in seconds.items()} == {"a": (2, 2), "b": (2, 2)}


def test_the_quickest_round_is_of_each_case() -> None:
    found = bench.in_ms(np.array([[0.001, 0.005], [0.002, 0.004], [0.009, 0.004]]))
    assert found == {"median": 4.0, "9th_decile": 7.0, "quickest": 2.5}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_world_is_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CANDIDATES", 40)
    monkeypatch.setattr(bench, "REQUESTS", 9)
    for stage, steps in (("cpt", 5), ("sft", 10)):
        monkeypatch.setitem(bench.CHANGES, stage, {"steps": steps})
    bench.make_world(tmp_path / "world", Shape(users=300, items=150, events_per_user=30.0))
    row = bench.measure("world", tmp_path / "world" / "artifacts", quick=True)
    assert 100 < row["items"] <= 150  # some are published later
    ranking, request = row["ranking"], row["request"]
    assert (ranking["candidates"], ranking["requests"], request["requests"]) == (40, 3, 3)
    assert max(ranking["largest_difference"].values()) < 1e-9
    assert request["forward_passes"]["whole"] == request["forward_passes"]["beams"] == 1  # of the prompt alone
    assert ranking["ms"].keys() >= {"gather", "rank", "features", "scores", "lightgbm", "reasons"}
    assert all(0 < one["quickest"] <= one["9th_decile"] for one in ranking["ms"].values())
