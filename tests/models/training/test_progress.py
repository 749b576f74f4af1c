"""Progress: lines that can be read while they come, and that a run which goes on does not repeat."""

import json
from pathlib import Path

import pytest

from models.training.progress import Progress


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_lines_are_whole_at_once_and_hold_speed_share_and_time_left(tmp_path: Path) -> None:
    path = tmp_path / "progress" / "cpt.jsonl"
    with Progress(path, "cpt", 4, peak=1e3, after=(0, 2.0)) as progress:
        progress.write(1, loss=2.5, tokens=100, flops=500, averagings=3)
        line = json.loads(path.read_text())
    assert (line["step"], line["loss"], line["averagings"]) == (1, 2.5, 3)
    assert line["seconds"] >= 2.0
    assert line["tokens_per_s"] == pytest.approx(100 / line["seconds"], abs=0.1)
    assert line["eta_s"] == pytest.approx(3 * line["seconds"], abs=0.01)
    assert line["mfu"] == pytest.approx(500 / line["seconds"] / 1e3, abs=1e-3)


def test_a_run_that_goes_on_keeps_the_lines_before_and_a_new_one_none(tmp_path: Path) -> None:
    path = tmp_path / "cpt.jsonl"
    with Progress(path, "cpt", 9, peak=1.0) as progress:
        for step in (2, 4, 6):
            progress.write(step, loss=1.0, tokens=1, flops=1)
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed in the middle of a line
    with Progress(path, "cpt", 9, peak=1.0, after=(4, 1.0)) as progress:
        assert steps(path) == [2, 4]
        progress.write(6, loss=1.0, tokens=1, flops=1)
    assert steps(path) == [2, 4, 6]
    with Progress(path, "cpt", 9, peak=1.0):
        pass
    assert path.read_text() == ""


def test_a_silent_process_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, "cpt", 2, peak=1.0) as progress:
        progress.show(1.0, 5)
        progress.write(1, loss=1.0, tokens=5, flops=5)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""
