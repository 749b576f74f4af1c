"""Every command of README and the tutorial, in order, in the home that `make day` leaves: it works as it is printed.

The tutorial comes first, in an empty home: what it lands and learns is what `make day` lands and learns, so that
`plumline day` goes on from it and does only what is left. A command is a line that begins with `$ ` in a ```console
block. Release ids are replaced by those of this machine, the port by a free one.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml

from serving.deploy import free_port, serve_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

ROOT = Path(__file__).resolve().parents[2]
RELEASE = re.compile(r"\d{4}-\d\d-\d\d-[0-9a-f]{8}")
UNTIL_STOPPED = {"schedule": "started!", "dashboards": "dashboards: http"}
"""Commands that run until Ctrl-C, and what each says when it is up."""


_BLOCK = re.compile(r"^```console *(\w*)\n(.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Documented:
    """One command. kind: the word behind ```console, "" for none. shown: the lines below it, up to the next one."""

    kind: str
    command: str
    shown: tuple[str, ...]


def read_commands(page: Path) -> list[Documented]:
    """All commands of a page, in order."""
    found = []
    for kind, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for part in re.split(r"^\$ ", body, flags=re.M)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            found.append(Documented(kind, command, tuple(shown)))
    return found


@dataclass
class Shell:
    """A home, and a terminal in it."""

    home: Path
    environment: dict[str, str]
    port: int = 0

    def run(self, one: Documented) -> None:
        """Run a command as it is printed and check its answer."""
        command = RELEASE.sub(lambda match: self._release(match[0]), one.command)
        command = command.replace("localhost:3000", f"localhost:{self.port}")
        words = shlex.split(command)
        if len(words) > 1 and words[1] in UNTIL_STOPPED:
            self._start_and_stop(words)
            return
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.home, env=self.environment, capture_output=True, text=True, check=False
        )
        told = f"$ {command}\n{done.stdout}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, told
        check_answer(words, done.stdout, done.stderr, told)
        if one.shown:
            assert shape(one.shown[0]) == shape(done.stdout or done.stderr), told

    def _release(self, shown: str) -> str:
        """The release of this machine for the day of the one that the page shows."""
        status = json.loads(self.output("plumline", "status", "--json"))
        [found] = [r["release_id"] for r in status["releases"] if r["as_of"] == shown[:10]]
        return str(found)

    def output(self, *words: str) -> str:
        """stdout of a command of the test's own."""
        done = subprocess.run(words, cwd=self.home, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout

    def _start_and_stop(self, words: list[str]) -> None:
        port = free_port()
        log = self.home / "until-stopped.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*words, *(["--port", str(port)] if words[1] == "dashboards" else [])],
                cwd=self.home,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=hear_ctrl_c,
            )
        try:
            deadline = time.monotonic() + 180
            while UNTIL_STOPPED[words[1]] not in log.read_text() or (words[1] == "dashboards" and not _is_up(port)):
                assert process.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise AssertionError(f"{words} goes on after Ctrl-C") from None


def hear_ctrl_c() -> None:
    """As in a terminal: what a shell starts in the background ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def shape(text: str) -> str:
    """How an output begins, whatever the numbers of a machine are."""
    return re.sub(r"\d+", "#", text.lstrip())[:6]


def check_answer(words: list[str], out: str, err: str, told: str) -> None:
    """What a reader of the page expects: an answer, not a cold one, not a refusal."""
    assert "Traceback" not in err, told
    match words:
        case ["plumline", "recommend", *rest]:
            asked = int(rest[rest.index("-k") + 1]) if "-k" in rest else 10
            assert len(re.findall(r"^ *\d+  \S", out, re.M)) == asked, told
            assert "#" not in "".join(line[:1] for line in out.splitlines()), told  # no reason why it is less than that
        case ["curl", *_]:
            answer = json.loads(out)
            assert answer["items"], told
            assert not answer["degraded"], told
            assert answer["reason"] == "", told
        case ["plumline", "status", *_]:
            assert re.search(r"^champion  \d{4}-", out, re.M), told
        case ["plumline", "bootstrap" | "daily", *_]:
            assert "  champion" in out, told
        case ["plumline", "init" | "land", *_]:
            assert "landed" in err, told
        case ["plumline", "rollback" | "promote", *_]:
            assert re.match(r"champion: \d{4}-", out), told
        case ["plumline", "retract", *_]:
            assert "never served" in out, told
        case ["plumline", "beam-check", *_]:
            assert "holds" in out, told
        case ["plumline", "sids", "report", *_]:
            assert "Largest first codes" in out, told
        case ["plumline", "ask", *_]:
            assert out.strip(), told
        case ["plumline", "doctor", *_]:
            assert "torch" in out, told
        case _:
            raise AssertionError(f"nobody says what a reader expects of {words}; say it here")


def run_page(shell: Shell, commands: list[Documented]) -> None:
    """All commands in order; those over HTTP while a service is up."""
    at = 0
    while at < len(commands):
        if commands[at].kind != "serve":
            shell.run(commands[at])
            at += 1
            continue
        with serve_process(shell.home) as server:
            shell.port = server.port
            while at < len(commands) and commands[at].kind == "serve":
                shell.run(commands[at])
                at += 1


def make_shell(home: Path, environment: dict[str, str]) -> Shell:
    home.mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, home / name)
    shutil.copytree(ROOT / "recipes", home / "recipes")
    (home / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    plain = {name: value for name, value in environment.items() if name not in ("OMP_NUM_THREADS", "PLUMLINE_THREADS")}
    return Shell(home, {**plain, "PATH": path, "PLUMLINE_HOME": str(home), "PYTHONPATH": str(ROOT)})


FEW_STEPS = {"sft": {"steps": 150, "daily_steps": 30}, "rivals": {"sasrec_steps": 150}}
"""What is asked here is whether commands work as they are printed: what the model learns in minutes does not matter."""


def change_default_recipe(home: Path, changes: dict[str, dict[str, object]]) -> None:
    """Sections of the home's cpu_tiny, some values replaced."""
    path = home / "recipes" / "cpu_tiny.yaml"
    recipe = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(recipe | {name: {**(recipe[name] or {}), **new} for name, new in changes.items()}))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Shell:
    """A home with nothing in it yet, and the default recipe with few steps of the longest trainings."""
    shell = make_shell(tmp_path_factory.mktemp("sample") / "home", environment)
    change_default_recipe(shell.home, FEW_STEPS)
    return shell


def test_the_tutorial_works_as_it_is_printed(sample: Shell) -> None:
    commands = read_commands(ROOT / "docs" / "tutorial.md")
    assert len(commands) >= 10
    assert all(one.shown for one in commands), "a command of the tutorial shows no output"
    run_page(sample, commands)


def test_the_day_goes_on_from_it_and_names_three_commands_that_work(sample: Shell) -> None:
    shutil.copy(
        ROOT / "params.yaml", sample.home
    )  # init chose days of its own; those of the sample stand in the repository
    done = subprocess.run(
        ["plumline", "day"], cwd=sample.home, env=sample.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "invalid 0, degraded 0" in done.stdout
    now = done.stdout.partition("What now?")[2]
    commands = re.findall(r"^  (plumline .*?)  ", now, re.M)
    assert len(commands) == 3
    for command in commands:
        if command == "plumline serve":
            with serve_process(sample.home) as server, urllib.request.urlopen(f"{server.url}/readyz") as answer:
                assert answer.status == 200
        else:
            sample.run(Documented("", command, ()))


def test_the_readme_works_as_it_is_printed(sample: Shell) -> None:
    commands = [one for one in read_commands(ROOT / "README.md") if one.kind != "own"]
    assert len(commands) >= 10
    run_page(sample, commands)


def test_the_readme_s_lines_for_your_own_data_work(
    tmp_path: Path, environment: dict[str, str], tiny: dict[str, dict[str, object]]
) -> None:
    """Files of the names and kinds that README gives, and a recipe of six steps in the place of its default."""
    from features.synthetic import make_world

    shell = make_shell(tmp_path / "home", environment)
    change_default_recipe(shell.home, tiny)
    world = make_world(3, num_users=150, num_items=90, num_days=16)
    items = world.items.rename_columns(["name" if name == "title" else name for name in world.items.column_names])
    pq.write_table(items, shell.home / "items.parquet")
    last = pc.greater_equal(
        world.events.column("timestamp").cast(pa.date32()), pa.scalar("2024-01-15").cast(pa.date32())
    )
    for name, part in (("events", pc.invert(last)), ("tomorrow", last)):
        rows = world.events.filter(part).select(["user_id", "item_id", "timestamp"])
        pa_csv.write_csv(rows, shell.home / f"{name}.csv")
    users = [{"user_id": row["user_id"], "country": "France"} for row in world.users.to_pylist()]
    (shell.home / "users.jsonl").write_text("\n".join(map(json.dumps, users)) + "\n")
    first = world.events.column("user_id")[0].as_py()
    commands = [one for one in read_commands(ROOT / "README.md") if one.kind == "own"]
    assert len(commands) == 5
    for one in commands:
        shell.run(Documented("", one.command.replace("--user u1", f"--user {first}"), ()))


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
