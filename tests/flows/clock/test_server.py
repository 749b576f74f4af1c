"""A Prefect server of our own: it has three minutes, and is told apart from one that ended."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.clock import server
from plumline.errors import PlumlineError


class Clock:
    """Seconds that pass only while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Process:
    """A server that runs, or ended."""

    def __init__(self, returncode: int | None = None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode


def refuse(url: str, timeout: float) -> httpx.Response:
    raise httpx.ConnectError("nobody listens")


def test_a_server_has_three_minutes_to_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, process = Clock(), Process()
    monkeypatch.setattr(server, "time", clock)
    monkeypatch.setattr(httpx, "get", refuse)
    running: Any = process
    with pytest.raises(PlumlineError, match="not ready within 180 s"):
        server._wait_until_ready(running, "http://127.0.0.1:1/api", tmp_path / "log")
    assert 180 <= clock.now < 181


def test_a_server_that_ended_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx, "get", refuse)
    ended: Any = Process(3)
    with pytest.raises(PlumlineError, match=r"ended at once \(exit 3\)"):
        server._wait_until_ready(ended, "http://127.0.0.1:1/api", tmp_path / "log")
