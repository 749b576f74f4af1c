"""Every stage, killed with -9 and started again, leaves the same bytes as one that was not.

At one point of each stage, each point in several stages; N=6 kills every stage at every point.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from flows.steps.graph import read_graph, read_params, upstream

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(2400)]

POINTS = ("start", "body", "written", "sealed", "published")


def _bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_stage_killed_ends_in_the_same_bytes(new_company):
    home = new_company.home
    graph = read_graph(home)
    values = {**read_params(home), "as_of": "2024-01-12", "base": "", "previous": ""}
    for name in upstream(graph, "release"):
        out = home / "artifacts" / name

        def run(crash_at="", name=name):
            command = graph[name].argv(sys.executable, values)
            environment = {**new_company.environment, "PLUMLINE_CRASH_AT": crash_at}
            done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == (-signal.SIGKILL if crash_at else 0), f"{name} {crash_at}\n{done.stderr[-2000:]}"

        run()
        reference = _bytes(out)
        points = [*POINTS, "step:3"] if name in ("cpt", "sft") else POINTS
        # one point a stage, walking round, so that each point is met by several stages and the suite stays short
        start, some = list(graph).index(name), int(os.environ.get("N", "1"))
        for point in dict.fromkeys(points[(start + step) % len(points)] for step in range(some)):
            shutil.rmtree(out)
            run(crash_at=f"{name}:{point}")
            assert out.exists() == (point == "published")
            run()
            assert _bytes(out) == reference, f"{name} killed at {point}"
    leftovers = list((home / "artifacts" / ".scratch").iterdir())
    assert leftovers == []


def test_a_killed_bootstrap_goes_on_where_it_was(new_company):
    """The whole flow, killed while it trains and again while it publishes, ends with one release and one tag."""
    process = subprocess.run(
        [sys.executable, "-m", "flows", "bootstrap", "--as-of", "2024-01-12"],
        cwd=new_company.home,
        env={**new_company.environment, "PLUMLINE_CRASH_AT": "sft:step:2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "SIGKILL" in process.stderr
    assert new_company.json("status")["releases"] == []
    new_company.run("bootstrap", "--as-of", "2024-01-12", PLUMLINE_CRASH_AT="")
    again = new_company.run("bootstrap", "--as-of", "2024-01-12")
    assert "already published" in again.stderr
    status = new_company.json("status")
    assert len(status["releases"]) == 1
    assert status["champion"] == status["releases"][0]["release_id"]
