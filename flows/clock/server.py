"""A Prefect server to talk to: the one PREFECT_API_URL names, or one of our own for as long as a command runs.

Prefect's ephemeral mode loses task records at exit, so short commands start a real server on loopback instead; its
database stays in <home>/.plumline/prefect, and `prefect server start` on the same folder shows the same history.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from plumline.errors import PlumlineError
from plumline.settings import child_environment
from plumline.stage import die_with_parent, say
from serving.deploy import free_port

_START_TIMEOUT_S = 180.0
_LAST_WORDS_S = 10.0
"""Seconds that Prefect's last log lines and events of a run have to reach the server."""


def prefect_environment(home: Path) -> dict[str, str]:
    """Prefect's settings for one home: database, results and logs in it; beats often enough to see a dead run."""
    return {
        "PREFECT_HOME": str((home / ".plumline" / "prefect").resolve()),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str((home / ".plumline" / "prefect" / "results").resolve()),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_CLIENT_METRICS_ENABLED": "false",
    }


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Yield the URL of a Prefect API, in force as PREFECT_API_URL until the end of the block."""
    with ExitStack() as stack:
        (home / ".plumline" / "prefect").mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only
        wanted = {k: v for k, v in prefect_environment(home).items() if k not in os.environ}
        stack.enter_context(_environment(wanted))
        url = os.environ.get("PREFECT_API_URL")
        if url is None:
            url = stack.enter_context(_own_server(home))
            stack.enter_context(_environment({"PREFECT_API_URL": url}))
            stack.callback(_send_last_words)
        yield url


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    try:
        os.environ.update(values)
        _refresh_settings()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _refresh_settings()


def _refresh_settings() -> None:
    """Prefect reads the environment once, when it is imported; if it was, make it look again."""
    if "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


@contextmanager
def _own_server(home: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    log_path = home / ".plumline" / "prefect-server.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    say("starting a Prefect server of this run's own (set PREFECT_API_URL to use another)")
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=child_environment(),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
            process_group=0,  # Ctrl-C is for the flow, which has yet to tell its server how it ended
        )
    try:
        _wait_until_ready(process, url, log_path)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _send_last_words() -> None:
    """Have Prefect's background services send what they still hold, and end, before their server does.

    A log line waits up to 2 s for others, and at exit Prefect waits for these services without a limit: where the
    server had gone by then, the line was lost, and the process tried for another 75 s (5 retries, 2 to 32 s apart).
    What could not be sent in time is given up here, as Prefect would not.
    """
    if "prefect._internal.concurrency.services" not in sys.modules:
        return
    from prefect._internal.concurrency.services import QueueService, _active_services

    at_work = [(one._loop, one._task) for one in _active_services]  # a service that is told to stop forgets its task
    try:
        QueueService.drain_all(timeout=_LAST_WORDS_S)  # all kinds: they share one table of instances
    finally:
        for loop, task in at_work:
            if loop is not None and task is not None and not task.done():
                loop.call_soon_threadsafe(task.cancel)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log_path: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PlumlineError(f"the Prefect server ended at once (exit {process.returncode}); see {log_path}")
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise PlumlineError(f"the Prefect server was not ready within {_START_TIMEOUT_S:.0f} s; see {log_path}")
