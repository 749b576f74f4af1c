"""A Prefect server of our own: has three minutes, is told apart from one that ended, outlives the last log line."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
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


class Logs(BaseHTTPRequestHandler):
    """Knows one address, the one of log lines, and keeps what it is sent."""

    kept: list[str]

    def do_GET(self) -> None:
        self.send_error(404)  # no version, no CSRF tokens

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.kept += [f"{self.path} {line['message']}" for line in body]
        self.send_response(201)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


def say_in_a_run(monkeypatch: pytest.MonkeyPatch, home: Path, address: tuple[str, int]) -> Any:
    """Prefect's service of log lines after a run whose last moment said something, and whose server then ended."""

    @contextmanager
    def own(_: Path) -> Iterator[str]:
        yield f"http://{address[0]}:{address[1]}/api"

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(server, "_own_server", own)
    with server.prefect_server(home):
        from prefect.logging.handlers import APILogWorker

        service = APILogWorker.instance()
        service.send({"message": "the last word"})
    return service


def test_the_last_log_line_reaches_the_server_before_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Logs, "kept", [], raising=False)
    with HTTPServer(("127.0.0.1", 0), Logs) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        say_in_a_run(monkeypatch, tmp_path, ("127.0.0.1", listening.server_port))
        kept = list(Logs.kept)
        listening.shutdown()
    assert kept == ["/api/logs/ the last word"]


def test_a_server_that_does_not_answer_holds_nothing_at_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_LAST_WORDS_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        service = say_in_a_run(monkeypatch, tmp_path, silent.getsockname())
        service._drain(at_exit=True).result(timeout=5)  # what Prefect does at exit, where it has no limit
