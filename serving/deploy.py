"""Roll a release out: a process on this machine, a Bento, BentoCloud.

    with serve_process(home, port=0) as server: httpx.post(f"{server.url}/recommend", json={"history": […]})
    build_bento(home / "releases/sealed/<id>", "<version>", home)     → "plumline:<version>", offline
    deploy_cloud("plumline:<version>", "name", home)                  `bentoml deploy`

A Bento is `serving/` and everything left of it, plus one sealed release and the pointer at it: it needs no home. So it
knows nothing of a home's later promotions, rollbacks and tombstones: what is retracted is served until another Bento,
of a release without the item, is rolled out.
Everything runs in processes of its own: BentoML reads its environment once, when it is imported.
"""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plumline.errors import InputError, PlumlineError, RefusedError
from plumline.settings import child_environment
from plumline.stage import CODE_ROOT, say
from serving.pointers import promote
from serving.release import Release, check_release_id

SERVICE = "serving.service:Plumline"
PACKAGES = ("plumline", "features", "models", "serving")
NAME = "plumline"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A service that answers. log: what it prints. process: the supervisor; its workers end with it."""

    url: str
    port: int
    log: Path
    process: "subprocess.Popen[bytes]"


def bentoml_home(home: Path) -> Path:
    """Where BentoML keeps its store, so that two homes on one machine do not meet."""
    return home.resolve() / ".plumline" / "bentoml"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def serve_environment(home: Path, **extra: str) -> dict[str, str]:
    """The environment of a service: this home, its own BentoML store, telemetry off, one thread a worker."""
    ours = {"PLUMLINE_HOME": str(home.resolve()), "BENTOML_HOME": str(bentoml_home(home)), "OMP_NUM_THREADS": "1"}
    return child_environment(**{**ours, "PLUMLINE_THREADS": "1", **extra})


def serve_command(port: int, target: str = SERVICE, host: str = "127.0.0.1") -> list[str]:
    """The command that serves. target: our service, a Bento's tag, or the folder of one."""
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", host, "--port", str(port)]
    return [*command, "--working-dir", str(CODE_ROOT)] if target == SERVICE else command


@contextlib.contextmanager
def serve_process(
    home: Path, port: int = 0, *, target: str = SERVICE, wait_seconds: float = 120.0, **environment: str
) -> Iterator[Server]:
    """Serve the champion of a home in a child process; ready inside the `with`, gone after it.

    port: 0 takes a free one. target: see `serve_command`. environment: on top of `serve_environment`.
    Raises PlumlineError with the service's last words if it ends or is not ready in time.
    """
    port = port or free_port()
    log = home.resolve() / ".plumline" / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve_command(port, target),
            cwd=home.resolve(),
            env=serve_environment(home, **environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", port, log, process)
    try:
        _wait_until_ready(server, wait_seconds)
        yield server
    finally:
        _stop(process)


def serve_forever(home: Path, port: int) -> None:
    """Serve the champion of a home until stopped (Ctrl-C, SIGTERM); its log goes to this terminal.

    port: 0 takes a free one. Raises PlumlineError if the service ends by itself.
    """
    port = port or free_port()
    say(f"service: http://127.0.0.1:{port} (POST /recommend, GET /release; Ctrl-C ends it)")
    bentoml_home(home).mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        serve_command(port), cwd=home.resolve(), env=serve_environment(home), stdin=subprocess.DEVNULL
    )
    try:
        if process.wait() != 0:
            raise PlumlineError(f"the service ended with {process.returncode}; its last lines stand above")
    except KeyboardInterrupt:
        say("service: stopping")
    finally:
        _stop(process)


def _wait_until_ready(server: Server, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while not is_ready(server.url):
        ended = server.process.poll() is not None
        if ended or time.monotonic() > deadline:
            what = f"ended with {server.process.returncode}" if ended else f"was not ready after {wait_seconds:.0f} s"
            words = server.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = words[-1] if words else "nothing"
            raise PlumlineError(f"the service {what}; its last words: {last}; all of them: {server.log}")
        time.sleep(_POLL_SECONDS)


def is_ready(url: str) -> bool:
    """Whether a service answers /readyz with 200."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM (answers in flight are finished, traffic is written), then SIGKILL to it and its workers."""
    import psutil

    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(family, timeout=5)[1]:
        child.kill()


def build_bento(release_folder: Path, version: str, home: Path) -> str:
    """Build a Bento of one sealed release, without the network; returns its tag.

    version: the Bento's, at best the release's id; one that is there already is left alone. home: whose BentoML store
    it goes to. Raises the errors of Release.load, PlumlineError with BentoML's last word.
    """
    release = Release.load(release_folder)
    if (bentoml_home(home) / "bentos" / NAME / check_release_id(version) / "bento.yaml").is_file():
        return f"{NAME}:{version}"
    with tempfile.TemporaryDirectory(prefix="plumline-bento-") as scratch:
        context = Path(scratch)
        _fill_context(context, release)
        command = [sys.executable, "-m", "bentoml", "build", str(context), "--version", version, "--output", "tag"]
        _run_bentoml(command, home, context)
    return f"{NAME}:{version}"


def _fill_context(context: Path, release: Release) -> None:
    """What goes into a Bento: packages, pinned requirements, one release and the pointer at it."""
    for package in PACKAGES:
        shutil.copytree(CODE_ROOT / package, context / package, ignore=shutil.ignore_patterns("__pycache__"))
    include = [f"{package}/**" for package in PACKAGES]
    requirements = CODE_ROOT / "requirements.lock"
    python: dict[str, object] = {"lock_packages": False}
    if requirements.is_file():
        shutil.copyfile(requirements, context / "requirements.txt")
        python["requirements_txt"] = "requirements.txt"
        include.append("requirements.txt")
    shutil.copytree(release.folder, context / "releases" / "sealed" / release.release_id)
    promote(context / "releases", release.release_id, expected=0)
    include.append("releases/**")
    bentofile = {
        "service": SERVICE,
        "name": NAME,
        "labels": {"release_id": release.release_id, "as_of": release.as_of.isoformat()},
        "include": include,
        "python": python,
        # inside a container loopback is nobody; outside, `serve_process` names the host itself
        "envs": [{"name": "BENTOML_HOST", "value": "0.0.0.0"}, {"name": "BENTOML_DO_NOT_TRACK", "value": "True"}],
    }
    (context / "bentofile.yaml").write_text(json.dumps(bentofile, indent=2), encoding="utf-8")  # JSON is YAML


def _run_bentoml(command: list[str], home: Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=serve_environment(home), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise PlumlineError(f"bentoml {command[3]}: {words[-1] if words else f'exit {done.returncode}'}")
    return done.stdout


def cloud_command(tag: str, name: str, *, min_replicas: int = 1, max_replicas: int = 1) -> list[str]:
    """The `bentoml deploy` that rolls a Bento out to BentoCloud."""
    if not 0 <= min_replicas <= max_replicas:
        raise InputError(f"replicas {min_replicas} to {max_replicas}: need 0 <= least <= most")
    command = [sys.executable, "-m", "bentoml", "deploy", tag, "--name", check_release_id(name)]
    scaling = ["--scaling-min", str(min_replicas), "--scaling-max", str(max_replicas)]
    return [*command, *scaling, "--strategy", "RollingUpdate"]


def deploy_cloud(tag: str, name: str, home: Path, *, min_replicas: int = 1, max_replicas: int = 1) -> str:
    """Roll a Bento out to BentoCloud and return what the command printed.

    Raises RefusedError if nobody is logged in, PlumlineError with BentoML's last word.
    """
    command = cloud_command(tag, name, min_replicas=min_replicas, max_replicas=max_replicas)
    has_key = bool(serve_environment(home).get("BENTO_CLOUD_API_KEY"))
    if not has_key and not (bentoml_home(home) / ".yatai.yaml").is_file():
        raise RefusedError(
            "not logged in to BentoCloud: set BENTO_CLOUD_API_KEY and BENTO_CLOUD_API_ENDPOINT, or run "
            f"BENTOML_HOME={bentoml_home(home)} bentoml cloud login"
        )
    return _run_bentoml(command, home, CODE_ROOT)
