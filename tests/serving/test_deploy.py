"""Commands that are built, and (slow) the real service: started, asked, killed, from a home and from a Bento."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from plumline.errors import ArtifactError, InputError, PlumlineError, RefusedError
from serving import deploy
from serving.deploy import (
    bentoml_home,
    build_bento,
    cloud_command,
    deploy_cloud,
    free_port,
    is_ready,
    serve_command,
    serve_environment,
    serve_process,
)
from serving.pointers import promote, rollback
from serving.traffic import read_traffic


def test_serve_command_listens_on_loopback(root: Path) -> None:
    command = serve_command(3001)
    assert command[1:5] == ["-m", "bentoml", "serve", "serving.service:Plumline"]
    assert command[5:] == ["--host", "127.0.0.1", "--port", "3001", "--working-dir", str(root)]
    assert "--working-dir" not in serve_command(3001, "plumline:v1")


def test_the_environment_is_quiet_and_of_this_home(tmp_path: Path) -> None:
    environment = serve_environment(tmp_path, EXTRA="x")
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["PLUMLINE_HOME"] == str(tmp_path)
    assert environment["BENTOML_HOME"] == str(tmp_path / ".plumline" / "bentoml")
    assert (environment["OMP_NUM_THREADS"], environment["EXTRA"]) == ("1", "x")


def test_cloud_command() -> None:
    assert cloud_command("plumline:v1", "shop", min_replicas=1, max_replicas=3) == [
        *[sys.executable, "-m", "bentoml", "deploy", "plumline:v1", "--name", "shop"],
        *["--scaling-min", "1", "--scaling-max", "3", "--strategy", "RollingUpdate"],
    ]
    with pytest.raises(InputError, match="replicas 3 to 1"):
        cloud_command("plumline:v1", "shop", min_replicas=3, max_replicas=1)
    with pytest.raises(InputError):
        cloud_command("plumline:v1", "../shop")


def test_the_cloud_wants_a_login(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not logged in to BentoCloud"):
        deploy_cloud("plumline:v1", "shop", tmp_path)


def test_no_bento_of_what_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        build_bento(tmp_path / "nothing", "v1", tmp_path)


def test_free_ports_are_free() -> None:
    assert not is_ready(f"http://127.0.0.1:{free_port()}")


class Clock:
    """Seconds that pass only while somebody sleeps."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Hanging(subprocess.Popen):  # type: ignore[type-arg]
    """A process that does not end for as long as anybody waits."""

    def __init__(self) -> None:
        super().__init__(["sleep", "60"])
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> int:
        if timeout is not None:
            self.waited.append(timeout)
            raise subprocess.TimeoutExpired(self.args, timeout)
        return super().wait()


def test_a_service_has_two_minutes_to_start_and_thirty_seconds_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, clock = Hanging(), Clock()
    monkeypatch.setattr(deploy, "time", clock)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: hanging)
    with pytest.raises(PlumlineError, match="was not ready after 120 s"), serve_process(tmp_path):
        pass
    assert 120 < clock.now < 121
    assert hanging.waited == [30]
    assert hanging.poll() is not None  # it was killed then


@pytest.mark.slow
def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(PlumlineError, match=r"the service (ended|was not ready).*serve\.log"),
        serve_process(tmp_path, target="no.such.module:Service", wait_seconds=60),
    ):
        pass


@pytest.mark.slow
def test_the_real_service(real: Any, tmp_path: Path) -> None:
    home = real.new_home(tmp_path / "home")
    releases = home / "releases"
    promote(releases, real.ids[0], expected=0)
    with serve_process(home) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        asked = {"user_id": "u1", "history": ["item001", "item007"]}
        bodies = [client.post("/recommend", json=asked).json() for _ in range(20)]
        assert len({tuple(item["item_id"] for item in body["items"]) for body in bodies}) == 1
        assert client.get("/release").json()["release_id"] == real.ids[0]
        assert client.post("/recommend", json={"k": 1000}).status_code == 400

        promote(releases, real.ids[1], expected=1)
        codes = set()
        deadline = time.monotonic() + 10
        with ThreadPoolExecutor(4) as pool:
            while client.get("/release").json()["release_id"] != real.ids[1]:
                assert time.monotonic() < deadline
                answers = pool.map(lambda _: client.post("/recommend", json=asked).status_code, range(8))
                codes |= set(answers)
        assert codes <= {200}
        rollback(releases)

        metrics = client.get("/metrics").text
        assert 'plumline_requests_total{route="recommend",status="400"} 1.0' in metrics
        assert "plumline_latency_seconds_bucket" in metrics
        family = [server.process.pid, *(p.pid for p in psutil.Process(server.process.pid).children(recursive=True))]
    assert not any(psutil.pid_exists(pid) for pid in family)
    assert not is_ready(server.url)
    rows = read_traffic(home / "data" / "traffic", date(2020, 1, 1), date(2100, 1, 1))
    assert rows.num_rows >= 20  # what waited was written when it was stopped
    assert len(set(rows.column("request_id").to_pylist())) == rows.num_rows


@pytest.mark.slow
def test_a_bento_needs_no_home(real: Any, tmp_path: Path) -> None:
    home = tmp_path / "builder"
    home.mkdir()
    tag = build_bento(real.folder(0), "v1", home)
    assert tag == "plumline:v1"
    folder = bentoml_home(home) / "bentos" / "plumline" / "v1"
    assert build_bento(real.folder(0), "v1", home) == tag  # it is there
    assert not (folder / "src" / "flows").exists()
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "empty"), "BENTOML_DO_NOT_TRACK": "True"}
    port = free_port()
    command = [sys.executable, "-m", "bentoml", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    try:
        deadline = time.monotonic() + 90
        while not is_ready(f"http://127.0.0.1:{port}"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        answer = httpx.post(f"http://127.0.0.1:{port}/recommend", json={"history": ["item001"]}, timeout=10)
        assert answer.json()["release_id"] == real.ids[0]
    finally:
        process.terminate()
        process.wait(30)
